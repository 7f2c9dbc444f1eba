"""`registrar mail preview` and `mail test`: what is on disk, and what mail servers say."""

from __future__ import annotations

import email
import email.policy
import json
import os
import stat
import webbrowser
from pathlib import Path

import pytest

from domain.mail_outcome import MailKind
from entrypoints.bootstrap import CannotStart
from entrypoints.bootstrap.letters import letters_for
from entrypoints.cli.letters import send_sample
from entrypoints.cli.main import run
from infrastructure.embedded.data_directory import DataDirectory
from infrastructure.settings.settings import Settings
from tests.support.smtp_stub import SmtpStub

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def settings(*stubs: SmtpStub, **others: str) -> Settings:
    urls = {"SMTP_URLS": ",".join(f"smtp://127.0.0.1:{stub.port}" for stub in stubs)}
    return Settings.from_environment({f"REGISTRAR_{name}": value for name, value in (urls | others).items()})


def test_a_preview_shows_what_is_on_disk_now(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture) -> None:
    monkeypatch.setenv("REGISTRAR_TEMPLATES", str(tmp_path))
    monkeypatch.setenv("REGISTRAR_PRODUCT_NAME", "Acme")
    monkeypatch.setenv("REGISTRAR_VERIFY_URL", "https://app.example/{language}/verify#id={id}&code={code}")
    (tmp_path / "code.fr.subject.txt").write_text("Bienvenue chez {{ product }}\n", "utf-8")

    assert run(["mail", "preview", "code", "--locale", "fr-CA"]) == 0

    printed = capsys.readouterr().out
    assert printed.startswith("Subject: Bienvenue chez Acme\n\nQuelqu\u2019un")
    assert "\n\nSAMPLE\n\n" in printed
    assert "\nhttps://app.example/fr/verify#id=00000000-0000-0000-0000-000000000000&code=SAMPLE\n" in printed

    assert run(["mail", "preview", "code", "--locale", "klingon"]) == 0
    assert "so this is the English one; there are en, de, fr" in capsys.readouterr().err

    (tmp_path / "code.fr.txt").write_text("{{ code }}\n{{ prodct }}", "utf-8")

    assert run(["mail", "preview", "code", "--locale", "fr"]) == 2
    assert "code.fr.txt, line 2: there is no variable prodct (did you mean product?)" in capsys.readouterr().err


def test_a_preview_is_html_or_json_too_and_opens_in_a_browser(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture
) -> None:
    opened: list[str] = []

    def browse(url: str) -> bool:
        opened.append(url)
        return True

    monkeypatch.setattr(webbrowser, "open", browse)

    assert run(["mail", "preview", "notice", "--locale", "pl", "--html"]) == 0
    html = capsys.readouterr().out
    assert run(["mail", "preview", "notice", "--locale", "pl", "--json", "--open"]) == 0

    assert html.startswith('<!doctype html>\n<html lang="pl">')
    shown = json.loads(capsys.readouterr().out)
    assert (shown["kind"], shown["language"], shown["subject"]) == ("notice", "pl", "Masz już konto")
    assert shown["html"] == html
    page = tmp_path / ".registrar" / "previews" / "notice.pl.html"
    assert opened == [page.as_uri()]
    assert page.read_text("utf-8") == html


def test_a_preview_leaves_a_data_directory_as_it_has_to_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(webbrowser, "open", lambda _: True)
    usual = os.umask(0o002)  # of many desktops
    try:
        assert run(["mail", "preview", "notice", "--open"]) == 0
    finally:
        os.umask(usual)

    made = [tmp_path / ".registrar", tmp_path / ".registrar" / "previews"]
    assert [stat.S_IMODE(directory.stat().st_mode) for directory in made] == [0o700, 0o700]
    assert DataDirectory(made[0], adjust=False).path == made[0]


async def test_a_sample_goes_out_as_any_mail_and_is_plainly_none(capsys: Capture) -> None:
    async with SmtpStub() as stub:
        stub.at("eod", "250 2.0.0 Ok: queued as \x1b[31m4711")
        given = settings(stub, MAIL_FROM="Acme <no-reply@acme.example>", REPLY_TO="help@acme.example")

        assert await send_sample(given, "ada@x.example", MailKind.CODE, "de", as_json=True) == 0

    (said,) = json.loads(capsys.readouterr().out)
    where = f"127.0.0.1:{stub.port}"
    reply = "250 2.0.0 Ok: queued as [31m4711"
    assert said == {"server": where, "accepted": True, "stage": "end-of-data", "reply": reply}
    (mail,) = stub.mails
    assert (mail.sender, mail.recipients) == (b"no-reply@acme.example", [b"ada@x.example"])
    parsed = email.message_from_bytes(mail.data, policy=email.policy.default)
    assert parsed["Subject"] == "Ihr Bestätigungscode"
    assert parsed["Reply-To"] == "help@acme.example"
    assert "SAMPLE" in next(parsed.iter_parts()).get_content().split("\r\n")


async def test_each_server_is_asked_until_one_takes_it(capsys: Capture) -> None:
    async with SmtpStub() as refusing, SmtpStub() as taking, SmtpStub() as spare:
        refusing.at("rcpt", "554 5.7.1 relay access denied")

        given = settings(refusing, taking, spare)
        assert await send_sample(given, "ada@x.example", MailKind.NOTICE, "en", as_json=False) == 0

    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3
    assert f"127.0.0.1:{refusing.port}" in printed[1]
    assert "554 5.7.1 relay access denied" in printed[1]
    assert f"127.0.0.1:{taking.port}" in printed[2]
    assert (len(taking.mails), len(spare.sessions)) == (1, 0)


async def test_what_no_server_takes_is_exit_code_1(capsys: Capture) -> None:
    async with SmtpStub() as stub:
        stub.at("eod", "550 5.7.1 looks like spam")
        assert await send_sample(settings(stub), "ada@x.example", MailKind.CODE, "en", as_json=False) == 1

    assert "550 5.7.1 looks like spam" in capsys.readouterr().out


async def test_without_a_mail_server_a_sample_goes_nowhere() -> None:
    with pytest.raises(CannotStart, match="REGISTRAR_SMTP_URLS is not set"):
        await send_sample(Settings.from_environment({}), "ada@x.example", MailKind.CODE, "en", as_json=False)


async def test_no_process_that_sends_starts_with_a_faulty_template(tmp_path: Path) -> None:
    (tmp_path / "notice.nl.txt").write_text("{{ code }}")

    with pytest.raises(CannotStart, match=r"notice\.nl\.txt, line 1: there is no variable code") as refused:
        await letters_for(settings(TEMPLATES=str(tmp_path)))

    assert "\n" not in str(refused.value)
