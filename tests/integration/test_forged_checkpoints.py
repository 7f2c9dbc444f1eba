"""A superuser writes the tables of the checkpoints, or they are lost: none of it is signed, published or believed."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from infrastructure.audit import outbox
from infrastructure.audit.known import Claims, known_checkpoints
from infrastructure.audit.publishing import CheckpointDirectory
from infrastructure.audit.standing import standing_of
from infrastructure.audit.verification import verify
from infrastructure.event_store.store import EventStore
from infrastructure.postgres.connection import Connection
from tests.integration.test_checkpoints import (
    checked,
    checkpointing,
    file_of_the_day,
    recorded,
    signed,
    signed_upto,
    until_published,
    until_signed,
)
from tests.support.facts import eventually
from tests.support.log import query

TIMEOUT = timedelta(seconds=10)
FORGED = """
    INSERT INTO checkpoints (size, position, note, signed_at, in_directory, at_url)
    VALUES (%s, %s, %s, 'infinity', false, false)
"""


async def some_checkpoints(store: EventStore, dsn: str, directory: Path, count: int = 3) -> None:
    async with checkpointing(dsn, directory):
        for _ in range(count):
            await until_signed(dsn, await recorded(store, 2))
        await until_published(dsn)


@pytest.mark.parametrize("size", [0, 2**62])
async def test_a_row_that_nobody_has_signed_is_not_published_and_holds_up_nothing(
    store: EventStore, dsn: str, tmp_path: Path, connection: Connection, size: int
) -> None:
    posted = list[bytes]()

    async def post(note: bytes) -> str | None:
        posted.append(note)
        return None

    await some_checkpoints(store, dsn, tmp_path)
    latest = (tmp_path / "checkpoint").read_text()
    text = latest.rpartition("\n\n")[0].replace(latest.split("\n")[1], str(size), 1)
    await query(dsn, FORGED, size, 1, f"{text}\n\n— nobody AAAAAAAA\n")
    with capture_logs() as logs:
        async with checkpointing(dsn, tmp_path, post):
            position = await recorded(store, 2)

            async def is_out() -> bool:
                standing = await standing_of(connection)
                return (standing.position, standing.unpublished) == (position, 1)

            await eventually(is_out)

    assert [one["size"] for one in logs if one["event"] == "checkpoint.forged"]
    assert "nobody" not in (tmp_path / "checkpoint").read_text() + file_of_the_day(tmp_path).read_text()
    assert not [one for one in posted if b"nobody" in one]
    assert posted
    assert f"position {position}\n" in (tmp_path / "checkpoint").read_text()
    known = await known_checkpoints(
        connection, CheckpointDirectory(tmp_path), CheckpointDirectory(tmp_path).keys(), most=10
    )
    assert [one.why for one in known if one.waits] == ["no known key has signed it"]


async def test_a_forged_row_in_the_place_of_the_next_checkpoint_gives_way_to_it(
    store: EventStore, dsn: str, tmp_path: Path
) -> None:
    async with checkpointing(dsn, tmp_path):
        await until_signed(dsn, await recorded(store, 1))
        await until_published(dsn)
        with capture_logs() as logs:
            [(size,)] = await query(dsn, "SELECT max(size) + 1 FROM checkpoints")
            await query(dsn, FORGED, size, 1, "forged")
            await eventually(lambda: [one for one in logs if one["event"] == "checkpoint.forged"])
        await until_signed(dsn, await recorded(store, 1))
        await until_published(dsn)

    assert await checked(dsn, tmp_path) == (await signed(dsn), [])


async def test_an_older_checkpoint_that_is_marked_as_unpublished_does_not_become_the_latest(
    store: EventStore, dsn: str, tmp_path: Path
) -> None:
    async with checkpointing(dsn, tmp_path):
        for _ in range(3):
            await until_signed(dsn, await recorded(store, 2))
        await until_published(dsn)
        latest = (tmp_path / "checkpoint").read_text()
        await query(dsn, "UPDATE checkpoints SET in_directory = false WHERE size = (SELECT min(size) FROM checkpoints)")
        await until_published(dsn)

    assert (tmp_path / "checkpoint").read_text() == latest


async def test_a_forged_checkpoint_of_a_log_to_come_hides_no_gap(
    store: EventStore, dsn: str, connection: Connection
) -> None:
    await recorded(store, 1)
    await query(dsn, "ALTER TABLE events DISABLE TRIGGER ALL")
    await query(dsn, "UPDATE events SET recorded_at = recorded_at - interval '2 minutes'")
    await query(dsn, "INSERT INTO checkpoints (size, position, note) VALUES (1, %s, 'x'), (%s, 1, 'y')", 2**62, 2**62)

    found = await standing_of(connection)

    assert (found.position, found.has_gap, found.status) == (0, True, "degraded")


@pytest.mark.parametrize("time", ["-infinity", "infinity"])
async def test_a_forged_time_of_signing_keeps_nothing_from_being_shown(
    dsn: str, connection: Connection, time: str
) -> None:
    await query(
        dsn,
        "INSERT INTO checkpoints (size, position, note, signed_at, in_directory) VALUES (1, 1, 'x', %s, false)",
        time,
    )

    assert (await standing_of(connection)).unpublished_seconds == 0


DAMAGES = {
    "no tiles": "DELETE FROM tree_tiles",
    "a tile cut short": "UPDATE tree_tiles SET hashes = ''",
    "another tile": "UPDATE tree_tiles SET hashes = sha256(hashes) || substr(hashes, 33)",
    "another hash": "UPDATE tree_head SET hash = sha256(hash)",
    "a smaller tree": "UPDATE tree_head SET size = 1, position = 2",
    "no tree": "UPDATE tree_head SET size = 0, position = 0, hash = sha256('')",
    "no head": "DELETE FROM tree_head",
    "a size that is none": "UPDATE tree_head SET size = -1",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
async def test_a_tree_that_was_damaged_is_made_again_and_nothing_false_is_signed(
    store: EventStore, dsn: str, tmp_path: Path, damage: str
) -> None:
    await some_checkpoints(store, dsn, tmp_path)
    await query(dsn, damage)
    async with checkpointing(dsn, tmp_path):
        await until_signed(dsn, await recorded(store, 2))
        await until_published(dsn)

    assert await checked(dsn, tmp_path) == (await signed(dsn), [])
    assert await query(dsn, "SELECT unsound FROM tree_head") == [(None,)]


async def test_a_rewritten_log_is_not_signed_though_the_tree_was_made_to_fit_it(
    store: EventStore, dsn: str, tmp_path: Path
) -> None:
    await some_checkpoints(store, dsn, tmp_path)
    before = await signed_upto(dsn)
    await query(dsn, "ALTER TABLE events DISABLE TRIGGER ALL")
    await query(dsn, "ALTER TABLE blocks DISABLE TRIGGER ALL")
    await query(dsn, "UPDATE events SET actor = 'nobody' WHERE notification_id = 1")
    previous = (await query(dsn, "SELECT sha256('')"))[0][0]
    for first, last in await query(dsn, "SELECT first_position, last_position FROM blocks ORDER BY 1"):
        [(previous,)] = await query(
            dsn,
            "UPDATE blocks SET hash = (SELECT block_hash(%b, %s::bigint, min(recorded_at),"
            " string_agg(event_digest(e), ''::bytea ORDER BY notification_id)) FROM events AS e"
            " WHERE notification_id BETWEEN %s AND %s) WHERE last_position = %s RETURNING hash",
            *(previous, first, first, last, last),
        )
    await query(dsn, "UPDATE head SET hash = %b", previous)
    await query(dsn, "DELETE FROM tree_tiles")
    await query(dsn, "UPDATE tree_head SET size = 0, position = 0, hash = sha256('')")
    async with checkpointing(dsn, tmp_path):
        await recorded(store, 1)

        async def is_said() -> bool:
            return bool(await query(dsn, "SELECT 1 FROM tree_head WHERE unsound LIKE '%%not the one that was signed'"))

        await eventually(is_said)

    assert await signed_upto(dsn) == before


async def test_of_what_is_published_the_latest_and_the_last_of_each_day_are_kept(
    store: EventStore, dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await some_checkpoints(store, dsn, tmp_path, count=5)
    sizes = [size for (size,) in await query(dsn, "SELECT size FROM checkpoints ORDER BY size")]
    await query(dsn, "UPDATE checkpoints SET signed_at = signed_at - interval '3 days' WHERE size <= %s", sizes[2])
    monkeypatch.setattr(outbox, "KEPT", 1)
    monkeypatch.setattr(outbox, "THIN_AFTER", 1)
    async with checkpointing(dsn, tmp_path):
        await until_signed(dsn, await recorded(store, 2))

        async def is_thinned() -> bool:
            left = [size for (size,) in await query(dsn, "SELECT size FROM checkpoints ORDER BY size")]
            return left[0] == sizes[2] and len(left) == 2

        await eventually(is_thinned)

    notes = list(CheckpointDirectory(tmp_path).notes())
    assert await checked(dsn, tmp_path) == (len(notes), [])
    assert len(notes) > len(sizes)


async def test_notes_of_many_files_are_compared_in_the_order_of_their_trees(
    store: EventStore, dsn: str, tmp_path: Path, connection: Connection
) -> None:
    """As after a clock that went back over midnight, and with a file that grows meanwhile."""
    await some_checkpoints(store, dsn, tmp_path, count=6)
    place = CheckpointDirectory(tmp_path)
    notes, day = list(place.notes()), file_of_the_day(tmp_path)
    day.unlink()
    for name, some in (("2026-01-01", notes[3:]), ("2026-01-02", notes[1:3]), ("2026-01-03", [*notes[:1], notes[4]])):
        (tmp_path / f"{name}.checkpoints").write_text("".join(f"{note}\n" for note in some))
    await query(dsn, "DELETE FROM checkpoints")

    claims = await Claims.of(connection, place, place.keys())
    with (tmp_path / "2026-01-03.checkpoints").open("a") as opened:
        opened.write(notes[0].replace("\n", "\n9", 1))
    sizes = [claim.checkpoint.size for claim in claims]
    found: Any = await verify(dsn, statement_timeout=TIMEOUT, claims=claims, is_signed=claims.is_signed)

    assert sizes == sorted(sizes)
    assert (found.checkpoints.compared, found.found, found.checkpoints.unsigned) == (len(notes), 0, 0)
