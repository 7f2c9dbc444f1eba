"""The commands about the log's followers and their read models, with their options and examples."""

# ruff: noqa: PLC0415 - as in `main`
from __future__ import annotations

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
@click.option("--all", "everything", is_flag=True, help="Every read model, one after the other.")
@click.option("--accept", is_flag=True, help="Swap the copy in, whatever differs.")
@click.option("--repair", is_flag=True, help="Swap the copy in if a second fold of the log says the same as the first.")
@click.option("--throttle", type=click.IntRange(min=1), metavar="N", help="At most N positions of the log a second.")
@click.option("--rollback", is_flag=True, help="Have the read model serve again that the last rebuild replaced.")
@click.option("--abort", is_flag=True, help="End the rebuild, wherever it runs, and drop its copy.")
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
    as_json: bool,
    data_dir: Path | None,
) -> int:
    """Rebuild read models from the log while they serve.

    A copy is folded beside the live read model, compared with it row by row, and swapped in if they are equal; the former one is kept for --rollback. Where they differ, what differs is listed, exit code 1, and the copy waits for --repair or --accept. A rebuild that was interrupted goes on where it was.
    """
    from entrypoints.cli import replay as cli_replay
    from entrypoints.cli.session import rebuilding

    if accept + repair + rollback + abort > 1:
        raise click.UsageError(
            "--accept, --repair, --rollback and --abort exclude each other.", click.get_current_context()
        )
    wanted = cli_replay.chosen(names, everything=everything)
    if rollback:
        return rebuilding(data_dir, lambda parts: cli_replay.roll_back(parts, wanted, as_json=as_json))
    if abort:
        return rebuilding(data_dir, lambda parts: cli_replay.abort(parts, wanted, as_json=as_json))
    return rebuilding(
        data_dir,
        lambda parts: cli_replay.rebuild(
            parts, wanted, accept=accept, repair=repair, throttle=throttle, as_json=as_json
        ),
    )


@projections.command(
    "verify", epilog=options.example("registrar projections verify", "registrar projections verify accounts --json")
)
@click.argument("names", metavar="[NAME]...", nargs=-1)
@options.wide
@options.as_json
@options.data_dir
def projections_verify(*, names: tuple[str, ...], as_json: bool, data_dir: Path | None) -> int:
    """Compare read models with a fresh fold of the log.

    Every row, at one position of the log, while the service runs. The log is folded in two halves, and each event is told twice. Exit code 1 if anything differs; each difference is listed, personal data masked.
    """
    from entrypoints.cli import replay as cli_replay
    from entrypoints.cli.session import verifying

    wanted = cli_replay.chosen(names, everything=not names)
    return verifying(data_dir, lambda parts: cli_replay.verify(parts, wanted, as_json=as_json))
