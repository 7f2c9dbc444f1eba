"""`audit explain`, `audit search` and `audit export`: their options and examples."""

# ruff: noqa: PLC0415 - as in `main`: a command imports what it needs when it runs
from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from entrypoints.cli import options

if TYPE_CHECKING:
    from entrypoints.queries.audit import Filters


@click.command(
    "explain",
    epilog=options.example(
        "registrar audit explain 0198c0de-0000-7000-8000-000000000000",
        "registrar audit explain - < address.txt",
        "registrar audit explain '<1b4e28ba2fa1d2119a2e0016d3cca427@example.com>'",
    ),
)
@click.argument("subject", metavar="ID|ADDRESS|MESSAGE-ID", callback=options.or_standard_input)
@options.as_json
@options.data_dir
def explain(*, subject: str, as_json: bool, data_dir: Path | None) -> int:
    """Tell what happened to a registration, and why.

    The first line answers why this person did not get the mail; then comes everything that happened, from the request
    to each decision, each mail server's reply and each act of an operator. ID is that of a registration, or the
    request's (`Registrar-Request-Id` of the response). An address or a Message-ID needs the master key; with an
    address, all of its registrations are told, the latest first. "-" reads it from standard input, so that an address
    is in no history of a shell. Nothing personal is shown.
    """
    from entrypoints.cli import audit_explain as cli_explain
    from entrypoints.cli.session import auditing

    return auditing(
        data_dir, lambda auditor: cli_explain.explain(auditor, subject, as_json=as_json), with_keys="@" in subject
    )


def _filters(command: Callable[..., int]) -> Callable[..., int]:
    """The options by which entries are chosen, passed on as one."""

    @click.option("--registration", "registration_id", type=click.UUID, metavar="ID", help="Only about this one.")
    @click.option(
        "--email",
        callback=options.or_standard_input,
        metavar="ADDRESS",
        help='Only about this address ("-": from standard input); needs the master key.',
    )
    @click.option("--actor", metavar="NAME", help="Only what this one did: client, operator, mail-saga, …")
    @click.option("--type", "topic", metavar="T", help="Only events of this type, such as operator.acted.")
    @click.option(
        "--correlation", "correlation_id", type=click.UUID, metavar="ID", help="Only what one request led to."
    )
    @click.option(
        "--since",
        callback=options.parse_time,
        metavar="TIME",
        help="Only from this time on (ISO 8601; UTC without an offset).",
    )
    @click.option("--until", callback=options.parse_time, metavar="TIME", help="Only before this time.")
    @wraps(command)
    def with_filters(
        *,
        registration_id: UUID | None,
        email: str | None,
        actor: str | None,
        topic: str | None,
        correlation_id: UUID | None,
        since: datetime | None,
        until: datetime | None,
        **others: Any,
    ) -> int:
        from entrypoints.cli.audit_search import known_address
        from entrypoints.cli.events import known_types
        from entrypoints.queries.audit import Filters

        if topic is not None:
            known_types((topic,))
        if since is not None and until is not None and since >= until:
            raise click.UsageError("--since is not before --until: nothing lies between.", click.get_current_context())
        return command(
            filters=Filters(
                registration_id=registration_id,
                email=known_address(email),
                actor=actor,
                topic=topic,
                correlation_id=correlation_id,
                since=since,
                until=until,
            ),
            **others,
        )

    return with_filters


@click.command(
    "search",
    epilog=options.example(
        "registrar audit search --actor operator --since 2026-01-31",
        "registrar audit search --email - --type registration.email_dispatch_failed < address.txt",
        "registrar audit search --correlation 0b6f7c1e-5f0c-4a7e-9a39-b1de4cf2c0de --json",
    ),
)
@_filters
@click.option("--cursor", metavar="CURSOR", help="Go on after an earlier page.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, metavar="N", help="At most N.")
@options.wide
@options.as_json
@options.data_dir
def search(*, filters: Filters, cursor: str | None, limit: int, as_json: bool, data_dir: Path | None) -> int:
    """Search the audit log, latest first.

    Who did what, when, and because of what. The options can be combined freely. What is recorded meanwhile does not
    shift the pages.
    """
    from entrypoints.cli import audit_search as cli_search
    from entrypoints.cli.session import auditing

    return auditing(
        data_dir,
        lambda auditor: cli_search.search(auditor, filters, cursor=cursor, limit=limit, as_json=as_json),
        with_keys=filters["email"] is not None,
    )


@click.command(
    "export",
    epilog=options.example(
        "registrar audit export audit.jsonl.zst",
        "registrar audit export --format csv --actor operator --since 2026-01-01 operators.csv",
        "registrar audit export - | jq .type | sort | uniq -c",
    ),
)
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True, dir_okay=False), metavar="FILE")
@click.option(
    "--format",
    "form",
    type=click.Choice(["jsonl", "csv"]),
    default="jsonl",
    show_default=True,
    help="JSON Lines; or CSV, in which nothing runs as a formula.",
)
@_filters
@options.as_json
@options.data_dir
def export(*, file: Path, form: str, filters: Filters, as_json: bool, data_dir: Path | None) -> int:
    """Write the audit log to FILE, oldest first.

    "-" is standard output; a FILE that ends in .zst is compressed. Each line has the event's position, the block of
    the hash chain that it is in, and the hash of the block before. Personal data is not in it. Registrations go on
    meanwhile.
    """
    from entrypoints.cli import audit_export as cli_export
    from entrypoints.cli.session import auditing

    return auditing(
        data_dir,
        lambda auditor: cli_export.export(auditor, file, filters, as_csv=form == "csv", as_json=as_json),
        with_keys=filters["email"] is not None,
    )
