"""The reason that an operator gives for an act. It stays in the log for ever, so nothing personal belongs in it."""

from __future__ import annotations

import re
import unicodedata
from html import unescape
from typing import Final
from urllib.parse import unquote

LONGEST_REASON: Final = 500
"""Characters."""

_ADDRESS: Final = re.compile(r"[^\s@]@[^\s@]|[^\s@]\s*@\s*[^\s@]+\.[^\s@]")
"""With spaces around the "@" it is one all the same where a domain follows."""


def parse_reason(typed: str | None) -> str | None:
    """The reason in its composed form (NFC), without spaces around it; None if none was given.

    Raises:
        ValueError: it is too long, contains control or invisible format characters, or what looks like a mail address;
            it never repeats what was typed.
    """
    reason = unicodedata.normalize("NFC", typed or "").strip()
    if len(reason) > LONGEST_REASON:
        raise ValueError(f"a reason has at most {LONGEST_REASON} characters")
    # Format characters, too: with some, an auditor would read another sentence than the one that is recorded.
    if any(unicodedata.category(one) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for one in reason):
        raise ValueError("a reason contains no control characters and no line ends")
    # NFKC, for there is an "@" of full width, too; unquoted and unescaped, for what was encoded once more.
    if _ADDRESS.search(unicodedata.normalize("NFKC", unquote(unescape(reason)))):
        raise ValueError("a reason contains no mail address: it stays in the log, also when the person is erased")
    return reason or None
