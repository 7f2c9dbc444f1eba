"""Processes and workers of two releases share a broker: each publishes what the other sends, and no mail is lost."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from tests.faults.fleet import Fleet
from tests.faults.people import Crowd, Inbox
from tests.faults.scene import Scene
from tests.faults.test_upgrade import A_SECOND, goes_on
from tests.support.smtp_stub import SmtpStub


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_worker_sends_what_a_process_of_the_other_release_has_published(
    empty: str, broker_url: str, sink: SmtpStub, former: tuple[str, ...], tmp_path: Path, reached_directory: Path
) -> None:
    fleet = Fleet(empty, sink.port, directory=tmp_path, reached=reached_directory, broker_url=broker_url)
    async with Scene.on(fleet, sink) as scene:
        old_process, old_worker = await asyncio.gather(fleet.process(prefix=former), fleet.work(prefix=former))
        client = await scene.client_within()
        crowd = Crowd(client, Inbox(sink), random.Random(7), a_second=A_SECOND)  # noqa: S311 - repeatable
        people = asyncio.create_task(crowd.run())
        try:
            await goes_on(scene)

            # Old publishes, new sends.
            await fleet.work()
            assert await old_worker.stop() == 0
            await goes_on(scene)

            # New publishes, both send.
            await asyncio.gather(fleet.process(), old_worker.start())
            assert await old_process.stop() == 0
            await goes_on(scene)
        finally:
            crowd.go_home()
            await people

        assert [operation for operation in scene.journal if (operation.status or 0) >= 500] == []
        await scene.must_hold(refold=True)
