"""Which language a mail is written in."""

from __future__ import annotations

import re
from typing import Literal

Language = Literal["en", "de"]


def language_of(locale: str | None) -> Language:
    """The language that we write in for `locale`, a BCP 47 tag: German, or English for everything else."""
    return "de" if locale is not None and re.match(r"de(?![^-_])", locale, re.IGNORECASE) else "en"
