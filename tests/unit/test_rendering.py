"""Rendering: the right language, a code that can be found, and nothing that a registrant could have written."""

from __future__ import annotations

import html
import re
from datetime import timedelta
from pathlib import Path

import pytest

from application.ports import CODE_GAP, Rendered
from domain.languages import language_of
from infrastructure.mail import rendering
from infrastructure.mail.rendering import TemplateLetters, render_code, render_notice

URL = "https://registrar.example"
TEN_MINUTES = timedelta(minutes=10)

ALL = [
    pytest.param(render_code("en", TEN_MINUTES, URL), id="code-en"),
    pytest.param(render_code("de", TEN_MINUTES, URL), id="code-de"),
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
    rendered = render_code(locale, TEN_MINUTES, URL)
    assert rendered.text.splitlines().count(CODE_GAP) == rendered.text.count(CODE_GAP) == 1
    assert rendered.html.count(CODE_GAP) == 1
    assert f">{CODE_GAP}<" in rendered.html


@pytest.mark.parametrize("locale", ["en", "de"])
def test_neither_subject_nor_preview_shows_the_code(locale: str) -> None:
    rendered = render_code(locale, TEN_MINUTES, URL)
    assert CODE_GAP not in rendered.subject
    shown = html.unescape(re.sub(r"<[^>]+>", " ", rendered.html.partition("<body")[2].partition(">")[2]))
    assert " ".join(shown.split()).index(CODE_GAP) > 140  # characters that mail programs and locked screens show


@pytest.mark.parametrize("rendered", ALL)
def test_nothing_in_a_mail_is_hidden(rendered: Rendered) -> None:
    assert not re.search(r"display:\s*none|visibility:|font-size:\s*[01]px|mso-hide|opacity", rendered.html)


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
        rendered = render_code(locale, ttl, URL)
        assert words in rendered.text
        assert words in rendered.html


@pytest.mark.parametrize("locale", ["en", "de"])
def test_the_notice_has_no_code_and_says_that_nothing_changed(locale: str) -> None:
    rendered = render_notice(locale, URL)
    assert CODE_GAP not in rendered.text + rendered.html
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
    assert "<b>" not in render_code("en", TEN_MINUTES, 'https://x.test/"><b>').html


def test_all_templates_have_both_languages() -> None:
    templates = {path.name for path in (Path(rendering.__file__).parent / "templates").iterdir()}
    for kind in ("code", "notice"):
        for suffix in ("txt", "html"):
            assert {f"{kind}.en.{suffix}", f"{kind}.de.{suffix}"} <= templates


def test_a_letter_carries_its_language_and_a_message_id_of_the_senders_domain() -> None:
    made = TemplateLetters(ttl=TEN_MINUTES, public_url=URL, sender="Registrar <no-reply@mail.registrar.example>")
    code = made.code(to="jo@x.test", locale="de-AT", code="012345", message_id="0192.1")
    notice = made.notice(to="jo@x.test", locale="fr", message_id="0192.2")
    assert (code.to, code.locale, code.message_id) == ("jo@x.test", "de", "<0192.1@mail.registrar.example>")
    assert (code.rendered, code.code) == (render_code("de", TEN_MINUTES, URL), "012345")
    assert (notice.locale, notice.message_id) == ("en", "<0192.2@mail.registrar.example>")
    assert (notice.rendered, notice.code) == (render_notice("en", URL), None)
