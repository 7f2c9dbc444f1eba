"""Versions of a read model that a later one has superseded, and which nobody reads any more."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from psycopg import sql

from domain.recorded import Position
from infrastructure.followers.versions import behind_others, others_of, version_of
from infrastructure.postgres.connection import Connection
from infrastructure.replay.claim import claimed
from infrastructure.replay.comparison import live_position
from infrastructure.replay.copies import MakesProjection
from infrastructure.replay.swap import CannotReplay, refuse_dependents

_SCHEMAS: Final = "SELECT nspname::text FROM pg_namespace WHERE starts_with(nspname, %s)"

_LEAD: Final = "SELECT pg_try_advisory_xact_lock(hashtext('registrar follower'), hashtext(%s))"

# With what was run of its scripts: should the earlier release start once more, it makes its tables anew.
_FORGET: Final = (
    "DELETE FROM public.followers WHERE name = %(name)s OR starts_with(name, %(name)s || '__')",
    "DELETE FROM public.parked_events WHERE follower = %(name)s OR starts_with(follower, %(name)s || '__')",
    "DELETE FROM public.rebuilds WHERE read_model = %(name)s",
    "DELETE FROM public.verifications WHERE read_model = %(name)s",
    "DELETE FROM public.verification_passes WHERE read_model = %(name)s",
    "DELETE FROM public.found_differences WHERE read_model = %(name)s",
    "DELETE FROM public.schema_scripts WHERE name = %(schema)s OR starts_with(name, %(schema)s || '/')",
)


@dataclass(frozen=True, slots=True)
class Dropped:
    """
    Attributes:
        position: where it was.
    """

    name: str
    position: Position


async def drop_superseded(
    dsn: str, make: MakesProjection, *, record: Callable[[Dropped], Awaitable[None]]
) -> list[Dropped]:
    """Drop the earlier versions of a read model, with their positions, their parked streams and their copies.

    Args:
        record: records an act in the log, before it is done: a repeat records it again.

    Raises:
        CannotReplay: a process of an earlier release follows one, or this release's is behind it, or others depend on
            its tables; one line.
        psycopg.Error: the database is away.
    """
    live = make()
    prefix = live.schema.removesuffix(live.name)
    async with claimed(dsn, name=f"drop {live.name}") as connection:
        superseded = await _superseded(connection, live.name, prefix)
        behind = await behind_others(connection, [live.name])
        if superseded and behind:
            raise CannotReplay(
                f"{behind[0].other} is ahead of {live.name}, which is at {behind[0].position}; it is dropped once "
                f"{live.name} has caught up (`registrar process` of this release, or `projections rebuild`)."
            )
        dropped = []
        for name in superseded:
            await refuse_dependents(connection, prefix + name, f"{prefix}{name}__old")
            one = Dropped(name, await live_position(connection, name))
            async with connection.transaction():
                await connection.execute("SET LOCAL lock_timeout = '1s'")  # readers of it wait behind us
                row = await (await connection.execute(_LEAD, (name,))).fetchone()
                if row is None or not row[0]:
                    raise CannotReplay(f"A process of an earlier release follows {name}; stop it first.")
                await record(one)
                await _drop(connection, name, prefix + name)
            dropped.append(one)
        return dropped


async def _superseded(connection: Connection, name: str, prefix: str) -> list[str]:
    cursor = await connection.execute(_SCHEMAS, (prefix,))
    names = {schema.removeprefix(prefix) for (schema,) in await cursor.fetchall()}
    ours = version_of(name)
    return [
        other
        for other in others_of([name], names)
        if ours is not None and (version := version_of(other)) is not None and version.number < ours.number
    ]


async def _drop(connection: Connection, name: str, schema: str) -> None:
    cursor = await connection.execute(_SCHEMAS, (schema,))
    for (found,) in await cursor.fetchall():
        if found == schema or found.startswith(f"{schema}__"):
            await connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(found)))
    for statement in _FORGET:
        await connection.execute(statement.encode(), {"name": name, "schema": schema})
