"""The relay by itself: real log, a delivery as told."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from application.ports import MailRequest, MailServersAway, entries_of
from domain.mail_saga import MailSaga
from infrastructure.event_store.store import EventStore
from infrastructure.event_store.tail import LogTail
from infrastructure.followers import relay as relay_module
from infrastructure.followers.leadership import LeaderSession
from infrastructure.followers.relay import Relay
from infrastructure.followers.turns import Turns
from infrastructure.postgres.connection import connect
from infrastructure.postgres.notifications import REQUESTS, Notifications
from infrastructure.settings.limits import parse_limit
from tests.integration.test_follower import running
from tests.support.facts import CLIENT, REGISTRATION, eventually, mail_requested, saga_started, stream


async def test_a_stop_does_not_wait_for_servers_that_turn_out_to_be_away(dsn: str, store: EventStore) -> None:
    handing_over, answer = asyncio.Event(), asyncio.Event()

    async def hand_over(_request: MailRequest) -> None:
        handing_over.set()
        await answer.wait()
        raise MailServersAway("away")

    async def never() -> None:
        await asyncio.Event().wait()

    relay = Relay(
        tail=LogTail(store),
        notifications=Notifications(dsn),
        hand_over=hand_over,
        until_ready=never,
        turns=Turns(parse_limit("mails=off")),
        finish_within=timedelta(hours=1),
    )
    await store.append(entries_of(stream(MailSaga.stream_id(REGISTRATION), saga_started(), mail_requested()), CLIENT))
    async with await connect(dsn, name="relay", statement_timeout=timedelta(seconds=10)) as connection:
        work = asyncio.create_task(relay.work(LeaderSession(connection)))
        await handing_over.wait()
        work.cancel()
        await eventually(lambda: relay._stopping)

        answer.set()

        await asyncio.wait({work}, timeout=30)
        assert work.cancelled()


def relay_that_says(handed_over: asyncio.Event, store: EventStore, notifications: Notifications) -> Relay:
    async def hand_over(_request: MailRequest) -> None:
        handed_over.set()

    async def never() -> None:
        await asyncio.Event().wait()

    return Relay(
        tail=LogTail(store),
        notifications=notifications,
        hand_over=hand_over,
        until_ready=never,
        turns=Turns(parse_limit("mails=off")),
    )


async def test_what_is_there_already_is_read_batch_after_batch_without_a_pause(
    dsn: str, store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "LEFT_FOR", timedelta(hours=1))
    monkeypatch.setattr(relay_module, "BATCH_REQUESTS", 1)
    monkeypatch.setattr(Notifications, "patience", timedelta(hours=1))
    handed_over = asyncio.Event()
    relay = relay_that_says(handed_over, store, Notifications(dsn))
    requests = stream(MailSaga.stream_id(REGISTRATION), saga_started(), mail_requested())
    await store.append(entries_of(requests, CLIENT))
    async with (
        await connect(dsn, name="relay", statement_timeout=timedelta(seconds=10)) as connection,
        running(relay.work(LeaderSession(connection))),
    ):
        await asyncio.wait_for(handed_over.wait(), 20)


async def test_a_request_that_the_saga_of_this_process_tells_of_is_handed_over_whatever_else_is_announced(
    dsn: str, store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "LEFT_FOR", timedelta(hours=1))
    notifications, handed_over = Notifications(dsn), asyncio.Event()
    relay = relay_that_says(handed_over, store, notifications)
    monkeypatch.setattr(Notifications, "patience", timedelta(hours=1))
    async with (
        await connect(dsn, name="relay", statement_timeout=timedelta(seconds=10)) as connection,
        running(relay.work(LeaderSession(connection))),
    ):
        await eventually(lambda: REQUESTS in notifications._waiting)
        requests = stream(MailSaga.stream_id(REGISTRATION), saga_started(), mail_requested())
        position = await store.append(entries_of(requests, CLIENT))

        notifications.note_position(REQUESTS, position)

        await asyncio.wait_for(handed_over.wait(), 20)
