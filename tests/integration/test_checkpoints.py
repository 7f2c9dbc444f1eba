"""The checkpointer on real PostgreSQL: what it signs, what it never signs, and how it publishes what it could not."""

from __future__ import annotations

import asyncio
import resource
import signal
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from infrastructure.audit import checkpointer, known
from infrastructure.audit.checkpointer import Checkpointer
from infrastructure.audit.known import Claims
from infrastructure.audit.notes import open_note
from infrastructure.audit.outbox import Post
from infrastructure.audit.publishing import CheckpointDirectory
from infrastructure.audit.rows import ends
from infrastructure.audit.verification import verify
from infrastructure.audit.walk import Ends
from infrastructure.audit.witness import Witnesses
from infrastructure.event_store.store import EventStore
from infrastructure.followers.leadership import lead
from infrastructure.postgres.connection import Connection, connect
from tests.support.facts import eventually
from tests.support.log import append, happened, query

SEED = bytes(range(32))
SOON = timedelta(milliseconds=20)


@asynccontextmanager
async def checkpointing(
    dsn: str,
    directory: Path | None,
    post: Post | None = None,
    *,
    every: timedelta = SOON,
    read_again: timedelta | None = None,
    seeds: Sequence[bytes] = (SEED,),
) -> AsyncIterator[None]:
    checkpointer = Checkpointer(
        seeds=lambda: seeds,
        directory=CheckpointDirectory(directory) if directory else None,
        post=post,
        witnesses=Witnesses(()),
        read_again=read_again,
        every=every,
        look=SOON,
    )
    task = asyncio.create_task(lead(checkpointer, dsn))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def signed_upto(dsn: str) -> int:
    return int((await query(dsn, "SELECT coalesce(max(position), 0) FROM checkpoints"))[0][0])


async def signed(dsn: str) -> int:
    return int((await query(dsn, "SELECT count(*) FROM checkpoints"))[0][0])


async def until_signed(dsn: str, position: int) -> None:
    async def is_signed() -> bool:
        return await signed_upto(dsn) == position

    await eventually(is_signed)


async def until_published(dsn: str) -> None:
    async def is_published() -> bool:
        waiting = await query(dsn, "SELECT 1 FROM checkpoints WHERE NOT (in_directory AND at_url)")
        return not waiting and bool(await signed_upto(dsn))

    await eventually(is_published)


async def checked(dsn: str, directory: Path) -> tuple[int, list[str]]:
    """How many checkpoints are known, and what `audit verify` finds with them."""
    place = CheckpointDirectory(directory)
    async with await connect(dsn, name="test", statement_timeout=timedelta(seconds=10)) as connection:
        claims = await Claims.of(connection, place, place.keys())
    result = await verify(dsn, statement_timeout=timedelta(seconds=10), claims=claims, is_signed=claims.is_signed)
    return result.checkpoints.compared, [one.kind for one in result.findings]


def file_of_the_day(directory: Path) -> Path:
    (day,) = directory.glob("*.checkpoints")
    return day


async def recorded(store: EventStore, count: int) -> int:
    position = 0
    for _ in range(count):
        position = await append(store, happened(), happened())
    return position


async def test_each_checkpoint_that_was_published_agrees_with_the_log(
    store: EventStore, dsn: str, tmp_path: Path
) -> None:
    async with checkpointing(dsn, tmp_path):
        for _ in range(3):
            await until_signed(dsn, await recorded(store, 3))
        await until_published(dsn)
    async with checkpointing(dsn, tmp_path):  # the next leader goes on
        await until_signed(dsn, await recorded(store, 300))
        await until_published(dsn)

    count, findings = await checked(dsn, tmp_path)

    assert count >= 4
    assert findings == []
    latest = (await query(dsn, "SELECT note FROM checkpoints ORDER BY size DESC LIMIT 1"))[0][0]
    assert (tmp_path / "checkpoint").read_text() == latest


async def test_all_checkpoints_of_a_past_day_are_known_and_looked_at_beside_the_loop(
    store: EventStore, dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with checkpointing(dsn, tmp_path):
        for _ in range(3):
            await until_signed(dsn, await recorded(store, 1))
        await until_published(dsn)
    file_of_the_day(tmp_path).rename(tmp_path / "2020-01-31.checkpoints")
    many = await signed(dsn)
    await query(dsn, "DELETE FROM checkpoints")
    threads = set[int]()

    def opened(*of: Any) -> str:
        threads.add(threading.get_ident())
        return open_note(*of)

    monkeypatch.setattr(known, "open_note", opened)

    assert await checked(dsn, tmp_path) == (many, [])
    assert threads
    assert threading.get_ident() not in threads


async def test_a_first_pass_over_a_long_log_ends_with_one_checkpoint(
    store: EventStore, dsn: str, tmp_path: Path
) -> None:
    await append(store, *(happened() for _ in range(2_500)))
    position = await recorded(store, 400)

    async with checkpointing(dsn, tmp_path):
        await until_signed(dsn, position)
        await until_published(dsn)

    assert await checked(dsn, tmp_path) == (1, [])


async def test_what_was_altered_is_never_signed(store: EventStore, dsn: str, tmp_path: Path) -> None:
    async with checkpointing(dsn, tmp_path):
        before = await recorded(store, 5)
        await until_signed(dsn, before)
    await recorded(store, 5)
    await query(dsn, "ALTER TABLE events DISABLE TRIGGER ALL")
    await query(dsn, f"UPDATE events SET state = '[]' WHERE notification_id = {before + 3}")
    async with checkpointing(dsn, tmp_path):

        async def is_said() -> bool:
            return bool(await query(dsn, "SELECT 1 FROM tree_head WHERE unsound IS NOT NULL"))

        await eventually(is_said)
        await recorded(store, 1)
        found = (await query(dsn, "SELECT unsound FROM tree_head"))[0][0]

    assert f"positions {before + 3} to {before + 4} are not what was recorded" in found
    assert await signed_upto(dsn) == before


async def test_what_was_altered_is_not_read_at_each_look_however_much_is_unsigned(
    store: EventStore, dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, follows = 0, 0
    follow = Checkpointer._follow

    async def look(connection: Connection) -> Ends:
        nonlocal looks
        looks += 1
        return await ends(connection)

    async def counted(self: Checkpointer, *rest: Any) -> None:
        nonlocal follows
        follows += 1
        await follow(self, *rest)

    monkeypatch.setattr(checkpointer, "ends", look)
    monkeypatch.setattr(Checkpointer, "_follow", counted)
    monkeypatch.setattr(checkpointer, "MANY_EVENTS", 5)
    await recorded(store, 5)
    await query(dsn, "ALTER TABLE events DISABLE TRIGGER ALL")
    await query(dsn, "UPDATE events SET state = '[]' WHERE notification_id = 1")
    async with checkpointing(dsn, tmp_path, every=timedelta(hours=1)):
        await eventually(lambda: looks > 6)

    assert follows == 1


async def test_a_tail_that_was_cut_off_is_found(store: EventStore, dsn: str, tmp_path: Path) -> None:
    async with checkpointing(dsn, tmp_path):
        end = await recorded(store, 5)
        await until_signed(dsn, end)
        await until_published(dsn)
        await query(dsn, "ALTER TABLE events DISABLE TRIGGER ALL")
        await query(dsn, "ALTER TABLE blocks DISABLE TRIGGER ALL")
        await query(
            dsn,
            f"WITH cut AS (DELETE FROM events WHERE notification_id > {end - 2} RETURNING 1),"
            f" cut_blocks AS (DELETE FROM blocks WHERE last_position > {end - 2} RETURNING 1)"
            f" UPDATE head SET position = {end - 2},"
            f" hash = (SELECT hash FROM blocks WHERE last_position = {end - 2})",
        )

        async def is_said() -> bool:
            return bool(await query(dsn, "SELECT 1 FROM tree_head WHERE unsound LIKE 'the log was cut off%'"))

        await eventually(is_said)
    _, findings = await checked(dsn, tmp_path)
    assert "cut" in findings


async def test_an_address_that_is_away_holds_up_nothing_and_is_caught_up(
    store: EventStore, dsn: str, tmp_path: Path
) -> None:
    away, taken = True, list[bytes]()

    async def post(note: bytes) -> str | None:
        if away:
            return "no connection"
        taken.append(note)
        return None

    async with checkpointing(dsn, tmp_path, post):
        for _ in range(3):
            position = await recorded(store, 2)
            await until_signed(dsn, position)

        async def is_written() -> bool:
            return not await query(dsn, "SELECT 1 FROM checkpoints WHERE NOT in_directory")

        await eventually(is_written)
        assert await query(dsn, "SELECT count(*) FROM checkpoints WHERE at_url") == [(0,)]
        away = False
        await until_published(dsn)

    notes = [note for (note,) in await query(dsn, "SELECT note FROM checkpoints ORDER BY size")]
    assert [one.decode() for one in taken] == notes
    assert len(notes) >= 3


async def test_a_directory_that_is_full_holds_up_nothing_and_is_caught_up(
    store: EventStore, dsn: str, tmp_path: Path
) -> None:
    """The limit of this process on the size of files fails writes as a full disk does: after a part of them."""
    async with checkpointing(dsn, tmp_path):
        await until_signed(dsn, await recorded(store, 2))
        await until_published(dsn)
        day = file_of_the_day(tmp_path)
        whole = day.read_bytes()
        written = await query(dsn, "SELECT count(*) FROM checkpoints WHERE in_directory")
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 50, limits[1]))
            for _ in range(3):
                await until_signed(dsn, await recorded(store, 2))
            assert await query(dsn, "SELECT count(*) FROM checkpoints WHERE in_directory") == written
            assert day.read_bytes() == whole
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)
        await until_published(dsn)

    assert await checked(dsn, tmp_path) == (await signed(dsn), [])


@pytest.mark.parametrize("torn", [1, 60, 150])
async def test_what_was_published_and_not_noted_is_published_again(
    store: EventStore, dsn: str, tmp_path: Path, torn: int
) -> None:
    """As kill -9 leaves it between the file and the row, with a torn end."""
    async with checkpointing(dsn, tmp_path):
        await until_signed(dsn, await recorded(store, 2))
        await until_published(dsn)
    day = file_of_the_day(tmp_path)
    day.write_bytes(day.read_bytes() + day.read_bytes()[:torn])
    await query(dsn, "UPDATE checkpoints SET in_directory = false")
    async with checkpointing(dsn, tmp_path):
        await until_signed(dsn, await recorded(store, 2))
        await until_published(dsn)

    assert await checked(dsn, tmp_path) == (await signed(dsn), [])
