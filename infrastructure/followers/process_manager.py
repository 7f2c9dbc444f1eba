"""Drives the mail saga: events and deadlines in, commands out, its own notes and position in one commit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Protocol
from uuid import UUID

import structlog
from eventsourcing.persistence import MapperDeserialisationError
from eventsourcing.utils import TopicError

from application.commands import Command
from application.crash_points import crash_point
from application.handlers import Handlers
from application.mail_saga import SOURCES, DeadlineReached, react
from application.ports import Checkpoint, Clock, Conflict, Context, Unavailable
from domain.errors import Refused
from domain.mail_saga import MailSaga
from domain.policy import Policy
from domain.recorded import Actor, AnyEvent, Position, Recorded
from domain.registration import Registration
from infrastructure.event_store.reader import ReadsLog, RecordedRow
from infrastructure.event_store.store import EventStore
from infrastructure.followers.follow import Chore, Linger, follow
from infrastructure.followers.leadership import TOUCH, LeaderSession, NotLeader, while_touching
from infrastructure.followers.names import MAIL_SAGA
from infrastructure.followers.parked import ATTEMPTS_BEFORE_PARKING, BEHIND, ParkedStreams, place_of
from infrastructure.followers.positions import position_of, save_position
from infrastructure.followers.releases import note_release
from infrastructure.followers.saga_spans import deciding
from infrastructure.postgres.connection import Connection
from infrastructure.postgres.notifications import REQUESTS, Notifications
from infrastructure.telemetry.trace_context import DOING
from infrastructure.telemetry.tracing import Tracing
from infrastructure.ticks import until_tick

log = structlog.get_logger(__name__)

BATCH_EVENTS = 300
"""Events in one step: few enough that the first mail of a burst need not wait for the decisions on the last."""

MAX_DUE_LOOKS = 200
"""Deadlines handled in one step; the next step takes the rest."""

LOOK_INTERVAL = timedelta(seconds=1)
"""How often deadlines are checked while events bring new ones; else when the next one is due, or every `TOUCH`."""

SAVE_INTERVAL = timedelta(milliseconds=100)
"""How often the position is saved at most while the saga has nothing to note, with which it is saved otherwise."""

LEFT_FOR = timedelta(milliseconds=50)
"""How long an event whose only effect is a note is left for the next step, which has others."""

_ONLY_NOTED = frozenset(
    event.TOPIC for event in (Registration.EmailDispatched, Registration.EmailWithheld, Registration.AccountActivated)
)

MAX_CACHED_SAGAS = 2000
"""Sagas kept in memory after a step: most get their next event within a second, and need not be loaded again."""

CONCURRENT_REGISTRATIONS = 32
"""Registrations whose commands run at the same time; the commands of one registration keep their order."""


class Look(Protocol):
    """A registration due for a second look, with the context of the event that set its date."""

    @property
    def registration_id(self) -> UUID: ...

    @property
    def correlation_id(self) -> UUID: ...

    @property
    def position(self) -> Position: ...

    @property
    def trace(self) -> str | None: ...

    @property
    def due_at(self) -> datetime: ...


Due = Callable[[Connection, datetime, int], Awaitable[Sequence[Look]]]
"""Returns the looks that are due by then, the longest overdue first; not those at mails that wait for their turn."""


@dataclass(slots=True)
class _Inbox:
    """What one step handles for one registration, and what its saga notes about it."""

    registration_id: UUID
    saga: MailSaga | None = None
    happened: list[tuple[AnyEvent | DeadlineReached, Context]] = field(default_factory=list)
    rows: list[RecordedRow] = field(default_factory=list)
    notes: list[tuple[AnyEvent, Context]] = field(default_factory=list)
    commands: list[tuple[list[Command], Context]] = field(default_factory=list)
    failure: str | None = None

    @property
    def has_effect(self) -> bool:
        """Did the saga note or command anything?"""
        return bool(self.notes or self.commands)

    @property
    def is_new(self) -> bool:
        """Is its first event the one with which a saga begins?"""
        return isinstance(self.happened[0][0], Registration.UserRegistered | Registration.UserInvited)

    def add(self, row: RecordedRow, recorded: Recorded) -> None:
        context = Context(Actor.MAIL_SAGA, recorded.correlation_id, recorded.position, recorded.trace)
        self.happened.append((recorded.event, context))
        self.rows.append(row)


class ProcessManager:
    """Drives the mail saga; one process leads (`infrastructure.followers.leadership.lead`).

    A step runs the commands first, and then saves the saga's notes with the position in one commit. A crash in
    between repeats the commands, which has no effect. If two processes lead by accident, the second commit is refused.
    """

    name = MAIL_SAGA

    def __init__(
        self,
        *,
        store: EventStore,
        tail: ReadsLog,
        handlers: Handlers,
        notifications: Notifications,
        clock: Clock,
        policy: Policy,
        due: Due,
        release: str | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        """
        Args:
            tracing: makes a span for each decision; None: none is made.
            release: which release of the service this is, to be noted where it begins to decide.
        """
        self._store = store
        self._tail = tail
        self._handlers = handlers
        self._notifications = notifications
        self._clock = clock
        self._policy = policy
        self._due = due
        self._release = release
        self._tracing = tracing
        self._parked = ParkedStreams(self.name, tail)
        self._cached_sagas: dict[int, MailSaga] = {}  # by the registration id's number, the latest last
        self._in_step = False
        self._saved: Position = 0
        self._seen: Position = 0
        self._looked_at: Position = 0

    async def work(self, session: LeaderSession) -> None:
        """Follow until cancelled; see `infrastructure.followers.leadership.LeaderTask`."""
        self._cached_sagas.clear()
        self._in_step = False
        async with session.turn() as connection:
            position = self._saved = self._seen = await position_of(connection, self.name)
            if self._release is not None:
                await note_release(connection, self._release, position)
            await self._parked.load(connection, position)
        await follow(
            position,
            read=self._read,
            act=partial(self._follow, session),
            wake=self._notifications,
            linger=Linger(LEFT_FOR, _has_more_effect),
            chores=[
                Chore(partial(self._retry_parked, session)),
                Chore(partial(self._save, session)),
                # This one uses the session often enough to keep the leadership.
                Chore(partial(self._look_again, session)),
            ],
        )

    async def _read(self, position: Position) -> tuple[Sequence[RecordedRow], Position]:
        return await self._tail.read(position, BATCH_EVENTS, SOURCES)

    async def _follow(self, session: LeaderSession, rows: Sequence[RecordedRow], _: Position, seen: Position) -> None:
        inboxes: dict[UUID, _Inbox] = {}
        for row in rows:
            if row.stream_id in self._parked:
                async with session.turn() as connection:
                    await self._parked.add(connection, row.stream_id, row.position, BEHIND)
                continue
            try:
                recorded = self._tail.decode(row)
            except Exception as error:  # noqa: BLE001 - kept with the event, logged, counted
                await self._park(session, row.stream_id, [row], error)
                continue
            inboxes.setdefault(row.stream_id, _Inbox(row.stream_id)).add(row, recorded)
        with deciding(self._tracing, inboxes.values()):
            notes = await self._process(session, inboxes)
            if notes:
                crash_point("pm.before_commit")
                try:
                    noted_at = await self._store.append(notes, moved=Checkpoint(self.name, self._saved, seen))
                except Conflict:
                    raise NotLeader(self.name) from None
                self._notifications.note_position(REQUESTS, noted_at)
                self._saved = seen
                self._in_step = True
        self._seen = seen
        self._cache(inboxes.values())

    async def _save(self, session: LeaderSession) -> timedelta | None:
        """Save the position where the saga had nothing to note since: to read that again would have no effect."""
        if self._seen == self._saved:
            return None
        async with session.turn() as connection:
            await save_position(connection, self.name, self._saved, self._seen)
        self._saved = self._seen
        return SAVE_INTERVAL

    async def _look_again(self, session: LeaderSession) -> timedelta:
        """Let the sagas that are due decide; returns how long until the next look."""
        now = self._clock()
        async with session.turn() as connection:
            looks = await self._due(connection, now + TOUCH, MAX_DUE_LOOKS + len(self._parked))
        due = [look for look in looks if look.due_at <= now]
        inboxes: dict[UUID, _Inbox] = {}
        for look in due:
            if look.registration_id not in self._parked:
                deadline = DeadlineReached(look.registration_id)
                context = Context(Actor.MAIL_SAGA, look.correlation_id, look.position, look.trace)
                inboxes[look.registration_id] = _Inbox(look.registration_id, happened=[(deadline, context)])
        with deciding(self._tracing, inboxes.values()):
            notes = await self._process(session, inboxes)
            if notes:
                crash_point("reconcile.mid")
                try:
                    await self._store.append(notes)
                except Conflict:
                    raise NotLeader(self.name) from None
        self._cache(inboxes.values())
        if len(inboxes) >= MAX_DUE_LOOKS:
            return timedelta(0)
        is_at_rest, self._looked_at = self._seen == self._looked_at and not due, self._seen
        if not is_at_rest:
            return LOOK_INTERVAL
        return min([until_tick(TOUCH), *(look.due_at - now for look in looks)])

    async def _process(self, session: LeaderSession, inboxes: dict[UUID, _Inbox]) -> list[tuple[AnyEvent, Context]]:
        """Decide and run the commands of all inboxes; returns the sagas' notes. What keeps failing is parked."""
        notes: list[tuple[AnyEvent, Context]] = []
        failed: dict[UUID, Exception] = {}
        left = list(inboxes.values())
        for attempt in range(ATTEMPTS_BEFORE_PARKING):
            failed = await self._try(session, left, again=attempt > 0)
            notes += [note for inbox in left if inbox.registration_id not in failed for note in inbox.notes]
            left = [inbox for inbox in left if inbox.registration_id in failed]
            if not left:
                break
        for registration_id, error in failed.items():
            inboxes[registration_id].failure = type(error).__name__
            await self._park(session, registration_id, inboxes[registration_id].rows, error)
        return notes

    async def _try(self, session: LeaderSession, inboxes: Sequence[_Inbox], *, again: bool) -> dict[UUID, Exception]:
        """Pass each inbox to its saga; returns the errors by registration.

        Args:
            again: an attempt has failed, so nothing is taken from the cache.

        Raises:
            Unavailable, Conflict: the whole step has to be repeated, from the same position.
        """
        unknown = {
            inbox.registration_id: MailSaga.stream_id(inbox.registration_id)
            for inbox in inboxes
            if again or not self._from_cache(inbox)
        }
        streams = await self._store.load(*unknown.values()) if unknown else None
        failed: dict[UUID, Exception] = {}
        gate = asyncio.Semaphore(CONCURRENT_REGISTRATIONS)
        running: dict[UUID, Awaitable[None]] = {}
        for inbox in inboxes:
            try:
                if streams is not None and inbox.registration_id in unknown:
                    inbox.saga = streams.get(MailSaga, unknown[inbox.registration_id])
                self._decide(inbox)
            except Exception as error:  # noqa: BLE001 - returned, and parked if it persists
                failed[inbox.registration_id] = error
            else:
                if inbox.commands:
                    running[inbox.registration_id] = self._run_in_order(inbox.commands, gate)
        outcomes: list[BaseException | None] = []
        if running:
            outcomes = await while_touching(session, asyncio.gather(*running.values(), return_exceptions=True))
        for registration_id, outcome in zip(running, outcomes, strict=True):
            if isinstance(outcome, Unavailable | Conflict) or not isinstance(outcome, Exception | None):
                raise outcome
            if outcome is not None:
                failed[registration_id] = outcome
        return failed

    def _from_cache(self, inbox: _Inbox) -> bool:
        """Take the saga from the cache; False if it has to be loaded."""
        inbox.saga = self._cached_sagas.pop(inbox.registration_id.int, None)
        # A registration's first event is handled once, with its saga's first notes in the same commit: there is nothing
        # to load. The first step of a leadership loads all the same, and so repairs it if that ever went wrong.
        return inbox.saga is not None or (self._in_step and inbox.is_new)

    def _cache(self, inboxes: Iterable[_Inbox]) -> None:
        """Cache the sagas, whose notes are in the log by now."""
        for inbox in inboxes:
            if inbox.saga is not None and not inbox.saga.ended and inbox.registration_id not in self._parked:
                self._cached_sagas[inbox.registration_id.int] = inbox.saga
        while len(self._cached_sagas) > MAX_CACHED_SAGAS:
            del self._cached_sagas[next(iter(self._cached_sagas))]

    async def _retry_parked(self, session: LeaderSession) -> timedelta | None:
        """Process the events of a parked registration, in order; the next one follows after the next batch."""
        async with session.turn() as connection:
            parked = await self._parked.next_to_try(connection)
        if parked is None:
            return self._parked.look_in
        registration_id, position = parked.stream_id, parked.positions[0]
        inbox = _Inbox(registration_id)
        try:
            for position in parked.positions:
                rows, _ = await self._tail.read(position - 1, 1) if position else ([], 0)
                for row in rows:
                    inbox.add(row, self._tail.decode(row))
            failed = await self._try(session, [inbox], again=True)
        except (TopicError, MapperDeserialisationError) as error:
            failed = {registration_id: error}
        if failed:
            async with session.turn() as connection:
                await self._parked.failed(connection, registration_id, position, failed[registration_id])
            return timedelta(0)
        if inbox.notes:
            await self._store.append(inbox.notes)
        async with session.turn() as connection:
            await self._parked.remove(connection, registration_id)
        self._parked.forget(registration_id)
        return timedelta(0)

    def _decide(self, inbox: _Inbox) -> None:
        """Let the saga react to all that happened."""
        inbox.notes.clear()
        inbox.commands.clear()
        for happened, context in inbox.happened:
            inbox.saga, commands = react(inbox.saga, happened, self._clock(), self._policy)
            if inbox.saga is not None:
                inbox.notes.extend((note, context) for note in inbox.saga.collect_events())
            if commands:
                inbox.commands.append((commands, context))

    async def _run_in_order(self, decided: Sequence[tuple[list[Command], Context]], gate: asyncio.Semaphore) -> None:
        for commands, context in decided:
            async with gate:
                DOING.set(context)
                await self._run(commands, context)

    async def _run(self, commands: Sequence[Command], context: Context) -> None:
        for command in commands:
            try:
                await self._handlers.handle(command, context)
            except Refused as refusal:
                # Final: what happened in the meantime is in the log, and the saga gets it next.
                log.info("saga.refused", command=type(command).__name__, refusal=refusal.code)
                return

    async def _park(
        self, session: LeaderSession, stream_id: UUID, rows: Sequence[RecordedRow], error: BaseException
    ) -> None:
        log.error(
            "follower.parked",
            follower=self.name,
            stream_id=str(stream_id),
            error=type(error).__name__,
            hint="the registration waits in parked_events; the others go on",
        )
        # A deadline has no event: it is kept under position 0.
        async with session.turn() as connection:
            for position in [row.position for row in rows] or [0]:
                await self._parked.add(connection, stream_id, position, type(error).__name__, place_of(error))


def _has_more_effect(row: RecordedRow) -> bool:
    return row.topic not in _ONLY_NOTED
