"""HTTP proxies with the configurations that we recommend, what stands behind them, and clients in front of them."""

from __future__ import annotations

import asyncio
import json
import random
import re
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from ipaddress import ip_network
from pathlib import Path
from typing import Final, Protocol

import httpx
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from entrypoints.api.client_address import network_of
from entrypoints.api.http_server import Server
from tests.support.commands import clean_environment
from tests.support.facts import eventually
from tests.support.http import MASTER_KEY, NO_TLS, TOKEN
from tests.support.preforked import Forked, fork

ROOT: Final = Path(__file__).parents[2]
HOST: Final = "accounts.example.org"
ITSELF: Final = ip_network("127.0.0.1/32")
"""Where every proxy connects from; clients have other addresses of this machine."""

LANGUAGES: Final = {"haproxy-http": "haproxy", "apache": "apache", "varnish": "vcl", "caddy": "caddyfile"}
_BACKEND: Final = re.compile(r'\bapi-([12])("; \.port = "|:)8000\b')


class Proxy(Protocol):
    """A proxy on this machine, with an address in 127.0.0.0/8 and one in IPv6."""

    @property
    def name(self) -> str: ...

    @property
    def port(self) -> int:
        """Where clients come in."""
        ...

    async def use(self, backends: Sequence[int], *change: tuple[str, str]) -> None:
        """Run it anew in front of these two ports.

        Args:
            change: of its configuration: texts that are replaced by others.
        """


def configuration(name: str, port: int, backends: Sequence[int], change: Sequence[tuple[str, str]], run: str) -> str:
    """What we recommend, for these ports.

    Args:
        run: the folder for files that it makes.
    """
    if name == "nginx":
        text = (ROOT / "deploy/nginx.conf").read_text().replace("/tmp/", f"{run}/")  # noqa: S108 - as it says there
        text = text.replace("access_log /dev/stdout", f"access_log {run}/access.log")
    else:
        page = (ROOT / "docs/proxies.md").read_text()
        (text,) = re.findall(rf"^```{LANGUAGES[name]}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    for this, that in change:
        assert text.count(this) == 1, f"{this!r} is not in the configuration of {name} once"
        text = text.replace(this, that)
    text, found = _BACKEND.subn(lambda it: f"127.0.0.1{it[2]}{backends[int(it[1]) - 1]}", text)
    assert found == 2, f"{found} backends in the configuration of {name}"
    assert "8080" in text
    return text.replace("8080", str(port))


def kept_ports(number: int) -> list[int]:
    """Ports that nobody listens on now and that no client is given: for what is stopped and started amid a crowd."""
    below = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports: list[int] = []
    while len(ports) < number:
        port = random.randrange(below // 2, below)  # noqa: S311 - no secret
        with suppress(OSError), socket.create_server(("", port)):
            ports.append(port)
    return ports


# --- Clients --------------------------------------------------------------------------------------


def client_at(source: str, proxy: Proxy, **headers: str) -> httpx.AsyncClient:
    """A client with this address, an IPv4 or IPv6 address of this machine, that asks for the service by its name."""
    base = f"http://[::1]:{proxy.port}" if ":" in source else f"http://127.0.0.1:{proxy.port}"
    return httpx.AsyncClient(
        transport=httpx.AsyncHTTPTransport(local_address=source, verify=NO_TLS),
        base_url=base,
        headers={"Host": HOST, **headers},
        timeout=40,
    )


async def spoken(proxy: Proxy, head: str, *pieces: bytes) -> bytes:
    """What comes back to a request that is written by hand, until the connection is closed; after the head, each piece
    waits for something to come back, or a moment."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port, local_addr=("127.0.0.2", 0))
    answer = b""
    try:
        writer.write(head.replace("\n", "\r\n").encode() + b"\r\n")
        for number, piece in enumerate(pieces):
            if number == 0 and "100-continue" in head:
                async with asyncio.timeout(10):
                    answer += await reader.readuntil(b"\r\n\r\n")
            writer.write(piece)
            await writer.drain()
        async with asyncio.timeout(40):
            return answer + await reader.read()
    finally:
        writer.close()


# --- What stands behind ---------------------------------------------------------------------------


class Recorder:
    """Answers every request with what arrived, through the server of ours, which believes the proxy.

    Attributes:
        connections: by which requests came, where it does not believe the proxy.
        arrived: how many requests.
    """

    def __init__(self) -> None:
        self.app = FastAPI(telemetry={"tracing": False, "metrics": False, "logs": False})
        self.app.add_route("/{path:path}", self._show, methods=["GET", "HEAD", "POST"], include_in_schema=False)
        self.connections: set[int] = set()
        self.arrived = 0

    async def _show(self, request: Request) -> Response:
        if request.url.path.startswith("/health/"):
            return JSONResponse({})
        self.arrived += 1
        assert request.client is not None
        self.connections.add(request.client.port)
        body = (await request.body()).decode()
        seen = {"network": network_of(request.scope), "method": request.method, "scheme": request.url.scheme}
        seen |= {"http": request.scope["http_version"], "body": body}
        headers = {name.decode(): value.decode("latin-1") for name, value in request.scope["headers"]}
        return JSONResponse(seen | {"headers": headers}, headers={"Cache-Control": "no-store"})

    @asynccontextmanager
    async def serving(self, *ports: int, trusting: bool = True) -> AsyncIterator[None]:
        """
        Args:
            trusting: believe the proxy; otherwise its connections can be told apart.
        """
        async with AsyncExitStack() as stack:
            for port in ports:
                trusted = (ITSELF,) if trusting else ()
                server = Server(self.app, host="127.0.0.1", port=port, trusted_proxies=trusted)
                await server.start()
                stack.push_async_callback(server.stop)
            yield


class Upstream:
    """One `registrar serve` on a port of its own."""

    def __init__(self, port: int, settings: Mapping[str, str], directory: Path) -> None:
        self.port = port
        self._settings = settings
        self._directory = directory
        self._process: Forked | None = None

    async def start(self, armed: str | None = None) -> None:
        """Until it is ready.

        Args:
            armed: the crash point at which it dies.
        """
        with (self._directory / f"{self.port}.log").open("ab") as log:
            self._process = fork(
                *("serve", "--port", str(self.port)),
                environment=clean_environment(**self._settings),
                stdout=log,
                stderr=log,
                armed=(armed, self._directory) if armed else None,
            )
        await eventually(self.is_ready, within=60, every=0.1)

    async def is_ready(self) -> bool:
        try:
            return (await self._get("/health/ready")).status_code == 200
        except httpx.TransportError:
            return False

    async def requests(self) -> int:
        """That it has answered on the public routes, but for health."""
        lines = (await self._get("/metrics")).text.splitlines()
        counts = [line for line in lines if line.startswith('registrar_requests_seconds_count{route="/v1/reg')]
        return int(sum(float(line.split()[-1]) for line in counts))

    async def _get(self, path: str) -> httpx.Response:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", verify=NO_TLS, timeout=10) as http:
            return await http.get(path, headers={"Authorization": f"Bearer {TOKEN}"})

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    async def stop(self) -> None:
        """As an operator does, until it has ended; repeatable."""
        process = self._process
        if process is not None and process.poll() is None:
            self._send(signal.SIGTERM)
            await eventually(lambda: process.poll() is not None, within=60)

    async def ended(self) -> None:
        """Once it has died by itself."""
        process = self._process
        assert process is not None
        await eventually(lambda: process.poll() is not None, within=60)

    def _send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)


@asynccontextmanager
async def upstreams(dsn: str, ports: Sequence[int], **settings: str) -> AsyncIterator[list[Upstream]]:
    """Two of `serve`, as they are run behind a proxy."""
    with tempfile.TemporaryDirectory(prefix="registrar-proxied-") as name:
        given = {
            "DATABASE_URL": dsn,
            "MASTER_KEY": MASTER_KEY,
            "ADMIN_TOKEN": TOKEN,
            "PUBLIC_URL": f"https://{HOST}",
            "TRUSTED_PROXIES": str(ITSELF),
            "STOP_DELAY": "3s",
            "LOG_FORMAT": "json",
        }
        both = [Upstream(port, given | settings, Path(name)) for port in ports]
        try:
            await asyncio.gather(*(one.start() for one in both))
            yield both
        finally:
            for one in both:
                one.kill()


def problem(answer: httpx.Response) -> str:
    """The error code of a problem of ours, the status of anything else."""
    try:
        return str(json.loads(answer.text)["type"]).rpartition(":")[2]
    except (ValueError, KeyError, TypeError):
        return str(answer.status_code)
