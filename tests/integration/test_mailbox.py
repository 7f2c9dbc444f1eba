"""The embedded mailbox over a real socket and a real directory."""

from __future__ import annotations

import asyncio
import logging
import re
import signal
import stat
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from application.ports import CODE_GAP, Letter, NotSent, Rendered
from domain.mail_outcome import MailKind
from entrypoints.api.pages.rendering import mailbox_page, mailbox_policy
from infrastructure.mail import mailbox
from infrastructure.mail.look import Look
from infrastructure.mail.mailbox import Mailbox
from infrastructure.mail.rendering import render
from infrastructure.mail.smtp.servers import SmtpServers
from infrastructure.settings.values import MailServer

ROOT = Path(mailbox.__file__).parents[2]


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Mailbox]:
    box = Mailbox(tmp_path / "mail")
    await box.start()
    yield box
    await box.stop()


@pytest.fixture
async def post(box: Mailbox) -> AsyncIterator[SmtpServers]:
    servers = post_to(box.port)
    yield servers
    await servers.close()


def post_to(port: int) -> SmtpServers:
    return SmtpServers(
        [MailServer("smtp", "127.0.0.1", port, starttls="never")], sender="Registrar <no-reply@registrar.example>"
    )


def letter(to: str = "jo@example.com", code: str = "012345") -> Letter:
    rendered = render(MailKind.CODE, "de", timedelta(minutes=10), Look("https://registrar.example"))
    return Letter(to, rendered, f"<{code}.1@registrar.example>", "de", code)


def codes(box: Mailbox, to: str | None = None) -> list[str]:
    return [re.findall(r"^\d{6}$", message.text, re.MULTILINE)[0] for message in box.messages(to)]


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


async def talk(port: int, *lines: str) -> list[str]:
    """Say the lines to the server, one after each answer; the last lines of all answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answers = []
    try:
        for line in ("", *lines):
            if line:
                writer.write(line.encode("utf-8", "surrogateescape") + b"\r\n")
            while (answer := (await reader.readuntil(b"\r\n")).decode())[3:4] == "-":
                pass
            answers.append(answer.strip())
    finally:
        writer.close()
        await writer.wait_closed()
    return answers


async def test_a_mail_can_be_read_as_it_was_written(box: Mailbox, post: SmtpServers) -> None:
    before = datetime.now(UTC)
    sent = letter()
    await post.send(sent)
    (message,) = box.messages()
    assert message.to == "jo@example.com"
    assert message.subject == "Ihr Bestätigungscode"
    assert message.text == sent.rendered.text.replace(CODE_GAP, "012345")
    assert message.html == sent.rendered.html.replace(CODE_GAP, "012345")
    assert message.headers["Message-ID"] == "<012345.1@registrar.example>"
    assert message.headers["Auto-Submitted"] == "auto-generated"
    assert "Delivered-To" not in message.headers
    assert before <= message.received_at <= datetime.now(UTC)


async def test_the_newest_comes_first(box: Mailbox, post: SmtpServers) -> None:
    for code in ("000001", "000002", "000003"):
        await post.send(letter(code=code))
    assert codes(box) == ["000003", "000002", "000001"]


async def test_it_can_be_filtered_by_recipient(box: Mailbox, post: SmtpServers) -> None:
    await post.send(letter("Jo@example.com", "000001"))
    await post.send(letter("al@example.com", "000002"))
    assert codes(box, "jo@EXAMPLE.com") == ["000001"]
    assert codes(box, "nobody@example.com") == []


async def test_order_survives_a_clock_that_is_set_back(tmp_path: Path) -> None:
    times = iter([2_000, 1_000, 1_000])
    box = Mailbox(tmp_path, now=lambda: next(times))
    await box.start()
    post = post_to(box.port)
    for code in ("000001", "000002", "000003"):
        await post.send(letter(code=code))
    assert codes(box) == ["000003", "000002", "000001"]
    await post.close()
    await box.stop()
    await box.start()
    assert codes(box) == ["000003", "000002", "000001"]
    await box.stop()


async def test_mails_survive_a_restart(box: Mailbox, post: SmtpServers) -> None:
    await post.send(letter())
    before = box.messages()
    await box.stop()
    await box.start()
    assert box.messages() == before


async def test_a_mail_that_was_acknowledged_survives_sigkill(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "import asyncio, sys, pathlib\n"
        "from infrastructure.mail.mailbox import Mailbox\n"
        "async def main():\n"
        "    box = Mailbox(pathlib.Path(sys.argv[1])); await box.start()\n"
        "    print(box.port, flush=True); await asyncio.Event().wait()\n"
        "asyncio.run(main())\n",
        str(tmp_path),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    post = post_to(int(await process.stdout.readline()))
    for number in range(5):
        await post.send(letter(code=f"{number:06}"))
    process.send_signal(signal.SIGKILL)
    assert await process.wait() == -signal.SIGKILL
    await post.close()

    box = Mailbox(tmp_path)
    await box.start()
    assert codes(box) == ["000004", "000003", "000002", "000001", "000000"]
    await box.stop()


async def test_unfinished_files_are_swept_and_strange_ones_left_alone(tmp_path: Path) -> None:
    (tmp_path / "00000000000000000001.tmp").write_bytes(b"half a m")
    (tmp_path / "00000000000000000002.eml").write_bytes(b"")
    (tmp_path / "notes.eml").write_bytes(b"mine")
    box = Mailbox(tmp_path)
    await box.start()
    assert [message.text for message in box.messages()] == [""]
    assert names_in(tmp_path) == ["00000000000000000002.eml", "notes.eml"]
    await box.stop()


async def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    box = Mailbox(tmp_path / "few", max_mails=3)
    await box.start()
    post = post_to(box.port)
    for number in range(5):
        await post.send(letter(code=f"{number:06}"))
    assert codes(box) == ["000004", "000003", "000002"]
    await post.close()
    await box.stop()
    assert len(names_in(tmp_path / "few")) == 3


async def test_clearing_leaves_nothing(box: Mailbox, post: SmtpServers, tmp_path: Path) -> None:
    await post.send(letter())
    box.clear()
    assert box.messages() == []
    assert list((tmp_path / "mail").iterdir()) == []
    await post.send(letter())
    assert len(box.messages()) == 1


async def test_only_the_owner_can_read_it(box: Mailbox, post: SmtpServers, tmp_path: Path) -> None:
    await post.send(letter())
    (file,) = (tmp_path / "mail").iterdir()
    assert stat.S_IMODE((tmp_path / "mail").stat().st_mode) == 0o700
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


async def test_it_listens_on_the_loopback_interface_only(box: Mailbox) -> None:
    assert box._server is not None
    assert {socket.getsockname()[0] for socket in box._server.sockets} == {"127.0.0.1"}


async def test_a_mail_to_two_is_stored_for_each(box: Mailbox) -> None:
    answers = await talk(
        box.port, "EHLO x", "MAIL FROM:<a@x.test>", "RCPT TO:<b@x.test>", "RCPT TO:<c@x.test>", "DATA", "\r\nhi\r\n."
    )
    assert answers[-1] == "250 2.0.0 stored"
    assert [(message.to, message.text) for message in box.messages()] == [("c@x.test", "hi\n"), ("b@x.test", "hi\n")]


async def test_eight_bit_mail_is_taken(box: Mailbox) -> None:
    await talk(
        box.port,
        "EHLO x",
        "MAIL FROM:<a@x.test> BODY=8BITMIME",
        "RCPT TO:<b@x.test>",
        "DATA",
        "Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nGrüße\r\n.",
    )
    (message,) = box.messages()
    assert (message.subject, message.text) == ("Grüße", "Grüße\n")


@pytest.mark.parametrize(
    "mail",
    [
        "Subject: =?bogus?q?x?=\r\nContent-Type: text/plain; charset=bogus\r\n\r\nx",
        "Content-Type: text/plain; charset=utf-8\r\n\r\n\udcff\udcfe",
        "Content-Type: multipart/mixed; boundary=b\r\n\r\nno parts",
        "Subject: =?utf-8?b?!!!?=\r\nno colon here\r\n\r\n",
        "Content-Type: text/html\r\nContent-Transfer-Encoding: base64\r\n\r\n%%%",
    ],
)
async def test_a_malformed_mail_is_shown_as_well_as_can_be(box: Mailbox, mail: str) -> None:
    answers = await talk(box.port, "EHLO x", "MAIL FROM:<a@x.test>", "RCPT TO:<b@x.test>", "DATA", f"{mail}\r\n.")
    assert answers[-1] == "250 2.0.0 stored"
    assert box.messages()[0].to == "b@x.test"


async def test_a_mail_beyond_the_limit_is_refused(box: Mailbox, post: SmtpServers) -> None:
    await post.send(letter())
    huge = Letter("jo@example.com", Rendered("x", "x" * 300_000, "x"), "<1@x.test>", "en")
    with pytest.raises(NotSent) as refusal:
        await post.send(huge)
    assert (refusal.value.failure.failure, refusal.value.failure.permanent) == ("content", True)
    assert len(box.messages()) == 1
    await post.send(letter())


async def test_a_mail_that_cannot_be_stored_is_not_acknowledged(
    box: Mailbox, post: SmtpServers, tmp_path: Path
) -> None:
    impatient = SmtpServers(post._settings, sender="a@x.test", sleep=_at_once)
    (tmp_path / "mail").rmdir()
    with pytest.raises(NotSent) as refusal:
        await impatient.send(letter())
    await impatient.close()
    assert (refusal.value.failure.failure, refusal.value.failure.permanent, refusal.value.failure.reply_code) == (
        "temporary",
        False,
        452,
    )
    (tmp_path / "mail").mkdir()
    await post.send(letter())


async def _at_once(_seconds: float) -> None:
    pass


async def test_stopping_cuts_idle_clients(box: Mailbox) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", box.port)
    await reader.readuntil(b"\r\n")
    await box.stop()
    async with asyncio.timeout(5):
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await reader.readuntil(b"\r\n")
    writer.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", box.port)


async def test_the_logs_name_nobody(box: Mailbox, post: SmtpServers, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await post.send(letter())
    await post.close()
    assert "jo@" not in caplog.text
    assert "012345" not in caplog.text


def test_the_page_carries_the_nonce_and_nothing_from_elsewhere() -> None:
    html = mailbox_page("n0nce")
    assert "{{" not in html
    assert html.count('nonce="n0nce"') == html.count("<script") + html.count("<style") == 3
    assert "'nonce-n0nce'" in mailbox_policy("n0nce")
    logo = mailbox_policy("n0nce", "https://cdn.example.org:8443/logo.png?a=1")
    assert "img-src 'self' data: https://cdn.example.org:8443;" in logo
    assert not re.search(r"https?://|\bon\w+=\"|innerHTML|insertAdjacentHTML|document\.write|eval\(", html)
    assert 'sandbox="allow-popups allow-popups-to-escape-sandbox"' in html  # no scripts, no forms, nothing of this page
