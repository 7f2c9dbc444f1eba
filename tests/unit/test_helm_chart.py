"""The chart of deploy/helm makes what deploy/kubernetes has, and refuses values that it does not know."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from gotpl.exts.helm import HelmTemplateEngine

from infrastructure.settings.environment import PREFIX as SETTINGS
from infrastructure.settings.settings import Settings

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "registrar"
PLAIN = ROOT / "deploy" / "kubernetes"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
ABOUT = yaml.safe_load((CHART / "Chart.yaml").read_text())
OF_THE_CHART = {"instance", "version", "managed-by"}


def render(release: str = "registrar", **values: Any) -> list[dict[str, Any]]:
    """The resources of the chart with some values replaced, as `helm template RELEASE` makes them."""
    sources = {found.name: found.read_text() for found in (CHART / "templates").iterdir()}
    about = {name[0].upper() + name[1:]: value for name, value in ABOUT.items()}
    context = {"Values": VALUES | values, "Release": {"Name": release, "Service": "Helm"}, "Chart": about}
    engine = HelmTemplateEngine(sources)
    made = (engine.render_template(name, context) for name in sorted(sources) if name.endswith(".yaml"))
    return [resource for text in made for resource in yaml.safe_load_all(text) if resource]


def by_name(resources: list[dict[str, Any]]) -> dict[tuple[str, str], Any]:
    return {(one["kind"], one["metadata"]["name"]): bare(one) for one in resources}


def bare(found: Any) -> Any:
    """A resource without what only one of the two has: labels of the chart, the image, the order of lists."""
    if isinstance(found, list):
        return sorted((bare(one) for one in found), key=lambda one: json.dumps(one, sort_keys=True))
    if not isinstance(found, dict):
        return found
    left = {name: bare(value) for name, value in found.items() if not is_of_the_chart(name)}
    return {name: value for name, value in left.items() if value != {}}


def is_of_the_chart(name: str) -> bool:
    prefix, _, rest = name.partition("/")
    return (
        (prefix == "app.kubernetes.io" and rest in OF_THE_CHART)
        or prefix == "helm.sh"
        or name in {"registrar/settings", "image", "imagePullPolicy"}
    )


WITH_BOUNCES = {
    "settings": VALUES["settings"] | {"BOUNCE_ADDRESS": "bounces@mail.example.org"},
    "bounces": VALUES["bounces"] | {"enabled": True},
}


@pytest.mark.parametrize(("files", "values"), [("*.yaml", {}), ("**/*.yaml", WITH_BOUNCES)], ids=["", "with bounces"])
def test_it_makes_what_the_plain_files_are(files: str, values: dict[str, Any]) -> None:
    found = [one for one in PLAIN.glob(files) if one.name != "kustomization.yaml"]
    plain = by_name([one for file in found for one in yaml.safe_load_all(file.read_text())])
    made = by_name(render(**values))
    made[("ConfigMap", "registrar")]["data"].pop(f"{SETTINGS}BOUNCE_ADDRESS", None)
    for resource in (*plain.values(), *made.values()):
        resource["metadata"].pop("labels", None)
    assert made == plain


@pytest.mark.parametrize("version", ["1.30", "1.37"])
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"work": {"enabled": False, "replicas": 1}, "networkPolicy": {"enabled": False}},
        {"imagePullSecrets": [{"name": "pull"}], "image": {"repository": "r.example/x", "tag": "v1"}},
        WITH_BOUNCES | {"bounces": {"enabled": True, "replicas": 3, "annotations": {"a.example/b": "c"}}},
        {"ingress": {"enabled": True, "className": "nginx", "annotations": {"a.example/b": "c"}, "host": "a.example"}},
    ],
    ids=["as it is", "without RabbitMQ", "an image of one's own", "with bounces", "an ingress of one's own"],
)
def test_kubernetes_takes_what_it_makes(values: dict[str, Any], version: str) -> None:
    # Here and not above: each worker would load them at its start, which takes a second.
    import jsonschema  # type: ignore[import-untyped]
    import kubernetes_validate

    jsonschema.validate(VALUES | values, SCHEMA)
    made = render("sign-up", **values)
    for resource in made:
        kubernetes_validate.validate(resource, version, strict=True)
    assert len({(one["kind"], one["metadata"]["name"]) for one in made}) == len(made) >= 8


def test_bounces_without_an_address_are_refused() -> None:
    with pytest.raises(Exception, match="BOUNCE_ADDRESS"):
        render(bounces=WITH_BOUNCES["bounces"])


def test_selectors_find_the_pods_of_their_release_only() -> None:
    for resource in render("sign-up"):
        labels = json.dumps(resource)
        assert '"app.kubernetes.io/instance": "sign-up"' in labels
        if resource["kind"] == "Deployment":
            pods = resource["spec"]["template"]["metadata"]["labels"]
            assert resource["spec"]["selector"]["matchLabels"] == pods


def test_pods_are_replaced_when_a_setting_changes() -> None:
    def noted(**settings: str) -> set[str]:
        made = render(settings=VALUES["settings"] | settings)
        pods = [one["spec"]["template"]["metadata"] for one in made if one["kind"] == "Deployment"]
        return {pod["annotations"]["registrar/settings"] for pod in pods}

    assert len(noted()) == 1
    assert noted() != noted(OTP_TTL="300")


def test_values_are_those_of_the_schema() -> None:
    import jsonschema

    jsonschema.validate(VALUES, SCHEMA)
    misspelt = copy.deepcopy(VALUES)
    misspelt["serve"]["replica"] = 3
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(misspelt, SCHEMA)
    assert {name.lower() for name in VALUES["settings"]} <= set(Settings.model_fields)


def test_a_settings_text_stays_the_text_that_it_is() -> None:
    (settings,) = (
        one
        for one in render(settings={"OTP_TTL": 300, "MAIL_FROM": 'A "B" <a@b.example>'})
        if one["kind"] == "ConfigMap"
    )
    assert settings["data"][f"{SETTINGS}OTP_TTL"] == "300"
    assert settings["data"][f"{SETTINGS}MAIL_FROM"] == 'A "B" <a@b.example>'


def test_the_chart_is_of_this_release() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{ABOUT["appVersion"]}"' in project
    assert f"newTag: {ABOUT['appVersion']}\n" in (PLAIN / "kustomization.yaml").read_text()
