"""What an operator may give as a reason: it stays in the log for ever."""

from __future__ import annotations

import pytest

from application.reasons import LONGEST_REASON, parse_reason


@pytest.mark.parametrize(
    ("typed", "reason"),
    [
        (None, None),
        ("", None),
        (" \t", None),
        ("  ticket 4711 ", "ticket 4711"),
        ("100% sure: mailbox full, see #12 / @support", "100% sure: mailbox full, see #12 / @support"),
        ("Schlüssel verloren", "Schlüssel verloren"),
        ("Schlu\u0308ssel", "Schlüssel"),
        ("x" * LONGEST_REASON, "x" * LONGEST_REASON),
        ("-f --yes =1+1", "-f --yes =1+1"),
    ],
)
def test_a_reason_is_kept_as_it_was_meant(typed: str | None, reason: str | None) -> None:
    assert parse_reason(typed) == reason


@pytest.mark.parametrize(
    "typed",
    [
        "x" * (LONGEST_REASON + 1),
        "asked by ada@example.com",
        "<ada@example>",
        "ada\uff20example.com",
        "ada%40example.com",
        "ada@localhost",
        "ada @ example.com",
        "asked by ada @example.com, twice",
        "ada&#64;example.com",
        "ada&commat;example.com",
        "two\nlines",
        "a\tb",
        "bell \x07",
        "nul \x00",
        "\x1b[31mred",
        "turned \u202e round",
        "zero\u200bwidth",
        "line\u2028separator",
        "half \ud800",
    ],
)
def test_what_must_not_stay_for_ever_is_refused_and_not_repeated(typed: str) -> None:
    with pytest.raises(ValueError, match=r"^a reason ") as refused:
        parse_reason(typed)

    assert typed not in str(refused.value)
