"""Composing: bytes that any mail reader reads as they were written, and that nothing in a letter can break out of."""

from __future__ import annotations

import email
import email.policy
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.header import decode_header, make_header
from uuid import UUID

import pytest

from application.ports import CODE_GAP, Letter, Rendered
from infrastructure.mail.composing import Composer
from infrastructure.mail.look import Look
from infrastructure.mail.rendering import TemplateLetters
from infrastructure.settings.sender import mailbox

SOME_ID = UUID("0198c0de-0000-7000-8000-00000000002a")
NEW_YEAR = datetime(2025, 1, 2, tzinfo=UTC)


def code_letters(look: Look | None = None) -> TemplateLetters:
    return TemplateLetters(
        ttl=timedelta(minutes=10), look=look or Look("https://registrar.example"), sender="no-reply@registrar.example"
    )


def read(message: bytes) -> list[str]:
    """The text and the html of a mail, as a reader shows them."""
    parsed = email.message_from_bytes(
        message.removesuffix(b".\r\n").replace(b"\r\n..", b"\r\n."), policy=email.policy.default
    )
    return [part.get_content().replace("\r\n", "\n").rstrip("\n") for part in parsed.iter_parts()]


def test_lines_end_in_cr_lf_and_a_dot_before_them_is_doubled() -> None:
    letter = Letter("jo@x.test", Rendered("Code", "y\n..x\ra\r\nz", "<p>\n.</p>"), "<1@x.test>", "en")
    message = Composer("no-reply@registrar.example").compose(letter, "jo@x.test", NEW_YEAR)
    body, end = message[:-3], message[-3:]
    assert end == b".\r\n"
    assert body.replace(b"\r\n", b"").count(b"\r") == body.replace(b"\r\n", b"").count(b"\n") == 0
    lines = body.split(b"\r\n")
    assert [line for line in lines if line.startswith(b".")] == [b"...x", b"..</p>"]


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("012345", "<p>012345</p>"),
        ("Code:\n012345\nÜ", "<p>\n012345</p>"),
        ("before 012345 after 012345\n", "x" * 75 + "012345" + "y" * 75),
        (".012345. \n.012345", "=012345=\n"),
    ],
)
def test_a_code_is_read_where_it_was_written_and_no_line_is_longer_than_quoted_printable_allows(
    text: str, html: str
) -> None:
    composer = Composer("no-reply@registrar.example")
    rendered = Rendered("Code", text.replace("012345", CODE_GAP), html.replace("012345", CODE_GAP))
    for code in ("012345", "678901"):
        message = composer.compose(Letter("jo@x.test", rendered, "<1@x.test>", "en", code), "jo@x.test", NEW_YEAR)
        assert max(map(len, message.split(b"\r\n"))) <= 76
        assert read(message) == [part.replace("012345", code).rstrip("\n") for part in (text, html)]


def test_a_mail_has_nothing_of_the_one_before() -> None:
    composer = Composer("no-reply@registrar.example")
    first, second = (
        composer.compose(
            code_letters().code(to="jo@x.test", locale="en", code=code, message_id="1", registration_id=SOME_ID),
            "jo@x.test",
            NEW_YEAR,
        )
        for code in ("111111", "222222")
    )
    assert [part.count("222222") for part in read(second)] == [1, 1]
    assert b"111111" not in second
    assert CODE_GAP.encode() not in second
    assert first.replace(b"111111", b"222222") == second


def test_a_letter_of_a_kind_that_was_sent_before_has_its_own_date_and_address() -> None:
    composer = Composer("no-reply@registrar.example")
    mails = [
        composer.compose(
            code_letters().code(to=to, locale="en", code="012345", message_id=to[0], registration_id=SOME_ID),
            to,
            datetime(2025, 1, 2, second=at, tzinfo=UTC),
        ).decode()
        for at, to in enumerate(("a@x.test", "b@x.test"))
    ]
    for at, (to, mail) in enumerate(zip(("a@x.test", "b@x.test"), mails, strict=True)):
        assert f"To: {to}\r\nDate: Thu, 02 Jan 2025 00:00:0{at} +0000\r\nMessage-ID: <{to[0]}@" in mail


LOOK = Look("https://registrar.example", verify_url="https://app.example/verify#id={id}&code={code}")


def test_the_button_leads_to_each_mails_own_id_and_code() -> None:
    letters = code_letters(LOOK)
    for code, someone in (("012345", SOME_ID), ("678901", UUID(int=SOME_ID.int + 1))):
        letter = letters.code(to="jo@x.test", locale="en", code=code, message_id="1", registration_id=someone)
        message = Composer("no-reply@registrar.example").compose(letter, "jo@x.test", NEW_YEAR)
        assert max(map(len, message.split(b"\r\n"))) <= 78
        text, html = read(message)
        link = f"https://app.example/verify#id={someone}&code={code}"
        assert text.splitlines().count(link) == text.splitlines().count(code) == 1
        assert f'href="{link.replace("&", "&amp;")}"' in html
        assert f">{code}<" in html


def test_a_button_without_an_id_is_in_no_mail() -> None:
    letter = code_letters(LOOK).code(to="jo@x.test", locale="en", code="1", message_id="1", registration_id=SOME_ID)
    with pytest.raises(ValueError, match="no id"):
        Composer("no-reply@registrar.example").compose(replace(letter, registration_id=None), "jo@x.test", NEW_YEAR)


def test_replies_go_where_the_operator_says() -> None:
    letter = Letter("jo@x.test", Rendered("Code", "text", "<p>html</p>"), "<1@registrar.example>", "en")
    message = Composer("no-reply@registrar.example", "Söhne & Co. <help@Bücher.example>").compose(
        letter, "jo@x.test", NEW_YEAR
    )
    parsed = email.message_from_bytes(message, policy=email.policy.default)
    assert parsed["Reply-To"].addresses[0].display_name == "Söhne & Co."
    assert parsed["Reply-To"].addresses[0].addr_spec == "help@xn--bcher-kva.example"
    assert parsed["From"].addresses[0].addr_spec == "no-reply@registrar.example"
    assert b"Reply-To" not in Composer("no-reply@registrar.example").compose(letter, "jo@x.test", NEW_YEAR)


@pytest.mark.parametrize("reply_to", ["", "a@x.test\r\nBcc: b@x.test", "A\nBcc: <a@x.test>", "a@x.test, b@x.test"])
def test_a_reply_address_that_is_not_one_mailbox_fails_at_start(reply_to: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Composer("no-reply@registrar.example", reply_to)


@pytest.mark.parametrize("code", ["12 34", "\x1a", ".", "1\r\n2", "ü"])
def test_what_is_no_code_is_in_no_mail(code: str) -> None:
    letter = Letter("jo@x.test", Rendered("Code", f"{CODE_GAP}\n", ""), "<1@x.test>", "en", code)
    with pytest.raises(ValueError, match="not fit"):
        Composer("no-reply@registrar.example").compose(letter, "jo@x.test", NEW_YEAR)


@pytest.mark.parametrize("code", [None, ""])
def test_a_gap_without_a_code_is_in_no_mail(code: str | None) -> None:
    letter = Letter("jo@x.test", Rendered("Code", f"{CODE_GAP}\n", ""), "<1@x.test>", "en", code)
    with pytest.raises(ValueError, match="no code"):
        Composer("no-reply@registrar.example").compose(letter, "jo@x.test", NEW_YEAR)


@pytest.mark.parametrize(
    ("sender", "name", "address"),
    [
        ("no-reply@registrar.example", "", "no-reply@registrar.example"),
        ("<no-reply@registrar.example>", "", "no-reply@registrar.example"),
        ("Registrar <no-reply@registrar.localhost>", "Registrar", "no-reply@registrar.localhost"),
        ("Müller <no-reply@registrar.example>", "Müller", "no-reply@registrar.example"),
        ("Acme Inc. <no-reply@registrar.example>", "Acme Inc.", "no-reply@registrar.example"),
        ("Acme, Inc. <no-reply@registrar.example>", "Acme, Inc.", "no-reply@registrar.example"),
        (' "Acme, Inc."  < no-reply@registrar.example > ', "Acme, Inc.", "no-reply@registrar.example"),
        (r'"The \"best\" <Acme> \\" <a@registrar.example>', 'The "best" <Acme> \\', "a@registrar.example"),
        ("Team: Accounts (EU) [1] <a@registrar.example>", "Team: Accounts (EU) [1]", "a@registrar.example"),
        ("=?utf-8?q?M=C3=BCller?= <a@registrar.example>", "Müller", "a@registrar.example"),
        ("Bücher <post@Bücher.example>", "Bücher", "post@xn--bcher-kva.example"),
        ("post@例え.example", "", "post@xn--r8jz45g.example"),
        ("登録" * 60 + " <a@registrar.example>", "登録" * 60, "a@registrar.example"),
        ("Dept. of Ünits " * 20 + "<a@registrar.example>", ("Dept. of Ünits " * 20).strip(), "a@registrar.example"),
        ("x" * 1200 + " <a@registrar.example>", "x" * 1200, "a@registrar.example"),
        (f"Ü <{'a' * 64}@{'b' * 60}.{'c' * 60}.example>", "Ü", f"{'a' * 64}@{'b' * 60}.{'c' * 60}.example"),
    ],
)
def test_a_sender_and_their_name_are_in_the_header_as_written_and_within_its_limits(
    sender: str, name: str, address: str
) -> None:
    letter = Letter("jo@x.test", Rendered("Code", "text", "<p>html</p>"), "<1@registrar.example>", "en")

    composer = Composer(sender)
    head = composer.compose(letter, "jo@x.test", NEW_YEAR).partition(b"\r\n\r\n")[0].decode("ascii")

    header = re.search(r"^From: (.*?)\r\n(?! )", head, re.DOTALL | re.MULTILINE)
    assert header is not None
    assert composer.sender == address
    shown, _, addressed = str(make_header(decode_header(header[1]))).rpartition("<")
    if shown.startswith('"'):
        shown = re.sub(r"\\(.)", r"\1", shown.strip()[1:-1])
    assert (shown.strip(), addressed.removesuffix(">")) == (name, address)
    assert all(len(word) <= 75 for word in re.findall(r"=\?\S*?\?[qb]\?\S*?\?=", header[1]))  # RFC 2047, 2
    for line in header[0].splitlines():
        assert len(line) <= max(78, len(address) + 3)  # RFC 5322, 2.1.1; an address cannot be folded


@pytest.mark.parametrize(
    "sender",
    [
        "",
        "nobody",
        "a@x.test, b@x.test",
        "A <a@x.test>, B <b@x.test>",
        "a@x.test, B <b@x.test>",
        "a@x.test\r\nBcc: b@x.test",
        "A\u200b <a@x.test>",
        "=?utf-8?q?A=0D=0AB?= <a@x.test>",
        "=?no-such?q?A?= <a@x.test>",
        "A <a@x.test> B",
        "a@x.test>",
        "A a@x.test>",
        "a@x.test >",
        "<a@x.test",
        "A <a@x.test",
        "A a@x.test",
        "<<a@x.test>>",
        "<a@x.test>>",
        "A <>",
        "A <mailto:a@x.test>",
        "mailto:a@x.test",
        "a@x.test (A)",
        "a@x.test;",
        '"A <a@x.test>"',
        "\uff1ca@x.test\uff1e",
        "Ä@x.test",
        '"a b"@x.test',
        "=?utf-8?q?a?=@x.test",
    ],
)
def test_a_sender_that_is_not_one_mailbox_fails_at_start(sender: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Composer(sender)


def test_long_addresses_and_ids_stay_on_one_line() -> None:
    address = f"{'a' * 64}@{'b' * 60}.{'c' * 60}.{'d' * 60}.test"
    message_id = f"<{'e' * 120}@registrar.example>"
    letter = Letter(address, Rendered("Code", "text", "<p>html</p>"), message_id, "en")
    message = Composer("no-reply@registrar.example").compose(letter, mailbox(address), NEW_YEAR)
    assert f"\r\nTo: {address}\r\n".encode() in message
    assert f"\r\nMessage-ID: {message_id}\r\n".encode() in message
