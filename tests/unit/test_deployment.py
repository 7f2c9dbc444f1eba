"""What runs the service for real (compose.yaml, Dockerfile, deploy/, docs/operating.md) agrees with the service."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

from entrypoints.api.body_reading import REPORTS, REPORTS_LIMIT
from entrypoints.api.http_server import KEEP_ALIVE
from entrypoints.api.problems import PREFIX, STATUS_OF
from infrastructure.settings.environment import PREFIX as SETTINGS
from infrastructure.settings.settings import Settings
from tests.support.releases import FORMER

ROOT = Path(__file__).parents[2]
DEFAULTS = Settings()
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]


def text(name: str) -> str:
    return (ROOT / name).read_text()


def seconds(pattern: str, name: str) -> list[float]:
    return [float(found) for found in re.findall(pattern, text(name))]


@pytest.mark.parametrize(
    "name", ["compose.yaml", "Dockerfile", "deploy/registrar@.service", "README.md", "docs/operating.md"]
)
def test_every_setting_that_is_named_there_exists(name: str) -> None:
    named = set(re.findall(rf"\b{SETTINGS}([A-Z_]*[A-Z])", text(name)))
    assert named
    assert {one.lower() for one in named} <= set(Settings.model_fields)


def test_the_image_holds_every_package() -> None:
    setuptools = PYPROJECT["tool"]["setuptools"]
    packages = [pattern.removesuffix("*") for pattern in setuptools["packages"]["find"]["include"]]
    assert re.findall(r"^COPY (\w+) \1$", text("Dockerfile"), re.MULTILINE) == packages
    assert {f"!{package}" for package in packages} < set(text(".dockerignore").splitlines())


def test_no_secret_gets_into_the_image_or_a_commit() -> None:
    assert text(".dockerignore").splitlines()[1] == "*"
    assert ".env" in text(".gitignore").splitlines()


def test_the_image_is_of_one_python_that_we_promise_and_cannot_change_behind_its_tag() -> None:
    bases = re.findall(r"^FROM (\S+)", text("Dockerfile"), re.MULTILINE)
    assert len(bases) == 2
    assert len(set(bases)) == 1
    found = re.fullmatch(r"python:(3\.\d+)-slim@sha256:[0-9a-f]{64}", bases[0])
    assert found
    assert f"Programming Language :: Python :: {found[1]}" in PROJECT["classifiers"]


def test_the_image_has_neither_the_embedded_database_nor_what_installs() -> None:
    (embedded,) = PROJECT["optional-dependencies"]["embedded"]
    name = embedded.partition("==")[0]
    assert f"{name}==" in text("requirements.lock")
    assert f"{name}==" not in text("requirements-image.lock")
    assert "COPY requirements-image.lock ." in text("Dockerfile")
    copied = [line for line in text("Dockerfile").rpartition("FROM ")[2].splitlines() if line.startswith("COPY")]
    assert copied == ["COPY --from=build /app/.venv /app/.venv"]
    assert "venv --without-pip" in text("Dockerfile")
    assert (
        text("Dockerfile").count("uninstall --yes setuptools") == text("Dockerfile").count("uninstall --yes pip") == 1
    )


def test_the_image_has_the_versions_that_are_tested() -> None:
    def pinned(name: str) -> set[str]:
        return set(re.findall(r"^([a-z0-9.-]+==\S+)", text(name), re.MULTILINE))

    assert pinned("requirements-image.lock") < pinned("requirements.lock") < pinned("requirements-dev.lock")


def test_the_image_tells_whether_its_process_lives() -> None:
    (check,) = re.findall(r"^HEALTHCHECK .* CMD (\[.*\])$", text("Dockerfile"), re.MULTILINE)
    python, option, program = json.loads(check)
    compile(program, "HEALTHCHECK", "exec")
    assert (python, option) == ("python", "-c")
    assert f"'{DEFAULTS.port}'" in program
    assert "REGISTRAR_ADMIN_LISTEN" in program


UNIT = "deploy/registrar@.service"


def test_a_service_that_cannot_start_is_not_restarted_for_ever() -> None:
    assert {"Restart=always", "RestartPreventExitStatus=2"} <= set(text(UNIT).splitlines())


def test_the_service_is_locked_up_as_systemd_judges_it() -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("no systemd-analyze here")
    done = subprocess.run(
        [program, "security", "--offline=true", "--no-pager", "--threshold=15", ROOT / UNIT],
        capture_output=True,
        text=True,
        check=False,
    )
    if "offline" in done.stderr and "unrecognized" in done.stderr:
        pytest.skip("this systemd-analyze judges running services only")
    assert done.returncode == 0, done.stdout[-200:] + done.stderr  # 1.5 of 10 at most


@pytest.mark.parametrize(
    ("name", "pattern"),
    [("compose.yaml", r"\n  stop_grace_period: (\d+)s"), ("deploy/registrar@.service", r"TimeoutStopSec=(\d+)")],
)
def test_nothing_is_killed_while_it_stops_in_order(name: str, pattern: str) -> None:
    (delay,) = seconds(r'REGISTRAR_STOP_DELAY: "(\d+)"', "compose.yaml")
    listener = delay + DEFAULTS.request_timeout.total_seconds()
    (patience,) = seconds(pattern, name)
    assert patience > listener + DEFAULTS.send_timeout.total_seconds() + 5


def test_the_proxy_waits_longer_than_the_api_and_keeps_connections_shorter() -> None:
    (waits,) = seconds(r"proxy_read_timeout (\d+)s", "deploy/nginx.conf")
    assert waits > DEFAULTS.request_timeout.total_seconds()
    *_, keeps = seconds(r"keepalive_timeout (\d+)s", "deploy/nginx.conf")
    assert keeps < KEEP_ALIVE.total_seconds()


def test_the_proxy_uses_one_that_came_back_before_the_next_one_is_gone() -> None:
    (delay,) = seconds(r'REGISTRAR_STOP_DELAY: "(\d+)"', "compose.yaml")
    assert max(seconds(r"fail_timeout=(\d+)s", "deploy/nginx.conf")) < delay


def test_the_proxy_shows_nothing_but_the_public_routes() -> None:
    passed = re.findall(r"location (.*?) +{ proxy_pass", text("deploy/nginx.conf"))
    public = ["= /v1/registrations", "/v1/registrations/", REPORTS, "= /health/live", "= /health/ready"]
    assert passed == public


def test_the_proxy_passes_on_as_much_of_a_report_as_the_api_takes() -> None:
    (kibibytes,) = re.findall(rf"location {REPORTS} .*client_max_body_size (\d+)k;", text("deploy/nginx.conf"))
    assert int(kibibytes) * 1024 == REPORTS_LIMIT


def test_the_proxy_answers_in_the_apis_words() -> None:
    answers = re.findall(r"return (\d+) '(.*)';", text("deploy/nginx.conf"))
    assert len(answers) == 6
    for status, body in answers:
        problem = json.loads(body.replace(r"\'", "'"))
        assert problem["status"] == int(status) == STATUS_OF[problem["type"].removeprefix(PREFIX)]


def test_the_proxy_has_pages_only_for_what_nginx_answers() -> None:
    pages = {
        int(code) for codes in re.findall(r"error_page ([\d ]+) =", text("deploy/nginx.conf")) for code in codes.split()
    }
    # 408, 444 and 499 close the connection without an answer (`ngx_http_finalize_request`).
    assert pages == {404, 405, 413, 429, 494, 502, 504}


SUBSTITUTED = re.compile(r"\$\{(\w+)(?::([-+?])([^}]*))?\}")


def in_compose(name: str, **dotenv: str) -> Settings:
    """The settings of one of our services, with this `.env`."""
    needed = dict.fromkeys(("MASTER_KEY", "ADMIN_TOKEN", "DATABASE_PASSWORD", "BROKER_PASSWORD"), "ab" * 32)

    def value(found: re.Match[str]) -> str:
        name, kind, other = found[1], found[2], found[3]
        given = (needed | dotenv).get(name, "")
        if kind == "+":
            return other if given else ""
        return given or (other if kind == "-" else "")

    environment = yaml.safe_load(text("compose.yaml"))["services"][name]["environment"]
    return Settings.from_environment({key: SUBSTITUTED.sub(value, str(one)) for key, one in environment.items()})


OURS = ("api-1", "api-2", "process", "work", "bounces")


@pytest.mark.parametrize("name", OURS)
def test_what_may_be_set_in_compose_need_not_be(name: str) -> None:
    found = in_compose(name)

    given = (found.webhooks, found.bounce_address, found.bounce_webhooks, found.product_name, found.templates)
    assert given == (None,) * 5


def test_webhooks_mails_and_bounces_can_be_set_in_compose_where_they_are_read() -> None:
    dotenv = {
        "WEBHOOKS": "shop=https://shop.example.org/hooks",
        "WEBHOOK_SECRETS": f"shop=whsec_{'QUJD' * 8}",
        "BOUNCE_ADDRESS": "bounces@mail.example.org",
        "BOUNCE_WEBHOOKS": "postmark=correct-horse-battery",
        "PRODUCT_NAME": "Acme",
        "SITE_URL": "https://acme.example",
        "MAIL_FROM": "Acme Accounts <no-reply@acme.example>",
        "TEMPLATES": "./templates",
        "VERIFY_URL": "https://acme.example/verify#id={id}&code={code}",
    }
    found = {name: in_compose(name, **dotenv) for name in OURS}

    assert {one.bounce_address for one in found.values()} == {"bounces@mail.example.org"}
    assert found["process"].webhooks is not None
    assert found["process"].webhook_secrets is not None
    assert found["api-1"].bounce_webhooks is not None
    assert (found["work"].product_name, str(found["work"].templates)) == ("Acme", "/templates")
    assert found["work"].verify_url == dotenv["VERIFY_URL"]
    for name in ("api-1", "api-2", "work"):  # a password is not the name of the service
        assert found[name].service_names == ("Acme Accounts", "Acme", "localhost", "acme.example")


def test_the_listener_for_bounces_is_reached_and_watched_where_it_runs() -> None:
    service = yaml.safe_load(text("compose.yaml"))["services"]["bounces"]
    listen = in_compose("bounces").bounce_listen

    assert (service["command"], service["profiles"]) == (["bounces"], ["bounces"])
    assert listen is not None
    assert service["ports"] == [f"${{BOUNCE_LISTEN:-127.0.0.1:2525}}:{listen.port}"]
    (watched,) = yaml.safe_load(text("deploy/prometheus/prometheus.yaml"))["scrape_configs"]
    assert watched["dns_sd_configs"][0]["names"] == ["process", "work", "bounces"]


def test_the_probe_reaches_the_proxy_by_its_fixed_address() -> None:
    services = yaml.safe_load(text("compose.yaml"))["services"]
    proxy = services["proxy"]["networks"]["front"]["ipv4_address"]
    process = services["process"]

    assert process["environment"]["REGISTRAR_SYNTHETIC_URL"] == f"http://{proxy}:8080"
    assert set(process["networks"]) == {"front", "back"}


def test_what_the_release_before_imports_is_locked_for_the_tests_that_run_it_beside_this_one() -> None:
    shown = subprocess.run(
        ["git", "show", f"{FORMER}:pyproject.toml"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if shown.returncode != 0:
        pytest.skip(f"git's history with commit {FORMER} is not here")
    needed = {re.split(r"[\[=<>;]", one)[0] for one in tomllib.loads(shown.stdout)["project"]["dependencies"]}
    locked = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements-dev.lock").read_text(), re.MULTILINE))
    assert needed
    assert needed - locked == set()
