"""Hashes that other systems made of passwords: known in the forms in which they are written, checked, and bounded.

The hashes were made by libraries that are not those under test: argon2-cffi 25.1, libxcrypt 4.4 (bcrypt), passlib 1.7.4
with its own scrypt, Django 5.2, Better Auth 1.7.25; or they are the specifications' own.
"""

from __future__ import annotations

import random
from base64 import b64encode

import pytest

from application.ports import Verdict
from infrastructure.crypto.password_hashes import UnknownHash, parse_hash
from infrastructure.crypto.password_hashing import PasswordHashing
from tests.support.scenarios import KEYRING

PASSWORD = b"correct horse battery"


def b64(data: bytes) -> str:
    return b64encode(data).decode().rstrip("=")


def from_rfc_7914(digest: str, *, log: int, lanes: int) -> str:
    """Section 12: password "password", salt "NaCl", r=8."""
    return f"$scrypt$ln={log},r=8,p={lanes}${b64(b'NaCl')}${b64(bytes.fromhex(digest))}"


def better_auths(stored: str) -> str:
    """As docs/importing.md says."""
    salt, key = stored.split(":")
    return f"$scrypt$ln=14,r=16,p=1${b64(salt.encode())}${b64(bytes.fromhex(key))}"


MADE_ELSEWHERE = {
    "argon2id, four lanes": "$argon2id$v=19$m=1024,t=2,p=4$c29tZWJvZHkncyBzYWx0IQ$T2m5gG/1bhf2inSAaGKrxkcx1NuOjZAOjf5ICDzFdjs",
    "argon2id, a short digest": "$argon2id$v=19$m=64,t=1,p=1$c29tZWJvZHkncyBzYWx0IQ$loy9zwifHrHl6gS3IVZqOg",
    "argon2i": "$argon2i$v=19$m=1024,t=2,p=4$c29tZWJvZHkncyBzYWx0IQ$K7DMNsW3XA4iDcytNiOfyhKAfm2T5omgbaLoz+cUBZw",
    "argon2d": "$argon2d$v=19$m=1024,t=2,p=4$c29tZWJvZHkncyBzYWx0IQ$8jxjSvWlzCyO9RRneQmd0jOjVMMXI7nRf4mxD5kd/Ps",
    "argon2id of Django": "argon2$argon2id$v=19$m=102400,t=2,p=8$c2FsdHNhbHRzYWx0$mMTfIvdT602Pwyh5gs06abNyvYn8cBnXplN80dk+bJM",
    "bcrypt 2a": "$2a$05$CCCCCCCCCCCCCCCCCCCCC.4c/Vz//sBM9XkyFmwsCP9HkrjK1U32S",
    "bcrypt 2b": "$2b$05$CCCCCCCCCCCCCCCCCCCCC.4c/Vz//sBM9XkyFmwsCP9HkrjK1U32S",
    "bcrypt 2y": "$2y$05$CCCCCCCCCCCCCCCCCCCCC.4c/Vz//sBM9XkyFmwsCP9HkrjK1U32S",
    "scrypt": "$scrypt$ln=4,r=8,p=1$c29tZWJvZHkncyBzYWx0IQ$ykXBjivF8EbUnUHU6uFIFVTzxbf8Z91IMhBNy+hxfg8",
    "scrypt of Better Auth": better_auths("bbe5d08c016cedd7c0c145b6e266bb30:f9ab0b08038cda71e445c2bb848d98770232905f246b53995eaede76df7c120afe8d9a62667be6e4d69ab556e147062f32a8f1603034b98ffdb51a398d545e43"),
    "PBKDF2-SHA-256 of passlib": "$pbkdf2-sha256$1000$//79.3NhbHQgb2YgaXRzIG93bg$MnVH3eQfgHYN4y7As5a/qqvOfsSvh/eUCon4.4ljuZA",
    "PBKDF2-SHA-512 of passlib": "$pbkdf2-sha512$1000$//79.3NhbHQgb2YgaXRzIG93bg$TYPyxjgajh31qulk4gR0e5h9erkJy8jX.X.aAdhDsjc0ssIhX5x/6yhHLV1h7itqeYgjb8tbK8jHO0BzI/jxvg",
    "PBKDF2-SHA-256 of Django": "pbkdf2_sha256$1000$c2FsdA$yplgVYL14BQn/j5Wpz3yjBxlm4LYibFVDMaE1zP9CFU=",
}  # fmt: skip
"""The last one's salt is the text "c2FsdA", which is the Base64 of "salt"; those of passlib have "." for "+"."""


@pytest.mark.parametrize("written", MADE_ELSEWHERE.values(), ids=MADE_ELSEWHERE)
def test_what_another_library_made_matches_its_password_and_no_other(written: str) -> None:
    known = parse_hash(written)

    assert known.matches(PASSWORD)
    assert not known.matches(PASSWORD.upper())
    assert not known.matches(b"")


@pytest.mark.parametrize(
    ("written", "password"),
    [
        (
            from_rfc_7914(
                "fdbabe1c9d3472007856e7190d01e9fe7c6ad7cbc8237830e77376634b373162"
                "2eaf30d92e22a3886ff109279d9830dac727afb94a83ee6d8360cbdfa2cc0640",
                log=10,
                lanes=16,
            ),
            "password",
        ),
        # "salt" of Django may be any text.
        ("pbkdf2_sha256$1000$naïve$V5fqhqTQRFXbPpZLNw3+3o+KRB6UeEXdi4hxQFecU9Y=", "correct horse battery"),
        ("$2b$04$CCCCCCCCCCCCCCCCCCCCC.mJqjrgSkn25Bltk7VfciqI.kmC3yZMW", "Zoë's passwört"),
    ],
)  # fmt: skip
def test_a_vector_of_the_specification_and_texts_beyond_ascii_match(written: str, password: str) -> None:
    assert parse_hash(written).matches(password.encode())


def test_bcrypt_looks_at_72_bytes_as_it_always_did() -> None:
    known = parse_hash("$2b$04$CCCCCCCCCCCCCCCCCCCCC.ug0A3dTXhy5U.dFjx/qguZ8I4CB77BC")  # of 72 "x" and more

    assert known.matches(b"x" * 72)
    assert known.matches(b"x" * 72 + b"and whatever")
    assert not known.matches(b"x" * 71)


def test_a_nul_does_not_end_a_password_of_bcrypt() -> None:
    known = parse_hash("$2b$04$CCCCCCCCCCCCCCCCCCCCC.AKurti2nSiRoaXd0tyyeWA.1jj9Kto2")  # of "abc"

    assert known.matches(b"abc")
    assert not known.matches(b"abc\x00def")


@pytest.mark.parametrize("last", "./ABCD")
def test_bits_to_spare_in_the_salt_of_bcrypt_count_for_nothing(last: str) -> None:
    # libxcrypt takes "./ABCD" at the end of the salt for ".", and so did whoever made such hashes.
    written = f"$2b$04$CCCCCCCCCCCCCCCCCCCCC{last}AKurti2nSiRoaXd0tyyeWA.1jj9Kto2"

    assert parse_hash(written).matches(b"abc")


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("$argon2id$v=19$m=262145,t=1,p=1$c29tZWJvZHkncyBzYWx0IQ$loy9zwifHrHl6gS3IVZqOg", "memory"),
        ("$argon2id$v=19$m=262144,t=5,p=1$c29tZWJvZHkncyBzYWx0IQ$loy9zwifHrHl6gS3IVZqOg", "passes"),
        ("$argon2id$v=19$m=1024,t=4000000000,p=1$c29tZWJvZHkncyBzYWx0IQ$loy9zwifHrHl6gS3IVZqOg", "passes"),
        ("$argon2id$v=19$m=1024,t=1,p=17$c29tZWJvZHkncyBzYWx0IQ$loy9zwifHrHl6gS3IVZqOg", "lanes"),
        ("$argon2id$v=19$m=128,t=8192,p=16$c29tZWJvZHkncyBzYWx0IQ$loy9zwifHrHl6gS3IVZqOg", "passes"),
        ("$2b$16$CCCCCCCCCCCCCCCCCCCCC.AKurti2nSiRoaXd0tyyeWA.1jj9Kto2", "cost"),
        ("$scrypt$ln=19,r=8,p=1$c29tZWJvZHkncyBzYWx0IQ$ykXBjivF8EbUnUHU6uFIFVTzxbf8Z91IMhBNy+hxfg8", "memory"),
        ("$scrypt$ln=18,r=8,p=5$c29tZWJvZHkncyBzYWx0IQ$ykXBjivF8EbUnUHU6uFIFVTzxbf8Z91IMhBNy+hxfg8", "p"),
        # Below its bounds of memory, and refused by OpenSSL at each check.
        ("$scrypt$ln=1,r=1048576,p=4$c29tZWJvZHkncyBzYWx0IQ$ykXBjivF8EbUnUHU6uFIFVTzxbf8Z91IMhBNy+hxfg8", "r"),
        ("$scrypt$ln=9999999,r=8,p=1$c29tZWJvZHkncyBzYWx0IQ$ykXBjivF8EbUnUHU6uFIFVTzxbf8Z91IMhBNy+hxfg8", "ln"),
        ("pbkdf2_sha256$5000001$c2FsdA$yplgVYL14BQn/j5Wpz3yjBxlm4LYibFVDMaE1zP9CFU=", "rounds"),
    ],
)
def test_what_a_check_would_cost_too_much_is_refused_before_it_is_stored(written: str, reason: str) -> None:
    with pytest.raises(UnknownHash, match=f"^a check would cost too much: its {reason}$"):
        parse_hash(written)


@pytest.mark.parametrize(
    "written",
    [
        *("", "correct horse battery", "5f4dcc3b5aa765d61d8327deb882cf99", "!", "{SSHA}abc", "$1$salt$digest"),
        "$2x$05$CCCCCCCCCCCCCCCCCCCCC.4c/Vz//sBM9XkyFmwsCP9HkrjK1U32S",  # of the faulty crypt_blowfish
        "$2b$03$CCCCCCCCCCCCCCCCCCCCC.4c/Vz//sBM9XkyFmwsCP9HkrjK1U32S",
        "$2b$05$CCCCCCCCCCCCCCCCCCCCC.4c/Vz//sBM9XkyFmwsCP9HkrjK1U32S\n",
        "$argon2id$v=16$m=64,t=1,p=1$c29tZWJvZHkncyBzYWx0IQ$loy9zwifHrHl6gS3IVZqOg",  # version 1.0
        "$argon2id$v=19$m=7,t=1,p=1$c29tZWJvZHkncyBzYWx0IQ$loy9zwifHrHl6gS3IVZqOg",
        "$argon2id$v=19$m=64,t=1,p=1$c2FsdA$loy9zwifHrHl6gS3IVZqOg",  # a salt of four bytes
        "$argon2id$v=19$m=64,t=1,p=1$c29tZWJvZHkncyBzYWx0IQ$loy9",
        "$scrypt$ln=16,r=1,p=1$c29tZWJvZHkncyBzYWx0IQ$ykXBjivF8EbUnUHU6uFIFVTzxbf8Z91IMhBNy+hxfg8",
        "pbkdf2_sha256$1000$c2FsdA$" + "a" * 42 + "==",
        "$pbkdf2-sha512$1000$//79.3NhbHQgb2YgaXRzIG93bg$MnVH3eQfgHYN4y7As5a/qqvOfsSvh/eUCon4.4ljuZA",
        f"pbkdf2_sha256$1000${'s' * 129}$yplgVYL14BQn/j5Wpz3yjBxlm4LYibFVDMaE1zP9CFU=",
    ],
)
def test_what_cannot_be_checked_is_refused_without_repeating_it(written: str) -> None:
    with pytest.raises(UnknownHash) as told:
        parse_hash(written)

    assert not written or written not in str(told.value)


def test_a_damaged_hash_is_refused_or_can_be_checked() -> None:
    """Whatever is accepted costs no error at the login."""
    chance = random.Random(16)  # noqa: S311
    cheap = [one for name, one in MADE_ELSEWHERE.items() if "Django" not in name and "Better Auth" not in name]
    accepted = 0
    for _ in range(400):
        written = list(chance.choice(cheap))
        for _ in range(chance.choice((1, 1, 2))):
            written[chance.randrange(len(written))] = chance.choice("$=,./+aZ019")
        try:
            known = parse_hash("".join(written))
        except UnknownHash:
            continue
        if known.parameters.memory <= 4 << 20 and known.parameters.passes <= 2000:
            known.matches(PASSWORD)
            accepted += 1

    assert accepted > 50


@pytest.mark.parametrize("written", MADE_ELSEWHERE.values(), ids=MADE_ELSEWHERE)
async def test_another_systems_hash_is_checked_in_the_queue_for_those_and_is_to_be_replaced(written: str) -> None:
    hashing = PasswordHashing(salt_for=KEYRING.password_salt, workers=1)

    right, wrong = [await hashing.verify([typed], written) for typed in ("correct horse battery", "wrong")]
    hashing.close()

    assert right == Verdict(matches=True, outdated=True)
    assert wrong == Verdict(matches=False, outdated=True)
