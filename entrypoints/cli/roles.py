"""`database roles`: what it prints, and what it says once it is done."""

from __future__ import annotations

from contextlib import AsyncExitStack

import click
import psycopg

from application.operator_acts import APPLY_ROLES
from entrypoints.bootstrap import CannotStart
from entrypoints.bootstrap.acts import record_act
from entrypoints.bootstrap.database import first_connection, open_database, prepare
from entrypoints.bootstrap.database_roles import ROLES, apply, statements_for_roles
from entrypoints.cli.output import note, print_json, print_table
from infrastructure.settings.settings import Settings


async def roles(settings: Settings, *, prefix: str, applied: bool, reason: str | None, as_json: bool) -> int:
    """Print how the roles are made, or make them. What else is missing in the database is made first: its owner's the
    others may not."""
    async with AsyncExitStack() as stack:
        opened = await open_database(settings, stack)
        await prepare(opened)
        async with first_connection(opened.dsn) as connection:
            statements = await statements_for_roles(connection, prefix)
            if applied:
                await record_act(opened.dsn, APPLY_ROLES, reason, statement_timeout=settings.statement_timeout)
                try:
                    await apply(connection, statements)
                except psycopg.errors.InsufficientPrivilege:
                    raise CannotStart(
                        "This role may not make roles, or does not own Registrar's tables; pipe what "
                        "`registrar database roles` prints into psql as one that may."
                    ) from None
                except psycopg.errors.LockNotAvailable:
                    raise CannotStart(
                        "Somebody has held a read model for a minute; look for a long transaction in pg_stat_activity, "
                        "then try again. Nothing was changed."
                    ) from None
    if as_json:
        print_json(
            {"applied": applied, "roles": {prefix + role: does for role, does in ROLES.items()}, "sql": statements}
        )
    elif applied:
        print_table(("role", "for"), ((prefix + role, does) for role, does in ROLES.items()))
        note(r"Give each a password with \password in psql, and each process the REGISTRAR_DATABASE_URL of its role.")
    else:
        click.echo("BEGIN;")
        for statement in statements:
            click.echo(f"{statement};")
        click.echo("COMMIT;")
    return 0
