"""Roles with exactly the rights that each process needs: each does its work, and is refused whatever else."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID

import psycopg
import pytest

from entrypoints.bootstrap.database import Database, prepare
from entrypoints.bootstrap.database_roles import _RIGHTS, ROLES, apply, current_role, statements_for_roles
from entrypoints.bootstrap.erasures import note_key
from entrypoints.bootstrap.replay import READ_MODELS, rebuilder, verifier
from entrypoints.bootstrap.roles import bounces
from infrastructure.audit.erasures import Erasure, write_to
from infrastructure.audit.verification import verify
from infrastructure.bounces.addresses import BounceAddresses
from infrastructure.circuits import Circuits
from infrastructure.crypto.keyring import open_root_secret
from infrastructure.crypto.master_keys import MasterKeys
from infrastructure.followers.leadership import lead
from infrastructure.postgres.connection import connect
from infrastructure.replay.background import BackgroundVerification
from infrastructure.replay.progress import nobody_watches
from projections import PROJECTIONS
from tests.faults.evidence import latest_code
from tests.integration.conftest import Command
from tests.integration.test_flow import register
from tests.support.bounces import MailExchanger
from tests.support.facts import eventually
from tests.support.http import ADMIN, MASTER_KEY, open_api, settings
from tests.support.log import acts_of, keep_root_secret, query
from tests.support.service import open_service
from tests.support.smtp_stub import SmtpStub

ALL = tuple(ROLES)


def as_role(dsn: str, role: str) -> str:
    """The database, as that role: the test's server lets in nobody but its owner, who then steps down."""
    return f"{dsn}&options={quote(f'-c role=registrar_{role}')}"


async def make_roles(dsn: str) -> None:
    await prepare(Database(dsn, MasterKeys(bytes.fromhex(MASTER_KEY)), tuple, admin_token=None, embedded=None))
    async with await connect(dsn, name="test", statement_timeout=timedelta(seconds=10)) as connection:
        await apply(connection, await statements_for_roles(connection, "registrar_"))


@pytest.fixture
async def owned(dsn: str) -> str:
    """A database with the roles."""
    await make_roles(dsn)
    return dsn


@pytest.fixture
def prepared(dsn: str) -> str:
    """`owned`, for commands, which have a loop of their own."""
    asyncio.run(make_roles(dsn))
    return dsn


# --- What each must not -------------------------------------------------------------------------

HISTORY = {
    "change an event": "UPDATE events SET actor = 'nobody'",
    "remove events": "DELETE FROM events",
    "truncate the log": "TRUNCATE events",
    "rewrite the chain": "UPDATE blocks SET hash = ''",
    "remove blocks": "DELETE FROM blocks",
    "switch a guard off": "ALTER TABLE events DISABLE TRIGGER ALL",
    "drop a guard": "DROP TRIGGER events_are_for_ever ON events",
    "replace a guard": "CREATE OR REPLACE FUNCTION refuse_change_of_history() RETURNS trigger LANGUAGE sql AS ''",
    "remove the head": "DELETE FROM head",
    "step around the guards": "SET session_replication_role = replica",
    "begin an import": "SELECT begin_import()",
    "change the root secret": "UPDATE service_secrets SET wrapped = ''",
    "replace a root secret": "INSERT INTO service_secrets VALUES ('root', '')",
    "change a personal key": "UPDATE personal_keys SET wrapped = ''",
    "make a table": "CREATE TABLE public.mine (one int)",
    "make a role": "CREATE ROLE mine",
    "archive elsewhere": "ALTER SYSTEM SET archive_command = 'true'",
    "read files": "SELECT pg_read_file('postgresql.conf')",
    "run programs": "COPY (SELECT 1) TO PROGRAM 'true'",
    "edit scripts": "UPDATE schema_scripts SET digest = ''",
    "forge a backup": "UPDATE backups SET done_at = now()",
}
RECORD = {
    "add an event": "INSERT INTO events SELECT * FROM events LIMIT 0",
    "add a block": "INSERT INTO blocks SELECT * FROM blocks LIMIT 0",
    "move the head": "UPDATE head SET position = position",
    "fence a batch": "INSERT INTO fenced_batches VALUES ('00000000-0000-0000-0000-000000000000')",
}
READ_MODELS_CHANGE = {
    "change a read model": "UPDATE read_accounts.accounts SET sealed = ''",
    "drop a read model": "DROP SCHEMA read_accounts CASCADE",
    "make a schema": "CREATE SCHEMA mine",
}
FOLLOW = {
    "move a follower": "UPDATE followers SET position = 0",
    "drop what is parked": "DELETE FROM parked_events",
    "silence an alert": "DELETE FROM alerts",
    "forge a verification": "UPDATE verifications SET differences = 0",
}
READ_A_CODE = {"read a synthetic code": "SELECT mail FROM synthetic_registrations"}
SEND = {
    "claim a mail": "INSERT INTO send_claims VALUES (gen_random_uuid(), 1, gen_random_uuid(), now())",
    "close a circuit": "UPDATE circuits SET state = 'closed'",
}
GUARDED = "is refused: what was recorded stays"
EXPECTED = (
    psycopg.errors.UniqueViolation,  # a second root secret
    psycopg.errors.RaiseException,  # an import needs an empty store
    psycopg.errors.InvalidFunctionDefinition,  # another language than the function's own is refused to the owner, too
)
FORBIDDEN: dict[str, dict[str, str]] = {
    "api": HISTORY | READ_MODELS_CHANGE | FOLLOW | SEND | READ_A_CODE,
    "worker": HISTORY
    | READ_MODELS_CHANGE
    | FOLLOW
    | READ_A_CODE
    | {
        "forge a synthetic success": "UPDATE synthetic_registrations SET outcome = 'passed'",
        "make a key": "INSERT INTO personal_keys VALUES (gen_random_uuid(), '')",
        "erase somebody": "DELETE FROM personal_keys",
        "settle a restore": "UPDATE restores SET settled_at = now()",
        "begin a rebuild": "INSERT INTO rebuilds SELECT * FROM rebuilds LIMIT 0",
        "begin a job": "INSERT INTO replay_jobs SELECT * FROM replay_jobs LIMIT 0",
    },
    "process": HISTORY | {"make a key": "INSERT INTO personal_keys VALUES (gen_random_uuid(), '')"},
    "reader": HISTORY
    | RECORD
    | READ_MODELS_CHANGE
    | FOLLOW
    | SEND
    | READ_A_CODE
    | {
        "read personal keys": "SELECT * FROM personal_keys",
        "erase somebody": "DELETE FROM personal_keys",
        "read the root secret": "SELECT * FROM service_secrets",
    },
    "auditor": HISTORY
    | RECORD
    | READ_MODELS_CHANGE
    | FOLLOW
    | SEND
    | READ_A_CODE
    | {
        "read personal keys": "SELECT * FROM personal_keys",
        "erase somebody": "DELETE FROM personal_keys",
    },
}
"""What each role is refused, by what it would be for. (A rebuild makes schemas, the process may.)"""


@pytest.mark.parametrize("role", ALL)
async def test_what_a_role_must_not_do_the_database_refuses_it(owned: str, role: str) -> None:
    allowed = []
    async with await psycopg.AsyncConnection.connect(as_role(owned, role), autocommit=True) as connection:
        for act, statement in FORBIDDEN[role].items():
            try:
                await connection.execute(statement.encode())
            except psycopg.errors.InsufficientPrivilege as refused:
                if GUARDED in str(refused):  # the guards are the second line
                    allowed.append(act)
            else:
                allowed.append(act)

    assert allowed == []


async def test_nothing_but_the_missing_right_stops_those_statements(owned: str) -> None:
    unsound = {}
    async with await psycopg.AsyncConnection.connect(owned) as connection:
        for statement in {one for some in FORBIDDEN.values() for one in some.values()}:
            if statement.startswith(("ALTER SYSTEM", "COPY")):
                continue  # not in a transaction, or not on the machine of the tests
            try:
                await connection.execute(statement.encode())
            except psycopg.Error as error:
                if GUARDED not in str(error) and not isinstance(error, EXPECTED):
                    unsound[statement] = str(error)
            await connection.rollback()

    assert unsound == {}


async def test_every_table_has_been_thought_of(owned: str) -> None:
    tables = await query(
        owned, "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
    )

    assert {name for (name,) in tables} <= {table for rights in _RIGHTS.values() for table in rights}


async def test_roles_can_be_made_again_and_rights_that_are_none_of_ours_go(owned: str) -> None:
    await query(owned, "GRANT DELETE ON events TO registrar_reader; CREATE TABLE public.later (one int)")

    await make_roles(owned)

    [(may, sees)] = await query(
        owned,
        "SELECT has_table_privilege('registrar_reader', 'events', 'DELETE'),"
        " has_table_privilege('registrar_reader', 'later', 'SELECT')",
    )
    assert (may, sees) == (False, False)
    models = await query(owned, "SELECT DISTINCT nspowner::regrole::text FROM pg_namespace WHERE nspname ~ '^read_'")
    assert models == [("registrar_process",)]


async def test_roles_that_are_there_are_made_again_beside_whoever_reads(owned: str) -> None:
    async with await psycopg.AsyncConnection.connect(owned) as reader:
        await reader.execute("SELECT count(*) FROM read_accounts.accounts")

        await make_roles(owned)


async def test_a_read_model_that_changes_hands_keeps_nobody_waiting(dsn: str) -> None:
    await prepare(Database(dsn, MasterKeys(bytes.fromhex(MASTER_KEY)), tuple, admin_token=None, embedded=None))
    read = "SELECT count(*) FROM read_accounts.accounts"
    async with await psycopg.AsyncConnection.connect(dsn) as long_reader:
        await long_reader.execute(read.encode())
        making = asyncio.create_task(make_roles(dsn))

        async def waits() -> bool:
            [(count,)] = await query(
                dsn, "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'read_accounts.accounts'::regclass"
            )
            return bool(count)

        try:
            await eventually(waits, every=0.05)
            await query(dsn, f"SET statement_timeout = '5s'; {read}")
            assert not making.done()
        except BaseException:
            making.cancel()
            raise
    await making

    [(owner,)] = await query(dsn, "SELECT relowner::regrole::text FROM pg_class WHERE relname = 'accounts'")
    assert owner == "registrar_process"


# --- What each does -----------------------------------------------------------------------------


async def test_a_worker_starts_though_a_journal_says_whom_a_restore_has_brought_back(
    owned: str, tmp_path: Path
) -> None:
    async with open_service(settings(owned, str(tmp_path)), follows=False) as service:
        ada = (await register(service, "ada@example.com")).subject_id
        key = note_key(service.keyring)
    await write_to(tmp_path / "checkpoints" / "erasures", key.sign(Erasure(ada, 9, datetime.now(UTC)).text()))
    more = {"checkpoint_dir": str(tmp_path / "checkpoints"), "smtp_urls": "smtp://127.0.0.1:1?starttls=never"}

    async with open_service(settings(as_role(owned, "worker"), str(tmp_path), **more), follows=False, works=True):
        assert await query(owned, "SELECT registration_id FROM personal_keys") == [(ada,)]
    async with open_service(settings(as_role(owned, "api"), str(tmp_path), **more), follows=False):
        assert await query(owned, "SELECT registration_id FROM personal_keys") == []


async def test_api_and_process_serve_a_registration_from_its_request_to_its_erasure(owned: str, tmp_path: Path) -> None:
    async with SmtpStub() as sink:
        smtp = f"smtp://127.0.0.1:{sink.port}?starttls=never"
        follower_dsn = as_role(owned, "process")
        follower = settings(follower_dsn, str(tmp_path), smtp_urls=smtp, verify_interval="0")
        async with (
            open_service(follower, follows=True) as process,
            open_api(as_role(owned, "api"), follows=False) as api,
        ):
            registration_id = await api.registered(password="correct horse battery")
            assert (await api.new_code(registration_id)).status_code in {202, 429}
            code = latest_code(sink.mails, "ada@example.com")
            assert code is not None
            wrong = f"{(int(code) + 1) % 1_000_000:06d}"
            assert (await api.verify(registration_id, wrong)).status_code == 422
            assert (await api.verify(registration_id, code)).status_code == 200
            await api.becomes(registration_id, status="ACTIVE")
            second = await api.registered("eve@example.com")
            assert (await api.http.post(f"/v1/admin/registrations/{second}/cancel", headers=ADMIN)).status_code == 200
            erased = await api.http.post(f"/v1/admin/registrations/{registration_id}/erase", headers=ADMIN)
            assert erased.status_code == 200, erased.text
            assert (await api.http.get("/health/ready")).json()["status"] == "up"
            for path in ("registrations", "audit", "mail", "funnel", "projections"):
                assert (await api.http.get(f"/v1/admin/{path}", headers=ADMIN)).status_code == 200, path
            metrics = (await api.http.get("/metrics", headers=ADMIN)).text
            assert "registrar_dead_letters 0.0" in metrics

            # Compared in the background (one is enough to wait for), and rebuilt.
            every, patience = timedelta(days=1), timedelta(seconds=10)
            verification = BackgroundVerification(
                PROJECTIONS, dsn=follower_dsn, every=every, statement_timeout=patience, first=timedelta(0)
            )
            task = asyncio.create_task(lead(verification, follower_dsn, statement_timeout=patience))

            async def verified() -> bool:
                [(count,)] = await query(owned, "SELECT count(*) FROM verifications WHERE differences = 0")
                return bool(count)

            await eventually(verified, within=60)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert not process.process.core.broken.is_set()
        async with rebuilder(follower) as parts:
            for make in READ_MODELS.values():
                assert (await parts.rebuilds(nobody_watches).rebuild(make)).swapped
        async with verifier(follower) as verifying:
            found = await verifying.verify_all(list(READ_MODELS), nobody_watches)
        assert [one.count for one in found] == [0] * len(READ_MODELS)
    # What has taken the place of the read models, the others may still read.
    async with open_api(as_role(owned, "api"), follows=False) as api:
        assert (await api.look(registration_id)).json()["status"] in {"ACTIVE", "CANCELLED"}


async def test_a_worker_sends_and_records_mails_with_its_role(owned: str, broker_url: str, tmp_path: Path) -> None:
    soon_probed = partial(Circuits, open_for=timedelta(seconds=1))  # after the one refusal below
    async with SmtpStub() as sink:
        smtp = f"smtp://127.0.0.1:{sink.port}?starttls=never"
        each = {"broker_url": broker_url, "smtp_urls": smtp}
        sink.at("mail", "550 5.7.1 no", times=1)
        async with (
            open_service(settings(as_role(owned, "process"), str(tmp_path), **each), follows=True),
            open_service(
                settings(as_role(owned, "worker"), str(tmp_path), **each),
                follows=False,
                works=True,
                circuits=soon_probed,
            ) as worker,
            open_api(as_role(owned, "api"), follows=False, broker_url=broker_url) as api,
        ):
            registration_id = await api.registered("eve@example.com")
            assert len(sink.mails) == 1
            code = latest_code(sink.mails, "eve@example.com")
            assert code is not None
            assert (await api.verify(registration_id, code)).status_code == 200
            await worker.api.checks.measure()
            assert b"registrar_dead_letters 0.0" in worker.metrics.render()


async def test_the_listener_for_bounces_records_them_with_the_role_of_the_api(owned: str, tmp_path: Path) -> None:
    address, listen = "bounces@mail.example.org", "127.0.0.1:0"
    theirs = settings(as_role(owned, "api"), str(tmp_path), bounce_address=address, bounce_listen=listen)
    async with open_api(owned, bounce_address=address) as api:
        registration_id = UUID(await api.registered())
        sender = BounceAddresses(address, api.service.keyring).of(registration_id, 1)
        async with bounces(theirs) as listening:
            assert listening.bounces is not None
            async with MailExchanger(listening.bounces.port) as exchanger:
                assert await exchanger.notify(sender) == 250
        await api.becomes(str(registration_id), status="CANCELLED", mail="BOUNCED")


READING = (
    ["events", "list", "--json"],
    ["events", "export", "-"],
    ["events", "replay", "--dry-run"],
    ["projections", "list"],
    ["projections", "parked", "list"],
    ["mail", "list", "--state", "all"],
    ["mail", "list", "--state", "stray"],
    ["mail", "suppressions"],
)


def test_a_reader_runs_every_command_that_only_looks(prepared: str, command: Command) -> None:
    registration_id = asyncio.run(_one_registration(prepared))
    url = as_role(prepared, "reader")

    done = {" ".join(one): command(*one, DATABASE_URL=url) for one in (*READING, ["events", "show", registration_id])}

    assert {name: one.err for name, one in done.items() if one.code} == {}
    refused = command("mail", "retry", registration_id, DATABASE_URL=url, MASTER_KEY=MASTER_KEY)
    assert (refused.code, "permission denied" in refused.err.lower()) == (2, True), refused


async def _one_registration(dsn: str) -> str:
    async with open_api(dsn) as api:
        return await api.registered()


async def test_an_auditor_verifies_the_log(owned: str) -> None:
    await _one_registration(owned)
    patience = timedelta(seconds=10)
    found = await verify(as_role(owned, "auditor"), statement_timeout=patience)
    async with await connect(
        as_role(owned, "auditor"), name="test", statement_timeout=patience, read_only=True
    ) as connection:
        searched = await connection.execute(b"SELECT count(*) FROM read_audit.entries")
        assert (await current_role(connection)).name == "registrar_auditor"

    [(head,)] = await query(owned, "SELECT position FROM head")
    assert (found.found, found.upto == head > 0) == (0, True)
    assert searched is not None


@pytest.mark.parametrize("role", ["api", "worker", "process"])
async def test_a_process_starts_where_its_master_key_was_never_noted(owned: str, role: str) -> None:
    """As after an upgrade, of a release that did not note keys; noting them is the owner's."""
    keys = MasterKeys(bytes.fromhex(MASTER_KEY))
    await keep_root_secret(owned, MASTER_KEY)
    await query(owned, "DELETE FROM master_keys")
    patience = timedelta(seconds=10)

    async with await connect(as_role(owned, role), name="test", statement_timeout=patience) as connection:
        root = await open_root_secret(connection, keys)

    async with await connect(owned, name="test", statement_timeout=patience) as connection:
        assert await open_root_secret(connection, keys) == root
    assert await query(owned, "SELECT count(*) FROM master_keys") == [(1,)]


# --- Saying so ----------------------------------------------------------------------------------


def test_the_sql_that_is_printed_makes_the_roles(dsn: str, command: Command) -> None:
    each: dict[str, Any] = {"DATABASE_URL": dsn, "MASTER_KEY": MASTER_KEY}
    printed = command("database", "roles", "--prefix", "printed_", **each)
    assert printed.code == 0
    assert printed.out.startswith("BEGIN;\nCREATE ROLE")
    with psycopg.connect(dsn, autocommit=True) as connection:
        try:
            connection.execute(printed.out.encode())
            again = command("database", "roles", "--prefix", "printed_", "--apply", "--reason", "ticket 4711", **each)
            assert (again.code, "printed_auditor" in again.out) == (0, True), again
            assert asyncio.run(acts_of(dsn)) == [("apply-database-roles", "ticket 4711")]
            assert "CREATE ROLE" not in command("database", "roles", "--prefix", "printed_", **each).out
        finally:
            for role in ALL:
                connection.execute(f"REASSIGN OWNED BY printed_{role} TO CURRENT_USER".encode())
                connection.execute(f"DROP OWNED BY printed_{role}".encode())
                connection.execute(f"DROP ROLE printed_{role}".encode())


def test_who_may_not_change_webhooks_is_told_before_anything_is_called_or_recorded(
    prepared: str, command: Command
) -> None:
    each = {"WEBHOOKS": "app=https://app.invalid", "WEBHOOK_SECRETS": f"app=whsec_{'A' * 32}"}

    refused = command("webhooks", "test", "app", DATABASE_URL=as_role(prepared, "worker"), **each)
    called = command("webhooks", "test", "app", DATABASE_URL=as_role(prepared, "api"), **each)

    assert (refused.code, "permission denied for table webhooks" in refused.err) == (2, True), refused
    assert (called.code, "has not taken it" in called.out) == (1, True), called
    assert len(asyncio.run(acts_of(prepared))) == 1


def test_who_may_not_make_roles_is_told_what_to_do(prepared: str, command: Command) -> None:
    each = {"DATABASE_URL": as_role(prepared, "process"), "MASTER_KEY": MASTER_KEY}

    refused = command("database", "roles", "--apply", "--prefix", "other_", **each)

    assert (refused.code, "pipe what" in refused.err) == (2, True), refused


@pytest.mark.parametrize(
    ("role", "state", "says"),
    [
        (None, "warn", "a superuser"),
        *((role, "ok", "can change nothing that was recorded") for role in ALL),
    ],
)
def test_doctor_says_which_role_it_runs_as(
    prepared: str, command: Command, role: str | None, state: str, says: str
) -> None:
    url = prepared if role is None else as_role(prepared, role)

    done = command("doctor", "--json", DATABASE_URL=url, MASTER_KEY=MASTER_KEY)

    [found] = [one for one in done.json["checks"] if one["check"] == "role"]
    assert (found["state"], says in found["says"]) == (state, True), found
    assert role is None or f"registrar_{role}" in found["says"]


def test_doctor_tells_an_owner_and_one_that_may_change_the_log(
    prepared: str, command: Command, administration: psycopg.Connection
) -> None:
    administration.execute("DROP ROLE IF EXISTS owner_of_tables")
    administration.execute("CREATE ROLE owner_of_tables")
    with psycopg.connect(prepared, autocommit=True) as connection:
        try:
            connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO owner_of_tables")
            connection.execute("GRANT UPDATE ON events TO owner_of_tables")
            url = f"{prepared}&options={quote('-c role=owner_of_tables')}"
            changing = command("doctor", "--json", DATABASE_URL=url, MASTER_KEY=MASTER_KEY)
            connection.execute("ALTER TABLE events OWNER TO owner_of_tables")
            owning = command("doctor", "--json", DATABASE_URL=url, MASTER_KEY=MASTER_KEY)
        finally:
            connection.execute("REASSIGN OWNED BY owner_of_tables TO CURRENT_USER")
            connection.execute("DROP OWNED BY owner_of_tables")
            administration.execute("DROP ROLE owner_of_tables")

    says = [
        next((one["state"], one["says"]) for one in done.json["checks"] if one["check"] == "role")
        for done in (changing, owning)
    ]
    assert says[0] == ("warn", "owner_of_tables, which may UPDATE recorded events")
    assert says[1][0] == "ok"
    assert "owns the tables" in says[1][1]
