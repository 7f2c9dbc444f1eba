"""A long log, written fast and by the store itself: registrations that all went well, from sign-up to account."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from uuid import UUID

import uvloop
from eventsourcing.domain import Aggregate
from eventsourcing.persistence import StoredEvent

from application.ports import Context
from domain.email_claim import ClaimId, EmailClaim
from domain.mail_outcome import HandOver, MailKind
from domain.mail_saga import MailSaga
from domain.mailbox import MailboxId
from domain.policy import Policy
from domain.recorded import Actor, Position
from domain.registration import Registration
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.store import EventStore
from infrastructure.postgres.clock import DatabaseClock

EVENTS_EACH = 10
"""Events of one registration that went well."""

_BATCH = 100
"""Registrations in one transaction."""

_CORRELATION = UUID("c0000000-0000-4000-8000-000000000001")
_ID = UUID("019cab10-0000-7000-8000-000000000001")
_CLAIM = ClaimId(UUID("c1a10000-0000-8000-8000-000000000001"))
_BEGUN = datetime(2026, 3, 1, 12, tzinfo=UTC)
_SEALED = "qUXkXfyHbF8MNXDJ" * 9
"""As long as a sealed person without a password is."""


@dataclass(frozen=True, slots=True)
class _Line:
    kind: str
    version: int
    topic: str
    state: bytes


def registered(number: int) -> list[StoredEvent]:
    """The three events of a new registration, as the API records them."""
    return _events(number, _STORY[:3])


def gone_well(number: int) -> list[StoredEvent]:
    """Everything that happens to a registration that goes well."""
    return _events(number, _STORY)


def registration_id(number: int) -> UUID:
    """In order of time, as the service makes them, and different for each number."""
    digest = int.from_bytes(sha256(b"registration %d" % number).digest()[:10], "big")
    value = ((1_772_366_400_000 + number) << 80) | digest
    return UUID(int=value & ~(0xF << 76) & ~(0b11 << 62) | (7 << 76) | (0b10 << 62))


def claim_id(number: int) -> UUID:
    value = int.from_bytes(sha256(b"claim %d" % number).digest()[:16], "big")
    return UUID(int=value & ~(0xF << 76) & ~(0b11 << 62) | (8 << 76) | (0b10 << 62))


def _events(number: int, story: list[_Line]) -> list[StoredEvent]:
    registration, claim = registration_id(number), claim_id(number)
    streams = {"registration": registration, "claim": claim}
    if len(story) > 3:
        streams["saga"] = MailSaga.stream_id(registration)
    ours, theirs = str(registration).encode(), str(claim).encode()
    return [
        StoredEvent(
            streams[line.kind],
            line.version,
            line.topic,
            line.state.replace(_ID_TEXT, ours).replace(_CLAIM_TEXT, theirs),
        )
        for line in story
    ]


_ID_TEXT, _CLAIM_TEXT = str(_ID).encode(), str(_CLAIM).encode()


def _story() -> list[_Line]:
    """Played once with the real aggregates; every other registration differs by its ids only."""
    policy, codec, lines = Policy(), EventCodec(), []

    def record(kind: str, aggregate: Aggregate) -> None:
        for event in aggregate.collect_events():
            stored = codec.encode(event)
            lines.append(_Line(kind, stored.originator_version, stored.topic, stored.state))

    now = _BEGUN
    registration = Registration.register(
        registration_id=_ID,
        claim_id=_CLAIM,
        fingerprint="f" * 64,
        personal_data=_SEALED,
        locale="en",
        duplicate_of=None,
        mailbox_id=MailboxId(_CLAIM),
        withheld=False,
        now=now,
    )
    record("registration", registration)
    record("claim", EmailClaim.begin(claim_id=_CLAIM, registration_id=_ID, now=now))
    saga = MailSaga.start(
        registration_id=_ID, claim_id=_CLAIM, kind=MailKind.CODE, ends_at=now + policy.registration_ttl, now=now
    )
    saga.request_mail(serial=1, issued_at=now, look_again_at=now + timedelta(minutes=2), now=now)
    record("saga", saga)
    now += timedelta(milliseconds=20)
    registration.record_dispatched(serial=1, hand_over=HandOver("mail.example.org:465", 1, 250), now=now)
    record("registration", registration)
    saga.await_end(now=now)
    record("saga", saga)
    now += timedelta(minutes=1)
    refusal = registration.verify(offered="123456", expected="123456", now=now, policy=policy)
    assert refusal is None
    record("registration", registration)
    registration.activate(now=now)
    record("registration", registration)
    saga.end(outcome="active", now=now)
    record("saga", saga)
    assert len(lines) == EVENTS_EACH
    return lines


_STORY = _story()

_WHO_AND_WHY: list[tuple[Actor, int | None]] = [
    *[(Actor.CLIENT, None)] * 3,
    *[(Actor.MAIL_SAGA, 1), (Actor.MAIL_SAGA, 2)],
    *[(Actor.MAIL_WORKER, 5), (Actor.MAIL_SAGA, 6)],
    *[(Actor.CLIENT, None), (Actor.MAIL_SAGA, 8), (Actor.MAIL_SAGA, 9)],
]
"""Of each line of the story: who recorded it, and the number of the line that led to it."""


def _contexts(before: Position) -> list[Context]:
    """Of a registration whose events come after this position."""
    return [Context(actor, _CORRELATION, None if cause is None else before + cause) for actor, cause in _WHO_AND_WHY]


def numbered(begin: int, end: int) -> Iterator[list[StoredEvent]]:
    """Events of registrations `begin` to `end` in the portions that are recorded at once."""
    for first in range(begin, end, _BATCH):
        yield [event for number in range(first, min(first + _BATCH, end)) for event in gone_well(number)]


async def write(dsn: str, events: int) -> None:
    """Fill an empty log with this many events."""
    store = EventStore(dsn, codec=EventCodec(), clock=DatabaseClock(), statement_timeout=timedelta(minutes=1))
    await store.open()
    under_way: asyncio.Task[int] | None = None
    recorded = 0
    for portion in numbered(0, events // EVENTS_EACH):
        # The next portion is made while this one is recorded.
        contexts = [one for begun in range(0, len(portion), EVENTS_EACH) for one in _contexts(recorded + begun)]
        task = asyncio.create_task(store.append_stored(list(zip(portion, contexts, strict=True))))
        recorded += len(portion)
        await asyncio.sleep(0)
        if under_way is not None:
            await under_way
        under_way = task
    if under_way is not None:
        await under_way
    await store.close()


def main() -> None:
    """Run as a process of its own."""
    job = json.loads(sys.argv[1])
    uvloop.run(write(job["dsn"], job["events"]))
    print("{}")


if __name__ == "__main__":
    main()
