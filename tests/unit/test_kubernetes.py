"""deploy/kubernetes is what Kubernetes takes, and agrees with the service and with what the proxy of deploy/ shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml  # type: ignore[import-untyped]

from infrastructure.settings.environment import PREFIX as SETTINGS
from infrastructure.settings.settings import Settings

ROOT = Path(__file__).parents[2]
DIRECTORY = ROOT / "deploy" / "kubernetes"
KUSTOMIZATION = yaml.safe_load((DIRECTORY / "kustomization.yaml").read_text())
RESOURCES = [one for name in KUSTOMIZATION["resources"] for one in yaml.safe_load_all((DIRECTORY / name).read_text())]
DEFAULTS = Settings()


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [one for one in RESOURCES if one["kind"] == kind]


def container(deployment: dict[str, Any]) -> dict[str, Any]:
    (only,) = deployment["spec"]["template"]["spec"]["containers"]
    return dict(only)


def test_all_files_are_applied() -> None:
    files = {found.name for found in DIRECTORY.glob("*.yaml")}
    assert files == {*KUSTOMIZATION["resources"], "kustomization.yaml"}


@pytest.mark.parametrize("version", ["1.30", "1.37"])
@pytest.mark.parametrize("resource", RESOURCES, ids=lambda one: f"{one['kind']} {one['metadata']['name']}")
def test_kubernetes_takes_it(resource: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(resource, version, strict=True)


def test_what_kubernetes_does_not_know_is_refused() -> None:
    (broken, *_) = of_kind("Deployment")
    broken = {**broken, "spec": {**broken["spec"], "replica": 2}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.30", strict=True)


def test_every_setting_exists_and_every_process_has_what_it_cannot_start_without() -> None:
    (settings,) = of_kind("ConfigMap")
    for deployment in of_kind("Deployment"):
        named = {*settings["data"], *(one["name"] for one in container(deployment)["env"])}
        assert {name.removeprefix(SETTINGS).lower() for name in named} <= set(Settings.model_fields)
        assert {f"{SETTINGS}DATABASE_URL", f"{SETTINGS}MASTER_KEY", f"{SETTINGS}BROKER_URL"} <= named


def test_secrets_are_in_the_secret_that_the_manual_makes() -> None:
    made = set(re.findall(r"--from-(?:literal|file)=([A-Z_]+)=", (ROOT / "docs" / "operating.md").read_text()))
    for deployment in of_kind("Deployment"):
        for one in container(deployment)["env"]:
            key = one["valueFrom"]["secretKeyRef"]
            assert one["name"] == SETTINGS + key["key"]
            assert key["key"] in made or key["optional"]


def test_services_lead_to_the_ports_that_are_listened_at() -> None:
    (settings,) = of_kind("ConfigMap")
    admin = int(settings["data"][f"{SETTINGS}ADMIN_LISTEN"].rpartition(":")[2])
    for deployment in of_kind("Deployment"):
        ports = {one["name"]: one["containerPort"] for one in container(deployment)["ports"]}
        assert ports["admin"] == admin
        assert ports.get("http", DEFAULTS.port) == DEFAULTS.port
        assert deployment["spec"]["selector"]["matchLabels"] == deployment["metadata"]["labels"]
    (serve,) = (one for one in of_kind("Deployment") if container(one)["args"][0] == "serve")
    for service in of_kind("Service"):
        assert service["spec"]["selector"] == serve["metadata"]["labels"]


def test_the_public_reaches_what_the_proxy_shows() -> None:
    (ingress,) = of_kind("Ingress")
    shown = {(path["path"], path["pathType"]) for rule in ingress["spec"]["rules"] for path in rule["http"]["paths"]}
    proxy = re.findall(r"location (= )?(\S+?)/? +{ proxy_pass", (ROOT / "deploy" / "nginx.conf").read_text())
    prefixes = {path for exact, path in proxy if not exact}
    assert shown == {(path, "Prefix" if path in prefixes else "Exact") for _, path in proxy}


def test_nothing_is_killed_while_it_stops_in_order() -> None:
    (settings,) = of_kind("ConfigMap")
    delay = float(settings["data"][f"{SETTINGS}STOP_DELAY"])
    takes = delay + (DEFAULTS.request_timeout + DEFAULTS.send_timeout).total_seconds() + 5
    for deployment in of_kind("Deployment"):
        assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > takes
