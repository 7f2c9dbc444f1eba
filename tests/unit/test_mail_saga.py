"""The mail saga: its table of decisions, its schedule, and whole stories with real aggregates."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from uuid import UUID, uuid4

import pytest
from hypothesis import given as for_any
from hypothesis import settings
from hypothesis import strategies as st

from application.commands import (
    ActivateAccount,
    CancelRegistration,
    Command,
    DiscardMail,
    EraseRegistration,
    RecordEmailDispatched,
    RecordEmailDispatchFailed,
    ReleaseEmail,
    ReplaceStaleCode,
    RequestNewCode,
    RetryMail,
    RevokeOtp,
)
from application.mail_saga import JITTER, RETRY_DELAYS, SECOND_LOOK, SOURCES, UNTRIED, DeadlineReached, react
from domain.email_claim import EmailClaim
from domain.mail_outcome import CancelReason, DispatchFailure, HandOver, MailKind
from domain.mail_saga import MailSaga
from domain.policy import Policy
from domain.recorded import AnyEvent
from domain.registration import Registration, Status
from tests.support.facts import (
    CLAIM,
    REGISTRATION,
    T0,
    Fact,
    account_activated,
    code_found_dead,
    code_locked,
    code_rejected,
    email_bounced,
    email_discarded,
    email_dispatch_failed,
    email_dispatched,
    email_retry_requested,
    email_verified,
    email_withheld,
    end_awaited,
    fresh_code_asked,
    given,
    mail_requested,
    mailbox_unknown,
    otp_issued,
    otp_revoked,
    owner_notified,
    personal_data_erased,
    recorded,
    registered,
    registration_cancelled,
    registration_reopened,
    retry_scheduled,
    saga_ended,
    saga_reopened,
    saga_started,
    stream,
    undo_decided,
    user_invited,
)
from tests.support.scenarios import OPERATOR, WORKER, InMemoryService, registers, right_code, verifies, wrong_code

POLICY = Policy()
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
END = T0 + 24 * HOUR

REVOKE = RevokeOtp(registration_id=REGISTRATION)
ACTIVATE = ActivateAccount(registration_id=REGISTRATION)
RELEASE = ReleaseEmail(registration_id=REGISTRATION, claim_id=CLAIM)

STARTED = (saga_started(),)
REQUESTED = (*STARTED, mail_requested())
RETRYING = (*REQUESTED, retry_scheduled())
AWAITING_END = (*REQUESTED, end_awaited())
UNDOING = (*REQUESTED, undo_decided(reason="undeliverable"))
ENDED = (*AWAITING_END, saga_ended())
UNDONE = (*UNDOING, saga_ended(outcome="undeliverable"))
REOPENED = (*UNDONE, saga_reopened())


def cancel(reason: str) -> CancelRegistration:
    return CancelRegistration(registration_id=REGISTRATION, reason=CancelReason(reason))


def replace(serial: int = 1) -> ReplaceStaleCode:
    return ReplaceStaleCode(registration_id=REGISTRATION, serial=serial)


def saga(*history: Fact) -> MailSaga:
    return given(MailSaga, *history, stream_id=MailSaga.stream_id(REGISTRATION))


def happened(fact: Fact, *, version: int = 9) -> AnyEvent:
    first = fact.event is Registration.UserRegistered
    return stream(REGISTRATION, fact, after=0 if first else version - 1)[0]


def decide(
    remembered: MailSaga | None, fact: Fact | None, at: datetime = T0
) -> tuple[MailSaga | None, list[Fact], list[Command]]:
    """React to a fact, or to the deadline where there is none; answers saga, notes and commands."""
    what = DeadlineReached(REGISTRATION) if fact is None else happened(fact)
    reacted, commands = react(remembered, what, at, POLICY)
    return reacted, [] if reacted is None else recorded(reacted), commands


BEGINNINGS = {Registration.UserRegistered, Registration.UserInvited}
"""Of sagas."""

# --- The table of `react` ---------------------------------------------------------------------

TABLE = [
    ("a registration begins", (), registered(), [saga_started()], []),
    ("a duplicate begins", (), registered(duplicate_of=uuid4()), [saga_started(kind="notice")], []),
    ("an imported user is invited", (), user_invited(), [saga_started()], []),
    ("a code is issued", STARTED, otp_issued(), [mail_requested()], []),
    (
        "a new code is issued",
        AWAITING_END,
        otp_issued(2, "requested", at=T0 + MINUTE),
        [mail_requested(serial=2, issued_at=T0 + MINUTE)],
        [],
    ),
    ("dispatched", REQUESTED, email_dispatched(), [end_awaited()], []),
    ("withheld", REQUESTED, email_withheld(), [end_awaited()], []),
    ("dispatched while a retry waits", RETRYING, email_dispatched(), [end_awaited()], []),
    ("failed for good", REQUESTED, mailbox_unknown(), [undo_decided(reason="undeliverable")], [REVOKE, cancel("undeliverable")]),
    ("failed for good while a retry waits", RETRYING, mailbox_unknown(), [undo_decided(reason="undeliverable")], [REVOKE, cancel("undeliverable")]),
    ("came back for good", AWAITING_END, email_bounced(), [undo_decided(reason="undeliverable")], [REVOKE, cancel("undeliverable")]),
    ("locked before the hand-over", REQUESTED, code_locked(), [code_found_dead()], []),
    ("verified", AWAITING_END, email_verified(), [], [ACTIVATE]),
    ("verified before the hand-over was recorded", REQUESTED, email_verified(), [], [ACTIVATE]),
    ("activated", AWAITING_END, account_activated(), [saga_ended()], []),
    ("an operator retries", RETRYING, email_retry_requested(), [mail_requested(request=2, look_again_at=T0 + 4 * MINUTE)], []),
    ("an operator discards", RETRYING, email_discarded(), [undo_decided(reason="discarded")], [REVOKE, cancel("discarded")]),
    ("cancelled by the saga itself", UNDOING, registration_cancelled("undeliverable"), [saga_ended(outcome="undeliverable")], [RELEASE]),
    ("cancelled by an operator", REQUESTED, registration_cancelled("operator"), [saga_ended(outcome="operator")], [RELEASE]),
    ("superseded", REQUESTED, registration_cancelled("superseded"), [saga_ended(outcome="superseded")], [RELEASE]),
    ("erased while pending", REQUESTED, registration_cancelled("erased"), [saga_ended(outcome="erased")], [RELEASE]),
    ("reopened", UNDONE, registration_reopened(at=T0 + HOUR), [saga_reopened(ends_at=END + HOUR)], []),
    ("a code is issued once it is reopened", REOPENED, otp_issued(2, "reopened"), [mail_requested(serial=2)], []),
    ("failed for good once more", (*REOPENED, mail_requested(serial=2)), mailbox_unknown(2), [undo_decided(reason="undeliverable")], [REVOKE, cancel("undeliverable")]),
]  # fmt: skip

NOTHING = [
    ("a registration begins again", REQUESTED, registered()),
    ("the same code again", REQUESTED, otp_issued()),
    ("an older code", (*STARTED, mail_requested(serial=2)), otp_issued(1)),
    ("dispatched again", AWAITING_END, email_dispatched()),
    ("withheld again", AWAITING_END, email_withheld()),
    ("an older issue dispatched", (*REQUESTED, mail_requested(serial=2)), email_dispatched(1)),
    ("an older issue failed", (*REQUESTED, mail_requested(serial=2)), email_dispatch_failed(1)),
    ("an older issue failed for good", (*REQUESTED, mail_requested(serial=2)), mailbox_unknown(1)),
    ("the same failure again", RETRYING, email_dispatch_failed()),
    ("locked after the hand-over", AWAITING_END, code_locked()),
    ("an older issue locked", (*REQUESTED, mail_requested(serial=2)), code_locked(1)),
    ("a retry of what was handed over", AWAITING_END, email_retry_requested()),
    ("a retry while undoing", UNDOING, email_retry_requested()),
    ("dispatched while undoing", UNDOING, email_dispatched()),
    ("a failure of what was handed over", AWAITING_END, email_dispatch_failed()),
    ("a permanent failure of what was handed over", AWAITING_END, mailbox_unknown()),
    ("a failure while undoing", UNDOING, mailbox_unknown()),
    ("a wrong code", AWAITING_END, code_rejected()),
    ("a revocation", UNDOING, otp_revoked()),
    ("a notice", AWAITING_END, owner_notified(uuid4())),
    ("an erasure", ENDED, personal_data_erased()),
]


@pytest.mark.parametrize(("history", "fact", "notes", "commands"), [pytest.param(*row[1:], id=row[0]) for row in TABLE])
def test_the_saga_decides(history: tuple[Fact, ...], fact: Fact, notes: list[Fact], commands: list[Command]) -> None:
    remembered = saga(*history) if history else None

    _, noted, issued = decide(remembered, fact)

    assert noted == notes
    assert issued == commands


@pytest.mark.parametrize(("history", "fact"), [pytest.param(*row[1:], id=row[0]) for row in NOTHING])
def test_the_saga_has_nothing_to_do(history: tuple[Fact, ...], fact: Fact) -> None:
    _, noted, issued = decide(saga(*history), fact)

    assert noted == []
    assert issued == []


BEGIN = {Registration.UserRegistered, Registration.RegistrationReopened}


def test_what_came_back_for_now_is_retried_also_if_it_was_handed_over_while_a_retry_waited() -> None:
    came_back = email_bounced(failure="temporary", permanent=False, reply_status="4.2.2")
    _, notes, commands = decide(saga(*RETRYING, end_awaited()), came_back)

    assert [(note.event, note.fields["failures"]) for note in notes] == [(MailSaga.RetryScheduled, 2)]
    assert commands == []


@pytest.mark.parametrize("fact", [row[2] for row in TABLE if row[2].event not in BEGIN])
def test_an_ended_saga_does_nothing_any_more(fact: Fact) -> None:
    reacted, noted, issued = decide(saga(*ENDED), fact)

    assert noted == []
    assert issued == []
    assert reacted is not None
    assert reacted.look_again_at is None


@pytest.mark.parametrize("fact", [None, *(row[2] for row in TABLE if row[2].event not in BEGINNINGS)])
def test_nothing_comes_of_a_registration_whose_beginning_was_not_seen(fact: Fact | None) -> None:
    assert decide(None, fact) == (None, [], [])


def test_the_driver_shows_the_saga_everything_that_its_table_names() -> None:
    named = {row[2].event.TOPIC for row in TABLE} | {email_dispatch_failed().event.TOPIC}  # type: ignore[attr-defined]

    assert set(SOURCES) == named


def test_the_saga_is_found_by_the_registration() -> None:
    started, _, _ = decide(None, registered())

    assert started is not None
    assert started.id == MailSaga.stream_id(REGISTRATION)
    assert MailSaga.stream_id(REGISTRATION) != MailSaga.stream_id(CLAIM)
    assert (started.registration_id, started.claim_id, started.ends_at) == (REGISTRATION, CLAIM, END)


def test_the_end_counts_from_the_registration_not_from_when_the_saga_saw_it() -> None:
    _, noted, _ = decide(None, registered(at=T0), at=T0 + 5 * HOUR)

    assert noted == [saga_started(ends_at=END)]


# --- Deadlines --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("history", "at", "notes", "commands"),
    [
        pytest.param(
            REQUESTED,
            T0 + 2 * MINUTE,
            [mail_requested(request=2, look_again_at=T0 + 6 * MINUTE)],
            [],
            id="neither dispatched nor failed: asked again",
        ),
        pytest.param(
            RETRYING,
            T0 + 30 * SECOND,
            [mail_requested(request=2, look_again_at=T0 + 4 * MINUTE + 30 * SECOND)],
            [],
            id="the retry is due",
        ),
        pytest.param(
            REQUESTED,
            T0 + 10 * MINUTE,
            [fresh_code_asked(look_again_at=T0 + 14 * MINUTE)],
            [replace()],
            id="the code would be stale by age",
        ),
        pytest.param(
            (*REQUESTED, code_found_dead()),
            T0 + 2 * MINUTE,
            [fresh_code_asked(look_again_at=T0 + 6 * MINUTE)],
            [replace()],
            id="the code is dead",
        ),
        pytest.param(
            (*REQUESTED, code_found_dead(), fresh_code_asked(), mail_requested(serial=2)),
            T0 + 2 * MINUTE,
            [mail_requested(serial=2, request=2, look_again_at=T0 + 6 * MINUTE)],
            [],
            id="the fresh code is not dead",
        ),
        pytest.param(
            AWAITING_END,
            END,
            [undo_decided(reason="expired", look_again_at=END + 2 * MINUTE)],
            [REVOKE, cancel("expired")],
            id="the end reached, unverified",
        ),
        pytest.param(
            STARTED,
            END,
            [undo_decided(reason="expired", look_again_at=END + 2 * MINUTE)],
            [REVOKE, cancel("expired")],
            id="the end reached, never a code",
        ),
        pytest.param(
            (*REQUESTED, retry_scheduled(look_again_at=END)),
            END,
            [undo_decided(reason="expired", look_again_at=END + 2 * MINUTE)],
            [REVOKE, cancel("expired")],
            id="the end reached while a retry waits",
        ),
        pytest.param(
            UNDOING,
            T0 + 2 * MINUTE,
            [undo_decided(reason="undeliverable", look_again_at=T0 + 4 * MINUTE)],
            [REVOKE, cancel("undeliverable")],
            id="undoing is not confirmed: again, for the same reason",
        ),
    ],
)
def test_at_its_deadline_the_saga_decides(
    history: tuple[Fact, ...], at: datetime, notes: list[Fact], commands: list[Command]
) -> None:
    _, noted, issued = decide(saga(*history), None, at)

    assert noted == notes
    assert issued == commands


@pytest.mark.parametrize("history", [STARTED, REQUESTED, RETRYING, AWAITING_END, UNDOING])
def test_a_deadline_that_comes_early_changes_nothing(history: tuple[Fact, ...]) -> None:
    remembered = saga(*history)
    assert remembered.look_again_at is not None

    _, noted, issued = decide(remembered, None, remembered.look_again_at - timedelta(microseconds=1))

    assert noted == []
    assert issued == []


@pytest.mark.parametrize("history", [STARTED, REQUESTED, RETRYING, AWAITING_END, UNDOING])
def test_a_deadline_that_comes_twice_acts_once(history: tuple[Fact, ...]) -> None:
    remembered = saga(*history)
    at = remembered.look_again_at
    assert at is not None
    decide(remembered, None, at)

    _, noted, issued = decide(remembered, None, at)

    assert noted == []
    assert issued == []


@pytest.mark.parametrize("history", [STARTED, REQUESTED, RETRYING, AWAITING_END, UNDOING])
def test_a_deadline_always_leads_to_a_later_one(history: tuple[Fact, ...]) -> None:
    """Else the driver would find the same saga due for ever."""
    remembered = saga(*history)
    at = remembered.look_again_at
    assert at is not None

    decide(remembered, None, at)

    assert remembered.look_again_at is not None
    assert remembered.look_again_at > at


def test_a_deadline_after_the_end_of_the_saga_changes_nothing() -> None:
    _, noted, issued = decide(saga(*ENDED), None, END + HOUR)

    assert noted == []
    assert issued == []


def test_the_second_look_is_at_two_minutes_and_the_wait_doubles_up_to_an_hour() -> None:
    """Requests that nobody answers; with a code that does not grow old, to see all of the waits."""
    ageless = Policy(otp_ttl=timedelta(days=2))
    remembered = saga(*STARTED)
    react(remembered, happened(otp_issued()), T0, ageless)
    looks = [remembered.look_again_at or END]

    while looks[-1] < END:
        react(remembered, DeadlineReached(REGISTRATION), looks[-1], ageless)
        looks.append(remembered.look_again_at or END)

    waits = [later - earlier for earlier, later in pairwise([T0, *looks])]
    assert waits[:6] == [n * MINUTE for n in (2, 4, 8, 16, 32, 60)]
    assert set(waits[6:-1]) == {HOUR}
    assert looks[-1] == END


# --- The schedule of retries ------------------------------------------------------------------

PLANNED = [30 * SECOND, 2 * MINUTE, 6 * MINUTE, 15 * MINUTE, HOUR, HOUR, HOUR, HOUR]


def registration_numbered(number: int) -> UUID:
    return UUID(int=REGISTRATION.int + number)


def expired(serial: int = 1) -> Fact:
    """The request waited too long in the broker, and died there."""
    return email_dispatch_failed(
        serial, failure=UNTRIED, provider="broker", attempts=0, reply_code=None, reply_status=None
    )


def retry_waits(registration_id: UUID, count: int = len(PLANNED), failed: Fact | None = None) -> list[timedelta]:
    """Waits after each of so many transient failures."""
    remembered = MailSaga.start(
        registration_id=registration_id, claim_id=CLAIM, kind=MailKind.CODE, ends_at=END, now=T0
    )
    waits = []
    for request in range(1, count + 1):
        remembered.request_mail(serial=1, issued_at=T0, look_again_at=T0 + SECOND_LOOK, now=T0)
        [failure] = stream(registration_id, failed or email_dispatch_failed(), after=request)
        react(remembered, failure, T0, POLICY)
        assert remembered.look_again_at is not None
        waits.append(remembered.look_again_at - T0)
    return waits


@pytest.mark.fault("E18")
@pytest.mark.parametrize("attempt", range(len(PLANNED)))
def test_retries_come_when_planned_within_a_fifth(attempt: int) -> None:
    waits = [retry_waits(registration_numbered(n), attempt + 1)[attempt] for n in range(100)]

    planned = PLANNED[attempt]
    assert all(planned * (1 - JITTER) <= wait <= planned * (1 + JITTER) for wait in waits)
    assert min(waits) < planned * (1 - JITTER / 2)
    assert max(waits) > planned * (1 + JITTER / 2)


@pytest.mark.fault("E18")
def test_the_figures_are_the_architectures() -> None:
    assert [*RETRY_DELAYS, HOUR, HOUR, HOUR] == PLANNED
    assert JITTER == 0.2
    assert SECOND_LOOK == 2 * MINUTE


def test_the_jitter_of_a_registration_is_the_same_on_every_machine() -> None:
    assert retry_waits(REGISTRATION) == retry_waits(REGISTRATION)


@pytest.mark.parametrize("failures", range(8))
def test_a_retry_is_never_planned_beyond_the_end(failures: int) -> None:
    late = END - 10 * SECOND
    history = [*STARTED, mail_requested(issued_at=late)]
    history += [retry_scheduled(failures=n + 1) for n in range(failures)]
    remembered = saga(*history, mail_requested(issued_at=late, request=2))

    decide(remembered, email_dispatch_failed(), late)

    assert remembered.look_again_at == END


@pytest.mark.parametrize(
    "fact", [otp_issued(2, "requested"), email_dispatch_failed(), email_retry_requested(), code_locked()]
)
def test_no_mail_is_planned_beyond_the_end(fact: Fact) -> None:
    remembered = saga(*REQUESTED)

    decide(remembered, fact, END - SECOND)

    assert remembered.look_again_at is not None
    assert remembered.look_again_at <= END


def test_a_new_code_does_not_start_the_schedule_anew() -> None:
    remembered = saga(*RETRYING, fresh_code_asked(), mail_requested(serial=2))

    _, [note], _ = decide(remembered, email_dispatch_failed(2))

    assert note.event is MailSaga.RetryScheduled
    assert note.fields["failures"] == 2


def test_a_failure_reported_twice_of_one_request_counts_once() -> None:
    remembered = saga(*REQUESTED)

    _, first, _ = decide(remembered, email_dispatch_failed())
    _, again, _ = decide(remembered, email_dispatch_failed())

    assert len(first) == 1
    assert again == []
    assert remembered.failures == 1


# --- Requests that expire in the broker -------------------------------------------------------

PLANNED_UNTRIED = [30 * SECOND, MINUTE, 2 * MINUTE, 4 * MINUTE, 8 * MINUTE, 16 * MINUTE, 32 * MINUTE, HOUR, HOUR]


@pytest.mark.parametrize("request_number", range(len(PLANNED_UNTRIED)))
def test_a_request_that_expired_is_made_again_after_twice_the_wait_each_time(request_number: int) -> None:
    waits = [retry_waits(registration_numbered(n), request_number + 1, expired())[request_number] for n in range(100)]

    planned = PLANNED_UNTRIED[request_number]
    assert all(planned * (1 - JITTER) <= wait <= planned * (1 + JITTER) for wait in waits)
    assert min(waits) < planned * (1 - JITTER / 2)
    assert max(waits) > planned * (1 + JITTER / 2)


def test_a_request_that_expired_uses_up_no_try() -> None:
    remembered = saga(*REQUESTED)

    _, [note], issued = decide(remembered, expired())

    assert (note.event, note.fields["failures"], issued) == (MailSaga.RetryScheduled, 0, [])
    assert remembered.failures == 0


def test_the_first_failure_after_requests_that_expired_waits_as_a_first_one() -> None:
    remembered = saga(*REQUESTED, retry_scheduled(failures=0), mail_requested(request=2))

    _, [note], _ = decide(remembered, email_dispatch_failed())

    assert note.fields["failures"] == 1
    assert note.fields["look_again_at"] - T0 == retry_waits(REGISTRATION, 1)[0]


def test_an_expired_request_reported_twice_is_made_again_once() -> None:
    remembered = saga(*REQUESTED)
    decide(remembered, expired())

    for late in (expired(), email_dispatch_failed()):
        _, noted, issued = decide(remembered, late)
        assert noted == []
        assert issued == []


def test_a_request_of_an_older_issue_that_expires_changes_nothing() -> None:
    _, noted, issued = decide(saga(*REQUESTED, mail_requested(serial=2)), expired(1))

    assert noted == []
    assert issued == []


def test_an_expired_request_is_not_made_again_beyond_the_end() -> None:
    remembered = saga(*REQUESTED)

    decide(remembered, expired(), END - SECOND)

    assert remembered.look_again_at == END


async def test_a_mail_whose_requests_expire_for_an_hour_is_sent_with_a_code_that_works() -> None:
    house = InMemoryService()
    registration_id = await house.registered()
    await house.settle()
    until = house.clock() + HOUR

    while house.clock() < until:
        await house.handle(
            RecordEmailDispatchFailed(
                registration_id=registration_id,
                kind=MailKind.CODE,
                serial=house.registration(registration_id).serial,
                failure=DispatchFailure(UNTRIED, permanent=False, provider="broker", attempts=0),
            ),
            WORKER,
        )
        await house.settle()
        due = house.saga_of(registration_id).look_again_at
        assert due is not None
        house.move(due - house.clock())
        await house.look_again(registration_id)
        await house.settle()

    serial = house.registration(registration_id).serial
    assert house.saga_of(registration_id).failures == 0
    assert house.registration(registration_id).wants_mail(serial)
    await house.handle(verifies(registration_id, right_code(registration_id, serial)))
    assert house.registration(registration_id).status is Status.VERIFIED


# --- Properties -------------------------------------------------------------------------------

ANY_FACT = st.one_of(
    st.none(),
    st.sampled_from(
        [
            email_verified(),
            account_activated(),
            email_retry_requested(),
            email_discarded(),
            otp_revoked(),
            registration_cancelled("expired"),
            registration_cancelled("superseded"),
            registered(),
        ]
    ),
    st.builds(otp_issued, st.integers(1, 4)),
    st.builds(email_dispatched, st.integers(1, 4)),
    st.builds(email_withheld, st.integers(1, 4)),
    st.builds(email_dispatch_failed, st.integers(1, 4), failure=st.sampled_from(["greylisted", UNTRIED])),
    st.builds(mailbox_unknown, st.integers(1, 4)),
    st.builds(code_locked, st.integers(1, 4)),
    st.builds(code_rejected, st.integers(1, 5), st.integers(1, 4)),
)
ANY_STORY = st.lists(st.tuples(ANY_FACT, st.integers(0, 3 * 3600)), max_size=12)


def tell(story: Sequence[tuple[Fact | None, int]]) -> tuple[MailSaga, list[list[Fact]], list[list[Command]]]:
    remembered, noted, issued = decide(None, registered())
    notes, commands, at = [noted], [issued], T0
    for fact, seconds in story:
        at += timedelta(seconds=seconds)
        remembered, noted, issued = decide(remembered, fact, at)
        notes.append(noted)
        commands.append(issued)
    assert remembered is not None
    return remembered, notes, commands


@settings(max_examples=150)
@for_any(ANY_STORY)
def test_whatever_happens_in_whatever_order_the_saga_has_a_dated_next_step_until_it_ends(
    story: list[tuple[Fact | None, int]],
) -> None:
    remembered, _, _ = tell(story)

    assert (remembered.look_again_at is None) is remembered.ended
    if remembered.look_again_at is not None and remembered.undoing is None:
        assert remembered.look_again_at <= remembered.ends_at


@settings(max_examples=150)
@for_any(ANY_STORY)
def test_whatever_happened_a_deadline_that_is_due_leads_to_a_later_one(story: list[tuple[Fact | None, int]]) -> None:
    remembered, _, _ = tell(story)
    at = remembered.look_again_at
    if at is None:
        return
    at = max(at, T0 + timedelta(seconds=sum(seconds for _, seconds in story)))

    decide(remembered, None, at)

    assert remembered.look_again_at is not None
    assert remembered.look_again_at > at


@settings(max_examples=100)
@for_any(ANY_STORY)
def test_the_saga_decides_the_same_in_the_same_story(story: list[tuple[Fact | None, int]]) -> None:
    first, second = tell(story), tell(story)

    assert first[1:] == second[1:]


@settings(max_examples=100)
@for_any(ANY_STORY)
def test_the_saga_read_back_from_its_notes_is_the_saga_that_made_them(story: list[tuple[Fact | None, int]]) -> None:
    remembered, notes, _ = tell(story)

    again = saga(*(note for noted in notes for note in noted))

    assert _memory(again) == _memory(remembered)


def _memory(remembered: MailSaga) -> dict[str, object]:
    return {name: value for name, value in vars(remembered).items() if not name.startswith("_")}


# --- Stories: the saga, the handlers and the aggregates together ------------------------------


@pytest.fixture
def house() -> InMemoryService:
    return InMemoryService()


def failed(registration_id: UUID, serial: int = 1, *, permanent: bool = False) -> RecordEmailDispatchFailed:
    return RecordEmailDispatchFailed(
        registration_id=registration_id,
        serial=serial,
        kind=MailKind.CODE,
        failure=DispatchFailure(
            "mailbox-unknown" if permanent else "connection",
            permanent=permanent,
            provider="mx:25",
            attempts=1,
            reply_code=550 if permanent else None,
            reply_status="5.1.1" if permanent else None,
        ),
    )


def dispatched(registration_id: UUID, serial: int = 1) -> RecordEmailDispatched:
    return RecordEmailDispatched(
        registration_id=registration_id, serial=serial, hand_over=HandOver("mx:25", attempts=1, reply_code=250)
    )


async def test_a_registration_that_goes_well_becomes_an_account(house: InMemoryService) -> None:
    registration_id = await house.registered()
    await house.settle()
    await house.handle(dispatched(registration_id), WORKER)
    await house.handle(verifies(registration_id, right_code(registration_id)))

    await house.settle()

    assert house.log.history(registration_id) == [
        "UserRegistered",
        "OtpIssued",
        "EmailDispatched",
        "EmailVerified",
        "AccountActivated",
    ]
    assert house.log.history(MailSaga.stream_id(registration_id)) == [
        "MailSagaStarted",
        "MailRequested",
        "EndAwaited",
        "MailSagaEnded",
    ]
    assert house.claim().holder == registration_id


async def test_after_a_permanent_failure_everything_is_undone_in_reverse_order(house: InMemoryService) -> None:
    registration_id = await house.registered()
    await house.claimed_at_once(registration_id)
    await house.settle()
    await house.handle(failed(registration_id, permanent=True), WORKER)

    await house.settle()

    undone = [type(event).__name__ for event in house.log.events]
    assert [name for name in undone if name in {"OtpRevoked", "RegistrationCancelled", "EmailReleased"}] == [
        "OtpRevoked",
        "RegistrationCancelled",
        "EmailReleased",
    ]
    assert house.registration(registration_id).status is Status.CANCELLED
    assert house.claim().holder is None
    assert house.saga_of(registration_id).ended


async def test_the_address_is_freed_only_once_the_cancellation_was_seen(house: InMemoryService) -> None:
    registration_id = await house.registered()
    await house.claimed_at_once(registration_id)
    await house.settle()
    await house.handle(failed(registration_id, permanent=True), WORKER)

    await house.follow()

    assert house.registration(registration_id).status is Status.CANCELLED
    assert house.claim().holder == registration_id
    await house.follow()
    assert house.claim().holder is None


async def test_who_verified_meanwhile_keeps_the_address(house: InMemoryService) -> None:
    """The failure was recorded, then the registrant proved the address, and only then did the saga look."""
    registration_id = await house.registered()
    await house.settle()
    await house.handle(failed(registration_id, permanent=True), WORKER)
    await house.handle(verifies(registration_id, right_code(registration_id)))

    await house.settle()

    assert house.refusals == ["not-pending"]
    assert house.registration(registration_id).status is Status.ACTIVE
    assert house.claim().holder == registration_id
    assert "OtpRevoked" not in house.log.history(registration_id)
    assert house.log.history(MailSaga.stream_id(registration_id))[-2:] == ["UndoDecided", "MailSagaEnded"]


async def test_who_verifies_at_the_very_end_keeps_the_address(house: InMemoryService) -> None:
    registration_id = await house.registered()
    await house.settle()
    await house.handle(dispatched(registration_id, 1), WORKER)
    await house.settle()
    house.move(24 * HOUR)
    await house.handle(RequestNewCode(registration_id=registration_id))
    await house.handle(verifies(registration_id, right_code(registration_id, 2)))

    await house.look_again(registration_id)
    await house.settle()

    assert house.refusals == ["not-pending"]
    assert house.registration(registration_id).status is Status.ACTIVE
    assert house.claim().holder == registration_id
    assert house.saga_of(registration_id).ended


async def test_a_registration_nobody_verifies_is_undone_at_its_end(house: InMemoryService) -> None:
    registration_id = await house.registered()
    await house.claimed_at_once(registration_id)
    await house.settle()
    await house.handle(dispatched(registration_id), WORKER)
    await house.settle()
    assert house.saga_of(registration_id).look_again_at == house.clock() + 24 * HOUR

    house.move(24 * HOUR)
    await house.look_again(registration_id)
    await house.settle()

    assert house.registration(registration_id).status is Status.CANCELLED
    assert house.claim().holder is None
    await house.registered(registers(name="Somebody else"))


async def test_a_late_mail_carries_a_code_that_works(house: InMemoryService) -> None:
    """Mail servers away for hours: whatever is sent in the end is the mail of a code in force."""
    registration_id = await house.registered()
    await house.settle()
    while house.clock() < T0 + 5 * HOUR:
        serial = house.saga_of(registration_id).serial
        await house.handle(failed(registration_id, serial), WORKER)
        await house.settle()
        at = house.saga_of(registration_id).look_again_at
        assert at is not None
        house.clock.now = at
        await house.look_again(registration_id)
        await house.settle()

    request = house.saga_of(registration_id)
    await house.handle(dispatched(registration_id, request.serial), WORKER)
    answer = await house.handle(verifies(registration_id, right_code(registration_id, request.serial)))

    assert answer.status is Status.VERIFIED
    assert request.issued_at is not None
    assert house.clock() - request.issued_at < house.policy.otp_ttl
    assert request.serial > 1
    assert request.failures <= 12


async def test_a_code_whose_tries_were_used_up_before_its_mail_went_out_is_replaced(house: InMemoryService) -> None:
    registration_id = await house.registered()
    await house.settle()
    for _ in range(5):
        with pytest.raises(Exception, match="not the code"):
            await house.handle(verifies(registration_id, wrong_code(registration_id)))
    await house.settle()
    house.move(SECOND_LOOK)

    await house.look_again(registration_id)
    await house.settle()

    assert house.registration(registration_id).serial == 2
    assert house.saga_of(registration_id).serial == 2
    answer = await house.handle(verifies(registration_id, right_code(registration_id, 2)))
    assert answer.status is Status.VERIFIED


async def test_an_operators_retry_asks_for_the_mail_at_once(house: InMemoryService) -> None:
    registration_id = await house.registered()
    await house.settle()
    await house.handle(failed(registration_id), WORKER)
    await house.settle()

    await house.handle(RetryMail(registration_id=registration_id), OPERATOR)
    await house.settle()

    assert house.saga_of(registration_id).requests == 2


async def test_an_operators_retry_of_a_stale_mail_brings_a_new_code(house: InMemoryService) -> None:
    registration_id = await house.registered()
    await house.settle()
    await house.handle(failed(registration_id), WORKER)
    await house.settle()
    house.move(2 * HOUR)

    await house.handle(RetryMail(registration_id=registration_id), OPERATOR)
    await house.settle()

    assert house.saga_of(registration_id).serial == 2
    assert house.registration(registration_id).wants_mail(2)


async def test_an_operators_discard_undoes_the_registration(house: InMemoryService) -> None:
    registration_id = await house.registered()
    await house.claimed_at_once(registration_id)
    await house.settle()

    await house.handle(DiscardMail(registration_id=registration_id), OPERATOR)
    await house.settle()

    assert house.log.history(registration_id)[-3:] == ["EmailDiscarded", "OtpRevoked", "RegistrationCancelled"]
    assert house.claim().holder is None


async def test_a_superseded_registration_is_undone_at_its_ordinary_end_and_leaves_the_address(
    house: InMemoryService,
) -> None:
    first = await house.registered()
    house.move(timedelta(minutes=1))
    second = await house.active(registers(name="Somebody else"))
    assert house.registration(first).is_pending
    assert not house.saga_of(first).ended
    house.move(24 * HOUR)

    await house.look_again(first)
    await house.settle()

    assert house.registration(first).cancel_reason == "superseded"
    assert house.saga_of(first).ended
    assert house.claim().holder == second


@pytest.mark.parametrize("reason", ["operator", "erased"])
async def test_a_registration_that_an_operator_ends_frees_its_address(house: InMemoryService, reason: str) -> None:
    registration_id = await house.registered()
    await house.claimed_at_once(registration_id)
    await house.settle()
    command: Command = CancelRegistration(registration_id=registration_id, reason=CancelReason.OPERATOR)
    if reason == "erased":
        command = EraseRegistration(registration_id=registration_id)

    await house.handle(command, OPERATOR)
    await house.settle()

    assert house.saga_of(registration_id).ended
    assert house.claim().holder is None


async def test_an_account_that_is_erased_after_its_saga_ended_frees_its_address(house: InMemoryService) -> None:
    registration_id = await house.active()

    await house.handle(EraseRegistration(registration_id=registration_id), OPERATOR)
    await house.settle()

    assert house.claim().holder is None


async def test_a_duplicate_is_undone_like_any_other_and_the_owner_keeps_the_address(house: InMemoryService) -> None:
    owner = await house.active()
    duplicate = await house.registered(registers(name="Eve"))
    await house.settle()
    house.move(24 * HOUR)

    await house.look_again(duplicate)
    await house.settle()

    assert house.registration(duplicate).status is Status.CANCELLED
    assert house.claim().holder == owner


async def test_an_undoing_that_died_half_way_is_finished_at_the_next_look(house: InMemoryService) -> None:
    registration_id = await house.registered()
    await house.claimed_at_once(registration_id)
    await house.settle()
    await house.handle(failed(registration_id, permanent=True), WORKER)
    await house.handle(RevokeOtp(registration_id=registration_id))

    await house.settle()

    assert house.log.history(registration_id)[-2:] == ["OtpRevoked", "RegistrationCancelled"]
    assert house.claim().holder is None


@pytest.mark.parametrize("ending", ["verified", "undeliverable", "expired", "discarded"])
async def test_crashes_between_commands_and_notes_have_no_double_effect(ending: str) -> None:
    """Every step is done twice: once by a saga that dies before it saves its notes, once by its successor."""
    smooth, rough = InMemoryService(), InMemoryService()
    histories = []
    for house in (smooth, rough):

        async def step(house: InMemoryService = house) -> None:
            while house.followed < len(house.log.events):
                if house is rough:
                    await house.follow(crash=True)
                await house.follow()

        registration_id = await house.registered()
        await step()
        match ending:
            case "verified":
                await house.handle(verifies(registration_id, right_code(registration_id)))
            case "undeliverable":
                await house.handle(failed(registration_id, permanent=True), WORKER)
            case "discarded":
                await house.handle(DiscardMail(registration_id=registration_id), OPERATOR)
            case _:
                house.move(24 * HOUR)
                await house.look_again(registration_id)
        await step()
        claim = house.log.history(house.registration(registration_id).claim_id)
        histories.append((house.log.history(registration_id), claim))
        assert house.saga_of(registration_id).ended

    assert histories[0] == histories[1]


async def test_a_whole_history_seen_again_has_no_effect(house: InMemoryService) -> None:
    registration_id = await house.active()
    before = list(house.log.events)

    house.followed = 0
    await house.settle()

    assert house.log.events == before
    assert house.saga_of(registration_id).ended


@pytest.mark.parametrize("steps", [1, 2, 3])
async def test_events_seen_again_half_way_have_no_effect_on_the_registration(
    house: InMemoryService, steps: int
) -> None:
    registration_id = await house.registered()
    await house.settle()
    for command in (failed(registration_id), dispatched(registration_id))[: steps - 1]:
        await house.handle(command, WORKER)
        await house.settle()
    before, remembered = house.log.history(registration_id), house.saga_of(registration_id)

    house.followed = 0
    await house.settle()

    again = house.saga_of(registration_id)
    assert house.log.history(registration_id) == before
    assert (again.requests, again.failures, again.look_again_at) == (
        remembered.requests,
        remembered.failures,
        remembered.look_again_at,
    )


async def test_a_deadline_and_the_registrant_at_the_same_moment_end_in_one_truth(house: InMemoryService) -> None:
    registration_id = await house.registered()
    await house.settle()
    house.move(24 * HOUR)

    await asyncio.gather(
        house.look_again(registration_id),
        house.handle(verifies(registration_id, right_code(registration_id))),
        return_exceptions=True,
    )
    await house.settle()

    status = house.registration(registration_id).status
    assert status in {Status.ACTIVE, Status.CANCELLED}
    claimed = [event.registration_id for event in house.log.all(EmailClaim.EmailClaimed)]  # type: ignore[attr-defined]
    assert claimed == [str(registration_id)] * (status is Status.ACTIVE)
    assert house.saga_of(registration_id).ended
