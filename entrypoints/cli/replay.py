"""Rebuilds and verifications of read models, and what they found."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import click

from entrypoints.bootstrap.replay import READ_MODELS, Rebuilder, Verifier
from entrypoints.cli.output import moving, note, print_json, print_table
from infrastructure.replay.comparison import Difference, Differences
from infrastructure.replay.progress import Watch
from infrastructure.replay.rebuild import Rebuilds


@dataclass(frozen=True, slots=True)
class Report:
    """What became of one read model.

    Attributes:
        outcome: "swapped", "differs", "equal", "rolled back", "aborted" or "nothing to abort".
        position: at which the copy was swapped, or compared.
        resumed: an earlier rebuild was taken up.
        rows: compared, if any were.
        differences: their number; `found` has the first ten thousand.
    """

    read_model: str
    outcome: str
    position: int | None = None
    resumed: bool = False
    rows: int | None = None
    differences: int | None = None
    found: list[Difference] = field(default_factory=list)


def chosen(names: Sequence[str], *, everything: bool = False) -> tuple[str, ...]:
    """The read models that are meant.

    Raises:
        click.UsageError: there is none of that name, or it is not said which.
    """
    if bool(names) == everything:
        raise click.UsageError("Give the names of read models, or --all.", click.get_current_context())
    for name in names:
        if name not in READ_MODELS:
            raise click.BadParameter(
                f"'{name}' is no read model; there are {', '.join(READ_MODELS)}.",
                click.get_current_context(),
                param_hint="NAME",
            )
    return tuple(dict.fromkeys(names)) or tuple(READ_MODELS)


async def rebuild(
    parts: Rebuilder, names: Sequence[str], *, accept: bool, repair: bool, throttle: int | None, as_json: bool
) -> int:
    """Rebuild one read model after the other; 1 if one of them waits for a decision about its differences."""

    async def one(rebuilds: Rebuilds, name: str) -> Report:
        done = await rebuilds.rebuild(READ_MODELS[name], accept=accept, repair=repair)
        return _report(name, "swapped" if done.swapped else "differs", done.differences, done.position, done.resumed)

    reports = await _each(parts, names, one, throttle)
    _print(reports, as_json=as_json)
    waiting = [one.read_model for one in reports if one.outcome == "differs"]
    if waiting:
        note(
            f"Not swapped: {', '.join(waiting)}. --repair swaps if a second fold says the same, --accept in any case; "
            "--abort drops the copy."
        )
    return 1 if waiting else 0


async def roll_back(parts: Rebuilder, names: Sequence[str], *, as_json: bool) -> int:
    """Have the former read models serve again."""

    async def one(rebuilds: Rebuilds, name: str) -> Report:
        return Report(name, "rolled back", await rebuilds.roll_back(READ_MODELS[name]))

    _print(await _each(parts, names, one), as_json=as_json)
    return 0


async def abort(parts: Rebuilder, names: Sequence[str], *, as_json: bool) -> int:
    """End rebuilds, and drop their copies."""

    async def one(rebuilds: Rebuilds, name: str) -> Report:
        return Report(name, "aborted" if await rebuilds.abort(READ_MODELS[name]) else "nothing to abort")

    _print(await _each(parts, names, one), as_json=as_json)
    return 0


async def verify(parts: Verifier, names: Sequence[str], *, as_json: bool) -> int:
    """Compare read models with the log; 1 if any differs."""
    with _interruptible("nothing was changed."), watched() as watch:
        found = {name: await parts.verify(name, watch) for name in names}
    reports = [_report(name, "differs" if one.count else "equal", one, one.position) for name, one in found.items()]
    _print(reports, as_json=as_json)
    return 1 if any(one.differences for one in reports) else 0


async def _each(
    parts: Rebuilder,
    names: Sequence[str],
    act: Callable[[Rebuilds, str], Awaitable[Report]],
    throttle: int | None = None,
) -> list[Report]:
    serves = "the read models serve on; the same command goes on where it was, --abort drops the copy."
    with _interruptible(serves), watched() as watch:
        rebuilds = parts.rebuilds(watch, throttle=throttle)
        return [await act(rebuilds, name) for name in names]


@contextmanager
def _interruptible(what_is: str) -> Iterator[None]:
    """Says what is there if Ctrl-C or SIGTERM comes in the block."""
    try:
        yield
    except asyncio.CancelledError:
        note(f"Interrupted: {what_is}")
        raise


def _report(name: str, outcome: str, found: Differences, position: int, resumed: bool = False) -> Report:
    return Report(name, outcome, position, resumed, found.rows, found.count, found.kept)


def _print(reports: Sequence[Report], *, as_json: bool) -> None:
    if as_json:
        print_json(reports)
        return
    print_table(
        ("read model", "outcome", "position", "rows", "differences", "resumed"),
        ((one.read_model, one.outcome, one.position, one.rows, one.differences, one.resumed) for one in reports),
    )
    found = [one for report in reports for one in report.found]
    if found:
        click.echo()
        print_table(
            ("read model", "table", "row", "column", "live", "rebuilt", "position"),
            ((one.read_model, one.table, one.row, one.column, one.live, one.rebuilt, one.position) for one in found),
        )
    if (left := sum(one.differences or 0 for one in reports) - len(found)) > 0:
        note(f"{left} more differences are counted, but not listed.")


@contextmanager
def watched() -> Iterator[Watch]:
    """Show a person what is being done, and how far it is."""
    with moving() as progress:
        yield lambda doing: progress(f"{doing.read_model}: {doing.what}", doing.reached, doing.upto)
