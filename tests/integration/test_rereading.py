"""What the checkpointer has signed is read again: whatever a superuser does to it is found, and is over once mended."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from infrastructure.audit import rereading, sound
from infrastructure.audit.standing import standing_of
from infrastructure.event_store.store import EventStore
from infrastructure.postgres.connection import Connection, connect
from tests.integration.test_checkpoints import checkpointing, recorded, signed_upto, until_published, until_signed
from tests.support.facts import eventually
from tests.support.log import query
from tests.support.tampering import Superuser, record_blocks

ONCE = timedelta(milliseconds=20)
FOUND_OTHERWISE = {"added at the end"}  # no append succeeds then: its position is taken


@pytest.fixture(autouse=True)
def small_stretches_in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sound, "STRETCH", 10)
    monkeypatch.setattr(rereading, "REST", 1)


@pytest.fixture
async def superuser(dsn: str, store: EventStore) -> AsyncIterator[Superuser]:
    await record_blocks(store, registrations=5)
    async with await connect(dsn, name="superuser", statement_timeout=timedelta(seconds=30)) as session:
        yield Superuser(session, random.Random(5))  # noqa: S311 - repeatable


async def found(connection: Connection) -> str:
    async def is_found() -> bool:
        return (await standing_of(connection)).unsound is not None

    await eventually(is_found)
    return str((await standing_of(connection)).unsound)


async def until_sound(connection: Connection) -> None:
    async def is_sound() -> bool:
        return (await standing_of(connection)).unsound is None

    await eventually(is_sound)


async def test_whatever_is_done_to_what_was_signed_is_found_and_over_once_it_is_put_back(
    superuser: Superuser,
    store: EventStore,
    dsn: str,
    connection: Connection,
    tmp_path: Path,
) -> None:
    async with checkpointing(dsn, tmp_path, read_again=ONCE):
        await until_signed(dsn, await store.head())
        await superuser.prepare()
        ways = set(superuser.ways) - FOUND_OTHERWISE
        assert len(ways) > 15
        for way in sorted(ways):
            await superuser.alter(way)
            assert await found(connection), way
            await superuser.put_back()
            await until_sound(connection)


async def test_nothing_is_signed_by_anybody_while_something_that_was_is_another(
    superuser: Superuser,
    store: EventStore,
    dsn: str,
    connection: Connection,
    tmp_path: Path,
) -> None:
    before = await store.head()
    async with checkpointing(dsn, tmp_path, read_again=ONCE):
        await until_signed(dsn, before)
        await until_published(dsn)
        await superuser.prepare()
        altered = await superuser.alter("byte of the state")
        said = await found(connection)
        after = await recorded(store, 3)
    assert f" {altered.of.last} " in said
    for read_again in (ONCE, None):
        async with checkpointing(dsn, tmp_path, read_again=read_again):  # the next leader
            assert await found(connection) == said
            after = await recorded(store, 1)
    assert await signed_upto(dsn) == before

    await query(
        dsn,
        f"UPDATE events AS e SET state = k.state FROM kept_events AS k"
        f" WHERE k.notification_id = e.notification_id AND e.notification_id = {altered.first}",
    )
    async with checkpointing(dsn, tmp_path):
        await until_signed(dsn, after)
    await until_sound(connection)
