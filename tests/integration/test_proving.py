"""`audit prove`: what is written is accepted by the auditor's program and by others, and nothing false is written."""

from __future__ import annotations

import asyncio
import json
import random
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import metamorphic_log
import pytest
from registrar_verify import Key, Refused, leaf_hash, verify
from tlog_scales.tlog import InclusionProof

from infrastructure.event_store.chain import block_hash
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.store import EventStore
from infrastructure.postgres.clock import DatabaseClock
from infrastructure.postgres.connection import Connection, connect
from projections.audit import Audit
from tests.integration.conftest import Command
from tests.support.checkpoints import make_checkpoint
from tests.support.facts import CLIENT, REGISTRATION, otp_issued, registered, stream
from tests.support.histories import History
from tests.support.proofs import Signer, digest_of
from tests.support.read_models import follow, rows

KEY = Signer().key
KEYS = [Key.of(KEY)]
EVENTS_ABOUT = """
    SELECT position FROM read_audit.entries
    WHERE registration_id = %s AND topic <> 'mailbox.mail_decided' ORDER BY position
"""


def in_database(dsn: str, work: Callable[[EventStore, Connection], Awaitable[Any]]) -> Any:
    async def with_both() -> Any:
        store = EventStore(dsn, codec=EventCodec(), clock=DatabaseClock())
        await store.open()
        try:
            async with await connect(dsn, name="test", statement_timeout=timedelta(seconds=30)) as connection:
                return await work(store, connection)
        finally:
            await store.close()

    return asyncio.run(with_both())


@dataclass
class Recorded:
    """A history in blocks of random sizes, the read model that follows it, and a checkpoint."""

    dsn: str
    registrations: list[UUID]
    claimed: UUID

    def positions_about(self, registration_id: UUID) -> list[int]:
        async def select(_: EventStore, connection: Connection) -> list[int]:
            return [position for (position,) in await rows(connection, EVENTS_ABOUT, registration_id)]

        found: list[int] = in_database(self.dsn, select)
        return found

    def execute(self, *statements: str) -> None:
        async def execute(_: EventStore, connection: Connection) -> None:
            await connection.execute("ALTER TABLE events DISABLE TRIGGER ALL; ALTER TABLE blocks DISABLE TRIGGER ALL")
            for statement in statements:
                await connection.execute(statement.encode())

        in_database(self.dsn, execute)


async def record(store: EventStore, connection: Connection, *, registrations: int, seed: int) -> None:
    history = History(seed=seed, registrations=registrations)
    sizes = random.Random(seed)  # noqa: S311 - repeatable
    events = list(history.events)
    while events:
        size = sizes.randint(1, 7)
        await store.append(events[:size])
        events = events[size:]
    await follow(store, connection, Audit())


@pytest.fixture
def recorded(dsn: str) -> Recorded:
    async def prepare(store: EventStore, connection: Connection) -> Recorded:
        await record(store, connection, registrations=40, seed=5)
        await make_checkpoint(connection)
        ids = await rows(connection, "SELECT originator_id FROM events WHERE topic = 'registration.user_registered'")
        [(claimed,), *_] = await rows(
            connection, "SELECT registration_id FROM read_audit.entries WHERE topic = 'email_claim.email_claimed'"
        )
        return Recorded(dsn, [one for (one,) in ids], claimed)

    prepared: Recorded = in_database(dsn, prepare)
    return prepared


def proven(command: Command, recorded: Recorded, registration_id: UUID, *arguments: str) -> bytes:
    done = command("audit", "prove", str(registration_id), "--output", "-", *arguments, DATABASE_URL=recorded.dsn)
    assert done.code == 0, done.err
    return done.out.encode()


def test_every_event_about_a_registration_is_proved(recorded: Recorded, command: Command) -> None:
    types = set()
    for registration_id in recorded.registrations[:15]:
        proof = verify(proven(command, recorded, registration_id), KEYS)
        assert [event.position for event in proof.events] == recorded.positions_about(registration_id)
        types |= {event.type.partition(".")[0] for event in proof.events}
    assert types == {
        "registration",
        "mail_saga",
        "email_claim",
        "password_checks",
    }  # a mailbox's events would name other registrations


def test_others_accept_the_proof(recorded: Recorded, command: Command) -> None:
    proof = json.loads(proven(command, recorded, recorded.claimed))

    note = proof["checkpoint"]
    head = metamorphic_log.checkpoint_verify(note, [KEY])
    for block in proof["blocks"]:
        leaf = leaf_hash(hash_of(block))
        path = [bytes.fromhex(one) for one in block["inclusion"]]
        metamorphic_log.checkpoint_verify_inclusion(note, [KEY], block["index"], leaf, path)
        InclusionProof(block["index"], head.size, path).check(leaf, head.root)
        with pytest.raises(metamorphic_log.VerifyError):
            metamorphic_log.checkpoint_verify_inclusion(note, [KEY], block["index"], leaf_hash(leaf), path)


def hash_of(block: dict[str, Any]) -> bytes:
    digests = [bytes.fromhex(one) if isinstance(one, str) else digest_of(one) for one in block["events"]]
    recorded_at = datetime.fromisoformat(block["recorded_at"])
    return block_hash(bytes.fromhex(block["previous_hash"]), block["first_position"], recorded_at, digests)


def test_a_proof_shows_nothing_of_others_and_no_key(recorded: Recorded, command: Command) -> None:
    mine = recorded.claimed
    text = proven(command, recorded, mine).decode()
    assert str(mine) in text
    named = json.dumps([event for block in json.loads(text)["blocks"] for event in block["events"]])
    for other in recorded.registrations:
        if other != mine:
            assert f'"stream_id": "{other}"' not in named
    assert "wrapped" not in text


def test_a_proof_leads_to_the_checkpoint_that_is_asked_for(recorded: Recorded, command: Command) -> None:
    registration_id = recorded.registrations[0]
    [first, *_, last] = recorded.positions_about(registration_id)

    async def an_older_one(_: EventStore, connection: Connection) -> int:
        [(size,)] = await rows(connection, "SELECT count(*) FROM blocks WHERE last_position < %s", last)
        await make_checkpoint(connection, size=size)
        return int(size)

    size = in_database(recorded.dsn, an_older_one)
    assert size > 0
    done = command(
        *("audit", "prove", str(registration_id), "--output", "-", "--checkpoint", str(size)),
        DATABASE_URL=recorded.dsn,
    )
    proof = verify(done.out.encode(), KEYS)
    assert proof.checkpoint.size == size
    assert proof.events[0].position == first
    assert proof.events[-1].position < last
    assert "not covered by that checkpoint" in done.err


@pytest.mark.parametrize(
    "harm",
    [
        "DELETE FROM tree_tiles",
        "UPDATE tree_tiles SET hashes = substr(hashes, 1, 32)",
        "UPDATE tree_tiles SET hashes = set_byte(hashes, 40, get_byte(hashes, 40) # 1)",
    ],
    ids=["none", "short", "altered"],
)
def test_without_the_tiles_the_way_is_found_in_the_blocks(recorded: Recorded, command: Command, harm: str) -> None:
    before = proven(command, recorded, recorded.claimed)
    recorded.execute(harm)
    assert proven(command, recorded, recorded.claimed) == before


def test_the_file_is_for_its_owner_and_whole(recorded: Recorded, command: Command, tmp_path: Path) -> None:
    file = tmp_path / "proof.json"
    done = command(
        *("audit", "prove", str(recorded.claimed), "--output", str(file), "--json"), DATABASE_URL=recorded.dsn
    )
    assert done.code == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(verify(file.read_bytes(), KEYS).events) == done.json["events"]
    assert (done.json["file"], done.json["later"]) == (str(file), 0)


# --- What is not written ------------------------------------------------------------------------------------------


def refused(command: Command, recorded: Recorded, *arguments: str) -> str:
    done = command("audit", "prove", *arguments, "--output", "-", DATABASE_URL=recorded.dsn)
    assert (done.code, done.out) == (1, "")
    return done.err


def test_what_cannot_be_proved_is_told_in_one_line(recorded: Recorded, command: Command) -> None:
    mine = str(recorded.claimed)
    assert "unknown-registration" in refused(command, recorded, str(uuid4()))
    assert "There is no checkpoint of 99999 blocks" in refused(command, recorded, mine, "--checkpoint", "99999")

    recorded.execute("UPDATE followers SET position = position - 1 WHERE name = 'audit'")
    assert "events could be left out" in refused(command, recorded, mine)
    recorded.execute("UPDATE followers SET position = position + 1 WHERE name = 'audit'")

    recorded.execute("DELETE FROM checkpoints")
    assert "There is no checkpoint yet" in refused(command, recorded, mine)


def test_what_is_newer_than_the_checkpoint_is_not_proved_yet(recorded: Recorded, command: Command) -> None:
    async def more(store: EventStore, connection: Connection) -> None:
        await store.append([(event, CLIENT) for event in stream(REGISTRATION, registered(), otp_issued())])
        await follow(store, connection, Audit())

    in_database(recorded.dsn, more)
    assert "are not covered by the checkpoint yet" in refused(command, recorded, str(REGISTRATION))


ALTERATIONS = {
    "a byte": "state = set_byte(state, 5, get_byte(state, 5) # 1)",
    "an actor": "actor = 'nobody'",
    "a type": "topic = 'registration.email_verified'",
    "a correlation": "correlation_id = gen_random_uuid()",
    "a cause": "causation_position = 1",
    "a trace": "trace_context = 'x'",
    "a time": "recorded_at = recorded_at + interval '1 microsecond'",
    "a version": "originator_version = originator_version + 1000",
}


@pytest.mark.parametrize("change", ALTERATIONS.values(), ids=ALTERATIONS)
def test_of_an_altered_event_there_is_no_proof(recorded: Recorded, command: Command, change: str) -> None:
    position = recorded.positions_about(recorded.claimed)[2]
    recorded.execute(f"UPDATE events SET {change} WHERE notification_id = {position}")
    assert "is not what was recorded" in refused(command, recorded, str(recorded.claimed))


REWRITE = """
    DO $$ DECLARE block record; previous bytea := sha256(''); BEGIN
        FOR block IN SELECT * FROM blocks ORDER BY last_position LOOP
            previous := (
                SELECT block_hash(previous, block.first_position, min(e.recorded_at),
                                  string_agg(event_digest(e), '' ORDER BY e.notification_id))
                FROM events AS e WHERE e.notification_id BETWEEN block.first_position AND block.last_position);
            UPDATE blocks SET hash = previous WHERE last_position = block.last_position;
        END LOOP;
        UPDATE head SET hash = previous;
    END $$
"""


def test_of_a_chain_that_was_rewritten_there_is_no_proof(recorded: Recorded, command: Command) -> None:
    before = proven(command, recorded, recorded.claimed)
    recorded.execute(REWRITE)
    assert proven(command, recorded, recorded.claimed) == before

    position = recorded.positions_about(recorded.claimed)[0]
    recorded.execute(f"UPDATE events SET actor = 'nobody' WHERE notification_id = {position}", REWRITE)
    assert "The log is not the one that the checkpoint of" in refused(command, recorded, str(recorded.claimed))


def test_an_event_that_the_read_model_hides_is_missed_by_the_auditor(recorded: Recorded, command: Command) -> None:
    position = recorded.positions_about(recorded.claimed)[0]
    recorded.execute(f"DELETE FROM read_audit.entries WHERE position = {position}")
    with pytest.raises(Refused, match=r"version 1 of stream .* is left out"):
        verify(proven(command, recorded, recorded.claimed), KEYS)
