"""What people type and paste, read as they meant it: without what cannot be seen around it, or between its digits.

A ValueError never repeats what was typed.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from application.unfit import Unfit

CODE_LENGTH: Final = 6

LOCALE_LENGTH: Final = 156
"""Characters of a language tag; those with extensions are long, and more fit no buffer of ICU's (157 with its end)."""

_INVISIBLE_CATEGORIES: Final = frozenset({"Zs", "Zl", "Zp", "Cc", "Cf", "Cs"})
"""Spaces, controls and format characters: zero-width, bidi controls, soft hyphens, tags (Unicode, table 4-4)."""

_BLANK: Final = re.compile(
    "[\u115f\u1160\u3164\uffa0"  # fillers of Hangul, which count as letters
    "\u2800\U0001d159"  # braille without a dot, a note head that is not drawn: symbols
    "\ufffc"  # the place of an object that was left behind where this was copied
    "\u2065\ufff0-\ufff8\U000e0000-\U000e0fff"  # not assigned, and to be ignored once they are
    "\ufdd0-\ufdef\ufffe\uffff]"  # never to be assigned
)
_MARKS: Final = frozenset({"Mn", "Mc", "Me"})
"""Accents, variation selectors and joiners: to be seen on something only."""

_DASHES: Final = "\u2212\u30fc\uff70"
"""Besides what Unicode calls dashes: the minus sign, and the sound mark on the key of Japanese keyboards that has
`-`."""

_GRANDFATHERED: Final = (
    "en-gb-oed|i-(?:ami|bnn|default|enochian|hak|klingon|lux|mingo|navajo|pwn|tao|tay|tsu)"
    "|sgn-(?:be-fr|be-nl|ch-de)|art-lojban|cel-gaulish|no-(?:bok|nyn)|zh-(?:guoyu|hakka|min(?:-nan)?|xiang)"
)
_PRIVATE: Final = "x(?:-[a-z0-9]{1,8})+"
_LOCALE: Final = re.compile(
    # RFC 5646, 2.1: language, script, region, variants, extensions, private use. Languages of four letters and more
    # are allowed there, and none was ever registered.
    "(?:[a-z]{2,3}(?:-[a-z]{3}){0,3}(?:-[a-z]{4})?(?:-(?:[a-z]{2}|[0-9]{3}))?"
    "(?:-(?:[a-z0-9]{5,8}|[0-9][a-z0-9]{3}))*"
    f"(?:-[a-wyz0-9](?:-[a-z0-9]{{2,8}})+)*(?:-{_PRIVATE})?"
    f"|{_PRIVATE}|{_GRANDFATHERED})",
    re.ASCII | re.IGNORECASE,
)


def trimmed(typed: object) -> object:
    """A text without spaces and invisible characters around it; anything else as it is."""
    if not isinstance(typed, str) or (typed.isascii() and typed.isprintable() and " " not in typed):
        return typed
    start, end = 0, len(typed)
    while start < end and _is_padding(typed[start]):
        start += 1
    while end > start and _is_padding(typed[end - 1]):
        end -= 1
    return typed[start:end]


def parse_name(typed: str) -> str:
    """The name in its composed form (NFC), without spaces around it.

    Invisible characters stay: in many scripts, and in some emoji, the name is another without them.

    Raises:
        Unfit: there is nothing in it to be seen, or it contains control characters.
    """
    if typed.isascii() and typed.isprintable() and (name := typed.strip()):
        return name  # as most are: composed, and with nothing in it that cannot be seen
    name = unicodedata.normalize("NFC", typed).strip()
    if any(unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} for character in name):
        raise Unfit("invalid-characters", "contains control characters")
    if not any(map(_is_visible, name)):
        raise Unfit("invalid-characters", "contains nothing that can be seen")
    return name


def parse_code(typed: str) -> str:
    """The six digits, in ASCII, of a code in any script's digits, with spaces, dashes and invisible characters in it.

    Raises:
        Unfit: something else is in it, or it has another number of digits.
    """
    digits = ""
    for character in typed:
        digit = unicodedata.decimal(character, None)
        if digit is not None:
            digits += str(digit)
        elif not (_is_padding(character) or unicodedata.category(character) == "Pd" or character in _DASHES):
            raise Unfit("invalid-code", "a code has six digits")
        if len(digits) > CODE_LENGTH:
            break
    if len(digits) != CODE_LENGTH:
        raise Unfit("invalid-code", "a code has six digits")
    return digits


def parse_locale(typed: str) -> str:
    """The language tag (BCP 47), with hyphens also where it was written with underscores.

    Raises:
        Unfit: it is not well-formed.
    """
    tag = typed.replace("_", "-")
    if not _LOCALE.fullmatch(tag):
        raise Unfit("invalid-locale", "not a language tag (BCP 47), such as 'en' or 'de-AT'")
    return tag


def _is_padding(character: str) -> bool:
    category = unicodedata.category(character)
    # The controls of ASCII but tab and line ends are no typing: refused, wherever they stand.
    return category in _INVISIBLE_CATEGORIES and (category not in {"Cc", "Cs"} or character in "\t\n\v\f\r\x85")


def _is_visible(character: str) -> bool:
    category = unicodedata.category(character)
    return category not in _INVISIBLE_CATEGORIES and category not in _MARKS and not _BLANK.match(character)
