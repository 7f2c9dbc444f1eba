"""Rebuilds a read model from the log while it serves: a copy, filled, compared, and swapped in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Final, Literal
from uuid import UUID, uuid4

from psycopg.rows import class_row

from application.crash_points import crash_point
from domain.recorded import Position
from infrastructure.event_store.reader import ReadsLog
from infrastructure.followers.versions import behind_others
from infrastructure.postgres.connection import Connection
from infrastructure.replay.alignment import agreed
from infrastructure.replay.claim import claimed, end_others
from infrastructure.replay.comparison import Differences, live_position, shapes
from infrastructure.replay.copies import BATCH_EVENTS, Copy, Filling, MakesProjection, fill_together
from infrastructure.replay.progress import Doing, Watch, nobody_watches
from infrastructure.replay.sessions import replaying
from infrastructure.replay.swap import CannotReplay, refuse_dependents, swap
from infrastructure.replay.verified import forget_verified, note_verified

Step = Literal["filling", "indexed", "swapped", "rolled-back", "aborted"]
Act = Literal["begun", "swapped", "rolled-back", "aborted"]
Decision = Literal["equal", "accepted", "repaired", "built"]
"""Why a copy was swapped in: it equals the live one, an operator wants it all the same, the live one was wrong, or
there was none yet of this version."""

A_THROTTLED_BATCH: Final = 4
"""With a limit, this many batches a second, so that it is kept within a second, too."""

NEAR: Final = 500
"""So many events of the log are left to be folded when a copy is indexed and compared."""

SMALL_BATCH: Final = 1_000
"""A second fold is told the events in other batches than the first, as the live one was; with a limit, in batches that
are smaller in proportion."""

_JOB = """
    SELECT rebuild_id, step, recorded, beside, fold, indexes, position, differences, decision, replaced_by
    FROM public.rebuilds WHERE read_model = %s
"""

_BEGIN = """
    INSERT INTO public.rebuilds (read_model, rebuild_id, step, beside, fold, indexes)
    VALUES (%s, %s, 'filling', %s, %s, %s)
    ON CONFLICT (read_model) DO UPDATE SET rebuild_id = excluded.rebuild_id, step = excluded.step, recorded = false,
        beside = excluded.beside, fold = excluded.fold, indexes = excluded.indexes, position = 0, differences = 0, decision = '',
        begun_at = clock_timestamp()
"""

_NOTE = """
    UPDATE public.rebuilds SET step = %s, position = %s, differences = %s, decision = %s, recorded = false
    WHERE read_model = %s
"""

_REPLACED = "UPDATE public.rebuilds SET replaced_by = rebuild_id WHERE read_model = %s"


@dataclass(frozen=True, slots=True)
class RebuildAct:
    """What an operator did to a read model, for the log; each may come twice."""

    read_model: str
    rebuild_id: UUID
    act: Act
    position: Position = 0
    differences: int = 0
    decision: str = ""


Record = Callable[[RebuildAct], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Job:
    """A row of `rebuilds`."""

    rebuild_id: UUID
    step: Step
    recorded: bool
    beside: str
    fold: str
    indexes: list[str]
    position: Position
    differences: int
    decision: str
    replaced_by: UUID | None = None


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What became of a rebuild.

    Attributes:
        swapped: whether the copy is in place; if not, it waits for a decision about the differences.
        resumed: whether an earlier one was taken up.
        position: at which it was swapped, or compared.
        beside: the version of the read model that goes on to serve, where there was none of this version yet: what
            differs from that one is no reason to wait.
    """

    read_model: str
    swapped: bool
    resumed: bool
    position: Position
    differences: Differences
    beside: str | None = None


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """A rebuild in a session of its own.

    Attributes:
        name, schema: of what serves meanwhile, and is compared with the copy.
    """

    make: MakesProjection
    copy: Copy
    connection: Connection
    job: _Job
    resumed: bool
    name: str
    schema: str


class Rebuilds:
    """
    Raises (all of them):
        CannotReplay: one line that says why, and what to do.
        Unavailable, psycopg.Error: the database is away; what was done stays, and the same call goes on from there.
    """

    def __init__(
        self, dsn: str, *, log: ReadsLog, record: Record, watch: Watch = nobody_watches, throttle: int | None = None
    ) -> None:
        """
        Args:
            record: records an act in the log.
            throttle: at most that many positions of the log a second.
        """
        self._dsn = dsn
        self._log = log
        self._record = record
        self._watch = watch
        self._throttle = throttle
        self._batch = BATCH_EVENTS
        if throttle is not None:
            self._batch = max(1, min(BATCH_EVENTS, throttle // A_THROTTLED_BATCH))

    async def rebuild(self, make: MakesProjection, *, accept: bool = False, repair: bool = False) -> Rebuilt:
        """Rebuild a read model, or go on with the rebuild that is under way; see `rebuild_all`."""
        [rebuilt] = await self.rebuild_all([make], accept=accept, repair=repair)
        return rebuilt

    async def rebuild_all(
        self, makes: Sequence[MakesProjection], *, accept: bool = False, repair: bool = False
    ) -> list[Rebuilt]:
        """Rebuild read models, or go on with the rebuilds that are under way. The log is read once for all of them.

        A version that has never served is built beside the one of the earlier release, which goes on.

        Args:
            accept: swap whatever differs.
            repair: swap if a second fold of the log, in other batches, says the same as the first: then it is the live
                one that was wrong.
        """
        async with claimed(self._dsn, name="rebuild"), AsyncExitStack() as stack:
            begun = []
            for make in makes:
                connection = await stack.enter_async_context(replaying(self._dsn, name=f"rebuild {make().name}"))
                begun.append(await self._begun(connection, make))
            await self._fill([one for one in begun if isinstance(one, _UnderWay)])
            return [
                await self._complete(one, accept=accept, repair=repair) if isinstance(one, _UnderWay) else one
                for one in begun
            ]

    async def roll_back(self, make: MakesProjection) -> Position:
        """Have the read model that the last rebuild replaced serve again; it catches up first."""
        live, old = make(), Copy(make, "old")
        async with claimed(self._dsn, name=f"rebuild {old.of}") as connection:
            ended = await self._finish(connection, old.of)
            if ended is not None and ended.step == "rolled-back":
                await Copy(make, "gone").drop_if_unused(connection)
                return ended.position
            job = await _job(connection, old.of)
            if job is not None and job.step in {"filling", "indexed"}:
                raise CannotReplay(f"A rebuild of {old.of} is under way; end it first (--abort).")
            if job is None or not await old.exists(connection):
                raise CannotReplay(f"There is no earlier copy of {old.of} to go back to.")
            if await shapes(connection, old.schema) != await shapes(connection, live.schema):
                raise CannotReplay(f"The earlier copy of {old.of} is of another release; rebuild it instead.")
            await self._fill([_UnderWay(make, old, connection, job, True, live.name, live.schema)])
            self._watch(Doing(old.of, "swapping"))

            async def note(position: Position) -> None:
                await connection.execute(_NOTE, ("rolled-back", position, 0, "", old.of))
                await forget_verified(connection, old.of)

            position = await swap(connection, self._log, make, old, leaving="gone", note=note)
            await self._finish(connection, old.of)
            await Copy(make, "gone").drop_if_unused(connection)
            return position

    async def abort(self, make: MakesProjection) -> bool:
        """End the rebuild of a read model, wherever it runs, and drop its copy; False if there was none."""
        copy = Copy(make, "next")
        async with replaying(self._dsn, name="abort") as connection:
            await end_others(connection, copy.of)
        async with claimed(self._dsn, name=f"abort {copy.of}") as connection:
            ended = await self._finish(connection, copy.of)
            job = await _job(connection, copy.of)
            under_way = job is not None and job.step in {"filling", "indexed"}
            async with connection.transaction():
                for kind in ("next", "check", "gone"):
                    await Copy(make, kind).drop(connection)
                if under_way:
                    await connection.execute(_NOTE, ("aborted", 0, 0, "", copy.of))
            await self._finish(connection, copy.of)
            return under_way or (ended is not None and ended.step == "aborted")

    # --- Its steps ----------------------------------------------------------------------------

    async def _begun(self, connection: Connection, make: MakesProjection) -> _UnderWay | Rebuilt:
        """The rebuild that is under way, or a new one; or what became of one that was swapped and could not tell."""
        live, copy = make(), Copy(make, "next")
        ended = await self._finish(connection, copy.of)
        if ended is not None and ended.step == "swapped" and ended.fold == copy.fold():
            await Copy(make, "gone").drop_if_unused(connection)
            found = Differences(ended.position, ended.differences)
            return Rebuilt(copy.of, True, True, ended.position, found, ended.beside or None)
        await refuse_dependents(connection, live.schema, Copy(make, "old").schema)
        job, resumed = await _job(connection, copy.of), True
        if job is not None and job.step in {"filling", "indexed"}:
            if job.fold != copy.fold() or not await copy.exists(connection):
                await self._record(RebuildAct(copy.of, job.rebuild_id, "aborted"))  # begun by another release
                job = None
        else:
            job = None
        if job is None:
            job, resumed = await self._begin(connection, make, copy), False
        await self._record(RebuildAct(copy.of, job.rebuild_id, "begun"))
        serves = job.beside or live.name
        schema = live.schema.removesuffix(live.name) + serves
        return _UnderWay(make, copy, connection, job, resumed, serves, schema)

    async def _begin(self, connection: Connection, make: MakesProjection, copy: Copy) -> _Job:
        behind = await behind_others(connection, [copy.of])
        beside = behind[0].other if behind and not behind[0].position else ""
        async with connection.transaction():
            for kind in ("check", "gone"):
                await Copy(make, kind).drop(connection)
            indexes = await copy.make(connection)
            new = _Job(uuid4(), "filling", False, beside, copy.fold(), indexes, 0, 0, "")
            await connection.execute(_BEGIN, (copy.of, new.rebuild_id, new.beside, new.fold, new.indexes))
        crash_point("rebuild.begun")
        return new

    async def _fill(self, under_way: Sequence[_UnderWay]) -> None:
        """Fold the log up to about where the live ones are; the rest goes faster with the indexes than over and
        over."""
        while True:
            fillings, begin = [], []
            for one in under_way:
                upto, at = await live_position(one.connection, one.name), await one.copy.position(one.connection)
                if upto - at > NEAR:
                    fillings.append(Filling(one.copy, one.connection, upto))
                    begin.append(at)
            if not fillings:
                return
            doing = Doing(", ".join(one.copy.of for one in fillings), "filling", upto=max(one.upto for one in fillings))
            await fill_together(self._log, fillings, limit=self._batch, told=self._paced(doing, min(begin)))

    def _paced(self, doing: Doing, begin: Position) -> Callable[[Position], Awaitable[None]]:
        """Tells who watches, and keeps to the limit."""
        loop = asyncio.get_running_loop()
        started = loop.time()

        async def told(reached: Position) -> None:
            self._watch(replace(doing, reached=reached))
            if self._throttle is not None:
                await asyncio.sleep(max(0.0, started + (reached - begin) / self._throttle - loop.time()))

        return told

    async def _complete(self, one: _UnderWay, *, accept: bool, repair: bool) -> Rebuilt:
        """Index a copy that is filled, compare it, and swap it in."""
        of, connection, beside = one.copy.of, one.connection, one.job.beside or None
        if one.job.step == "filling":
            await self._index(connection, one.copy, one.job)
            await self._fill([one])
        self._watch(Doing(of, "comparing"))
        differences = await agreed(self._dsn, connection, self._log, one.copy, one.name, one.schema)
        decision: Decision = "equal"
        if beside is None:
            await note_verified(connection, of, differences)
        if beside is not None:
            decision = "built"
        elif differences.count:
            decision = "accepted" if accept else "repaired"
            if not accept and not (repair and await self._second_fold_agrees(connection, one.make, one.copy)):
                return Rebuilt(of, False, one.resumed, differences.position, differences)
        position = await self._swap(one, differences.count, decision)
        await note_verified(connection, of, Differences(position, rows=differences.rows))
        await self._finish(connection, of)
        await Copy(one.make, "gone").drop_if_unused(connection)
        return Rebuilt(of, True, one.resumed, position, differences, beside)

    async def _index(self, connection: Connection, copy: Copy, job: _Job) -> None:
        self._watch(Doing(copy.of, "indexing"))
        async with connection.transaction():
            for definition in job.indexes:
                await connection.execute(definition.encode())
            await copy.analyze(connection)
            await connection.execute("UPDATE public.rebuilds SET step = 'indexed' WHERE read_model = %s", (copy.of,))
            crash_point("rebuild.indexed")

    async def _second_fold_agrees(self, connection: Connection, make: MakesProjection, copy: Copy) -> bool:
        """Whether a second copy, told the events in other batches, is the same as the first."""
        check = Copy(make, "check")
        upto = await copy.position(connection)
        told = self._paced(Doing(copy.of, "folding again", upto=upto), 0)
        async with check.only_within(self._dsn, connection):
            async with connection.transaction():
                await check.make(connection)
            limit = max(1, self._batch * SMALL_BATCH // BATCH_EVENTS)
            await check.fill(connection, self._log, upto, limit=limit, told=told)
            found = await agreed(self._dsn, connection, self._log, check, copy.name, copy.schema)
        return not found.count

    async def _swap(self, one: _UnderWay, differences: int, decision: Decision) -> Position:
        async def note(position: Position) -> None:
            await one.connection.execute(_NOTE, ("swapped", position, differences, decision, one.copy.of))
            if leaving == "old":
                await one.connection.execute(_REPLACED, (one.copy.of,))

        # What a new version replaces is empty tables, or what its projector has come to meanwhile.
        leaving = "gone" if one.job.beside else "old"
        await self._fill([one])  # a comparison, or a second fold, may have taken hours
        self._watch(Doing(one.copy.of, "swapping"))
        return await swap(one.connection, self._log, one.make, one.copy, leaving=leaving, note=note)

    async def _finish(self, connection: Connection, read_model: str) -> _Job | None:
        """Record the end of a rebuild, should that not have been done yet; returns what was recorded.

        At the beginning of a command it is the end of one that was killed before it could tell: the same command has
        nothing else to do.
        """
        job = await _job(connection, read_model)
        if job is None or job.recorded or job.step in {"filling", "indexed"}:
            return None
        act: Act = "swapped" if job.step == "swapped" else "rolled-back" if job.step == "rolled-back" else "aborted"
        rebuild_id = (job.replaced_by or job.rebuild_id) if act == "rolled-back" else job.rebuild_id
        await self._record(RebuildAct(read_model, rebuild_id, act, job.position, job.differences, job.decision))
        await connection.execute("UPDATE public.rebuilds SET recorded = true WHERE read_model = %s", (read_model,))
        return job


async def _job(connection: Connection, read_model: str) -> _Job | None:
    cursor = connection.cursor(row_factory=class_row(_Job))
    await cursor.execute(_JOB.encode(), (read_model,))
    return await cursor.fetchone()
