"""The funnel: a chart for people, JSON and CSV for programs."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Final, Literal

import click

from entrypoints.cli.output import note, print_json, print_table
from entrypoints.queries.funnel import FunnelQueries, as_told
from infrastructure.audit.spreadsheets import csv_lines
from projections.funnel import AT_MOST, Bucket, Durations, Flow

Format = Literal["chart", "json", "csv"]

WIDTH: Final = 40
"""Characters of the longest bar."""

FULL: Final = "\N{FULL BLOCK}"

_STAGES: Final = {
    "registered": "registered",
    "mail_dispatched": "mail sent",
    "verified": "verified",
    "activated": "activated",
}
"""The way of a registration, in its order."""

_IMPORTED: Final = "imported"

_STEPS: Final = {
    "registered_to_dispatched": "registered to mail sent",
    "dispatched_to_verified": "mail sent to verified",
    "registered_to_activated": "registered to activated",
}

_COLUMNS: Final = ("start", "of", "name", "count", "mean_seconds", "longest_seconds")


async def show_funnel(
    queries: FunnelQueries, since: datetime | None, bucket: Literal["hour", "day"], how: Format
) -> int:
    """Print what happened, by hour or by day."""
    buckets = await queries.buckets(since=since, bucket=bucket)
    match how:
        case "json":
            print_json({"bucket": bucket, "items": [as_told(one) for one in buckets]})
        case "csv":
            click.echo(csv_lines([_COLUMNS, *_rows(buckets)]), nl=False)
        case "chart":
            _print_chart(buckets, bucket)
    return 0


def _rows(buckets: Iterable[Bucket]) -> Iterator[Sequence[object]]:
    for bucket in buckets:
        for of, flow in (("registrations", bucket.registrations), ("duplicates", bucket.duplicates)):
            for stage, count in flow.stages.items():
                yield bucket.start.isoformat(), of, stage, count, None, None
            for step, took in flow.durations.items():
                mean = took.total / took.count
                yield bucket.start.isoformat(), of, step, took.count, f"{mean:.6f}", f"{took.longest:.6f}"


def _print_chart(buckets: Sequence[Bucket], bucket: str) -> None:
    if not buckets:
        note("Nothing happened.")
        return
    whole = _sum(one.registrations for one in buckets)
    _print_stages(whole.stages)
    _print_steps(whole.durations)
    most = max(one.registrations.stages.get("registered", 0) for one in buckets)
    click.echo()
    print_table(
        (bucket, "registered", "activated", ""),
        (
            (
                f"{one.start:%Y-%m-%d %H:%MZ}" if bucket == "hour" else f"{one.start:%Y-%m-%d}",
                f"{one.registrations.stages.get('registered', 0):,}",
                f"{one.registrations.stages.get('activated', 0):,}",
                bar(one.registrations.stages.get("registered", 0), most),
            )
            for one in buckets
        ),
    )
    if duplicates := sum(one.duplicates.stages.get("registered", 0) for one in buckets):
        note(f"Besides, {duplicates:,} for addresses that had an account already.")


def _print_stages(stages: Mapping[str, int]) -> None:
    """The way of registrations, and then what else happened to them, by how often it did."""
    registered = stages.get("registered", 0)
    # Users who were imported have not registered, and may be so many that nothing else would have a bar.
    most = max((count for stage, count in stages.items() if stage != _IMPORTED), default=0)
    others = sorted(set(stages) - set(_STAGES), key=lambda stage: (-stages[stage], stage))
    print_table(
        ("stage", "count", "of registered", ""),
        (
            (
                _STAGES.get(stage, stage.replace("_", " ").replace(":", ": ")),
                f"{(count := stages.get(stage, 0)):,}",
                f"{count / registered:.1%}" if registered and stage != _IMPORTED else None,
                bar(count, most) if stage != _IMPORTED else "",
            )
            for stage in (*_STAGES, *others)
        ),
    )


def _print_steps(steps: Mapping[str, Durations]) -> None:
    found = [(title, steps[step]) for step, title in _STEPS.items() if step in steps]
    if not found:
        return
    click.echo()
    print_table(
        ("step", "count", "mean", "half within", "99 % within", "longest"),
        (
            (
                title,
                f"{took.count:,}",
                _seconds(took.total / took.count),
                _within(took, 0.5),
                _within(took, 0.99),
                _seconds(took.longest),
            )
            for title, took in found
        ),
    )


def _within(took: Durations, part: float) -> str:
    """The upper end of the class in which this part of them has come to its end."""
    so_far = 0
    for top in AT_MOST[:-1]:
        so_far += took.histogram.get(top, 0)
        if so_far >= part * took.count:
            return _seconds(top)
    return "more"


def _seconds(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _sum(flows: Iterable[Flow]) -> Flow:
    stages: Counter[str] = Counter()
    durations: dict[str, Durations] = {}
    for flow in flows:
        stages.update(flow.stages)
        for step, took in flow.durations.items():
            whole = durations.setdefault(step, Durations())
            whole.count += took.count
            whole.total += took.total
            whole.longest = max(whole.longest, took.longest)
            for top, count in took.histogram.items():
                whole.histogram[top] = whole.histogram.get(top, 0) + count
    return Flow(dict(stages), durations)


def bar(part: float, whole: float) -> str:
    """A bar as long as the part is of the whole; what is there at all is seen."""
    block = _block()
    return block * max(round(WIDTH * part / whole), 1) if part and whole else ""


def _block() -> str:
    """A full block, or what stands for it where the output cannot show one."""
    try:
        FULL.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return "#"
    return FULL
