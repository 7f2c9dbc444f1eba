"""Letters: the right language, a code that can be found, and nothing that a registrant could have written."""

from __future__ import annotations

import email
import email.policy
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from application.ports import Letter
from infrastructure.mail import rendering
from infrastructure.mail.rendering import (
    Composer,
    Rendered,
    TemplateLetters,
    language_of,
    mailbox,
    render_code,
    render_notice,
)

URL = "https://registrar.example"
TEN_MINUTES = timedelta(minutes=10)

ALL = [
    pytest.param(render_code("en", "012345", TEN_MINUTES, URL), id="code-en"),
    pytest.param(render_code("de", "012345", TEN_MINUTES, URL), id="code-de"),
    pytest.param(render_notice("en", URL), id="notice-en"),
    pytest.param(render_notice("de", URL), id="notice-de"),
]


@pytest.mark.parametrize(
    ("locale", "language"),
    [
        ("de", "de"),
        ("de-AT", "de"),
        ("DE-ch", "de"),
        ("de_DE", "de"),
        ("de-Latn-DE-1996", "de"),
        ("en", "en"),
        ("en-GB", "en"),
        ("fr", "en"),
        ("den", "en"),
        ("del", "en"),
        ("", "en"),
        (None, "en"),
        ("x\r\nde", "en"),
    ],
)
def test_a_locale_becomes_a_language_that_we_speak(locale: str | None, language: str) -> None:
    assert language_of(locale) == language


@pytest.mark.parametrize("locale", ["en", "de"])
def test_the_code_stands_alone_on_a_line_of_the_text(locale: str) -> None:
    rendered = render_code(locale, "012345", TEN_MINUTES, URL)
    assert re.findall(r"^(\d{6})$", rendered.text, re.MULTILINE) == ["012345"]
    assert rendered.html.count("012345") == 1
    assert ">012345<" in rendered.html


@pytest.mark.parametrize("locale", ["en", "de"])
def test_neither_subject_nor_preview_shows_the_code(locale: str) -> None:
    rendered = render_code(locale, "012345", TEN_MINUTES, URL)
    assert "012345" not in rendered.subject
    assert "012345" not in rendered.html.split("<table", 1)[0]


@pytest.mark.parametrize(
    ("ttl", "english", "german"),
    [
        (timedelta(minutes=10), "10 minutes", "10 Minuten"),
        (timedelta(minutes=1), "1 minute", "1 Minute"),
        (timedelta(seconds=90), "90 seconds", "90 Sekunden"),
        (timedelta(hours=1), "1 hour", "1 Stunde"),
        (timedelta(hours=24), "24 hours", "24 Stunden"),
        (timedelta(milliseconds=200), "1 second", "1 Sekunde"),
    ],
)
def test_it_says_how_long_the_code_holds(ttl: timedelta, english: str, german: str) -> None:
    for locale, words in (("en", english), ("de", german)):
        rendered = render_code(locale, "012345", ttl, URL)
        assert words in rendered.text
        assert words in rendered.html


@pytest.mark.parametrize("locale", ["en", "de"])
def test_the_notice_has_no_code_and_says_that_nothing_changed(locale: str) -> None:
    rendered = render_notice(locale, URL)
    assert not re.search(r"\d{6}", rendered.text)
    assert {"en": "nothing was changed", "de": "nichts geändert"}[locale] in rendered.text
    assert URL in rendered.text


@pytest.mark.parametrize("rendered", ALL)
def test_the_languages_are_not_mixed(rendered: Rendered) -> None:
    german = 'lang="de"' in rendered.html
    for part in (rendered.subject, rendered.text, rendered.html):
        assert bool(re.search(r"\b(Ihr|Sie|Adresse|Konto)\b", part)) == german


@pytest.mark.parametrize("rendered", ALL)
def test_html_loads_nothing_and_runs_nothing(rendered: Rendered) -> None:
    assert not re.search(r"<(script|img|link|iframe|object|form)|\bsrc=|url\(|@import|\bon\w+=", rendered.html)
    assert set(re.findall(r'href="([^"]*)"', rendered.html)) == {URL}


@pytest.mark.parametrize("rendered", ALL)
def test_lines_of_the_text_are_short_enough_for_any_reader(rendered: Rendered) -> None:
    assert max(map(len, rendered.text.splitlines())) <= 84


def test_what_is_put_into_html_is_escaped() -> None:
    assert "<b>" not in render_notice("en", 'https://x.test/"><b>').html
    assert "<b>" not in render_code("en", "<b>", TEN_MINUTES, URL).html


def test_a_letter_has_nothing_of_the_one_before() -> None:
    first, second = (render_code("en", code, TEN_MINUTES, URL) for code in ("111111", "222222"))
    assert "222222" in second.text
    assert "222222" in second.html
    assert "111111" not in "".join(second)
    assert "\x1a" not in "".join(second)
    assert [part.replace("111111", "222222") for part in first] == list(second)


def test_lines_end_in_cr_lf_and_a_dot_before_them_is_doubled() -> None:
    letter = Letter("jo@x.test", "Code", "y\n..x\ra\r\nz", "<p>\n.</p>", "<1@x.test>", "en")
    message = Composer("no-reply@registrar.example").compose(letter, "jo@x.test", datetime(2025, 1, 2, tzinfo=UTC))
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
    for code in ("012345", "678901"):
        letter = Letter(
            "jo@x.test",
            "Code",
            text.replace("012345", code),
            html.replace("012345", code),
            "<1@x.test>",
            "en",
            code,
        )
        message = composer.compose(letter, "jo@x.test", datetime(2025, 1, 2, tzinfo=UTC))
        assert max(map(len, message.split(b"\r\n"))) <= 76
        read = email.message_from_bytes(
            message.removesuffix(b".\r\n").replace(b"\r\n..", b"\r\n."), policy=email.policy.default
        )
        parts = [part.get_content().replace("\r\n", "\n").rstrip("\n") for part in read.iter_parts()]
        assert parts == [letter.text.rstrip("\n"), letter.html.rstrip("\n")]


def test_a_letter_of_a_kind_that_was_sent_before_has_its_own_date_and_address() -> None:
    composer = Composer("no-reply@registrar.example")
    made = TemplateLetters(ttl=TEN_MINUTES, public_url=URL, sender="no-reply@registrar.example")
    mails = [
        composer.compose(
            made.code(to=to, locale="en", code="012345", message_id=to[0]),
            to,
            datetime(2025, 1, 2, second=at, tzinfo=UTC),
        ).decode()
        for at, to in enumerate(("a@x.test", "b@x.test"))
    ]
    for at, (to, mail) in enumerate(zip(("a@x.test", "b@x.test"), mails, strict=True)):
        assert f"To: {to}\r\nDate: Thu, 02 Jan 2025 00:00:0{at} +0000\r\nMessage-ID: <{to[0]}@" in mail


@pytest.mark.parametrize("code", ["12 34", "\x1a", ".", "1\r\n2", "ü"])
def test_what_is_no_code_is_in_no_mail(code: str) -> None:
    letter = Letter("jo@x.test", "Code", f"{code}\n", "", "<1@x.test>", "en", code)
    with pytest.raises(ValueError, match="not fit"):
        Composer("no-reply@registrar.example").compose(letter, "jo@x.test", datetime(2025, 1, 2, tzinfo=UTC))


def test_all_templates_have_both_languages() -> None:
    templates = {path.name for path in (Path(rendering.__file__).parent / "templates").iterdir()}
    for kind in ("code", "notice"):
        for suffix in ("txt", "html"):
            assert {f"{kind}.en.{suffix}", f"{kind}.de.{suffix}"} <= templates


def test_the_sender_may_have_a_name() -> None:
    assert Composer("Grüße <no-reply@registrar.example>").sender == "no-reply@registrar.example"


@pytest.mark.parametrize("sender", ["", "nobody", "a@x.test, b@x.test", "a@x.test\r\nBcc: b@x.test", "Ä@x.test"])
def test_a_sender_that_is_not_one_mailbox_fails_at_start(sender: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Composer(sender)


def test_long_addresses_and_ids_stay_on_one_line() -> None:
    address = f"{'a' * 64}@{'b' * 60}.{'c' * 60}.{'d' * 60}.test"
    message_id = f"<{'e' * 120}@registrar.example>"
    letter = Letter(address, "Code", "text", "<p>html</p>", message_id, "en")
    message = Composer("no-reply@registrar.example").compose(letter, mailbox(address), datetime(2025, 1, 2, tzinfo=UTC))
    assert f"\r\nTo: {address}\r\n".encode() in message
    assert f"\r\nMessage-ID: {message_id}\r\n".encode() in message


def test_a_letter_carries_its_language_and_a_message_id_of_the_senders_domain() -> None:
    made = TemplateLetters(ttl=TEN_MINUTES, public_url=URL, sender="Registrar <no-reply@mail.registrar.example>")
    code = made.code(to="jo@x.test", locale="de-AT", code="012345", message_id="0192.1")
    notice = made.notice(to="jo@x.test", locale="fr", message_id="0192.2")
    assert (code.to, code.locale, code.message_id) == ("jo@x.test", "de", "<0192.1@mail.registrar.example>")
    assert (code.subject, code.text, code.html) == render_code("de", "012345", TEN_MINUTES, URL)
    assert (notice.locale, notice.message_id) == ("en", "<0192.2@mail.registrar.example>")
    assert (notice.subject, notice.text, notice.html) == render_notice("en", URL)
