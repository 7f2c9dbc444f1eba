"""Mail over RabbitMQ: relay, worker and dead-letter consumer die at every step, and nothing is lost or sent in vain."""

from __future__ import annotations

import pytest

from tests.faults.scene import Scene


async def test_a_registration_goes_its_way_through_rabbitmq(scene_over_broker: Scene) -> None:
    scene = scene_over_broker
    await scene.fleet.process()
    await scene.fleet.work()
    client = await scene.client_within()

    registered = await scene.accepted(client, "ada@example.com")

    await scene.prove(client, registered)
    assert scene.copies == {b"ada@example.com": 1}
    await scene.must_hold()


@pytest.mark.parametrize(
    "point",
    [
        pytest.param("relay.before_publish", marks=pytest.mark.fault("A4")),
        pytest.param("relay.before_confirm", marks=pytest.mark.fault("A5")),
        pytest.param("relay.before_cursor", marks=pytest.mark.fault("A6")),
    ],
)
async def test_a_relay_that_dies_around_its_publish_loses_nothing_and_nothing_is_sent_twice(
    scene_over_broker: Scene, point: str
) -> None:
    scene = scene_over_broker
    relay = await scene.fleet.process(armed=point, wait=False)
    await scene.fleet.work()
    client = await scene.client_within()

    registered = await scene.accepted(client, "ada@example.com")
    await relay.dies()
    await relay.start()

    await scene.prove(client, registered)
    assert scene.copies == {b"ada@example.com": 1}
    await scene.must_hold()


@pytest.mark.fault("A7")
async def test_a_relay_that_dies_in_the_middle_of_a_batch_leaves_no_gap(scene_over_broker: Scene) -> None:
    scene = scene_over_broker
    client = await scene.client_within()
    registered = [await scene.accepted(client, f"person-{number}@example.com") for number in range(5)]
    await scene.fleet.work()

    relay = await scene.fleet.process(armed="relay.batch:3", wait=False)
    await relay.dies()
    await relay.start()

    await scene.prove(client, *registered)
    assert set(scene.copies.values()) == {1}
    await scene.must_hold()


@pytest.mark.parametrize(
    ("point", "mails"),
    [
        pytest.param("worker.before_claim", 1, marks=pytest.mark.fault("A9")),
        pytest.param("worker.after_claim", 1, marks=pytest.mark.fault("A10")),
        pytest.param("worker.before_eod_reply", 2, marks=pytest.mark.fault("A11")),
        pytest.param("worker.before_sent_event", 2, marks=pytest.mark.fault("A12")),
        pytest.param("worker.before_ack", 1, marks=pytest.mark.fault("A13")),
    ],
)
async def test_a_worker_that_dies_is_followed_by_one_that_sends_again_only_if_it_cannot_know(
    scene_over_broker: Scene, point: str, mails: int
) -> None:
    scene = scene_over_broker
    await scene.fleet.process()
    worker = await scene.fleet.work(armed=point, wait=False)
    client = await scene.client_within()

    registered = await scene.accepted(client, "ada@example.com")
    await worker.dies()
    await scene.fleet.end_leases()  # instead of waiting for the time after which the dead cannot be sending any more
    await worker.start()

    await scene.prove(client, registered)
    assert 1 <= scene.copies[b"ada@example.com"] <= mails
    await scene.must_hold()
