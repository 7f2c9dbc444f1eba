"""Queues that are deleted, unbound or full, and connections to the broker that are held or cut: mails come late, once.

All of it in this very process, on a virtual host of the shared node.
"""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from uuid import uuid4

import pytest

from application.commands import RequestNewCode
from application.ports import Context
from infrastructure.mail.smtp.pool import FIRST_CONNECTIONS
from infrastructure.postgres.clock import DatabaseClock
from infrastructure.rabbitmq.topology import MAIL_EXCHANGE, MAIL_QUEUE, MAIL_REQUESTED
from tests.faults.scene import Scene
from tests.support.broker import broker_through, put, spy_on, until_empty, until_lost, until_up, vhost_of, waiting
from tests.support.facts import eventually
from tests.support.log import query
from tests.support.mail import until_recorded
from tests.support.rabbitmq import PrivateRabbit
from tests.support.tcp_proxy import TO_CLIENT, TO_SERVER


async def relayed(scene: Scene) -> int:
    """The relay's position: every request up to it is safe with the broker."""
    rows = await query(scene.fleet.dsn, "SELECT position FROM followers WHERE name = 'relay'")
    return rows[0][0] if rows else 0


async def requested(scene: Scene) -> int:
    """Position of the latest request."""
    rows = await query(
        scene.fleet.dsn, "SELECT max(notification_id) FROM events WHERE topic = 'mail_saga.mail_requested'"
    )
    return rows[0][0] or 0


@pytest.mark.fault("C9")
async def test_a_queue_that_is_deleted_while_it_is_consumed_is_declared_again_and_consumed_again(
    scene_over_broker: Scene, rabbit: PrivateRabbit, broker_url: str
) -> None:
    scene = scene_over_broker
    client = await scene.client_within()
    async with scene.within(follows=True, works=True, send_timeout="60") as service:
        await until_up(service)
        await scene.prove(client, await scene.accepted(client, "before@example.com"))

        scene.sink.at("eod", "wait")
        in_hand = [await scene.accepted(client, f"in-hand-{number}@example.com") for number in range(FIRST_CONNECTIONS)]
        await eventually(lambda: len(scene.sink.mails) == FIRST_CONNECTIONS + 1)
        with scene.faults.during("mail queue deleted", "broker"):
            rabbit.ask("DELETE", f"queues/{vhost_of(broker_url)}/{MAIL_QUEUE}")
            await until_lost(service)
        await until_up(service)
        scene.sink.go_on.set()
        await until_recorded(scene.fleet.dsn, "registration.email_dispatched", FIRST_CONNECTIONS + 1)
        await scene.prove(client, *in_hand)
        registered = [await scene.accepted(client, f"person-{number}@example.com") for number in range(5)]

        await scene.prove(client, *registered)
        assert set(scene.copies.values()) == {1}
        await scene.must_hold()


@pytest.mark.fault("C10")
async def test_a_request_that_no_queue_takes_is_not_passed_over_and_the_binding_is_made_again(
    scene_over_broker: Scene, rabbit: PrivateRabbit, broker_url: str
) -> None:
    scene = scene_over_broker
    client = await scene.client_within()
    async with scene.within(follows=True, works=True) as service:
        await until_up(service)

        binding = f"bindings/{vhost_of(broker_url)}/e/{MAIL_EXCHANGE.name}/q/{MAIL_QUEUE}/{MAIL_REQUESTED}"
        with scene.faults.during("mail queue unbound", "broker"):
            rabbit.ask("DELETE", binding)
            registered = await scene.accepted(client, "ada@example.com")
            await until_lost(service)
            assert await relayed(scene) < await requested(scene)

        await scene.prove(client, registered)
        assert rabbit.ask("GET", binding)["routing_key"] == MAIL_REQUESTED
        assert scene.copies == {b"ada@example.com": 1}
        await scene.must_hold()


@pytest.mark.fault("C11")
async def test_a_full_queue_holds_the_relay_back_and_nothing_is_dropped(
    scene_over_broker: Scene, rabbit: PrivateRabbit, broker_url: str
) -> None:
    scene = scene_over_broker
    client = await scene.client_within()
    room, count = 3, 12
    async with scene.within(follows=True) as service:
        await until_up(service)
        # For quorum queues the smaller one of the argument and the policy counts.
        policy = {"pattern": ".*", "definition": {"max-length": room}, "apply-to": "queues"}
        rabbit.ask("PUT", f"policies/{vhost_of(broker_url)}/little-room", policy)
        with scene.faults.during("mail queue full", "broker"):
            registered = [await scene.accepted(client, f"person-{number}@example.com") for number in range(count)]

            async def full() -> bool:
                return room <= await waiting(broker_url) < count

            await eventually(full, within=60, every=0.2)
            assert await relayed(scene) < await requested(scene)
            async with scene.within(works=True):
                await scene.prove(client, *registered, within=60)

        assert set(scene.copies.values()) == {1}
        assert len(scene.copies) == count
        await scene.must_hold()


@pytest.mark.fault("C12")
async def test_of_copies_in_any_order_the_newest_issue_is_mailed_once(
    scene_over_broker: Scene, rabbit: PrivateRabbit, broker_url: str
) -> None:
    scene = scene_over_broker
    client = await scene.client_within(broker_up=True)

    class InAMinute(DatabaseClock):
        """That the cooldown is over is all that it is for."""

        def __call__(self) -> datetime:
            return super().__call__() + timedelta(seconds=61)

    # given: two issues of each registration whose requests wait, and their copies between them
    async with scene.within(follows=True), spy_on(broker_url) as seen:
        registered = [await scene.accepted(client, f"person-{number}@example.com") for number in range(4)]
        ids = [one.registration_id for one in registered if one.registration_id is not None]
        await eventually(lambda: len(seen) == len(ids))
        async with scene.within(clock=InAMinute()) as later:
            for registration_id in ids:
                context = Context("client", uuid4())
                await later.handlers.handle(RequestNewCode(registration_id=registration_id), context)
        await eventually(lambda: len(seen) == 2 * len(ids))
    requests = [message.body for message in seen]
    rabbit.ask("DELETE", f"queues/{vhost_of(broker_url)}/{MAIL_QUEUE}/contents")
    shuffled = requests * 3
    random.Random(12).shuffle(shuffled)  # noqa: S311 - the same order each time
    await put(broker_url, *shuffled)

    async with scene.within(follows=True, works=True):
        await until_empty(broker_url)
        await scene.prove(client, *registered)

        assert set(scene.copies.values()) == {1}
        assert await scene.recorded("registration.email_dispatched") == len(ids)
        await scene.must_hold(only=("I1", "I2", "I3", "I4", "I5", "I6", "I7", "I9", "I10"))  # I13: a clock was ahead


@pytest.mark.fault("C6")
async def test_a_publish_whose_confirm_is_lost_is_repeated_with_the_same_id_and_mailed_once(
    scene_over_broker: Scene, broker_url: str
) -> None:
    scene = scene_over_broker
    client = await scene.client_within()
    async with broker_through(broker_url) as (proxy, url), scene.within(follows=True, broker_url=url) as relay:
        await until_up(relay)
        async with spy_on(broker_url) as seen:
            with scene.faults.during("confirm lost", "broker"):
                proxy.hold(TO_CLIENT)
                registered = await scene.accepted(client, "ada@example.com")
                await eventually(lambda: seen)  # it is there, and so is its confirm, which is held
                proxy.reset()
                proxy.heal()
                await eventually(lambda: len(seen) == 2)
            async with scene.within(works=True):
                await scene.prove(client, registered)
        assert proxy.is_effective
        assert len(seen) == 2
        assert len({message.message_id for message in seen}) == 1
        assert scene.copies == {b"ada@example.com": 1}
        await scene.must_hold()


@pytest.mark.slow
@pytest.mark.fault("C5")
async def test_a_broker_that_swallows_everything_delays_mails_and_is_noticed_by_a_deadline(
    scene_over_broker: Scene, broker_url: str
) -> None:
    scene = scene_over_broker
    client = await scene.client_within()
    async with (
        broker_through(broker_url) as (proxy, url),
        scene.within(follows=True, works=True, broker_url=url) as service,
    ):
        await until_up(service)
        with scene.faults.during("broker held", "broker"):
            proxy.hold(TO_CLIENT)
            proxy.hold(TO_SERVER)
            registered = [await scene.accepted(client, f"person-{number}@example.com") for number in range(5)]
            await until_lost(service)
            assert proxy.is_effective
            assert await relayed(scene) < await requested(scene)
        proxy.heal()

        await scene.prove(client, *registered, within=60)
        assert set(scene.copies.values()) == {1}
        await scene.must_hold()
