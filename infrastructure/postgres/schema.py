"""Tables and functions in the database: created where they are missing, left alone where they are up to date."""

from __future__ import annotations

from hashlib import sha256

from psycopg import sql

from infrastructure.postgres.connection import Connection

PUBLIC = "public"


async def bring_up_to_date(connection: Connection, name: str, script: str, *, schema: str = PUBLIC) -> None:
    """Run a script that may be run again, unless this very script ran last.

    Any number of processes may do this at once, while others work. A process that starts takes no lock on a table
    when there is nothing to do.

    Args:
        name: of the script.
        schema: where unqualified names are created; made if missing.
    """
    digest = sha256(script.encode()).hexdigest()
    if await _last_run(connection, name) == digest:
        return
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(hashtext('registrar schema'))")
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_scripts (name text PRIMARY KEY, digest text NOT NULL)"
        )
        if await _last_run(connection, name) == digest:
            return
        if schema != PUBLIC:
            await connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema)))
            await connection.execute(sql.SQL("SET LOCAL search_path = {}, public").format(sql.Identifier(schema)))
        await connection.execute(script.encode())
        await connection.execute(
            "INSERT INTO public.schema_scripts (name, digest) VALUES (%s, %s)"
            " ON CONFLICT (name) DO UPDATE SET digest = excluded.digest",
            (name, digest),
        )


async def _last_run(connection: Connection, name: str) -> str | None:
    row = await (await connection.execute("SELECT to_regclass('public.schema_scripts') IS NOT NULL")).fetchone()
    if row is None or not row[0]:
        return None
    row = await (
        await connection.execute("SELECT digest FROM public.schema_scripts WHERE name = %s", (name,))
    ).fetchone()
    return None if row is None else str(row[0])
