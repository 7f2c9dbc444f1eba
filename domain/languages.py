"""Which language a mail is written in."""

from __future__ import annotations

import re
from typing import Final, Literal, get_args

Language = Literal["en", "de", "fr", "es", "it", "nl", "pt", "pl"]

LANGUAGES: Final[tuple[Language, ...]] = get_args(Language)
_SUBTAG: Final = re.compile(r"[a-z]{2}(?![^-_])", re.IGNORECASE)


def language_of(locale: str | None) -> Language:
    """The language that we write in for `locale`, a BCP 47 tag: its own, or English where we do not write that."""
    found = _SUBTAG.match(locale) if locale is not None else None
    subtag = found[0].lower() if found is not None else ""
    return subtag if subtag in LANGUAGES else "en"
