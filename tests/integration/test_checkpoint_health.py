"""What health, metrics, alerts and doctor say about the checkpoints, on real PostgreSQL."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tenacity import wait_none

from entrypoints.cli.checks.database import look_at_database
from infrastructure.alerts.alerts import Alerts
from infrastructure.alerts.webhook import Webhook
from infrastructure.audit.standing import standing_of
from infrastructure.event_store.store import EventStore
from infrastructure.postgres.connection import Connection
from projections.mail import Mails
from tests.integration.test_alerts import told, watching
from tests.integration.test_checkpoints import checkpointing, until_signed
from tests.support.facts import eventually
from tests.support.http import Api, open_api, settings
from tests.support.log import append, happened, query
from tests.support.webhook_stub import WebhookStub

KEY = "ab" * 32
LONG_AGO = "clock_timestamp() - interval '2 minutes'"
LATER = f"""
    WITH verified AS (
        INSERT INTO tree_head (size, position, hash, origin) SELECT 1, position, hash, '' FROM head
        ON CONFLICT (only_row) DO UPDATE SET size = 1, position = excluded.position
    )
    INSERT INTO checkpoints (size, position, note, signed_at, in_directory)
    VALUES (1, (SELECT position FROM head), 'a note', {LONG_AGO}, false)
    ON CONFLICT (size) DO UPDATE SET signed_at = excluded.signed_at, in_directory = false
"""
SERIES = {
    "registrar_checkpoint_age_seconds",
    "registrar_checkpoint_position",
    "registrar_checkpoints_unpublished",
    "registrar_chain_mismatches",
}


async def make_old(dsn: str) -> None:
    """Every event was recorded long ago."""
    await query(dsn, "ALTER TABLE events DISABLE TRIGGER ALL")
    await query(dsn, f"UPDATE events SET recorded_at = {LONG_AGO}")


async def make_unsound(dsn: str) -> None:
    await query(
        dsn,
        "INSERT INTO tree_head (size, position, hash, origin, unsound)"
        " VALUES (0, 0, '', '', 'position 1 is not what was recorded')"
        " ON CONFLICT (only_row) DO UPDATE SET unsound = excluded.unsound",
    )


async def shown(api: Api) -> tuple[str, dict[str, Any]]:
    answer = await api.http.get("/health/database")
    assert answer.status_code == 200
    return answer.json()["status"], answer.json()["checkpoints"]


async def measured(api: Api) -> dict[str, float]:
    lines = [line.split() for line in (await api.http.get("/metrics")).text.splitlines()]
    return {line[0]: float(line[1]) for line in lines if line[0] in SERIES}


async def test_a_gap_and_an_unsound_log_are_in_health_and_in_metrics(
    store: EventStore, dsn: str, tmp_path: Path
) -> None:
    position = await append(store, happened(), happened())
    async with open_api(dsn, checkpoint_dir=str(tmp_path), checkpoint_key=KEY) as api:

        async def covered() -> bool:
            return (await measured(api))["registrar_checkpoint_position"] == position

        await eventually(covered)

        async def published() -> bool:
            return (await measured(api))["registrar_checkpoints_unpublished"] == 0

        await eventually(published)
        found = await measured(api)
        assert (found["registrar_checkpoint_age_seconds"], found["registrar_chain_mismatches"]) == (0, 0)
        assert (await shown(api))[0] == "up"

        await make_unsound(dsn)

        status, checkpoints = await shown(api)
        assert (status, checkpoints["status"]) == ("degraded", "degraded")
        assert checkpoints["unsound"] == "position 1 is not what was recorded"
        assert (await measured(api))["registrar_chain_mismatches"] == 1


async def test_where_there_are_no_checkpoints_nothing_is_said_of_them(dsn: str) -> None:
    async with open_api(dsn) as api:
        assert await measured(api) == {}
        assert (await api.http.get("/health/database")).json() == {"status": "up"}
        followers = (await api.http.get("/health/projections")).json()["followers"]
        assert "erasures" not in {one["name"] for one in followers}


async def test_the_journal_of_erasures_is_among_the_followers(dsn: str, tmp_path: Path) -> None:
    async with open_api(dsn, checkpoint_dir=str(tmp_path), checkpoint_key=KEY) as api:

        async def up() -> bool:
            followers = (await api.http.get("/health/projections")).json()["followers"]
            return bool({one["name"]: one["status"] for one in followers}["erasures"] == "up")

        await eventually(up)


async def test_there_is_a_gap_after_a_minute_and_not_before(
    store: EventStore, dsn: str, connection: Connection
) -> None:
    empty = await standing_of(connection)
    assert (empty.position, empty.age_seconds, empty.unpublished, empty.status) == (0, 0, 0, "up")
    await append(store, happened())
    assert (await standing_of(connection)).status == "up"

    await make_old(dsn)

    unsigned = await standing_of(connection)
    assert (unsigned.age_seconds > 60, unsigned.unpublished, unsigned.status) == (True, 0, "degraded")

    await query(dsn, LATER)

    waiting = await standing_of(connection)
    assert (waiting.position, waiting.age_seconds, waiting.unpublished) == (1, 0, 1)
    assert (waiting.unpublished_seconds > 60, waiting.status) == (True, "degraded")

    await query(dsn, "UPDATE checkpoints SET in_directory = true")

    assert (await standing_of(connection)).status == "up"


async def test_a_time_that_nobody_can_have_recorded_keeps_nothing_from_being_shown(
    store: EventStore, dsn: str, connection: Connection
) -> None:
    await append(store, happened())
    await query(dsn, "ALTER TABLE events DISABLE TRIGGER ALL")
    await query(dsn, "UPDATE events SET recorded_at = '-infinity'")

    assert (await standing_of(connection)).age_seconds == 0


async def test_what_is_unsound_from_the_first_event_on_is_kept_and_forgotten_once_it_is_mended(
    store: EventStore, dsn: str, connection: Connection, tmp_path: Path
) -> None:
    position = await append(store, happened())
    (state,) = (await query(dsn, "SELECT encode(state, 'hex') FROM events"))[0]
    await query(dsn, "ALTER TABLE events DISABLE TRIGGER ALL")
    await query(dsn, "UPDATE events SET state = '[]'")
    for _ in range(2):  # the next leader begins where this one did
        async with checkpointing(dsn, tmp_path):

            async def said() -> bool:
                return (await standing_of(connection)).unsound is not None

            await eventually(said)

    await query(dsn, f"UPDATE events SET state = decode('{state}', 'hex')")
    async with checkpointing(dsn, tmp_path):
        await until_signed(dsn, position)

    assert (await standing_of(connection)).unsound is None


async def test_a_gap_and_a_broken_chain_are_told_of_until_they_are_over(store: EventStore, dsn: str) -> None:
    await append(store, happened())
    async with WebhookStub() as stub:
        watcher = Alerts(
            Webhook(stub.url),
            service="https://registrar.test",
            threshold=10,
            dead_letters=Mails().dead_letters,
            has_checkpoints=True,
            look_every=timedelta(milliseconds=20),
            pauses=wait_none(),
        )
        async with watching(dsn, watcher):
            calls = [("chain-broken", "firing")]
            await make_unsound(dsn)
            await told(stub, *calls)
            calls.append(("checkpoint-gap", "firing"))
            await query(dsn, LATER)
            await told(stub, *calls)
            calls.append(("checkpoint-gap", "resolved"))
            await query(dsn, "UPDATE checkpoints SET in_directory = true")
            await told(stub, *calls)
            calls.append(("chain-broken", "resolved"))
            await query(dsn, "UPDATE tree_head SET unsound = NULL")
            await told(stub, *calls)

    broken, gap, no_gap, sound = [call.json["details"] for call in stub.calls]
    assert broken == {"signed_upto": 0, "found": "position 1 is not what was recorded"}
    assert sound == {"signed_upto": 1, "found": None}
    assert (gap["position"], gap["unpublished"], gap["unpublished_seconds"] >= 120) == (1, 1, True)
    assert no_gap == {"position": 1, "age_seconds": 0, "unpublished": 0, "unpublished_seconds": 0}


@pytest.mark.parametrize(
    ("statement", "state"),
    [
        ("UPDATE checkpoints SET in_directory = true", "ok"),
        (LATER, "warn"),
        ("UPDATE tree_head SET unsound = 'the log was cut off'", "fail"),
    ],
)
async def test_doctor_has_a_row_for_them(
    store: EventStore, dsn: str, tmp_path: Path, statement: str, state: str
) -> None:
    position = await append(store, happened())
    async with checkpointing(dsn, tmp_path):
        await until_signed(dsn, position)
    await query(dsn, statement)

    with_checkpoints = settings(dsn, str(tmp_path), checkpoint_dir=str(tmp_path), checkpoint_key=KEY)
    found = {one.check: one.state async for one in look_at_database(with_checkpoints)}
    without = {one.check async for one in look_at_database(settings(dsn, str(tmp_path)))}

    assert found["checkpoints"] == state
    assert "checkpoints" not in without
