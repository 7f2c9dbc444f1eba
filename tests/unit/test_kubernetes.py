"""deploy/kubernetes is what Kubernetes takes, and agrees with the service and with what the proxy of deploy/ shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from infrastructure.settings.environment import PREFIX as SETTINGS
from infrastructure.settings.settings import Settings

ROOT = Path(__file__).parents[2]
DIRECTORY = ROOT / "deploy" / "kubernetes"
KUSTOMIZATION = yaml.safe_load((DIRECTORY / "kustomization.yaml").read_text())
COMPONENT = DIRECTORY / "bounces"
FILES = [
    *(DIRECTORY / name for name in KUSTOMIZATION["resources"]),
    *(COMPONENT / name for name in yaml.safe_load((COMPONENT / "kustomization.yaml").read_text())["resources"]),
]
RESOURCES = [one for file in FILES for one in yaml.safe_load_all(file.read_text())]
DEFAULTS = Settings()


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [one for one in RESOURCES if one["kind"] == kind]


def container(deployment: dict[str, Any]) -> dict[str, Any]:
    (only,) = deployment["spec"]["template"]["spec"]["containers"]
    return dict(only)


def test_all_files_are_applied() -> None:
    there = {found for found in DIRECTORY.rglob("*.yaml") if found.name != "kustomization.yaml"}
    assert there == set(FILES)


@pytest.mark.parametrize("version", ["1.30", "1.37"])
@pytest.mark.parametrize("resource", RESOURCES, ids=lambda one: f"{one['kind']} {one['metadata']['name']}")
def test_kubernetes_takes_it(resource: dict[str, Any], version: str) -> None:
    # Here and not above: each worker would load it at its start, which takes a second.
    import kubernetes_validate

    kubernetes_validate.validate(resource, version, strict=True)


def test_what_kubernetes_does_not_know_is_refused() -> None:
    import kubernetes_validate

    (broken, *_) = of_kind("Deployment")
    broken = {**broken, "spec": {**broken["spec"], "replica": 2}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.30", strict=True)


def test_every_setting_exists_and_every_process_has_what_it_cannot_start_without() -> None:
    (settings,) = of_kind("ConfigMap")
    for deployment in of_kind("Deployment"):
        named = {*settings["data"], *(one["name"] for one in container(deployment)["env"])}
        assert {name.removeprefix(SETTINGS).lower() for name in named} <= set(Settings.model_fields)
        assert {f"{SETTINGS}DATABASE_URL", f"{SETTINGS}MASTER_KEY"} <= named
        assert f"{SETTINGS}BROKER_URL" in named or container(deployment)["args"] == ["bounces"]


def test_webhooks_are_known_where_they_are_read() -> None:
    optional = {
        container(one)["args"][0]: {key["name"].removeprefix(SETTINGS) for key in container(one)["env"]}
        for one in of_kind("Deployment")
    }
    assert {"WEBHOOKS", "WEBHOOK_SECRETS"} <= optional["process"] & optional["serve"]
    assert "BOUNCE_WEBHOOKS" in optional["serve"]


def test_templates_of_ones_own_are_there_where_mails_are_made() -> None:
    for deployment in of_kind("Deployment"):
        mounted = {one["mountPath"] for one in container(deployment)["volumeMounts"]}
        assert ("/templates" in mounted) == (container(deployment)["args"][0] in {"process", "work"})


def test_secrets_are_in_the_secret_that_the_manual_makes() -> None:
    made = set(re.findall(r"--from-(?:literal|file)=([A-Z_]+)=", (ROOT / "docs" / "operating.md").read_text()))
    for deployment in of_kind("Deployment"):
        for one in container(deployment)["env"]:
            if "value" in one:
                continue
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
        (bounces,) = (one for one in of_kind("Deployment") if container(one)["args"][0] == "bounces")
        behind = bounces if service["metadata"]["name"] == bounces["metadata"]["name"] else serve
        assert service["spec"]["selector"] == behind["metadata"]["labels"]
        assert {one["targetPort"] for one in service["spec"]["ports"]} <= {
            one["name"] for one in container(behind)["ports"]
        }


def test_the_listener_for_bounces_is_reached_at_the_port_of_mail() -> None:
    (deployment,) = (one for one in of_kind("Deployment") if container(one)["args"] == ["bounces"])
    (listen,) = (one["value"] for one in container(deployment)["env"] if one["name"] == f"{SETTINGS}BOUNCE_LISTEN")
    ports = {one["name"]: one["containerPort"] for one in container(deployment)["ports"]}
    (service,) = (one for one in of_kind("Service") if one["metadata"]["name"] == "registrar-bounces")
    (policy,) = (one for one in of_kind("NetworkPolicy") if one["metadata"]["name"] == "registrar-bounces")
    assert int(listen.rpartition(":")[2]) == ports["smtp"] == policy["spec"]["ingress"][0]["ports"][0]["port"]
    assert service["spec"]["ports"] == [{"name": "smtp", "port": 25, "targetPort": "smtp"}]


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
