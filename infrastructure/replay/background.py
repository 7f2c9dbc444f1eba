"""Verifies the live read models in the background, one after the other, for as long as the service runs.

As `verify` does it, but in slices of some milliseconds with long rests between them: the log is folded into a copy, and
then the live rows are compared with those of the copy, a stretch at a time, each at a moment at which both are at the
same position. No read model is held up for that: where the moment is missed, the next slice tries again. How far a pass
has come is in the database, so that any process goes on with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Final

import psycopg
import structlog
from psycopg.rows import class_row

from domain.recorded import Position
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.reader import LogReader
from infrastructure.followers.leadership import LeaderSession, while_touching
from infrastructure.postgres.connection import Connection, ReconnectingConnection, closing, connect
from infrastructure.replay.claim import claim_now, release
from infrastructure.replay.comparison import MOST_KEPT, Differences, at_one_moment, live_position
from infrastructure.replay.copies import Copy, MakesProjection, ToldTwice
from infrastructure.replay.sessions import replay_in
from infrastructure.replay.stretches import Place, compare_stretch
from infrastructure.replay.verification import parked_positions
from infrastructure.replay.verified import add_differences, note_pass

log = structlog.get_logger(__name__)

SHARE: Final = 0.01
"""Of the time, that slices may take. This process and the database work in turns as a rule, at most two at a time: so
it is at most 2 % of a core."""

SLICE: Final = 2_000
"""Positions of the log in a slice: some 30 ms (our measurement)."""

BATCH_EVENTS: Final = 500
"""Events in a transaction, and between two looks at what else this process has to do."""

FIRST: Final = timedelta(minutes=1)
"""A process that has just begun to lead has other things to do."""

LOOK: Final = timedelta(minutes=1)
"""How often is looked whether a verification is due: somebody may have made one, or rolled back a rebuild."""

GIVE_WAY: Final = timedelta(seconds=5)
"""How often is looked whether an operator's rebuild or verification is at its end."""

NOT_ALLOWED: Final = timedelta(hours=1)
"""How often is tried what the database has refused this role, or has not refused."""

MOST_LOGGED: Final = 20
"""Differences of a pass that have a line each in the log; all are counted and kept to be shown."""

_DUE = """
    SELECT n.place - 1, CASE
        WHEN p.read_model IS NOT NULL OR v.read_model IS NULL THEN interval '0'
        ELSE greatest(interval '0', v.verified_at + %(every)s - clock_timestamp()) END
    FROM unnest(%(names)s::text[]) WITH ORDINALITY AS n (name, place)
    LEFT JOIN public.verification_passes AS p ON p.read_model = n.name
    LEFT JOIN public.verifications AS v ON v.read_model = n.name
    ORDER BY p.read_model IS NULL, v.verified_at NULLS FIRST, n.place LIMIT 1
"""

_BEGIN = """
    INSERT INTO public.verification_passes (read_model, fold) VALUES (%s, %s)
    ON CONFLICT (read_model) DO UPDATE SET fold = excluded.fold, left_out = '{}', at_table = '', after_key = '{}',
        row_count = 0, differences = 0, begun_at = clock_timestamp()
"""

_UNDER_WAY = """
    SELECT fold, left_out, at_table, after_key, row_count, differences
    FROM public.verification_passes WHERE read_model = %s
"""

_MOVE = """
    UPDATE public.verification_passes SET at_table = %s, after_key = %s, row_count = %s, differences = %s
    WHERE read_model = %s
"""


@dataclass(frozen=True, slots=True)
class _Pass:
    """A row of `verification_passes`."""

    fold: str
    left_out: list[Position]
    at_table: str
    after_key: list[str]
    row_count: int
    differences: int


class BackgroundVerification:
    """One process does it, whichever leads (`followers.leadership.lead`)."""

    name = "verification"

    def __init__(
        self,
        read_models: Sequence[MakesProjection],
        *,
        dsn: str,
        every: timedelta,
        statement_timeout: timedelta,
        first: timedelta = FIRST,
        share: float = SHARE,
    ) -> None:
        """
        Args:
            every: how long after a full verification of a read model the next one begins.
            first: how long a new leader waits.
            share: see `SHARE`.
        """
        self._read_models = {make().name: (make, Copy(make, "verify").fold()) for make in read_models}
        self._dsn = dsn
        self._every = every
        self._statement_timeout = statement_timeout
        self._first = first
        self._share = share

    async def work(self, session: LeaderSession) -> None:
        """Verify until cancelled; see `LeaderTask`.

        The leadership's session is only asked what is due. What is done has sessions of its own, as long as there is
        something to do: with its claim, no two processes do a slice at a time, whoever believes to lead.
        """
        pause = self._first
        while True:
            await while_touching(session, asyncio.sleep(pause.total_seconds()))
            async with session.turn() as connection:
                _, pause = await self._due(connection)
            if not pause:
                pause = await while_touching(session, self._verify())

    async def _verify(self) -> timedelta:
        """Do slices until there is none to do; returns how long to rest."""
        line = ReconnectingConnection(
            self._dsn, name=f"{self.name} log", statement_timeout=self._statement_timeout, read_only=True
        )
        loop = asyncio.get_running_loop()
        connection = await connect(self._dsn, name=self.name, statement_timeout=self._statement_timeout)
        async with closing(connection):
            try:
                await replay_in(connection)
                while True:
                    begun = loop.time()
                    pause = await self._next(connection, line)
                    # Also a look takes its time.
                    pause = max(pause, timedelta(seconds=loop.time() - begun) * (1 / self._share - 1))
                    if pause >= LOOK:
                        return pause
                    await asyncio.sleep(pause.total_seconds())
            finally:
                await line.close()

    async def _due(self, connection: Connection) -> tuple[str, timedelta]:
        """The read model to be verified next, and in how long; it is looked again by then."""
        names = list(self._read_models)
        row = await (await connection.execute(_DUE, {"names": names, "every": self._every})).fetchone()
        assert row is not None  # noqa: S101 - there are read models
        return names[row[0]], min(LOOK, row[1])

    async def _next(self, connection: Connection, line: ReconnectingConnection) -> timedelta:
        """Do a slice if there is one to do; returns how long to rest at least."""
        name, pause = await self._due(connection)
        if pause:
            return pause
        if not await claim_now(connection):
            return GIVE_WAY
        try:
            await _Slice(connection, line, *self._read_models[name]).do()
        except psycopg.errors.InsufficientPrivilege:
            hint = "let its role make schemas (GRANT CREATE ON DATABASE …), or set REGISTRAR_VERIFY_INTERVAL=0"
            log.warning("verification.not_allowed", projection=name, hint=hint)
            return NOT_ALLOWED
        except ToldTwice as error:
            log.error("verification.told_twice", projection=name, hint=str(error))  # noqa: TRY400 - no bug of this code
            return NOT_ALLOWED
        finally:
            await release(connection)
        return timedelta(0)


class _Slice:
    """What is done in one go, about one read model."""

    def __init__(self, connection: Connection, line: ReconnectingConnection, make: MakesProjection, fold: str) -> None:
        """
        Args:
            connection: writes the copy.
            line: reads the log, and compares.
            fold: see `Copy.fold`; it takes a while.
        """
        self._connection = connection
        self._line = line
        self._live = make()
        self._copy = Copy(make, "verify")
        self._fold = fold

    async def do(self) -> None:
        """Begin a pass, or go on with the one that is under way: fold some more, or compare some more."""
        copy, connection = self._copy, self._connection
        # In this order: what the live one has parked up to there is among what is read then.
        upto = await live_position(connection, copy.of)
        parked = sorted(await parked_positions(connection, copy.of))
        under_way = await self._under_way()
        if under_way is None or not await self._is_sound(under_way, upto, parked):
            await self._begin()
            return
        reached = await copy.position(connection)
        end = min(upto, reached + SLICE)
        left_out = [one for one in parked if one <= end]
        if left_out != under_way.left_out:
            await connection.execute(
                "UPDATE public.verification_passes SET left_out = %s WHERE read_model = %s", (left_out, copy.of)
            )
        if end > reached:
            log_reader = LogReader(self._line, EventCodec())
            await copy.fill(connection, log_reader, end, limit=BATCH_EVENTS, without=frozenset(left_out), twice=True)
        if end == upto:
            await self._compare(under_way, left_out)

    async def _under_way(self) -> _Pass | None:
        cursor = self._connection.cursor(row_factory=class_row(_Pass))
        await cursor.execute(_UNDER_WAY, (self._copy.of,))
        return await cursor.fetchone()

    async def _is_sound(self, under_way: _Pass, upto: Position, parked: Sequence[Position]) -> bool:
        """Can the copy still become what the live one is? Not if it is of other code, or ahead of it, or if events that
        it was not told have been applied since, or others been parked."""
        if under_way.fold != self._fold or not await self._copy.exists(self._connection):
            return False
        reached = await self._copy.position(self._connection)
        left_out = [one for one in under_way.left_out if one <= reached]
        return reached <= upto and left_out == [one for one in parked if one <= reached]

    async def _begin(self) -> None:
        copy = self._copy
        async with self._connection.transaction():
            await copy.make(self._connection)
            await self._connection.execute(
                "DELETE FROM public.found_differences WHERE read_model = %s AND under_way", (copy.of,)
            )
            await self._connection.execute(_BEGIN, (copy.of, self._fold))

    async def _compare(self, under_way: _Pass, left_out: Sequence[Position]) -> None:
        place = Place(under_way.at_table, under_way.after_key)
        compared = await self._line.execute(partial(self._compare_at_one_moment, place, left_out))
        if compared is None:
            return
        found, place_reached = compared
        rows, count = under_way.row_count + found.rows, under_way.differences + found.count
        kept = found.kept[: max(0, MOST_KEPT - under_way.differences)]
        copy, connection = self._copy, self._connection
        async with connection.transaction():
            await add_differences(connection, copy.of, kept, after=under_way.differences, under_way=True)
            if place_reached is None:
                await note_pass(connection, copy.of, Differences(found.position, count, rows))
                await connection.execute("DELETE FROM public.verification_passes WHERE read_model = %s", (copy.of,))
                await copy.drop(connection)
            else:
                moved = (place_reached.table, list(place_reached.key), rows, count, copy.of)
                await connection.execute(_MOVE, moved)
        self._tell(found, before=under_way.differences)
        if place_reached is None:
            self._tell_end(found.position, rows, count)

    async def _compare_at_one_moment(
        self, place: Place, left_out: Sequence[Position], connection: Connection
    ) -> tuple[Differences, Place | None] | None:
        """The next stretch; None if the live one has moved on meanwhile, or what it has parked is something else."""
        copy, live = self._copy, self._live
        async with at_one_moment(connection, copy.of, copy.name) as position:
            if position is None or sorted(await parked_positions(connection, copy.of)) != left_out:
                return None
            return await compare_stretch(connection, copy.of, live.schema, copy.schema, position, place)

    def _tell(self, found: Differences, *, before: int) -> None:
        for one in found.kept[: max(0, MOST_LOGGED - before)]:
            log.error(
                "projection.differs",
                projection=one.read_model,
                table=one.table,
                row=one.row,
                column=one.column,
                position=one.position,
                hint=f"it is not what the log says; `registrar projections verify {one.read_model}` shows both values",
            )

    def _tell_end(self, position: Position, rows: int, differences: int) -> None:
        of = {"projection": self._copy.of, "position": position, "rows": rows, "differences": differences}
        if differences:
            hint = f"`registrar projections rebuild {self._copy.of} --repair` mends it"
            log.error("projection.verified", **of, hint=hint)
        else:
            log.info("projection.verified", **of)
