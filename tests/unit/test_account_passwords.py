"""Passwords of accounts: the rules, what is counted of failed checks, and whose turn it is to be hashed."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Iterator
from datetime import timedelta
from threading import Barrier, Event
from typing import Any
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from application.account_passwords import MOST_COUNTED, WITHIN, FailedChecks, forms_of
from application.commands import RecordFailedChecks, RehashPassword, SetPassword
from application.ports import Conflict, Overloaded, Unavailable
from domain.errors import NotAnAccount
from domain.password_checks import is_told
from domain.registration import Registration
from infrastructure.crypto import argon2id, password_hashing
from infrastructure.crypto.password_hashes import UnknownHash, parse_hash
from infrastructure.crypto.password_hashing import MAX_WAITING, PasswordHashing
from tests.support.facts import (
    REGISTRATION,
    T0,
    MovableClock,
    account_activated,
    email_verified,
    eventually,
    given,
    otp_issued,
    password_rehashed,
    password_set,
    personal_data_erased,
    recorded,
    registered,
    registration_cancelled,
)
from tests.support.scenarios import KEYRING, OPERATOR, InMemoryService

ACCOUNT = (registered(), otp_issued(), email_verified(), account_activated())


# --- The account ------------------------------------------------------------------------------


@pytest.mark.parametrize("facts", [ACCOUNT, ACCOUNT[:3]], ids=["active", "verified"])
def test_an_account_gets_another_password(facts: tuple[Any, ...]) -> None:
    registration = given(Registration, *facts)

    registration.set_password(personal_data="sealed anew", now=T0)

    assert recorded(registration) == [password_set()]
    assert registration.personal_data == "sealed anew"


def test_setting_the_same_again_records_nothing() -> None:
    registration = given(Registration, *ACCOUNT, password_set())

    registration.set_password(personal_data="sealed anew", now=T0)
    registration.rehash_password(personal_data="sealed anew", now=T0)

    assert recorded(registration) == []


def test_a_stronger_hash_of_the_same_password_is_no_other_password() -> None:
    registration = given(Registration, *ACCOUNT)

    registration.rehash_password(personal_data="sealed anew", now=T0)

    assert recorded(registration) == [password_rehashed()]


@pytest.mark.parametrize(
    "facts",
    [
        ACCOUNT[:2],
        (*ACCOUNT[:2], registration_cancelled()),
        (*ACCOUNT, registration_cancelled(), personal_data_erased()),
    ],
    ids=["pending", "cancelled", "erased"],
)
def test_what_is_no_account_gets_no_password(facts: tuple[Any, ...]) -> None:
    registration = given(Registration, *facts)

    with pytest.raises(NotAnAccount):
        registration.set_password(personal_data="sealed anew", now=T0)
    with pytest.raises(NotAnAccount):
        registration.rehash_password(personal_data="sealed anew", now=T0)

    assert recorded(registration) == []


# --- Its commands -----------------------------------------------------------------------------


async def test_what_was_made_of_a_former_password_is_not_recorded() -> None:
    service = InMemoryService()
    account_id = await service.active()
    former = service.registration(account_id).personal_data
    first = SetPassword(registration_id=account_id, personal_data="one", replaces=former)
    assert (await service.handle(first, OPERATOR)).recorded
    assert not (await service.handle(first, OPERATOR)).recorded

    for late in (SetPassword, RehashPassword):
        with pytest.raises(Conflict):
            await service.handle(late(registration_id=account_id, personal_data="two", replaces=former), OPERATOR)

    assert service.registration(account_id).personal_data == "one"


async def test_failed_checks_are_recorded_once() -> None:
    service = InMemoryService()
    command = RecordFailedChecks(checks_id=UUID(int=7), registration_id=REGISTRATION, failed=3, since=T0)

    answered = [await service.handle(command, OPERATOR) for _ in range(2)]

    assert [one.recorded for one in answered] == [True, False]


# --- What is counted --------------------------------------------------------------------------


def test_three_are_told_and_then_ever_fewer() -> None:
    assert [failed for failed in range(1, 200) if is_told(failed)] == [3, 6, 12, 24, 48, 96, 192]


def test_failures_are_counted_for_an_hour_and_until_the_password_is_right() -> None:
    clock = MovableClock()
    failed = FailedChecks(clock)
    assert [failed.count(REGISTRATION) for _ in range(2)] == [(1, T0), (2, T0)]

    clock.move(WITHIN - timedelta(seconds=1))
    assert failed.count(REGISTRATION) == (3, T0)
    clock.move(timedelta(seconds=1))
    assert failed.count(REGISTRATION) == (1, T0 + WITHIN)
    failed.forget(REGISTRATION)
    assert failed.count(REGISTRATION) == (1, T0 + WITHIN)


def test_no_more_accounts_are_counted_than_fit() -> None:
    failed = FailedChecks(MovableClock())
    for number in range(MOST_COUNTED + 1):
        failed.count(UUID(int=number))

    assert failed.count(UUID(int=MOST_COUNTED))[0] == 2
    assert failed.count(UUID(int=0))[0] == 1  # forgotten


def test_a_password_is_tried_in_our_form_first_and_as_it_was_typed() -> None:
    assert forms_of("plain") == ["plain"]
    assert forms_of("ﬁne") == ["fine", "ﬁne"]


# --- Whose turn it is -------------------------------------------------------------------------


@pytest.fixture
def hashing() -> Iterator[PasswordHashing]:
    hashing = PasswordHashing(salt_for=KEYRING.password_salt, workers=1)
    yield hashing
    hashing.close()


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What was hashed, in order; nothing before `go` is set, which is the last thing in the list."""
    done: list[str] = []
    go = Event()

    def hashed(password: str, salt: bytes) -> str:
        assert go.wait(10)
        done.append(password)
        return password

    def verified(forms: list[str], known: object) -> str:
        return hashed(forms[0], b"")

    monkeypatch.setattr(password_hashing, "_hash", hashed)
    monkeypatch.setattr(password_hashing, "_verified", verified)
    monkeypatch.setattr(password_hashing, "BATCH", 1)
    hashed.go = go  # type: ignore[attr-defined]
    yield done
    go.set()


async def test_a_flood_of_checks_keeps_nobody_from_registering(
    hashing: PasswordHashing, order: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = [asyncio.ensure_future(hashing.verify([f"check {n}"], None)) for n in range(1 + MAX_WAITING)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await hashing.verify(["one too many"], None)
    registrations = [asyncio.ensure_future(hashing.hash(f"new {n}", "ada@example.com")) for n in range(2)]
    await asyncio.sleep(0)

    password_hashing._hash.go.set()  # type: ignore[attr-defined]
    await asyncio.gather(*checks, *registrations)

    assert [order.index(f"new {n}") for n in range(2)] <= [2, 4]


async def test_a_hash_of_another_system_keeps_at_most_half_of_the_threads(order: list[str]) -> None:
    hashing = PasswordHashing(salt_for=KEYRING.password_salt, workers=2)
    known = parse_hash(OTHER_SYSTEMS)
    assert known.parameters.passes == 9
    others = [asyncio.ensure_future(hashing.verify([f"other {n}"], OTHER_SYSTEMS)) for n in range(4)]
    await asyncio.sleep(0)

    assert hashing._others.at_once == 1
    assert len(hashing._others.waits) >= 3
    password_hashing._hash.go.set()  # type: ignore[attr-defined]
    await asyncio.gather(*others)
    hashing.close()


@pytest.mark.parametrize(("waiting", "shares"), [(4, [4]), (7, [4, 3]), (1, [1])])
async def test_a_thread_that_comes_back_takes_what_waits_while_the_others_are_busy(
    monkeypatch: pytest.MonkeyPatch, waiting: int, shares: list[int]
) -> None:
    hashing = PasswordHashing(salt_for=KEYRING.password_salt, workers=2)
    begun, go = [Event(), Event()], [Event(), Event()]
    answered: list[int] = []

    def hashed(password: str, salt: bytes) -> str:
        if password in {"0", "1"}:
            begun[int(password)].set()
            assert go[int(password)].wait(10)
        return password

    def settle(done: list[Any]) -> None:
        answered.append(len(done))
        settled(done)

    monkeypatch.setattr(password_hashing, "_hash", hashed)
    settled = hashing._settle
    monkeypatch.setattr(hashing, "_settle", settle)
    callers = []
    for number in range(2):  # one for each thread, and both are at work
        callers.append(asyncio.ensure_future(hashing.hash(str(number), "ada@example.com")))
        assert await asyncio.to_thread(begun[number].wait, 10)
    later = [asyncio.ensure_future(hashing.hash(f"later {n}", "ada@example.com")) for n in range(waiting)]
    await asyncio.sleep(0)

    go[0].set()
    await asyncio.gather(*later)
    go[1].set()
    await asyncio.gather(*callers)

    assert answered == [1, *shares, 1]
    hashing.close()


async def test_threads_that_are_free_share_what_comes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hashing = PasswordHashing(salt_for=KEYRING.password_salt, workers=2)
    both = Barrier(2, timeout=10)
    monkeypatch.setattr(password_hashing, "_hash", lambda password, salt: f"{password} {both.wait()}")

    answers = await asyncio.gather(*[hashing.hash("password", "ada@example.com") for _ in range(2)])

    assert set(answers) == {"password 0", "password 1"}
    hashing.close()


async def test_what_keeps_a_hash_from_being_made_is_told_to_who_asks_and_the_next_one_is_made(
    monkeypatch: pytest.MonkeyPatch, hashing: PasswordHashing
) -> None:
    def cannot_be_loaded() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(argon2id, "fastest", cannot_be_loaded)
        with pytest.raises(OSError, match="Too many open files"):
            await asyncio.wait_for(hashing.hash("password", "ada@example.com"), 10)

    assert (await asyncio.wait_for(hashing.hash("password", "ada@example.com"), 10)).startswith("$argon2id$")


@pytest.mark.fault("H9")
async def test_a_thread_that_cannot_be_started_is_told_and_the_next_ones_are_tried(hashing: PasswordHashing) -> None:
    with capture_logs() as logged:
        threading.stack_size(1 << 46)  # which no system has
        try:
            for _ in range(3):
                with pytest.raises(Unavailable, match="no thread can be started"):
                    await asyncio.wait_for(hashing.hash("password", "ada@example.com"), 10)
        finally:
            threading.stack_size(0)
    answers = [asyncio.ensure_future(hashing.hash(f"password {n}", "ada@example.com")) for n in range(5)]

    await asyncio.wait_for(asyncio.gather(*answers), 10)

    assert [one["event"] for one in logged] == ["passwords.thread_not_started"]
    assert hashing.waiting == 0
    assert hashing._working in {0, 1}


@pytest.mark.fault("H9")
async def test_where_no_further_thread_can_be_started_those_that_there_are_hash_what_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hashing = PasswordHashing(salt_for=KEYRING.password_salt, workers=2)
    begun, go = Event(), Event()

    def hashed(password: str, salt: bytes) -> str:
        begun.set()
        assert go.wait(10)
        return password

    monkeypatch.setattr(password_hashing, "_hash", hashed)
    first = asyncio.ensure_future(hashing.hash("one", "ada@example.com"))
    assert await asyncio.to_thread(begun.wait, 10)

    threading.stack_size(1 << 46)
    try:
        with capture_logs() as logged:
            second = asyncio.ensure_future(hashing.hash("two", "ada@example.com"))
            await eventually(lambda: [one["event"] for one in logged] == ["passwords.thread_not_started"])
    finally:
        threading.stack_size(0)
    go.set()

    assert [await asyncio.wait_for(one, 10) for one in (first, second)] == ["one", "two"]
    hashing.close()


OTHER_SYSTEMS = "$argon2id$v=19$m=64,t=9,p=1$c29tZWJvZHkncyBzYWx0IQ$HcTFGoqgn3kgGpdRaatVS33gLabY054LZVPObTPURzQ"


def test_what_is_no_hash_is_told_without_repeating_it() -> None:
    with pytest.raises(UnknownHash) as told:
        parse_hash("a password in clear")

    assert "clear" not in str(told.value)
