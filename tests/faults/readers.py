"""Who read registrations as fast as they are answered, and see whether any read fails or goes back in time.

A process of its own (`python -m tests.faults.readers JOB`): what it takes is not taken from who rebuilds. It registers
people all the time, reads each of them from their 202 on, and prints what it saw, twice a second, as a line of JSON. It
ends with its standard input.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Final

import uvloop

from tests.support.load import Connection, get, post

CONNECTIONS: Final = 8
EVERY: Final = 0.5
NEWEST: Final = 50
"""Half of all reads are of them: their rows change."""

A_POSITION: Final = 20
AN_OPERATOR: Final = 200
"""One read in so many asks for a position that must be there already; one is an operator's, of another read model."""

MOST_TOLD: Final = 20

_POSITION = re.compile(rb'"position":(\d+)')
_ID = re.compile(rb'"registration_id":"([^"]+)"')


@dataclass(slots=True)
class Seen:
    """
    Attributes:
        reads: with an answer or without.
        failed, backwards: what was wrong, the first of them in words.
        registered: 202s.
    """

    reads: int = 0
    failed: int = 0
    backwards: int = 0
    registered: int = 0
    told: list[str] = field(default_factory=list)

    def fails(self, what: str) -> None:
        self.failed += 1
        self._tell(what)

    def goes_back(self, what: str) -> None:
        self.backwards += 1
        self._tell(what)

    def _tell(self, what: str) -> None:
        if len(self.told) < MOST_TOLD:
            self.told.append(what)


@dataclass(slots=True)
class _Known:
    """A registration: what it is read by, and the position that it was last seen at."""

    path: str
    begun: int
    seen: int = 0


class Readers:
    def __init__(self, seen: Seen, token: str) -> None:
        self._seen = seen
        self._known: list[_Known] = []
        self._chance = random.Random(7)  # noqa: S311 - repeatable
        self._newest_entry = 0
        bearer = f"HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\n\r\n"
        paths = ("/v1/admin/audit?limit=1", "/v1/admin/funnel", "/v1/admin/mail?limit=5", "/v1/admin/registrations")
        self._of_operators = [(path, f"GET {path} {bearer}".encode()) for path in paths]

    def know(self, connection: Connection) -> None:
        """Somebody has registered."""
        found = _ID.search(connection.body)
        assert found is not None
        path = f"/v1/registrations/{found[1].decode()}"
        self._known.append(_Known(path, int(connection.header(b"registrar-position"))))

    def read(self, connection: Connection) -> None:
        """And again, when the answer is there."""
        number = self._seen.reads = self._seen.reads + 1
        if number % AN_OPERATOR == 0:
            self._as_an_operator(connection, number)
            return
        newest = self._known[-NEWEST:]
        one = self._chance.choice(newest if number % 2 else self._known)
        least = one.seen
        path = f"{one.path}?min_position={one.begun}" if number % A_POSITION == 0 else one.path

        def answered(connection: Connection, status: int) -> None:
            found = _POSITION.search(connection.body)
            if status != 200 or found is None:
                self._seen.fails(f"{status} {path}")
            elif (position := int(found[1])) < least:
                self._seen.goes_back(f"{path} from {least} to {position}")
            else:
                one.seen = max(one.seen, position)
            self.read(connection)

        connection.send(get(path), answered)

    def _as_an_operator(self, connection: Connection, number: int) -> None:
        path, request = self._of_operators[number // AN_OPERATOR % len(self._of_operators)]
        least = self._newest_entry

        def answered(connection: Connection, status: int) -> None:
            if status != 200:
                self._seen.fails(f"{status} {path}")
            elif "audit" in path and (found := _POSITION.search(connection.body)) is not None:
                if int(found[1]) < least:
                    self._seen.goes_back(f"{path} from {least} to {int(found[1])}")
                self._newest_entry = max(self._newest_entry, int(found[1]))
            self.read(connection)

        connection.send(request, answered)


async def main(job: dict[str, str]) -> Seen:
    """Until standard input ends."""
    seen = Seen()
    readers = Readers(seen, job["token"])
    over = asyncio.get_running_loop().create_future()

    def failed(error: Exception) -> None:
        if not over.done():
            over.set_exception(error)

    async def connect() -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: Connection(failed), "127.0.0.1", int(job["port"])
        )
        return connection

    first = asyncio.Event()

    def registered(connection: Connection, status: int) -> None:
        assert status == 202, f"a registration was answered with {status}"
        seen.registered += 1
        readers.know(connection)
        first.set()

    async def register() -> None:
        connection = await connect()
        for number in count():
            body = json.dumps({"email": f"reader-{number}@readers.example", "name": "Ada Lovelace"}).encode()
            connection.send(post("/v1/registrations", body), registered)
            await asyncio.sleep(1 / float(job["rate"]))

    async def tell() -> None:
        while True:
            print(json.dumps(asdict(seen)), flush=True)
            await asyncio.sleep(EVERY)

    async def until_told() -> None:
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        over.set_result(None)

    tasks = [asyncio.create_task(work) for work in (register(), tell(), until_told())]
    await first.wait()
    for _ in range(CONNECTIONS):
        readers.read(await connect())
    await asyncio.wait([over, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await over
    return seen


# --- For those who start it ------------------------------------------------------------------------


class Watched:
    """What the readers have seen so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.seen = Seen()
        self._process = process

    async def watch(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.seen = Seen(**json.loads(line))


@asynccontextmanager
async def reading(port: int, token: str, *, rate: float) -> AsyncIterator[Watched]:
    """People read and register at this port, `rate` a second, until the end of the block."""
    job = json.dumps({"port": str(port), "token": token, "rate": str(rate)})
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.faults.readers",
        job,
        cwd=Path(__file__).parents[2],
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    watched = Watched(process)
    watching = asyncio.create_task(watched.watch())
    try:
        yield watched
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await watching
        code = await process.wait()
    assert code == 0, "the readers failed; see above"


if __name__ == "__main__":
    print(json.dumps(asdict(uvloop.run(main(json.loads(sys.argv[1]))))))
