"""Names that stay, as `tests/unit/test_names_that_stay.py` has them: those in a fresh database, and those of HTTP."""

from __future__ import annotations

from base64 import b64decode

import psycopg
import pytest

from tests.support.approved import ROOT, same_as_approved, the
from tests.support.http import open_api

OURS = "nspname !~ '^(pg_|information_schema$)'"

CATALOG = {
    "columns": f"""
        SELECT format('%I.%I.%I', nspname, relname, attname),
               format_type(atttypid, atttypmod) || CASE WHEN attnotnull THEN ' NOT NULL' ELSE '' END
               || coalesce(' DEFAULT ' || pg_get_expr(adbin, adrelid), '')
               || CASE attidentity WHEN '' THEN '' ELSE ' IDENTITY ' || attidentity::text END
        FROM pg_attribute
        JOIN pg_class ON pg_class.oid = attrelid
        JOIN pg_namespace ON pg_namespace.oid = relnamespace
        LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE {OURS} AND relkind IN ('r', 'p', 'v', 'm', 'f', 'c') AND attnum > 0 AND NOT attisdropped
    """,
    "constraints": f"""
        SELECT format('%I.%I %I', nspname, relname, conname), pg_get_constraintdef(pg_constraint.oid)
        FROM pg_constraint
        JOIN pg_class ON pg_class.oid = conrelid
        JOIN pg_namespace ON pg_namespace.oid = relnamespace
        WHERE {OURS} AND contype <> 'n' -- PostgreSQL 18 names what NOT NULL says
    """,
    "indexes": f"""
        SELECT format('%I.%I', nspname, relname), pg_get_indexdef(pg_class.oid)
        FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
        WHERE {OURS} AND relkind IN ('i', 'I')
    """,
    "other relations": f"""
        SELECT format('%I.%I', nspname, relname), trim(relkind::text || ' ' || coalesce(array_to_string(reloptions, ', '), ''))
        FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
        WHERE {OURS} AND relkind NOT IN ('i', 'I')
    """,
    "functions": f"""
        SELECT format('%I.%I(%s)', nspname, proname, pg_get_function_identity_arguments(pg_proc.oid)),
               pg_get_function_result(pg_proc.oid)
        FROM pg_proc JOIN pg_namespace ON pg_namespace.oid = pronamespace
        WHERE {OURS}
    """,
    "triggers": f"""
        SELECT format('%I.%I %I', nspname, relname, tgname), pg_get_triggerdef(pg_trigger.oid)
        FROM pg_trigger
        JOIN pg_class ON pg_class.oid = tgrelid
        JOIN pg_namespace ON pg_namespace.oid = relnamespace
        WHERE {OURS} AND NOT tgisinternal
    """,
    "types": f"""
        SELECT format('%I.%I', nspname, typname), typtype
        FROM pg_type JOIN pg_namespace ON pg_namespace.oid = typnamespace
        WHERE {OURS} AND typtype NOT IN ('b', 'c')
    """,
    "scripts": "SELECT name, 'recorded' FROM public.schema_scripts",
}


@pytest.mark.parametrize("kind", CATALOG)
def test_a_fresh_database_has_the_same_names_as_ever(dsn: str, kind: str) -> None:
    with psycopg.connect(dsn) as connection:
        found: dict[str, str] = dict(connection.execute(CATALOG[kind].encode()).fetchall())

    same_as_approved(f"database_{kind.replace(' ', '_')}", found)


async def test_routes_and_their_description_keep_names_parameters_and_schemas(dsn: str) -> None:
    async with open_api(dsn, follows=False) as api:
        document = (await api.http.get("/openapi.json")).json()
        routes = {
            f"{method} {route.path}"  # type: ignore[attr-defined]
            for route in api.app.routes
            for method in route.methods  # type: ignore[attr-defined]
        }

    same_as_approved("routes", sorted(routes))
    same_as_approved("openapi", document, file=ROOT / "docs" / "openapi.json")
    operations = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert max(map(len, operations)) <= 30
    assert len(set(operations)) == len(operations) > 30


async def test_the_root_secret_that_was_wrapped_once_can_still_be_opened(dsn: str) -> None:
    wrapped = b64decode("EWJ73WBuUgSvhGtLscUMn0zsmDmuIyxnio83WJNjGPNzOOBT1lrMjS2noX+scVoOlTWoBfaKmUmJ1H6B")
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute("INSERT INTO service_secrets (name, wrapped) VALUES ('root', %s)", (wrapped,))
        assert await the("open_root_secret")(connection, b"m" * 32) == b"r" * 32
