"""`import`: its options and examples."""

# ruff: noqa: PLC0415 - as in `main`: a command imports what it needs when it runs
from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import click
from click.core import ParameterSource

from entrypoints.cli import options


def _parse_rate(ctx: click.Context, param: click.Parameter, value: str) -> timedelta:
    from infrastructure.settings.rates import interval

    try:
        every = interval(value)
        assert isinstance(every, timedelta)  # noqa: S101 - of text it is
        return every
    except ValueError as error:
        raise click.BadParameter(f"{error}.", ctx, param) from None


def _is_read_from(path: Path, file: Path) -> bool:
    """Would writing this path replace the users that are read?"""
    source = os.fstat(0) if str(file) == "-" else file.stat()
    return path.is_file() and os.path.samestat(path.stat(), source)


@click.command(
    "import",
    epilog=options.example(
        "registrar import --dry-run users.jsonl",
        'registrar import users.jsonl --reason "move from the old shop"',
        "registrar import users.jsonl --skip-bad --skipped left-out.txt",
        "registrar import users.jsonl --invite --invite-rate 30/min",
    ),
)
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True, exists=True, dir_okay=False), metavar="FILE")
@click.option("--dry-run", is_flag=True, help="Check everything, say what would happen, and change nothing.")
@click.option("--skip-bad", is_flag=True, help="Leave out lines that cannot be taken over, and take the others.")
@click.option(
    "--skipped",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write to FILE which lines cannot be taken over, and why; only you can read it.",
)
@click.option("--invite", is_flag=True, help="Then have those whose addresses are not verified sent a code by mail.")
@click.option(
    "--invite-rate",
    "every",
    default="1/s",
    show_default=True,
    metavar="RATE",
    callback=_parse_rate,
    help="How many of these mails are asked for; at most one a second, and none while 100 mails wait.",
)
@options.reason
@options.as_json
@options.data_dir
def import_users(
    *,
    file: Path,
    dry_run: bool,
    skip_bad: bool,
    skipped: Path | None,
    invite: bool,
    every: timedelta,
    reason: str | None,
    as_json: bool,
    data_dir: Path | None,
) -> int:
    """Take users over from another system.

    FILE has a JSON object a line, with "email", "name" and "verified" (true or false) and, if there are, "locale" and
    "password_hash"; "-" is standard input. Whoever is verified there has an account here at once; the others wait,
    without a password, and are sent nothing without --invite. Every line is checked before anything is changed. The
    same file again changes nothing, and after an interruption goes on.
    """
    from entrypoints.cli import user_import
    from entrypoints.cli.output import note
    from entrypoints.cli.session import acting, read_settings

    context = click.get_current_context()
    if not invite and context.get_parameter_source("every") is not ParameterSource.DEFAULT:
        raise click.UsageError("--invite-rate goes with --invite.", context)
    if skipped is not None and _is_read_from(skipped, file):
        raise click.BadParameter("is the file that is to be imported.", param_hint="'--skipped'")
    if invite and read_settings(data_dir=data_dir, with_secrets=False).verify_url is None:
        note(
            "REGISTRAR_VERIFY_URL is not set: an invitation has a code, and nothing that leads to where it is entered."
        )
    wanted = user_import.Wanted(file, dry_run=dry_run, skip_bad=skip_bad, skipped=skipped, invite=invite, every=every)
    return acting(data_dir, lambda desk: user_import.import_users(desk, wanted, reason=reason, as_json=as_json))
