"""Rebuilds while people register: no read fails or goes backwards, no mail is sent, and what is swapped in is right."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from itertools import count
from typing import Any
from uuid import UUID

import pytest

from entrypoints.bootstrap.replay import READ_MODELS, Rebuilder, Verifier
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.reader import LogReader
from infrastructure.postgres.connection import Connection, ReconnectingConnection
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


class Load:
    """People register, and look at their registrations all the time; counts what they see."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.reads = 0
        self.backwards: list[str] = []
        self.ids: list[UUID] = []

    async def register(self) -> None:
        for number in count():
            response = await self.api.register(f"ada{number}@example.com")
            self.ids.append(UUID(response.json()["registration_id"]))

    async def read(self) -> None:
        model = Registrations()
        latest, rows = 0, dict[UUID, int]()

        while True:
            ids = self.ids[-20:]

            async def find(connection: Connection, ids: list[UUID] = ids) -> None:
                nonlocal latest
                found, position = await model.find(connection, ids)
                self._note(position < latest, f"the model from {latest} to {position}")
                latest = max(latest, position)
                for one, view in found.items():
                    self._note(view.position < rows.get(one, 0), f"{one} from {rows.get(one)} to {view.position}")
                    rows[one] = view.position
                self._note(bool(rows.keys() & set(ids) - found.keys()), "a registration is gone")

            await self.api.service.pool.ask(find)
            self.reads += 1
            await asyncio.sleep(0)

    def _note(self, wrong: bool, what: str) -> None:
        if wrong:
            self.backwards.append(what)


@pytest.mark.slow
async def test_reads_neither_fail_nor_go_backwards_while_read_models_are_rebuilt(api: Api, reader: LogReader) -> None:
    rebuilds = Rebuilder(api.service.dsn, reader, api.service.handlers).rebuilds(nobody_watches)
    load = Load(api)
    async with asyncio.TaskGroup() as group:
        works = [group.create_task(load.register()), *(group.create_task(load.read()) for _ in range(2))]
        await eventually(lambda: len(load.ids) > 30)
        for _ in range(2):
            for name in ("registrations", "mail", "deadlines"):
                rebuilt = await rebuilds.rebuild(READ_MODELS[name])
                assert (rebuilt.swapped, rebuilt.differences.kept) == (True, [])
            await rebuilds.roll_back(READ_MODELS["registrations"])
        for work in works:
            work.cancel()

    assert load.reads > 100
    assert load.backwards == []
    verifier = Verifier(api.service.dsn, reader)
    found = await verifier.verify_all(list(READ_MODELS), nobody_watches)
    assert [difference for one in found for difference in one.kept] == []


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
