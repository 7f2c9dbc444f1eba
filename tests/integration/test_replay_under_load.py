"""Rebuilds while the service runs: no mail is sent, and what a copy has parked is known from then on.

Who reads meanwhile: tests/faults/test_rebuilds_under_load.py."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from entrypoints.bootstrap.replay import READ_MODELS, Rebuilder, Verifier
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.reader import LogReader
from infrastructure.postgres.connection import ReconnectingConnection
from infrastructure.replay.progress import nobody_watches
from projections.registrations import Registrations
from tests.support.facts import eventually
from tests.support.http import Api, open_api
from tests.support.log import query


@pytest.fixture
async def api(dsn: str) -> AsyncIterator[Api]:
    async with open_api(dsn, follows=True) as api:
        yield api


@pytest.fixture
async def reader(dsn: str) -> AsyncIterator[LogReader]:
    line = ReconnectingConnection(dsn, name="log", statement_timeout=timedelta(seconds=10), read_only=True)
    yield LogReader(line, EventCodec())
    await line.close()


async def test_a_projector_takes_over_what_a_copy_that_is_swapped_in_has_parked(api: Api, reader: LogReader) -> None:
    one, other = UUID(await api.registered("one@example.com")), UUID(await api.registered("other@example.com"))

    class Picky(Registrations):
        async def apply(self, connection: Any, events: Any) -> None:
            if any(event.event.originator_id == one for event in events):
                raise LookupError("never heard of it")
            await super().apply(connection, events)

    rebuilds = Rebuilder(api.service.dsn, reader, api.service.handlers).rebuilds(nobody_watches)
    assert (await rebuilds.rebuild(Picky, accept=True)).swapped
    for registration_id, email in ((one, "one@example.com"), (other, "other@example.com")):
        assert (await api.verify(str(registration_id), await api.code(email))).status_code == 200

    for registration_id in (one, other):
        await api.becomes(str(registration_id), status="ACTIVE")
    await eventually(lambda: _nothing_is_parked(api.service.dsn), within=30)
    assert (await Verifier(api.service.dsn, reader).verify("registrations", nobody_watches)).kept == []


async def _nothing_is_parked(dsn: str) -> bool:
    return not await query(dsn, "SELECT 1 FROM parked_events WHERE follower = 'registrations'")


async def test_rebuilding_every_read_model_sends_no_mail_and_records_nothing_but_the_operators_acts(
    api: Api, reader: LogReader
) -> None:
    for number in range(5):
        await api.registered(f"ada{number}@example.com")
    dsn = api.service.dsn
    mails = await query(dsn, "SELECT count(*) FROM events WHERE topic = 'mail_saga.mail_requested'")
    mailbox = api.service.mailbox
    assert mailbox is not None
    before = len(mailbox.messages())
    [(head,)] = await query(dsn, "SELECT position FROM head")

    rebuilds = Rebuilder(dsn, reader, api.service.handlers).rebuilds(nobody_watches)
    for make in READ_MODELS.values():
        assert (await rebuilds.rebuild(make)).swapped

    await api.registered("last@example.com")  # whatever was under way has come by now
    topics = await query(dsn, f"SELECT topic FROM events WHERE notification_id > {head} ORDER BY notification_id")
    acts = [topic for (topic,) in topics if topic.startswith("rebuild.")]
    assert acts == ["rebuild.begun", "rebuild.swapped"] * len(READ_MODELS)
    assert len(mailbox.messages()) == before + 1
    [(asked,)] = await query(dsn, "SELECT count(*) FROM events WHERE topic = 'mail_saga.mail_requested'")
    assert asked == mails[0][0] + 1
