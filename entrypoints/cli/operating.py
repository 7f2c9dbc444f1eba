"""The commands of operators, each with its options and an example; those of read models are in `read_models`. What a
command does is in the modules beside it.
"""

# ruff: noqa: PLC0415 - a command imports what it needs when it runs: `registrar --help` must not wait for it
from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import Final
from uuid import UUID

import click

from domain.mail_state import STATES, STRAY, WAITING
from entrypoints.cli import backup, mailing, options, replaying, transfer, watching
from entrypoints.cli.audit import audit
from entrypoints.cli.configuration import config
from entrypoints.cli.database import database
from entrypoints.cli.erasure import erase
from entrypoints.cli.keys import keys
from entrypoints.cli.limits import limits
from entrypoints.cli.read_models import projections
from entrypoints.cli.users import import_users
from entrypoints.cli.webhooks import webhooks


@click.group(epilog=options.example("registrar broker declare"))
def broker() -> None:
    """Set up RabbitMQ's exchanges and queues."""


@broker.command("declare", epilog=options.example("registrar broker declare", "registrar broker declare --anew"))
@click.option("--anew", is_flag=True, help="Delete the queues first, to change their properties.")
@options.wide
@options.as_json
@options.data_dir
def broker_declare(*, anew: bool, as_json: bool, data_dir: Path | None) -> int:
    """Declare exchanges, queues and bindings, and send a message through them.

    Can be repeated; `process` and `work` do it when they start. With --anew, messages waiting in the queues are lost;
    their mails are requested again within minutes.
    """
    from entrypoints.cli import broker as cli_broker
    from entrypoints.cli.session import finish, log_troubles, read_settings

    settings = read_settings(data_dir=data_dir)
    log_troubles(settings)
    return finish(cli_broker.declare(settings, anew=anew, as_json=as_json))


# --- The log ----------------------------------------------------------------------------------


@click.group(epilog=options.example("registrar events list --limit 20"))
def events() -> None:
    """Read the log, or take it along in a file; personal data stays sealed."""


@events.command(
    "list",
    epilog=options.example(
        "registrar events list --limit 20",
        "registrar events list --after 1200 --type registration.email_dispatch_failed --json",
    ),
)
@click.option("--after", type=click.IntRange(min=0), metavar="N", help="Only events after position N, oldest first.")
@click.option(
    "--limit",
    type=click.IntRange(1, 10_000),
    default=50,
    show_default=True,
    metavar="N",
    help="At most N events: the latest ones, or with --after the next ones.",
)
@click.option("--type", "types", multiple=True, metavar="T", help="Only events of this type; may be repeated.")
@click.option("--registration", type=click.UUID, metavar="ID", help="Only events about this registration.")
@click.option("--follow", is_flag=True, help="Continue with new events as they are recorded, until Ctrl-C.")
@options.wide
@options.as_json
@options.data_dir
def events_list(
    *,
    after: int | None,
    limit: int,
    types: tuple[str, ...],
    registration: UUID | None,
    follow: bool,
    as_json: bool,
    data_dir: Path | None,
) -> int:
    """List events in log order; --follow with --json prints one object per line."""
    from entrypoints.cli import events as cli_events
    from entrypoints.cli.session import reading

    wanted = cli_events.Wanted(cli_events.known_types(types), registration)
    return reading(
        data_dir,
        lambda reader: cli_events.list_events(
            reader.events, wanted, after=after, limit=limit, follow=follow, as_json=as_json
        ),
    )


@events.command(
    "show",
    epilog=options.example(
        "registrar events show 0198c0de-0000-7000-8000-000000000000",
        "registrar events show 0198c0de-0000-7000-8000-000000000000 --at 2026-01-31T12:00:00Z",
    ),
)
@click.argument("registration_id", type=click.UUID, metavar="ID")
@click.option(
    "--at",
    callback=options.parse_time,
    metavar="TIME",
    help="As it was at this time (ISO 8601; UTC without an offset).",
)
@click.option("--version", type=click.IntRange(min=1), metavar="N", help="As it was after its N-th event.")
@options.wide
@options.as_json
@options.data_dir
def events_show(
    *, registration_id: UUID, at: datetime | None, version: int | None, as_json: bool, data_dir: Path | None
) -> int:
    """Show the state of one registration, now or in the past, and the events that led to it."""
    from entrypoints.cli import events as cli_events
    from entrypoints.cli.session import reading

    if at is not None and version is not None:
        raise click.UsageError("--at and --version exclude each other.", click.get_current_context())
    return reading(
        data_dir,
        lambda reader: cli_events.show_registration(
            reader.events, registration_id, at=at, version=version, as_json=as_json
        ),
    )


events.add_command(transfer.export_log)
events.add_command(transfer.import_log)
events.add_command(replaying.replay)


projections.add_command(replaying.parked)


# --- Dead letters -----------------------------------------------------------------------------


@click.group(epilog=options.example("registrar mail list"))
def mail() -> None:
    """See what happened to mails; retry or discard."""


mail.add_command(mailing.preview)
mail.add_command(mailing.test)
mail.add_command(mailing.suppressions)
mail.add_command(mailing.allow)


@mail.command(
    "list",
    epilog=options.example(
        "registrar mail list", "registrar mail list --state failed", "registrar mail list --state stray"
    ),
)
@click.option(
    "--state",
    type=click.Choice([state.lower() for state in (WAITING, "all", *STATES, STRAY)], case_sensitive=False),
    default="waiting",
    show_default=True,
    help="waiting: failed permanently, and you can still act on it; failed: also those whose registration has ended "
    "since; stray: foreign messages among the dead letters.",
)
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, metavar="N", help="At most N.")
@options.wide
@options.as_json
@options.data_dir
def mail_list(*, state: str, limit: int, as_json: bool, data_dir: Path | None) -> int:
    """List mails, latest first.

    Those that wait for an operator, or those in another state.
    """
    from entrypoints.cli import mail as cli_mail
    from entrypoints.cli.session import reading

    if state == "stray":
        return reading(data_dir, lambda reader: cli_mail.list_strays(reader, limit=limit, as_json=as_json))
    return reading(data_dir, lambda reader: cli_mail.list_mails(reader, state=state, limit=limit, as_json=as_json))


@mail.command(
    "retry",
    epilog=options.example(
        "registrar mail retry 0198c0de-0000-7000-8000-000000000000",
        "registrar mail retry --all --yes",
        "registrar mail retry --all --failure expired --failure crashed --reason 'ticket 4711'",
    ),
)
@click.argument("registration_ids", type=click.UUID, metavar="ID...", nargs=-1)
@click.option(
    "--all", "everything", is_flag=True, help="Every unsent mail that failed and whose registration is pending."
)
@click.option(
    "--failure",
    "failures",
    multiple=True,
    metavar="NAME",
    help="With --all: only mails that last failed for this reason; may be repeated.",
)
@click.option("--yes", is_flag=True, help="With --all: do not ask for confirmation.")
@options.reason
@options.wide
@options.as_json
@options.data_dir
def mail_retry(
    *,
    registration_ids: tuple[UUID, ...],
    everything: bool,
    failures: tuple[str, ...],
    yes: bool,
    reason: str | None,
    as_json: bool,
    data_dir: Path | None,
) -> int:
    """Retry the mail of these registrations now."""
    from entrypoints.cli import mail as cli_mail
    from entrypoints.cli.session import acting

    if bool(registration_ids) == everything:
        raise click.UsageError("Give the ids of registrations, or --all.", click.get_current_context())
    if failures and not everything:
        raise click.UsageError("--failure goes with --all.", click.get_current_context())
    failures = cli_mail.known_failures(failures)
    if not everything:
        return acting(data_dir, lambda desk: cli_mail.retry(desk, registration_ids, reason=reason, as_json=as_json))
    which = f"all mails that failed with {' or '.join(failures)}" if failures else "all failed mails"
    if not yes and sys.stdin.isatty() and not click.confirm(f"Try {which} again?", err=True):
        return 1
    return acting(data_dir, lambda desk: cli_mail.retry_all(desk, failures, reason=reason, as_json=as_json))


@mail.command("discard", epilog=options.example("registrar mail discard 0198c0de-0000-7000-8000-000000000000"))
@click.argument("wanted_ids", type=click.UUID, metavar="ID...", nargs=-1, required=True)
@options.reason
@options.wide
@options.as_json
@options.data_dir
def mail_discard(*, wanted_ids: tuple[UUID, ...], reason: str | None, as_json: bool, data_dir: Path | None) -> int:
    """Give up on mails and undo their registrations.

    The id of a stray message removes it from the list.
    """
    from entrypoints.cli import mail as cli_mail
    from entrypoints.cli.session import acting

    return acting(data_dir, lambda desk: cli_mail.discard(desk, wanted_ids, reason=reason, as_json=as_json))


COMMANDS: Final = (
    broker,
    events,
    mail,
    audit,
    import_users,
    projections,
    erase,
    keys,
    config,
    limits,
    webhooks,
    backup.backup,
    backup.restore,
    database,
    watching.funnel,
    watching.top,
)
"""Those of the first level."""
