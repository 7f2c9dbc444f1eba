"""What `registrar doctor` says about mail servers, settings and secrets: real sockets, real certificates."""

from __future__ import annotations

import datetime as dt
import json
import socket
import ssl
from pathlib import Path

import pytest
import trustme

from entrypoints.cli.checks.finding import Finding
from entrypoints.cli.checks.machine import host_names, look_at_settings
from entrypoints.cli.checks.services import look_at_mail_servers
from entrypoints.cli.doctor import examine
from entrypoints.cli.session import begin
from infrastructure.settings.settings import Settings
from tests.support.smtp_stub import SmtpStub

USER, PASSWORD = "ada", "hunter2-canary"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(autouse=True)
def _trusted(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))


def certificate(authority: trustme.CA, name: str, *, expired: bool = False) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    until = dt.datetime.now(dt.UTC) - dt.timedelta(days=1) if expired else None
    authority.issue_cert(name, not_after=until).configure_cert(context)
    return context


async def said(*urls: str) -> list[Finding]:
    settings = Settings.from_environment({"REGISTRAR_SMTP_URLS": ",".join(urls)})
    found = [one async for one in look_at_mail_servers(settings)]
    assert PASSWORD not in repr(found)
    return found


async def test_a_mail_server_is_logged_in_to_and_gets_no_mail(authority: trustme.CA) -> None:
    tls = certificate(authority, "localhost")
    async with SmtpStub(tls=tls, credentials=(USER, PASSWORD)) as stub:
        (found,) = await said(f"smtp://{USER}:{PASSWORD}@localhost:{stub.port}?starttls=required")
        assert (found.state, found.says) == ("ok", f"localhost:{stub.port} lets us in, encrypted")
        assert b"MAIL FROM" not in stub.received.upper()


async def test_a_wrong_password_is_told_from_other_causes(authority: trustme.CA) -> None:
    async with SmtpStub(credentials=(USER, "another")) as stub, SmtpStub() as open_to_all:
        found = await said(
            f"smtp://{USER}:{PASSWORD}@127.0.0.1:{stub.port}", f"smtp://{USER}:{PASSWORD}@127.0.0.1:{open_to_all.port}"
        )
    assert [one.state for one in found] == ["fail", "fail"]
    assert "refuses user or password (535)" in found[0].says
    assert "offers no login" in found[1].says


@pytest.mark.parametrize(
    ("trusted", "name", "expired", "says"),
    [
        (True, "localhost", True, "its certificate has expired"),
        (True, "elsewhere.example.org", False, "its certificate is for another host name"),
        (False, "localhost", False, "not trusted here"),
    ],
)
@pytest.mark.parametrize("implicit", [True, False])
async def test_what_is_wrong_with_a_certificate_is_named(
    authority: trustme.CA, *, trusted: bool, name: str, expired: bool, says: str, implicit: bool
) -> None:
    tls = certificate(authority if trusted else trustme.CA(), name, expired=expired)
    async with SmtpStub(tls=tls, implicit=implicit) as stub:
        url = f"localhost:{stub.port}"
        (found,) = await said(f"smtps://{url}" if implicit else f"smtp://{url}?starttls=required")
    assert found.state == "fail"
    assert says in found.says


async def test_who_is_not_there_is_told_from_who_has_no_name() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    async with SmtpStub() as clear:
        found = await said(
            f"smtp://127.0.0.1:{port}",
            f"smtp://localhost:{port}",
            "smtp://nobody.invalid:25",
            f"smtps://127.0.0.1:{clear.port}",
        )
    assert ["refused" in found[0].says, "refused" in found[1].says] == [True, True]
    assert "DNS" in found[2].says
    assert "does not speak TLS" in found[3].says


async def test_all_that_is_wrong_with_the_settings_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PORT": "many", "OTP_TTL": "never", "NONSENSE": "x"}.items():
        monkeypatch.setenv(f"REGISTRAR_{name}", value)
    found = [one async for one in examine(None) if one.check == "settings"]
    assert [one.says.split()[0] for one in found] == ["REGISTRAR_NONSENSE", "REGISTRAR_PORT", "REGISTRAR_OTP_TTL"]


async def test_only_what_is_used_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGISTRAR_DATABASE_URL", "postgresql://127.0.0.1:1/none")
    monkeypatch.setenv("REGISTRAR_MASTER_KEY", "ab" * 32)
    monkeypatch.setenv("REGISTRAR_SMTP_URLS", "smtp://127.0.0.1:1")
    asked = {one.check async for one in examine(None)}
    assert asked.isdisjoint({"data directory", "disk", "alerts"})


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "key"
    file.write_text("ab" * 32)
    return file


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True)])
def test_a_key_that_others_can_read_is_warned_of(key_file: Path, mode: int, *, warned: bool) -> None:
    key_file.chmod(mode)
    settings = Settings.from_environment({"REGISTRAR_MASTER_KEY_FILE": str(key_file)})
    found = [one for one in look_at_settings(settings, {}) if one.state == "warn"]
    assert bool(found) is warned
    assert all("REGISTRAR_MASTER_KEY_FILE" in one.says for one in found)


def test_what_an_orchestrator_has_set_is_noted() -> None:
    (noted, *_) = look_at_settings(Settings(), {"REGISTRAR_PORT": "tcp://10.0.0.1:8000"})
    assert (noted.state, "REGISTRAR_PORT" in noted.says) == ("ok", True)


def test_a_start_notes_what_is_ignored_and_warns_of_what_should_not_be_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REGISTRAR_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("REGISTRAR_PORT", "tcp://10.0.0.1:8000")
    begin(Settings.from_environment({"REGISTRAR_ADMIN_TOKEN": PASSWORD, "REGISTRAR_LOG_FORMAT": "json"}))

    ignored, weak = map(json.loads, capsys.readouterr().err.splitlines())
    assert (ignored["event"], ignored["variables"]) == ("settings.ignored", "REGISTRAR_PORT, REGISTRAR_SERVICE_HOST")
    assert (weak["event"], weak["says"]) == ("settings.caution", "REGISTRAR_ADMIN_TOKEN is easy to guess")


def test_the_names_that_are_answered_are_told_and_what_a_proxy_of_another_name_gets() -> None:
    def told(**settings: str) -> str:
        found = host_names(Settings.from_environment({f"REGISTRAR_{name}": of for name, of in settings.items()}))
        assert (found.state, found.advice) == ("ok", None)
        return found.says

    url = "https://accounts.example.org"
    assert told() == told(PUBLIC_URL=url, ALLOWED_HOSTS="*") == "any"
    assert told(PUBLIC_URL=url) == (
        "accounts.example.org, localhost, and IP addresses (of REGISTRAR_PUBLIC_URL); "
        "a proxy that sends another as Host gets 421, unless REGISTRAR_ALLOWED_HOSTS has it"
    )
    assert told(PUBLIC_URL=url, ALLOWED_HOSTS="backend") == "accounts.example.org, backend, localhost, and IP addresses"
