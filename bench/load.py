"""A load generator in one process: raw HTTP/1.1 on kept connections, closed loop or open loop.

In the open loop arrivals are planned beforehand and latency counts from the planned start, so a server that stalls
cannot slow the questions down; how late the generator itself was is reported beside the result.
"""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
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


class _Connection(asyncio.Protocol):
    """One request at a time; answers need a Content-Length."""

    def __init__(self) -> None:
        self._buffer = b""
        self._answer: asyncio.Future[int] | None = None
        self.head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are not subclasses

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError())

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        at = self._buffer.lower().find(b"content-length: ", 0, end)
        length = int(self._buffer[at + 16 : self._buffer.find(b"\r", at)]) if at >= 0 else 0
        if len(self._buffer) < end + 4 + length:
            return
        status = int(self._buffer[9:12])
        self.head = self._buffer[:end]
        self._buffer = self._buffer[end + 4 + length :]
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(status)

    async def ask(self, request: bytes) -> int:
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

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
    loop = asyncio.get_running_loop()
    statuses: dict[int, int] = {}
    latencies: list[float] = []
    number = iter(range(10**9))
    begun = time.perf_counter() + warm_up
    end = begun + seconds

    async def work() -> None:
        _, connection = await loop.create_connection(_Connection, "127.0.0.1", port)
        while (started := time.perf_counter()) < end:
            status = await connection.ask(make(next(number)))
            if started >= begun:
                statuses[status] = statuses.get(status, 0) + 1
                latencies.append(time.perf_counter() - started)
        connection.close()

    await asyncio.gather(*(work() for _ in range(connections)))
    return Outcome(time.perf_counter() - begun, statuses, sorted(latencies), [])


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
    loop = asyncio.get_running_loop()
    free: asyncio.Queue[_Connection] = asyncio.Queue()
    for _ in range(connections):
        free.put_nowait((await loop.create_connection(_Connection, "127.0.0.1", port))[1])
    statuses: dict[int, int] = {}
    latencies: list[float] = []
    by_status: dict[int, list[float]] = {}
    lateness: list[float] = []
    moments: dict[int, tuple[float, float]] = {}
    begun = time.perf_counter() + 0.1

    async def ask(number: int, planned: float) -> None:
        connection = await free.get()
        try:
            status = await connection.ask(make(number))
            if then_see:
                where, position = connection.header(b"location"), connection.header(b"registrar-position")
                status = await connection.ask(get(f"{where}?min_position={position}"))
        except ConnectionError:
            statuses[0] = statuses.get(0, 0) + 1
            return
        answered = time.perf_counter()
        statuses[status] = statuses.get(status, 0) + 1
        latencies.append(answered - planned)
        by_status.setdefault(status, []).append(answered - planned)
        if status < 300:
            moments[number] = (planned, answered)
        free.put_nowait(connection)

    tasks = []
    for number in range(int(rate * seconds)):
        planned = begun + number / rate
        wait = planned - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        lateness.append(max(0.0, time.perf_counter() - planned))
        tasks.append(asyncio.create_task(ask(number, planned)))
    await asyncio.gather(*tasks)
    elapsed = time.perf_counter() - begun
    while not free.empty():
        free.get_nowait().close()
    return Outcome(
        elapsed, statuses, sorted(latencies), sorted(lateness), moments, {k: sorted(v) for k, v in by_status.items()}
    )


def registration(tag: str, password: str | None = None) -> Callable[[int], bytes]:
    """Requests to register, each with an address of its own."""

    def make(number: int) -> bytes:
        body: dict[str, str] = {"email": f"{tag}-{number}@bench.example", "name": "Ada Lovelace"}
        if password:
            body["password"] = password
        return post("/v1/registrations", json.dumps(body).encode())

    return make


def post(path: str, body: bytes) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()


def main() -> None:
    """Run as a process of its own: the arguments come as JSON, the outcome goes out as JSON."""
    job = json.loads(sys.argv[1])
    if job["what"] == "register":
        make = registration(job["tag"], job.get("password"))
    elif job["what"] == "post":
        request = post(job["path"], job["body"].encode())
        make = lambda _: request  # noqa: E731
    else:
        requests = [get(path) for path in job["paths"]]
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
