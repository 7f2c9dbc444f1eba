"""The commands of the database's own administration, with their options and examples."""

# ruff: noqa: PLC0415 - as in `main`: a command imports what it needs when it runs
from __future__ import annotations

from pathlib import Path

import click

from entrypoints.cli import options


@click.group("database", epilog=options.example("registrar database roles"))
def database() -> None:
    """Roles with exactly the rights that each process needs."""


@database.command(
    "roles",
    epilog=options.example(
        "registrar database roles",
        "registrar database roles | psql service=registrar-owner",
        "registrar database roles --apply",
    ),
)
@click.option("--apply", "applied", is_flag=True, help="Make the roles, instead of printing how.")
@click.option("--prefix", default="registrar_", show_default=True, metavar="TEXT", help="Beginning of their names.")
@options.reason
@options.as_json
@options.data_dir
def roles(*, applied: bool, prefix: str, reason: str | None, as_json: bool, data_dir: Path | None) -> int:
    """Print the SQL that makes roles for api, worker, process, reader and auditor, or run it.

    Run it as the role that owns Registrar's tables, and again after each upgrade: new tables are granted, rights that
    are none of ours on the old ones are taken. The roles can log in once each has a password (`\\password` in psql).
    """
    from entrypoints.cli import roles as cli_roles
    from entrypoints.cli.session import finish, log_troubles, read_settings

    if reason is not None and not applied:
        raise click.UsageError("--reason goes with --apply.", click.get_current_context())
    settings = read_settings(data_dir=data_dir)
    log_troubles(settings)
    return finish(cli_roles.roles(settings, prefix=prefix, applied=applied, reason=reason, as_json=as_json))
