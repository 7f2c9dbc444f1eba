"""Where HTTP is served: the listeners of a process, each with an application of its own."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from entrypoints.api.app import create_app
from entrypoints.api.connections import shares
from entrypoints.api.http_server import Server
from entrypoints.api.parts import Parts
from entrypoints.bootstrap import CannotStart
from entrypoints.bootstrap.background import note_end
from entrypoints.cli.libraries import without_pydantic_v1
from infrastructure.settings.settings import Settings
from infrastructure.settings.values import Listen


@dataclass(frozen=True, slots=True)
class Addresses:
    """Base URLs of what clients reach, and of what operators reach."""

    public: str
    admin: str


@dataclass(frozen=True, slots=True)
class _Listener:
    """
    Attributes:
        chosen_by: the setting or options that say where.
        public, admin: whose routes; see `create_app`.
        connections: see `Server`.
    """

    where: Listen
    chosen_by: str
    public: bool = True
    admin: bool = True
    connections: int | None = None


@asynccontextmanager
async def listening(parts: Parts, settings: Settings) -> AsyncIterator[Addresses]:
    """Serve HTTP: everything on one address, or what is for operators on its own (`ADMIN_LISTEN`).

    At the end no new request is taken, and those in flight are finished.
    """
    main, options = Listen(settings.host, settings.port), "--host and --port"
    async with _servers() as servers:
        if settings.admin_listen is None:
            url = await _listen(_Listener(main, options), parts, settings, servers)
            yield Addresses(url, url)
        else:
            most, theirs = shares()
            operators = _Listener(settings.admin_listen, "REGISTRAR_ADMIN_LISTEN", public=False, connections=theirs)
            registrants = _Listener(main, options, admin=False, connections=most)
            yield Addresses(
                admin=await _listen(operators, parts, settings, servers),
                public=await _listen(registrants, parts, settings, servers),
            )


@asynccontextmanager
async def listening_for_operators(parts: Parts, settings: Settings, where: Listen) -> AsyncIterator[str]:
    """Serve what is for operators alone; yields its base URL."""
    async with _servers() as servers:
        yield await _listen(_Listener(where, "REGISTRAR_ADMIN_LISTEN", public=False), parts, settings, servers)


@asynccontextmanager
async def _servers() -> AsyncIterator[list[Server]]:
    """For those that are started in the block; they stop together, as a wait for one is a wait for all."""
    servers: list[Server] = []
    try:
        yield servers
    finally:
        await asyncio.gather(*(server.stop() for server in servers))


async def _listen(listener: _Listener, parts: Parts, settings: Settings, servers: list[Server]) -> str:
    """Start to serve; returns the base URL."""
    where = listener.where
    with without_pydantic_v1():
        app = create_app(parts, public=listener.public, admin=listener.admin)
    server = Server(
        app,
        host=where.host,
        port=where.port,
        on_stopping=parts.checks.stop,
        on_ended=partial(note_end, parts.broken),
        grace=settings.request_timeout,
        stop_delay=settings.stop_delay,
        trusted_proxies=settings.trusted_proxies,
        metrics=parts.metrics,
        connections=listener.connections,
        prefix=parts.prefix,
    )
    try:
        await server.start()
    except OSError as error:
        reason = "another program uses it" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
        raise CannotStart(
            f"Cannot listen on {where.host}:{where.port}: {reason}; choose another with {listener.chosen_by}."
        ) from None
    servers.append(server)
    # Nobody can click on a wildcard.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(where.host, where.host)  # noqa: S104 - compared, not bound
    return f"http://{f'[{host}]' if ':' in host else host}:{server.port}"
