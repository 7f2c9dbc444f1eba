"""What operators have done over HTTP: each a command of the command line, in a process of its own.

Folding is work for a processor, and would hold up whoever else is served by this process. The command's own process
cannot: it has a lower priority, its memory is bounded, and a process that ends before it ends it as Ctrl-C does. What
becomes of a job is in the database, so that any process tells.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal
from uuid import UUID, uuid4

import msgspec
import psycopg
import structlog
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from application.ports import Unavailable
from infrastructure.postgres.connection import Connection, ReconnectingConnection

log = structlog.get_logger(__name__)

Kind = Literal["rebuild", "rollback", "abort", "verify", "as-of", "diff", "what-if"]
State = Literal["running", "done", "failed", "interrupted"]

SEEN_EVERY: Final = timedelta(seconds=5)
LOST_AFTER: Final = timedelta(seconds=30)
"""A job whose process has not said anything for so long is over, as far as anybody knows."""

KEPT_FOR: Final = timedelta(days=7)

NICENESS: Final = 10

GRACE: Final = timedelta(seconds=10)
"""For a command to end what it is in the middle of."""

MOST_LISTED: Final = 1_000
"""Differences in a job's result; all are counted."""

_LONGEST_LINE: Final = 500
_INTERRUPTED: Final = (
    "The process that ran it has ended before it; the same request goes on with what can be gone on with."
)

_FIND = """
    SELECT job_id, kind, read_model, asked, begun_at, ended_at, result,
        CASE WHEN is_lost THEN 'interrupted' ELSE state END AS state,
        CASE WHEN is_lost THEN %(lost)s ELSE says END AS says
    FROM (
        SELECT *, state = 'running' AND seen_at < clock_timestamp() - %(patience)s AS is_lost
        FROM public.replay_jobs WHERE job_id = %(id)s
    ) AS job
"""

_TIDY = """
    UPDATE public.replay_jobs SET state = 'interrupted', says = %(lost)s, ended_at = seen_at
    WHERE state = 'running' AND seen_at < clock_timestamp() - %(patience)s
"""

_FORGET = "DELETE FROM public.replay_jobs WHERE ended_at < clock_timestamp() - %s"

_BEGIN = """
    INSERT INTO public.replay_jobs (job_id, kind, read_model, asked) VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING
    RETURNING begun_at
"""

_BEGUN = "SELECT kind, read_model, asked, begun_at FROM public.replay_jobs WHERE job_id = %s"

_SEEN = "UPDATE public.replay_jobs SET seen_at = clock_timestamp() WHERE job_id = %s"

_END = """
    UPDATE public.replay_jobs SET state = %s, says = %s, result = %s, ended_at = clock_timestamp() WHERE job_id = %s
"""

# Verification in the background gives way.
_CLAIMED = """
    SELECT EXISTS (
        SELECT FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid
        WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
            AND l.classid = hashtext('registrar replay')::oid AND l.objid = 0
            AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND a.application_name <> 'registrar verification')
"""


class UnderWay(Exception):
    """Another job, or a command of an operator, is under way."""


class OtherJob(Exception):
    """The job of this id is another one."""


@dataclass(frozen=True, slots=True)
class Job:
    """
    Attributes:
        read_model: None where it is about the whole log.
        asked: what the request says.
        says: why it is not done, in one line.
        result: what was found, once it is done.
    """

    job_id: UUID
    kind: Kind
    read_model: str | None
    asked: dict[str, Any]
    state: State
    says: str | None
    result: Any
    begun_at: datetime
    ended_at: datetime | None


class Jobs:
    """Begins jobs, one at a time, and ends with those that it has begun.

    Raises (its methods):
        Unavailable, psycopg.Error: the database is away.
    """

    def __init__(self, line: ReconnectingConnection, *, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """
        Args:
            command: runs the command line, without arguments.
            environment: of the commands; secrets are nowhere else.
        """
        self._line = line
        self._command = command
        self._environment = environment
        self._under_way: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """End what is under way as Ctrl-C does; it can be gone on with."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
        await self._line.close()

    async def begin(
        self,
        kind: Kind,
        read_model: str | None,
        asked: Mapping[str, Any],
        arguments: Sequence[str],
        *,
        job_id: UUID | None = None,
    ) -> tuple[Job, bool]:
        """Begin a job, which goes on when this returns.

        Args:
            arguments: of the command.
            job_id: of the job to begin, if it was not begun before, and is still known; None: of a new one.

        Returns:
            The job as it was when it was begun, and whether that was before.

        Raises:
            UnderWay: there is another one; only to abort a rebuild need not wait for that.
            OtherJob: this id is that of another one.
        """
        chosen = job_id or uuid4()

        async def insert(connection: Connection) -> tuple[datetime, bool] | None:
            async with connection.transaction():
                await connection.execute(_TIDY, {"patience": LOST_AFTER, "lost": _INTERRUPTED})
                await connection.execute(_FORGET, (KEPT_FOR,))
                known = await _known(connection)
                if known is not None:
                    return known, True
                row = await (await connection.execute(_CLAIMED)).fetchone()
                if kind in {"rebuild", "rollback", "verify"} and row is not None and row[0]:
                    return None
                row = await (await connection.execute(_BEGIN, (chosen, kind, read_model, Jsonb(asked)))).fetchone()
                if row is not None:
                    return row[0], False
                known = await _known(connection)  # begun at the same time
                return None if known is None else (known, True)

        async def _known(connection: Connection) -> datetime | None:
            if job_id is None:
                return None
            row = await (await connection.execute(_BEGUN, (job_id,))).fetchone()
            if row is not None and row[:3] != (kind, read_model, asked):
                raise OtherJob
            return None if row is None else row[3]

        begun = await self._line.execute(insert)
        if begun is None:
            raise UnderWay
        begun_at, before = begun
        if not before:
            task = asyncio.create_task(self._run(chosen, kind, arguments), name=f"job {kind}")
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
        return Job(chosen, kind, read_model, dict(asked), "running", None, None, begun_at, None), before

    async def find(self, job_id: UUID) -> Job | None:
        """None: there is none of that id, or it ended long ago."""

        async def select(connection: Connection) -> Job | None:
            cursor = connection.cursor(row_factory=class_row(Job))
            await cursor.execute(_FIND, {"patience": LOST_AFTER, "lost": _INTERRUPTED, "id": job_id})
            return await cursor.fetchone()

        return await self._line.execute_idempotent(select)

    # --- Its process --------------------------------------------------------------------------

    async def _run(self, job_id: UUID, kind: Kind, arguments: Sequence[str]) -> None:
        state: State
        says: str | None
        result: Any = None
        try:
            code, output, errors = await self._executed(job_id, arguments)
        except OSError as error:
            state, says = "failed", f"The command cannot be started ({error.strerror})."
        except asyncio.CancelledError:
            await self._end(job_id, "interrupted", _INTERRUPTED, None)
            raise
        else:
            state, says, result = _outcome(kind, code, output, errors)
        log.info("job.ended", job=kind, state=state, says=says)
        while True:  # until the database is there
            if await self._end(job_id, state, says, result):
                return
            await asyncio.sleep(1)

    async def _executed(self, job_id: UUID, arguments: Sequence[str]) -> tuple[int, bytes, bytes]:
        process = await asyncio.create_subprocess_exec(
            *self._command,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._environment,
            start_new_session=True,  # Ctrl-C in our terminal is for us, who pass it on
        )
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, process.pid, NICENESS)
        output = asyncio.create_task(process.communicate())
        try:
            while not (await asyncio.wait({output}, timeout=SEEN_EVERY.total_seconds()))[0]:
                await self._tell(_SEEN, (job_id,))
            return process.returncode or 0, *output.result()
        finally:
            if process.returncode is None:
                process.terminate()
                await asyncio.wait({output}, timeout=GRACE.total_seconds())
            if process.returncode is None:
                process.kill()
                await asyncio.wait({output})

    async def _end(self, job_id: UUID, state: State, says: str | None, result: Any) -> bool:
        return await self._tell(_END, (state, says, None if result is None else Jsonb(result), job_id))

    async def _tell(self, statement: str, parameters: Sequence[Any]) -> bool:
        """Whether the database has heard it."""

        async def tell(connection: Connection) -> None:
            await connection.execute(statement.encode(), parameters)

        try:
            await self._line.execute_idempotent(tell)
        except (Unavailable, psycopg.Error):
            return False
        return True


def _outcome(kind: Kind, code: int, output: bytes, errors: bytes) -> tuple[State, str | None, Any]:
    """What a command's end means. Exit code 1 with something printed: there are differences."""
    lines = errors.decode(errors="replace").strip().splitlines()
    says = lines[-1].removeprefix("registrar: ")[:_LONGEST_LINE] if lines else f"It has ended with exit code {code}."
    try:
        found = msgspec.json.decode(output) if code in {0, 1} else None
    except msgspec.DecodeError:
        found = None
    if found is not None:
        return "done", None, _shortened(kind, found)
    return ("interrupted" if code == 130 or code < 0 else "failed"), says, None


def _shortened(kind: Kind, found: Any) -> Any:
    """Of a result, what can be shown at once."""
    if kind in {"rebuild", "rollback", "abort", "verify"}:
        # What differs is in `found_differences`.
        return {name: value for name, value in found[0].items() if name != "found"}
    if kind == "diff":
        return found | {"found": found["found"][:MOST_LISTED]}
    return {name: value for name, value in found.items() if name != "drop"}
