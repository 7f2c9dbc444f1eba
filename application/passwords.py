"""Which passwords are accepted (NIST SP 800-63B-4, 3.1.1.2: length and a blocklist, no composition rules)."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from itertools import pairwise
from typing import Final

from application.listed import listed
from application.unfit import Unfit

MIN_CHARACTERS: Final = 8
MAX_CHARACTERS: Final = 128
MAX_BYTES: Final = 1024

OUR_NAME: Final = "registrar"

SHORTEST_WORD: Final = 4
"""Characters of a word that counts for nothing in a password; shorter ones are in too many words by chance."""

_ROWS: Final = (
    "qwertyuiop",
    "asdfghjkl",
    "zxcvbnm",
    "qwertzuiop",
    "yxcvbnm",
    "azertyuiop",
    "qsdfghjklm",
    "wxcvbn",
    "90",
)
"""Of keyboards; and of their digits, which go on with 0."""
_NEXT: Final = frozenset(pair for row in _ROWS for pair in pairwise(row))


def normal_password(typed: str) -> str:
    """The password in NFKC, as it is hashed.

    Raises:
        Unfit: no password of any release: too short, too long, or with something in it that is no character.
    """
    if len(typed) > MAX_CHARACTERS or len(typed.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise Unfit("too-long", f"too long: at most {MAX_CHARACTERS} characters")
    try:
        typed.encode()
    except UnicodeEncodeError:
        raise Unfit("invalid-characters", "contains an unpaired surrogate") from None
    password = unicodedata.normalize("NFKC", typed)
    if "\x00" in password:
        raise Unfit("invalid-characters", "contains a NUL character")
    # Also as typed: NFKC may turn one character into up to eighteen.
    if min(len(typed), len(password)) < MIN_CHARACTERS:
        raise Unfit("too-short", f"too short: at least {MIN_CHARACTERS} characters")
    return password


def parse_password(typed: str, *, email: str = "") -> str:
    """A new password in NFKC, as it is hashed.

    Raises:
        Unfit: too short, too long, or among the first ones that an attacker tries; the message can be shown, and
            repeats nothing of what was typed.
    """
    password = normal_password(typed)
    word = folded(password)
    unit = _repeated(word)
    if min(len(unit), len(_repeated(typed))) < MIN_CHARACTERS:
        raise Unfit("too-easy", "too easy to guess: it repeats the same few characters")
    if _pieces(unit) * 3 <= len(unit):
        raise Unfit("too-easy", "too easy to guess: it is made of sequences such as 1234, abcd or qwerty")
    if unit in listed("common-passwords"):
        raise Unfit("too-common", "too common: it is among the first ones that an attacker tries")
    check_words(password, (OUR_NAME,), "the name of this service")
    check_words(password, (email, email.rpartition("@")[0]), "your mail address")
    return password


def check_words(password: str, words: Iterable[str], called: str) -> None:
    """Refuse a password that is too short without words that anybody knows.

    Args:
        called: what they are, in the message.

    Raises:
        Unfit: as of `parse_password`.
    """
    rest = folded(password)
    for word in sorted(map(folded, words), key=len, reverse=True):
        if len(word) >= SHORTEST_WORD:
            rest = rest.replace(word, "\x00")  # which no password has: what stood around it forms no other word
    if len(rest.replace("\x00", "")) < MIN_CHARACTERS:
        raise Unfit(
            "too-easy", f"too easy to guess: apart from {called}, it has fewer than {MIN_CHARACTERS} characters"
        )


def folded(text: str) -> str:
    """The form in which passwords and words are compared: NFKC, without differences of case."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def _repeated(text: str) -> str:
    """The shortest text that repeats to this one, the last time perhaps not to its end; itself if there is none."""
    for length in range(1, len(text) // 2 + 1):
        if text.startswith(text[length:]):
            return text[:length]
    return text


def _pieces(text: str) -> int:
    """How many things there are to remember in it: a sequence or repeat of three characters or more is one, and so is
    every other character: `1234abcd` has two, `aaaaaaa!` too."""
    pieces = length = 1
    steps: frozenset[int] = frozenset()  # in which of its directions the sequence goes; a pair may stand in two
    for left, right in pairwise(text):
        step = _steps(left, right)
        if step & steps:
            length, steps = length + 1, step & steps
        else:
            length, steps = 2 if step and length <= 2 else 1, step
        # The third of a sequence: that the second was counted is taken back.
        pieces += 0 if length > 3 else -1 if length == 3 else 1
    return pieces


def _steps(left: str, right: str) -> frozenset[int]:
    """Has `right` 0: the same character, 1: the next one, -1: the one before? In the alphabet, or on a keyboard."""
    step = ord(right) - ord(left)
    found = {step} if -1 <= step <= 1 else set()
    if (left, right) in _NEXT:
        found.add(1)
    if (right, left) in _NEXT:
        found.add(-1)
    return frozenset(found)
