"""`registrar audit verify` tells of values that no service could have recorded, and does not end with an error."""

from __future__ import annotations

import random
from datetime import timedelta

import pytest

from infrastructure.audit import stretches, verification
from infrastructure.audit.roots import Claim
from infrastructure.audit.verification import verify
from infrastructure.event_store.store import EventStore
from infrastructure.postgres.connection import Connection, connect
from tests.support.read_models import rows
from tests.support.tampering import Superuser, checkpoint_at, record_blocks

TIMEOUT = timedelta(seconds=10)


@pytest.mark.parametrize("time", ["infinity", "-infinity", "294276-12-31 23:59:59+00", "4713-01-01 00:00:00+00 BC"])
@pytest.mark.parametrize("alone", [True, False], ids=["in a block of one", "in a block of several"])
async def test_a_time_that_no_clock_shows_is_named(
    dsn: str, store: EventStore, connection: Connection, time: str, alone: bool
) -> None:
    await record_blocks(store, registrations=10)
    sizes = "SELECT first_position, last_position FROM blocks WHERE (first_position = last_position) = %s ORDER BY 1"
    [first, last] = (await rows(connection, sizes, alone))[0]
    await connection.execute("ALTER TABLE events DISABLE TRIGGER ALL")
    await connection.execute("UPDATE events SET recorded_at = %s WHERE notification_id = %s", (time, last))

    found = await verify(dsn, statement_timeout=TIMEOUT)

    assert first <= found.findings[0].first <= last <= found.findings[0].last


@pytest.mark.parametrize("column", ["hash", "first_position"])
async def test_a_block_without_what_it_must_have_is_named(
    dsn: str, store: EventStore, connection: Connection, column: str
) -> None:
    await record_blocks(store, registrations=10)
    [[first, last]] = await rows(
        connection, "SELECT first_position, last_position FROM blocks ORDER BY 1 OFFSET 3 LIMIT 1"
    )
    await connection.execute("ALTER TABLE blocks DISABLE TRIGGER ALL")
    await connection.execute(f"ALTER TABLE blocks ALTER {column} DROP NOT NULL".encode())
    await connection.execute(f"UPDATE blocks SET {column} = NULL WHERE last_position = %s".encode(), (last,))

    found = await verify(dsn, statement_timeout=TIMEOUT)

    assert found.findings[0].first == first


async def test_a_checkpoint_that_does_not_agree_is_listed_however_many_findings_there_are(
    dsn: str, store: EventStore, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await record_blocks(store, registrations=10)
    checkpoint = await checkpoint_at(connection)
    async with await connect(dsn, name="superuser", statement_timeout=timedelta(minutes=1)) as session:
        superuser = Superuser(session, random.Random(3))  # noqa: S311 - repeatable
        await superuser.prepare()
        await superuser.alter("rewritten chain")
        await session.execute("UPDATE events SET actor = 'x'")
    monkeypatch.setattr(verification, "MOST_KEPT", 5)
    monkeypatch.setattr(stretches, "MOST_KEPT", 5)

    found = await verify(dsn, statement_timeout=TIMEOUT, claims=[Claim(checkpoint)])

    assert found.found > 5
    assert [one.kind for one in found.findings] == ["altered"] * 4 + ["checkpoint"]
