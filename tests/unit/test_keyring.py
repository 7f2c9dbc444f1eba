"""Keys and what follows from them: codes, ids, seals, hashes; and the pool that hashes passwords."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import struct
from base64 import b64decode, b64encode
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from threading import Event
from uuid import RFC_4122, UUID

import nacl.exceptions
import nacl.pwhash
import pytest
from hypothesis import given as for_any
from hypothesis import settings
from hypothesis import strategies as st

from application.ports import Overloaded, Person, Unavailable, WrongMasterKey
from infrastructure.crypto import password_hashing
from infrastructure.crypto.keyring import Keyring, Mac
from infrastructure.crypto.password_hashing import MAX_WAITING, PasswordHashing
from tests.support.facts import REGISTRATION, T0

MASTER = b"m" * 32
ROOT = b"r" * 32
KEYRING = Keyring(master_key=MASTER, root_secret=ROOT)
OTHER = UUID(int=REGISTRATION.int + 1)
ADA = Person(email="ada@example.com", name="Ada Lovelace", password_hash="$argon2id$…")


# --- Codes (RFC 4226) -------------------------------------------------------------------------


def hotp(key: bytes, counter: int, digits: int = 6) -> str:
    """RFC 4226, written anew after its section 5.3 and example 5.4, with other means than the keyring's."""
    string = hmac.new(key, struct.pack(">Q", counter), hashlib.sha1).digest()
    offset = string[19] & 0x0F
    bin_code = (string[offset] & 0x7F) << 24 | string[offset + 1] << 16 | string[offset + 2] << 8 | string[offset + 3]
    return str(bin_code % 10**digits).zfill(digits)


RFC_4226_APPENDIX_D = [
    "755224", "287082", "359152", "969429", "338314", "254676", "287922", "162583", "399871", "520489",
]  # fmt: skip


@pytest.mark.parametrize(("counter", "code"), list(enumerate(RFC_4226_APPENDIX_D)))
def test_the_independent_implementation_passes_the_rfcs_test_vectors(counter: int, code: str) -> None:
    assert hotp(b"12345678901234567890", counter) == code


@for_any(st.binary(max_size=64), st.binary(max_size=200))
def test_a_mac_is_that_of_the_standard_library(key: bytes, message: bytes) -> None:
    mac = Mac(key)
    assert [mac(message), mac(message)] == [hmac.digest(key, message, "sha256")] * 2


def personal_code_key(keyring: Keyring, registration_id: UUID) -> bytes:
    return keyring._code_mac(registration_id.bytes)


@settings(max_examples=200)
@for_any(st.uuids(), st.integers(0, 2**63 - 1))
def test_a_code_is_hotp_with_the_serial_as_counter(registration_id: UUID, serial: int) -> None:
    code = KEYRING.code(registration_id, serial)

    assert code == hotp(personal_code_key(KEYRING, registration_id), serial)
    assert re.fullmatch("[0-9]{6}", code)


@pytest.mark.parametrize(("counter", "code"), list(enumerate(RFC_4226_APPENDIX_D)))
def test_the_keyrings_truncation_passes_the_rfcs_test_vectors(
    counter: int, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The personal key is the only step before the RFC's: with the RFC's key in its place, the RFC's codes come."""
    monkeypatch.setattr(KEYRING, "_code_mac", lambda _: b"12345678901234567890")

    assert KEYRING.code(REGISTRATION, counter) == code


def test_the_key_of_codes_is_as_long_as_the_rfc_recommends() -> None:
    assert len(personal_code_key(KEYRING, REGISTRATION)) * 8 >= 160


def test_codes_depend_on_root_secret_registration_and_serial() -> None:
    elsewhere = Keyring(master_key=MASTER, root_secret=b"s" * 32)

    codes = {
        (KEYRING.code(REGISTRATION, 1), KEYRING.code(REGISTRATION, 2), KEYRING.code(REGISTRATION, 3)),
        (KEYRING.code(OTHER, 1), KEYRING.code(OTHER, 2), KEYRING.code(OTHER, 3)),
        (elsewhere.code(REGISTRATION, 1), elsewhere.code(REGISTRATION, 2), elsewhere.code(REGISTRATION, 3)),
    }

    assert len(codes) == 3


def test_a_new_master_key_changes_nothing_that_is_derived() -> None:
    rotated = Keyring(master_key=b"n" * 32, root_secret=ROOT)

    assert rotated.code(REGISTRATION, 1) == KEYRING.code(REGISTRATION, 1)
    assert rotated.claim_id("ada@example.com") == KEYRING.claim_id("ada@example.com")
    assert rotated.message_id(REGISTRATION, 1) == KEYRING.message_id(REGISTRATION, 1)
    assert rotated.fingerprint("a") == KEYRING.fingerprint("a")
    assert rotated.password_salt("ada@example.com") == KEYRING.password_salt("ada@example.com")


def test_codes_are_spread_over_all_six_digits() -> None:
    codes = [KEYRING.code(REGISTRATION, serial) for serial in range(2_000)]

    for place in range(6):
        counts = [sum(code[place] == digit for code in codes) for digit in "0123456789"]
        assert max(counts) < 300
        assert min(counts) > 120


# --- Ids --------------------------------------------------------------------------------------


def assert_uuid(value: UUID, version: int) -> None:
    assert value.version == version
    assert value.variant == RFC_4122


@pytest.mark.parametrize("now", [T0, datetime(1970, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)])
def test_a_new_registrations_id_is_a_uuid_of_version_7_with_its_time_in_front(now: datetime) -> None:
    ids = [KEYRING.new_registration_id(now) for _ in range(500)]

    for value in ids:
        assert_uuid(value, 7)
        assert value.int >> 80 == int(now.timestamp() * 1000)
    assert len(set(ids)) == 500


def test_ids_of_later_registrations_sort_later() -> None:
    ids = [KEYRING.new_registration_id(T0 + timedelta(milliseconds=n)) for n in range(100)]

    assert ids == sorted(ids)


def test_the_74_other_bits_of_an_id_are_all_in_use() -> None:
    ids = [KEYRING.new_registration_id(T0).int for _ in range(200)]

    ever_one, ever_zero = 0, 0
    for value in ids:
        ever_one |= value
        ever_zero |= ~value
    free = (1 << 80) - 1 & ~(0xF << 76) & ~(0b11 << 62)
    assert free.bit_count() == 74
    assert ever_one & ever_zero & free == free


@pytest.mark.parametrize(
    "value",
    [
        KEYRING.claim_id("ada@example.com"),
        KEYRING.claim_id("ada@example.com", duplicate=True),
        KEYRING.registration_id_for("ada@example.com", "key"),
    ],
)
def test_a_derived_id_is_a_uuid_of_version_8(value: UUID) -> None:
    assert_uuid(value, 8)


def test_derived_ids_are_the_same_every_time_and_differ_in_everything_they_follow_from() -> None:
    elsewhere = Keyring(master_key=MASTER, root_secret=b"s" * 32)

    def ids(keyring: Keyring) -> list[UUID]:
        return [
            keyring.claim_id("ada@example.com"),
            keyring.claim_id("ada@example.com", duplicate=True),
            keyring.claim_id("ada@example.org"),
            keyring.claim_id("ada@example.org", duplicate=True),
            keyring.registration_id_for("ada@example.com", "key"),
            keyring.registration_id_for("ada@example.com", "other"),
            keyring.registration_id_for("ada@example.org", "key"),
            keyring.registration_id_for("ada@example.comkey", ""),
        ]

    assert ids(KEYRING) == ids(Keyring(master_key=MASTER, root_secret=ROOT))
    assert len({*ids(KEYRING), *ids(elsewhere)}) == 16


def test_a_message_id_is_the_same_for_every_copy_and_tells_nothing() -> None:
    ids = {KEYRING.message_id(who, serial) for who in (REGISTRATION, OTHER) for serial in (0, 1, 2)}

    assert KEYRING.message_id(REGISTRATION, 1) in ids
    assert len(ids) == 6
    assert all(re.fullmatch("[0-9a-f]{32}", left) for left in ids)
    assert not any(REGISTRATION.hex in left for left in ids)


# --- Fingerprints -----------------------------------------------------------------------------


@settings(max_examples=200)
@for_any(st.lists(st.text(max_size=8), max_size=4), st.lists(st.text(max_size=8), max_size=4))
def test_fingerprints_are_equal_for_equal_parts_only(one: list[str], other: list[str]) -> None:
    assert (KEYRING.fingerprint(*one) == KEYRING.fingerprint(*other)) is (one == other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("ab", "c"), ("a", "bc")),
        (("ab",), ("a", "b")),
        (("", "a"), ("a", "")),
        ((), ("",)),
        (("a\x00\x00\x00\x01b",), ("a", "b")),
        (("é",), ("e\u0301",)),
    ],
)
def test_no_part_of_a_fingerprint_flows_over_into_the_next(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    assert KEYRING.fingerprint(*one) != KEYRING.fingerprint(*other)


def test_a_fingerprint_is_keyed() -> None:
    elsewhere = Keyring(master_key=MASTER, root_secret=b"s" * 32)

    assert KEYRING.fingerprint("a") != elsewhere.fingerprint("a")
    assert re.fullmatch("[0-9a-f]{64}", KEYRING.fingerprint("a"))


# --- Seals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "person",
    [ADA, Person(email="a@b.de", name="李小龍 \U0001f40e", password_hash=None)],
    ids=["with password", "without"],
)
def test_what_is_sealed_can_be_opened(person: Person) -> None:
    sealed, key = KEYRING.seal(REGISTRATION, person)

    assert key.registration_id == REGISTRATION
    assert key.wrapped is not None
    assert KEYRING.open(REGISTRATION, sealed, key.wrapped) == person


def test_a_seal_shows_nothing_and_is_never_the_same_twice() -> None:
    seals = [KEYRING.seal(REGISTRATION, ADA) for _ in range(20)]

    assert len({sealed for sealed, _ in seals}) == 20
    assert len({key.wrapped for _, key in seals}) == 20
    for sealed, _ in seals:
        assert b"ada" not in b64decode(sealed).lower()


def test_another_master_key_opens_nothing() -> None:
    sealed, key = KEYRING.seal(REGISTRATION, ADA)
    assert key.wrapped is not None

    with pytest.raises(WrongMasterKey) as refusal:
        Keyring(master_key=b"n" * 32, root_secret=ROOT).open(REGISTRATION, sealed, key.wrapped)

    assert ADA.email not in str(refusal.value)


def test_a_seal_belongs_to_its_registration() -> None:
    sealed, key = KEYRING.seal(REGISTRATION, ADA)
    assert key.wrapped is not None

    with pytest.raises(WrongMasterKey):
        KEYRING.open(OTHER, sealed, key.wrapped)


def test_one_persons_key_does_not_open_anothers_data() -> None:
    sealed, _ = KEYRING.seal(REGISTRATION, ADA)
    _, key = KEYRING.seal(REGISTRATION, ADA)
    assert key.wrapped is not None

    with pytest.raises(WrongMasterKey):
        KEYRING.open(REGISTRATION, sealed, key.wrapped)


@pytest.mark.parametrize("place", [0, 11, 12, 30, -1])
def test_a_seal_or_key_that_was_touched_is_not_opened(place: int) -> None:
    sealed, key = KEYRING.seal(REGISTRATION, ADA)
    assert key.wrapped is not None

    def touched(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[place] ^= 1
        return bytes(changed)

    with pytest.raises(WrongMasterKey):
        KEYRING.open(REGISTRATION, b64encode(touched(b64decode(sealed))).decode(), key.wrapped)
    with pytest.raises(WrongMasterKey):
        KEYRING.open(REGISTRATION, sealed, touched(key.wrapped))


def test_no_representation_of_a_person_or_a_keyring_shows_secrets() -> None:
    shown = f"{ADA!r} {ADA} {KEYRING!r} {vars(KEYRING).keys()}"

    assert "ada@example.com" not in shown
    assert "Lovelace" not in shown
    assert "argon2id" not in shown


# --- Password hashes --------------------------------------------------------------------------


@pytest.fixture
def hashing() -> Iterator[PasswordHashing]:
    hashing = PasswordHashing(salt_for=KEYRING.password_salt, workers=1)
    yield hashing
    hashing.close()


@pytest.mark.parametrize("password", ["correct horse battery", "пароль и соль", "x" * 128])
async def test_a_password_hash_is_verified_by_an_independent_implementation(
    hashing: PasswordHashing, password: str
) -> None:
    stored = await hashing.hash(password, "ada@example.com")

    assert nacl.pwhash.verify(stored.encode(), password.encode())
    with pytest.raises(nacl.exceptions.InvalidkeyError):
        nacl.pwhash.verify(stored.encode(), f"{password} ".encode())


async def test_a_password_hash_is_argon2id_in_phc_form_with_owasps_parameters(hashing: PasswordHashing) -> None:
    stored = await hashing.hash("correct horse battery", "ada@example.com")

    match = re.fullmatch(r"\$argon2id\$v=19\$m=19456,t=2,p=1\$([A-Za-z0-9+/]{22})\$([A-Za-z0-9+/]{43})", stored)
    assert match is not None
    assert b64decode(match[1] + "==") == KEYRING.password_salt("ada@example.com")


async def test_the_same_password_and_address_give_the_same_hash_and_nothing_else_does(hashing: PasswordHashing) -> None:
    first, again, other_address, other_password = [
        await hashing.hash(password, address)
        for password, address in [
            ("correct horse battery", "ada@example.com"),
            ("correct horse battery", "ada@example.com"),
            ("correct horse battery", "eve@example.com"),
            ("another horse battery", "ada@example.com"),
        ]
    ]

    assert again == first
    assert len({first, other_address, other_password}) == 3
    assert first.split("$")[4] == other_password.split("$")[4] != other_address.split("$")[4]


async def test_beyond_the_queue_a_caller_is_told_at_once(
    hashing: PasswordHashing, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = Event()

    def patiently(password: str, salt: bytes) -> str:
        assert go.wait(10)
        return password

    monkeypatch.setattr(password_hashing, "_hash", patiently)
    callers = [asyncio.ensure_future(hashing.hash(f"password {n}", "ada@example.com")) for n in range(1 + MAX_WAITING)]
    await asyncio.sleep(0)

    with pytest.raises(Overloaded):
        await hashing.hash("one too many", "ada@example.com")

    assert hashing.waiting == MAX_WAITING
    go.set()
    assert await asyncio.gather(*callers) == [f"password {n}" for n in range(1 + MAX_WAITING)]
    assert hashing.waiting == 0


async def test_who_waits_when_hashing_is_closed_is_let_go_and_what_is_being_hashed_is_seen_through(
    hashing: PasswordHashing, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go = Event(), Event()

    def patiently(password: str, salt: bytes) -> str:
        begun.set()
        assert go.wait(10)
        return password

    monkeypatch.setattr(password_hashing, "_hash", patiently)
    callers = [asyncio.ensure_future(hashing.hash("password 0", "ada@example.com"))]
    assert await asyncio.to_thread(begun.wait, 10)
    callers += [asyncio.ensure_future(hashing.hash(f"password {n}", "ada@example.com")) for n in (1, 2)]
    await asyncio.sleep(0)
    hashing.close()
    go.set()

    assert await callers[0] == "password 0"
    assert [type(one) for one in await asyncio.gather(*callers[1:], return_exceptions=True)] == [
        asyncio.CancelledError,
        asyncio.CancelledError,
    ]
    with pytest.raises(Unavailable):
        await hashing.hash("too late", "ada@example.com")


async def test_a_caller_who_leaves_keeps_its_place_until_the_thread_is_done(
    hashing: PasswordHashing, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = Event()

    def patiently(password: str, salt: bytes) -> str:
        assert go.wait(10)
        return password

    monkeypatch.setattr(password_hashing, "_hash", patiently)
    callers = [asyncio.ensure_future(hashing.hash("password", "ada@example.com")) for _ in range(1 + MAX_WAITING)]
    await asyncio.sleep(0)
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)

    with pytest.raises(Overloaded):
        await hashing.hash("password", "ada@example.com")

    go.set()
    assert await _when_free(hashing) == "at last"


async def _when_free(hashing: PasswordHashing) -> str:
    while True:
        try:
            return await hashing.hash("at last", "ada@example.com")
        except Overloaded:
            await asyncio.to_thread(lambda: None)


async def test_hashing_does_not_hold_up_the_event_loop(hashing: PasswordHashing) -> None:
    turns = 0
    under_way = asyncio.ensure_future(hashing.hash("correct horse battery", "ada@example.com"))

    while not under_way.done():
        turns += 1
        await asyncio.sleep(0)

    assert turns > 10
    assert (await under_way).startswith("$argon2id$")
