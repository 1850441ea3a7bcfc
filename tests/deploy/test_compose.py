"""The compose files: what compose takes, and every file, path, port, variable and tag in them as the project really has it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pymysql
import pytest
from deploy_files import DEPLOY, ROOT, VERSION, initial_sql, interpolated, read, seconds, set_up_database, validate
from files_table import TABLE
from private_site import PrivateSite, new_private_site, run_here
from services import Service
from waiting import eventually

from cdc_archiver.database import schema
from cdc_archiver.registrar.lifecycle import source_of, spool_path
from cdc_archiver.sandbox import DatabaseServer, SshServer, ensure_tools
from cdc_archiver.sandbox.packages import Tool
from cdc_archiver.settings import load

COMPOSE: dict[str, Any] = interpolated(read(DEPLOY / "compose.yaml"), {})
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
OCS: dict[str, Any] = interpolated(
    read(DEPLOY / "compose.ocs.yaml"), {"MYSQL_USER": "u", "MYSQL_PASSWORD": "p", "MYSQL_HOST": "db"}
)
COMPOSE_OF_REGISTRAR: dict[str, Any] = interpolated(
    read(DEPLOY / "compose.registrar.yaml"), {"MYSQL_USER": "u", "MYSQL_PASSWORD": "p"}
)
REGISTRAR: dict[str, Any] = COMPOSE_OF_REGISTRAR["services"]["registrar"]
WELL_KNOWN = {"mysql:8.4", "mariadb:10.11", "prom/prometheus", "grafana/grafana"}


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What make-secrets makes."""
    ensure_tools("ssh-keygen")
    directory = tmp_path_factory.mktemp("made") / "secrets"
    subprocess.run([DEPLOY / "make-secrets", directory], check=True)
    return directory


@pytest.mark.parametrize("name", ["compose.yaml", "compose.ocs.yaml", "compose.registrar.yaml"])
def test_a_file_is_what_compose_takes(name: str) -> None:
    validate(read(DEPLOY / name), "compose-spec")


def test_a_file_that_is_none_would_be_refused() -> None:
    with pytest.raises(AssertionError, match="port"):
        validate({"services": {"archiver": {**OCS["services"]["pysmurf-archiver"], "port": 1}}}, "compose-spec")


def test_every_file_that_is_mounted_is_there() -> None:
    for name, service in SERVICES.items():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), f"{name}: {source}"
            else:
                assert source in COMPOSE["volumes"], f"{name}: {source}"
        assert set(service.get("secrets", ())) <= COMPOSE["secrets"].keys(), name


def test_images_are_of_this_version_or_well_known() -> None:
    for name, service in SERVICES.items():
        image, _, tag = service["image"].partition(":")
        if image.startswith("cdc_archiver"):
            assert tag == VERSION, name
            target = service["build"]["target"]
            assert re.search(rf"^FROM \S+ AS {target}$", DOCKERFILE, re.MULTILINE), f"{name}: {target}"
            for argument in service["build"].get("args", {}):
                assert f"ARG {argument}=" in DOCKERFILE, f"{name}: {argument}"
        else:
            assert {service["image"], image} & WELL_KNOWN, name
            assert re.search(r"\d", tag), f"{name}: a tag that moves"
    assert SERVICES["archiver"]["build"]["args"]["VERSION"] == VERSION
    assert OCS["services"]["pysmurf-archiver"]["image"] == f"cdc_archiver:{VERSION}"
    assert REGISTRAR["image"] == f"cdc_archiver:{VERSION}"


def test_the_registrars_settings_are_the_programs_and_its_spool_is_on_a_volume() -> None:
    environment = {name: str(value) for name, value in REGISTRAR["environment"].items()}
    settings = load(environment=environment)
    assert source_of(settings).target == ("pysmurf-monitor",)
    assert REGISTRAR["network_mode"] == "host"
    assert settings.http_host == "127.0.0.1"
    data, spool = (volume.split(":") for volume in REGISTRAR["volumes"])
    assert data == [settings.source_root, settings.source_root, "ro"]
    assert spool[0] in COMPOSE_OF_REGISTRAR["volumes"]
    # A new volume takes owner and mode from the image's directory.
    assert f"1777 {spool[1]}" in DOCKERFILE
    assert str(spool_path(settings)).startswith(f"{spool[1]}/")
    assert seconds(REGISTRAR["stop_grace_period"]) >= settings.drain_timeout + 10
    assert (DEPLOY / SERVICES["archiver"]["build"]["context"] / "Dockerfile").samefile(ROOT / "Dockerfile")


def test_who_waits_for_anothers_health_waits_for_one_that_tells_it() -> None:
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                told = "healthcheck" in SERVICES[other] or SERVICES[other]["build"]["target"] == "runtime"
                assert told, f"{name} waits for {other}"
            # A service of another profile is not there.
            others_profiles = SERVICES[other].get("profiles")
            if others_profiles and not set(service.get("profiles", [""])) <= set(others_profiles):
                assert how["required"] is False, f"{name} needs {other}, which may not be there"
    assert "HEALTHCHECK --interval" in DOCKERFILE


@pytest.mark.parametrize("profile", ["mysql", "mariadb", "demo", "demo-mariadb"])
def test_each_profile_has_one_database_and_it_is_the_one_that_the_archiver_asks(profile: str) -> None:
    there = {name: each for name, each in SERVICES.items() if profile in each.get("profiles", [profile])}
    alias = SERVICES["archiver"]["environment"]["MYSQL_HOST"]
    assert [name for name, each in there.items() if alias in _aliases(each)] in (["mysql"], ["mariadb"])
    assert {"archiver", "prometheus", "grafana"} <= there.keys()
    assert {"source", "publisher"} <= there.keys() or not profile.startswith("demo")


def test_the_archivers_variables_are_settings_and_lead_to_what_is_mounted() -> None:
    archiver = SERVICES["archiver"]
    settings = load(environment=archiver["environment"])
    (source,) = settings.sources
    secrets = {Path("/run/secrets") / name for name in archiver["secrets"]}
    assert secrets == {settings.mysql_password_file, source.ssh_key, source.known_hosts}
    assert str(settings.data_dir) in {volume.split(":")[-1] for volume in archiver["volumes"]}
    assert source.host_name == "source"
    assert not source.restricted_key
    answer = interpolated(read(DEPLOY / "compose.yaml"), {"READOUT_RESTRICTED_KEY": "yes"})
    assert load(environment=answer["services"]["archiver"]["environment"]).sources[0].restricted_key
    publisher = SERVICES["publisher"]
    files = {name: [v.split(":")[1] for v in SERVICES[name]["volumes"]] for name in ("source", "publisher")}
    assert files["source"] == files["publisher"] == [source.source_root] == [publisher["command"][-1]]
    program = DEPLOY / "demo" / Path(publisher["command"][1]).name
    help_ = subprocess.run([sys.executable, program, "--help"], check=True, capture_output=True, text=True).stdout
    assert [word for word in publisher["command"] if word.startswith("--") and word not in help_.split()] == []
    assert publisher["environment"]["MYSQL_DATABASE"] == settings.mysql_database
    assert SERVICES["mysql"]["environment"]["MYSQL_DATABASE"] == settings.mysql_database


def test_ports_are_the_ones_that_are_listened_on() -> None:
    settings = load({"target": ("m",)}, environment={})
    published = {name: each["ports"][0].split(":")[-1] for name, each in SERVICES.items() if "ports" in each}
    databases = dict.fromkeys(("mysql", "mariadb"), str(settings.mysql_port))
    assert published == {"archiver": str(settings.http_port), "prometheus": "9090", "grafana": "3000", **databases}
    assert all(port.startswith("127.0.0.1:") for each in SERVICES.values() for port in each.get("ports", ()))
    scraped = read(DEPLOY / "prometheus/prometheus.yaml")["scrape_configs"]
    assert scraped[0]["static_configs"][0]["targets"] == [f"archiver:{settings.http_port}"]
    assert f"CDC_ARCHIVER_HTTP_PORT={settings.http_port}" in DOCKERFILE
    (datasource,) = read(DEPLOY / "grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    assert datasource["url"] == "http://prometheus:9090"


def test_a_port_that_is_taken_here_gives_way_to_another() -> None:
    moved = {"MYSQL_PUBLISH_PORT": "1", "ARCHIVER_PORT": "2", "PROMETHEUS_PORT": "3", "GRAFANA_PORT": "4"}
    elsewhere = interpolated(read(DEPLOY / "compose.yaml"), moved)["services"]
    published = {name: each["ports"][0].split(":") for name, each in elsewhere.items() if "ports" in each}
    assert {name: port for name, (_, port, _) in published.items()} == {
        "mysql": "1",
        "mariadb": "1",
        "archiver": "2",
        "prometheus": "3",
        "grafana": "4",
    }
    assert {name: inner for name, (*_, inner) in published.items()} == {
        name: SERVICES[name]["ports"][0].split(":")[-1] for name in published
    }


def test_grafana_and_prometheus_find_what_is_mounted_for_them() -> None:
    mounts = dict(volume.split(":")[1::-1] for volume in SERVICES["grafana"]["volumes"])
    (provider,) = read(DEPLOY / "grafana/provisioning/dashboards/files.yaml")["providers"]
    assert mounts[provider["options"]["path"]] == "./grafana/dashboards"
    assert mounts["/etc/grafana/provisioning"] == "./grafana/provisioning"
    mounts = dict(volume.split(":")[1::-1] for volume in SERVICES["prometheus"]["volumes"])
    (rules,) = read(DEPLOY / "prometheus/prometheus.yaml")["rule_files"]
    assert mounts[str(Path(rules).parent)] == "./prometheus/rules"
    assert {path.suffix for path in (DEPLOY / "prometheus/rules").iterdir()} <= {Path(rules).suffix, ""}


@pytest.mark.parametrize("given", ["compose.yaml", "installation.md"])
def test_prometheus_takes_its_configuration(given: str, promtool: Tool, tmp_path: Path) -> None:
    # The rules of compose.yaml are elsewhere here; that they are found there is the test above.
    text = (DEPLOY / "prometheus/prometheus.yaml").read_text()
    if given == "installation.md":
        shutil.copytree(DEPLOY / "prometheus/rules", tmp_path / "rules")
        block = re.search(r"```yaml\n(.*?)```", (ROOT / "docs/installation.md").read_text(), re.DOTALL)
        assert block
        text = textwrap.dedent(f"   {block[1]}")
    config = tmp_path / "prometheus.yml"
    config.write_text(text)
    done = subprocess.run(
        promtool.command("check", "config", config),
        check=False,
        capture_output=True,
        text=True,
        env=promtool.environ(),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert given == "compose.yaml" or "1 rule files found" in done.stdout


@pytest.mark.parametrize("service", [SERVICES["archiver"], OCS["services"]["pysmurf-archiver"]])
def test_a_stop_gives_more_time_than_draining_takes(service: dict[str, Any]) -> None:
    settings = load({"target": ("m",)}, environment={})
    assert seconds(service["stop_grace_period"]) >= settings.drain_timeout + 10


def test_the_entry_for_an_observatory_takes_what_its_neighbours_take(tmp_path: Path) -> None:
    service = OCS["services"]["pysmurf-archiver"]
    variables: dict[str, str] = service["environment"]
    neighbours = {"MYSQL_HOST", "MYSQL_DATABASE", "MYSQL_USER", "MYSQL_PASSWORD"}
    assert {name for name in variables if not name.startswith("CDC_ARCHIVER_")} == neighbours
    mounts = {volume.split(":")[1] for volume in service["volumes"]}
    assert mounts == {"/config", "/home/ocs", "/data"}
    assert service["user"] == "9000:9000"
    # All of it is in the environment, where `docker compose exec` and `run` have it too.
    assert not service.keys() & {"command", "entrypoint"}
    settings = load(environment=variables)
    (source,) = settings.sources
    assert (source.host, source.user, source.target) == ("smurf-srv", "cryo", ("pysmurf-monitor",))
    assert str(settings.data_dir) == "/data/pysmurf"
    # It gets as far as the directory of the archive, which is not here.
    elsewhere = {"MYSQL_HOST": "127.0.0.1", "MYSQL_PORT": "1", "CDC_ARCHIVER_DATA_DIR": f"{tmp_path}/none/pysmurf"}
    done = run_here(["check", "--host", ""], {"PATH": os.environ["PATH"], **variables, **elsewhere})
    assert f"data_dir {tmp_path}/none/pysmurf does not exist" in " ".join(done.stdout.split()), done


@pytest.mark.parametrize(
    "path",
    [
        *("deploy/compose.yaml", "deploy/compose.ocs.yaml", "deploy/container/healthcheck.py", "Dockerfile"),
        *("deploy/systemd/cdc-archiver.default", "deploy/systemd/cdc-archiver.service", "docs/installation.md"),
    ],
)
def test_every_variable_that_is_named_is_one(path: str) -> None:
    known = {*re.findall(r"`((?:CDC_ARCHIVER|MYSQL)_\w+)`", (ROOT / "docs/configuration.md").read_text())}
    # Those of the database's image, of compose.yaml itself, and the one that Kubernetes would make.
    others = {"MYSQL_ROOT_PASSWORD_FILE", "MYSQL_PUBLISH", "MYSQL_PUBLISH_PORT", "CDC_ARCHIVER_PORT"}
    named = set(re.findall(r"\b(?:CDC_ARCHIVER|MYSQL)_[A-Z_]*[A-Z]\b", (ROOT / path).read_text()))
    assert named
    assert named - others <= known


def test_variables_for_a_site_are_told_at_the_top_and_those_of_the_guide_are_ones() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    told, _, used = text.partition("\nname: ")
    words = set(re.findall(r"^#   ((?:[A-Z_]+(?:, )?)+) ", told, re.MULTILINE))
    variables = set(re.findall(r"\$\{(\w+)", used))
    assert {word for each in words for word in each.split(", ")} == variables
    guide = re.search(r"cat >\.env <<END\n(.*?)END", (ROOT / "docs/installation.md").read_text(), re.DOTALL)
    assert guide
    assert set(re.findall(r"^(\w+)=", guide[1], re.MULTILINE)) <= variables


def test_services_and_profiles_that_pages_name_are_there() -> None:
    words = "".join(
        (ROOT / name).read_text() for name in ("docs/installation.md", "docs/runbook.md", "deploy/compose.yaml")
    )
    words += (DEPLOY / "compose.ocs.yaml").read_text()
    there = SERVICES.keys() | OCS["services"].keys()
    asked = re.findall(
        r"docker compose(?: --profile [\w-]+)? (?:exec|run|up|ps|logs)(?: --?[\w-]+)* ([a-z][\w-]*)", words
    )
    assert set(asked) > {"pysmurf-archiver"}
    assert set(asked) <= there
    profiles = {profile for each in SERVICES.values() for profile in each.get("profiles", ())}
    assert set(re.findall(r"--profile ([\w-]+)", words)) <= profiles


def test_secrets_are_made_once_and_are_all_that_are_asked_for(secrets: Path) -> None:
    asked = {Path(entry["file"]).name for entry in COMPOSE["secrets"].values()}
    made = {path.name: path.read_bytes() for path in secrets.iterdir()}
    assert asked <= made.keys()
    assert all(made.values())
    assert secrets.stat().st_mode & 0o777 == 0o700
    assert made["known_hosts"].startswith(b"source ssh-ed25519 ")
    assert re.fullmatch(rb"[0-9a-f]{36}", made["mysql_password"])
    assert made["mysql_password"] != made["monitor_password"]
    subprocess.run([DEPLOY / "make-secrets", secrets], check=True)
    assert {path.name: path.read_bytes() for path in secrets.iterdir()} == made
    assert {Path(entry["file"]).parent.name for entry in COMPOSE["secrets"].values()} == {"secrets"}
    assert "/deploy/secrets/" in (ROOT / ".gitignore").read_text().split()


@pytest.mark.parametrize(
    "line",
    [
        *("", "ARCHIVER_USER={}:1", 'ARCHIVER_USER="{}:1"', "export ARCHIVER_USER='{}:1'", "ARCHIVER_USER={}:1\r"),
        *(
            "ARCHIVER_USER = {}  # mine",
            "ARCHIVER_USER=7:7\nARCHIVER_USER={}:1",
            "ARCHIVER_USER={}:1\n#ARCHIVER_USER=7:7",
        ),
    ],
)
def test_only_the_owner_may_read_the_key_if_the_archiver_runs_as_its_owner(tmp_path: Path, line: str) -> None:
    """ARCHIVER_USER is in the environment, or in .env in any form that compose takes."""
    ensure_tools("ssh-keygen")
    directory, uid = tmp_path / "secrets", os.getuid()
    make = [DEPLOY / "make-secrets", directory]
    bare = {name: value for name, value in os.environ.items() if name != "ARCHIVER_USER"}
    subprocess.run(make, check=True, env={**bare, "ARCHIVER_USER": f"{uid + 1}:1"})
    assert (directory / "ssh_key").stat().st_mode & 0o777 == 0o644
    if line:
        (tmp_path / ".env").write_text(f"READOUT_ROOT=/data\n{line.format(uid)}\nFILES_TABLE=x\n")
        subprocess.run(make, check=True, env=bare)
    else:
        subprocess.run(make, check=True, env={**bare, "ARCHIVER_USER": f"{uid}:1"})
    assert (directory / "ssh_key").stat().st_mode & 0o777 == 0o600


def test_the_demos_sshd_finds_its_keys() -> None:
    words = (DEPLOY / "demo/sshd_config").read_text() + (DEPLOY / "demo/readout.sh").read_text()
    assert set(re.findall(r"/run/secrets/(\w+)", words)) == set(SERVICES["source"]["secrets"])


@pytest.mark.parametrize("table", [TABLE, f"{TABLE}_v1"])
def test_the_table_is_the_one_that_init_db_makes(table: str) -> None:
    text = initial_sql(DEPLOY / "database/10-table.sh", {"FILES_TABLE": table})
    statements = [schema.table_statement(schema.files_table(table)), schema.index_statement(table)]
    given = [" ".join(part.split()) for part in text.split(";") if part.strip()]
    assert given == [" ".join(statement.split()) for statement in statements]


@pytest.mark.parametrize("site", [{}, {"FILES_TABLE": "pysmurf_files_v1"}, {"FILES_TABLE": "smurf"}])
def test_the_database_is_set_up_for_an_archiver_and_a_monitor_and_they_work_together(
    database_server: DatabaseServer, ssh_server: SshServer, secrets: Path, tmp_path: Path, site: dict[str, str]
) -> None:
    table = site.get("FILES_TABLE", TABLE)
    services = interpolated(read(DEPLOY / "compose.yaml"), site)["services"]
    named = {"CDC_ARCHIVER_TABLE": services["archiver"]["environment"]["CDC_ARCHIVER_TABLE"]}
    with (
        new_private_site(database_server, ssh_server, tmp_path, table=False) as stage,
        set_up_database(stage, secrets, **site),
    ):
        password = (secrets / "mysql_password").read_text()
        # A monitor that does not see the table would make one that no other account may use.
        account = {
            "user": "monitor",
            "password": (secrets / "monitor_password").read_text(),
            "database": stage.database,
        }
        with contextlib.closing(database_server.connect(**account)) as connection, connection.cursor() as cursor:
            cursor.execute("SHOW TABLES")
            assert cursor.fetchall() == ((table,),)
        # With the archiver's own account only the history is missing, which it makes itself.
        changes = {"mysql_user": "archiver", "mysql_password": password}
        settings = load({**_database(stage), **stage.options(), **changes}, environment=named)
        with Service(settings, "streaming") as service:
            _publish(stage, secrets, services["publisher"]["environment"]["FILES_TABLE"])
            eventually(
                lambda: stage.sql(f"SELECT COUNT(*) FROM {table} WHERE copied = 1") == [(16,)], "all are archived"
            )
            assert len(stage.archived_files()) == 16
            assert service.status()["history"] == "kept"
        for user, secret, forbidden in (
            ("archiver", "mysql_password", f"DELETE FROM {table}"),
            ("archiver", "mysql_password", f"DROP TABLE {table}"),
            ("monitor", "monitor_password", f"SELECT * FROM {table}"),
        ):
            account = {"user": user, "password": (secrets / secret).read_text(), "database": stage.database}
            with (
                contextlib.closing(database_server.connect(**account)) as connection,
                connection.cursor() as cursor,
                pytest.raises(pymysql.OperationalError, match="denied"),
            ):
                cursor.execute(forbidden)


def test_a_databases_options_are_ones_that_it_has(database_server: DatabaseServer) -> None:
    for option in SERVICES[database_server.kind]["command"]:
        name, _, value = option.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        ((_, found),) = database_server.execute(f"SHOW GLOBAL VARIABLES LIKE '{name}'")
        assert name not in ("binlog_format", "log_bin") or found in (value, "ON")


def _publish(stage: PrivateSite, secrets: Path, table: str) -> None:
    """The demo's instrument and monitor, two actions of it."""
    done = subprocess.run(
        [
            sys.executable,
            DEPLOY / "demo/publisher.py",
            "--directory",
            stage.sources,
            "--actions",
            "2",
            "--every",
            "0.01",
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={
            **os.environ,
            "MYSQL_HOST": "127.0.0.1",
            "MYSQL_PORT": str(stage.server.port),
            "MYSQL_DATABASE": stage.database,
            "MYSQL_USER": "monitor",
            "FILES_TABLE": table,
            "MYSQL_PASSWORD_FILE": str(secrets / "monitor_password"),
        },
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "take_iv: 8 files\ntake_noise: 8 files\n"


def _database(stage: PrivateSite) -> dict[str, object]:
    return {"mysql_host": "127.0.0.1", "mysql_port": stage.server.port, "mysql_database": stage.database}


def _aliases(service: dict[str, Any]) -> list[str]:
    networks = service.get("networks", {})
    return list(networks.get("default", {}).get("aliases", ())) if isinstance(networks, dict) else []
