"""What mails say, in the reader's language, from the templates.

A mail contains nothing that a registrant typed, apart from the address it goes to: someone who registers another
person's address must not be able to send them a single word (`docs/security.md`, S10 and S13). The subject does not
contain the code, so that a locked screen does not show it.
"""

from __future__ import annotations

from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from application.ports import CODE_GAP, Letter, Rendered
from domain.languages import Language, language_of
from infrastructure.mail.composing import parse_sender

_SUBJECTS: Final[dict[tuple[str, Language], str]] = {
    ("code", "en"): "Your confirmation code",
    ("code", "de"): "Ihr Bestätigungscode",
    ("notice", "en"): "You already have an account",
    ("notice", "de"): "Sie haben bereits ein Konto",
}
_UNITS: Final[dict[Language, tuple[tuple[int, str, str], ...]]] = {
    "en": ((3600, "hour", "hours"), (60, "minute", "minutes"), (1, "second", "seconds")),
    "de": ((3600, "Stunde", "Stunden"), (60, "Minute", "Minuten"), (1, "Sekunde", "Sekunden")),
}
_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=select_autoescape(["html"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    keep_trailing_newline=True,
    auto_reload=False,
)


def render_code(locale: str | None, ttl: timedelta, public_url: str) -> Rendered:
    """The mail with a code, with gaps in its place; in the text part the code is alone on its line.

    Args:
        ttl: how long the code is valid from now.
        public_url: the address of the service that the registrant used.
    """
    language = language_of(locale)
    return _render("code", language, code=CODE_GAP, ttl=_duration(ttl, language), public_url=public_url)


def render_notice(locale: str | None, public_url: str) -> Rendered:
    """The mail to the holder of an account when somebody registers with their address: nothing has happened."""
    return _render("notice", language_of(locale), public_url=public_url)


class TemplateLetters:
    """Implements `application.mail_delivery.Letters`.

    Args:
        ttl: how long a code is valid, counted from its hand-over to a mail server.
        public_url: the address of the service that registrants use.
        sender: `MAIL_FROM`; Message-IDs use its domain.
    """

    def __init__(self, *, ttl: timedelta, public_url: str, sender: str) -> None:
        self._ttl = ttl
        self._public_url = public_url
        self._domain = parse_sender(sender).rpartition("@")[2]

    def code(self, *, to: str, locale: str, code: str, message_id: str) -> Letter:
        """`message_id` is the part before the @."""
        return self._letter(to, locale, message_id, render_code(locale, self._ttl, self._public_url), code)

    def notice(self, *, to: str, locale: str, message_id: str) -> Letter:
        """`message_id` is the part before the @."""
        return self._letter(to, locale, message_id, render_notice(locale, self._public_url))

    def _letter(self, to: str, locale: str, message_id: str, rendered: Rendered, code: str | None = None) -> Letter:
        return Letter(to, rendered, f"<{message_id}@{self._domain}>", language_of(locale), code)


@lru_cache(maxsize=64)
def _render(kind: str, language: Language, **values: str) -> Rendered:
    """Rendered once and cached: mails of one kind in one language differ only in their code."""
    subject = _SUBJECTS[kind, language]
    text, html = (
        _TEMPLATES.get_template(f"{kind}.{language}.{suffix}").render(language=language, subject=subject, **values)
        for suffix in ("txt", "html")
    )
    return Rendered(subject, text, html)


def _duration(length: timedelta, language: Language) -> str:
    """In the largest unit that expresses it exactly: "10 minutes", "90 seconds"."""
    seconds = max(1, int(length.total_seconds()))
    for size, one, many in _UNITS[language]:
        if seconds % size == 0:
            count = seconds // size
            return f"{count} {one if count == 1 else many}"
    raise AssertionError("every length is a number of seconds")
