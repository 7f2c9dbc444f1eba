"""Whose a read model is, and who may use it: a copy that takes its place takes that over, too."""

from __future__ import annotations

from typing import Final

from infrastructure.postgres.connection import Connection

_STATEMENTS: Final = """
    WITH tables AS (
        SELECT c.oid AS copy, l.oid AS live, format('%%I.%%I', %(copy)s::text, c.relname) AS name
        FROM pg_class AS l JOIN pg_class AS c USING (relname, relkind)
        WHERE relkind = 'r'
            AND l.relnamespace = to_regnamespace(%(live)s) AND c.relnamespace = to_regnamespace(%(copy)s)
    ), objects AS (
        SELECT 1 AS level, 'SCHEMA' AS kind, quote_ident(c.nspname) AS name, '' AS part, l.nspowner AS owner,
            c.nspowner AS former,
            coalesce(l.nspacl, acldefault('n', l.nspowner)) AS acl,
            coalesce(c.nspacl, acldefault('n', c.nspowner)) AS has
        FROM pg_namespace AS l, pg_namespace AS c WHERE l.nspname = %(live)s AND c.nspname = %(copy)s
        UNION ALL
        SELECT 2, 'TABLE', t.name, '', l.relowner, c.relowner,
            coalesce(l.relacl, acldefault('r', l.relowner)), coalesce(c.relacl, acldefault('r', c.relowner))
        FROM tables AS t JOIN pg_class AS l ON l.oid = t.live JOIN pg_class AS c ON c.oid = t.copy
        UNION ALL
        SELECT 2, 'TABLE', t.name, format(' (%%I)', l.attname), NULL, NULL, l.attacl, c.attacl
        FROM tables AS t JOIN pg_attribute AS l ON l.attrelid = t.live
            JOIN pg_attribute AS c ON c.attrelid = t.copy AND c.attname = l.attname
        WHERE l.attnum > 0 AND NOT l.attisdropped
    ), grantees AS (
        SELECT level, kind, name, grantee FROM objects, aclexplode(has)
        UNION
        SELECT level, kind, name, owner FROM objects WHERE owner IS NOT NULL
    ), statements AS (
        SELECT level, 1 AS step, format('ALTER %%s %%s OWNER TO %%I', kind, name, pg_get_userbyid(owner)) AS statement
        FROM objects WHERE owner <> former
        UNION ALL
        SELECT level, 2, format('REVOKE ALL ON %%s %%s FROM %%s CASCADE', kind, name,
            CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END)
        FROM grantees
        UNION ALL
        SELECT level, 3, format('GRANT %%s ON %%s %%s TO %%s%%s', string_agg(privilege_type || part, ', '), kind, name,
            CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END,
            CASE WHEN is_grantable THEN ' WITH GRANT OPTION' END)
        FROM objects, aclexplode(acl)
        GROUP BY level, kind, name, grantee, is_grantable
    )
    SELECT statement FROM statements ORDER BY level, step
"""
"""The schema first: the owner of a table needs its rights there."""


async def take_over_grants(connection: Connection, live: str, copy: str) -> None:
    """Give a copy's schema, and the tables that are in both, the owner and the grants of the live ones; nothing to do
    if there is no live schema.

    Raises:
        psycopg.errors.InsufficientPrivilege: this role may not act for the owner.
    """
    async with connection.transaction():
        cursor = await connection.execute(_STATEMENTS.encode(), {"live": live, "copy": copy})
        for (statement,) in await cursor.fetchall():
            await connection.execute(statement.encode())
