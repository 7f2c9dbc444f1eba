"""A23: `registrar up` dies each time with the same mail in hand, and is started again at once, as a supervisor does."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.faults.evidence import copy_of
from tests.support.facts import eventually
from tests.support.http import ADA, NO_TLS
from tests.support.smtp_stub import SmtpStub

ROOT = Path(__file__).parents[2]
REGISTRAR = str(Path(sys.executable).with_name("registrar"))
POINT = "worker.before_sent_event"


class Up:
    """`registrar up`, on a data directory of its own and with a mail server outside of it."""

    def __init__(self, directory: Path, reached: Path, smtp_port: int) -> None:
        self.data = directory / "data"
        self.log = directory / "log"
        self._reached = reached
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("REGISTRAR_")} | {
            "REGISTRAR_SMTP_URLS": f"smtp://127.0.0.1:{smtp_port}?starttls=never"
        }

    @asynccontextmanager
    async def running(self, *, armed: bool) -> AsyncIterator[asyncio.subprocess.Process]:
        dying = [sys.executable, "-m", "tests.faults.armed", POINT, str(self._reached), "--"]
        words = [*(dying if armed else [REGISTRAR]), "up", "--port", "0", "--data-dir", str(self.data)]
        with self.log.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *words, cwd=ROOT, env=self._environment, stdout=log, stderr=log
            )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()

    async def url(self) -> str:
        def said() -> re.Match[str] | None:
            written = self.log.read_text()
            found = re.search(r"^API +(http://\S+)", written, re.MULTILINE)
            assert found is not None, written
            return found

        found = await eventually(said)
        return str(found[1])


@pytest.mark.slow
@pytest.mark.fault("A23")
async def test_a_crash_loop_of_up_sends_a_mail_three_times_and_then_waits_longer_each_time(
    tmp_path: Path, reached_directory: Path, sink: SmtpStub
) -> None:
    up = Up(tmp_path, reached_directory, sink.port)
    for start in range(3):
        async with up.running(armed=True) as process:
            if not start:
                async with httpx.AsyncClient(base_url=await up.url(), verify=NO_TLS) as http:
                    assert (await http.post("/v1/registrations", json=ADA)).status_code == 202
            assert await process.wait() == -signal.SIGKILL
    assert len(sink.mails) == 3

    # The fourth does not die, as it leaves that mail alone; others it sends.
    async with up.running(armed=False), httpx.AsyncClient(base_url=await up.url(), verify=NO_TLS) as http:
        other = await http.post("/v1/registrations", json=ADA | {"email": "bob@example.com"})
        assert other.status_code == 202
        await eventually(lambda: len(sink.mails) > 3)
    assert [mail.recipients[0] for mail in sink.mails].count(b"ada@example.com") == 3
    assert len({copy_of(mail).code for mail in sink.mails[:3]}) == 1
