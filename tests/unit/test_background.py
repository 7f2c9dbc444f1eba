"""What runs in the background from the start of a process to its end."""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import timedelta

import pytest

from entrypoints.bootstrap import background
from tests.support.facts import eventually


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="this system does not tell")
async def test_the_end_of_a_process_is_told_and_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "REVIVE", timedelta(hours=1))
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "input()", stdin=asyncio.subprocess.PIPE)
    waiting = asyncio.create_task(background.until_ended(process.pid))

    process.kill()

    await eventually(waiting.done, within=20)
    await process.wait()


async def test_where_the_system_does_not_tell_a_process_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    monkeypatch.setattr(background, "REVIVE", timedelta(milliseconds=1))

    await background.until_ended(os.getpid())
