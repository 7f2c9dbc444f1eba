"""A release replaces the one before while people register: both on one database, in either order, and nothing is
lost."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from tests.faults.fleet import Fleet, Node
from tests.faults.invariants import INVARIANTS
from tests.faults.journal import Client
from tests.faults.people import Crowd, Inbox
from tests.faults.scene import Scene
from tests.support.facts import eventually
from tests.support.log import query
from tests.support.releases import FORMER_SCRIPTS
from tests.support.smtp_stub import SmtpStub

A_SECOND = 2.0
"""People who arrive; the machine runs up to six processes meanwhile."""


PROVEN_TWICE = """
    SELECT claimed.originator_id FROM events AS claimed
    JOIN events AS proven ON proven.topic = 'registration.email_verified'
        AND proven.originator_id::text = convert_from(claimed.state, 'UTF8')::jsonb ->> 'registration_id'
        AND proven.notification_id < claimed.notification_id
    WHERE claimed.topic = 'email_claim.email_claimed'
    GROUP BY claimed.originator_id HAVING count(*) > 1
"""
"""Addresses that two registrations have claimed once they had proven them."""


class Traffic:
    """People who register through whichever nodes serve at the time."""

    def __init__(self, scene: Scene) -> None:
        self.serving: list[Node] = []
        self._turn = iter(range(2**62))
        self.client = Client(scene.journal, lambda: self.serving[next(self._turn) % len(self.serving)].url)

    async def replace(self, old: Node, new: Node) -> None:
        """What a proxy in front does: the new one takes requests, then the old one gets none, and ends."""
        if new not in self.serving:
            self.serving.append(new)
        self.serving.remove(old)
        assert await old.stop() == 0


async def goes_on(scene: Scene, accounts: int = 3) -> None:
    """Wait until so many more registrations have become accounts."""
    before = await scene.recorded("registration.account_activated")

    async def more() -> bool:
        return await scene.recorded("registration.account_activated") >= before + accounts

    await eventually(more, within=60, every=0.2)


async def scripts(dsn: str) -> set[str]:
    return {name for (name,) in await query(dsn, "SELECT name FROM schema_scripts")}


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_release_replaces_the_one_before_and_is_replaced_by_it_while_people_register(
    empty: str, sink: SmtpStub, former: tuple[str, ...], tmp_path: Path, reached_directory: Path
) -> None:
    async with Scene.on(Fleet(empty, sink.port, directory=tmp_path, reached=reached_directory), sink) as scene:
        await _roll_there_and_back(scene, former)
        # What an old process verifies claims no address, so at first two may have one (docs/upgrading.md, "Back");
        # never two that have claimed it by their proof, as all do that a new process verifies.
        assert await query(scene.fleet.dsn, PROVEN_TWICE) == []
        await scene.must_hold(only=INVARIANTS.keys() - {"I3"}, refold=True)


async def _roll_there_and_back(scene: Scene, former: tuple[str, ...]) -> None:
    fleet, traffic = scene.fleet, Traffic(scene)
    old_api, old_process = await asyncio.gather(fleet.serve(prefix=former), fleet.process(prefix=former))
    assert await scripts(fleet.dsn) == set(FORMER_SCRIPTS)
    traffic.serving = [old_api]
    crowd = Crowd(traffic.client, Inbox(scene.sink), random.Random(7), a_second=A_SECOND)  # noqa: S311 - repeatable
    people = asyncio.create_task(crowd.run())
    try:
        await goes_on(scene)

        # The first new process changes the schema under the load; then the rest follows.
        new_api = await fleet.serve()
        changed = await scripts(fleet.dsn)
        assert changed > set(FORMER_SCRIPTS)
        traffic.serving.append(new_api)
        await goes_on(scene)
        new_process = await fleet.process()
        assert await old_process.stop() == 0
        await goes_on(scene)

        # An old process that is restarted beside the new ones, and leads after them, replaces nothing.
        await old_process.start()
        await traffic.replace(old_api, new_api)
        await old_api.start()
        await traffic.replace(new_api, old_api)
        assert await new_process.stop() == 0
        await goes_on(scene)
        assert await scripts(fleet.dsn) == changed

        await asyncio.gather(new_api.start(), new_process.start())
        await traffic.replace(old_api, new_api)
        assert await old_process.stop() == 0
        await goes_on(scene)
    finally:
        crowd.go_home()
        await people
        await traffic.client.close()

    # Nobody is turned away, not even with "try again". (No answer at all: the process stopped before it took the
    # request. A look that waits for a position is told so when its wait is over, and between two leaders it may be.)
    errors = [operation for operation in scene.journal if (operation.status or 0) >= 500]
    # Nor does the release before know what became of a registration whose address another one has proven.
    topic = "registration.registration_superseded"
    dead = {one for (one,) in await query(fleet.dsn, f"SELECT originator_id FROM events WHERE topic = '{topic}'")}
    unknown_to_it = [(operation.registration_id in dead, operation.status) == (True, 500) for operation in errors]
    assert [
        operation
        for operation, excused in zip(errors, unknown_to_it, strict=True)
        if not excused and (operation.waits, operation.status) != (True, 503)
    ] == []
    assert len([operation for operation in scene.journal if operation.status is not None]) > 100
