"""The commands that keep running: `up`, `serve`, `process` and `work`, from their first line to their last."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version

import click
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from entrypoints.api.app import Parts, create_app
from entrypoints.api.http_server import Server, shares
from entrypoints.bootstrap import CannotStart, roles
from entrypoints.cli.garbage_collection import keep_what_is_there
from entrypoints.cli.output import note
from entrypoints.cli.session import log_everything, log_troubles, opened
from infrastructure.embedded.data_directory import DataDirectory
from infrastructure.settings.settings import Settings
from infrastructure.settings.values import Listen


async def up(settings: Settings) -> int:
    """Everything in one process, on one data directory that is this process's alone until it ends."""
    log_troubles(settings)
    with DataDirectory(settings.data_dir).locked(), _until_stopped() as stop:
        async with (
            opened(roles.up(settings)) as running,
            _listening(running.api, settings) as addresses,
        ):
            if not stop.is_set():
                _print_screen(running.api, settings, addresses)
                log_everything(settings)
            keep_what_is_there()
            await stop.wait()
    return _stopped()


async def serve(settings: Settings) -> int:
    """The API alone."""
    log_troubles(settings)
    with _until_stopped() as stop:
        async with opened(roles.serve(settings)) as running, _listening(running.api, settings) as addresses:
            click.echo(f"{'API':<{_LABEL}}{addresses.public}")
            log_everything(settings)
            keep_what_is_there()
            await stop.wait()
    return _stopped()


async def process(settings: Settings) -> int:
    """The followers alone.

    Raises:
        CannotStart: it is to deliver, and there is no mail server; the mailbox is a part of `up`.
    """
    if settings.broker_url is None:
        _demand_mail_servers(settings)
    says = "Following the log; `registrar projections list` shows how far."
    return await _in_the_background(roles.process(settings), settings, says)


async def work(settings: Settings) -> int:
    """The mail worker and the consumer of dead letters alone.

    Raises:
        CannotStart: there is no mail server; the mailbox is a part of `up`.
    """
    if settings.broker_url is None:
        click.echo(
            "Nothing to do: without REGISTRAR_BROKER_URL, `registrar process` and `registrar up` deliver the mail."
        )
        return 0
    _demand_mail_servers(settings)
    says = "Taking mails from RabbitMQ; /health/rabbitmq shows how many wait."
    return await _in_the_background(roles.work(settings), settings, says)


def _demand_mail_servers(settings: Settings) -> None:
    if not settings.mail_servers:
        raise CannotStart("REGISTRAR_SMTP_URLS is not set; set it, or run `registrar up`, which has a mailbox.")


async def _in_the_background(role: AbstractAsyncContextManager[roles.Process], settings: Settings, says: str) -> int:
    """A process that serves nobody, but operators where `ADMIN_LISTEN` is set."""
    log_troubles(settings)
    with _until_stopped() as stop:
        async with opened(role) as running, _servers() as servers:
            if settings.admin_listen is not None:
                # What this process counts (mails, circuits, time to inbox) is nowhere else.
                operators = _Listener(settings.admin_listen, "REGISTRAR_ADMIN_LISTEN", public=False)
                url = await _listen(operators, running.api, settings, servers)
                click.echo(f"{'Metrics':<{_LABEL}}{url}/metrics")
            click.echo(says)
            log_everything(settings)
            keep_what_is_there()
            await stop.wait()
    return _stopped()


def _stopped() -> int:
    click.echo("stopped")
    return 0


@contextmanager
def _until_stopped() -> Iterator[asyncio.Event]:
    """The event is set by the first signal, which asks for an orderly end.

    The next one cuts short whatever is being waited for, and what is left open is closed at once; the one after that
    ends the process where it stands. Nothing acknowledged is lost either way.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None  # noqa: S101 - the caller is a coroutine
    stop = asyncio.Event()
    asked = 0

    def ask() -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            stop.set()
            with suppress(OSError):  # a terminal that is gone
                note("stopping; once more stops at once")
        elif asked == 2:
            task.cancel()
        else:
            os._exit(130)

    for one in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(one, ask)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # under nohup it is to survive its terminal
        loop.add_signal_handler(signal.SIGHUP, ask)
    yield stop


# --- Listening --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Addresses:
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
async def _listening(parts: Parts, settings: Settings) -> AsyncIterator[_Addresses]:
    """Serve HTTP: everything on one address, or what is for operators on its own (`ADMIN_LISTEN`).

    At the end no new request is taken, and those in flight are finished.
    """
    main, options = Listen(settings.host, settings.port), "--host and --port"
    async with _servers() as servers:
        if settings.admin_listen is None:
            url = await _listen(_Listener(main, options), parts, settings, servers)
            yield _Addresses(url, url)
        else:
            most, theirs = shares()
            operators = _Listener(settings.admin_listen, "REGISTRAR_ADMIN_LISTEN", public=False, connections=theirs)
            registrants = _Listener(main, options, admin=False, connections=most)
            yield _Addresses(
                admin=await _listen(operators, parts, settings, servers),
                public=await _listen(registrants, parts, settings, servers),
            )


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
    server = Server(
        create_app(parts, public=listener.public, admin=listener.admin),
        host=where.host,
        port=where.port,
        on_stopping=parts.checks.stop,
        grace=settings.request_timeout,
        stop_delay=settings.stop_delay,
        trusted_proxies=settings.trusted_proxies,
        metrics=parts.metrics,
        connections=listener.connections,
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


# --- The screen -------------------------------------------------------------------------------

_LABEL = 10
"""Width of the labels: a line is the label, padded, and what it names."""


def _print_screen(parts: Parts, settings: Settings, addresses: _Addresses) -> None:
    """Everything a person needs to start, in one screen; a program reads the same lines without the frame."""
    lines = _lines(parts, settings, addresses)
    register = (
        f"curl -i {addresses.public}/v1/registrations -H 'Content-Type: application/json' "
        """-d '{"email": "ada@example.com", "name": "Ada Lovelace"}'"""
    )
    title = f"Registrar {version('registrar')} is ready"
    screen = Console(highlight=False)
    if screen.is_terminal:
        table = Table.grid(padding=(0, 2))
        for label, value in lines.items():
            table.add_row(Text(label, style="bold"), Text(value, overflow="fold"))
        screen.print(Panel(table, title=title, title_align="left", expand=False, padding=(1, 2)))
    else:
        click.echo(title)
        for label, value in lines.items():
            click.echo(f"{label:<{_LABEL}}{value}")
    # Outside of the frame and in one line, so that it can be copied.
    click.echo(f"\nA first registration:\n\n{register}\n\nCtrl-C stops it; the log follows.\n")


def _lines(parts: Parts, settings: Settings, addresses: _Addresses) -> dict[str, str]:
    lines = {"API": addresses.public, "Docs": f"{addresses.admin}/docs"}
    if parts.mailbox is not None:
        lines["Mailbox"] = f"{addresses.public}/mailbox"
    lines |= {"Health": f"{addresses.public}/health/ready", "Metrics": f"{addresses.admin}/metrics"}
    if settings.database_url is None:
        lines["Data"] = str(settings.data_dir.resolve())
    if parts.admin_token is None:
        lines["Admin"] = "off; REGISTRAR_ADMIN_TOKEN switches /v1/admin on"
    elif settings.admin_token is None:
        lines["Admin"] = f"Authorization: Bearer {parts.admin_token}"  # made here, and shown nowhere else
    return lines
