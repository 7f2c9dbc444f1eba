"""Master keys: how what they wrap names them, which of them wraps, and that a missing one is named."""

from __future__ import annotations

import os

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from application.ports import Person, WrongMasterKey
from infrastructure.crypto.keyring import Keyring
from infrastructure.crypto.master_keys import MasterKeys, Unopened, Use, key_id, names
from tests.support.facts import REGISTRATION

FIRST, NEXT, THIRD = b"1" * 32, b"2" * 32, b"3" * 32
FIRST_ID, NEXT_ID, THIRD_ID = key_id(FIRST), key_id(NEXT), key_id(THIRD)
SECRET, BOUND = b"s" * 32, b"to something"


def after_the_first(*keys: bytes, in_use: tuple[bytes, ...] = (NEXT,)) -> MasterKeys:
    """Of a database in which the second key wraps."""
    found = MasterKeys(*keys)
    found.follow(Use(FIRST_ID, NEXT_ID, frozenset(map(key_id, in_use))))
    return found


def test_what_the_first_key_wraps_is_what_releases_without_a_rotation_wrap_and_open() -> None:
    wrapped = MasterKeys(FIRST).wrap(SECRET, BOUND)

    assert len(wrapped) == 60
    assert names(wrapped) is None
    assert AESGCM(FIRST).decrypt(wrapped[:12], wrapped[12:], BOUND) == SECRET


def test_a_next_key_that_is_there_changes_nothing_before_a_rotation() -> None:
    keys = MasterKeys(FIRST, NEXT)
    keys.follow(Use(FIRST_ID, FIRST_ID, frozenset({FIRST_ID})))

    assert keys.wrapping == FIRST_ID
    assert len(keys.wrap(SECRET, BOUND)) == 60


def test_what_a_later_key_wraps_names_it_and_both_are_opened() -> None:
    before = MasterKeys(FIRST).wrap(SECRET, BOUND)
    keys = after_the_first(FIRST, NEXT)

    wrapped = keys.wrap(SECRET, BOUND)

    assert wrapped[:9] == b"\x01" + NEXT_ID
    assert len(wrapped) == 69
    assert keys.unwrap(wrapped, BOUND) == keys.unwrap(before, BOUND) == SECRET
    assert keys.opened(before, BOUND)[0] == FIRST_ID


def test_a_key_that_is_not_here_is_named() -> None:
    before, after = MasterKeys(FIRST).wrap(SECRET, BOUND), after_the_first(FIRST, NEXT).wrap(SECRET, BOUND)

    with pytest.raises(WrongMasterKey, match=FIRST_ID.hex()):
        after_the_first(NEXT).unwrap(before, BOUND)
    with pytest.raises(WrongMasterKey, match=NEXT_ID.hex()):
        MasterKeys(FIRST).unwrap(after, BOUND)
    with pytest.raises(WrongMasterKey, match=NEXT_ID.hex()):
        after_the_first(FIRST).wrap(SECRET, BOUND)
    assert after_the_first(NEXT, in_use=(FIRST, NEXT)).missing == {FIRST_ID}


def test_no_other_key_is_tried_where_the_right_one_is_known() -> None:
    """What one key wraps as another's is damaged; it is not opened by chance."""
    forged = b"\x01" + THIRD_ID + after_the_first(FIRST, NEXT).wrap(SECRET, BOUND)[9:]

    with pytest.raises(Unopened, match=THIRD_ID.hex()):
        after_the_first(FIRST, NEXT, THIRD).unwrap(forged, BOUND)


@pytest.mark.parametrize("length", [0, 1, 9, 11, 12, 59, 61, 68, 70])
def test_what_has_no_form_of_ours_is_not_opened(length: int) -> None:
    with pytest.raises(Unopened):
        MasterKeys(FIRST).unwrap(os.urandom(length), BOUND)


def test_a_secret_is_bound_to_what_it_belongs_to() -> None:
    keys = after_the_first(FIRST, NEXT)

    with pytest.raises(Unopened):
        keys.unwrap(keys.wrap(SECRET, BOUND), b"to something else")


def test_an_id_tells_keys_apart_and_shows_nothing_of_them() -> None:
    assert len({FIRST_ID, NEXT_ID, THIRD_ID}) == 3
    assert {len(one) for one in (FIRST_ID, NEXT_ID)} == {8}
    assert repr(MasterKeys(FIRST, NEXT)) == f"MasterKeys({FIRST_ID.hex()}, {NEXT_ID.hex()})"


def test_a_person_sealed_before_and_during_a_rotation_is_opened_by_both_sides_of_it() -> None:
    ada = Person(email="ada@example.org", name="Ada", password_hash=None)
    before = Keyring(master_key=FIRST, root_secret=b"r" * 32)
    after = Keyring(master_key=after_the_first(FIRST, NEXT), root_secret=b"r" * 32)

    for one in (before, after):
        sealed, key = one.seal(REGISTRATION, ada)
        assert key.wrapped is not None
        assert after.open(REGISTRATION, sealed, key.wrapped) == ada
    assert key.wrapped is not None
    with pytest.raises(WrongMasterKey, match=f"{REGISTRATION} cannot be opened") as refusal:
        before.open(REGISTRATION, sealed, key.wrapped)
    assert ada.email not in str(refusal.value)
