"""The container image, built and run for real, and what else takes large tools. ``make image-test`` runs this; ``make test`` does not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from container import Container, Image, build, missing
from deploy_files import DEPLOY, interpolated, read, set_up_database, validate
from private_site import TARGET, PrivateSite, new_private_site
from services import PASSWORD, Served
from waiting import eventually

from cdc_archiver.sandbox import MariaDb, SshServer, ensure_tools, free_port
from cdc_archiver.sandbox.packages import Bundle, fetch
from cdc_archiver.settings import Settings

VERSION = version("cdc_archiver")


@pytest.fixture(scope="session", autouse=True)
def tools() -> None:
    if lacking := missing():
        pytest.fail(lacking, pytrace=False)


@pytest.fixture(scope="session")
def image() -> Image:
    return build("runtime", VERSION=VERSION, REVISION="test")


@pytest.fixture
def stage(mariadb: MariaDb, ssh_server: SshServer, tmp_path: Path) -> Iterator[PrivateSite]:
    with new_private_site(mariadb, ssh_server, tmp_path) as built:
        yield built


class InContainer(Served):
    """The service in a container, to be asked over HTTP.

    Args:
        variables: of its environment; an empty one is left out.
    """

    def __init__(self, image: Image, stage: PrivateSite, uid: int = 9000, **variables: str) -> None:
        self.port = free_port()
        home = stage.directory / "home"
        (home / ".ssh").mkdir(parents=True)
        shutil.copy(stage.ssh.key, home / ".ssh/id_ed25519")
        shutil.copy(stage.ssh.known_hosts, home / ".ssh/known_hosts")
        secret = stage.directory / "password"
        secret.write_text(PASSWORD)
        for path in (home, *home.rglob("*"), secret, stage.data_dir):
            os.chown(path, uid, uid)
        (home / ".ssh/id_ed25519").chmod(0o600)
        secret.chmod(0o400)
        self.container = Container(
            image,
            stage.directory / "container.log",
            user="" if uid == 9000 else f"{uid}:{uid}",
            environment=_given(
                {
                    "MYSQL_HOST": "127.0.0.1",
                    "MYSQL_PORT": str(stage.server.port),
                    "MYSQL_DATABASE": stage.database,
                    "MYSQL_USER": stage.user,
                    "MYSQL_PASSWORD_FILE": "/run/secrets/mysql_password",
                    "CDC_ARCHIVER_DATA_DIR": "/data",
                    "CDC_ARCHIVER_HOST": f"{stage.ssh.user}@{stage.ssh.host}",
                    "CDC_ARCHIVER_SSH_PORT": str(stage.ssh.port),
                    "CDC_ARCHIVER_TARGET": TARGET,
                    "CDC_ARCHIVER_HTTP_PORT": str(self.port),
                    **variables,
                }
            ),
            mounts={"/data": stage.data_dir, "/home/ocs": home, "/run/secrets/mysql_password": secret},
        )

    def __enter__(self) -> Container:
        self.container.__enter__()
        try:
            eventually(self._answers, "it answers")
        except AssertionError as error:
            error.add_note(self.container.said)
            self.container.__exit__()
            raise
        return self.container

    def __exit__(self, *_: object) -> None:
        self.container.__exit__()

    def _answers(self) -> bool:
        try:
            return bool(self.get("/healthz"))
        except OSError:
            return False


def _given(variables: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in variables.items() if value}


def test_what_the_image_says_of_itself(image: Image) -> None:
    config = image.config
    assert image.command == ["tini", "--", "cdc-archiver", "run"]
    assert config["User"] == "9000:9000"
    assert config["StopSignal"] == "SIGTERM"
    assert list(config["ExposedPorts"]) == [f"{Settings.model_fields['http_port'].default}/tcp"]
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in config["Labels"].items()}
    assert (labels["title"], labels["version"], labels["revision"]) == ("cdc_archiver", VERSION, "test")


def test_what_it_adds_to_its_base_stays_small(image: Image) -> None:
    added = (image.size - image.base_size) / 1e6
    print(f"\nimage: {image.size / 1e6:.0f} MB, of which its base has {image.base_size / 1e6:.0f}")
    assert added < 130


def test_files_are_archived_by_uid_9000_on_a_read_only_file_system(image: Image, stage: PrivateSite) -> None:
    files = stage.files(5)
    with (served := InContainer(image, stage)) as running:
        assert running.execute("cat", "/proc/1/comm").stdout.strip() == "tini"
        assert running.execute("touch", "/opt/cdc_archiver/x").returncode != 0
        assert running.execute("id", "-un").stdout.strip() == "ocs"
        stage.wait_archived(*stage.register(*files))
        served.wait_state("streaming")
        places = [stage.place(file) for file in files]
        assert [path.read_bytes() for path in places] == [file.content for file in files]
        assert {path.stat().st_uid for path in places} == {9000}
        assert running.execute(*image.health_check).returncode == 0
        assert running.stop() == 0
    assert '"event": "stopped"' in running.said
    assert PASSWORD not in running.said
    assert "Traceback" not in running.said


def test_an_observatorys_entry_archives_and_commands_in_it_know_its_settings(image: Image, stage: PrivateSite) -> None:
    site = {"MYSQL_HOST": "127.0.0.1", "MYSQL_USER": stage.user, "MYSQL_PASSWORD": PASSWORD}
    entry = interpolated(read(DEPLOY / "compose.ocs.yaml"), site)["services"]["pysmurf-archiver"]
    here = {"MYSQL_DATABASE": stage.database, "CDC_ARCHIVER_HOST": stage.ssh.host, "CDC_ARCHIVER_USER": stage.ssh.user}
    (stage.data_dir / "pysmurf").mkdir()
    os.chown(stage.data_dir / "pysmurf", 9000, 9000)
    file = stage.file("a.npy")
    with (served := InContainer(image, stage, MYSQL_PASSWORD_FILE="", **{**entry["environment"], **here})) as running:
        stage.wait_archived(*stage.register(file))
        served.wait_state("streaming")
        # As `docker compose exec pysmurf-archiver cdc-archiver …` does it.
        for command in ("check", "status"):
            done = running.execute("cdc-archiver", command)
            assert done.returncode == 0, done.stdout + done.stderr
        assert running.execute(*image.health_check).returncode == 0
        assert running.stop() == 0
    assert [path.relative_to(stage.data_dir).parts[0] for path in stage.archived_files()] == ["pysmurf"] * 2


def test_a_uid_that_the_image_does_not_know_archives_as_well(image: Image, stage: PrivateSite) -> None:
    file = stage.file("a.npy")
    with InContainer(image, stage, uid=54321) as running:
        assert "54321" not in running.execute("cat", "/etc/passwd").stdout
        stage.wait_archived(*stage.register(file))
        assert running.stop() == 0
    assert stage.place(file).stat().st_uid == 54321


def test_a_stop_lets_a_running_copy_finish(image: Image, stage: PrivateSite) -> None:
    file = stage.file("large.npy", size=4_000_000)
    with (served := InContainer(image, stage, CDC_ARCHIVER_BWLIMIT="2m")) as running:
        (id_,) = stage.register(file)
        eventually(lambda: served.metric("in_flight") > 0, "it is being copied")
        assert running.stop() == 0
    assert stage.row(id_).copied == 1
    assert stage.place(file).read_bytes() == file.content


def test_its_health_is_that_of_healthz(image: Image, stage: PrivateSite) -> None:
    with (served := InContainer(image, stage, MYSQL_PORT=str(free_port()))) as running:
        served.wait_state("no database")
        assert served.get("/readyz")[0] == 503
        checked = running.execute(*image.health_check)
        assert (checked.returncode, checked.stdout) == (0, "200 no database\n")
    nobody = {"CDC_ARCHIVER_HTTP_PORT": str(free_port())}
    idle = Container(image, stage.directory / "idle.log", environment=nobody, arguments=["60"], entry_point=["sleep"])
    with idle as running:
        assert running.execute(*image.health_check).returncode == 1


def test_a_wrong_setting_is_one_line_and_its_status(image: Image, tmp_path: Path) -> None:
    with Container(image, tmp_path / "log", environment={"CDC_ARCHIVER_TARGETS": "a"}) as container:
        assert container.wait() == 2
        assert "did you mean 'CDC_ARCHIVER_TARGET'" in container.said


def test_the_build_and_the_sandbox_leave_nothing_in_it(image: Image, tmp_path: Path) -> None:
    look = "ls -d /build /root/.cache /opt/cdc_archiver/bin/pip* /var/lib/apt/lists/* 2>/dev/null; true"
    with Container(image, tmp_path / "log", entry_point=["sh", "-c"], arguments=[look]) as container:
        assert container.wait() == 0
        assert container.said == ""


def test_the_demos_services_archive_as_compose_runs_them(
    image: Image, mariadb: MariaDb, ssh_server: SshServer, tmp_path: Path
) -> None:
    demo = build("demo", VERSION=VERSION, REVISION="test")
    secrets, port, ssh_port = tmp_path / "secrets", free_port(), free_port()
    ensure_tools("ssh-keygen")
    subprocess.run([DEPLOY / "make-secrets", secrets], check=True)
    # Engines give each service an address of its own, and its name; here they share the machine's.
    database = {"MYSQL_HOST": "127.0.0.1", "MYSQL_PORT": str(mariadb.port)}
    (secrets / "known_hosts").write_text(
        (secrets / "known_hosts").read_text().replace("source ", f"[127.0.0.1]:{ssh_port} ")
    )
    (tmp_path / "sshd_config").write_text(
        (DEPLOY / "demo/sshd_config").read_text().replace("Port 22\n", f"Port {ssh_port}\n")
    )
    with new_private_site(mariadb, ssh_server, tmp_path, table=False) as stage:
        site = {**database, "MYSQL_DATABASE": stage.database, "READOUT_HOST": "ocs@127.0.0.1"}
        compose = interpolated(read(DEPLOY / "compose.yaml"), site)
        volumes = {name: tmp_path / "volumes" / name for name in compose["volumes"]}
        for directory in volumes.values():
            directory.mkdir(parents=True)
            os.chown(directory, 9000, 9000)  # as the image's /data is, of which a new volume is a copy

        def service(name: str, of: Image, more: Mapping[str, str], mounts: Mapping[str, Path]) -> Container:
            given = compose["services"][name]
            places = {place: volumes[volume] for volume, place, *_ in (each.split(":") for each in given["volumes"])}
            for secret in given["secrets"]:
                places[f"/run/secrets/{secret}"] = secrets / Path(compose["secrets"][secret]["file"]).name
            environment = {**given.get("environment", {}), **more}
            return Container(
                *(of, tmp_path / f"{name}.log", given.get("user", ""), environment, {**places, **mounts}),
                arguments=given.get("command"),
            )

        served = Served()
        served.port = port
        here = {"CDC_ARCHIVER_SSH_PORT": str(ssh_port), "CDC_ARCHIVER_HTTP_PORT": str(port)}
        config = {"/opt/demo/sshd_config": tmp_path / "sshd_config"}
        with (
            set_up_database(stage, secrets),
            service("source", demo, {}, config) as source,
            service("archiver", image, here, {}) as archiver,
            service("publisher", demo, site, {}) as publisher,
        ):
            eventually(lambda: stage.count("copied = 1") >= 16, "two actions are archived")
            check = archiver.execute("cdc-archiver", "check")
            assert (check.returncode, "warning" in check.stdout) == (0, False), check.stdout + check.stderr
            assert served.get("/readyz") == (200, "streaming\n")
            assert [each.stop() for each in (publisher, archiver)] == [0, 0]
            assert "take_iv: 8 files\n" in publisher.said
            assert "Read-only" not in source.said
        assert len([path for path in volumes["archive"].rglob("*.npy") if path.stat().st_uid == 9000]) >= 8


@pytest.mark.parametrize("profile", ["mysql", "mariadb", "demo", "demo-mariadb", ""])
def test_compose_makes_of_its_files_what_is_meant(profile: str) -> None:
    root = fetch(Bundle("compose", ("docker-compose",), ("docker-compose",), suite="trixie"))
    libraries = next(root.glob("usr/lib/*-linux-gnu*"))
    loader = next(libraries.glob("ld-linux-*"))
    (program,) = root.glob("usr/libexec/docker/cli-plugins/docker-compose")
    command: list[str | Path] = [loader, "--library-path", libraries, program]
    environment = {"PATH": os.environ["PATH"], "MYSQL_USER": "u", "MYSQL_PASSWORD": "p"}

    def asked(file: str) -> Any:
        done = subprocess.run(
            [*command, "--file", DEPLOY / file, "--profile", profile, "config", "--format", "json"],
            check=False,
            capture_output=True,
            text=True,
            env=environment,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    there = asked("compose.yaml")["services"]
    assert {"archiver", "prometheus", "grafana"} <= there.keys()
    assert there["archiver"]["environment"]["MYSQL_USER"] == "u"
    assert there.keys() & {"mysql", "mariadb"} == (
        {"mariadb"} if "mariadb" in profile else {"mysql"} if profile else set()
    )
    assert ({"source", "publisher"} <= there.keys()) is profile.startswith("demo")
    assert asked("compose.ocs.yaml")["services"].keys() == {"pysmurf-archiver"}


def test_kustomize_makes_of_the_base_what_kubernetes_takes(tmp_path: Path) -> None:
    kubectl = fetch(Bundle("kubernetes", ("kubernetes-client",), ("kubectl",))) / "usr/bin/kubectl"
    base = tmp_path / "base"
    shutil.copytree(DEPLOY / "kubernetes", base)
    (base / "secrets").mkdir(exist_ok=True)
    for name in ("mysql_password", "ssh_key", "known_hosts"):
        (base / "secrets" / name).write_text("x")
    made = subprocess.run([kubectl, "kustomize", base], check=True, capture_output=True, text=True).stdout
    documents = {document["kind"]: document for document in yaml.safe_load_all(made)}
    assert documents.keys() == {
        "ConfigMap",
        "Deployment",
        "PersistentVolumeClaim",
        "Secret",
        "Service",
        "ServiceMonitor",
    }
    for kind, document in documents.items():
        if kind == "ServiceMonitor":
            validate(document, "servicemonitor")
        else:
            kubernetes_validate.validate(document, "1.31", strict=True)
    pod = documents["Deployment"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == f"cdc_archiver:{VERSION}"
    # The names that were made are those that the pod asks for: a change of them restarts it.
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["config"]["configMap"]["name"] == documents["ConfigMap"]["metadata"]["name"] != "cdc-archiver"
    assert volumes["secrets"]["secret"]["secretName"] == documents["Secret"]["metadata"]["name"] != "cdc-archiver"
