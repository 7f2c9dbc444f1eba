"""The operators' routes about replay: rebuilds, verifications, read models as they were, today's decisions, the log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import zstandard
from fastapi import Query
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from application.ports import Overloaded
from domain.recorded import Position
from entrypoints.api.guard import body_of, extend_deadline
from entrypoints.api.jobs import UNDER_WAY, BeginJob
from entrypoints.api.openapi import BODY_PROBLEMS, body_described
from entrypoints.api.problems import HttpProblem
from entrypoints.api.reasons import reason_argument
from entrypoints.api.request_body import parse
from entrypoints.api.responses import Cursor, Id, Time, answer
from entrypoints.api.strict_values import WHOLE, Instant
from entrypoints.queries.replay import FoundByRebuild, ReplayQueries
from infrastructure.replay.comparison import Difference
from infrastructure.replay.jobs import MOST_LISTED, Jobs, Kind, State
from infrastructure.replay.states import PassState
from infrastructure.replay.verified import Verified
from projections.paging import before

Name = Literal["registrations", "accounts", "mail", "funnel", "audit", "deadlines"]
Moment = Annotated[Position, Field(strict=True, ge=0, lt=2**63), WHOLE] | Instant
"""A position of the log, or a time: the last position that was recorded by then."""

NOT_FOUND: Final = "not-found"
JSON_LINES: Final = "application/jsonl"


# --- What is asked ------------------------------------------------------------------------------


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class Rebuild(_Body):
    """Without `accept` and `repair`, a copy that differs waits for a decision."""

    accept: Annotated[bool, Field(strict=True, description="swap the copy in, whatever differs")] = False
    repair: Annotated[
        bool, Field(strict=True, description="swap the copy in if a second fold of the log says the same as the first")
    ] = False
    throttle: Annotated[
        int | None, Field(strict=True, ge=1, le=10**9, description="positions of the log a second at most"), WHOLE
    ] = None

    @model_validator(mode="after")
    def _one_decision(self) -> Rebuild:
        if self.accept and self.repair:
            raise ValueError("accept and repair exclude each other")
        return self


class Nothing(_Body):
    """No body, or an empty object."""


class AsOf(_Body):
    at: Annotated[Moment, Field(description="position of the log, or a time")]
    drop: Annotated[bool, Field(strict=True, description="drop what was built, instead")] = False


class Diff(_Body):
    a: Annotated[Moment, Field(description="position of the log, or a time")]
    b: Annotated[Moment, Field(description="position of the log, or a time")]


class WhatIf(_Body):
    since: Annotated[Moment | None, Field(description="only decisions after this position, or from this time on")] = (
        None
    )
    until: Annotated[Moment | None, Field(description="only decisions up to this position, or before this time")] = None
    since_release: Annotated[bool, Field(strict=True, description="only those of the release that decides now")] = False
    set: Annotated[
        dict[Literal["OTP_TTL", "REGISTRATION_TTL"], Annotated[str, Field(pattern="^[0-9][0-9a-z.]{0,19}$")]],
        Field(description="settings to decide with instead", examples=[{"OTP_TTL": "300"}]),
    ] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_begin(self) -> WhatIf:
        if self.since_release and self.since is not None:
            raise ValueError("since and since_release exclude each other")
        return self


class FoundQuery(BaseModel):
    """A page of what differs."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    cursor: Annotated[
        str | None,
        Field(pattern="^[A-Za-z0-9_=-]{1,64}$", description="`next_cursor` of a page"),
        AfterValidator(lambda cursor: (before(cursor), cursor)[1]),
    ] = None
    limit: Annotated[int, Field(ge=1, le=200)] = 50


# --- What is answered ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JobState:
    """Something that runs in a process of its own.

    Attributes:
        read_model: null where it is about the whole log.
        asked: what the request said.
        says: why it is not done, in one line.
        result: as the command prints it with `--json`; of many differences the first thousand.
    """

    job_id: Id
    kind: Kind
    read_model: Annotated[str | None, Field(examples=["registrations"])]
    asked: dict[str, Any]
    state: State
    says: Annotated[str | None, Field(examples=["The log ends at position 4711."])]
    result: dict[str, Any] | None
    begun_at: Time
    ended_at: Time | None


@dataclass(frozen=True, slots=True)
class Found:
    """A page of what differs, in the order in which it was found; personal values are masked."""

    items: list[Difference]
    next_cursor: Cursor


@dataclass(frozen=True, slots=True)
class RebuildProgress:
    """The latest rebuild of a read model.

    Attributes:
        step: "filling" or "indexed" while it is under way, or waits for a decision.
        runs: whether a process is at it now, whoever began it.
        reached, upto: positions of the copy and of the live read model; `reached` is 0 where there is no copy.
        position: at which it was swapped in, or undone.
        decision: why it was swapped in: "equal", "accepted", "repaired"; "" before.
        differences: how many were found; null before the comparison.
    """

    read_model: Annotated[str, Field(examples=["registrations"])]
    rebuild_id: Id
    step: Literal["filling", "indexed", "swapped", "rolled-back", "aborted"]
    runs: bool
    begun_at: Time
    reached: Position
    upto: Position
    position: Position
    decision: str
    differences: int | None
    found: Found


@dataclass(frozen=True, slots=True)
class VerificationState:
    """Whether a read model is what the log says.

    Attributes:
        last: the last full verification; null where none has been since this one serves.
        under_way: that in the background.
        found: what the last one has found.
    """

    read_model: Annotated[str, Field(examples=["registrations"])]
    last: Verified | None
    under_way: PassState | None
    found: Found


# --- The routes ---------------------------------------------------------------------------------


def add_replay_routes(
    add: Callable[..., None],
    queries: ReplayQueries,
    begin: BeginJob,
    export: Callable[[], AsyncGenerator[bytes, None]],
    *,
    patience: timedelta,
) -> None:
    """
    Args:
        add: adds a route below `PREFIX`.
        export: the log in pieces of whole lines.
        patience: how long a client may take over a piece of it.
    """
    _add_states(add, queries, begin.jobs)
    _add_rebuilds(add, begin)
    _add_time_travel(add, begin)
    _add_export(add, export, patience)


def _add_states(add: Callable[..., None], queries: ReplayQueries, jobs: Jobs) -> None:
    async def rebuild(name: Name, query: Annotated[FoundQuery, Query()]) -> Response:
        """How far the latest rebuild is, and what it has found to differ."""
        found = await queries.rebuild(name, cursor=query.cursor, limit=query.limit)
        if found is None:
            raise HttpProblem(NOT_FOUND)
        return answer(_progress(found))

    async def verification(name: Name, query: Annotated[FoundQuery, Query()]) -> Response:
        """The last full verification, one that is under way in the background, and what was found to differ."""
        it = await queries.verification(name, cursor=query.cursor, limit=query.limit)
        return answer(VerificationState(name, it.last, it.under_way, Found(it.found.items, it.found.next_cursor)))

    async def job(job_id: UUID) -> Response:
        """What has become of a job; known for a week."""
        found = await jobs.find(job_id)
        if found is None:
            raise HttpProblem(NOT_FOUND)
        return answer(found)

    add("GET", "/projections/{name}/rebuild", rebuild, "The latest rebuild", RebuildProgress, NOT_FOUND)
    add("GET", "/projections/{name}/verification", verification, "The last verification", VerificationState)
    add("GET", "/jobs/{job_id}", job, "A job", JobState, NOT_FOUND)


def _progress(it: FoundByRebuild) -> RebuildProgress:
    state = it.state
    return RebuildProgress(
        read_model=state.read_model,
        rebuild_id=state.rebuild_id,
        step=state.step,
        runs=state.runs,
        begun_at=state.begun_at,
        reached=state.reached,
        upto=state.upto,
        position=state.position,
        decision=state.decision,
        differences=state.differences if state.step == "swapped" else it.compared,
        found=Found(it.found.items, it.found.next_cursor),
    )


def _asked(kind: type[BaseModel], request: Request) -> Any:
    return parse(kind, body_of(request) or b"{}")


def _add_job(
    add: Callable[..., None], path: str, endpoint: Callable[..., Any], summary: str, body: type[BaseModel], example: Any
) -> None:
    add(
        *("POST", path, endpoint, summary, JobState, UNDER_WAY, *BODY_PROBLEMS),
        status=202,
        openapi_extra=body_described(body, example),
    )


def _add_rebuilds(add: Callable[..., None], begin: BeginJob) -> None:
    async def rebuild(name: Name, request: Request) -> Response:
        """Rebuild a read model from the log while it serves, or go on with the rebuild that was interrupted.

        It runs in a process of its own, with a low priority; `GET` on the same path tells how far it is.
        """
        asked: Rebuild = _asked(Rebuild, request)
        decision = "--accept" if asked.accept else "--repair" if asked.repair else None
        throttle = ("--throttle", asked.throttle) if asked.throttle is not None else ()
        words = ("projections", "rebuild", name, "--json", decision, *throttle, reason_argument(request))
        return await begin(request, "rebuild", name, asked, *words)

    async def roll_back(name: Name, request: Request) -> Response:
        """Have the read model serve again that the last rebuild replaced."""
        words = ("projections", "rebuild", name, "--json", "--rollback", reason_argument(request))
        return await begin(request, "rollback", name, _asked(Nothing, request), *words)

    async def abort(name: Name, request: Request) -> Response:
        """End the rebuild of a read model, wherever it runs, and drop its copy."""
        words = ("projections", "rebuild", name, "--json", "--abort", reason_argument(request))
        return await begin(request, "abort", name, _asked(Nothing, request), *words)

    async def verify(name: Name, request: Request) -> Response:
        """Compare a read model with a fresh fold of the log, every row."""
        return await begin(request, "verify", name, _asked(Nothing, request), "projections", "verify", name, "--json")

    of = "/projections/{name}"
    _add_job(add, f"{of}/rebuild", rebuild, "Rebuild a read model", Rebuild, {"repair": True, "throttle": 20000})
    _add_job(add, f"{of}/rollback", roll_back, "Undo a rebuild", Nothing, {})
    _add_job(add, f"{of}/abort", abort, "Abort a rebuild", Nothing, {})
    _add_job(add, f"{of}/verify", verify, "Verify a read model", Nothing, {})


def _word(moment: Position | datetime) -> str:
    return moment.isoformat() if isinstance(moment, datetime) else str(moment)


def _add_time_travel(add: Callable[..., None], begin: BeginJob) -> None:
    async def as_of(name: Name, request: Request) -> Response:
        """Build a read model as it was, in a schema of its own, which stays until it is dropped.

        The job's result names the schema, its tables and the position.
        """
        asked: AsOf = _asked(AsOf, request)
        drop = "--drop" if asked.drop else None
        return await begin(request, "as-of", name, asked, "projections", "as-of", name, _word(asked.at), "--json", drop)

    async def diff(name: Name, request: Request) -> Response:
        """What is different in a read model between two moments."""
        asked: Diff = _asked(Diff, request)
        words = ("projections", "diff", name, _word(asked.a), _word(asked.b), "--json")
        return await begin(request, "diff", name, asked, *words)

    async def what_if(request: Request) -> Response:
        """Ask what the mail saga would decide today, by this release and with these settings.

        Nothing is recorded or sent. The job's result counts the differences by kind.
        """
        asked: WhatIf = _asked(WhatIf, request)
        words: list[str | int | None] = ["events", "replay", "--dry-run", "--json", "--limit", MOST_LISTED]
        for option, moment in (("--since", asked.since), ("--until", asked.until)):
            words += [option, _word(moment)] if moment is not None else []
        words.append("--since-release" if asked.since_release else None)
        for name, value in asked.set.items():
            words += ["--set", f"{name}={value}"]
        return await begin(request, "what-if", None, asked, *words)

    _add_job(add, "/projections/{name}/as-of", as_of, "A read model as it was", AsOf, {"at": 4711})
    _add_job(add, "/projections/{name}/diff", diff, "Between two moments", Diff, {"a": 4000, "b": 4711})
    _add_job(add, "/what-if", what_if, "What if", WhatIf, {"since": 4000, "set": {"OTP_TTL": "300"}})


def _add_export(
    add: Callable[..., None], exported: Callable[[], AsyncGenerator[bytes, None]], patience: timedelta
) -> None:
    exporting = asyncio.Lock()

    async def export(request: Request) -> Response:
        """The log as JSON Lines, which verify by themselves (`registrar events import --check`), without personal keys.

        Compressed for clients that accept zstd. It takes as long as it takes, and ends with a line that says so: what
        lacks it was cut off. One at a time.
        """
        if exporting.locked():
            raise Overloaded("an export is under way", retry_after=30)
        compressed = "zstd" in request.headers.get("accept-encoding", "")
        headers = {"Content-Disposition": 'attachment; filename="registrar.jsonl"', "Vary": "Accept-Encoding"}
        pieces = _patiently(_held(exporting, exported()), request, patience)
        if compressed:
            headers["Content-Encoding"] = "zstd"
            pieces = _compressed(pieces)
        return StreamingResponse(pieces, headers=headers, media_type=JSON_LINES)

    add("GET", "/events/export", export, "The log as a file", JSON_LINES, response_class=Response)


async def _held(lock: asyncio.Lock, pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    async with lock, aclosing(pieces):
        async for piece in pieces:
            yield piece


async def _patiently(
    pieces: AsyncGenerator[bytes, None], request: Request, patience: timedelta
) -> AsyncGenerator[bytes, None]:
    """Each piece has as long as another request has for all of its response."""
    async with aclosing(pieces):
        async for piece in pieces:
            extend_deadline(request, patience)
            yield piece


async def _compressed(pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    compressor = zstandard.ZstdCompressor(level=1).compressobj()
    async with aclosing(pieces):
        async for piece in pieces:
            if some := compressor.compress(piece):
                yield some
    yield compressor.flush()
