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
from application.mail_saga import DeadlineReached, react
from application.ports import Checkpoint, Clock, Conflict, Context, Unavailable
from domain.errors import Refused
from domain.mail_saga import MailSaga
from domain.policy import Policy
from domain.recorded import Actor, AnyEvent, Position, Recorded
from domain.registration import Registration
from infrastructure.event_store.reader import ReadsLog, RecordedRow
from infrastructure.event_store.store import EventStore
from infrastructure.followers.follow import Chore, follow
from infrastructure.followers.leadership import LostLeadership, while_touching
from infrastructure.followers.parked import RETRY_PARKED, TRIES, ParkedStreams
from infrastructure.followers.positions import position_of, save_position
from infrastructure.postgres.connection import Connection
from infrastructure.postgres.notifications import Announcements

log = structlog.get_logger(__name__)

BATCH = 300
"""Events in a step: small enough that the first mail of a burst need not wait for the decisions on the last."""

DUE = 200
"""Deadlines looked at in a step; the next step takes the rest."""

EVERY = timedelta(seconds=1)
"""How often deadlines are looked at."""

KEPT = 2000
"""Sagas kept in memory after a step: most hear the next event within a second, and need not be read again."""

AT_ONCE = 32
"""Commands under way at the same time; those of one registration keep their order."""

SOURCES = tuple(
    event.TOPIC
    for event in (
        Registration.UserRegistered,
        Registration.OtpIssued,
        Registration.EmailDispatched,
        Registration.EmailWithheld,
        Registration.EmailDispatchFailed,
        Registration.EmailRetryRequested,
        Registration.EmailDiscarded,
        Registration.CodeLocked,
        Registration.EmailVerified,
        Registration.AccountActivated,
        Registration.RegistrationCancelled,
    )
)
"""What the saga reacts to."""


class Look(Protocol):
    """A registration whose saga is to look again, with what its date came from."""

    @property
    def registration_id(self) -> UUID: ...

    @property
    def correlation_id(self) -> UUID: ...

    @property
    def position(self) -> Position: ...

    @property
    def trace(self) -> str | None: ...


Due = Callable[[Connection, datetime, int], Awaitable[Sequence[Look]]]
"""What is due, the longest due first."""


@dataclass(slots=True)
class _Story:
    """What a step does about one registration."""

    registration_id: UUID
    saga: MailSaga | None = None
    happened: list[tuple[AnyEvent | DeadlineReached, Context]] = field(default_factory=list)
    rows: list[RecordedRow] = field(default_factory=list)
    notes: list[tuple[AnyEvent, Context]] = field(default_factory=list)

    @property
    def begins(self) -> bool:
        """Is its first event the registration's first?"""
        return isinstance(self.happened[0][0], Registration.UserRegistered)

    def add(self, row: RecordedRow, recorded: Recorded) -> None:
        context = Context(Actor.MAIL_SAGA, recorded.correlation_id, recorded.position, recorded.trace)
        self.happened.append((recorded.event, context))
        self.rows.append(row)


class ProcessManager:
    """The mail saga's driver; one leads (`infrastructure.followers.leadership.lead`).

    A step runs the commands first, and then saves the saga's notes with the position in one commit. A crash in
    between repeats the commands, which has no effect. Two leaders by accident: the second commit is refused.
    """

    name = "mail-saga"

    def __init__(
        self,
        *,
        store: EventStore,
        tail: ReadsLog,
        handlers: Handlers,
        announcements: Announcements,
        clock: Clock,
        policy: Policy,
        due: Due,
    ) -> None:
        self._store = store
        self._tail = tail
        self._handlers = handlers
        self._announcements = announcements
        self._clock = clock
        self._policy = policy
        self._due = due
        self._parked = ParkedStreams(self.name)
        self._sagas: dict[int, MailSaga] = {}  # by the registration id's number, the latest last
        self._in_step = False

    async def work(self, connection: Connection) -> None:
        """Follow until cancelled; see `infrastructure.followers.leadership.Leading`."""
        self._sagas.clear()
        self._in_step = False
        await self._parked.load(connection)
        position = await position_of(connection, self.name)
        await self._retry_parked(connection)
        await follow(
            position,
            read=self._read,
            act=partial(self._follow, connection),
            wake=self._announcements,
            chores=[
                Chore(partial(self._retry_parked, connection), first=RETRY_PARKED),
                Chore(
                    partial(self._look_again, connection)
                ),  # uses the session every second, so it keeps the leadership
            ],
        )

    async def _read(self, position: Position) -> tuple[Sequence[RecordedRow], Position]:
        return await self._tail.read(position, BATCH, SOURCES)

    async def _follow(
        self, connection: Connection, rows: Sequence[RecordedRow], position: Position, seen: Position
    ) -> None:
        stories: dict[UUID, _Story] = {}
        for row in rows:
            if row.stream_id in self._parked:
                await self._parked.add(connection, row.stream_id, row.position, "stream is parked")
                continue
            try:
                recorded = self._tail.decode(row)
            except Exception as error:  # noqa: BLE001 - kept with the event, logged, counted
                await self._park(connection, row.stream_id, [row], error)
                continue
            stories.setdefault(row.stream_id, _Story(row.stream_id)).add(row, recorded)
        notes = await self._settle(connection, stories)
        if notes:
            crash_point("pm.before_commit")
            try:
                await self._store.append(notes, moved=Checkpoint(self.name, position, seen))
            except Conflict:
                raise LostLeadership(self.name) from None
            self._in_step = True
        else:
            await save_position(connection, self.name, position, seen)
        self._keep(stories.values())

    async def _look_again(self, connection: Connection) -> timedelta:
        """Let the sagas whose time has come decide; returns when to look again."""
        due = await self._due(connection, self._clock(), DUE + len(self._parked))
        stories: dict[UUID, _Story] = {}
        for look in due:
            if look.registration_id not in self._parked:
                deadline = DeadlineReached(look.registration_id)
                context = Context(Actor.MAIL_SAGA, look.correlation_id, look.position, look.trace)
                stories[look.registration_id] = _Story(look.registration_id, happened=[(deadline, context)])
        notes = await self._settle(connection, stories)
        if notes:
            crash_point("reconcile.mid")
            try:
                await self._store.append(notes)
            except Conflict:
                raise LostLeadership(self.name) from None
        self._keep(stories.values())
        return timedelta(0) if len(stories) >= DUE else EVERY

    async def _settle(self, connection: Connection, stories: dict[UUID, _Story]) -> list[tuple[AnyEvent, Context]]:
        """Decide and run the commands of all stories; answers the sagas' notes. What fails for good is parked."""
        notes: list[tuple[AnyEvent, Context]] = []
        failed: dict[UUID, Exception] = {}
        left = list(stories.values())
        for attempt in range(TRIES):
            failed = await self._try(connection, left, again=attempt > 0)
            notes += [note for story in left if story.registration_id not in failed for note in story.notes]
            left = [story for story in left if story.registration_id in failed]
            if not left:
                break
        for registration_id, error in failed.items():
            await self._park(connection, registration_id, stories[registration_id].rows, error)
        return notes

    async def _try(self, connection: Connection, stories: Sequence[_Story], *, again: bool) -> dict[UUID, Exception]:
        """Tell each story to its saga; answers the errors by registration.

        Args:
            again: something went wrong before, so nothing is taken for known.

        Raises:
            Unavailable, Conflict: the whole step is to be done again, from the same position.
        """
        unknown = {
            story.registration_id: MailSaga.stream_id(story.registration_id)
            for story in stories
            if again or not self._recall(story)
        }
        streams = await self._store.load(*unknown.values()) if unknown else None
        failed: dict[UUID, Exception] = {}
        gate = asyncio.Semaphore(AT_ONCE)
        running: dict[UUID, Awaitable[None]] = {}
        for story in stories:
            try:
                if streams is not None and story.registration_id in unknown:
                    story.saga = streams.get(MailSaga, unknown[story.registration_id])
                commands = self._decide(story)
            except Exception as error:  # noqa: BLE001 - answered, and parked if it stays
                failed[story.registration_id] = error
            else:
                if commands:
                    running[story.registration_id] = self._run_in_order(commands, gate)
        outcomes: list[BaseException | None] = []
        if running:
            outcomes = await while_touching(connection, asyncio.gather(*running.values(), return_exceptions=True))
        for registration_id, outcome in zip(running, outcomes, strict=True):
            if isinstance(outcome, Unavailable | Conflict) or not isinstance(outcome, Exception | None):
                raise outcome
            if outcome is not None:
                failed[registration_id] = outcome
        return failed

    def _recall(self, story: _Story) -> bool:
        """Is it known what the saga remembers?"""
        story.saga = self._sagas.pop(story.registration_id.int, None)
        # A registration's first event is followed once, with its saga's first notes in the same commit. The first step
        # of a leadership looks all the same: should that have gone wrong, it is where it is mended.
        return story.saga is not None or (self._in_step and story.begins)

    def _keep(self, stories: Iterable[_Story]) -> None:
        """What was decided is in the log."""
        for story in stories:
            if story.saga is not None and not story.saga.ended and story.registration_id not in self._parked:
                self._sagas[story.registration_id.int] = story.saga
        while len(self._sagas) > KEPT:
            del self._sagas[next(iter(self._sagas))]

    async def _retry_parked(self, connection: Connection) -> timedelta:
        """Tell what was put aside, a registration at a time and in order; what still fails stays there."""
        if not len(self._parked):
            return RETRY_PARKED
        for registration_id, positions in (await self._parked.waiting(connection)).items():
            story = _Story(registration_id)
            try:
                for position in positions:
                    rows, _ = await self._tail.read(position - 1, 1) if position else ([], 0)
                    for row in rows:
                        story.add(row, self._tail.decode(row))
                failed = await self._try(connection, [story], again=True)
            except (TopicError, MapperDeserialisationError) as error:
                failed = {registration_id: error}
            if failed:
                log.warning("follower.still_parked", follower=self.name, stream_id=str(registration_id))
                continue
            if story.notes:
                await self._store.append(story.notes)
            await self._parked.remove(connection, registration_id)
            self._parked.forget(registration_id)
        return RETRY_PARKED

    def _decide(self, story: _Story) -> list[tuple[list[Command], Context]]:
        """Let the saga react to all that happened; answers the commands of each event."""
        story.notes.clear()
        decided = []
        for happened, context in story.happened:
            story.saga, commands = react(story.saga, happened, self._clock(), self._policy)
            if story.saga is not None:
                story.notes.extend((note, context) for note in story.saga.collect_events())
            if commands:
                decided.append((commands, context))
        return decided

    async def _run_in_order(self, decided: Sequence[tuple[list[Command], Context]], gate: asyncio.Semaphore) -> None:
        for commands, context in decided:
            async with gate:
                await self._run(commands, context)

    async def _run(self, commands: Sequence[Command], context: Context) -> None:
        for command in commands:
            try:
                await self._handlers.handle(command, context)
            except Refused as refusal:
                # A final answer: what happened in the meantime is in the log and will be told next.
                log.info("saga.refused", command=type(command).__name__, refusal=refusal.code)
                return

    async def _park(
        self, connection: Connection, stream_id: UUID, rows: Sequence[RecordedRow], error: BaseException
    ) -> None:
        log.error(
            "follower.parked",
            follower=self.name,
            stream_id=str(stream_id),
            error=type(error).__name__,
            hint="the registration waits in parked_events; the others go on",
        )
        # A deadline has no event: it is kept under position 0.
        for position in [row.position for row in rows] or [0]:
            await self._parked.add(connection, stream_id, position, type(error).__name__)
