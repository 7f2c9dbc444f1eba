"""A log in memory that keeps the promises of `application.ports.Log`, and the checks of those promises.

`log_contract` runs against this one and against the real store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import pytest
from eventsourcing.domain import Aggregate

from application.ports import (
    A,
    Checkpoint,
    Conflict,
    Context,
    Entry,
    Holder,
    Log,
    UnexpectedAggregate,
    WrappedKey,
    entries_of,
)
from domain.email_claim import ClaimId, EmailClaim
from domain.mailbox import Mailbox, MailboxId, claim_mark
from domain.recorded import AnyEvent, Position
from domain.registration import Registration
from infrastructure.event_store.codec import EventCodec
from tests.support.facts import (
    CLIENT,
    T0,
    Fact,
    email_claimed,
    email_released,
    email_verified,
    mail_decided,
    otp_issued,
    registered,
    stream,
    user_imported,
)


class Row(NamedTuple):
    stream_id: UUID
    version: int
    topic: str
    state: bytes


Rows = dict[UUID, list[tuple[Row, Position]]]

_PROOFS = {Registration.EmailVerified.TOPIC, Registration.UserImported.TOPIC}
_NOBODY: Mapping[UUID, Holder] = {}


class MemoryStreams:
    """Implements `application.ports.Streams`."""

    def __init__(self, codec: EventCodec, rows: Rows, holders: Mapping[UUID, Holder] = _NOBODY) -> None:
        self._codec = codec
        self._rows = rows
        self._holders = holders

    def get(self, kind: type[A], stream_id: UUID) -> A | None:
        aggregate: Any = None
        for row, _ in self._rows.get(stream_id, ()):
            aggregate = self._codec.decode(*row).mutate(aggregate)
        if aggregate is not None and not isinstance(aggregate, kind):
            raise UnexpectedAggregate(stream_id, type(aggregate), kind)
        return aggregate

    def holder(self, claim_id: UUID) -> Holder | None:
        return self._holders.get(claim_id)

    def position(self, stream_id: UUID) -> Position:
        rows = self._rows.get(stream_id)
        return rows[-1][1] if rows else 0

    def position_at(self, stream_id: UUID, version: int) -> Position:
        return self._rows[stream_id][version - 1][1]


class MemoryLog:
    """Implements `application.ports.Log`. Every call lets others run first, as a round trip would."""

    def __init__(self) -> None:
        self.codec = EventCodec()
        self.rows: Rows = {}
        self.events: list[AnyEvent] = []
        self.contexts: list[Context] = []
        self.appends: list[list[str]] = []
        self.keys: dict[UUID, bytes] = {}
        self.followers: dict[str, Position] = {}
        self.loads = 0

    async def append(
        self, entries: Sequence[Entry], *, keys: Sequence[WrappedKey] = (), moved: Checkpoint | None = None
    ) -> Position:
        await asyncio.sleep(0)
        encoded = [(event, self.codec.encode(event)) for event, _ in entries]
        stored = [Row(event.originator_id, event.originator_version, e.topic, e.state) for event, e in encoded]
        expected: dict[UUID, int] = {}
        for row in stored:
            version = expected.get(row.stream_id, len(self.rows.get(row.stream_id, ()))) + 1
            if row.version != version:
                raise Conflict("a stream has moved on")
            expected[row.stream_id] = version
        if moved is not None:
            if self.followers.get(moved.name, 0) != moved.since:
                raise Conflict("the follower has moved on")
            self.followers[moved.name] = moved.to
        for (event, context), row in zip(entries, stored, strict=True):
            self.events.append(event)
            self.contexts.append(context)
            self.rows.setdefault(row.stream_id, []).append((row, len(self.events)))
        self.appends.append([type(event).__name__ for event, _ in entries])
        for key in keys:
            if key.wrapped is None:
                self.keys.pop(key.registration_id, None)
            else:
                assert key.registration_id not in self.keys
                self.keys[key.registration_id] = key.wrapped
        return len(self.events)

    async def load(
        self,
        *stream_ids: UUID,
        holders_of: Sequence[UUID] = (),
        mailboxes: Sequence[UUID] = (),
        proofs_of: Sequence[UUID] = (),
    ) -> MemoryStreams:
        await asyncio.sleep(0)
        self.loads += 1
        wanted = {*stream_ids, *holders_of}
        everything = MemoryStreams(self.codec, self.rows)
        for claim_id in holders_of:
            claim = everything.get(EmailClaim, claim_id)
            if claim is not None:
                wanted |= {one for one in (claim.holder or claim.former,) if one is not None}
        latest = {mailbox_id: self.rows[mailbox_id][-1:] for mailbox_id in mailboxes if mailbox_id in self.rows}
        for mailbox_id in latest:
            mailbox = MemoryStreams(self.codec, latest).get(Mailbox, mailbox_id)
            assert mailbox is not None
            marks = set(map(claim_mark, holders_of))
            wanted |= {one.registration_id for one in mailbox.applicants if one.claim in marks}
        rows = {name: list(self.rows[name]) for name in wanted if name in self.rows}
        holders = {}
        for claim_id in proofs_of:
            claim = everything.get(EmailClaim, claim_id)
            if claim is not None and claim.holder is not None:
                proven = any(row.topic in _PROOFS for row, _ in self.rows.get(claim.holder, ()))
                holders[claim_id] = Holder(claim.holder, proven)
        return MemoryStreams(self.codec, rows | latest, holders)

    def of(self, kind: type[A], stream_id: UUID) -> A:
        """The aggregate as it stands now."""
        aggregate = MemoryStreams(self.codec, self.rows).get(kind, stream_id)
        assert aggregate is not None
        return aggregate

    def all(self, event: type[AnyEvent]) -> list[AnyEvent]:
        """Every recorded event of this class."""
        return [recorded for recorded in self.events if isinstance(recorded, event)]

    def history(self, stream_id: UUID) -> list[str]:
        """Names of a stream's events."""
        return [type(event).__name__ for event in self.events if event.originator_id == stream_id]


def collected(*aggregates: Aggregate) -> list[AnyEvent]:
    """What is pending in the aggregates, in order: what a handler appends."""
    return [event for aggregate in aggregates for event in aggregate.collect_events()]


async def log_contract(log: Log) -> None:
    """What every log promises. Uses streams of its own, so it may run on a log that is not empty."""
    await _appends_whole_and_in_order(log)
    await _refuses_what_does_not_follow(log)
    await _one_conflict_spoils_the_whole_append(log)
    await _one_of_many_simultaneous_appends_wins(log)
    await _loads_claims_with_their_holders(log)
    await _loads_the_latest_of_a_mailbox_with_its_applicants(log)
    await _tells_who_holds_a_claim_and_whether_they_have_proven_it(log)
    await _gives_each_caller_an_aggregate_of_its_own(log)
    await _keeps_followers_in_step(log)


async def _appends_whole_and_in_order(log: Log) -> None:
    first, second, nobody = uuid4(), uuid4(), uuid4()

    at = await log.append(
        entries_of([*stream(first, registered(), otp_issued()), *stream(second, registered())], CLIENT)
    )
    then = await log.append(entries_of(stream(second, otp_issued(), after=1), CLIENT))

    streams = await log.load(first, second, nobody)
    assert then > at
    assert (streams.position(first), streams.position(second), streams.position(nobody)) == (at - 1, then, 0)
    one, two = streams.get(Registration, first), streams.get(Registration, second)
    assert one is not None
    assert two is not None
    assert (one.version, two.version, one.serial, two.serial) == (2, 2, 1, 1)
    assert one.created_on == T0
    assert streams.get(Registration, nobody) is None


async def _refuses_what_does_not_follow(log: Log) -> None:
    name = uuid4()
    await log.append(entries_of(stream(name, registered(), otp_issued()), CLIENT))

    for wrong in (
        stream(name, registered()),
        stream(name, email_verified(), after=1),
        stream(name, email_verified(), after=3),
        stream(uuid4(), otp_issued(), after=1),
    ):
        with pytest.raises(Conflict):
            await log.append(entries_of(wrong, CLIENT))

    registration = (await log.load(name)).get(Registration, name)
    assert registration is not None
    assert registration.version == 2


async def _one_conflict_spoils_the_whole_append(log: Log) -> None:
    taken, new = uuid4(), uuid4()
    await log.append(entries_of(stream(taken, email_claimed()), CLIENT))

    with pytest.raises(Conflict):
        await log.append(
            entries_of([*stream(new, registered(), otp_issued()), *stream(taken, email_claimed())], CLIENT)
        )

    streams = await log.load(new, taken)
    assert streams.get(Registration, new) is None
    assert streams.position(new) == 0


async def _one_of_many_simultaneous_appends_wins(log: Log) -> None:
    claim, candidates = ClaimId(uuid4()), [uuid4() for _ in range(20)]

    results = await asyncio.gather(
        *(
            log.append(
                entries_of([*stream(name, registered(), otp_issued()), *stream(claim, email_claimed(name))], CLIENT)
            )
            for name in candidates
        ),
        return_exceptions=True,
    )

    streams = await log.load(*candidates, holders_of=[claim])
    [winner] = [name for name, result in zip(candidates, results, strict=True) if isinstance(result, int)]
    assert sum(isinstance(result, Conflict) for result in results) == 19
    assert [name for name in candidates if streams.position(name)] == [winner]
    held = streams.get(EmailClaim, claim)
    assert held is not None
    assert held.holder == winner


async def _loads_claims_with_their_holders(log: Log) -> None:
    holder, former = uuid4(), uuid4()
    held, freed, unknown = (ClaimId(uuid4()) for _ in range(3))
    await log.append(
        entries_of([*stream(holder, registered(), otp_issued()), *stream(held, email_claimed(holder))], CLIENT)
    )
    await log.append(entries_of([*stream(former, registered()), *stream(freed, email_claimed(former))], CLIENT))
    await log.append(entries_of(stream(freed, email_released(former), after=1), CLIENT))

    streams = await log.load(holders_of=[held, freed, unknown])

    claim, free = streams.get(EmailClaim, held), streams.get(EmailClaim, freed)
    assert claim is not None
    assert claim.holder == holder
    found = streams.get(Registration, holder)
    assert found is not None
    assert found.version == 2
    assert streams.position(holder) > 0
    assert free is not None
    assert (free.holder, free.former) == (None, former)
    assert streams.get(Registration, former) is not None
    assert streams.get(EmailClaim, unknown) is None


async def _tells_who_holds_a_claim_and_whether_they_have_proven_it(log: Log) -> None:
    proven, pending, former = uuid4(), uuid4(), uuid4()
    facts: dict[UUID, list[Fact]] = {proven: [email_verified()], pending: [], former: [email_verified()]}
    claims = {name: ClaimId(uuid4()) for name in facts}
    for name, claim in claims.items():
        registration = stream(name, registered(), otp_issued(), *facts[name])
        await log.append(entries_of([*registration, *stream(claim, email_claimed(name))], CLIENT))
    await log.append(entries_of(stream(claims[former], email_released(former), after=1), CLIENT))
    taken_over, its_claim = uuid4(), ClaimId(uuid4())
    account = [*stream(taken_over, user_imported()), *stream(its_claim, email_claimed(taken_over))]
    await log.append(entries_of(account, CLIENT))
    unknown = ClaimId(uuid4())

    streams = await log.load(proofs_of=[*claims.values(), its_claim, unknown])

    assert streams.holder(claims[proven]) == Holder(proven, proven=True)
    assert streams.holder(claims[pending]) == Holder(pending, proven=False)
    assert streams.holder(its_claim) == Holder(taken_over, proven=True)
    assert streams.holder(claims[former]) is None
    assert streams.holder(unknown) is None


async def _loads_the_latest_of_a_mailbox_with_its_applicants(log: Log) -> None:
    first, second, of_a_tag = uuid4(), uuid4(), uuid4()
    claim, tagged, mailbox_id, unknown = ClaimId(uuid4()), ClaimId(uuid4()), MailboxId(uuid4()), MailboxId(uuid4())
    for version, (name, applicants) in enumerate(
        {
            first: [(first, claim)],
            of_a_tag: [(first, claim), (of_a_tag, tagged)],
            second: [(first, claim), (of_a_tag, tagged), (second, claim)],
        }.items()
    ):
        decided = mail_decided(name, applicants=applicants)
        await log.append(
            entries_of([*stream(name, registered(), otp_issued()), *stream(mailbox_id, decided, after=version)], CLIENT)
        )

    streams = await log.load(holders_of=[claim], mailboxes=[mailbox_id, unknown])
    alone = await log.load(mailboxes=[mailbox_id])

    mailbox = streams.get(Mailbox, mailbox_id)
    assert mailbox is not None
    assert mailbox.version == 3
    assert [one.registration_id for one in mailbox.applicants] == [first, of_a_tag, second]
    assert streams.position(mailbox_id) > streams.position(second) > streams.position(first) > 0
    assert streams.get(Registration, second) is not None
    assert streams.position(of_a_tag) == 0
    assert streams.get(Mailbox, unknown) is None
    assert alone.get(Mailbox, mailbox_id) is not None
    assert alone.position(first) == 0
    mailbox.trigger_event(Mailbox.MailDecided, originator_topic="mailbox", timestamp=T0, **decided.fields)
    await log.append(entries_of(mailbox.collect_events(), CLIENT))


async def _gives_each_caller_an_aggregate_of_its_own(log: Log) -> None:
    name = uuid4()
    await log.append(entries_of(stream(name, registered(), otp_issued()), CLIENT))

    ours, theirs = await asyncio.gather(log.load(name), log.load(name))

    mine = ours.get(Registration, name)
    assert mine is not None
    mine.revoke_code(now=T0)
    for streams in (ours, theirs):
        other = streams.get(Registration, name)
        assert other is not None
        assert not other.revoked
    with pytest.raises(UnexpectedAggregate):
        ours.get(EmailClaim, name)


async def _keeps_followers_in_step(log: Log) -> None:
    name, follower = uuid4(), f"contract-{uuid4()}"
    await log.append(entries_of(stream(name, registered()), CLIENT), moved=Checkpoint(follower, since=0, to=5))

    with pytest.raises(Conflict):
        await log.append(
            entries_of(stream(name, otp_issued(), after=1), CLIENT), moved=Checkpoint(follower, since=0, to=6)
        )
    with pytest.raises(Conflict):
        await log.append(entries_of(stream(name, registered()), CLIENT), moved=Checkpoint(follower, since=5, to=7))

    assert (await log.load(name)).position(name) > 0
    await log.append(entries_of(stream(name, otp_issued(), after=1), CLIENT), moved=Checkpoint(follower, since=5, to=8))
    registration = (await log.load(name)).get(Registration, name)
    assert registration is not None
    assert registration.version == 2
    assert registration.created_on - T0 == timedelta(0)
