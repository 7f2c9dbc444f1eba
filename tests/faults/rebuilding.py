"""Rebuilds, rollbacks and verifications of every read model, one after the other, while everybody reads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from itertools import count, cycle
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID

from entrypoints.bootstrap.replay import READ_MODELS, Rebuilder, Verifier
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.reader import LogReader
from infrastructure.postgres.connection import Connection, ReconnectingConnection
from infrastructure.postgres.pool import QueryPool
from infrastructure.replay.progress import nobody_watches
from projections.registrations import Registrations
from tests.faults.fleet import TOKEN, Fleet, Node
from tests.faults.readers import Seen, Watched, reading
from tests.faults.scene import Scene
from tests.support.facts import eventually
from tests.support.postgres import SURVIVES_KILLS, server
from tests.support.smtp_stub import SmtpStub

REGISTERED_A_SECOND = 10.0
ROLLED_BACK = 10
VERIFIED = 20
"""One act in so many is another one than a rebuild."""


@dataclass(slots=True)
class Outcome:
    """
    Attributes:
        seen: what readers over HTTP saw; `model_reads`: reads of the model and its position by the query object.
        wrong: what the acts found, which is nothing.
    """

    rebuilds: int
    seen: Seen
    model_reads: int
    wrong: list[str]

    @property
    def is_sound(self) -> bool:
        return not (self.wrong or self.seen.failed or self.seen.backwards)

    def __str__(self) -> str:
        return (
            f"{self.rebuilds} rebuilds, {self.seen.registered} registrations; {self.seen.reads} reads over HTTP, "
            f"{self.seen.failed} failed, {self.seen.backwards} backwards; {self.model_reads} of the model; "
            f"{len(self.wrong)} acts went wrong" + "".join(f"\n  {one}" for one in [*self.wrong, *self.seen.told])
        )


async def rebuild_under_load(
    scene: Scene, api: Node, *, rebuilds: int, reads: int, say: Callable[[str], None] = lambda _: None
) -> Outcome:
    """Rebuild until at least so many rebuilds and reads are done; read models are verified in the end.

    Args:
        api: serves; somebody in the fleet follows.
    """
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(scene.within())
        line = ReconnectingConnection(
            scene.fleet.dsn, name="log", statement_timeout=timedelta(minutes=1), read_only=True
        )
        stack.push_async_callback(line.close)
        log = LogReader(line, EventCodec())
        acts = _Acts(Rebuilder(scene.fleet.dsn, log, service.handlers), Verifier(scene.fleet.dsn, log))
        readers = await stack.enter_async_context(reading(urlsplit(api.url).port or 0, TOKEN, rate=REGISTERED_A_SECOND))
        await eventually(lambda: readers.seen.reads > 0)
        model = _ModelReader(service.pool, acts)
        looking = asyncio.create_task(model.read())
        try:
            await _act(acts, readers, rebuilds, reads, say)
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
        await acts.verify_all()
    return Outcome(acts.rebuilds, readers.seen, model.reads, acts.wrong)


async def on_servers_of_their_own(
    directory: Path, reached: Path, *, rebuilds: int, reads: int, say: Callable[[str], None]
) -> Outcome:
    """`rebuild_under_load`, where nothing else goes wrong."""
    with server(SURVIVES_KILLS, prefix="registrar-rebuilding-") as postgres:
        async with AsyncExitStack() as stack:
            sink = await stack.enter_async_context(SmtpStub())
            fleet = Fleet(postgres.dsn, sink.port, directory=directory, reached=reached)
            scene = await stack.enter_async_context(Scene.on(fleet, sink))
            api = await fleet.serve()
            await fleet.process()
            await fleet.until_it_leads()
            return await rebuild_under_load(scene, api, rebuilds=rebuilds, reads=reads, say=say)


async def _act(acts: _Acts, readers: Watched, rebuilds: int, reads: int, say: Callable[[str], None]) -> None:
    for number, name in zip(count(1), cycle(READ_MODELS), strict=False):
        await acts.rebuild(name)
        if number % ROLLED_BACK == 0:
            await acts.roll_back(name)
        if number % VERIFIED == 0:
            await acts.verify(name)
            say(f"{acts.rebuilds} rebuilds, {readers.seen.reads} reads")
        if acts.rebuilds >= rebuilds and readers.seen.reads >= reads:
            return


class _Acts:
    def __init__(self, rebuilder: Rebuilder, verifier: Verifier) -> None:
        self.rebuilds = 0
        self.wrong: list[str] = []
        self._rebuilds = rebuilder.rebuilds(nobody_watches)
        self._verifier = verifier

    async def rebuild(self, name: str) -> None:
        done = await self._rebuilds.rebuild(READ_MODELS[name])
        self.rebuilds += 1
        if not done.swapped:
            self.wrong.append(f"{name} was found different: {done.differences.kept[:5]}")

    async def roll_back(self, name: str) -> None:
        await self._rebuilds.roll_back(READ_MODELS[name])

    async def verify(self, name: str) -> None:
        found = await self._verifier.verify(name, nobody_watches)
        if found.count:
            self.wrong.append(f"{name} does not verify: {found.kept[:5]}")

    async def verify_all(self) -> None:
        for name in READ_MODELS:
            await self.verify(name)


class _ModelReader:
    """Reads the newest registrations with the model's position, which the API does not show."""

    def __init__(self, pool: QueryPool, acts: _Acts) -> None:
        self.reads = 0
        self._pool = pool
        self._acts = acts
        self._model = Registrations()
        self._latest = 0
        self._rows: dict[UUID, int] = {}

    async def read(self) -> None:
        while True:
            await self._pool.ask(self._look)
            self.reads += 1

    async def _look(self, connection: Connection) -> None:
        page = await self._model.search(connection, status=None, claim_ids=None, cursor=None, limit=20)
        found, position = await self._model.find(connection, [one.registration_id for one in page.items])
        self._note(position < self._latest, f"the model went from {self._latest} to {position}")
        self._latest = max(self._latest, position)
        for one, view in found.items():
            self._note(view.position < self._rows.get(one, 0), f"{one} went back to {view.position}")
            self._rows[one] = view.position
        self._note(len(found) < len(page.items), "a registration is gone")

    def _note(self, wrong: bool, what: str) -> None:
        if wrong:
            self._acts.wrong.append(what)
