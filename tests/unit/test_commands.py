"""What comes in: addresses, names, passwords, locales and codes; what is refused, and what is never shown."""

# ruff: noqa: RUF001 - look-alikes are what this is about

from __future__ import annotations

import gc
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any
from uuid import UUID

import pytest
from hypothesis import example, settings
from hypothesis import given as for_any
from hypothesis import strategies as st
from hypothesis.provisional import domains
from pydantic import SecretStr, ValidationError

from application.addresses import MAX_LENGTH, canonical_address, forget_domains, masked_address, parse_address
from application.commands import Command, RegisterUser, RequestNewCode, VerifyEmail
from application.passwords import MAX_CHARACTERS, MIN_CHARACTERS, parse_password
from tests.support.facts import REGISTRATION

CANARY = "canary"


def register(**fields: Any) -> RegisterUser:
    return RegisterUser.model_validate({"email": "ada@example.com", "name": "Ada", **fields})


def refused(**fields: Any) -> ValidationError:
    with pytest.raises(ValidationError) as refusal:
        register(**fields)
    return refusal.value


# --- Addresses --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "sent_to"),
    [
        ("ada@example.com", "ada@example.com"),
        ("Ada.Lovelace@Example.COM", "Ada.Lovelace@example.com"),
        ("ada+list@example.com", "ada+list@example.com"),
        ("a.d.a@example.com", "a.d.a@example.com"),
        ("o'brien@example.com", "o'brien@example.com"),
        ("ada!eve@example.com", "ada!eve@example.com"),
        ("-ada@example.com", "-ada@example.com"),
        ("1234567890@example.com", "1234567890@example.com"),
        (f"{'x' * 64}@example.com", f"{'x' * 64}@example.com"),
        ("ada@mail.example.co.uk", "ada@mail.example.co.uk"),
        ("ada@bücher.example", "ada@xn--bcher-kva.example"),
        ("ada@BÜCHER.example", "ada@xn--bcher-kva.example"),
        ("ada@xn--bcher-kva.example", "ada@xn--bcher-kva.example"),
        ("ada@faß.de", "ada@xn--fa-hia.de"),
        ("ada@例え.jp", "ada@xn--r8jz45g.jp"),
        ("ada@e\u0301x.com", "ada@xn--x-9fa.com"),
        ("ada@ｅxample.com", "ada@example.com"),
        ("ada@example。com", "ada@example.com"),
        ("ada%0d%0a@example.com", "ada%0d%0a@example.com"),
    ],
)
def test_an_address_is_sent_to_as_typed_with_its_domain_in_ascii(typed: str, sent_to: str) -> None:
    assert register(email=typed).email == sent_to
    assert sent_to.isascii()


@pytest.mark.parametrize(
    "typed",
    [
        "",
        "@",
        "ada",
        "ada@",
        "@example.com",
        "=?utf-8?q?ada?=@example.com",
        "ada@localhost",
        "ada@example",
        "ada@example.com.",
        "ada@.example.com",
        "ada@example..com",
        "ada@-example.com",
        "ada@ex_ample.com",
        "ada@example.123",
        "ada@1.2.3.4",
        "ada@[127.0.0.1]",
        "ada@[IPv6:::1]",
        "ada@test.invalid",
        "ada@host.local",
        "a..b@example.com",
        ".ada@example.com",
        "ada.@example.com",
        "a@b@example.com",
        "a b@example.com",
        '"a b"@example.com',
        '"ada"@example.com',
        "(comment)ada@example.com",
        "Ada <ada@example.com>",
        "<ada@example.com>",
        "ada@example.com,eve@example.com",
        "ada@example.com;eve@example.com",
        "ada@example.com eve@example.com",
        "ada@example.com\r\nBcc: eve@example.com",
        "ada\r\nBcc: eve@example.com",
        "ada\n@example.com",
        "ada\t@example.com",
        "ada\x00@example.com",
        "ada@example.com\x00",
        "ada\x7f@example.com",
        "ada\u2028@example.com",
        "ada\u200b@example.com",
        "ada@exam\u202eple.com",
        "ada\u202e@example.com",
        "ada\ufeff@example.com",
        "ada\ud800@example.com",
        "ada@xn--zz--.com",
        "ada@xn--.com",
    ],
)
def test_what_is_not_an_address_is_refused(typed: str) -> None:
    refusal = refused(email=typed)

    assert [error["loc"] for error in refusal.errors()] == [("email",)]


@pytest.mark.parametrize(
    "typed",
    [
        "mıke@example.com",  # GitHub 2016: upper() makes it MIKE
        "аda@example.com",  # Cyrillic a
        "ａda@example.com",  # full width
        "a\u212ab@example.com",  # KELVIN SIGN: NFKC and lower() make it k
        "\u0130da@example.com",
        "straße@example.com",
        "ſam@example.com",  # LONG S
        "ﬁona@example.com",  # ligature
        "josé@example.com",
        "jose\u0301@example.com",
        "😀@example.com",
    ],
)
def test_a_local_part_with_other_than_ascii_letters_is_refused(typed: str) -> None:
    refused(email=typed)


@pytest.mark.parametrize(
    "typed",
    [
        f"ada@{'a.' * 130}com",
        f"{'x' * 245}@example.com",
        f"ada@{'ü' * 60}.example",
        f"ada@{'.'.join(['ü' * 40] * 4)}.de",
        "a@" * 1_000 + "example.com",
        "a" * 1_000_000 + "@example.com",
        "ada@" + "a" * 1_000_000,
    ],
    ids=["labels", "local part", "label in ASCII", "whole in ASCII", "at signs", "million before", "million behind"],
)
def test_an_overlong_address_is_refused(typed: str) -> None:
    refused(email=typed)

    with pytest.raises(ValueError, match=r"too long|not a valid mail address"):
        parse_address(typed)


TraceFunction = Callable[[FrameType, str, object], Any]


def work(typed: str) -> int:
    """How many lines of Python it takes to parse or refuse this address, whose domain was never seen before."""
    lines = 0

    def trace(frame: FrameType, event: str, argument: object) -> TraceFunction:
        nonlocal lines
        lines += event == "line"
        return trace

    forget_domains()
    before = sys.gettrace()
    gc.disable()  # what a collection calls (hypothesis times it, for one) is Python as well, and would be counted
    sys.settrace(trace)
    try:
        with suppress(ValueError):
            parse_address(typed)
    finally:
        sys.settrace(before)
        gc.enable()
    return lines


@pytest.mark.parametrize("label", ["a.", "ä.", "a@", "xn--4ca."])
def test_a_long_chain_is_refused_by_its_length_before_anything_looks_at_it(label: str) -> None:
    chains = ["a@" + label * (length // len(label)) + "com" for length in (10**4, 10**5, 10**6)]

    assert {work(chain) for chain in chains} == {work("a" * (MAX_LENGTH + 1))}
    assert work(chains[0]) < 10 < work("a@" + label * 8 + "com")


@pytest.mark.parametrize("pattern", ["a@{}com", "{}a@example.com", "ä{}a@example.com"])
def test_what_an_address_takes_to_parse_grows_no_faster_than_it_is_long(pattern: str) -> None:
    work(pattern.format("a." * 4))  # what is done once in a process
    ten, twenty, thirty = (work(pattern.format("a." * labels)) for labels in (10, 20, 30))

    assert thirty - twenty <= (twenty - ten) * 1.1 + 10


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ada@example.com", "ADA@EXAMPLE.COM"),
        ("ada@example.com", "Ada@example.com"),
        ("ada@bücher.example", "ada@xn--bcher-kva.example"),
        ("ada@bücher.example", "ADA@XN--BCHER-KVA.EXAMPLE"),
        ("ada@bücher.example", "ada@bu\u0308cher.example"),
        ("ada@example.com", "ada@ｅｘａｍｐｌｅ.com"),
        ("ada@kelvin.com", "ada@\u212aelvin.com"),
        ("ada@example.com", "ada@example。com"),
        ("ada@example.com", "\u200bada@example.com "),  # what was pasted with it
        ("ada@straße.example", "ADA@xn--STRAE-OQA.example"),
        ("o'hara+list@example.com", "O'Hara+List@EXAMPLE.com"),
    ],
)
def test_the_same_mailbox_is_claimed_under_one_form(one: str, other: str) -> None:
    assert canonical_address(register(email=one).email) == canonical_address(register(email=other).email)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ada@example.com", "ada@example.org"),
        ("ada@example.com", "ada@mail.example.com"),
        ("ada@example.com", "ada+list@example.com"),
        ("ada@example.com", "a.da@example.com"),
        ("ada@example.com", "ada@exаmple.com"),  # Cyrillic a
        ("ada@fass.de", "ada@faß.de"),
        ("ada@istanbul.com", "ada@\u0130stanbul.com"),
        ("ada@istanbul.com", "ada@ıstanbul.com"),
        ("ada@bucher.example", "ada@bücher.example"),
        ("ada@paypal.com", "ada@paypa1.com"),
        ("ada@gmail.com", "ada@googlemail.com"),  # the same mailbox, as only Google knows
        ("ada1@example.com", "adal@example.com"),
        ("o@example.com", "0@example.com"),
        ("ada@example.com", "ada@ехаmple.com"),  # three Cyrillic letters
        ("ada_l@example.com", "ada-l@example.com"),
    ],
)
def test_different_mailboxes_never_share_a_claim(one: str, other: str) -> None:
    assert canonical_address(parse_address(one)) != canonical_address(parse_address(other))


LOCAL_PARTS = st.from_regex(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]{1,30}(\.[A-Za-z0-9+_-]{1,10}){0,2}", fullmatch=True)


def _parsed(typed: str) -> str | None:
    try:
        return parse_address(typed)
    except ValueError:
        return None


@settings(max_examples=200)
@for_any(st.one_of(st.builds("{}@{}".format, LOCAL_PARTS, domains()), st.emails(), st.text(max_size=60)))
@example("ada@\u0130stanbul.com")
@example("ada@faß.de")
@example("ADA@XN--BCHER-KVA.EXAMPLE")
def test_parsing_and_the_canonical_form_are_stable(typed: str) -> None:
    parsed = _parsed(typed)
    if parsed is None:
        return

    canonical = canonical_address(parsed)

    assert parse_address(parsed) == parsed
    assert canonical_address(canonical) == canonical
    assert canonical_address(parse_address(canonical)) == canonical
    assert canonical.isascii()
    assert not any(character.isspace() for character in parsed)


@settings(max_examples=200)
@for_any(st.text(max_size=300))
def test_whatever_is_typed_is_an_address_or_a_refusal_that_does_not_repeat_it(typed: str) -> None:
    refusals = []
    try:
        parse_address(typed)
    except ValueError as error:
        refusals.append(error)

    for refusal in refusals:
        assert str(refusal) in {"not a valid mail address", "too long: an address has at most 254 characters"}
        assert refusal.__suppress_context__ or refusal.__context__ is None


def test_a_domain_that_looks_like_another_is_never_shown_as_that_one() -> None:
    for email in ("ada@exаmple.com", "ada@ехаmple.com", "ada@раураl.com", "ada@gооgle.com"):
        address = register(email=email).email
        assert address.isascii()
        assert "@xn--" in masked_address(address)


@pytest.mark.parametrize(
    ("address", "masked"),
    [("ada@example.com", "a•••@example.com"), ("a@example.com", "a•••@example.com"), ("Zoë@x.de", "Z•••@x.de")],
)
def test_a_masked_address_shows_one_letter_and_the_domain(address: str, masked: str) -> None:
    assert masked_address(address) == masked


@pytest.mark.parametrize(
    "typed",
    [
        *(" ada@example.com", "ada@example.com ", "\tada@example.com\r\n", "\u3000ada@example.com\u00a0"),
        *("\u200bada@example.com", "\ufeffada@example.com", "\u2068ada@example.com\u2069", "ada@example.com\u00ad"),
        " " * 2000 + "ada@example.com",
    ],
)
def test_space_around_an_address_is_none_of_it(typed: str) -> None:
    assert register(email=typed).email == "ada@example.com"


# --- Names, passwords, locales, codes ---------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("Ada Lovelace", "Ada Lovelace"),
        ("  Ada  ", "Ada"),
        ("Zoe\u0308", "Zoë"),
        ("李小龍", "李小龍"),
        ("O'Brien-Smith, Jr.", "O'Brien-Smith, Jr."),
        ("<script>alert(1)</script>", "<script>alert(1)</script>"),
        ("x" * 200, "x" * 200),
        ("  " + "x" * 200 + "\n", "x" * 200),
        ("नी\u200dला", "नी\u200dला"),  # a joiner makes another word of it
        ("👩\u200d🚀", "👩\u200d🚀"),
        ("\U000309c0", "\U000309c0"),  # not assigned in this Python's Unicode: perhaps a rare family name
        ("7", "7"),
    ],
)
def test_a_name_is_taken_as_people_write_it(typed: str, name: str) -> None:
    assert register(name=typed).name == name


@pytest.mark.parametrize(
    "typed",
    [
        "",
        "   ",
        "\u3000",
        "x" * 201,
        "Ada\nEve",
        "Ada\r\nBcc: x",
        "Ada\x00",
        "Ada\x1b[31m",
        "Ada\u2028Eve",
        "Ada\u2029Eve",
        "\ud800",
    ],
)
def test_a_name_with_control_characters_or_without_any_is_refused(typed: str) -> None:
    assert [error["loc"] for error in refused(name=typed).errors()] == [("name",)]


@pytest.mark.parametrize(
    "typed",
    [
        *("\u200b", "\u200c\u200d", "\u2060", "\ufeff", "\u00ad", "\u180e", "\u2063", "\ufff9"),  # formats
        *("\u202e", "\u2066\u2069", "\u200f", "\u061c"),  # controls of direction
        *("\U000e0041\U000e007f", "\ufe0f", "\U000e0100", "\u180b", "\u034f", "\u0301"),  # tags, selectors, marks
        *("\u3164", "\u115f\u1160", "\uffa0", "\u2800", "\U0001d159", "\u17b4", "\U00016fe4"),  # blank letters
        *("\ufffc", "\uffff", "\ufdd0", "\U0001bca0", "\U0001d173", "\U000e0fff", "\u2065"),
        "\u00a0\u200b \u3164\u3000\u2800",
    ],
)
def test_a_name_of_nothing_that_can_be_seen_is_refused(typed: str) -> None:
    (error,) = refused(name=typed).errors()
    assert (error["loc"], error["msg"]) == (("name",), "Value error, contains nothing that can be seen")


@pytest.mark.parametrize(
    "typed",
    [
        "correct horse battery",
        "x1y2z3w4",
        "пароль и соль",
        ("correct horse battery staple " * 5)[:128],
        "\U0001f40e \U0001f50b \U0001f9f7 \u2714!",
        "        x of spades",
        "Tr0ub4dor&3",
    ],
)
def test_a_password_of_eight_to_128_characters_is_taken(typed: str) -> None:
    password = register(password=SecretStr(typed)).password

    assert password is not None
    assert password.get_secret_value() == typed


@pytest.mark.parametrize(
    "typed",
    [
        "",
        "x1y2z3w",
        ("correct horse battery staple " * 5)[:129],
        "correct horse battery" * 50,
        "\U0001f40e\U0001f50b\u2714" * 43,
        "password",
        "PassWord",
        "ｐａｓｓｗｏｒｄ",  # full width: the same after NFKC
        "12345678",
        "aaaaaaaaaaaa",
        "Registrar",
        "nul\x00 in the middle",
        "\ud800 unpaired surrogate",
        "\ufdfa",  # one character, eighteen after NFKC
        "a\u0301e\u0301i\u0301o\u0301",  # eight typed, four after NFKC
    ],
)
def test_a_password_that_is_too_short_too_long_or_too_common_is_refused(typed: str) -> None:
    refused(password=SecretStr(typed))


@pytest.mark.parametrize(
    "typed", ["ada.lovelace@example.com", "ADA.LOVELACE@example.com", "ada.lovelace", "Ada.Lovelace"]
)
def test_a_password_that_is_the_address_is_refused(typed: str) -> None:
    refused(email="ada.lovelace@example.com", password=SecretStr(typed))


def test_a_password_travels_in_the_one_form_that_is_hashed() -> None:
    password = register(password=SecretStr("Zoe\u0308 und die Ｂatterie")).password

    assert password is not None
    assert password.get_secret_value() == "Zoë und die Batterie"


def test_a_password_is_hashed_in_one_form_however_it_is_typed() -> None:
    assert parse_password("Zoe\u0308 und die Ｂatterie") == parse_password("Zoë und die Batterie")


@settings(max_examples=150)
@for_any(st.text(max_size=160))
def test_a_password_that_is_taken_has_a_length_within_the_limits_and_a_stable_form(typed: str) -> None:
    try:
        password = parse_password(typed)
    except ValueError:
        return

    assert MIN_CHARACTERS <= len(typed) <= MAX_CHARACTERS
    assert len(password) >= MIN_CHARACTERS
    assert password.encode()


@pytest.mark.parametrize(
    "tag",
    [
        *("en", "de-AT", "zh-Hant-TW", "sr-Latn", "EN", "gsw", "es-419", "zh-cmn-Hans-CN", "sl-rozaj-biske-1994"),
        *("de-CH-1996", "de-DE-u-co-phonebk", "de-DE-u-ca-gregory-co-phonebk-nu-latn-hc-h23", "en-a-bbb-x-a-ccc"),
        *("hi-t-en-h0-hybrid", "x-private", "az-Arab-x-AZE-derbend", "i-klingon", "i-default", "en-GB-oed"),
        *("sgn-BE-FR", "zh-min-nan", "art-lojban", "de" + "-abcde" * 25),
    ],
)
def test_a_language_tag_is_taken(tag: str) -> None:
    assert register(locale=tag).locale == tag


@pytest.mark.parametrize(
    ("typed", "tag"), [("de_DE", "de-DE"), ("zh_Hant_TW", "zh-Hant-TW"), (" fr ", "fr"), ("en\n", "en")]
)
def test_a_language_tag_is_taken_as_it_was_meant(typed: str, tag: str) -> None:
    assert register(locale=typed).locale == tag


@pytest.mark.parametrize(
    "tag",
    [
        *("", "e", "english", "en-", "-en", "en--US", "../en", "en-US.UTF-8", "дe", "x" * 36, "x", "i", "x-"),
        *("de-u", "de-u-", "de-1", "de-toolonger", "i-unknown", "de@euro", "*", "en\x00", "de" + "-abcde" * 26),
    ],
)
def test_what_is_not_a_language_tag_is_refused(tag: str) -> None:
    assert [error["loc"] for error in refused(locale=tag).errors()] == [("locale",)]


@pytest.mark.parametrize("code", ["000000", "123456", "999999"])
def test_a_code_has_six_digits(code: str) -> None:
    assert VerifyEmail(registration_id=REGISTRATION, code=SecretStr(code)).code.get_secret_value() == code


@pytest.mark.parametrize(
    "typed",
    [
        *("123 456", "123-456", " 123456\r\n", "1 2 3 4 5 6", "12-34-56", "\t123456", "-123456"),
        *("１２３４５６", "１２３　４５６", "１２３－４５６", "123ー456"),  # the input method of Japanese
        *("١٢٣٤٥٦", "۱۲۳۴۵۶", "१२३४५६", "১২৩৪৫৬", "๑๒๓๔๕๖"),
        *("123\u2010456", "123\u2011456", "123–456", "123—456", "123−456", "123\u2009456", "123\u202f456"),
        *("123\u00a0456", "\ufeff123456", "123\u200b456", "123\u00ad456", "\u202a123456\u202c", "12\u20603456"),
    ],
)
def test_a_code_is_taken_as_people_type_and_paste_it(typed: str) -> None:
    assert VerifyEmail(registration_id=REGISTRATION, code=SecretStr(typed)).code.get_secret_value() == "123456"


@pytest.mark.parametrize(
    "code",
    [
        *("", "12345", "1234567", "12345a", "-12345", "+12345", "+123456", " 12345", "12345 ", "12.345", "123.456"),
        *("²23456", "①23456", "Ⅵ23456", "六23456", "12\x003456", "123456\x1b", "\ud800123456", " ", "1" * 20_000),
    ],
)
def test_what_is_not_six_digits_is_no_code(code: str) -> None:
    with pytest.raises(ValidationError):
        VerifyEmail(registration_id=REGISTRATION, code=SecretStr(code))


@pytest.mark.parametrize(
    "extra", [{"role": "admin"}, {"status": "ACTIVE"}, {"id": "x"}, {"registration_id": str(REGISTRATION)}]
)
def test_fields_that_nobody_asked_for_are_refused(extra: dict[str, str]) -> None:
    assert [error["type"] for error in refused(**extra).errors()] == ["extra_forbidden"]


@pytest.mark.parametrize(
    "fields", [{"email": None}, {"email": 1}, {"email": ["ada@example.com"]}, {"name": 1}, {"locale": None}]
)
def test_fields_of_another_type_are_refused(fields: dict[str, Any]) -> None:
    refused(**fields)


def test_a_command_does_not_change_on_its_way() -> None:
    command = RequestNewCode(registration_id=REGISTRATION)

    with pytest.raises(ValidationError):
        command.registration_id = UUID(int=1)  # type: ignore[misc]


def test_every_command_is_frozen_strict_and_closed() -> None:
    for command in Command.__subclasses__():
        config = command.model_config
        assert (config["frozen"], config["extra"], config["strict"]) == (True, "forbid", True)
        assert command.__doc__


# --- Secrets ----------------------------------------------------------------------------------


def test_no_representation_of_a_command_shows_address_name_password_or_code() -> None:
    commands: list[Command] = [
        register(email=f"{CANARY}@example.com", name=CANARY, password=SecretStr(f"{CANARY} battery")),
        VerifyEmail(registration_id=REGISTRATION, code=SecretStr("271828")),
    ]

    shown = "".join(f"{c!r} {c!s} {c} {[*c.__repr_args__()]} {c.__class__.__rich_repr__}" for c in commands)

    assert CANARY not in shown
    assert "271828" not in shown


@pytest.mark.parametrize(
    "fields",
    [
        {"email": f"{CANARY}@@example.com"},
        {"email": f"{CANARY}@{'x' * 300}"},
        {"email": [CANARY]},
        {"name": f"{CANARY}\n{CANARY}"},
        {"name": CANARY * 100},
        {"password": SecretStr(f"{CANARY}")},
        {"password": SecretStr(CANARY * 50)},
        {"password": SecretStr(CANARY * 500)},
        {"password": SecretStr(f"{CANARY}\x00{CANARY}")},
        {"password": CANARY.encode()},
        {"email": f"{CANARY}@example.com", "password": SecretStr(f"{CANARY}@example.com")},
        {"locale": f"{CANARY}_{CANARY}"},
        {CANARY[:3]: CANARY},
    ],
)
def test_no_error_shows_what_was_typed(fields: dict[str, Any]) -> None:
    refusal = refused(**fields)

    shown = [
        str(refusal),
        repr(refusal),
        "".join(traceback.format_exception(refusal)),
        str(refusal.errors(include_input=False)),
        refusal.json(include_input=False),
    ]
    assert [text for text in shown if CANARY in text] == []


def test_no_error_shows_a_malformed_code() -> None:
    with pytest.raises(ValidationError) as refusal:
        VerifyEmail(registration_id=REGISTRATION, code=SecretStr("27182"))

    assert "27182" not in f"{refusal.value} {refusal.value!r} {refusal.value.errors()} {refusal.value.json()}"
