"""`registrar audit verify`: whatever a superuser alters is found, and the first position that is not as recorded."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from infrastructure.audit import stretches, verification
from infrastructure.audit.note_keys import SigningKey
from infrastructure.audit.notes import checkpoint_text, signed_note
from infrastructure.audit.publishing import CheckpointDirectory
from infrastructure.audit.roots import Checkpoint, Claim
from infrastructure.audit.rows import events_between
from infrastructure.audit.verification import Verified, verify
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.store import EventStore
from infrastructure.postgres.connection import Connection, connect
from tests.integration.conftest import Command
from tests.support.facts import MovableClock
from tests.support.log import keep_root_secret
from tests.support.read_models import rows
from tests.support.tampering import Alteration, Superuser, checkpoint_at, record_blocks, remember_digests

TIMEOUT = timedelta(seconds=10)


@pytest.fixture
async def log_of_blocks(store: EventStore, connection: Connection) -> int:
    """A log of several hundred events in blocks of one to seven; its end."""
    return await record_blocks(store, registrations=40)


@pytest.fixture
async def superuser(log_of_blocks: int, dsn: str) -> AsyncIterator[Superuser]:
    async with await connect(dsn, name="superuser", statement_timeout=timedelta(minutes=1)) as session:
        found = Superuser(session, random.Random(12))  # noqa: S311 - repeatable
        await found.prepare()
        yield found


async def verified(dsn: str, *checkpoints: Checkpoint, since_checkpoint: bool = False) -> Verified:
    claims = sorted(map(Claim, checkpoints))
    return await verify(dsn, statement_timeout=TIMEOUT, claims=claims, since_checkpoint=since_checkpoint)


async def test_a_log_as_it_was_recorded_is_verified_to_its_end(
    dsn: str, log_of_blocks: int, connection: Connection
) -> None:
    found = await verified(dsn, await checkpoint_at(connection, 0.5), await checkpoint_at(connection))

    assert (found.found, found.since, found.upto, found.events) == (0, 0, log_of_blocks, log_of_blocks)
    assert found.checkpoints.compared == 2
    assert found.checkpoints.last == await checkpoint_at(connection)


async def test_an_empty_log_is_as_it_was_recorded(dsn: str) -> None:
    found = await verified(dsn)

    assert (found.found, found.upto, found.blocks) == (0, 0, 0)


async def test_the_digest_of_an_event_is_that_of_the_database(connection: Connection, log_of_blocks: int) -> None:
    theirs = await rows(connection, "SELECT event_digest(e) FROM events AS e ORDER BY notification_id")

    ours = await events_between(connection, None, log_of_blocks)

    assert [digest for _, _, digest in ours] == [digest for (digest,) in theirs]


@pytest.mark.timeout(900)  # for the thousand of --full-size
async def test_random_alterations_by_a_superuser_are_all_caught(
    dsn: str, superuser: Superuser, connection: Connection, full_size: bool
) -> None:
    checkpoints = [await checkpoint_at(connection, share) for share in (0.3, 0.6, 1.0)]
    await remember_digests(connection)
    alterations = 1000 if full_size else 2 * len(superuser.ways)
    for number in range(alterations):
        altered = await superuser.alter(superuser.ways[number % len(superuser.ways)])

        found = await verified(dsn, *checkpoints)

        assert found.found, altered
        assert_names(found, altered)
        if altered.needs_checkpoint:
            assert not (await verified(dsn)).found, altered
        await superuser.put_back()
    assert not (await verified(dsn, *checkpoints)).found


def assert_names(found: Verified, altered: Alteration) -> None:
    """The first finding begins with the first position that is not as recorded; that of a rewritten chain, which fits
    itself, is the stretch between two checkpoints."""
    first = found.findings[0]
    if altered.what != "rewritten chain":
        assert first.first == altered.first, (altered, found.findings)
        return
    assert first.kind == "checkpoint"
    before, after = found.checkpoints.last, found.checkpoints.disagrees
    assert after is not None
    assert (before.position if before else 0) < altered.first <= after.position
    assert first.first <= altered.first <= first.last


async def test_with_the_digests_that_were_noted_the_very_event_is_named(
    dsn: str, superuser: Superuser, connection: Connection
) -> None:
    await remember_digests(connection)
    for way in superuser.ways[:10]:
        altered = await superuser.alter(way)

        found = await verified(dsn)

        assert [one[1:3] for one in found.findings[:1]] == [(altered.first, altered.first)], (altered, found.findings)
        await superuser.put_back()


async def test_since_the_checkpoint_only_what_is_later_is_read(
    dsn: str, superuser: Superuser, connection: Connection, log_of_blocks: int
) -> None:
    half = await checkpoint_at(connection, 0.5)

    found = await verified(dsn, half, since_checkpoint=True)

    assert (found.found, found.since, found.upto) == (0, half.position, log_of_blocks)
    assert found.events == log_of_blocks - half.position

    await connection.execute("SET session_replication_role = replica")
    await connection.execute("UPDATE events SET actor = 'x' WHERE notification_id = %s", (half.position + 1,))
    assert (await verified(dsn, half, since_checkpoint=True)).findings[0].first == half.position + 1


async def test_since_a_checkpoint_that_does_not_agree_no_event_is_taken_for_verified(
    dsn: str, superuser: Superuser, connection: Connection
) -> None:
    early, late = await checkpoint_at(connection, 0.2), await checkpoint_at(connection, 0.8)
    altered = await superuser.alter("rewritten chain")
    while not early.position < altered.first <= late.position:
        await superuser.put_back()
        altered = await superuser.alter("rewritten chain")

    found = await verified(dsn, early, late, since_checkpoint=True)

    assert found.since == early.position
    assert [(one.kind, one.first, one.last) for one in found.findings] == [
        ("checkpoint", early.position + 1, late.position)
    ]


HASHES = {
    "another": "sha256(hash)",
    "none": "NULL",
    "one that is too short": "substr(hash, 2)",
    "one that is longer by the next one": "hash || sha256(hash)",
}


@pytest.mark.parametrize("hash_", HASHES.values(), ids=HASHES)
@pytest.mark.parametrize("altered_at", [0.0, 0.3, 0.7])
async def test_since_the_checkpoint_a_hash_that_was_altered_long_before_is_found(
    dsn: str, superuser: Superuser, monkeypatch: pytest.MonkeyPatch, altered_at: float, hash_: str
) -> None:
    connection = superuser.connection
    checkpoints = [await checkpoint_at(connection, share) for share in (0.2, 0.5, 0.9)]
    lasts = [last for (last,) in await rows(connection, "SELECT last_position FROM blocks ORDER BY 1")]
    altered = lasts[int(altered_at * len(lasts))]
    await connection.execute("ALTER TABLE blocks ALTER hash DROP NOT NULL")
    await connection.execute(f"UPDATE blocks SET hash = {hash_} WHERE last_position = %s".encode(), (altered,))
    monkeypatch.setattr(verification, "COMPARED", 40)

    found = await verified(dsn, *checkpoints, since_checkpoint=True)

    agree = [one for one in checkpoints if one.position < altered]
    assert found.checkpoints.last == (agree[-1] if agree else None)
    assert found.checkpoints.disagrees == checkpoints[len(agree)]
    assert [one.kind for one in found.findings][-1] == "checkpoint"


async def test_since_the_checkpoint_a_log_that_was_rewritten_and_signed_anew_is_told_by_an_older_one(
    dsn: str, superuser: Superuser, connection: Connection
) -> None:
    old = await checkpoint_at(connection, 0.8)
    while (await superuser.alter("rewritten chain")).first > old.position:
        await superuser.put_back()
    anew = await checkpoint_at(connection)

    found = await verified(dsn, old, anew, since_checkpoint=True)

    assert (found.checkpoints.last, found.checkpoints.disagrees) == (None, old)


async def test_since_the_checkpoint_no_event_before_it_is_read_again(
    dsn: str, superuser: Superuser, connection: Connection
) -> None:
    half = await checkpoint_at(connection, 0.5)
    await superuser.connection.execute("UPDATE events SET actor = 'x' WHERE notification_id = %s", (half.position,))

    assert (await verified(dsn, half, since_checkpoint=True)).found == 0
    assert (await verified(dsn, half)).findings[0].last == half.position


async def test_chunks_stretches_and_helpers_find_the_same(
    dsn: str, superuser: Superuser, monkeypatch: pytest.MonkeyPatch
) -> None:
    await superuser.alter("actor")
    await superuser.alter("deleted in the middle")
    expected = (await verified(dsn)).findings

    monkeypatch.setattr(verification, "STRETCH", 40)
    monkeypatch.setattr(stretches, "CHUNK_EVENTS", 7)
    monkeypatch.setattr("infrastructure.audit.rows.CHUNK_EVENTS", 7)
    assert (await verified(dsn)).findings == expected

    monkeypatch.setattr(verification, "MANY_EVENTS", 1)
    monkeypatch.setattr(verification, "MANY_LATER_EVENTS", 1)
    assert (await verified(dsn)).findings == expected
    assert (await verified(dsn, since_checkpoint=True)).findings == expected


async def test_positions_that_no_service_would_give_end_no_verification(dsn: str, superuser: Superuser) -> None:
    connection = superuser.connection
    await connection.execute("UPDATE events SET notification_id = -5 WHERE notification_id = 7")
    await connection.execute("UPDATE events SET notification_id = %s WHERE notification_id = 8", (2**62,))
    await connection.execute(
        "UPDATE blocks SET last_position = %s WHERE last_position = (SELECT max(last_position) FROM blocks)", (2**61,)
    )

    found = await verified(dsn)

    assert found.findings[0].first == -5
    assert {"no block", "missing", "beyond"} <= {one.kind for one in found.findings}


async def test_the_log_grows_while_it_is_verified(dsn: str, store: EventStore) -> None:
    appending = asyncio.create_task(record_blocks(store, registrations=40))
    while not appending.done():
        assert not (await verified(dsn)).findings
    await appending


# --- As an auditor runs it ------------------------------------------------------------------------


@pytest.fixture
def audited(dsn: str, command: Command) -> Command:
    """Runs a command of the auditor on a log of some hundred events."""

    async def fill() -> None:
        await keep_root_secret(dsn, "ab" * 32)
        store = EventStore(dsn, codec=EventCodec(), clock=MovableClock())
        await store.open()
        await record_blocks(store, registrations=10)
        await store.close()

    asyncio.run(fill())
    return lambda *words: command("audit", *words, DATABASE_URL=dsn)


def alter(dsn: str, statement: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("ALTER TABLE events DISABLE TRIGGER ALL")
        connection.execute(statement.encode())


def test_a_log_that_is_as_it_was_recorded_is_said_to_be(audited: Command) -> None:
    done = audited("verify")

    assert done.code == 0, done.err
    assert "as they were recorded" in done.out
    assert audited("verify", "--json").json["as_recorded"] is True


def test_each_finding_is_a_plain_line_and_the_exit_code_is_1(audited: Command, dsn: str) -> None:
    alter(dsn, "DELETE FROM events WHERE notification_id = 20")
    alter(dsn, "UPDATE events SET actor = 'nobody' WHERE notification_id = 1")

    done = audited("verify")

    assert done.code == 1
    first, second, *_ = done.out.splitlines()
    assert "not what was recorded: " in first
    assert second == "position 20 is not what was recorded: no event is there"
    document = json.loads(audited("verify", "--json").out)
    assert document["findings"] == 2
    assert document["first_bad_position"] == 1
    assert document["listed"][1]["kind"] == "missing"


@pytest.mark.parametrize(("position", "named"), [("position", True), ("position - 30", False)])
def test_a_restore_is_named_beside_the_checkpoints_of_the_log_of_before(
    command: Command, audited: Command, dsn: str, tmp_path: Path, position: str, named: bool
) -> None:
    key = SigningKey("registrar/0011223344556677", bytes(range(32)))
    of_before = Checkpoint(10_000, 20_000, bytes(32))
    now = datetime(2026, 11, 28, 17, 0, tzinfo=UTC)
    note = signed_note(checkpoint_text(key.name, of_before, now), [key], now)
    CheckpointDirectory(tmp_path).publish(note, now, key.verifiers)
    alter(dsn, f"INSERT INTO restores (position) SELECT {position} FROM head")
    words = {"DATABASE_URL": dsn, "CHECKPOINT_DIR": str(tmp_path)}

    done = command("audit", "verify", **words)

    assert done.code == 1
    assert "the log has been cut off" in done.out
    assert ("notes that it was restored up to position" in done.err) is named
    assert bool(command("audit", "verify", "--json", **words).json["restores"]) is named


def test_a_database_that_is_away_is_exit_code_2(command: Command) -> None:
    done = command("audit", "verify", DATABASE_URL="postgresql://127.0.0.1:1/nothing")

    assert done.code == 2
    assert len(done.err.splitlines()) == 1
