"""The story of a registration in words: each event has a sentence, and the first line answers the question."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from eventsourcing.utils import get_topic

from application.commands import (
    AllowMailbox,
    CancelRegistration,
    DiscardMail,
    EraseRegistration,
    ImportUsers,
    RecordEmailComplained,
    RecordEmailDispatched,
    RecordEmailDispatchFailed,
    RequestNewCode,
    RetryMail,
    WithholdEmail,
)
from application.story.at_present import AtPresent
from application.story.sentences import sentence
from application.story.telling import QUESTION, Act, Story, lines, told
from application.story.words import FAILURES, duration
from domain.errors import WrongCode
from domain.mail_outcome import MAIL_FAILURES, CancelReason, DispatchFailure, HandOver, MailKind
from domain.mail_saga import MailSaga
from domain.recorded import Recorded
from infrastructure.event_store.codec import EventCodec, event_classes
from tests.support.scenarios import (
    KEYRING,
    OPERATOR,
    WORKER,
    InMemoryService,
    imported,
    registers,
    right_code,
    verifies,
)
from tests.unit.test_event_codec import GOLDEN_FILES, Golden

MX = "mx.example.net:25"

SENTENCES = {
    "email_claim.email_claimed": "The address belongs to this registration.",
    "operator.acted": 'An operator had the mail tried again, because "ticket 4711: the mailbox was full, déjà vu".',
    "operator.personal_data_read": "An operator was shown address and name in clear, with all about it, without a reason.",
    "registration.account_activated": "The account was activated.",
    "registration.personal_data_erased": "The person's key was destroyed: address and name cannot be read any more.",
}


@pytest.mark.parametrize("path", GOLDEN_FILES, ids=lambda path: path.stem)
def test_every_event_that_was_ever_written_has_a_sentence(path: Any) -> None:
    golden = Golden.read(path)
    event = EventCodec().decode(golden.stream_id, golden.version, golden.topic, golden.state)

    says = sentence(event)

    assert says.endswith(".")
    assert says == SENTENCES.get(golden.topic, says)
    if not golden.topic.startswith(("rebuild.", "stray_message.", "user_import.")):  # about no registration
        assert says != f"{event_classes()[golden.topic].__name__}."


def test_every_failure_of_a_mail_has_words() -> None:
    assert set(FAILURES) == set(MAIL_FAILURES)


@pytest.mark.parametrize(
    ("took", "says"),
    [
        (timedelta(0), "0 ms"),
        (timedelta(milliseconds=12), "12 ms"),
        (timedelta(seconds=2.14), "2.1 s"),
        (timedelta(seconds=59.96), "1 min"),
        (timedelta(seconds=200), "3 min 20 s"),
        (timedelta(hours=2, minutes=5, seconds=9), "2 h 5 min"),
        (timedelta(days=1, hours=3), "1 d 3 h"),
        (timedelta(seconds=-5), "-5.0 s"),
    ],
)
def test_durations_are_short(took: timedelta, says: str) -> None:
    assert duration(took) == says


# --- Why did this person not get the mail? --------------------------------------------------------


def story_of(house: InMemoryService, registration_id: UUID, present: AtPresent | None = None) -> Story:
    """What `audit explain` tells of it; causes are those that the log would have."""
    about = {registration_id, MailSaga.stream_id(registration_id)}
    events = [
        Recorded(
            event,
            position,
            get_topic(type(event)),
            event.timestamp,
            context.correlation_id,
            context.causation_position,
            context.actor,
            None,
        )
        for position, (event, context) in enumerate(zip(house.log.events, house.log.contexts, strict=True), start=1)
        if event.originator_id in about or getattr(event, "registration_id", None) == str(registration_id)
    ]
    return told(registration_id, events, house.clock(), present)


def failed(registration_id: UUID, failure: DispatchFailure, serial: int = 1) -> RecordEmailDispatchFailed:
    return RecordEmailDispatchFailed(
        registration_id=registration_id, serial=serial, kind=MailKind.CODE, failure=failure
    )


def sent(registration_id: UUID, serial: int = 1) -> RecordEmailDispatched:
    return RecordEmailDispatched(
        registration_id=registration_id, serial=serial, hand_over=HandOver(MX, attempts=2, reply_code=250)
    )


GREYLISTED = DispatchFailure("greylisted", False, MX, 3, 451, "4.7.1")
UNKNOWN = DispatchFailure("mailbox-unknown", True, MX, 1, 550, "5.1.1")
TIMEOUT = DispatchFailure("timeout", False, MX, 1, outcome_unknown=True)
EXPIRED = DispatchFailure("expired", False, "broker", 0)

Play = Callable[[InMemoryService, UUID], Awaitable[object]]


async def _does(house: InMemoryService, *commands: Any, actor: Any = WORKER) -> None:
    for command in commands:
        house.move(timedelta(seconds=2))
        await house.handle(command, actor)
        await house.settle()


async def _expires(house: InMemoryService, registration_id: UUID) -> None:
    await _does(house, failed(registration_id, GREYLISTED), failed(registration_id, GREYLISTED))
    house.move(timedelta(days=1))
    await house.look_again(registration_id)
    await house.settle()


async def _expires_unheard(house: InMemoryService, registration_id: UUID) -> None:
    house.move(timedelta(days=1))
    await house.look_again(registration_id)
    await house.settle()


async def _is_sent_with_the_third_code(house: InMemoryService, registration_id: UUID) -> None:
    for serial in (1, 2):
        await _does(house, failed(registration_id, GREYLISTED, serial))
        house.move(timedelta(minutes=15))
        await house.look_again(registration_id)  # the code would be too old on arrival: another one is issued
        await house.settle()
    await _does(house, sent(registration_id, 3))


async def _fails_and_is_tried_again(house: InMemoryService, registration_id: UUID) -> None:
    await _does(house, failed(registration_id, GREYLISTED))
    house.move(timedelta(minutes=1))
    await house.look_again(registration_id)


async def _fails_for_good(house: InMemoryService, registration_id: UUID) -> None:
    await house.handle(failed(registration_id, UNKNOWN), WORKER)  # the saga has not seen it yet


async def _is_discarded_and_erased(house: InMemoryService, registration_id: UUID) -> None:
    await _does(house, DiscardMail(registration_id=registration_id), actor=because)
    another = replace(OPERATOR, reason="asked for it", correlation_id=UUID(int=7))
    await _does(house, EraseRegistration(registration_id=registration_id), actor=another)


async def _is_erased_after_a_restore(house: InMemoryService, registration_id: UUID) -> None:
    await _does(house, RetryMail(registration_id=registration_id), actor=because)
    restore = replace(OPERATOR, actor="restore", correlation_id=UUID(int=7))
    await _does(house, EraseRegistration(registration_id=registration_id), actor=restore)


async def _is_late(house: InMemoryService, registration_id: UUID) -> None:
    house.move(timedelta(minutes=4))


async def _new_code(house: InMemoryService, registration_id: UUID) -> None:
    await _does(house, sent(registration_id))
    house.move(timedelta(minutes=2))
    await _does(house, RequestNewCode(registration_id=registration_id))


async def _is_withheld_after_a_complaint(house: InMemoryService, registration_id: UUID) -> None:
    complained = RecordEmailComplained(registration_id=registration_id, serial=1, reported_by="ses")
    await _does(house, sent(registration_id), complained)
    house.move(timedelta(minutes=2))
    await _does(house, RequestNewCode(registration_id=registration_id))
    await _does(house, WithholdEmail(registration_id=registration_id, serial=2))


async def _is_allowed_again(house: InMemoryService, registration_id: UUID) -> None:
    await _is_withheld_after_a_complaint(house, registration_id)
    await _does(house, AllowMailbox(registration_id=registration_id), actor=because)


because = replace(OPERATOR, reason="ticket 4711")

ANSWERS: list[tuple[str, Play, str]] = [
    (
        "sent",
        lambda house, r: _does(house, sent(r)),
        (
            f"It was sent: at 2026-03-01 12:00:02 UTC mail server {MX} accepted it with 250 at try 2, 2.0 s after its code "
            "was issued. What came after that, only that server knows."
        ),
    ),
    (
        "sent after failures",
        lambda house, r: _does(house, failed(r, GREYLISTED), sent(r)),
        (
            f"It was sent: at 2026-03-01 12:00:04 UTC mail server {MX} accepted it with 250 at try 2, 4.0 s after its code "
            "was issued and 1 failed try before. What came after that, only that server knows."
        ),
    ),
    (
        "refused",
        lambda house, r: _does(house, failed(r, UNKNOWN)),
        (
            f"It was refused: at 2026-03-01 12:00:02 UTC, mail server {MX} replied 550 5.1.1 (mailbox-unknown, permanent): "
            "it knows no such mailbox; so the registration was undone at 2026-03-01 12:00:02 UTC."
        ),
    ),
    (
        "waiting",
        lambda house, r: _does(house, failed(r, TIMEOUT)),
        (
            f"It is waiting: at 2026-03-01 12:00:02 UTC, no reply from mail server {MX} (timeout, temporary): it did not "
            "reply in time. The connection was lost at the end, so that server may have it all the same. The next look is "
            "at 2026-03-01 12:00:*"
        ),
    ),
    (
        "waiting for the broker",
        lambda house, r: _does(house, failed(r, EXPIRED)),
        (
            "It is waiting: at 2026-03-01 12:00:02 UTC, the broker gave it back (expired, temporary): the request had "
            "waited there too long, and no mail server was called. The next look is at*"
        ),
    ),
    (
        "on its way",
        lambda house, r: _does(house),
        (
            "It is on its way: the mail saga asked for it at 2026-03-01 12:00:00 UTC, and no server's reply is recorded "
            "yet. The next look is at 2026-03-01 12:02:00 UTC."
        ),
    ),
    (
        "overdue",
        _is_late,
        (
            "It is on its way: the mail saga asked for it at 2026-03-01 12:00:00 UTC, and no server's reply is recorded "
            "yet. The next look was due at 2026-03-01 12:02:00 UTC and is overdue by 2 min: does `registrar process`*"
        ),
    ),
    (
        "ended without it",
        _expires,
        (
            "It could not be sent before the registration ended at 2026-03-02 12:00:04 UTC. The last time, at 2026-03-01 "
            f"12:00:04 UTC, mail server {MX} replied 451 4.7.1 at try 3 (greylisted, temporary): it asked us to come again "
            "later. It had failed once before, since 2026-03-01 12:00:02 UTC."
        ),
    ),
    (
        "ended without a reply",
        _expires_unheard,
        (
            "It was asked for at 2026-03-01 12:00:00 UTC, and no server's reply was recorded before the registration ended "
            "at 2026-03-02 12:00:00 UTC: did `registrar work` (or `up`) run then?"
        ),
    ),
    (
        "sent with a code that was replaced twice meanwhile",
        _is_sent_with_the_third_code,
        (
            f"It was sent: at 2026-03-01 12:30:06 UTC mail server {MX} accepted it with 250 at try 2, 30 min 6 s after the "
            "first of 3 codes was issued and 2 failed tries before. What came after that, only that server knows."
        ),
    ),
    (
        "tried again",
        _fails_and_is_tried_again,
        (
            "It is on its way: the mail saga asked for it at 2026-03-01 12:01:02 UTC, and no server's reply is recorded "
            f"yet. Before that, at 2026-03-01 12:00:02 UTC, mail server {MX} replied 451 4.7.1 at try 3 (greylisted, "
            "temporary): it asked us to come again later. The next look is at 2026-03-01 12:05:02 UTC."
        ),
    ),
    (
        "about to be undone",
        _fails_for_good,
        (
            f"It was refused: at 2026-03-01 12:00:00 UTC, mail server {MX} replied 550 5.1.1 (mailbox-unknown, permanent): "
            "it knows no such mailbox; the registration is being undone."
        ),
    ),
    (
        "discarded, later erased for another reason",
        _is_discarded_and_erased,
        (
            "It was not sent, because the registration was cancelled at 2026-03-01 12:00:02 UTC: an operator gave the mail "
            'up, because "ticket 4711". The person was erased at 2026-03-01 12:00:04 UTC.'
        ),
    ),
    (
        "erased after a restore",
        _is_erased_after_a_restore,
        (
            "It was not sent, because the registration was cancelled at 2026-03-01 12:00:04 UTC: the person was erased. "
            "The person was erased at 2026-03-01 12:00:04 UTC."
        ),
    ),
    (
        "withheld",
        lambda house, r: _does(house, WithholdEmail(registration_id=r, serial=1)),
        (
            "It was withheld at 2026-03-01 12:00:02 UTC: the address belongs to an account, whose owner got a notice "
            "within the day before."
        ),
    ),
    (
        "withheld after a complaint",
        _is_withheld_after_a_complaint,
        (
            "It was withheld at 2026-03-01 12:02:08 UTC: the mailbox is sent no more, since a mail there was marked as "
            "unwanted; `registrar mail allow` lifts that.*"
        ),
    ),
    (
        "withheld after a complaint, and allowed again since",
        _is_allowed_again,
        (
            "It was withheld at 2026-03-01 12:02:08 UTC: the mailbox was sent no more. An operator has lifted that at "
            "2026-03-01 12:02:10 UTC; a new code will be sent.*"
        ),
    ),
    (
        "discarded",
        lambda house, r: _does(house, DiscardMail(registration_id=r), actor=because),
        (
            "It was not sent, because the registration was cancelled at 2026-03-01 12:00:02 UTC: an operator gave the mail "
            'up, because "ticket 4711".'
        ),
    ),
    (
        "cancelled",
        lambda house, r: _does(
            house, CancelRegistration(registration_id=r, reason=CancelReason.OPERATOR), actor=because
        ),
        (
            "It was not sent, because the registration was cancelled at 2026-03-01 12:00:02 UTC: an operator cancelled it, "
            'because "ticket 4711".'
        ),
    ),
    (
        "erased",
        lambda house, r: _does(house, EraseRegistration(registration_id=r), actor=because),
        (
            "It was not sent, because the registration was cancelled at 2026-03-01 12:00:02 UTC: the person was erased, "
            'because "ticket 4711". The person was erased at 2026-03-01 12:00:02 UTC.'
        ),
    ),
    (
        "verified",
        lambda house, r: _does(house, verifies(r, right_code(r))),
        "That it was sent is not recorded, but its code was entered at 2026-03-01 12:00:02 UTC.",
    ),
    (
        "a later code",
        _new_code,
        (
            "It is on its way: the mail saga asked for it at 2026-03-01 12:02:04 UTC, and no server's reply is recorded "
            f"yet. The next look is at 2026-03-01 12:04:04 UTC. An earlier one was sent: at 2026-03-01 12:00:02 UTC mail "
            f"server {MX} accepted it with 250 at try 2; its code is not valid any more."
        ),
    ),
]


@pytest.mark.parametrize(("play", "answer"), [pytest.param(play, says, id=name) for name, play, says in ANSWERS])
async def test_the_first_line_says_why_the_person_did_not_get_the_mail(play: Play, answer: str) -> None:
    house = InMemoryService()
    registration_id = await house.registered()
    await house.settle()

    await play(house, registration_id)

    first = next(lines(story_of(house, registration_id)))
    expected = f"{QUESTION} {answer}"
    if answer.endswith("*"):
        assert first.startswith(expected[:-1])
    else:
        assert first == expected


NOTHING_AMISS = AtPresent(
    saga_behind=0, relayed_upto=5, parked_at=None, parked_for=None, sending_until=None, shut=(), troubled=(), servers=2
)
"""The request for the mail is at position 5."""
AT = datetime(2026, 3, 1, 12, 1, tzinfo=UTC)

PRESENT: list[tuple[str, AtPresent, str]] = [
    (
        "no worker",
        NOTHING_AMISS,
        (
            "It was handed over, and no worker has told what became of it: does `registrar work` (or `up`) run, and how long "
            "is RabbitMQ's queue, if it is used?"
        ),
    ),
    (
        "the broker is away",
        replace(NOTHING_AMISS, relayed_upto=4),
        (
            "It has not been handed to a worker yet: does `registrar process` (or `up`) run, and is RabbitMQ there, if it is "
            "used?"
        ),
    ),
    (
        "all circuits are open",
        replace(NOTHING_AMISS, relayed_upto=4, shut=("a:25", MX)),
        (
            f"It has not been handed to a worker yet. No mail server is called at present: the circuit of a:25 and {MX} is "
            "open."
        ),
    ),
    (
        "the mail server hangs",
        replace(NOTHING_AMISS, relayed_upto=4, sending_until=AT),
        "A worker is sending it now, or waits for a mail server's reply; it may do so until 2026-03-01 12:01:00 UTC.",
    ),
]


@pytest.mark.parametrize(("present", "says"), [pytest.param(now, says, id=name) for name, now, says in PRESENT])
async def test_a_mail_under_way_is_told_with_where_it_is(present: AtPresent, says: str) -> None:
    house = InMemoryService()
    registration_id = await house.registered()
    await house.settle()

    assert says not in story_of(house, registration_id, present).answer
    house.move(timedelta(seconds=30))

    assert f"no server's reply is recorded yet. {says} The next look is at" in (
        story_of(house, registration_id, present).answer
    )


async def test_a_mail_that_waits_is_told_with_the_servers_that_take_none() -> None:
    house = InMemoryService()
    registration_id = await house.registered()
    await house.settle()
    await _does(house, failed(registration_id, TIMEOUT))

    def answer(**present: Any) -> str:
        return story_of(house, registration_id, replace(NOTHING_AMISS, **present)).answer

    assert f"The circuit of mail server {MX} is open; others are called. The next look" in answer(shut=(MX,))
    assert f"Mail server {MX} takes none of our mails at present. The next look" in answer(troubled=(MX,))


async def test_a_registration_that_was_put_aside_is_told_as_such() -> None:
    house = InMemoryService()
    registration_id = await house.registered()
    await house.settle()
    house.move(timedelta(minutes=4))
    parked = replace(NOTHING_AMISS, parked_at=AT, parked_for="KeyError")

    answer = story_of(house, registration_id, parked).answer

    assert "is overdue by 2 min." in answer
    assert "The mail saga has put this registration aside since 2026-03-01 12:01:00 UTC (KeyError), and does" in answer
    behind = story_of(house, registration_id, replace(NOTHING_AMISS, saga_behind=1200)).answer
    assert "overdue by 2 min: the mail saga is 1,200 events behind; does `registrar process`" in behind
    await _does(house, CancelRegistration(registration_id=registration_id, reason=CancelReason.OPERATOR))
    assert "put this registration aside" not in story_of(house, registration_id, parked).answer


async def test_who_did_it_and_what_is_told_in_words() -> None:
    house = InMemoryService()
    registration_id = await house.registered()
    await house.settle()
    dead = replace(WORKER, actor="dead-letter-consumer")
    await _does(house, failed(registration_id, EXPIRED), actor=dead)
    restore = replace(OPERATOR, actor="restore", correlation_id=UUID(int=7))
    await _does(house, EraseRegistration(registration_id=registration_id), actor=restore)

    headlines = [act.headline for act in story_of(house, registration_id).acts]

    assert "The consumer of dead letters got back what no worker had done" in headlines
    assert "The first start after a restore erased the person again" in headlines
    assert not any(headline.endswith("went on") for headline in headlines)


async def test_it_says_if_nobody_asked_for_the_mail() -> None:
    house = InMemoryService()
    registration_id = await house.registered()
    events = [
        Recorded(event, at, get_topic(type(event)), event.timestamp, OPERATOR.correlation_id, None, "client", None)
        for at, event in enumerate(house.log.events, start=1)
    ]

    def answer() -> str:
        return told(registration_id, events, house.clock()).answer

    house.move(timedelta(seconds=3))
    assert answer() == "It is about to be asked for: its code was issued 3.0 s ago."
    house.move(timedelta(minutes=5))
    assert answer().startswith(
        "It was never asked for: the mail saga has not come to it for 5 min 3 s; does `registrar"
    )


async def test_a_duplicate_is_told_as_one() -> None:
    house = InMemoryService()
    owner = await house.active()
    duplicate = await house.registered(registers(name="Eve"))
    await house.settle()
    await _does(house, sent(duplicate))

    told_of = [*lines(story_of(house, duplicate))]

    assert "It was a notice to the owner of the account: the address was taken" in told_of[0]
    assert any(f"Registered for an address that account {owner} holds" in line for line in told_of)


# --- The tree -------------------------------------------------------------------------------------


def rows_of(act: Act) -> list[str]:
    return [one.type for one in act.events]


async def test_what_follows_from_something_is_below_it() -> None:
    house = InMemoryService()
    registration_id = await house.registered()
    await house.settle()
    await _does(house, RetryMail(registration_id=registration_id), actor=because)
    recorded = [
        Recorded(event, at, get_topic(type(event)), event.timestamp, OPERATOR.correlation_id, cause, actor, None)
        for at, (event, (cause, actor)) in enumerate(
            zip(
                house.log.events,
                [
                    *((None, "client"), (None, "client"), (None, "client")),
                    *((1, "mail-saga"), (2, "mail-saga")),
                    *((None, "operator"), (None, "operator")),
                    (7, "mail-saga"),
                ],
                strict=True,
            ),
            start=1,
        )
    ]

    story = told(registration_id, recorded, house.clock())

    [registered, retried] = story.acts
    assert rows_of(registered) == [
        "registration.user_registered",
        "registration.otp_issued",
        "mailbox.mail_decided",
    ]
    assert [rows_of(one) for one in registered.consequences] == [["mail_saga.started"], ["mail_saga.mail_requested"]]
    assert retried.headline == "An operator had the mail tried again"
    assert [rows_of(one) for one in retried.consequences] == [["mail_saga.mail_requested"]]
    assert [*lines(story)][2:] == [
        f"Registration {registration_id}, PENDING, begun at 2026-03-01 12:00:00 UTC",
        f"├─ 2026-03-01 12:00:00 UTC: A client asked to register (request {OPERATOR.correlation_id})",
        "│  12:00:00.000  Registered.",
        "│  12:00:00.000  Code 1 was issued for the new registration.",
        "│  12:00:00.000  Mail 1 may be sent: the mailbox was granted 1 within a day.",
        "│  ├─ The mail saga took it up",
        "│  │  12:00:00.000  Decided: if the address is not verified by 2026-03-02 12:00:00 UTC, undo the registration.",
        "│  └─ The mail saga asked for the mail",
        "│     12:00:00.000  Decided: send mail 1, and look again at 2026-03-01 12:02:00 UTC.",
        "├─ 2026-03-01 12:00:02 UTC: An operator had the mail tried again",
        '│  12:00:02.000  An operator had the mail tried again, because "ticket 4711".',
        "│  12:00:02.000  Mail 1 is to be tried again now.",
        "└─ The mail saga asked for the mail",
        "   12:00:02.000  Decided: send mail 1 again (request 2), and look again at 2026-03-01 12:04:02 UTC.",
    ]


async def test_that_a_mailbox_is_sent_mails_again_is_told_with_the_operators_reason() -> None:
    house = InMemoryService()
    registration_id = await house.registered()
    await _is_allowed_again(house, registration_id)

    said = [*lines(story_of(house, registration_id))]

    act = next(at for at, line in enumerate(said) if "An operator had the mailbox sent mails again, because" in line)
    assert '"ticket 4711"' in said[act]
    assert said[act + 1].endswith("The mailbox is sent mails again, to whoever asks from now on.")


async def test_a_mail_that_is_tried_for_a_day_does_not_go_to_the_right() -> None:
    house = InMemoryService()
    registration_id = await house.registered()
    [first, *_] = house.log.events
    chain = [
        Recorded(first, at, get_topic(type(first)), first.timestamp, OPERATOR.correlation_id, at - 1 or None, "x", None)
        for at in range(1, 400)
    ]

    printed = [*lines(told(registration_id, chain, house.clock()))]

    assert max(map(len, printed[3:])) < 60


async def test_whose_address_went_to_a_user_who_was_taken_over_is_told_so_and_of_no_code() -> None:
    house = InMemoryService()
    first = await house.registered()
    await house.settle()
    await house.handle(ImportUsers(import_id=UUID(int=16), users=(imported("ada@example.com"),)), OPERATOR)

    last = story_of(house, first).acts[-1]

    assert last.headline == "An operator took over a user from another system, who has the address since"
    assert "proven" not in str([*lines(story_of(house, first))])


async def test_who_waited_for_an_invitation_is_told_to_have_ended_with_anothers_code() -> None:
    house = InMemoryService()
    users = (imported("ada@example.com", verified=False),)
    await house.handle(ImportUsers(import_id=UUID(int=16), users=users), OPERATOR)
    await house.active()

    story = story_of(house, KEYRING.imported_id(KEYRING.claim_id("ada@example.com")))

    assert story.acts[-1].headline == "A client entered the code of another registration, which has the address since"
    assert "another registration of the same address took its place" in story.answer


@pytest.mark.parametrize("tries", [False, True])
async def test_whose_address_another_has_proven_is_told_by_what_was_done_to_it(tries: bool) -> None:
    house = InMemoryService()
    first = await house.registered()
    house.move(timedelta(minutes=1))
    second = await house.registered(registers(name="Eve"))
    await house.settle()
    await house.handle(verifies(second, right_code(second)))
    house.move(timedelta(minutes=1))
    if tries:
        with pytest.raises(WrongCode):
            await house.handle(verifies(first, right_code(first)))

    headlines = [act.headline for act in story_of(house, first).acts if act.actor == "client"]

    proven = "A client entered the code of another registration, which has the address since"
    assert headlines == ["A client asked to register", proven, *["A client entered a wrong code"] * tries]
