"""A process that is killed while it sends webhooks."""

from __future__ import annotations

import pytest

from infrastructure.event_store.store import EventStore
from infrastructure.postgres.connection import Connection
from infrastructure.webhooks import records
from tests.faults.scene import Scene
from tests.integration.test_webhooks import LIFE, lives, up_to_date
from tests.support.endpoint_stub import LOOPBACK, SECRET, EndpointStub
from tests.support.facts import eventually


@pytest.mark.slow
@pytest.mark.fault("A24")
async def test_what_was_delivered_when_the_process_was_killed_comes_again_with_the_same_ids_and_all_else_once(
    scene: Scene, store: EventStore, connection: Connection
) -> None:
    await records.begin(connection, ["app"])
    ids = await lives(store, 20)
    async with EndpointStub() as stub:
        node = await scene.fleet.process(
            armed="webhooks.before_position",
            wait=False,
            webhooks=f"app={stub.url}",
            webhook_secrets=f"app={SECRET}",
            webhook_networks=LOOPBACK,
        )
        await node.dies()
        before = set(stub.ids)
        await node.start()
        await eventually(lambda: up_to_date(connection))

        assert before
        assert stub.told == {str(one): LIFE for one in ids}
        assert len(set(stub.ids)) == 3 * len(ids)
        assert {one for one in stub.ids if stub.ids.count(one) > 1} <= before
