"""Rebuilds and verifications of read models, and what they found."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import click

from entrypoints.bootstrap.replay import READ_MODELS, Rebuilder, Verifier, read_model_named
from entrypoints.cli.output import moving, note, print_json, print_table
from infrastructure.replay.comparison import Difference, Differences
from infrastructure.replay.progress import Watch
from infrastructure.replay.rebuild import Rebuilds, Rebuilt


@dataclass(frozen=True, slots=True)
class Report:
    """What became of one read model.

    Attributes:
        outcome: "swapped", "differs", "equal", "rolled back", "aborted" or "nothing to abort"; "built": a version that
            had not served before, compared with the one that goes on to serve the earlier release.
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


_SERVES = "the read models serve on; the same command goes on where it was, --abort drops the copy."

_SHOWN_OF_BUILT = 20
"""Differences that are shown of a new version, which may be in every row; all are counted, and `--json` has more."""


def chosen(names: Sequence[str], *, everything: bool = False) -> tuple[str, ...]:
    """The read models that are meant.

    Raises:
        click.UsageError: there is none of that name, or it is not said which.
    """
    if bool(names) == everything:
        raise click.UsageError("Give the names of read models, or --all.", click.get_current_context())
    found = []
    for name in names:
        ours = read_model_named(name)
        if ours is None:
            raise click.BadParameter(
                f"'{name}' is no read model; there are {', '.join(READ_MODELS)}.",
                click.get_current_context(),
                param_hint="NAME",
            )
        found.append(ours)
    return tuple(dict.fromkeys(found)) or tuple(READ_MODELS)


async def rebuild(
    parts: Rebuilder, names: Sequence[str], *, accept: bool, repair: bool, throttle: int | None, as_json: bool
) -> int:
    """Rebuild read models; 1 if one of them waits for a decision about its differences."""
    makes = [READ_MODELS[name] for name in names]
    with _interruptible(_SERVES), watched() as watch:
        done = await parts.rebuilds(watch, throttle=throttle).rebuild_all(makes, accept=accept, repair=repair)
    reports = [_report(one.read_model, _outcome(one), one.differences, one.position, one.resumed) for one in done]
    _print(reports, as_json=as_json, rebuilt=True)
    for one in done:
        if one.beside is not None:
            note(
                f"{one.read_model} serves the processes of this release; {one.beside} goes on to serve those of the "
                "earlier one. What differs is what the new version changes."
            )
    waiting = [one.read_model for one in reports if one.outcome == "differs"]
    if waiting:
        note(
            f"Not swapped: {', '.join(waiting)}. --repair swaps if a second fold says the same, --accept in any case; "
            "--abort drops the copy."
        )
    return 1 if waiting else 0


async def roll_back(parts: Rebuilder, names: Sequence[str], *, throttle: int | None, as_json: bool) -> int:
    """Have the former read models serve again."""

    async def one(rebuilds: Rebuilds, name: str) -> Report:
        return Report(name, "rolled back", await rebuilds.roll_back(READ_MODELS[name]))

    _print(await _each(parts, names, one, throttle=throttle), as_json=as_json)
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
        found = dict(zip(names, await parts.verify_all(names, watch), strict=True))
    reports = [_report(name, "differs" if one.count else "equal", one, one.position) for name, one in found.items()]
    _print(reports, as_json=as_json)
    return 1 if any(one.differences for one in reports) else 0


async def drop(parts: Rebuilder, names: Sequence[str], *, as_json: bool) -> int:
    """Drop the versions of read models that this release's have superseded."""
    dropped = [one for name in names for one in await parts.drop_superseded(name)]
    if as_json:
        print_json(dropped)
    elif dropped:
        print_table(("dropped", "position"), ((one.name, one.position) for one in dropped))
    else:
        note("There is no superseded version.")
    return 0


def _outcome(done: Rebuilt) -> str:
    if done.beside is not None:
        return "built"
    return "swapped" if done.swapped else "differs"


async def _each(
    parts: Rebuilder,
    names: Sequence[str],
    act: Callable[[Rebuilds, str], Awaitable[Report]],
    *,
    throttle: int | None = None,
) -> list[Report]:
    with _interruptible(_SERVES), watched() as watch:
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


def _print(reports: Sequence[Report], *, as_json: bool, rebuilt: bool = False) -> None:
    if as_json:
        print_json(reports)
        return
    print_table(
        ("read model", "outcome", "position", "rows", "differences", *(("resumed",) if rebuilt else ())),
        (
            (one.read_model, one.outcome, one.position, one.rows, one.differences, *((one.resumed,) if rebuilt else ()))
            for one in reports
        ),
    )
    found = [
        one for report in reports for one in report.found[: _SHOWN_OF_BUILT if report.outcome == "built" else None]
    ]
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
