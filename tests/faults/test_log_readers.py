"""Whoever reads the log may stop, go away or run out of room: nobody who registers notices."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO

import pytest

from tests.faults.programs import program
from tests.support.commands import clean_environment
from tests.support.facts import eventually
from tests.support.http import ADA
from tests.support.preforked import fork
from tests.support.smtp_stub import SmtpStub


@contextmanager
def stopped() -> Iterator[IO[bytes]]:
    """A pipe that is full, and that nobody reads."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb"), os.fdopen(writing, "wb", buffering=0) as pipe:
        fill(writing)
        yield pipe


def fill(writing: int) -> None:
    """Through an end of its own: the service's must wait where the pipe is full, as a pipe does unless told not to."""
    filling = os.open(f"/proc/self/fd/{writing}", os.O_WRONLY | os.O_NONBLOCK)
    try:
        while True:
            os.write(filling, b"x")
    except BlockingIOError:
        os.close(filling)


@contextmanager
def gone() -> Iterator[IO[bytes]]:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb", buffering=0) as pipe:
        yield pipe


@contextmanager
def without_room() -> Iterator[IO[bytes]]:
    with Path("/dev/full").open("wb", buffering=0) as full:
        yield full


@pytest.mark.fault("H4")
@pytest.mark.slow
@pytest.mark.parametrize("reader", [stopped, gone, without_room])
async def test_a_log_that_nobody_takes_holds_up_no_request_no_mail_and_no_stop(
    dsn: str, reader: Callable[[], AbstractContextManager[IO[bytes]]]
) -> None:
    with reader() as log:
        async with (
            SmtpStub() as sink,
            program(dsn, "serve", "--port", "0", errors=log) as api,
            program(dsn, "process", errors=log, smtp_urls=f"smtp://127.0.0.1:{sink.port}?starttls=never") as follower,
            api.client() as http,
        ):
            assert (await http.post("/v1/registrations", json=ADA)).status_code == 202
            await eventually(lambda: sink.mails, within=60)

            for one in (api, follower):
                one.signal(signal.SIGTERM)
                assert await one.ends() == 0


@pytest.mark.fault("H4")
@pytest.mark.slow
def test_a_service_stops_though_nobody_reads_what_it_prints(dsn: str) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", buffering=0) as reader, os.fdopen(writing, "wb", buffering=0) as pipe:
        settings = clean_environment(DATABASE_URL=dsn, MASTER_KEY="7" * 64)
        service = fork("serve", "--port", "0", environment=settings, stdout=pipe, stderr=pipe)
        for line in reader:
            if line.startswith(b"API"):
                break
        fill(writing)

        os.kill(service.pid, signal.SIGTERM)

        assert service.wait(60) == 0
