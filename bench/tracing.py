"""What tracing costs: CPU of a registration's whole way, in services that differ in nothing else, turn by turn."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

import psycopg

from bench.cluster import Cluster
from bench.processes import cpu_seconds
from bench.report import Row
from bench.whole_way import Service, send, service_on

RATE: Final = 300.0
"""Registrations a second: below the peak, so that all mails go out in time whatever the machine does beside."""

CALM: Final = {"REGISTRAR_VERIFY_INTERVAL": "0"}
"""No work in the background that some turns have and others have not."""

OFF: Final = "off"

CEILINGS: Final = {"every trace": 1.10, "one trace in a hundred": 1.10, "a collector that hangs": 1.10}


@contextmanager
def _collector(*, hangs: bool = False) -> Iterator[str]:
    """Takes all that it is sent, or answers nothing until the end; its URL."""
    over = threading.Event()

    class Collect(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            if hangs:
                over.wait()
                return
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the standard library's name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collect)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        over.set()
        server.shutdown()
        server.server_close()


def run(cluster: Cluster, *, seconds: float, repetitions: int) -> list[Row]:
    """CPU of `serve`, `process` and PostgreSQL for a registration and its mail, with a collector and without."""
    found: dict[str, list[float]] = {}
    with ExitStack() as stack:
        url = stack.enter_context(_collector())
        settings = {
            OFF: {},
            "every trace": {"REGISTRAR_OTLP_ENDPOINT": url},
            "one trace in a hundred": {"REGISTRAR_OTLP_ENDPOINT": url, "REGISTRAR_TRACE_RATIO": "0.01"},
            "a collector that hangs": {"REGISTRAR_OTLP_ENDPOINT": stack.enter_context(_collector(hangs=True))},
        }
        services = {how: stack.enter_context(service_on(cluster, CALM | more)) for how, more in settings.items()}
        for number in range(repetitions):
            order = list(services)
            for how in order[number % len(order) :] + order[: number % len(order)]:
                found.setdefault(how, []).append(_cpu_of_one(services[how], seconds))
    return [_row(how, found) for how in CEILINGS]


_SESSIONS: Final = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


def _cpu_of_one(service: Service, seconds: float) -> float:
    before = _cpu(service)
    step = send(service, rate=RATE, seconds=seconds)
    assert step["accepted"] == step["sent"], step
    return (_cpu(service) - before) / int(step["sent"])


def _cpu(service: Service) -> float:
    """CPU seconds of its processes and of the database's sessions; those of the other services only wait."""
    with psycopg.connect(service.dsn, autocommit=True) as connection:
        rows = connection.execute(_SESSIONS).fetchall()
    return sum(cpu_seconds(pid) for pid in (service.serve.pid, service.process.pid, *(pid for (pid,) in rows)))


def _row(how: str, found: dict[str, list[float]]) -> Row:
    ratio = statistics.median(one / off for one, off in zip(found[how], found[OFF], strict=True))
    return Row(
        f"CPU of a registration to the mail server's acceptance, traced: {how}",
        "tracing off",
        f"{statistics.median(found[how]) * 1e3:.2f} ms",
        f"{statistics.median(found[OFF]) * 1e3:.2f} ms",
        ratio,
        "x",
        CEILINGS[how],
        at_least=False,
        details={"seconds of CPU": {who: found[who] for who in (how, OFF)}},
    )
