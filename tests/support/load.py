"""A load generator in one process: raw HTTP/1.1 on kept connections, closed loop or open loop.

In the open loop arrivals are planned beforehand and latency counts from the planned start, so a server that stalls
cannot slow the questions down; how late the generator itself was is reported beside the result.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain, count
from typing import cast

import uvloop


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run saw.

    Attributes:
        seconds: how long it ran.
        statuses: answers by status code.
        latencies: seconds, sorted; from the planned start in the open loop.
        by_status: the same, each status by itself; empty in the closed loop.
        lateness: seconds by which the generator sent later than planned, sorted; empty in the closed loop.
        moments: by number, when a request was planned and when it was answered with success, in seconds of the
            machine's monotonic clock; empty in the closed loop.
        cpu: seconds of CPU that the generator itself took.
    """

    seconds: float
    statuses: dict[int, int]
    latencies: list[float]
    lateness: list[float]
    moments: dict[int, tuple[float, float]] = field(default_factory=dict)
    by_status: dict[int, list[float]] = field(default_factory=dict)
    cpu: float = 0.0

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return sum(n for status, n in self.statuses.items() if 200 <= status < 300) / self.seconds

    def percentile(self, share: float) -> float:
        """Seconds within which this share of the answers came."""
        return self.latencies[min(len(self.latencies) - 1, int(share * len(self.latencies)))]


class Connection(asyncio.Protocol):
    """One request at a time; answers need a Content-Length.

    By callbacks, without a task or a future for a request: the generator shares the cores with what it measures, and
    at four times the peak its own work would be part of the result.

    Attributes:
        number: of the request under way.
        head, body: of the last answer.
        lost: it is closed; what was under way got no answer, which is status 0.
        failed: told what `then` raised.
    """

    def __init__(self, failed: Callable[[Exception], None]) -> None:
        self.failed = failed
        self.number = 0
        self.head = self.body = b""
        self.lost = False
        self._buffer = b""
        self._then: Callable[[Connection, int], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are not subclasses

    def connection_lost(self, _: Exception | None) -> None:
        self.lost = True
        self._end(0)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        at = self._buffer.find(b"content-length: ", 0, end)
        if at < 0:
            at = self._buffer.lower().find(b"content-length: ", 0, end)
        whole = end + 4 + (int(self._buffer[at + 16 : self._buffer.find(b"\r", at)]) if at >= 0 else 0)
        if len(self._buffer) < whole:
            return
        status = int(self._buffer[9:12])
        self.head, self.body = self._buffer[:end], self._buffer[end + 4 : whole]
        self._buffer = self._buffer[whole:]
        self._end(status)

    def _end(self, status: int) -> None:
        then, self._then = self._then, None
        if then is not None:
            try:
                then(self, status)
            except Exception as error:  # noqa: BLE001 - in a callback nobody would hear of it, and the run never end
                self.failed(error)

    def send(self, request: bytes, then: Callable[[Connection, int], None]) -> None:
        """Ask; `then` is told the answer's status."""
        self._then = then
        self._transport.write(request)

    def header(self, name: bytes) -> str:
        """A header of the last answer."""
        at = self.head.lower().index(b"\r\n" + name + b": ") + len(name) + 4
        return self.head[at:].partition(b"\r\n")[0].decode()

    def close(self) -> None:
        self._transport.close()


async def closed_loop(
    port: int, make: Callable[[int], bytes], *, connections: int, seconds: float, warm_up: float = 1.0
) -> Outcome:
    """Every connection asks as soon as it has its answer."""
    run = _Run()
    begun = time.perf_counter() + warm_up
    end = begun + seconds
    started: dict[Connection, float] = {}
    number = count()

    def ask(connection: Connection) -> None:
        started[connection] = time.perf_counter()
        connection.send(make(next(number)), answered)

    def answered(connection: Connection, status: int) -> None:
        now, since = time.perf_counter(), started[connection]
        if since >= begun:
            run.count(status, now - since)
        if now < end and not connection.lost:
            ask(connection)
        else:
            del started[connection]
            if not started:
                run.end()

    for connection in await run.connect(port, connections):
        ask(connection)
    await run.ended
    return run.outcome(time.perf_counter() - begun)


async def open_loop(
    port: int,
    make: Callable[[int], bytes],
    *,
    rate: float,
    seconds: float,
    connections: int = 256,
    then_see: bool = False,
) -> Outcome:
    """Arrivals at a fixed rate, whatever the server does; a request waits for a free connection if all are busy.

    Args:
        then_see: a write counts as answered once a read shows its effect.
    """
    run = _Run()
    total = int(rate * seconds)
    moments: dict[int, tuple[float, float]] = {}
    lateness: list[float] = []
    waiting: deque[int] = deque()
    free = await run.connect(port, connections)
    begun = time.perf_counter() + 0.1

    def ask(connection: Connection, number: int) -> None:
        connection.number = number
        connection.send(make(number), look if then_see else answered)

    def look(connection: Connection, status: int) -> None:
        if status >= 300 or not status:
            answered(connection, status)
            return
        where, position = connection.header(b"location"), connection.header(b"registrar-position")
        connection.send(get(f"{where}?min_position={position}"), answered)

    def answered(connection: Connection, status: int) -> None:
        now, planned = time.perf_counter(), begun + connection.number / rate
        run.count(status, now - planned)
        if 0 < status < 300:
            moments[connection.number] = (planned, now)
        if sum(run.statuses.values()) == total:
            run.end()
        elif connection.lost:
            run.check()
        elif waiting:
            ask(connection, waiting.popleft())
        else:
            free.append(connection)

    for number in range(total):
        planned = begun + number / rate
        wait = planned - time.perf_counter()
        if wait > 0 or number % 16 == 0:  # who is late listens all the same
            await asyncio.sleep(max(0.0, wait))
        lateness.append(max(0.0, time.perf_counter() - planned))
        while free and free[0].lost:
            free.popleft()
        if free:
            ask(free.popleft(), number)
        else:
            waiting.append(number)
            run.check()
    await run.ended
    return run.outcome(time.perf_counter() - begun, sorted(lateness), moments)


class _Run:
    """What both loops keep: connections, what was answered, and whether it is over.

    Attributes:
        ended: over; fails with ConnectionError if every connection was lost before.
    """

    def __init__(self) -> None:
        self.statuses: dict[int, int] = {}
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._by_status: dict[int, list[float]] = {}
        self._connections: list[Connection] = []

    async def connect(self, port: int, connections: int) -> deque[Connection]:
        loop = asyncio.get_running_loop()
        for _ in range(connections):
            _, connection = await loop.create_connection(lambda: Connection(self.fail), "127.0.0.1", port)
            self._connections.append(connection)
        return deque(self._connections)

    def check(self) -> None:
        """Somebody waits, or may: is there a connection left to wait for?"""
        if all(connection.lost for connection in self._connections) and not self.ended.done():
            self.ended.set_exception(ConnectionResetError("the server ended every connection"))

    def count(self, status: int, took: float) -> None:
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if status:
            self._by_status.setdefault(status, []).append(took)

    def fail(self, error: Exception) -> None:
        if not self.ended.done():
            self.ended.set_exception(error)

    def end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)
        for connection in self._connections:
            connection.close()

    def outcome(
        self,
        seconds: float,
        lateness: list[float] | None = None,
        moments: dict[int, tuple[float, float]] | None = None,
    ) -> Outcome:
        by_status = {status: sorted(took) for status, took in self._by_status.items()}
        latencies = sorted(chain.from_iterable(by_status.values()))
        return Outcome(seconds, self.statuses, latencies, lateness or [], moments or {}, by_status)


def registration(tag: str, password: str | None = None) -> Callable[[int], bytes]:
    """Requests to register, each with an address of its own."""

    def make(number: int) -> bytes:
        return post("/v1/registrations", f'{{"email": "{tag}-{number}@bench.example", {rest}'.encode())

    rest = json.dumps({"name": "Ada Lovelace"} | ({"password": password} if password else {})).removeprefix("{")
    return make


def post(path: str, body: bytes, token: str | None = None) -> bytes:
    """
    Args:
        token: the operators'.
    """
    as_operator = "" if token is None else f"Authorization: Bearer {token}\r\n"
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\n{as_operator}Content-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()


def main() -> None:
    """Run as a process of its own: the arguments come as JSON, the outcome goes out as JSON."""
    job = json.loads(sys.argv[1])
    if "core" in job and (os.cpu_count() or 1) > job["core"]:
        os.sched_setaffinity(0, {job["core"]})
    if job["what"] == "register":
        make = registration(job["tag"], job.get("password"))
    else:
        asks = partial(post, body=job["body"].encode(), token=job.get("token")) if job["what"] == "post" else get
        requests = [asks(path) for path in job["paths"]]
        make = lambda number: requests[number % len(requests)]  # noqa: E731
    if "rate" in job:
        optional = {name: job[name] for name in ("connections", "then_see") if name in job}
        work = open_loop(job["port"], make, rate=job["rate"], seconds=job["seconds"], **optional)
    else:
        work = closed_loop(job["port"], make, connections=job["connections"], seconds=job["seconds"])
    gc.disable()  # a minute of this is well within memory, and a pause would be taken for the server's
    outcome = uvloop.run(work)
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps(asdict(replace(outcome, cpu=used.ru_utime + used.ru_stime))))


if __name__ == "__main__":
    main()
