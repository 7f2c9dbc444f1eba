"""What others have built on a read model's tables: it would stay with the former ones when a copy takes their place,
and go when those are dropped."""

from __future__ import annotations

from typing import Final

from infrastructure.postgres.connection import Connection

# A view is its rule; of a table, what makes it up is internal or in its schema.
_DEPENDENTS: Final = """
    WITH ours AS (
        SELECT 'pg_class'::regclass AS class, oid FROM pg_class WHERE relnamespace = to_regnamespace(%(schema)s)
        UNION ALL
        SELECT 'pg_type'::regclass, oid FROM pg_type WHERE typnamespace = to_regnamespace(%(schema)s)
    ), theirs AS (
        SELECT d.classid, d.objid
        FROM ours JOIN pg_depend AS d ON d.refclassid = ours.class AND d.refobjid = ours.oid
        WHERE d.classid IN ('pg_proc'::regclass, 'pg_policy'::regclass, 'pg_publication_rel'::regclass)
        UNION
        SELECT 'pg_class'::regclass, r.ev_class
        FROM ours JOIN pg_depend AS d ON d.refclassid = ours.class AND d.refobjid = ours.oid
            JOIN pg_rewrite AS r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
        UNION
        SELECT d.classid, d.objid
        FROM ours JOIN pg_depend AS d ON d.refclassid = ours.class AND d.refobjid = ours.oid
            JOIN pg_class AS c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
        WHERE d.deptype <> 'i' AND c.relnamespace <> to_regnamespace(%(schema)s)
        UNION
        SELECT 'pg_constraint'::regclass, oid FROM pg_constraint
        WHERE confrelid IN (SELECT oid FROM ours) AND connamespace <> to_regnamespace(%(schema)s)
        UNION
        SELECT 'pg_trigger'::regclass, oid FROM pg_trigger
        WHERE tgrelid IN (SELECT oid FROM ours) AND NOT tgisinternal
    )
    SELECT pg_describe_object(classid, objid, 0) FROM theirs ORDER BY 1
"""


async def dependents(connection: Connection, schema: str) -> list[str]:
    """Views, foreign keys, functions and the like that depend on the tables of a schema; none if there is no such
    schema.

    As PostgreSQL describes them: "view on_call.accounts". A function whose body is a string depends on nothing, and
    finds whatever has the name.
    """
    cursor = await connection.execute(_DEPENDENTS.encode(), {"schema": schema})
    return [name for (name,) in await cursor.fetchall()]
