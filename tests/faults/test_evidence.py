"""What is read back of a run is what is there: each thing that is planted in a database is found."""

from __future__ import annotations

from tests.faults.invariants import check
from tests.faults.journal import fresh_key
from tests.faults.scene import Scene
from tests.support.log import query


async def test_what_is_tampered_with_after_a_clean_run_is_found(scene: Scene) -> None:
    # given: a clean run
    client = await scene.client_within()
    await scene.fleet.process()
    registered = await scene.accepted(client, "ada@example.com", key=fresh_key())
    await scene.prove(client, registered)
    await scene.must_hold(refold=True)

    async def blamed_after(*statements: str) -> list[str]:
        for statement in statements:
            await query(scene.fleet.dsn, statement)
        return sorted({violation.invariant for violation in check(await scene.evidence())})

    # then: a wrong row, a hole, a changed event, and a person where none should be
    assert await blamed_after("UPDATE read_registrations.progress SET locked = true") == ["I8"]
    assert await blamed_after(
        "UPDATE read_registrations.progress SET locked = false",
        "CREATE TABLE spare AS SELECT * FROM read_audit.entries WHERE position = 3",
        "DELETE FROM read_audit.entries WHERE position = 3",
    ) == ["I8", "I9"]
    assert await blamed_after(
        "INSERT INTO read_audit.entries SELECT * FROM spare",
        "DROP TABLE spare",
        "ALTER TABLE events DISABLE TRIGGER events_are_for_ever",
        "UPDATE events SET actor = 'nobody' WHERE notification_id = 3",
    ) == ["I8", "chain"]
    assert await blamed_after(
        "UPDATE events SET actor = 'client' WHERE notification_id = 3",
        "INSERT INTO parked_events (follower, stream_id, position, error, tried_at)"
        " VALUES ('audit', '019cab10-0000-7000-8000-000000000001', 1, 'hello ada@example.com', now())",
    ) == ["I10", "I14"]
