"""What followers have put aside: the error, the event, the code that refused it; and to have it tried again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from uuid import UUID, uuid4

import click

from application.ports import Context
from domain.recorded import Actor
from entrypoints import parked_streams
from entrypoints.bootstrap.desk import Desk, Reader
from entrypoints.bootstrap.replay import READ_MODELS
from entrypoints.cli.output import moving, note, print_json, print_table, show
from entrypoints.queries.parked import LONGEST_LIST, ParkedQueries
from infrastructure.followers.names import names_of_followers
from infrastructure.followers.parked_listing import ParkedStream

_PATIENCE = 15.0
"""Seconds for which the next outcome is waited for: a leader looks every second, and takes one stream at a time."""

_LOOK = 0.5
"""Seconds between two looks at what has become of retries."""

_NOT_TRIED = "not tried yet"


@dataclass(frozen=True, slots=True)
class Report:
    """What became of one retry.

    Attributes:
        outcome: "applied"; "still parked", after the try; "not tried yet": nobody leads the follower, or it is busy;
            "not parked".
        error: why it is still parked.
    """

    stream_id: UUID
    follower: str | None
    outcome: str
    error: str | None = None


def known_follower(name: str | None) -> str | None:
    """The name as given.

    Raises:
        click.BadParameter: no follower has it.
    """
    names = names_of_followers(READ_MODELS, publishes=True)
    if name is not None and name not in names:
        raise click.BadParameter(
            f"'{name}' is no follower; there are {', '.join(names)}.",
            click.get_current_context(),
            param_hint="--follower",
        )
    return name


async def list_parked(reader: Reader, *, follower: str | None, as_json: bool) -> int:
    """Print the parked streams, the one that waits longest first."""
    found = await reader.parked.streams(follower=follower)
    if as_json:
        print_json(found)
        return 0
    print_table(
        ("stream", "follower", "error", "position", "events", "refused by", "parked at", "tried at"),
        (
            (one.stream_id, one.follower, one.error, one.position, one.events, one.code, one.parked_at, one.tried_at)
            for one in found
        ),
    )
    if len(found) == LONGEST_LIST:
        note(f"There may be more than {LONGEST_LIST}.")
    return 0


async def show_parked(reader: Reader, stream_id: UUID, *, as_json: bool) -> int:
    """Print every parked event of a stream.

    Raises:
        UnknownRegistration: no follower has parked it.
    """
    found = await reader.parked.stream(stream_id)
    if as_json:
        print_json([asdict(one.parked) | {"event": one.event} for one in found])
        return 0
    for number, one in enumerate(found):
        if number:
            click.echo()
        event = one.event
        shown: dict[str, object] = {"follower": one.parked.follower, "error": one.parked.error}
        shown |= {"refused by": one.parked.code, "parked at": one.parked.parked_at, "tried at": one.parked.tried_at}
        if event is None:
            shown["event"] = "none: a deadline of the saga was due"
        else:
            shown |= {"position": event.position, "event": event.type, "recorded at": event.recorded_at}
            shown |= {
                "actor": event.actor,
                "data": "this version cannot read it" if event.data is None else event.data or None,
            }
        for name, value in shown.items():
            click.echo(f"{name:<13}{show(value)}")
    return 0


async def retry(
    desk: Desk, stream_ids: Sequence[UUID], *, follower: str | None, reason: str | None = None, as_json: bool
) -> int:
    """Have streams tried again now, or all of them, and wait for what becomes of it; 1 if any is not applied."""
    context = Context(Actor.OPERATOR, correlation_id=uuid4(), reason=reason)
    before = await _parked(desk.parked, stream_ids, follower)
    with moving() as progress:
        for number, one in enumerate(before):
            progress("Asking", number, len(before))
            about = await desk.parked.registration_of(one.stream_id)
            await parked_streams.retry(desk.handlers, one.stream_id, [one.follower], context, registration_id=about)
        outcomes = await _outcomes(desk.parked, before, stream_ids, follower, partial(progress, "Trying again"))
    known = {one.stream_id for one in before}
    unknown = [stream_id for stream_id in dict.fromkeys(stream_ids) if stream_id not in known]
    reports = [*outcomes, *(Report(stream_id, follower, "not parked") for stream_id in unknown)]
    if as_json:
        print_json(reports)
    elif reports:
        print_table(
            ("stream", "follower", "outcome", "error"),
            ((one.stream_id, one.follower, one.outcome, one.error) for one in reports),
        )
    else:
        note("Nothing is parked.")
    return 1 if any(one.outcome != "applied" for one in reports) else 0


async def _parked(parked: ParkedQueries, stream_ids: Sequence[UUID], follower: str | None) -> Sequence[ParkedStream]:
    """Of these streams, or of all."""
    if not stream_ids:
        return await parked.all_streams(follower=follower)
    return [
        one
        for stream_id in dict.fromkeys(stream_ids)
        for one in await parked.streams(follower=follower, stream_id=stream_id)
    ]


async def _outcomes(
    parked: ParkedQueries,
    before: Sequence[ParkedStream],
    stream_ids: Sequence[UUID],
    follower: str | None,
    progress: Callable[[int, int], None],
) -> list[Report]:
    """What has become of each, when all are tried, or none has been for `_PATIENCE`."""
    time = asyncio.get_running_loop().time
    untried, deadline = len(before), time() + _PATIENCE
    while True:
        now = {(one.follower, one.stream_id): one for one in await _parked(parked, stream_ids, follower)}
        reports = [_report(one, now.get((one.follower, one.stream_id))) for one in before]
        left = sum(one.outcome == _NOT_TRIED for one in reports)
        progress(len(before) - left, len(before))
        if left < untried:
            untried, deadline = left, time() + _PATIENCE
        if not left or time() >= deadline:
            return reports
        await asyncio.sleep(_LOOK)


def _report(before: ParkedStream, now: ParkedStream | None) -> Report:
    if now is None:
        return Report(before.stream_id, before.follower, "applied")
    tried = now.tried_at != before.tried_at
    return Report(now.stream_id, now.follower, "still parked" if tried else _NOT_TRIED, now.error)
