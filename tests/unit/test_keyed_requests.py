"""Requests with an Idempotency-Key on a log in memory: the first is run, every other one is told what that was told."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from application.answers import Answer
from application.commands import (
    CancelRegistration,
    Command,
    DiscardMail,
    EraseRegistration,
    RegisterUser,
    RequestNewCode,
    RetryMail,
    VerifyEmail,
)
from application.ports import Conflict, Context, Once
from domain.errors import CodeLocked, IdempotencyKeyReused, NotPending, Refused, TooManyRequests, WrongCode
from domain.kept_answer import KeptAnswer
from domain.mail_outcome import CancelReason
from domain.operator_act import OperatorAct
from domain.registration import Registration, Status
from tests.support.facts import CLIENT
from tests.support.memory_log import MemoryLog
from tests.support.scenarios import KEYRING, OPERATOR, InMemoryService, registers, right_code, verifies, wrong_code

KEY = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
OTHER_KEY = "a-key-that-is-quite-another-one"


@pytest.fixture
def house() -> InMemoryService:
    return InMemoryService()


def keyed(command: VerifyEmail | RequestNewCode, key: str = KEY) -> Command:
    return command.model_copy(update={"idempotency_key": key})


def operator(asked: str = "POST /cancel", key: str = KEY) -> Context:
    return replace(OPERATOR, once=Once(key, asked))


async def told(doing: Awaitable[Answer]) -> tuple[Any, ...]:
    """All that a client sees of an answer, and whether it is a repeat."""
    try:
        answer = await doing
    except Refused as refused:
        return refused.code, getattr(refused, "attempts_left", None), refused.replayed
    return answer.subject_id, answer.status, answer.position, answer.replayed


# --- Registering ------------------------------------------------------------------------------


async def test_a_repeat_is_told_what_the_first_was_told_whatever_has_become_of_the_registration(
    house: InMemoryService,
) -> None:
    first = await told(house.handle(registers(key=KEY)))
    registration_id = first[0]

    async def later() -> tuple[Any, ...]:
        before = len(house.log.events)
        again = await told(house.process(house.log).handle(registers(key=KEY), CLIENT))
        assert len(house.log.events) == before
        return again

    repeats = [await later()]
    await house.handle(verifies(registration_id, right_code(registration_id)))
    await house.settle()
    repeats.append(await later())
    await house.handle(EraseRegistration(registration_id=registration_id))
    house.move(timedelta(days=3650))
    repeats.append(await later())

    assert first == (registration_id, Status.PENDING, 2, False)
    assert repeats == [(registration_id, Status.PENDING, 2, True)] * 3


async def test_a_key_that_meets_another_requests_registration_is_told_of_it_for_ever(house: InMemoryService) -> None:
    begun = await house.handle(registers())

    first = await told(house.handle(registers(key=KEY)))
    await house.handle(verifies(begun.subject_id, right_code(begun.subject_id)))
    await house.settle()
    again = await told(house.handle(registers(key=KEY)))

    assert first == (begun.subject_id, Status.PENDING, 4, False)
    assert again == (*first[:3], True)
    assert await told(house.handle(registers(key=KEY, name="Eve"))) == ("idempotency-key-reused", None, False)
    assert len(house.log.all(Registration.UserRegistered)) == 1


async def test_what_registers_without_a_key_reads_and_writes_what_it_always_did(house: InMemoryService) -> None:
    await house.handle(registers())
    await house.handle(registers("eve@example.com", key=KEY))

    assert house.log.loads == 2
    assert house.log.appends == [["UserRegistered", "OtpIssued", "MailDecided"]] * 2


# --- Codes ------------------------------------------------------------------------------------


async def test_a_wrong_code_with_a_key_is_one_try_however_often_it_comes(house: InMemoryService) -> None:
    registration_id = await house.registered()
    guess = keyed(verifies(registration_id, wrong_code(registration_id)))

    answers = [await told(house.process(house.log).handle(guess, CLIENT)) for _ in range(10)]

    assert answers == [("wrong-code", 4, False)] + [("wrong-code", 4, True)] * 9
    assert house.log.history(registration_id) == ["UserRegistered", "OtpIssued", "CodeRejected"]


async def test_the_last_wrong_code_is_told_again_after_it_has_ended_the_registration(house: InMemoryService) -> None:
    registration_id = await house.registered()
    for _ in range(5):
        for _ in range(4):
            await told(house.handle(verifies(registration_id, wrong_code(registration_id))))
        serial = house.registration(registration_id).serial
        last = keyed(verifies(registration_id, wrong_code(registration_id, serial)), f"the key of issue {serial}")
        first = await told(house.handle(last))
        house.move(timedelta(minutes=15))
        await told(house.handle(RequestNewCode(registration_id=registration_id)))

    assert house.registration(registration_id).cancel_reason == "guessed"
    assert await told(house.handle(last)) == (*first[:2], True) == ("wrong-code", 0, True)
    with pytest.raises(NotPending):
        await house.handle(verifies(registration_id, wrong_code(registration_id)))


@pytest.mark.parametrize("first_is_right", [True, False])
async def test_another_code_with_the_same_key_is_refused_and_is_no_try(
    house: InMemoryService, *, first_is_right: bool
) -> None:
    registration_id = await house.registered()
    codes = [right_code(registration_id), wrong_code(registration_id)]
    first, other = codes if first_is_right else reversed(codes)
    await told(house.handle(keyed(verifies(registration_id, first))))
    before = len(house.log.events)

    with pytest.raises(IdempotencyKeyReused):
        await house.handle(keyed(verifies(registration_id, other)))

    assert len(house.log.events) == before


async def test_the_right_code_is_told_again_as_it_was_told_first(house: InMemoryService) -> None:
    registration_id = await house.registered()
    proof = keyed(verifies(registration_id, right_code(registration_id)))

    first = await told(house.handle(proof))
    await house.settle()
    await house.handle(EraseRegistration(registration_id=registration_id))

    assert first == (registration_id, Status.VERIFIED, 6, False)
    assert await told(house.handle(proof)) == (*first[:3], True)
    assert house.log.appends[1] == ["EmailVerified", "EmailClaimed", "AnswerKept"]


async def test_a_key_that_comes_after_the_proof_is_always_told_the_same_and_not_kept(house: InMemoryService) -> None:
    registration_id = await house.registered()
    await house.handle(verifies(registration_id, right_code(registration_id)))
    late = keyed(verifies(registration_id, wrong_code(registration_id)))

    first = await told(house.handle(late))
    await house.settle()

    assert house.registration(registration_id).status is Status.ACTIVE
    assert await told(house.handle(late)) == first == (registration_id, Status.VERIFIED, 4, False)
    assert house.log.all(KeptAnswer.AnswerKept) == []


async def test_of_a_right_code_nothing_is_stored_and_of_a_wrong_one_a_keyed_hash(house: InMemoryService) -> None:
    registration_id = await house.registered()
    right, wrong = right_code(registration_id), wrong_code(registration_id)
    await told(house.handle(keyed(verifies(registration_id, wrong))))
    await told(house.handle(keyed(verifies(registration_id, wrong), OTHER_KEY)))
    await told(house.handle(keyed(verifies(registration_id, right), "the key of the right one")))

    guess, same_guess, proof = (
        kept for kept in house.log.all(KeptAnswer.AnswerKept) if isinstance(kept, KeptAnswer.AnswerKept)
    )

    assert (proof.fingerprint, proof.serial) == ("", 1)
    assert len(guess.fingerprint) == 64
    assert guess.serial is None
    assert guess.fingerprint != same_guess.fingerprint  # nobody sees that it is the same
    states = b"".join(row.state for rows in house.log.rows.values() for row, _ in rows)
    for secret in (
        right,
        wrong,
        KEY,
        OTHER_KEY,
        KEYRING.fingerprint(right),
        KEYRING.fingerprint(str(proof.originator_id), right),
    ):
        assert secret.encode() not in states


async def test_the_right_code_of_a_registration_that_can_never_be_proven_is_not_stored_either(
    house: InMemoryService,
) -> None:
    await house.active()
    duplicate = await house.registered(registers(name="Eve"))
    guess = keyed(verifies(duplicate, right_code(duplicate)))

    assert await told(house.handle(guess)) == ("wrong-code", 4, False)
    assert await told(house.handle(guess)) == ("wrong-code", 4, True)
    (kept,) = house.log.all(KeptAnswer.AnswerKept)
    assert (kept.fingerprint, kept.serial) == ("", 1)  # type: ignore[attr-defined]


async def test_what_recorded_nothing_is_decided_afresh(house: InMemoryService) -> None:
    registration_id = await house.registered()
    for _ in range(5):
        await told(house.handle(verifies(registration_id, wrong_code(registration_id))))
    proof = keyed(verifies(registration_id, right_code(registration_id)))
    with pytest.raises(CodeLocked):
        await house.handle(proof)
    house.move(timedelta(minutes=1))
    await house.handle(RequestNewCode(registration_id=registration_id))

    with pytest.raises(WrongCode):
        await house.handle(proof)


async def test_a_new_code_asked_for_with_a_key_is_told_again_inside_of_the_cooldown(house: InMemoryService) -> None:
    registration_id = await house.registered()
    house.move(timedelta(minutes=1))
    wish = RequestNewCode(registration_id=registration_id)

    first = await told(house.handle(keyed(wish)))
    again = [await told(house.process(house.log).handle(keyed(wish), CLIENT)) for _ in range(10)]

    assert again == [(*first[:3], True)] * 10
    assert house.registration(registration_id).serial == 2
    with pytest.raises(TooManyRequests):
        await house.handle(keyed(wish, OTHER_KEY))


async def test_a_key_is_one_key_within_its_route_and_registration(house: InMemoryService) -> None:
    ada, eve = await house.registered(), await house.registered(registers("eve@example.com"))
    house.move(timedelta(minutes=1))

    for registration_id in (ada, eve):
        assert not (await house.handle(keyed(RequestNewCode(registration_id=registration_id)))).replayed
        guess = verifies(registration_id, wrong_code(registration_id, 2))
        assert await told(house.handle(keyed(guess))) == ("wrong-code", 4, False)


# --- At once ----------------------------------------------------------------------------------

Prepare = Callable[[InMemoryService], Awaitable[tuple[Command, Context]]]


async def _register(_: InMemoryService) -> tuple[Command, Context]:
    return registers(key=KEY), CLIENT


async def _meet(house: InMemoryService) -> tuple[Command, Context]:
    await house.registered()
    return registers(key=KEY), CLIENT


async def _guess(house: InMemoryService) -> tuple[Command, Context]:
    registration_id = await house.registered()
    return keyed(verifies(registration_id, wrong_code(registration_id))), CLIENT


async def _prove(house: InMemoryService) -> tuple[Command, Context]:
    registration_id = await house.registered()
    return keyed(verifies(registration_id, right_code(registration_id))), CLIENT


async def _renew(house: InMemoryService) -> tuple[Command, Context]:
    registration_id = await house.registered()
    house.move(timedelta(minutes=1))
    return keyed(RequestNewCode(registration_id=registration_id)), CLIENT


async def _retry(house: InMemoryService) -> tuple[Command, Context]:
    return RetryMail(registration_id=await house.registered()), operator()


async def _cancel(house: InMemoryService) -> tuple[Command, Context]:
    return CancelRegistration(registration_id=await house.registered(), reason=CancelReason.OPERATOR), operator()


async def _discard(house: InMemoryService) -> tuple[Command, Context]:
    return DiscardMail(registration_id=await house.registered()), operator()


async def _erase(house: InMemoryService) -> tuple[Command, Context]:
    return EraseRegistration(registration_id=await house.active()), operator()


EVERY = [_register, _meet, _guess, _prove, _renew, _retry, _cancel, _discard, _erase]


@pytest.mark.parametrize("prepare", EVERY, ids=lambda prepare: prepare.__name__.strip("_"))
@pytest.mark.parametrize("processes", [1, 50])
async def test_of_fifty_at_once_one_is_run_and_the_others_are_told_what_it_was_told(
    prepare: Prepare, processes: int
) -> None:
    house = InMemoryService()
    command, context = await prepare(house)
    before = len(house.log.appends)
    fleet = [house.process(house.log) for _ in range(processes)]

    answers = await asyncio.gather(*(told(fleet[n % processes].handle(command, context)) for n in range(50)))

    assert len(house.log.appends) == before + 1
    assert len({answer[:-1] for answer in answers}) == 1
    assert Counter(answer[-1] for answer in answers) == {False: 1, True: 49}


@pytest.mark.parametrize("prepare", EVERY, ids=lambda prepare: prepare.__name__.strip("_"))
async def test_another_process_that_was_faster_with_the_same_request_is_believed(prepare: Prepare) -> None:
    """It has read that nobody has this key, and then it is late: what it decides now would be something else."""
    house = InMemoryService()
    command, context = await prepare(house)
    slow = house.process(house.log)

    async def overtaken(known: bool) -> None:
        assert not known
        await told(house.handle(command, context))

    late = await told(slow.handle(command, context, admit=overtaken))

    assert late == await told(house.handle(command, context))
    assert late[-1]


async def test_a_conflict_of_nobodys_making_stays_one(house: InMemoryService) -> None:
    registration_id = await house.registered()

    class Contested(MemoryLog):
        async def append(self, *_: Any, **__: Any) -> int:
            raise Conflict("somebody else was faster")

    log = Contested()
    log.rows = house.log.rows
    with pytest.raises(Conflict):
        await house.process(log).handle(keyed(verifies(registration_id, wrong_code(registration_id))), CLIENT)


# --- Letting in -------------------------------------------------------------------------------


class Door(Exception):
    """Not let in."""


@pytest.mark.parametrize("prepare", EVERY, ids=lambda prepare: prepare.__name__.strip("_"))
async def test_whoever_is_not_let_in_costs_one_read_and_no_hash(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = InMemoryService()
    command, context = await prepare(house)
    process = house.process(house.log)
    monkeypatch.setattr(process._hasher, "hash", None)
    before, heard = house.log.loads, []

    async def door(known: bool) -> None:
        heard.append(known)
        raise Door

    with pytest.raises(Door):
        await process.handle(command, context, admit=door)

    assert heard == [False]
    assert house.log.loads == before + 1


# --- Operators --------------------------------------------------------------------------------


async def test_an_operators_repeat_is_no_second_act(house: InMemoryService) -> None:
    retry = RetryMail(registration_id=await house.registered())

    first = await told(house.handle(retry, operator()))
    again = await told(house.handle(retry, operator()))
    another = await told(house.handle(retry, operator(key=OTHER_KEY)))

    assert again == (*first[:3], True)
    assert not another[-1]
    assert len(house.log.all(OperatorAct.OperatorActed)) == len(house.log.all(Registration.EmailRetryRequested)) == 2


async def test_an_operators_key_is_for_one_request_only(house: InMemoryService) -> None:
    ada, eve = await house.registered(), await house.registered(registers("eve@example.com"))
    await house.handle(RetryMail(registration_id=ada), operator("POST /ada/retry"))

    with pytest.raises(IdempotencyKeyReused):
        await house.handle(EraseRegistration(registration_id=eve), operator("POST /eve/erase"))

    assert not house.registration(eve).erased


async def test_an_operators_act_without_effect_is_told_alike_again_and_is_no_act(house: InMemoryService) -> None:
    registration_id = await house.registered()
    cancel = CancelRegistration(registration_id=registration_id, reason=CancelReason.OPERATOR)
    await house.handle(cancel)

    first = await told(house.handle(cancel, operator()))
    await house.handle(EraseRegistration(registration_id=registration_id))

    assert await told(house.handle(cancel, operator())) == (*first[:3], True)
    assert house.log.all(OperatorAct.OperatorActed) == []


def test_no_representation_shows_a_key() -> None:
    commands = [registers(key=KEY), keyed(verifies(KEYRING.answer_id("x"), "123456"))]
    assert KEY not in repr((commands, operator(KEY)))
    assert isinstance(commands[0], RegisterUser)
