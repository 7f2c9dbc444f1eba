"""What mails say, in the reader's language, from the templates.

A mail contains nothing that a registrant typed, apart from the address it goes to: someone who registers another
person's address must not be able to send them a single word (`docs/security.md`, S10 and S13). The subject does not
contain the code, so that a locked screen does not show it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Final
from uuid import UUID

from application.ports import CODE_GAP, Letter, Rendered
from domain.languages import Language, language_of
from domain.mail_outcome import MailKind
from infrastructure.mail.composing import parse_sender
from infrastructure.mail.look import Look
from infrastructure.mail.templating import PARTS, environment

Units = tuple[tuple[int, str, str], ...]

_SYMBOLS: Final[Units] = ((3600, "h", "h"), (60, "min", "min"), (1, "s", "s"))
"""The same in every language, and without a plural, of which Polish has two."""
_WORDS: Final[Mapping[Language, Units]] = {
    "en": ((3600, "hour", "hours"), (60, "minute", "minutes"), (1, "second", "seconds")),
    "de": ((3600, "Stunde", "Stunden"), (60, "Minute", "Minuten"), (1, "Sekunde", "Sekunden")),
}
_TEMPLATES: Final = environment()

Prepared = Mapping[tuple[MailKind, Language], Rendered]


def render(kind: MailKind, language: Language, ttl: timedelta, look: Look) -> Rendered:
    """The mail, from our own templates, with gaps in place of what each mail has of its own."""
    values = variables(kind, language, ttl, look)
    subject = _TEMPLATES.get_template(f"{kind}.{language}.{PARTS[0]}").render(values).strip()
    text, html = (
        _TEMPLATES.get_template(f"{kind}.{language}.{part}").render(values, subject=subject) for part in PARTS[1:]
    )
    return Rendered(subject, text, html)


def variables(kind: MailKind, language: Language, ttl: timedelta, look: Look) -> dict[str, str | None]:
    """What templates of this kind can use, beside the subject."""
    values = {"kind": kind.value, "language": language, **look.values()}
    if kind is MailKind.CODE:
        values |= {"code": CODE_GAP, "ttl": _duration(ttl, language), "verify_url": look.button(language)}
    return values


class TemplateLetters:
    """Implements `application.mail_delivery.Letters`. What mails of one kind and language share is rendered once.

    Args:
        ttl: how long a code is valid, counted from its hand-over to a mail server.
        sender: `MAIL_FROM`; Message-IDs use its domain.
        prepared: what was rendered of somebody's own templates.
    """

    def __init__(self, *, ttl: timedelta, look: Look, sender: str, prepared: Prepared | None = None) -> None:
        self._ttl = ttl
        self._look = look
        self._domain = parse_sender(sender).rpartition("@")[2]
        self._rendered = dict(prepared or {})

    def code(self, *, to: str, locale: str, code: str, message_id: str, registration_id: UUID) -> Letter:
        """`message_id` is the part before the @."""
        language = language_of(locale)
        rendered = self.rendered(MailKind.CODE, language)
        return Letter(to, rendered, f"<{message_id}@{self._domain}>", language, code, registration_id)

    def notice(self, *, to: str, locale: str, message_id: str) -> Letter:
        """`message_id` is the part before the @."""
        language = language_of(locale)
        return Letter(to, self.rendered(MailKind.NOTICE, language), f"<{message_id}@{self._domain}>", language)

    def rendered(self, kind: MailKind, language: Language) -> Rendered:
        found = self._rendered.get((kind, language))
        if found is None:
            found = self._rendered[kind, language] = render(kind, language, self._ttl, self._look)
        return found


def _duration(length: timedelta, language: Language) -> str:
    """In the largest unit that expresses it exactly: "10 minutes", "90 seconds", "10 min"."""
    seconds = max(1, int(length.total_seconds()))
    for size, one, many in _WORDS.get(language, _SYMBOLS):
        if seconds % size == 0:
            count = seconds // size
            return f"{count} {one if count == 1 else many}"
    raise AssertionError("every length is a number of seconds")
