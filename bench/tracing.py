"""What tracing costs: CPU of a registration's whole way, in services that differ in nothing else, turn by turn."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from bench.cluster import Cluster
from bench.report import Row
from bench.whole_way import Service, send, service_on

RATE: Final = 150.0
"""Registrations a second: far below the peak, so that the CPU of each is the same whatever the machine does beside."""

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
        services = {how: stack.enter_context(service_on(cluster, more)) for how, more in settings.items()}
        for number in range(repetitions):
            order = list(services)
            for how in order[number % len(order) :] + order[: number % len(order)]:
                found.setdefault(how, []).append(_cpu_of_one(services[how], seconds))
    return [_row(how, found) for how in CEILINGS]


def _cpu_of_one(service: Service, seconds: float) -> float:
    before = service.cpu()
    step = send(service, rate=RATE, seconds=seconds)
    assert step["accepted"] == step["sent"], step
    used = {who: cpu - before.get(who, 0.0) for who, cpu in service.cpu().items() if who != "sink"}
    return sum(used.values()) / int(step["sent"])


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
