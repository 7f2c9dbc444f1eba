"""The commands about decisions of the past, and about what followers have put aside, with their options and
examples."""

# ruff: noqa: PLC0415 - a command imports what it needs when it runs: `registrar --help` must not wait for it
from __future__ import annotations

from datetime import datetime
from pathlib import Path
from uuid import UUID

import click

from entrypoints.cli import options


@click.command(
    "replay",
    epilog=options.example(
        "registrar events replay --dry-run --since 2026-01-31",
        "registrar events replay --dry-run --set OTP_TTL=300",
        "registrar events replay --dry-run --since-release --json",
    ),
)
@click.option("--dry-run", is_flag=True, help="Compare only. There is no other way to replay, so it must be given.")
@click.option(
    "--since",
    callback=options.parse_moment,
    metavar="TIME|N",
    help="Only decisions after this time, or after position N.",
)
@click.option(
    "--until",
    callback=options.parse_moment,
    metavar="TIME|N",
    help="Only decisions up to this time, or up to position N.",
)
@click.option(
    "--since-release",
    is_flag=True,
    help="Only decisions of the release that runs, or ran last: a gate before the next one.",
)
@click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="Decide with this setting instead; may be repeated."
)
@click.option(
    "--limit",
    type=click.IntRange(0, 1_000_000),
    default=1000,
    show_default=True,
    metavar="N",
    help="List N differences; all are counted.",
)
@options.wide
@options.as_json
@options.data_dir
def replay(
    *,
    dry_run: bool,
    since: datetime | int | None,
    until: datetime | int | None,
    since_release: bool,
    settings: tuple[str, ...],
    limit: int,
    as_json: bool,
    data_dir: Path | None,
) -> int:
    """Ask what the mail saga would decide today.

    Every recorded decision is made again, by this release and with the settings of this environment, and each that
    differs is shown as it was then and as it would be now. Nothing is recorded or sent. Exit code 1 if there is a
    difference.
    """
    from entrypoints.cli import what_if as cli_what_if
    from entrypoints.cli.session import comparing

    context = click.get_current_context()
    if not dry_run:
        raise click.UsageError("Give --dry-run: a replay only compares, it changes nothing.", context)
    if since_release and since is not None:
        raise click.UsageError("--since and --since-release exclude each other.", context)
    policy = cli_what_if.policy_with(data_dir, settings)
    stretch = cli_what_if.Stretch(since, until, since_release)
    return comparing(
        data_dir, lambda reader: cli_what_if.what_if(reader, policy, stretch, limit=limit, as_json=as_json)
    )


@click.group("parked", epilog=options.example("registrar projections parked list"))
def parked() -> None:
    """See what followers have put aside, and why; have it tried again."""


_follower = click.option("--follower", metavar="NAME", help="Only what this follower has parked.")


@parked.command("list", epilog=options.example("registrar projections parked list --follower mail-saga"))
@_follower
@options.wide
@options.as_json
@options.data_dir
def parked_list(*, follower: str | None, as_json: bool, data_dir: Path | None) -> int:
    """List the parked streams with the error of each, the one that waits longest first."""
    from entrypoints.cli import parked as cli_parked
    from entrypoints.cli.session import reading

    cli_parked.known_follower(follower)
    return reading(data_dir, lambda reader: cli_parked.list_parked(reader, follower=follower, as_json=as_json))


@parked.command(
    "show", epilog=options.example("registrar projections parked show 0198c0de-0000-7000-8000-000000000000")
)
@click.argument("stream_id", type=click.UUID, metavar="STREAM")
@options.as_json
@options.data_dir
def parked_show(*, stream_id: UUID, as_json: bool, data_dir: Path | None) -> int:
    """Show the events of a parked stream.

    With each: the error, the event (what is sealed stays sealed), and the place in the code that refused it.
    """
    from entrypoints.cli import parked as cli_parked
    from entrypoints.cli.session import reading

    return reading(data_dir, lambda reader: cli_parked.show_parked(reader, stream_id, as_json=as_json))


@parked.command(
    "retry",
    epilog=options.example(
        "registrar projections parked retry 0198c0de-0000-7000-8000-000000000000",
        "registrar projections parked retry --all --follower accounts",
    ),
)
@click.argument("stream_ids", type=click.UUID, metavar="STREAM...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every parked stream.")
@_follower
@options.reason
@options.wide
@options.as_json
@options.data_dir
def parked_retry(
    *,
    stream_ids: tuple[UUID, ...],
    everything: bool,
    follower: str | None,
    reason: str | None,
    as_json: bool,
    data_dir: Path | None,
) -> int:
    """Have parked streams tried again now.

    Whichever process runs the follower does it, one stream at a time, while the others flow. Each act is recorded. Exit
    code 1 if any stream is not applied.
    """
    from entrypoints.cli import parked as cli_parked
    from entrypoints.cli.session import acting

    if bool(stream_ids) == everything:
        raise click.UsageError("Give the ids of parked streams, or --all.", click.get_current_context())
    cli_parked.known_follower(follower)
    return acting(
        data_dir, lambda desk: cli_parked.retry(desk, stream_ids, follower=follower, reason=reason, as_json=as_json)
    )
