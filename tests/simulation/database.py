"""The database in memory: it keeps the ports' promises, and fails in every way that they allow.

Every call travels to its destination and its answer back, so whoever calls can be killed before, in between or after.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from heapq import heappop, heappush
from random import Random
from typing import Any
from uuid import UUID

import psycopg
from eventsourcing.domain import Aggregate

from application.ports import (
    A,
    Checkpoint,
    Conflict,
    Context,
    Entry,
    Holder,
    Overloaded,
    SendClaim,
    Unavailable,
    UnexpectedAggregate,
    WrappedKey,
)
from domain.email_claim import EmailClaim
from domain.mail_saga import MailSaga
from domain.mailbox import Mailbox, claim_mark
from domain.recorded import AnyEvent, Position, Recorded
from domain.registration import Registration
from infrastructure.event_store.batch import Stretch
from infrastructure.event_store.reader import RecordedRow, decoded
from infrastructure.postgres.batching import Batcher
from projections.deadlines import DueLook
from tests.simulation.faults import Faults, Network, Windows, finish
from tests.simulation.virtual_time import PROCESS, VirtualLoop
from tests.support.facts import T0

LEASE = 45.0
"""Seconds: 3 · SEND_TIMEOUT + 15, as the composition root sets it."""


class SimulatedStreams:
    """Implements `application.ports.Streams`: copies of the aggregates as they were at one moment."""

    def __init__(
        self,
        states: dict[UUID, Aggregate],
        positions: dict[UUID, Position],
        placed: dict[UUID, list[Position]],
        holders: dict[UUID, Holder],
    ) -> None:
        self._states = states
        self._positions = positions
        self._holders = holders
        self._placed = placed

    def get(self, kind: type[A], stream_id: UUID) -> A | None:
        state = self._states.get(stream_id)
        if state is None:
            return None
        if not isinstance(state, kind):
            raise UnexpectedAggregate(stream_id, type(state), kind)
        return copy_of(state)

    def holder(self, claim_id: UUID) -> Holder | None:
        return self._holders.get(claim_id)

    def position(self, stream_id: UUID) -> Position:
        return self._positions.get(stream_id, 0)

    def position_at(self, stream_id: UUID, version: int) -> Position:
        return self._placed[stream_id][version - 1]


def copy_of(aggregate: A) -> A:
    """An aggregate of one's own; its attributes are immutable, or containers of immutable things."""
    kind = type(aggregate)
    containers = _CONTAINERS.get(kind)
    if containers is None:
        containers = [name for name, value in vars(aggregate).items() if isinstance(value, list | dict | set)]
        _CONTAINERS[kind] = containers
    copy = object.__new__(kind)
    mine = vars(copy)
    mine.update(vars(aggregate))
    for name in containers:
        mine[name] = mine[name].copy()
    return copy


_CONTAINERS: dict[type[Aggregate], list[str]] = {}


class Database:
    """What is durable: the log, followers' positions, keys, send claims; and the read model of deadlines, a bit late.

    Attributes:
        on_commit: told the events of every commit, after it.
    """

    def __init__(self, loop: VirtualLoop, rng: Random) -> None:
        self._loop = loop
        self._rng = rng
        self.recorded: list[Recorded] = []
        self.rows: list[RecordedRow] = []
        self.streams: dict[UUID, list[AnyEvent]] = {}
        self.states: dict[UUID, Aggregate] = {}
        self.positions: dict[UUID, Position] = {}
        self.placed: dict[UUID, list[Position]] = {}
        self.followers: dict[str, Position] = {}
        self.keys: dict[UUID, bytes] = {}
        self.claims: dict[tuple[UUID, int], tuple[UUID, float]] = {}
        self.parked: list[tuple[str, UUID, Position, str]] = []
        self.on_commit: Callable[[Sequence[AnyEvent], Sequence[Context]], None] = lambda *_: None
        self.on_moved: Callable[[str, Position, Position], None] = lambda *_: None
        self.announce: Callable[[], None] = lambda: None
        # The read model: what it will show and when, what it shows, and the same in order.
        self._coming: deque[tuple[float, DueLook, datetime | None]] = deque()
        self._looks: dict[UUID, tuple[datetime, DueLook]] = {}
        self._in_order: list[tuple[datetime, UUID]] = []

    @property
    def head(self) -> Position:
        return len(self.recorded)

    def commit(
        self,
        events: Sequence[tuple[AnyEvent, Context]],
        keys: Sequence[WrappedKey] = (),
        moved: Checkpoint | None = None,
    ) -> Position:
        """All of it or nothing."""
        expected: dict[UUID, int] = {}
        for event, _ in events:
            stream_id = event.originator_id
            version = expected.get(stream_id)
            if version is None:
                version = len(self.streams.get(stream_id, ()))
            if event.originator_version != version + 1:
                raise Conflict("a stream has moved on")
            expected[stream_id] = version + 1
        if moved is not None:
            if self.followers.get(moved.name, 0) != moved.since:
                raise Conflict("the follower has moved on")
            self._move(moved.name, moved.since, moved.to)
        recorded_at = T0 + timedelta(seconds=self._loop.now)
        for event, context in events:
            stream_id, position = event.originator_id, len(self.recorded) + 1
            topic: str = type(event).TOPIC  # type: ignore[attr-defined]
            beside = (recorded_at, context.correlation_id, context.causation_position, context.actor, context.trace)
            self.recorded.append(Recorded(event, position, topic, *beside))
            self.rows.append(RecordedRow(stream_id, event.originator_version, topic, b"", position, *beside))
            self.streams.setdefault(stream_id, []).append(event)
            state: Any = event.mutate(self.states.get(stream_id))
            self.states[stream_id] = state
            self.positions[stream_id] = position
            self.placed.setdefault(stream_id, []).append(position)
            if isinstance(state, MailSaga):
                self._project(event, state, context)
        for key in keys:
            if key.wrapped is None:
                self.keys.pop(key.registration_id, None)
            else:
                self.keys[key.registration_id] = key.wrapped
        self.on_commit([event for event, _ in events], [context for _, context in events])
        self.announce()
        return len(self.recorded)

    def claim(self, registration_id: UUID) -> SendClaim:
        return SendClaim(self.keys.get(registration_id), self.load((registration_id,), (), ()))

    def load(
        self,
        stream_ids: Sequence[UUID],
        holders_of: Sequence[UUID],
        mailboxes: Sequence[UUID],
        proofs_of: Sequence[UUID] = (),
    ) -> SimulatedStreams:
        states: dict[UUID, Aggregate] = {}
        wanted = [*stream_ids, *holders_of, *mailboxes]
        for claim_id in holders_of:
            claim = self.states.get(claim_id)
            if isinstance(claim, EmailClaim):
                wanted += [one for one in (claim.holder or claim.former,) if one is not None]
        for mailbox_id in mailboxes:
            mailbox = self.states.get(mailbox_id)
            if isinstance(mailbox, Mailbox):
                marks = set(map(claim_mark, holders_of))
                wanted += [one.registration_id for one in mailbox.applicants if one.claim in marks]
        for stream_id in wanted:
            if stream_id in self.states:
                states[stream_id] = copy_of(self.states[stream_id])
        holders: dict[UUID, Holder] = {}
        for claim_id in proofs_of:
            claim = self.states.get(claim_id)
            if isinstance(claim, EmailClaim) and claim.holder is not None:
                registration = self.states.get(claim.holder)
                proven = isinstance(registration, Registration) and registration.is_proven
                holders[claim_id] = Holder(claim.holder, proven)
        return SimulatedStreams(states, {one: self.positions[one] for one in states}, self.placed, holders)

    def save_position(self, name: str, since: Position, to: Position) -> bool:
        if self.followers.get(name, 0) != since:
            return False
        self._move(name, since, to)
        return True

    def _move(self, name: str, since: Position, to: Position) -> None:
        self.followers[name] = to
        self.on_moved(name, since, to)

    # --- The read model of deadlines (`projections/deadlines.py` in memory) -------------------

    def _project(self, event: AnyEvent, saga: MailSaga, context: Context) -> None:
        match event:
            case MailSaga.MailSagaEnded():
                look: datetime | None = None
            case MailSaga.MailSagaStarted() | MailSaga.MailSagaReopened():
                look = event.ends_at
            case _:
                look = event.look_again_at  # type: ignore[attr-defined]
        shown_at = self._loop.now + self._rng.random() * 0.1
        if self._coming:
            shown_at = max(shown_at, self._coming[-1][0])
        due_at = look or datetime.max.replace(tzinfo=UTC)
        due = DueLook(saga.registration_id, context.correlation_id, len(self.recorded), context.trace, due_at)
        self._coming.append((shown_at, due, look))

    def _show(self) -> None:
        while self._coming and self._coming[0][0] <= self._loop.now:
            _, due, look = self._coming.popleft()
            if look is None:
                self._looks.pop(due.registration_id, None)
            else:
                self._looks[due.registration_id] = (look, due)
                heappush(self._in_order, (look, due.registration_id))

    def _shown(self, look: datetime, registration_id: UUID) -> DueLook | None:
        """Does the read model still say so?"""
        shown = self._looks.get(registration_id)
        return shown[1] if shown is not None and shown[0] == look else None

    def due(self, now: datetime, limit: int) -> list[DueLook]:
        self._show()
        found: dict[UUID, tuple[datetime, DueLook]] = {}
        while self._in_order and self._in_order[0][0] <= now:
            look, registration_id = heappop(self._in_order)
            if (due := self._shown(look, registration_id)) is not None:
                found[registration_id] = (look, due)
        for registration_id, (look, _) in found.items():
            heappush(self._in_order, (look, registration_id))
        return [due for _, due in found.values()][:limit]

    def next_look(self) -> float | None:
        """When, in seconds, the read model may next have something due."""
        self._show()
        while self._in_order and self._shown(*self._in_order[0]) is None:
            heappop(self._in_order)
        moments = [max(shown_at, _seconds(look)) for shown_at, _, look in self._coming if look is not None]
        if self._in_order:
            moments.append(_seconds(self._in_order[0][0]))
        return min(moments, default=None)

    def looks(self) -> set[UUID]:
        """The registrations that the read model shows once it has seen everything."""
        looks = set(self._looks)
        for _, due, look in self._coming:
            if look is None:
                looks.discard(due.registration_id)
            else:
                looks.add(due.registration_id)
        return looks


def _seconds(moment: datetime) -> float:
    return (moment - T0).total_seconds()


class DatabasePort:
    """How calls to the database fail: before they arrive, or on the way back."""

    def __init__(self, database: Database, network: Network, faults: Faults, away: Windows, locked: Windows) -> None:
        self.database = database
        self._network = network
        self._faults = faults
        self._away = away
        self._locked = locked

    async def go(self, what: str) -> None:
        """The call arrives.

        Raises:
            Unavailable: it did not; nothing was done.
        """
        network = self._network
        await network.travel()
        if network.loop.now in self._away:
            self._faults.count("database away")
            await network.pause(0.5)
            raise Unavailable("the database is away")
        if self._faults.hits(what + " refused"):
            raise Unavailable("the database is away")

    async def come(self, what: str) -> None:
        """The answer arrives.

        Raises:
            Unavailable: it did not; it was done all the same.
        """
        await self._network.travel()
        if self._faults.hits(what + " unanswered"):
            raise Unavailable("the database is away; the outcome is unknown")

    def locked(self) -> bool:
        """Are appends shut out (docs/reliability.md, B11)?"""
        if self._network.loop.now not in self._locked:
            return False
        self._faults.count("append while locked")
        return True


class SimulatedStore(DatabasePort):
    """Implements `application.ports.Log`, and of `EventStore` and `LogTail` what the followers use."""

    async def append(
        self, entries: Sequence[Entry], *, keys: Sequence[WrappedKey] = (), moved: Checkpoint | None = None
    ) -> Position:
        await self.go("append")
        if self.locked() or self._faults.hits("append overloaded"):
            raise Overloaded("too many appends are waiting")
        if self._faults.hits("append late"):
            # It is on its way, but the caller's patience ends first.
            loop = self._network.loop
            loop.later(self._network._random() * 20.0, self._commit_late, entries, keys, moved)
            raise Unavailable("the database is away; whether it was recorded is unknown")
        position = self.database.commit(entries, keys, moved)
        await self.come("append")
        return position

    def _commit_late(self, entries: Sequence[Entry], keys: Sequence[WrappedKey], moved: Checkpoint | None) -> None:
        try:
            self.database.commit(entries, keys, moved)
        except Conflict:
            return

    async def load(
        self,
        *stream_ids: UUID,
        holders_of: Sequence[UUID] = (),
        mailboxes: Sequence[UUID] = (),
        proofs_of: Sequence[UUID] = (),
    ) -> SimulatedStreams:
        await self.go("load")
        streams = self.database.load(stream_ids, holders_of, mailboxes, proofs_of)
        await self.come("load")
        return streams

    async def read(
        self, after: Position, limit: int, topics: Sequence[str] | None = None
    ) -> tuple[list[RecordedRow], Position]:
        await self.go("read")
        rows = self.database.rows[after : after + limit]
        await self.come("read")
        seen = rows[-1].position if rows else after
        return [row for row in rows if topics is None or row.topic in topics], seen

    def decode(self, row: RecordedRow) -> Recorded:
        return self.database.recorded[row.position - 1]

    async def stretch(
        self, after: Position, limit: int, topics: Sequence[str] | None = None, *, metadata: bool = True
    ) -> Stretch:
        rows, seen = await self.read(after, limit, topics)
        return Stretch(after, seen, lambda: decoded(rows, after, seen, self.decode))


class SimulatedClaims(DatabasePort):
    """Implements `application.ports.SendClaims` as `StoredSendClaims` does: leases by the database's clock, wishes
    gathered while a batch is under way, and a release that waits for the next batch."""

    def __init__(self, *port: Any, holder: UUID) -> None:
        super().__init__(*port)
        self._holder = holder
        self._released: list[tuple[UUID, int]] = []
        self._claims: Batcher[tuple[UUID, int], SendClaim | None] = Batcher(
            self._claim, name="send claims", max_batch=500, max_waiting=5000
        )

    async def acquire(self, registration_id: UUID, serial: int) -> SendClaim | None:
        return await self._claims.do((registration_id, serial))

    async def is_erased(self, registration_id: UUID) -> bool:
        """At once: a look changes nothing, so that it needs no faults of its own."""
        return registration_id not in self.database.keys

    def keep(self, registration_id: UUID, serial: int) -> None:
        """No mail server here takes its time over the content."""

    async def release(self, registration_id: UUID, serial: int) -> None:
        self._released.append((registration_id, serial))

    async def _claim(self, mails: Sequence[tuple[UUID, int]]) -> Sequence[SendClaim | Exception | None]:
        released, self._released = self._released, []
        try:
            await self.go("claim")
            claims, now = self.database.claims, self._network.loop.now
            for one in released:
                if one in claims and claims[one][0] == self._holder:
                    del claims[one]
            got: list[SendClaim | None] = []
            for mail in mails:
                free = mail not in claims or claims[mail][1] < now
                if free:
                    claims[mail] = (self._holder, now + LEASE)
                got.append(self.database.claim(mail[0]) if free else None)
            await self.come("claim")
        except BaseException:
            self._released += released
            raise
        return got


class Cursor:
    """What a statement of the followers answers."""

    def __init__(self, rows: Sequence[tuple[Any, ...]] = (), rowcount: int = 0) -> None:
        self._rows = rows
        self.rowcount = rowcount

    async def fetchone(self) -> tuple[Any, ...] | None:
        return self._rows[0] if self._rows else None

    async def fetchall(self) -> Sequence[tuple[Any, ...]]:
        return self._rows


class Session(DatabasePort):
    """A follower's own connection: understands the statements of `infrastructure/followers/projector.py`, and no
    others."""

    lost = False
    closed = True
    """Nothing is left behind in it that the next statement would be part of."""

    async def execute(self, statement: str, parameters: Sequence[Any] = ()) -> Cursor:
        if self.lost:
            raise psycopg.OperationalError("the connection is lost")
        try:
            await self.go("session")
            answer = self._answer(" ".join(statement.split()), parameters)
            await self.come("session")
        except Unavailable as away:
            self.lost = True
            raise psycopg.OperationalError("the connection is lost") from away
        return answer

    def _answer(self, statement: str, parameters: Sequence[Any]) -> Cursor:
        database = self.database
        match statement.split()[:3]:
            case ["SET", *_] | ["SELECT", "1"] | ["INSERT", "INTO", "followers"]:
                return Cursor()
            case ["SELECT", "position", "FROM"]:
                return Cursor([(database.followers.get(parameters[0], 0),)])
            case ["SELECT", "DISTINCT", "stream_id"]:
                return Cursor(
                    [(one,) for one in dict.fromkeys(s for f, s, _, _ in database.parked if f == parameters[0])]
                )
            case ["UPDATE", "followers", "SET"]:
                to, name, since = parameters
                return Cursor(rowcount=int(database.save_position(name, since, to)))
            case ["INSERT", "INTO", "parked_events"]:
                follower, stream_id, position, error, _ = parameters
                database.parked.append((follower, stream_id, position, error))
                return Cursor()
        raise AssertionError(f"the simulation does not know this statement: {statement}")

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        yield


class Notifications:
    """Wakes those who wait for news of the log, and the saga when a deadline may be due; some news is lost, which
    costs a second. So nobody has to look every second, though it comes to the same."""

    patience = timedelta(seconds=1)

    def __init__(self, database: Database, loop: VirtualLoop, rng: Random, faults: Faults, *, deadlines: bool) -> None:
        self._database = database
        self._loop = loop
        self._rng = rng
        self._faults = faults
        self._deadlines = deadlines
        self._waiting: list[asyncio.Future[None]] = []

    def tell(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            lost = self._faults.hits("news lost")
            self._loop.later(self._rng.random() * (1.0 if lost else 0.04), finish, future)

    def note_position(self, who: str, position: Position) -> None:
        """Nothing: whoever waits is woken by the append itself."""

    async def wait_past(self, who: str, position: Position, *, within: timedelta = timedelta(seconds=1)) -> bool:
        await asyncio.sleep(0)
        if self._database.head > position:
            return True
        future = self._loop.create_future()
        self._waiting.append(future)
        timer = None
        if self._deadlines and (at := self._database.next_look()) is not None:
            at = max(at + PROCESS.get().lag + 0.001, self._loop.now + within.total_seconds())
            timer = self._loop.call_at(at, finish, future)
        try:
            await future
        finally:
            if timer is not None:
                timer.cancel()
        return self._database.head > position
