"""What operators have set up around a read model, a role for the service and views of their own, outlives a rebuild."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import timedelta

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from application.ports import entries_of
from infrastructure.event_store.store import EventStore
from infrastructure.postgres.connection import Connection, connect
from infrastructure.replay.dependents import dependents
from infrastructure.replay.rebuild import RebuildAct, Rebuilds
from infrastructure.replay.swap import CannotReplay
from projections.accounts import Accounts
from tests.support.facts import CLIENT, REGISTRATION, registered, stream
from tests.support.log import query
from tests.support.read_models import contents, follow, follow_all, recorded_history, rows

GRANTS = """
    SELECT 'schema', nspname::text, nspowner::regrole::text,
        array(SELECT a::text FROM unnest(coalesce(nspacl, acldefault('n', nspowner))) AS a ORDER BY 1)
    FROM pg_namespace WHERE nspname = 'read_accounts'
    UNION ALL
    SELECT 'table', relname, relowner::regrole::text,
        array(SELECT a::text FROM unnest(coalesce(relacl, acldefault('r', relowner))) AS a ORDER BY 1)
    FROM pg_class WHERE relnamespace = 'read_accounts'::regnamespace AND relkind = 'r'
    UNION ALL
    SELECT 'column', attname, attrelid::regclass::text, array(SELECT a::text FROM unnest(attacl) AS a ORDER BY 1)
    FROM pg_attribute WHERE attrelid = 'read_accounts.accounts'::regclass AND attacl IS NOT NULL
    ORDER BY 1, 2
"""


@pytest.fixture
async def connection(dsn: str, store: EventStore) -> AsyncIterator[Connection]:
    """On a log, and every read model at its end."""
    async with await connect(dsn, name="test", statement_timeout=timedelta(seconds=10)) as connection:
        await recorded_history(store, registrations=20)
        await follow_all(store, connection)
        yield connection


@pytest.fixture
def rebuilds(dsn: str, store: EventStore) -> Rebuilds:
    async def record(_: RebuildAct) -> None:
        pass

    return Rebuilds(dsn, log=store, record=record)


@pytest.fixture
def role(dsn: str, administration: psycopg.Connection) -> Iterator[str]:
    """Of no rights."""
    database = conninfo_to_dict(dsn)["dbname"]
    name = f"service_of_{database}"
    administration.execute(f"CREATE ROLE {name}".encode())
    yield name
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"REASSIGN OWNED BY {name} TO CURRENT_USER".encode())
        connection.execute(f"DROP OWNED BY {name}".encode())
    administration.execute(f"DROP ROLE {name}".encode())


async def run(connection: Connection, *statements: str) -> None:
    for statement in statements:
        await connection.execute(statement.encode())


async def test_a_role_that_owns_nothing_reads_and_follows_before_during_and_after_a_rebuild(
    connection: Connection, store: EventStore, dsn: str, role: str
) -> None:
    await run(
        connection,
        f"GRANT USAGE ON SCHEMA read_accounts TO {role}",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA read_accounts TO {role}",
        f"GRANT SELECT, INSERT, UPDATE ON followers TO {role}",
    )
    seen = []
    async with await psycopg.AsyncConnection.connect(dsn, options=f"-c role={role}", autocommit=True) as service:

        async def record(act: RebuildAct) -> None:
            cursor = await service.execute("SELECT count(*) FROM read_accounts.accounts")
            seen.append((act.act, await cursor.fetchone()))

        rebuilds = Rebuilds(dsn, log=store, record=record)
        assert (await rebuilds.rebuild(Accounts)).swapped
        await store.append(entries_of(stream(REGISTRATION, registered()), CLIENT))
        assert await follow(store, service, Accounts()) == await store.head()
        await rebuilds.roll_back(Accounts)

    assert [act for act, _ in seen] == ["begun", "swapped", "rolled-back"]
    assert seen[0][1] == seen[1][1]


async def test_owner_and_grants_of_schema_tables_and_columns_are_those_of_the_live_one(
    connection: Connection, rebuilds: Rebuilds, role: str
) -> None:
    await run(
        connection,
        f"ALTER DEFAULT PRIVILEGES GRANT DELETE ON TABLES TO {role}",  # which the copy would begin with
        f"GRANT USAGE ON SCHEMA read_accounts TO {role} WITH GRANT OPTION",
        "GRANT USAGE ON SCHEMA read_accounts TO PUBLIC",
        f"GRANT SELECT ON read_accounts.accounts TO {role} WITH GRANT OPTION",
        f"GRANT UPDATE (locale) ON read_accounts.accounts TO {role}",
        "REVOKE TRUNCATE ON read_accounts.accounts FROM CURRENT_USER",
    )
    before = await rows(connection, GRANTS)

    await rebuilds.rebuild(Accounts)
    assert await rows(connection, GRANTS) == before

    # What changes until the swap counts, and a superuser's rebuild leaves the tables to their owner.
    await run(
        connection,
        f"ALTER SCHEMA read_accounts OWNER TO {role}",
        f"ALTER TABLE read_accounts.accounts OWNER TO {role}",
        "REVOKE USAGE ON SCHEMA read_accounts FROM PUBLIC",
    )
    after = await rows(connection, GRANTS)
    assert after != before

    await rebuilds.rebuild(Accounts)
    assert await rows(connection, GRANTS) == after
    await rebuilds.roll_back(Accounts)
    assert await rows(connection, GRANTS) == after


DEPENDENTS = {
    "view": ("VIEW on_call.one AS SELECT count(*) FROM read_accounts.accounts", "view on_call.one"),
    "view beside the tables": (
        "VIEW read_accounts.one AS SELECT count(*) FROM read_accounts.accounts",
        "view read_accounts.one",
    ),
    "materialized view": (
        "MATERIALIZED VIEW on_call.one AS SELECT count(*) FROM read_accounts.accounts",
        "materialized view on_call.one",
    ),
    "foreign key": (
        "TABLE on_call.one (id uuid REFERENCES read_accounts.accounts)",
        "constraint one_id_fkey on table on_call.one",
    ),
    "function": (
        "FUNCTION on_call.one() RETURNS bigint BEGIN ATOMIC SELECT count(*) FROM read_accounts.accounts; END",
        "function on_call.one()",
    ),
    "row type": (
        "FUNCTION on_call.one(read_accounts.accounts) RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "function on_call.one(read_accounts.accounts)",
    ),
    "column": ("TABLE on_call.one (it read_accounts.accounts)", "table on_call.one"),
    "trigger": (
        "TRIGGER one BEFORE TRUNCATE ON read_accounts.accounts EXECUTE FUNCTION refuse_effect_of_replay()",
        "trigger one on table read_accounts.accounts",
    ),
    "policy": ("POLICY one ON read_accounts.accounts", "policy one on table read_accounts.accounts"),
    "publication": (
        "PUBLICATION one FOR TABLE read_accounts.accounts",
        "publication of table read_accounts.accounts in publication one",
    ),
}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("made", "name"), DEPENDENTS.values(), ids=DEPENDENTS)
async def test_what_others_have_built_on_the_tables_is_named_and_no_copy_is_begun(
    connection: Connection, rebuilds: Rebuilds, made: str, name: str
) -> None:
    assert await dependents(connection, "read_accounts") == []
    await run(connection, "CREATE SCHEMA on_call", f"CREATE {made}")

    with pytest.raises(CannotReplay) as refused:
        await rebuilds.rebuild(Accounts)

    assert str(refused.value) == (
        f"Drop first, and make again afterwards, what depends on tables that are to go: {name}."
    )
    assert await rows(connection, "SELECT to_regnamespace('read_accounts__next')") == [(None,)]


async def test_a_view_that_is_made_amid_a_rebuild_keeps_its_tables(
    connection: Connection, store: EventStore, dsn: str
) -> None:
    await run(connection, "CREATE SCHEMA on_call")
    before = await contents(connection, "read_accounts")
    [(was,)] = await rows(connection, "SELECT 'read_accounts'::regnamespace::oid")

    async def record(act: RebuildAct) -> None:
        if act.act == "begun":
            await query(dsn, "CREATE OR REPLACE VIEW on_call.one AS SELECT registration_id FROM read_accounts.accounts")

    rebuilds = Rebuilds(dsn, log=store, record=record)
    with pytest.raises(CannotReplay, match=r"view on_call\.one"):
        await rebuilds.rebuild(Accounts)

    assert await rows(connection, "SELECT 'read_accounts'::regnamespace::oid") == [(was,)]
    assert await contents(connection, "read_accounts") == before


async def test_a_view_of_the_former_tables_is_not_dropped_with_them(connection: Connection, rebuilds: Rebuilds) -> None:
    await rebuilds.rebuild(Accounts)
    await run(
        connection,
        "CREATE SCHEMA on_call",
        "CREATE VIEW on_call.one AS SELECT count(*) FROM read_accounts__old.accounts",
    )

    with pytest.raises(CannotReplay, match=r"view on_call\.one"):
        await rebuilds.rebuild(Accounts)
    await rebuilds.roll_back(Accounts)

    assert await rows(connection, "SELECT count FROM on_call.one") == await rows(
        connection, "SELECT count(*) FROM read_accounts.accounts"
    )
