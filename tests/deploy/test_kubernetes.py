"""The kustomize base: what Kubernetes takes, and what the service and its image really have."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from deploy_files import DEPLOY, ROOT, VERSION, read, validate

from cdc_archiver.settings import load

BASE = DEPLOY / "kubernetes"
KUBERNETES = "1.31"
KUSTOMIZATION: dict[str, Any] = read(BASE / "kustomization.yaml")
RESOURCES: dict[str, dict[str, Any]] = {
    document["kind"]: document for document in (read(BASE / name) for name in KUSTOMIZATION["resources"])
}
POD = RESOURCES["Deployment"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
SETTINGS = load(config=BASE / "archiver.toml", environment={})


@pytest.mark.parametrize("kind", sorted(RESOURCES.keys() - {"ServiceMonitor"}))
def test_a_resource_is_what_kubernetes_takes(kind: str) -> None:
    kubernetes_validate.validate(RESOURCES[kind], KUBERNETES, strict=True)


def test_the_servicemonitor_is_what_the_prometheus_operator_takes() -> None:
    validate(RESOURCES["ServiceMonitor"], "servicemonitor")
    with pytest.raises(AssertionError, match="targetport"):
        validate({**RESOURCES["ServiceMonitor"], "spec": {"selector": {}, "targetport": 1}}, "servicemonitor")


def test_a_resource_that_is_none_would_be_refused() -> None:
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**RESOURCES["Service"], "specs": {}}, KUBERNETES, strict=True)


def test_every_file_is_part_of_the_base() -> None:
    listed = {*KUSTOMIZATION["resources"], *KUSTOMIZATION["configMapGenerator"][0]["files"], "kustomization.yaml"}
    assert listed == {path.name for path in BASE.iterdir() if path.is_file()}


def test_what_the_pod_mounts_is_what_the_settings_name() -> None:
    mounts = {mount["name"]: Path(mount["mountPath"]) for mount in CONTAINER["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    assert mounts.keys() == volumes.keys()
    (secret,) = KUSTOMIZATION["secretGenerator"]
    kept = {mounts["secrets"] / Path(file).name for file in secret["files"]}
    (source,) = SETTINGS.sources
    assert kept == {SETTINGS.mysql_password_file, source.ssh_key, source.known_hosts}
    # The disk itself: a new one has no directories, and the service makes none.
    assert SETTINGS.data_dir == mounts["archive"]
    (config,) = KUSTOMIZATION["configMapGenerator"]
    assert {mounts["config"] / file for file in config["files"]} == {
        Path(variable["value"]) for variable in CONTAINER["env"] if variable["name"] == "CDC_ARCHIVER_CONFIG"
    }
    assert volumes["secrets"]["secret"]["secretName"] == secret["name"]
    assert volumes["config"]["configMap"]["name"] == config["name"]
    for name in ("archive", "state"):
        claim = read(BASE / f"{name}.yaml")["metadata"]["name"]
        assert volumes[name]["persistentVolumeClaim"]["claimName"] == claim


def test_variables_are_settings_and_no_others_get_in() -> None:
    environment = {variable["name"]: variable["value"] for variable in CONTAINER["env"]}
    load({"target": ("m",)}, BASE / "archiver.toml", {**environment, "CDC_ARCHIVER_CONFIG": ""})
    # Kubernetes would add CDC_ARCHIVER_PORT and its like for the service, and the program refuses what it does not know.
    assert POD["enableServiceLinks"] is False


def test_ports_and_selectors_lead_to_the_service() -> None:
    (port,) = CONTAINER["ports"]
    assert port["containerPort"] == SETTINGS.http_port
    assert f"EXPOSE {port['containerPort']}\n" in (ROOT / "Dockerfile").read_text()
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert CONTAINER[probe]["httpGet"]["port"] == port["name"]
    assert CONTAINER["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert CONTAINER["readinessProbe"]["httpGet"]["path"] == "/readyz"
    labels = RESOURCES["Deployment"]["spec"]["template"]["metadata"]["labels"]
    service = RESOURCES["Service"]
    assert labels == RESOURCES["Deployment"]["spec"]["selector"]["matchLabels"] == service["spec"]["selector"]
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]
    monitor = RESOURCES["ServiceMonitor"]["spec"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert [(end["port"], end["path"]) for end in monitor["endpoints"]] == [
        (service["spec"]["ports"][0]["name"], "/metrics")
    ]


def test_the_pod_is_the_images_user_and_gets_time_to_drain() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    user = re.search(r"^USER (\d+):(\d+)$", dockerfile, re.MULTILINE)
    assert user
    security = POD["securityContext"]
    assert (security["runAsUser"], security["runAsGroup"], security["fsGroup"]) == (
        int(user[1]),
        int(user[2]),
        int(user[2]),
    )
    assert POD["terminationGracePeriodSeconds"] >= SETTINGS.drain_timeout + 10
    # ssh's sockets and temporary files go there, where the root file system is read-only.
    assert CONTAINER["securityContext"]["readOnlyRootFilesystem"]
    assert "/tmp" in {mount["mountPath"] for mount in CONTAINER["volumeMounts"]}


def test_the_image_is_this_version() -> None:
    (image,) = KUSTOMIZATION["images"]
    assert (image["name"], image["newTag"]) == (CONTAINER["image"], VERSION)
