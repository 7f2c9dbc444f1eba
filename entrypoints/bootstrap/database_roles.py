"""Roles of the database: what each kind of process needs there, and nothing else.

`_RIGHTS` is the whole of it; `tests/integration/test_database_roles.py` runs each kind of process with its role, and
tries what it must not.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Literal

import psycopg
from psycopg import sql

from infrastructure.postgres.connection import Connection

PATIENCE: Final = timedelta(minutes=1)
"""For how long roles are made again and again while somebody reads a read model that is to change hands."""

_PAUSE: Final = timedelta(milliseconds=200)

_BRIEFLY: Final = "SET LOCAL lock_timeout = '500ms'"
"""Whoever wants to read a table waits behind who wants to own it."""

Role = Literal["api", "worker", "process", "reader", "auditor"]

ROLES: Final[Mapping[Role, str]] = {
    "api": "`registrar serve`, `registrar bounces`, and commands of operators that act",
    "worker": "`registrar work`",
    "process": "`registrar process`, rebuilds and verifications; owns the read models",
    "reader": "commands that only look",
    "auditor": "`registrar audit …`",
}
"""Each, and what runs with it. `registrar up` and upgrades need the role that owns the tables."""

_LOOK = ("SELECT",)
_ADD = ("SELECT", "INSERT")
_ALL = ("SELECT", "INSERT", "UPDATE", "DELETE")

_HOW_THEY_DID: Final = ("SELECT (registration_id, begun_at, outcome, ended_at, erased_at)",)
"""Of synthetic registrations: all but the mail, whose code makes one an account."""

_RECORDING: Final = {
    "schema_scripts": _LOOK,
    "events": _ADD,
    "blocks": _ADD,
    "head": ("SELECT", "UPDATE"),
    "fenced_batches": _ADD,
    "service_secrets": _LOOK,
    "master_keys": _LOOK,
}
"""What an append takes. Nothing that was recorded can be changed or removed."""

_PROGRESS: Final = {
    "followers": _LOOK,
    "parked_events": _LOOK,
    "verifications": _LOOK,
    "rebuilds": _LOOK,
    "backups": _LOOK,
    "checkpoints": _LOOK,
    "tree_head": _LOOK,
    "synthetic_registrations": _HOW_THEY_DID,
    "webhooks": _LOOK,
}
"""What health, metrics and `projections list` show."""

_REPLAYS: Final = ("verification_passes", "found_differences", "replay_jobs")
_MAIL: Final = {"send_claims": _ALL, "circuits": _ALL, "mail_standings": _ALL}
_PROVEN: Final = ("tree_tiles", "tree_head", "checkpoints", "checkpoint_keys", "event_digests", "restores")

_RIGHTS: Final[Mapping[Role, Mapping[str, Sequence[str]]]] = {
    "api": {
        **_RECORDING,
        **_PROGRESS,
        "personal_keys": ("SELECT", "INSERT", "DELETE"),
        "circuits": _LOOK,
        "mail_standings": _LOOK,
        **dict.fromkeys(_PROVEN, _LOOK),
        "restores": ("SELECT", "UPDATE"),
        "verification_passes": _LOOK,
        "found_differences": _LOOK,
        "replay_jobs": ("SELECT", "INSERT", "UPDATE"),
        "webhooks": ("SELECT", "UPDATE"),
    },
    "worker": {
        **_RECORDING,
        **_PROGRESS,
        **_MAIL,
        "personal_keys": _LOOK,
        "synthetic_registrations": (*_HOW_THEY_DID, "UPDATE (mail)"),
    },
    "process": {
        **_RECORDING,
        **_PROGRESS,
        **_MAIL,
        "personal_keys": ("SELECT", "DELETE"),
        "followers": _ALL,
        "parked_events": _ALL,
        "saga_releases": _ADD,
        "alerts": _ALL,
        "verifications": _ALL,
        "rebuilds": _ALL,
        "synthetic_registrations": _ALL,
        "webhooks": _ALL,
        **dict.fromkeys((*_REPLAYS, *_PROVEN), _ALL),
    },
    "reader": {
        **_PROGRESS,
        **dict.fromkeys(("schema_scripts", "events", "blocks", "head", "saga_releases", "circuits"), _LOOK),
        **dict.fromkeys((*_REPLAYS, *_PROVEN), _LOOK),
    },
    "auditor": {
        **_PROGRESS,
        **dict.fromkeys(
            ("schema_scripts", "events", "blocks", "head", "service_secrets", "master_keys", *_MAIL, *_PROVEN), _LOOK
        ),
    },
}
"""By table of `public`; one that is not there yet is passed over. Read models are for all of them to read."""


@dataclass(frozen=True, slots=True)
class CurrentRole:
    """The role of a session.

    Attributes:
        superuser: it may do anything, whatever guards the log.
        owner: it owns the log, and may switch off what guards it.
        changes: what it may do to recorded events beside adding some (ordinarily nothing).
    """

    name: str
    superuser: bool
    owner: bool
    changes: Sequence[str]


async def current_role(connection: Connection) -> CurrentRole:
    """Of this session; our tables must be there."""
    cursor = await connection.execute(
        "SELECT current_user::text, r.rolsuper, pg_has_role(c.relowner, 'USAGE') AND NOT r.rolsuper,"
        " array(SELECT p FROM unnest('{UPDATE,DELETE,TRUNCATE}'::text[]) AS p WHERE has_table_privilege(c.oid, p))"
        " FROM pg_roles AS r, pg_class AS c WHERE r.rolname = current_user AND c.oid = 'public.events'::regclass"
    )
    row = await cursor.fetchone()
    assert row is not None  # noqa: S101 - a session has a role
    return CurrentRole(*row)


async def statements_for_roles(connection: Connection, prefix: str) -> list[str]:
    """What makes the roles, as SQL; also where they are there already, and have other rights on our tables.

    Passwords are not given: `\\password` of psql does that without showing them.

    Args:
        prefix: of the roles' names.
    """
    return [statement.as_string(connection) async for statement in _statements(connection, prefix)]


async def apply(connection: Connection, statements: Sequence[str]) -> None:
    """Run them, all or none; again while others hold a lock that they need.

    Raises:
        psycopg.errors.InsufficientPrivilege: this role may not make roles, or does not own the tables.
        psycopg.errors.LockNotAvailable: somebody held a lock for all of `PATIENCE`.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE.total_seconds()
    while True:
        try:
            async with connection.transaction():
                for statement in statements:
                    await connection.execute(statement.encode())
            return
        except psycopg.errors.LockNotAvailable:
            if loop.time() >= deadline:
                raise
        await asyncio.sleep(_PAUSE.total_seconds())


async def _statements(connection: Connection, prefix: str) -> AsyncIterator[sql.Composed]:
    there = await _texts(connection, "SELECT rolname::text FROM pg_roles")
    tables = await _texts(
        connection,
        "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')",
    )
    [database] = await _texts(connection, "SELECT current_database()::text")
    names = {role: sql.Identifier(prefix + role) for role in ROLES}
    for role, name in names.items():
        if prefix + role not in there:
            yield sql.SQL("CREATE ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION").format(name)
    everybody = sql.SQL(", ").join(names.values())
    yield sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(sql.Identifier(database), everybody)
    yield sql.SQL("REVOKE CREATE ON SCHEMA public FROM PUBLIC, {}").format(everybody)
    yield sql.SQL("GRANT USAGE ON SCHEMA public TO {}").format(everybody)
    yield sql.SQL("REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {}").format(everybody)
    for role, rights in _RIGHTS.items():
        for privileges, some in _by_privileges(rights, tables):
            yield sql.SQL("GRANT {} ON {} TO {}").format(
                sql.SQL(", ").join(map(sql.SQL, privileges)),
                sql.SQL(", ").join(sql.Identifier("public", table) for table in some),
                names[role],
            )
    # What rebuilds are made of, and in whose place they are put.
    yield sql.SQL("GRANT CREATE ON DATABASE {} TO {}").format(sql.Identifier(database), names["process"])
    yield sql.SQL("GRANT {} TO CURRENT_USER").format(names["process"])
    yield sql.SQL(_BRIEFLY).format()
    for schema, table, owner in await _read_models(connection):
        of = sql.Identifier(schema) if table is None else sql.Identifier(schema, table)
        kind, right = (sql.SQL("SCHEMA"), "USAGE") if table is None else (sql.SQL("TABLE"), "SELECT")
        if owner != prefix + "process":
            yield sql.SQL("ALTER {} {} OWNER TO {}").format(kind, of, names["process"])
        yield sql.SQL("GRANT {} ON {} {} TO {}").format(sql.SQL(right), kind, of, everybody)


def _by_privileges(
    rights: Mapping[str, Sequence[str]], tables: Sequence[str]
) -> Iterator[tuple[Sequence[str], list[str]]]:
    """Tables with the same rights together; those that are not there are left out."""
    for privileges in dict.fromkeys(tuple(one) for one in rights.values()):
        some = [table for table, one in rights.items() if tuple(one) == privileges and table in tables]
        if some:
            yield privileges, sorted(some)


async def _read_models(connection: Connection) -> list[tuple[str, str | None, str]]:
    """Their schemas, each before its tables, and the owner of each."""
    cursor = await connection.execute(
        "SELECT nspname::text, NULL::text, pg_get_userbyid(nspowner)::text FROM pg_namespace WHERE nspname ~ '^read_'"
        " UNION ALL SELECT n.nspname::text, c.relname::text, pg_get_userbyid(c.relowner)::text FROM pg_class AS c"
        " JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE n.nspname ~ '^read_' AND c.relkind IN ('r', 'p')"
        " ORDER BY 1, 2 NULLS FIRST"
    )
    return [(schema, table, owner) for schema, table, owner in await cursor.fetchall()]


async def _texts(connection: Connection, query: str) -> list[str]:
    return [text for (text,) in await (await connection.execute(query.encode())).fetchall()]
