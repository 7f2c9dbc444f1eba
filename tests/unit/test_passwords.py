"""Which passwords are accepted, and in which words the others are refused."""

# ruff: noqa: RUF001 - look-alikes are the matter here

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import assume, example, settings
from hypothesis import given as for_any
from hypothesis import strategies as st

from application.listed import listed
from application.passwords import MIN_CHARACTERS, OUR_NAME, check_words, folded, normal_password, parse_password

ROOT = Path(__file__).parents[2]
COMMON = sorted(listed("common-passwords"))

TOO_COMMON = "too common: it is among the first ones that an attacker tries"
REPEATS = "too easy to guess: it repeats the same few characters"
SEQUENCES = "too easy to guess: it is made of sequences such as 1234, abcd or qwerty"
OUR_NAME_IN_IT = "too easy to guess: apart from the name of this service, it has fewer than 8 characters"
ADDRESS_IN_IT = "too easy to guess: apart from your mail address, it has fewer than 8 characters"
GUESSABLE = {TOO_COMMON, REPEATS, SEQUENCES, OUR_NAME_IN_IT, ADDRESS_IN_IT}


def why_refused(typed: str, *, email: str = "") -> str | None:
    try:
        parse_password(typed, email=email)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("typed", "reason"),
    [
        *(
            ("password1", TOO_COMMON),
            ("PassWord1", TOO_COMMON),
            ("ｐａｓｓｗｏｒｄ１", TOO_COMMON),
            ("1qaz2wsx", TOO_COMMON),
        ),
        *(("passwort", TOO_COMMON), ("iloveyou2", TOO_COMMON), ("passwordpassword", TOO_COMMON)),
        *(("aaaaaaaaaaaa", REPEATS), ("12341234", REPEATS), ("hahahahah", REPEATS), ("DragonDragon", REPEATS)),
        *(("\ufdfa" * 8, REPEATS), ("\U0001f40e" * 12, REPEATS)),  # the first: 144 characters in NFKC
        *(("12345678", SEQUENCES), ("0987654321", SEQUENCES), ("78901234", SEQUENCES), ("abcdefgh", SEQUENCES)),
        *(("zyxwvuts", SEQUENCES), ("Qwertzuiop", SEQUENCES), ("poiuytrewq", SEQUENCES), ("абвгдежз", SEQUENCES)),
        # "repetitive or sequential characters (e.g., aaaaaa, 1234abcd)": NIST SP 800-63B.
        *(("1234abcd", SEQUENCES), ("111222333", SEQUENCES), ("aaaaaaaab", SEQUENCES), ("abcd1234!", SEQUENCES)),
        *(("registrar!", OUR_NAME_IN_IT), ("My Registrar 1", OUR_NAME_IN_IT)),
        *(("lovelace-1815", ADDRESS_IN_IT), ("Lovelace@Example.com", ADDRESS_IN_IT), ("1 LOVELACE 2", ADDRESS_IN_IT)),
    ],
)
def test_what_is_tried_first_is_refused_with_the_reason(typed: str, reason: str) -> None:
    assert why_refused(typed, email="lovelace@example.com") == reason


@pytest.mark.parametrize(
    "typed",
    [
        *("correct horse battery", "Tr0ub4dor&3", "x1y2z3w4", "Passwort der Zoë", "пароль и соль", "hijacked abcde"),
        *("registrar of deeds, Kansas", "lovelace and her engine", "x@y plays it loud", "correct horse correct horse"),
        "my password is not your password",
    ],
)
def test_what_is_not_is_accepted_without_rules_of_composition(typed: str) -> None:
    assert why_refused(typed, email="lovelace@example.com") is None


def test_a_short_local_part_forbids_no_password_it_happens_to_be_in() -> None:
    assert why_refused("joyful7!", email="jo@example.com") is None


@for_any(st.sampled_from(COMMON))
@settings(max_examples=200, deadline=None)
def test_no_listed_password_is_accepted_however_it_is_written(listed_one: str) -> None:
    assert why_refused(listed_one) in GUESSABLE
    assert why_refused(listed_one.upper()) in GUESSABLE
    assert why_refused("".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in listed_one)) in GUESSABLE


@for_any(st.text(st.sampled_from("abcXYZ019 !ßé"), min_size=1, max_size=7), st.integers(2, 16))
@settings(deadline=None)
def test_a_short_text_is_no_password_however_often_it_is_repeated(text: str, times: int) -> None:
    typed = text * times
    assume(len(typed) >= MIN_CHARACTERS)
    assert why_refused(typed) in GUESSABLE


@for_any(st.text(min_size=MIN_CHARACTERS, max_size=60), st.emails())
@example("ıſK no longer", "k@example.com")  # letters whose other cases are ASCII
@settings(max_examples=150, deadline=None)
def test_what_is_accepted_is_accepted_in_the_form_that_is_hashed(typed: str, email: str) -> None:
    assume(why_refused(typed, email=email) is None)
    password = parse_password(typed, email=email)
    assume(len(password) <= 128)  # NFKC may have made it longer

    assert parse_password(password, email=email) == password == normal_password(typed)


@for_any(st.text(max_size=150), st.emails())
@settings(max_examples=300, deadline=None)
def test_a_refusal_is_one_of_a_few_sentences_none_of_which_repeats_anything(typed: str, email: str) -> None:
    assert why_refused(typed, email=email) in GUESSABLE | {
        None,
        "too short: at least 8 characters",
        "too long: at most 128 characters",
        "contains a NUL character",
        "contains an unpaired surrogate",
    }


@for_any(st.text(max_size=40))
def test_the_form_for_comparing_is_stable(text: str) -> None:
    assert folded(folded(text)) == folded(text)


def test_the_name_that_an_operator_gave_the_service_counts_for_nothing() -> None:
    with pytest.raises(ValueError, match="apart from the name of this service"):
        check_words("Müller & Co. 2024", ("MÜLLER & CO.",), "the name of this service")

    check_words("Müller & Co. of Springfield", ("MÜLLER & CO.",), "the name of this service")
    check_words("Ab and everything", ("Ab",), "the name of this service")


def test_the_list_is_what_it_says_and_can_match() -> None:
    assert len(COMMON) > 15_000
    assert {word for word in COMMON if folded(word) != word or len(word) < MIN_CHARACTERS} == set()
    assert f"{len(COMMON):,} passwords" in (ROOT / "application" / "lists" / "SOURCES.txt").read_text()
    assert folded(OUR_NAME) == OUR_NAME


def test_the_list_is_read_when_the_first_password_comes_and_not_before() -> None:
    asked = (
        "import application.commands as c; from application.listed import listed; print(listed.cache_info().currsize)"
    )
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "0\n"
