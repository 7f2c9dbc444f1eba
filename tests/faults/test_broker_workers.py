"""Workers behind RabbitMQ that are told to stop."""

from __future__ import annotations

import signal

import pytest

from infrastructure.mail.smtp.pool import FIRST_CONNECTIONS
from infrastructure.rabbitmq.mail_worker import PREFETCH
from infrastructure.rabbitmq.topology import MAIL_QUEUE
from tests.faults.scene import Scene
from tests.support.broker import channel_to, vhost_of, waiting
from tests.support.facts import eventually
from tests.support.rabbitmq import PrivateRabbit
from tests.support.tcp_proxy import TO_CLIENT, TcpProxy


@pytest.mark.slow
@pytest.mark.fault("F10")
async def test_a_worker_that_is_told_to_stop_finishes_what_it_has_in_hand_and_costs_the_rest_no_delivery(
    scene_over_broker: Scene, rabbit: PrivateRabbit, broker_url: str
) -> None:
    scene = scene_over_broker
    client = await scene.client_within(broker_up=True)
    more = 5
    async with TcpProxy(("127.0.0.1", scene.sink.port)) as proxy, scene.within(follows=True):
        worker = await scene.fleet.work(smtp_port=proxy.port, send_timeout="40")
        # given: a worker whose hands are full of mails for which the server's reply is still on its way, and more
        proxy.hold(TO_CLIENT)
        registered = [await scene.accepted(client, f"person-{number}@example.com") for number in range(PREFETCH + more)]
        await eventually(lambda: proxy.effects[f"hold {TO_CLIENT}"] == FIRST_CONNECTIONS)

        assert len(scene.sink.sessions) == FIRST_CONNECTIONS

        def of_worker(what: str) -> int:
            """By the worker's channel: the queue counts a consumer until its last message is acknowledged."""
            told = rabbit.evaluate(
                f"lists:sum([Count || [{{{what}, Count}}, {{prefetch_count, Prefetch}}, {{vhost, Host}}] <-"
                f" rabbit_channel:info_all([{what}, prefetch_count, vhost]),"
                f' Prefetch =:= {PREFETCH}, Host =:= <<"{vhost_of(broker_url)}">>])'
            )
            return int(told)

        async def is_all_there() -> bool:
            """What is accepted is in the queue only when the relay has had its turn."""
            return (of_worker("messages_unacknowledged"), await waiting(broker_url)) == (PREFETCH, more)

        await eventually(is_all_there, every=0.2)
        assert of_worker("consumer_count") == 1
        worker.signal(signal.SIGTERM)
        await eventually(lambda: of_worker("consumer_count") == 0, every=0.2)
        assert (worker.is_running, scene.sink.mails) == (True, [])
        proxy.heal()

        # then: what it has in hand goes out, and the rest stays where it was
        assert await worker.ends() == 0
        assert len(scene.sink.mails) == PREFETCH
        async with channel_to(broker_url) as channel:
            queue = await channel.get_queue(MAIL_QUEUE, ensure=False)
            left = []
            while (message := await queue.get(fail=False)) is not None:
                left.append(message)
            assert len(left) == more
            assert not any(message.headers.get("x-delivery-count") for message in left)

        async with scene.within(works=True):
            await scene.prove(client, *registered)
            assert set(scene.copies.values()) == {1}
            await scene.must_hold()
