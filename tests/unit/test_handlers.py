"""The handlers on a log in memory: each command whole, its races, and its repeats."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest

from application.answers import Answer, Handle
from application.commands import (
    ActivateAccount,
    AllowMailbox,
    CancelRegistration,
    Command,
    DiscardMail,
    DiscardStrayMessage,
    EraseRegistration,
    ImportUsers,
    InviteUser,
    KeepAnswer,
    KeepStrayMessage,
    RecordEmailBounced,
    RecordEmailComplained,
    RecordEmailDispatched,
    RecordEmailDispatchFailed,
    RecordFailedChecks,
    RecordImport,
    RecordPersonalDataRead,
    RecordRebuild,
    RegisterUser,
    RehashPassword,
    ReleaseEmail,
    ReplaceStaleCode,
    RequestNewCode,
    RetryMail,
    RetryParkedStream,
    RevokeOtp,
    SetPassword,
    VerifyEmail,
    WithholdEmail,
)
from application.handlers import CONFLICT_RETRIES
from application.keyed_lock import KeyedLock
from application.loading import known_address, loaded
from application.operator_acts import SHOW_REGISTRATION
from application.ports import (
    Checkpoint,
    Conflict,
    Context,
    Entry,
    ForeignRequest,
    Overloaded,
    WrappedKey,
    entries_of,
)
from application.retrying import AT_ONCE
from domain.email_claim import ClaimId, EmailClaim
from domain.errors import (
    AddressTaken,
    CodeLocked,
    IdempotencyKeyReused,
    NotPending,
    Refused,
    TooManyRequests,
    UnknownRegistration,
    WrongCode,
)
from domain.mail_outcome import Bounce, CancelReason, DispatchFailure, HandOver, MailKind
from domain.mailbox import Mailbox, MailboxId
from domain.operator_act import OperatorAct
from domain.recorded import Position
from domain.registration import Registration, Status
from domain.stray_message import StrayMessage
from tests.support.facts import (
    CLIENT,
    DIGEST,
    REGISTRATION,
    STRAY,
    eventually,
    mail_decided,
    otp_issued,
    registered,
    stray_kept,
    stream,
)
from tests.support.memory_log import MemoryLog, MemoryStreams, log_contract
from tests.support.scenarios import (
    KEYRING,
    OPERATOR,
    SAGA,
    WORKER,
    InMemoryService,
    imported,
    registers,
    right_code,
    verifies,
    wrong_code,
)

KEY = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"


class ContestedLog(MemoryLog):
    """Somebody else is faster: appends lose as often as told."""

    def __init__(self) -> None:
        super().__init__()
        self.losses = 0
        self.tries = 0

    async def append(
        self, entries: Sequence[Entry], *, keys: Sequence[WrappedKey] = (), moved: Checkpoint | None = None
    ) -> Position:
        self.tries += 1
        if self.losses > 0:
            self.losses -= 1
            raise Conflict("somebody else was faster")
        return await super().append(entries, keys=keys, moved=moved)


class SlowLog(MemoryLog):
    """The same log, whose answers to a load are slow: what it read is old by the time that it is used."""

    def __init__(self, log: MemoryLog) -> None:
        super().__init__()
        vars(self).update(vars(log))
        self._log = log

    async def load(self, *stream_ids: UUID, **more: Any) -> MemoryStreams:
        streams = await self._log.load(*stream_ids, **more)
        at = len(self._log.appends)
        await eventually(lambda: len(self._log.appends) > at)
        return streams


@pytest.fixture
def house() -> InMemoryService:
    return InMemoryService()


def dispatched(registration_id: UUID, serial: int = 1) -> RecordEmailDispatched:
    return RecordEmailDispatched(
        registration_id=registration_id, serial=serial, hand_over=HandOver("mx:25", attempts=1, reply_code=250)
    )


def failed(registration_id: UUID, serial: int = 1, kind: MailKind = MailKind.CODE) -> RecordEmailDispatchFailed:
    return RecordEmailDispatchFailed(
        registration_id=registration_id,
        serial=serial,
        kind=kind,
        failure=DispatchFailure(
            "greylisted", permanent=False, provider="mx:25", attempts=3, reply_code=451, reply_status="4.7.1"
        ),
    )


def keeps_stray(digest: str = DIGEST) -> KeepStrayMessage:
    return KeepStrayMessage(
        digest=digest,
        reason="not-a-mail-request",
        died_of="rejected",
        size=42,
        content_type="application/json",
        fields=("kind", "serial"),
        other_fields=3,
    )


async def test_the_log_in_memory_keeps_the_promises_of_the_port() -> None:
    await log_contract(MemoryLog())


# --- Registering ------------------------------------------------------------------------------


async def test_registering_records_the_registration_its_code_and_its_mail_in_one_append(
    house: InMemoryService,
) -> None:
    answer = await house.handle(registers())

    assert house.log.appends == [["UserRegistered", "OtpIssued", "MailDecided"]]
    assert answer == Answer(answer.subject_id, Status.PENDING, 2, recorded=True)
    assert house.log.history(KEYRING.claim_id("ada@example.com")) == []
    assert house.log.contexts == [CLIENT] * 3


async def test_what_was_registered_is_sealed_with_the_persons_own_key(house: InMemoryService) -> None:
    registration_id = await house.registered(registers("Ada@Example.com", name="Ada Lovelace"))

    sealed = house.registration(registration_id).personal_data
    person = KEYRING.open(registration_id, sealed, house.log.keys[registration_id])

    assert (person.email, person.name) == ("Ada@example.com", "Ada Lovelace")
    assert person.password_hash is not None
    assert person.password_hash.startswith("$argon2id$")


async def test_nothing_in_the_log_shows_address_name_or_password(house: InMemoryService) -> None:
    await house.active(registers("ada.canary@example.com", name="Canary", password="canary battery"))
    await house.registered(registers("ada.canary@example.com", name="Canary", password="other canary"))

    states = b"".join(row.state for rows in house.log.rows.values() for row, _ in rows)

    assert b"canary" not in states.lower()
    assert b"argon2" not in states
    assert right_code(next(iter(house.log.keys))).encode() not in states


async def test_registering_without_a_password_stores_none(house: InMemoryService) -> None:
    registration_id = await house.registered(registers(password=None))

    sealed = house.registration(registration_id).personal_data
    assert KEYRING.open(registration_id, sealed, house.log.keys[registration_id]).password_hash is None


async def test_the_same_request_again_is_the_same_registration_at_its_present_position(house: InMemoryService) -> None:
    first = await house.handle(registers())
    await house.handle(dispatched(first.subject_id), WORKER)

    again = await house.handle(registers())

    assert again == Answer(first.subject_id, Status.PENDING, 4, recorded=False)
    assert len(house.log.events) == 4
    assert len(house.log.keys) == 1


async def test_addresses_that_differ_in_case_only_are_the_same_address(house: InMemoryService) -> None:
    await house.active(registers("ada@example.com"))

    other = await house.registered(registers("ADA@EXAMPLE.COM"))

    assert house.registration(other).duplicate_of is not None


async def test_another_payload_is_a_registration_of_its_own_and_who_proves_the_address_first_has_it(
    house: InMemoryService,
) -> None:
    first = await house.registered()
    house.move(timedelta(minutes=1))
    second = await house.registered(registers(password="another horse battery"))

    await house.handle(verifies(second, right_code(second)))
    with pytest.raises(WrongCode):
        await house.handle(verifies(first, right_code(first)))

    assert house.log.appends[1:] == [
        ["UserRegistered", "OtpIssued", "MailDecided"],
        ["EmailVerified", "EmailClaimed", "RegistrationSuperseded"],
        ["CodeRejected"],
    ]
    assert house.registration(first).status is Status.PENDING
    assert house.claim().holder == second


async def test_of_two_that_prove_an_address_at_once_one_has_it(house: InMemoryService) -> None:
    """In two processes; both have read that nobody has it before either is recorded."""
    ids = []
    for number, name in enumerate(("Ada", "Eve", "Mallory")):
        house.move(timedelta(minutes=1))
        request = registers(name=name).model_copy(update={"network": f"192.0.2.{number}"})
        ids.append(await house.registered(request))

    results = await asyncio.gather(
        *(house.process(house.log).handle(verifies(one, right_code(one)), CLIENT) for one in ids),
        return_exceptions=True,
    )

    assert Counter(type(result) for result in results) == {Answer: 1, WrongCode: 2}
    assert len(house.log.all(Registration.EmailVerified)) == len(house.log.all(EmailClaim.EmailClaimed)) == 1


async def test_a_registration_begun_while_another_is_proven_is_superseded_once_it_offers_its_code(
    house: InMemoryService,
) -> None:
    first = await house.registered()
    house.move(timedelta(minutes=1))
    slow = house.process(SlowLog(house.log))
    begins = asyncio.create_task(slow.handle(registers(name="Eve"), CLIENT))
    await eventually(lambda: house.log.loads == 2)
    await house.handle(verifies(first, right_code(first)))
    late = (await begins).subject_id

    with pytest.raises(WrongCode):
        await house.handle(verifies(late, right_code(late)))

    assert house.log.appends[-1] == ["RegistrationSuperseded", "CodeRejected"]


async def test_a_taken_address_is_answered_like_a_new_one(house: InMemoryService) -> None:
    owner = await house.active()
    before = len(house.log.events)

    answer = await house.handle(registers(password="another horse battery"))

    assert answer.status is Status.PENDING
    assert answer.position == before + 2
    assert house.log.appends[-1] == house.log.appends[0]
    duplicate = house.registration(answer.subject_id)
    assert duplicate.duplicate_of == owner
    assert house.claim().holder == owner


async def test_a_registration_is_one_read_whatever_the_address_is(house: InMemoryService) -> None:
    """S2. Only who sends a payload again has a registration looked at, which is that one."""
    pending, active = registers(email="pending@example.com"), registers(email="active@example.com")
    erased, limited = registers(email="erased@example.com"), registers(email="limited@example.com")
    await house.registered(pending)
    await house.active(active)
    await house.handle(EraseRegistration(registration_id=await house.active(erased)), OPERATOR)
    for name in ("Eve", "Mallory", "Trent"):
        await house.registered(limited.model_copy(update={"name": name}))
    reads = {}

    for command in (registers(email="new@example.com"), pending, active, erased, limited):
        before = house.log.loads
        await house.handle(command.model_copy(update={"name": "Grace Hopper"}))
        reads[command.email] = house.log.loads - before
    before = house.log.loads
    await house.handle(pending)

    assert set(reads.values()) == {1}
    assert house.log.loads == before + 2


async def test_an_address_whose_claim_looks_like_another_ones_has_only_its_own_registrations() -> None:
    log, mailbox_id = MemoryLog(), MailboxId(uuid4())
    claim, alike = (ClaimId(UUID(f"aaaaaaaa-0000-4000-8000-00000000000{n}")) for n in (1, 2))
    own, other = uuid4(), uuid4()
    decided = mail_decided(own, applicants=[(own, claim), (other, alike)])
    for name, of in ((own, claim), (other, alike)):
        await log.append(entries_of(stream(name, registered(claim_id=of), otp_issued()), CLIENT))
    await log.append(entries_of(stream(mailbox_id, decided), CLIENT))

    streams = await log.load(holders_of=[claim], mailboxes=[mailbox_id])
    address = known_address(streams, claim, streams.get(Mailbox, mailbox_id))

    assert [one.id for one in address.applicants] == [own]


async def test_the_same_payload_finds_what_release_0_1_0_began_and_no_mailbox_remembers(house: InMemoryService) -> None:
    first = await house.registered()
    await house.claimed_at_once(first)
    mailbox_id = house.registration(first).mailbox_id
    assert mailbox_id is not None
    del house.log.rows[mailbox_id]

    assert await house.registered() == first


async def test_a_duplicate_repeats_as_any_registration(house: InMemoryService) -> None:
    await house.active()
    first = await house.registered(registers(name="Eve"))

    again = await house.registered(registers(name="Eve"))
    other = await house.registered(registers(name="Mallory"))

    assert again == first
    assert other != first
    assert house.registration(first).status is Status.PENDING


async def test_the_derived_code_of_a_duplicate_is_wrong(house: InMemoryService) -> None:
    await house.active()
    duplicate = await house.registered(registers(name="Eve"))

    with pytest.raises(WrongCode):
        await house.handle(verifies(duplicate, right_code(duplicate)))

    assert house.log.history(duplicate)[-1] == "CodeRejected"


async def test_a_taken_address_is_revealed_only_where_the_operator_chose_to() -> None:
    house = InMemoryService(reveal_duplicates=True)
    await house.active()
    before = len(house.log.events)

    with pytest.raises(AddressTaken):
        await house.handle(registers(name="Eve"))

    assert len(house.log.events) == before


# --- Idempotency-Key --------------------------------------------------------------------------


async def test_the_same_key_and_payload_meet_the_same_registration_even_once_it_is_an_account(
    house: InMemoryService,
) -> None:
    first = await house.handle(registers(key=KEY))
    await house.handle(verifies(first.subject_id, right_code(first.subject_id)))
    await house.settle()
    before = len(house.log.events)

    again = await house.handle(registers(key=KEY))

    assert (again.subject_id, again.status) == (first.subject_id, Status.PENDING)
    assert len(house.log.events) == before


async def test_the_same_key_with_another_payload_is_refused(house: InMemoryService) -> None:
    await house.handle(registers(key=KEY))

    with pytest.raises(IdempotencyKeyReused):
        await house.handlers.handle(registers(name="Eve", key=KEY), CLIENT)

    assert len(house.log.appends) == 1


async def test_the_same_key_for_another_address_is_another_request(house: InMemoryService) -> None:
    first = await house.handle(registers(key=KEY))

    other = await house.handlers.handle(registers("eve@example.com", key=KEY), CLIENT)

    assert other.subject_id != first.subject_id


async def test_fifty_simultaneous_requests_with_one_key_are_one_registration_across_processes(
    house: InMemoryService,
) -> None:
    processes = [house.process(house.log) for _ in range(4)]

    answers = await asyncio.gather(*(processes[n % 4].handle(registers(key=KEY), CLIENT) for n in range(50)))

    assert len({answer.subject_id for answer in answers}) == 1
    assert len(house.log.events) == 3


async def test_a_key_that_two_payloads_race_for_belongs_to_one_of_them(house: InMemoryService) -> None:
    results = await asyncio.gather(
        *(house.process(house.log).handle(registers(name=name, key=KEY), CLIENT) for name in ("Ada", "Eve")),
        return_exceptions=True,
    )

    assert Counter(type(result) for result in results) == {Answer: 1, IdempotencyKeyReused: 1}
    assert len(house.log.appends) == 1


# --- Crowds -----------------------------------------------------------------------------------


async def test_two_hundred_simultaneous_equal_requests_are_one_registration(house: InMemoryService) -> None:
    answers = await asyncio.gather(*(house.handle(registers()) for _ in range(200)))

    assert len({answer.subject_id for answer in answers}) == 1
    assert house.log.appends == [["UserRegistered", "OtpIssued", "MailDecided"]]


async def test_two_hundred_simultaneous_requests_of_different_people_are_one_mail_and_no_error(
    house: InMemoryService,
) -> None:
    answers = await asyncio.gather(*(house.handle(registers(name=f"Person {n}")) for n in range(200)))

    begun = [house.registration(answer.subject_id) for answer in answers]
    assert Counter((one.status, one.withholds_mail(1)) for one in begun) == {
        (Status.PENDING, False): 1,
        (Status.PENDING, True): 199,
    }


async def test_in_a_crowd_of_strangers_the_one_who_reads_the_mail_has_the_address(house: InMemoryService) -> None:
    """They begin in any order and number; the person asks for a new code until one is sent."""
    strangers = [
        registers(name=f"Stranger {n}").model_copy(update={"network": f"198.51.100.{n % 7}"}) for n in range(100)
    ]
    person = registers(name="Ada").model_copy(update={"network": "192.0.2.1"})
    requests = [*strangers[:50], person, *strangers[50:]]
    answers = await asyncio.gather(*(house.handle(one) for one in requests))
    own = answers[50].subject_id
    while house.registration(own).withholds_mail(house.registration(own).serial):
        house.move(timedelta(hours=24))
        await house.handle(RequestNewCode(registration_id=own, network="192.0.2.1"))

    await house.handle(verifies(own, right_code(own, house.registration(own).serial)))

    assert house.claim().holder == own
    for answer in answers[:50]:
        with pytest.raises(WrongCode):
            await house.handle(verifies(answer.subject_id, right_code(answer.subject_id)))


async def test_two_hundred_simultaneous_wrong_guesses_are_five_tries(house: InMemoryService) -> None:
    registration_id = await house.registered()
    guess = verifies(registration_id, wrong_code(registration_id))

    results = await asyncio.gather(*(house.handle(guess) for _ in range(200)), return_exceptions=True)

    assert Counter(type(result) for result in results) == {WrongCode: 5, CodeLocked: 195}
    assert [r.attempts_left for r in results if isinstance(r, WrongCode)] == [4, 3, 2, 1, 0]
    assert len(house.log.all(Registration.CodeRejected)) == 5
    assert len(house.log.all(Registration.CodeLocked)) == 1


async def test_the_right_code_is_refused_after_five_wrong_ones(house: InMemoryService) -> None:
    registration_id = await house.registered()
    for _ in range(5):
        with pytest.raises(WrongCode):
            await house.handle(verifies(registration_id, wrong_code(registration_id)))

    with pytest.raises(CodeLocked):
        await house.handle(verifies(registration_id, right_code(registration_id)))

    assert house.log.all(Registration.EmailVerified) == []


async def test_wrong_guesses_from_many_processes_never_get_a_sixth_try(house: InMemoryService) -> None:
    """Without turns between them: whoever loses the race more often than it is retried learns nothing of the code."""
    registration_id = await house.registered()
    guess = verifies(registration_id, wrong_code(registration_id))

    results = await asyncio.gather(
        *(house.process(house.log).handle(guess, CLIENT) for _ in range(200)), return_exceptions=True
    )

    outcomes = Counter(type(result) for result in results)
    assert set(outcomes) <= {WrongCode, CodeLocked, Conflict}
    assert outcomes[WrongCode] == len(house.log.all(Registration.CodeRejected)) <= 5


async def test_fifty_simultaneous_right_codes_are_one_proof(house: InMemoryService) -> None:
    registration_id = await house.registered()
    proof = verifies(registration_id, right_code(registration_id))

    answers = await asyncio.gather(*(house.handle(proof) for _ in range(50)))

    assert {(answer.subject_id, answer.status) for answer in answers} == {(registration_id, Status.VERIFIED)}
    assert sum(answer.recorded for answer in answers) == 1
    assert answers[0].status is Status.VERIFIED
    assert len(house.log.all(Registration.EmailVerified)) == 1


async def test_of_a_right_code_among_wrong_ones_in_a_crowd_the_order_of_arrival_decides(house: InMemoryService) -> None:
    registration_id = await house.registered()
    offers = [wrong_code(registration_id)] * 3 + [right_code(registration_id)] + [wrong_code(registration_id)] * 50

    results = await asyncio.gather(
        *(house.handle(verifies(registration_id, offer)) for offer in offers), return_exceptions=True
    )

    assert Counter(type(result) for result in results) == {WrongCode: 3, Answer: 51}
    assert house.registration(registration_id).status is Status.VERIFIED


# --- Every handler ----------------------------------------------------------------------------

Prepare = Callable[[InMemoryService], Awaitable[Command]]


async def _register(house: InMemoryService) -> Command:
    return registers()


async def _verify(house: InMemoryService) -> Command:
    registration_id = await house.registered()
    return verifies(registration_id, right_code(registration_id))


async def _new_code(house: InMemoryService) -> Command:
    registration_id = await house.registered()
    house.move(timedelta(minutes=1))
    return RequestNewCode(registration_id=registration_id)


async def _dispatched(house: InMemoryService) -> Command:
    return dispatched(await house.registered())


async def _failed(house: InMemoryService) -> Command:
    return failed(await house.registered())


async def _withheld(house: InMemoryService) -> Command:
    return WithholdEmail(registration_id=await house.registered(), serial=1)


async def _came_back(house: InMemoryService) -> Command:
    registration_id = await house.registered()
    accepted = HandOver("mail.example:25", 1, 250)
    await house.handle(RecordEmailDispatched(registration_id=registration_id, serial=1, hand_over=accepted))
    bounce = Bounce("mailbox-unknown", permanent=True, reply_status="5.1.1", reported_by="dsn")
    return RecordEmailBounced(registration_id=registration_id, serial=1, bounce=bounce)


async def _unwanted(house: InMemoryService) -> Command:
    return RecordEmailComplained(registration_id=await house.registered(), serial=1, reported_by="ses")


async def _stale(house: InMemoryService) -> Command:
    return ReplaceStaleCode(registration_id=await house.registered(), serial=1)


async def _activate(house: InMemoryService) -> Command:
    registration_id = await house.registered()
    await house.handle(verifies(registration_id, right_code(registration_id)))
    return ActivateAccount(registration_id=registration_id)


async def _revoke(house: InMemoryService) -> Command:
    return RevokeOtp(registration_id=await house.registered())


async def _cancel(house: InMemoryService) -> Command:
    return CancelRegistration(registration_id=await house.registered(), reason=CancelReason.OPERATOR)


async def _release(house: InMemoryService) -> Command:
    registration_id = await house.registered()
    await house.claimed_at_once(registration_id)
    await house.handle(CancelRegistration(registration_id=registration_id, reason=CancelReason.EXPIRED))
    return ReleaseEmail(registration_id=registration_id, claim_id=house.registration(registration_id).claim_id)


async def _erase(house: InMemoryService) -> Command:
    return EraseRegistration(registration_id=await house.active())


async def _retry(house: InMemoryService) -> Command:
    return RetryMail(registration_id=await house.registered())


async def _discard(house: InMemoryService) -> Command:
    return DiscardMail(registration_id=await house.registered())


async def _allow(house: InMemoryService) -> Command:
    unwanted = await house.handle(await _unwanted(house))
    return AllowMailbox(registration_id=unwanted.subject_id)


async def _keep_stray(house: InMemoryService) -> Command:
    return keeps_stray()


async def _discard_stray(house: InMemoryService) -> Command:
    return DiscardStrayMessage(message_id=(await house.handle(keeps_stray())).subject_id)


def _replaces_password(command: type[SetPassword | RehashPassword]) -> Prepare:
    async def prepare(house: InMemoryService) -> Command:
        account_id = await house.active()
        former = house.registration(account_id).personal_data
        return command(registration_id=account_id, personal_data="sealed anew", replaces=former)

    return prepare


async def _failed_checks(house: InMemoryService) -> Command:
    return RecordFailedChecks(
        checks_id=UUID(int=11), registration_id=await house.active(), failed=3, since=house.clock()
    )


REBUILD = uuid4()


async def _rebuild(house: InMemoryService) -> Command:
    return RecordRebuild(rebuild_id=REBUILD, read_model="mail", act="begun")


async def _retry_parked(_: InMemoryService) -> Command:
    return RetryParkedStream(retry_id=UUID(int=7), follower="accounts", stream_id=STRAY)


async def _read(house: InMemoryService) -> Command:
    return RecordPersonalDataRead(
        read_id=UUID(int=8), act=SHOW_REGISTRATION, registration_ids=(await house.registered(), UUID(int=9))
    )


async def _keep_answer(_: InMemoryService) -> Command:
    return KeepAnswer(answer_id=UUID(int=10), request="retry-mails", fingerprint="f", details=("48", "2"))


IMPORT = uuid4()


async def _import(_: InMemoryService) -> Command:
    return ImportUsers(
        import_id=IMPORT, users=(imported("ada@example.com"), imported("bob@example.com", verified=False))
    )


async def _invite(house: InMemoryService) -> Command:
    waiting = imported("bob@example.com", verified=False)
    await house.handle(ImportUsers(import_id=IMPORT, users=(waiting,)))
    return InviteUser(import_id=IMPORT, user=waiting)


async def _begin_import(_: InMemoryService) -> Command:
    return RecordImport(import_id=IMPORT)


EVERY = {
    RegisterUser: (_register, ["UserRegistered", "OtpIssued", "MailDecided"]),
    VerifyEmail: (_verify, ["EmailVerified", "EmailClaimed"]),
    RequestNewCode: (_new_code, ["OtpIssued", "MailDecided"]),
    RecordEmailDispatched: (_dispatched, ["EmailDispatched"]),
    RecordEmailDispatchFailed: (_failed, ["EmailDispatchFailed"]),
    WithholdEmail: (_withheld, ["EmailWithheld"]),
    RecordEmailBounced: (_came_back, ["EmailBounced"]),
    RecordEmailComplained: (_unwanted, ["EmailComplained", "MailDecided"]),
    ReplaceStaleCode: (_stale, ["OtpIssued"]),
    ActivateAccount: (_activate, ["AccountActivated"]),
    RevokeOtp: (_revoke, ["OtpRevoked"]),
    CancelRegistration: (_cancel, ["RegistrationCancelled"]),
    ReleaseEmail: (_release, ["EmailReleased"]),
    EraseRegistration: (_erase, ["RegistrationCancelled", "PersonalDataErased", "EmailReleased"]),
    SetPassword: (_replaces_password(SetPassword), ["PasswordSet"]),
    RehashPassword: (_replaces_password(RehashPassword), ["PasswordRehashed"]),
    RecordFailedChecks: (_failed_checks, ["ChecksFailed"]),
    RetryMail: (_retry, ["EmailRetryRequested"]),
    DiscardMail: (_discard, ["EmailDiscarded"]),
    AllowMailbox: (_allow, ["MailDecided"]),
    KeepStrayMessage: (_keep_stray, ["StrayMessageKept"]),
    DiscardStrayMessage: (_discard_stray, ["StrayMessageDiscarded"]),
    RecordRebuild: (_rebuild, ["RebuildBegun"]),
    RetryParkedStream: (_retry_parked, ["ParkedRetryAsked"]),
    RecordPersonalDataRead: (_read, ["PersonalDataRead", "PersonalDataRead"]),
    ImportUsers: (_import, ["UserImported", "EmailClaimed", "UserImported"]),
    InviteUser: (_invite, ["UserInvited", "OtpIssued", "MailDecided"]),
    RecordImport: (_begin_import, ["ImportBegun"]),
    KeepAnswer: (_keep_answer, ["AnswerKept"]),
}
BY_NAME = [pytest.param(*row, id=command.__name__) for command, row in EVERY.items()]


def test_every_command_has_a_row_in_the_table() -> None:
    commands = set(Command.__subclasses__())

    handled = set(InMemoryService().handlers._table)

    assert handled == commands == set(EVERY)


@pytest.mark.parametrize(("prepare", "events"), BY_NAME)
async def test_a_command_records_its_effect_in_one_append(prepare: Prepare, events: list[str]) -> None:
    house = InMemoryService()
    command = await prepare(house)
    before = len(house.log.appends)

    answer = await house.handle(command, WORKER)

    assert house.log.appends[before:] == [events]
    assert answer.recorded
    of_the_mailbox = isinstance(
        command, RegisterUser | RecordEmailComplained | InviteUser
    )  # it comes last, and its position is not told
    assert answer.position == len(house.log.events) - of_the_mailbox
    assert house.log.contexts[-1] == WORKER


ACTS = {
    CancelRegistration: "cancel-registration",
    EraseRegistration: "erase-registration",
    RetryMail: "retry-mail",
    DiscardMail: "discard-mail",
    AllowMailbox: "allow-mailbox",
    DiscardStrayMessage: "discard-stray-message",
    SetPassword: "set-password",
    RecordRebuild: "rebuild-begun",
    RetryParkedStream: "retry-parked-stream",
    RecordImport: "import-users",
}
"""How the log calls what operators do: for ever."""

BY_OPERATORS = [pytest.param(*EVERY[command], act, id=act) for command, act in ACTS.items()]


@pytest.mark.parametrize(("prepare", "events", "act"), BY_OPERATORS)
async def test_an_operators_act_is_recorded_with_its_reason_before_its_effects(
    prepare: Prepare, events: list[str], act: str
) -> None:
    house = InMemoryService()
    command = await prepare(house)
    before = len(house.log.appends)

    await house.handle(command, replace(OPERATOR, reason="ticket 4711"))

    assert house.log.appends[before:] == [["OperatorActed", *events]]
    recorded: Any = house.log.all(OperatorAct.OperatorActed)[-1]
    about = getattr(command, "registration_id", None)
    assert (recorded.act, recorded.registration_id, recorded.reason) == (act, about and str(about), "ticket 4711")
    assert {context.correlation_id for context in house.log.contexts[-1 - len(events) :]} == {OPERATOR.correlation_id}


@pytest.mark.parametrize(("prepare", "events", "act"), BY_OPERATORS)
async def test_an_operators_act_without_effect_records_nothing(prepare: Prepare, events: list[str], act: str) -> None:
    house = InMemoryService()
    command = await prepare(house)
    first = await house.handle(command, OPERATOR)
    before = len(house.log.events)

    if type(command) in ONCE:
        await house.handle(dispatched(first.subject_id), WORKER)
        before = len(house.log.events)
    again = await house.handle(command, replace(OPERATOR, reason="once more"))

    assert len(house.log.events) == before
    assert not again.recorded


async def test_an_operators_act_that_is_refused_records_nothing(house: InMemoryService) -> None:
    registration_id = await house.active()
    before = len(house.log.events)

    with pytest.raises(NotPending):
        await house.handle(RetryMail(registration_id=registration_id), replace(OPERATOR, reason="please"))

    assert len(house.log.events) == before


async def test_an_operators_act_that_loses_a_race_is_recorded_once() -> None:
    log = ContestedLog()
    house = InMemoryService(log=log)
    registration_id = await house.registered()
    log.losses = 1

    await house.handle(DiscardMail(registration_id=registration_id), replace(OPERATOR, reason="ticket 4711"))

    assert len(log.all(OperatorAct.OperatorActed)) == 1
    assert log.appends[-1] == ["OperatorActed", "EmailDiscarded"]


async def test_what_others_do_is_no_operators_act(house: InMemoryService) -> None:
    await house.handle(await _cancel(house), SAGA)

    assert house.log.all(OperatorAct.OperatorActed) == []


async def test_who_was_shown_in_clear_is_recorded_once_for_each_person(house: InMemoryService) -> None:
    shown = RecordPersonalDataRead(
        read_id=UUID(int=8), act=SHOW_REGISTRATION, registration_ids=(REGISTRATION, UUID(int=9), REGISTRATION)
    )

    await house.handle(shown, replace(OPERATOR, reason="ticket 4711"))
    await house.handle(shown, OPERATOR)

    reads: list[Any] = house.log.all(OperatorAct.PersonalDataRead)
    assert [(one.act, UUID(one.registration_id), one.reason) for one in reads] == [
        ("show-registration", REGISTRATION, "ticket 4711"),
        ("show-registration", UUID(int=9), "ticket 4711"),
    ]


ONCE = {RequestNewCode, RecordEmailDispatchFailed, RetryMail}
"""A second one is another wish or another fact: refused by the cooldown, recorded, recorded."""


@pytest.mark.parametrize(
    ("prepare", "events"),
    [pytest.param(*row, id=command.__name__) for command, row in EVERY.items() if command not in ONCE],
)
async def test_a_command_whose_effect_holds_records_nothing(prepare: Prepare, events: list[str]) -> None:
    house = InMemoryService()
    command = await prepare(house)
    first = await house.handle(command)
    before = len(house.log.events)

    again = await house.handle(command)

    assert len(house.log.events) == before
    assert not again.recorded
    assert (again.subject_id, again.status) == (first.subject_id, first.status)


@pytest.mark.parametrize(
    ("act", "event"),
    [("swapped", "RebuildSwapped"), ("rolled-back", "RebuildRolledBack"), ("aborted", "RebuildAborted")],
)
async def test_each_act_of_a_rebuild_is_recorded_once(house: InMemoryService, act: Any, event: str) -> None:
    await house.handle(RecordRebuild(rebuild_id=REBUILD, read_model="mail", act="begun"), OPERATOR)
    command = RecordRebuild(rebuild_id=REBUILD, read_model="mail", act=act, position=7)

    assert (await house.handle(command, OPERATOR)).recorded
    assert house.log.appends[-1] == ["OperatorActed", event]
    assert not (await house.handle(command, OPERATOR)).recorded


async def test_a_dropped_version_is_recorded_once(house: InMemoryService) -> None:
    command = RecordRebuild(rebuild_id=REBUILD, read_model="mail", act="version-dropped", position=7)

    assert (await house.handle(command, OPERATOR)).recorded
    assert house.log.appends[-1] == ["OperatorActed", "VersionDropped"]
    assert not (await house.handle(command, OPERATOR)).recorded


async def test_the_death_of_one_request_is_recorded_once_and_that_of_the_next_one_again(house: InMemoryService) -> None:
    died = failed(await house.registered()).model_copy(update={"request_position": 3})
    await house.handle(died)
    before = len(house.log.events)

    await house.handle(died)
    assert len(house.log.events) == before

    await house.handle(died.model_copy(update={"request_position": 8}))
    assert house.log.appends[-1] == ["EmailDispatchFailed"]
    assert len(house.log.events) == before + 1


async def test_asking_for_a_new_code_twice_is_refused_by_the_cooldown(house: InMemoryService) -> None:
    command = await _new_code(house)
    await house.handle(command)

    before = house.log.loads

    with pytest.raises(TooManyRequests):
        await house.handle(command)

    assert house.log.loads == before + 1
    assert house.log.appends[-1] == ["OtpIssued", "MailDecided"]


@pytest.mark.parametrize(("prepare", "events"), BY_NAME)
async def test_a_command_that_loses_the_race_three_times_is_decided_anew(prepare: Prepare, events: list[str]) -> None:
    log = ContestedLog()
    house = InMemoryService(log=log)
    command = await prepare(house)
    log.losses, log.tries, before = CONFLICT_RETRIES, 0, len(log.appends)

    await house.handle(command)

    assert log.appends[before:] == [events]
    assert log.tries == 4


FACTS = (
    RecordEmailDispatched,
    RecordEmailDispatchFailed,
    RecordEmailBounced,
    RecordEmailComplained,
    WithholdEmail,
    KeepStrayMessage,
)
"""What these record has happened: it is not given up, however often somebody else is faster."""


@pytest.mark.parametrize("command", [command for command in EVERY if command not in FACTS])
async def test_a_command_that_loses_the_race_four_times_is_a_conflict(command: type[Command]) -> None:
    log = ContestedLog()
    house = InMemoryService(log=log)
    prepared = await EVERY[command][0](house)
    log.losses, log.tries, before = 10, 0, len(log.appends)

    with pytest.raises(Conflict):
        await house.handle(prepared)

    assert log.appends[before:] == []
    assert log.tries == CONFLICT_RETRIES + 1


@pytest.mark.parametrize("command", FACTS)
async def test_a_fact_is_decided_anew_until_it_is_recorded(command: type[Command]) -> None:
    prepare, events = EVERY[command]
    log = ContestedLog()
    house = InMemoryService(log=log)
    prepared = await prepare(house)
    log.losses, before = 10, len(log.appends)

    answer = await house.handle(prepared, WORKER)

    assert log.appends[before:] == [events]
    assert answer.recorded


@pytest.mark.parametrize("command", FACTS)
async def test_a_fact_that_conflicts_for_ever_leaves_the_processor_to_others(command: type[Command]) -> None:
    log = ContestedLog()
    house = InMemoryService(log=log)
    prepared = await EVERY[command][0](house)
    log.losses, log.tries = 1_000, 0

    deciding = asyncio.create_task(house.handle(prepared, WORKER))
    await eventually(lambda: log.tries > AT_ONCE)

    assert not deciding.done()
    deciding.cancel()
    await asyncio.wait({deciding})
    assert deciding.cancelled()


BEGINS = {
    RegisterUser,
    ReleaseEmail,
    KeepStrayMessage,
    RecordRebuild,
    RetryParkedStream,
    RecordPersonalDataRead,
    RecordFailedChecks,
    ImportUsers,
    InviteUser,
    RecordImport,
    KeepAnswer,
}
"""These need nothing that is there already."""


@pytest.mark.parametrize("command", [command for command in EVERY if command not in BEGINS])
async def test_a_command_about_an_unknown_registration_is_refused(command: type[Command]) -> None:
    house = InMemoryService()
    prepared = await EVERY[command][0](house)
    name = "message_id" if command is DiscardStrayMessage else "registration_id"
    unknown = prepared.model_copy(update={name: uuid4()})
    before = len(house.log.events)

    with pytest.raises(UnknownRegistration):
        await house.handle(unknown)

    assert len(house.log.events) == before


@pytest.mark.parametrize(("prepare", "events"), BY_NAME)
async def test_twenty_simultaneous_repeats_of_a_command_get_a_true_answer_each(
    prepare: Prepare, events: list[str]
) -> None:
    house = InMemoryService()
    command = await prepare(house)

    results = await asyncio.gather(*(house.handle(command) for _ in range(20)), return_exceptions=True)

    assert all(isinstance(result, Answer | TooManyRequests) for result in results)
    assert any(isinstance(result, Answer) for result in results)


async def test_a_wrong_try_is_on_disk_before_it_is_answered(house: InMemoryService) -> None:
    registration_id = await house.registered()

    with pytest.raises(WrongCode) as refusal:
        await house.handle(verifies(registration_id, wrong_code(registration_id)))

    assert refusal.value.attempts_left == 4
    assert house.log.history(registration_id)[-1] == "CodeRejected"


async def test_a_wrong_try_that_cannot_be_recorded_is_not_answered() -> None:
    log = ContestedLog()
    house = InMemoryService(log=log)
    registration_id = await house.registered()
    log.losses = 10

    with pytest.raises(Conflict):
        await house.handle(verifies(registration_id, wrong_code(registration_id)))

    assert log.history(registration_id) == ["UserRegistered", "OtpIssued"]


async def test_the_code_of_the_issue_before_is_wrong_after_a_new_one(house: InMemoryService) -> None:
    registration_id = await house.registered()
    house.move(timedelta(minutes=1))
    await house.handle(RequestNewCode(registration_id=registration_id))

    with pytest.raises(WrongCode):
        await house.handle(verifies(registration_id, right_code(registration_id, serial=1)))
    answer = await house.handle(verifies(registration_id, right_code(registration_id, serial=2)))

    assert answer.status is Status.VERIFIED


async def test_the_notice_of_a_duplicate_is_recorded_on_the_owners_stream_in_the_same_append(
    house: InMemoryService,
) -> None:
    owner = await house.active()
    duplicate = await house.registered(registers(name="Eve"))

    await house.handle(dispatched(duplicate), WORKER)

    assert house.log.appends[-1] == ["EmailDispatched", "OwnerNotified"]
    assert house.log.history(owner)[-1] == "OwnerNotified"
    assert not house.registration(owner).may_notify_owner(house.clock(), house.policy)
    assert [vars(event)["kind"] for event in house.log.all(Registration.EmailDispatched)][-1:] == ["notice"]


async def test_a_failed_mail_is_of_its_registrations_kind(house: InMemoryService) -> None:
    await house.active()
    duplicate = await house.registered(registers(name="Eve"))

    await house.handle(failed(duplicate, kind=MailKind.NOTICE), WORKER)

    assert [vars(event)["kind"] for event in house.log.all(Registration.EmailDispatchFailed)] == ["notice"]


@pytest.mark.parametrize("is_duplicate", [False, True])
async def test_the_failure_of_a_mail_of_another_kind_is_nothing_of_ours_and_records_nothing(
    house: InMemoryService, is_duplicate: bool
) -> None:
    await house.active()
    registered = await house.registered(registers(name="Eve") if is_duplicate else registers(email="grace@example.com"))

    with pytest.raises(ForeignRequest):
        await house.handle(failed(registered, kind=MailKind.CODE if is_duplicate else MailKind.NOTICE), WORKER)

    assert house.log.all(Registration.EmailDispatchFailed) == []


async def test_the_notice_of_a_duplicate_reported_twice_is_recorded_once(house: InMemoryService) -> None:
    await house.active()
    duplicate = await house.registered(registers(name="Eve"))

    await asyncio.gather(*(house.handle(dispatched(duplicate), WORKER) for _ in range(5)))

    assert len(house.log.all(Registration.OwnerNotified)) == 1


async def test_erasing_ends_frees_and_destroys_in_one_append(house: InMemoryService) -> None:
    registration_id = await house.active()

    answer = await house.handle(EraseRegistration(registration_id=registration_id), OPERATOR)

    assert answer.status is Status.CANCELLED
    assert house.log.appends[-1] == ["OperatorActed", "RegistrationCancelled", "PersonalDataErased", "EmailReleased"]
    assert registration_id not in house.log.keys
    assert house.claim().holder is None


async def test_erasing_a_superseded_registration_leaves_the_address_with_its_holder(house: InMemoryService) -> None:
    first = await house.registered()
    house.move(timedelta(minutes=1))
    second = await house.active(registers(name="Eve"))

    await house.handle(EraseRegistration(registration_id=first), OPERATOR)

    assert house.log.appends[-1] == ["OperatorActed", "OtpRevoked", "RegistrationCancelled", "PersonalDataErased"]
    assert house.claim().holder == second
    assert set(house.log.keys) == {second}


async def _undone(house: InMemoryService, reason: CancelReason = CancelReason.UNDELIVERABLE) -> UUID:
    """A registration whose compensation is complete."""
    registration_id = await house.registered()
    await house.handle(failed(registration_id))
    await house.handle(CancelRegistration(registration_id=registration_id, reason=reason))
    await house.handle(
        ReleaseEmail(registration_id=registration_id, claim_id=house.registration(registration_id).claim_id)
    )
    return registration_id


@pytest.mark.parametrize("reason", [CancelReason.UNDELIVERABLE, CancelReason.EXPIRED])
async def test_a_registration_that_was_undone_for_want_of_a_mail_is_reopened_by_a_retry(
    house: InMemoryService, reason: CancelReason
) -> None:
    registration_id = await _undone(house, reason)

    answer = await house.handle(RetryMail(registration_id=registration_id), OPERATOR)

    assert answer.status is Status.PENDING
    assert house.log.appends[-1] == ["OperatorActed", "RegistrationReopened", "OtpIssued"]
    await house.handle(verifies(registration_id, right_code(registration_id, serial=2)))
    assert house.registration(registration_id).status is Status.VERIFIED


async def test_a_saga_that_repeats_its_last_step_does_not_take_the_address_from_a_reopened_registration(
    house: InMemoryService,
) -> None:
    """In a log of release 0.1.0: it claimed the address when it was registered."""
    registration_id = await house.registered()
    await house.claimed_at_once(registration_id)
    await house.handle(failed(registration_id))
    await house.handle(CancelRegistration(registration_id=registration_id, reason=CancelReason.UNDELIVERABLE))
    await house.handle(RetryMail(registration_id=registration_id))

    await house.handle(
        ReleaseEmail(registration_id=registration_id, claim_id=house.registration(registration_id).claim_id)
    )

    assert house.claim().holder == registration_id


async def test_a_registration_is_not_reopened_once_somebody_has_proven_its_address(house: InMemoryService) -> None:
    undone = await _undone(house)
    house.move(timedelta(minutes=1))
    other = await house.active()

    with pytest.raises(NotPending):
        await house.handle(RetryMail(registration_id=undone))

    assert house.claim().holder == other
    assert house.registration(undone).status is Status.CANCELLED


async def test_a_registration_is_reopened_beside_others_for_its_address(house: InMemoryService) -> None:
    undone = await _undone(house)
    other = await house.registered(registers(name="Eve"))

    await house.handle(RetryMail(registration_id=undone))

    assert house.registration(undone).is_pending
    assert house.registration(other).is_pending


async def test_releasing_an_address_that_nobody_ever_held_is_silent(house: InMemoryService) -> None:
    answer = await house.handle(ReleaseEmail(registration_id=uuid4(), claim_id=ClaimId(uuid4())))

    assert (answer.position, answer.status, answer.recorded) == (0, None, False)
    assert house.log.events == []


async def test_an_account_is_neither_cancelled_nor_discarded_nor_retried(house: InMemoryService) -> None:
    registration_id = await house.active()
    before = len(house.log.events)

    for command in (
        CancelRegistration(registration_id=registration_id, reason=CancelReason.OPERATOR),
        DiscardMail(registration_id=registration_id),
        RetryMail(registration_id=registration_id),
    ):
        with pytest.raises(NotPending):
            await house.handle(command, OPERATOR)

    assert len(house.log.events) == before


async def test_a_hand_over_is_recorded_on_what_the_worker_has_read_already(house: InMemoryService) -> None:
    registration_id = await house.registered()
    read = loaded(await house.log.load(registration_id), registration_id)

    before = house.log.loads

    await house.handlers.handle(dispatched(registration_id), WORKER, read=read)

    assert house.log.appends[-1] == ["EmailDispatched"]
    assert house.log.loads == before


async def test_a_repeat_on_what_the_worker_has_read_already_says_where_it_stands(house: InMemoryService) -> None:
    registration_id = await house.registered()
    first = await house.handle(dispatched(registration_id), WORKER)
    read = loaded(await house.log.load(registration_id), registration_id)
    before = house.log.loads

    again = await house.handlers.handle(dispatched(registration_id), WORKER, read=read)

    assert (again.position, again.recorded) == (first.position, False)
    assert house.log.loads == before


async def test_a_hand_over_on_what_somebody_has_written_to_since_is_decided_anew(house: InMemoryService) -> None:
    registration_id = await house.registered()
    read = loaded(await house.log.load(registration_id), registration_id)
    await house.handle(dispatched(registration_id), WORKER)

    await house.handlers.handle(dispatched(registration_id), WORKER, read=read)

    assert len(house.log.all(Registration.EmailDispatched)) == 1


# --- Stray messages ---------------------------------------------------------------------------


async def test_a_stray_message_is_kept_in_words_of_ours(house: InMemoryService) -> None:
    answer = await house.handle(keeps_stray(), WORKER)

    assert (answer.subject_id, answer.status) == (STRAY, None)
    assert house.log.events == stream(STRAY, stray_kept())
    assert house.log.contexts == [WORKER]


async def test_a_stray_message_that_comes_to_many_consumers_is_kept_once(house: InMemoryService) -> None:
    await asyncio.gather(*(house.process(house.log).handle(keeps_stray(), WORKER) for _ in range(4)))

    assert house.log.appends == [["StrayMessageKept"]]


async def test_a_stray_message_that_comes_again_after_it_was_discarded_stays_discarded(house: InMemoryService) -> None:
    await house.handle(await _discard_stray(house), OPERATOR)

    await house.handle(keeps_stray(), WORKER)

    assert house.log.history(STRAY) == ["StrayMessageKept", "StrayMessageDiscarded"]
    assert house.log.of(StrayMessage, STRAY).discarded


async def test_what_is_no_stray_message_is_not_discarded_as_one(house: InMemoryService) -> None:
    registration_id = await house.registered()

    for wrong in (uuid4(), registration_id, house.registration(registration_id).claim_id):
        with pytest.raises(UnknownRegistration):
            await house.handle(DiscardStrayMessage(message_id=wrong), OPERATOR)

    assert house.log.history(registration_id) == ["UserRegistered", "OtpIssued"]


async def test_the_id_of_something_else_is_no_registrations(house: InMemoryService) -> None:
    registration_id = await house.registered()
    stray = (await house.handle(keeps_stray())).subject_id
    before = len(house.log.events)

    for wrong in (stray, house.registration(registration_id).claim_id):
        for command in (
            RetryMail(registration_id=wrong),
            DiscardMail(registration_id=wrong),
            EraseRegistration(registration_id=wrong),
            dispatched(wrong),
            failed(wrong),
        ):
            with pytest.raises(UnknownRegistration):
                await house.handle(command, OPERATOR)

    assert len(house.log.events) == before


# --- Around the handlers ----------------------------------------------------------------------


@pytest.mark.parametrize(("prepare", "events"), BY_NAME)
async def test_every_command_passes_what_is_around_the_handlers(prepare: Prepare, events: list[str]) -> None:
    house = InMemoryService()
    command = await prepare(house)
    seen: list[object] = []

    async def outer(handle: Handle, command: Command, context: Context) -> Answer:
        seen.append(("outer", command, context))
        answer = await handle(command, context)
        seen.append(answer)
        return answer

    async def inner(handle: Handle, command: Command, context: Context) -> Answer:
        seen.append("inner")
        return await handle(command, context)

    answer = await house.process(house.log, around=(outer, inner)).handle(command, OPERATOR)

    assert seen == [("outer", command, OPERATOR), "inner", answer]
    assert answer.recorded


async def test_what_is_around_the_handlers_sees_one_command_and_its_refusal_however_often_it_is_decided() -> None:
    log = ContestedLog()
    house = InMemoryService(log=log)
    registration_id = await house.registered()
    seen: list[object] = []

    async def watch(handle: Handle, command: Command, context: Context) -> Answer:
        try:
            return await handle(command, context)
        except Refused as refusal:
            seen.append(refusal.code)
            raise

    log.losses = CONFLICT_RETRIES
    with pytest.raises(WrongCode):
        await house.process(log, around=(watch,)).handle(verifies(registration_id, wrong_code(registration_id)), CLIENT)

    assert seen == ["wrong-code"]
    assert log.history(registration_id)[-1] == "CodeRejected"


async def test_what_is_around_the_handlers_can_turn_a_command_away(house: InMemoryService) -> None:
    async def shed(handle: Handle, command: Command, context: Context) -> Answer:
        raise Overloaded("full")

    with pytest.raises(Overloaded):
        await house.process(house.log, around=(shed,)).handle(registers(), CLIENT)

    assert house.log.events == []
    assert house.log.loads == 0


async def test_what_the_worker_has_read_goes_along_with_its_command(house: InMemoryService) -> None:
    registration_id = await house.registered()
    read = loaded(await house.log.load(registration_id), registration_id)
    before = house.log.loads

    async def pass_on(handle: Handle, command: Command, context: Context) -> Answer:
        return await handle(command, context)

    handlers = house.process(house.log, around=(pass_on, pass_on))
    await handlers.handle(dispatched(registration_id), WORKER, read=read)

    assert house.log.appends[-1] == ["EmailDispatched"]
    assert house.log.loads == before


# --- The lock ----------------------------------------------------------------------------------


async def test_the_lock_lets_one_at_a_time_in_and_in_order() -> None:
    lock, key, order = KeyedLock(), uuid4(), list[str]()

    async def enter(name: str) -> None:
        order.append(f"{name} in")
        await asyncio.sleep(0)
        order.append(f"{name} out")

    await asyncio.gather(*(lock.run(key, partial(enter, name)) for name in "abc"))

    assert order == ["a in", "a out", "b in", "b out", "c in", "c out"]


async def test_locks_of_different_things_do_not_wait_for_each_other() -> None:
    lock = KeyedLock()

    async def inner() -> bool:
        return True

    async def outer() -> bool:
        async with asyncio.timeout(1):
            return await lock.run(uuid4(), inner)

    assert await lock.run(uuid4(), outer)


async def test_the_lock_forgets_what_nobody_waits_for_even_after_errors_and_cancellations() -> None:
    lock, key = KeyedLock(), uuid4()

    async def enter(failure: BaseException | None) -> None:
        await asyncio.sleep(0)
        if failure is not None:
            raise failure

    failures = (None, Overloaded("full"), None, None)
    tasks = [asyncio.ensure_future(lock.run(key, partial(enter, failure))) for failure in failures]
    await asyncio.sleep(0)
    tasks[2].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(result) for result in results] == [type(None), Overloaded, asyncio.CancelledError, type(None)]
    assert lock._queues == {}


async def test_a_turn_that_comes_together_with_a_cancellation_is_passed_on() -> None:
    lock, key, gone = KeyedLock(), uuid4(), asyncio.Event()

    async def done() -> str:
        return "done"

    first = asyncio.ensure_future(lock.run(key, gone.wait))
    await asyncio.sleep(0)
    called_off, last = asyncio.ensure_future(lock.run(key, done)), asyncio.ensure_future(lock.run(key, done))
    await asyncio.sleep(0)

    gone.set()  # the first runs next, and hands the turn on; then, before the second hears of it, it is called off
    asyncio.get_running_loop().call_soon(called_off.cancel)

    async with asyncio.timeout(1):
        assert await last == "done"
    assert first.done()
    assert called_off.cancelled()
    assert lock._queues == {}


async def test_a_refusal_does_not_hold_up_the_next_in_turn(house: InMemoryService) -> None:
    registration_id = await house.registered()

    with pytest.raises(Refused):
        await house.handle(verifies(registration_id, wrong_code(registration_id)))
    answer = await house.handle(verifies(registration_id, right_code(registration_id)))

    assert answer.status is Status.VERIFIED
