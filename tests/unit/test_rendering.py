"""Rendering: the right language, a code that can be found, and nothing that a registrant could have written."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pytest

from application.ports import CODE_GAP, ID_GAP, Rendered
from domain.languages import LANGUAGES, Language, language_of
from domain.mail_outcome import MailKind
from infrastructure.mail.look import READABLE, Look, contrast
from infrastructure.mail.rendering import TemplateLetters, render

URL = "https://registrar.example"
TEN_MINUTES = timedelta(minutes=10)
PLAIN = Look(URL)
FULL = Look(
    URL,
    product="Acme & Söhne",
    logo_url="https://registrar.example/logo.png?a=1&b=2",
    accent="#ffcc00",
    support="help@registrar.example",
    verify_url="https://app.example/verify#id={id}&code={code}",
)
SOME_ID = UUID("0198c0de-0000-7000-8000-00000000002a")


def code_mail(language: Language, ttl: timedelta = TEN_MINUTES, look: Look = PLAIN) -> Rendered:
    return render(MailKind.CODE, language, ttl, look)


def notice(language: Language, look: Look = PLAIN) -> Rendered:
    return render(MailKind.NOTICE, language, TEN_MINUTES, look)


ALL = [
    pytest.param(render(kind, language, TEN_MINUTES, look), id=f"{kind}-{language}-{name}")
    for kind in MailKind
    for language in LANGUAGES
    for name, look in (("plain", PLAIN), ("full", FULL))
]
EVERY_LANGUAGE = pytest.mark.parametrize("language", LANGUAGES)


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
        ("fr", "fr"),
        ("pt-BR", "pt"),
        ("pl_PL", "pl"),
        ("sv", "en"),
        ("den", "en"),
        ("del", "en"),
        ("", "en"),
        (None, "en"),
        ("x\r\nde", "en"),
    ],
)
def test_a_locale_becomes_a_language_that_we_speak(locale: str | None, language: str) -> None:
    assert language_of(locale) == language


@EVERY_LANGUAGE
def test_the_code_stands_alone_on_a_line_of_the_text(language: Language) -> None:
    rendered = code_mail(language)
    assert rendered.text.splitlines().count(CODE_GAP) == rendered.text.count(CODE_GAP) == 1
    assert rendered.html.count(CODE_GAP) == 1
    assert f">{CODE_GAP}<" in rendered.html


@EVERY_LANGUAGE
def test_neither_subject_nor_preview_shows_the_code(language: Language) -> None:
    rendered = code_mail(language)
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
    for rendered, words in ((code_mail("en", ttl), english), (code_mail("de", ttl), german)):
        assert words in rendered.text
        assert words in rendered.html


@pytest.mark.parametrize("language", [one for one in LANGUAGES if one not in {"en", "de"}])
@pytest.mark.parametrize(("seconds", "words"), [(600, "10 min"), (60, "1 min"), (90, "90 s"), (7200, "2 h")])
def test_the_other_languages_need_no_plural(language: Language, seconds: int, words: str) -> None:
    rendered = code_mail(language, timedelta(seconds=seconds))
    for part in (rendered.text, rendered.html):
        assert re.search(rf"\b{words}\b", part)


NOTHING_CHANGED = {
    "en": "nothing was changed",
    "de": "nichts geändert",
    "fr": "rien n\u2019a donc été modifié",
    "es": "no se ha cambiado nada",
    "it": "nulla è stato modificato",
    "nl": "niets gewijzigd",
    "pt": "nada foi alterado",
    "pl": "nic nie zostało zmienione",
}


@EVERY_LANGUAGE
def test_the_notice_has_no_code_and_says_that_nothing_changed(language: Language) -> None:
    rendered = notice(language, FULL)
    assert CODE_GAP not in rendered.text + rendered.html
    assert ID_GAP not in rendered.text + rendered.html
    assert NOTHING_CHANGED[language] in rendered.text
    assert f"<strong>{NOTHING_CHANGED[language]}</strong>" in rendered.html
    assert URL in rendered.text


ADDRESS = {
    "en": "address",
    "de": "Adresse",
    "fr": "adresse",
    "es": "dirección",
    "it": "indirizzo",
    "nl": "adres",
    "pt": "endereço",
    "pl": "adres|adresem",
}


@pytest.mark.parametrize("rendered", ALL)
def test_the_languages_are_not_mixed(rendered: Rendered) -> None:
    found = re.search(r'<html lang="(..)">', rendered.html)
    assert found is not None
    words = {ADDRESS[found[1]]} if found[1] not in {"nl", "pl"} else {ADDRESS["nl"], ADDRESS["pl"]}
    for part in (rendered.text, rendered.html.partition("</head>")[2]):
        assert {word for word in ADDRESS.values() if re.search(rf"\b({word})\b", part)} <= words
        assert re.search(rf"\b({ADDRESS[found[1]]})\b", part)


@pytest.mark.parametrize("rendered", ALL)
def test_html_runs_nothing_and_loads_the_logo_at_most(rendered: Rendered) -> None:
    assert not re.search(r"<(script|link|iframe|object|form)|url\(|@import|\bon\w+=", rendered.html)
    logo = "https://registrar.example/logo.png?a=1&amp;b=2"
    button = f"https://app.example/verify#id={ID_GAP}&amp;code={CODE_GAP}"
    assert re.findall(r'src="([^"]*)"', rendered.html) == ([logo] if "<img" in rendered.html else [])
    assert {URL} <= set(re.findall(r'href="([^"]*)"', rendered.html)) <= {URL, "mailto:help@registrar.example", button}


@pytest.mark.parametrize("rendered", ALL)
def test_lines_of_the_text_are_short_enough_for_any_reader(rendered: Rendered) -> None:
    assert max(map(len, rendered.text.splitlines())) <= 92


@EVERY_LANGUAGE
def test_name_logo_and_support_stand_in_every_mail_and_the_button_in_that_with_a_code(language: Language) -> None:
    for rendered in (code_mail(language, look=FULL), notice(language, FULL)):
        assert rendered.subject.endswith("Acme & Söhne")
        assert (
            rendered.text.count("help@registrar.example") == rendered.html.count('"mailto:help@registrar.example"') == 1
        )
        assert 'alt="Acme &amp; Söhne"' in rendered.html
        assert "Acme & Söhne, https://registrar.example\n" in rendered.text
    link = f"https://app.example/verify#id={ID_GAP}&code={CODE_GAP}"
    rendered = code_mail(language, look=FULL)
    assert link in rendered.text.split("\n")
    assert f'href="{html.escape(link)}"' in rendered.html


@EVERY_LANGUAGE
def test_what_is_not_set_leaves_nothing_behind(language: Language) -> None:
    for rendered in (code_mail(language), notice(language)):
        for part in rendered:
            assert "None" not in part
            assert "  " not in part.strip() or part == rendered.html
        assert "\n\n\n" not in rendered.text
        assert not re.search(r"<img|mailto:|<a [^>]*inline-block", rendered.html)


@pytest.mark.parametrize("accent", ["#ffffff", "#000000", "#ffcc00", "#1a56c4", "#ff0000", "#7f7f7f"])
def test_any_colour_can_be_read(accent: str) -> None:
    values = {name: value or "" for name, value in Look(URL, accent=accent).values().items()}
    assert contrast(values["link_color"], "#ffffff") >= READABLE
    assert contrast(values["dark_link_color"], "#1a2029") >= READABLE
    assert contrast(values["on_accent"], values["accent"]) >= READABLE
    rendered = code_mail("en", look=replace(FULL, accent=accent))
    assert f"background:{accent};color:{values['on_accent']}" in rendered.html


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


def test_what_is_put_into_html_is_escaped() -> None:
    bad = '"><b>'
    look = Look(f"https://x.test/{bad}", bad, bad, "#000000", bad, bad)
    for rendered in (code_mail("en", look=look), notice("en", look)):
        assert "<b>" not in rendered.html


def test_a_letter_carries_its_language_and_a_message_id_of_the_senders_domain() -> None:
    made = TemplateLetters(ttl=TEN_MINUTES, look=PLAIN, sender="Registrar <no-reply@mail.registrar.example>")
    code = made.code(to="jo@x.test", locale="de-AT", code="012345", message_id="0192.1", registration_id=SOME_ID)
    told = made.notice(to="jo@x.test", locale="sv", message_id="0192.2")
    assert (code.to, code.locale, code.message_id) == ("jo@x.test", "de", "<0192.1@mail.registrar.example>")
    assert (code.rendered, code.code, code.registration_id) == (code_mail("de"), "012345", SOME_ID)
    assert (told.locale, told.message_id) == ("en", "<0192.2@mail.registrar.example>")
    assert (told.rendered, told.code) == (notice("en"), None)


def test_mails_of_one_kind_and_language_share_what_was_rendered_once() -> None:
    made = TemplateLetters(ttl=TEN_MINUTES, look=FULL, sender="no-reply@registrar.example")
    first, second = (
        made.code(to=to, locale="fr", code=code, message_id=code, registration_id=SOME_ID)
        for to, code in (("a@x.test", "111111"), ("b@x.test", "222222"))
    )
    assert first.rendered is second.rendered
