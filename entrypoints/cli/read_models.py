"""The commands about the log's followers and their read models, with their options and examples."""

# ruff: noqa: PLC0415 - as in `main`
from __future__ import annotations

from datetime import datetime
from pathlib import Path

import click

from entrypoints.cli import options


@click.group("projections", epilog=options.example("registrar projections list"))
def projections() -> None:
    """See how far the log's followers have read; rebuild and verify read models."""


@projections.command("list", epilog=options.example("registrar projections list"))
@options.wide
@options.as_json
@options.data_dir
def projections_list(*, as_json: bool, data_dir: Path | None) -> int:
    """List every follower: its position, its lag, and the streams it has parked."""
    from entrypoints.cli import projections as cli_projections
    from entrypoints.cli.session import reading

    return reading(data_dir, lambda reader: cli_projections.list_followers(reader, as_json=as_json))


@projections.command(
    "rebuild",
    epilog=options.example(
        "registrar projections rebuild registrations",
        "registrar projections rebuild --all --repair --throttle 20000",
        "registrar projections rebuild registrations --rollback",
    ),
)
@click.argument("names", metavar="NAME...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every read model.")
@click.option("--accept", is_flag=True, help="Swap the copy in, whatever differs.")
@click.option("--repair", is_flag=True, help="Swap the copy in if a second fold of the log says the same as the first.")
@click.option("--throttle", type=click.IntRange(min=1), metavar="N", help="At most N positions of the log a second.")
@click.option("--rollback", is_flag=True, help="Have the read model serve again that the last rebuild replaced.")
@click.option("--abort", is_flag=True, help="End the rebuild, wherever it runs, and drop its copy.")
@options.reason
@options.wide
@options.as_json
@options.data_dir
def projections_rebuild(
    *,
    names: tuple[str, ...],
    everything: bool,
    accept: bool,
    repair: bool,
    throttle: int | None,
    rollback: bool,
    abort: bool,
    reason: str | None,
    as_json: bool,
    data_dir: Path | None,
) -> int:
    """Rebuild read models from the log while they serve.

    A copy is folded beside the live read model, compared with it row by row, and swapped in if they are equal; the
    former one is kept for --rollback. Where they differ, what differs is listed, exit code 1, and the copy waits
    for --repair or --accept. A rebuild that was interrupted goes on where it was.

    A version of a read model that is new in this release is built beside the one that processes of the earlier release
    go on with; see docs/upgrading.md.
    """
    from entrypoints.cli import replay as cli_replay
    from entrypoints.cli.session import rebuilding

    if accept + repair + rollback + abort > 1:
        raise click.UsageError(
            "--accept, --repair, --rollback and --abort exclude each other.", click.get_current_context()
        )
    if abort and throttle is not None:
        raise click.UsageError("--throttle does not go with --abort.", click.get_current_context())
    wanted = cli_replay.chosen(names, everything=everything)
    if rollback:
        return rebuilding(
            data_dir,
            lambda parts: cli_replay.roll_back(parts.because(reason), wanted, throttle=throttle, as_json=as_json),
        )
    if abort:
        return rebuilding(data_dir, lambda parts: cli_replay.abort(parts.because(reason), wanted, as_json=as_json))
    return rebuilding(
        data_dir,
        lambda parts: cli_replay.rebuild(
            parts.because(reason), wanted, accept=accept, repair=repair, throttle=throttle, as_json=as_json
        ),
    )


@projections.command(
    "drop", epilog=options.example("registrar projections drop registrations", "registrar projections drop --all")
)
@click.argument("names", metavar="NAME...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Of every read model.")
@options.reason
@options.as_json
@options.data_dir
def projections_drop(
    *, names: tuple[str, ...], everything: bool, reason: str | None, as_json: bool, data_dir: Path | None
) -> int:
    """Drop the superseded versions of read models.

    Those which only processes of an earlier release read: stop these first, and go back to that release no more,
    or it will have to build them anew. What this release reads is never dropped.
    """
    from entrypoints.cli import replay as cli_replay
    from entrypoints.cli.session import rebuilding

    wanted = cli_replay.chosen(names, everything=everything)
    return rebuilding(data_dir, lambda parts: cli_replay.drop(parts.because(reason), wanted, as_json=as_json))


@projections.command(
    "verify", epilog=options.example("registrar projections verify", "registrar projections verify accounts --json")
)
@click.argument("names", metavar="[NAME]...", nargs=-1)
@options.wide
@options.as_json
@options.data_dir
def projections_verify(*, names: tuple[str, ...], as_json: bool, data_dir: Path | None) -> int:
    """Compare read models with a fresh fold of the log.

    Every row, at one position of the log, while the service runs. The log is folded in two halves, and the first events
    of each are told twice. Exit code 1 if anything differs; each difference is listed, personal data masked.
    """
    from entrypoints.cli import replay as cli_replay
    from entrypoints.cli.session import verifying

    wanted = cli_replay.chosen(names, everything=not names)
    return verifying(data_dir, lambda parts: cli_replay.verify(parts, wanted, as_json=as_json))


@projections.command(
    "as-of",
    epilog=options.example(
        "registrar projections as-of registrations 1200",
        "registrar projections as-of accounts 2026-01-31T12:00:00Z --json",
        "registrar projections as-of registrations 1200 --drop",
    ),
)
@click.argument("name", metavar="NAME")
@click.argument("when", metavar="POSITION|TIME", callback=options.parse_moment)
@click.option("--drop", is_flag=True, help="Drop what was built, instead.")
@options.as_json
@options.data_dir
def projections_as_of(*, name: str, when: int | datetime, drop: bool, as_json: bool, data_dir: Path | None) -> int:
    """Build a read model as it was.

    At a position of the log, or at a time: with all events up to the last one that was recorded by then. It is
    built in a schema of its own, which you can ask in SQL and which stays until you drop it; the live read model is
    not touched. Personal data stays sealed.
    """
    from entrypoints.cli import replay as cli_replay
    from entrypoints.cli import time_travel
    from entrypoints.cli.session import verifying

    [wanted] = cli_replay.chosen((name,), everything=False)
    if drop:
        return verifying(data_dir, lambda parts: time_travel.drop(parts, wanted, when, as_json=as_json))
    return verifying(data_dir, lambda parts: time_travel.as_of(parts, wanted, when, data_dir=data_dir, as_json=as_json))


@projections.command(
    "diff",
    epilog=options.example(
        "registrar projections diff registrations 1200 1300",
        "registrar projections diff mail 2026-01-31T12:00:00Z 2026-01-31T13:00:00Z --json",
    ),
)
@click.argument("name", metavar="NAME")
@click.argument("a", metavar="A", callback=options.parse_moment)
@click.argument("b", metavar="B", callback=options.parse_moment)
@options.wide
@options.as_json
@options.data_dir
def projections_diff(*, name: str, a: int | datetime, b: int | datetime, as_json: bool, data_dir: Path | None) -> int:
    """Show what changed in a read model from A to B, each a position of the log or a time.

    Every row and column, personal data masked. Exit code 1 if there is any difference. Nothing is left behind.
    """
    from entrypoints.cli import replay as cli_replay
    from entrypoints.cli import time_travel
    from entrypoints.cli.session import verifying

    [wanted] = cli_replay.chosen((name,), everything=False)
    return verifying(data_dir, lambda parts: time_travel.diff(parts, wanted, a, b, as_json=as_json))
