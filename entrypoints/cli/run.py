"""The commands that keep running: `up`, `serve`, `process`, `work` and `bounces`, from their first line to their last.

FastAPI is a quarter of a start (our measurement): only a process that listens loads it.
"""

# ruff: noqa: PLC0415 - see above

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager, suppress
from importlib.metadata import version
from types import ModuleType
from typing import TYPE_CHECKING

import click

from entrypoints.bootstrap import CannotStart, roles
from entrypoints.bootstrap.bounces import DEFAULT
from entrypoints.cli.garbage_collection import collecting_nothing, keep_what_is_there
from entrypoints.cli.libraries import load_faststream
from entrypoints.cli.output import note, terminal
from entrypoints.cli.session import begin, log_everything, opened
from infrastructure.embedded.data_directory import DataDirectory
from infrastructure.settings.settings import Settings
from infrastructure.telemetry.watchdog import watched

if TYPE_CHECKING:
    from entrypoints.api.parts import Parts
    from entrypoints.bootstrap.core import Core
    from entrypoints.cli.listening import Addresses


async def up(settings: Settings) -> int:
    """Everything in one process, on one data directory that is this process's alone until it ends."""
    begin(settings)
    asyncio.get_running_loop().call_soon(_load_everything)  # when the loop first waits: for PostgreSQL, which starts
    with DataDirectory(settings.data_dir).locked(), _until_stopped() as stop:
        async with (
            opened(roles.up(settings)) as running,
            _loaded().listening(running.api, settings) as addresses,
        ):
            assert running.api is not None  # noqa: S101 - it serves
            if not stop.is_set():
                _print_screen(running.api, settings, addresses)
                log_everything(settings)
            keep_what_is_there()
            ended_well = await _until(stop, running.core)
    return _stopped(ended_well=ended_well)


async def serve(settings: Settings) -> int:
    """The API alone."""
    listening = _loaded().listening
    begin(settings)
    with _until_stopped() as stop:
        async with opened(roles.serve(settings)) as running, listening(running.api, settings) as addresses:
            click.echo(f"{'API':<{_LABEL}}{addresses.public}")
            log_everything(settings)
            keep_what_is_there()
            ended_well = await _until(stop, running.core)
    return _stopped(ended_well=ended_well)


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


async def bounces(settings: Settings) -> int:
    """The listener for notifications of mails that came back alone."""
    where = settings.bounce_listen or DEFAULT
    says = f"Taking notifications of mails that came back at {where.host}:{where.port}."
    return await _in_the_background(roles.bounces(settings), settings, says)


def _load_everything() -> None:
    """What `up` imports besides, so that it is there when the database is.

    The thread that starts the database gives the interpreter away at each of its system calls, some hundred, and would
    get it back after 5 ms each time.
    """
    usual = sys.getswitchinterval()
    sys.setswitchinterval(0.0001)
    try:
        _loaded()
        with collecting_nothing():
            importlib.import_module("entrypoints.bootstrap.api")
            importlib.import_module("entrypoints.bootstrap.delivery")
            importlib.import_module("entrypoints.bootstrap.erasures")
            importlib.import_module("entrypoints.bootstrap.followers")
    finally:
        sys.setswitchinterval(usual)


def _loaded() -> ModuleType:
    """`entrypoints.cli.listening`, with the libraries that serve HTTP."""
    from entrypoints.cli.libraries import load_fastapi

    with collecting_nothing():
        load_fastapi()
        from entrypoints.cli import listening

    return listening


def _demand_mail_servers(settings: Settings) -> None:
    if not settings.mail_servers:
        raise CannotStart("REGISTRAR_SMTP_URLS is not set; set it, or run `registrar up`, which has a mailbox.")


async def _in_the_background(role: AbstractAsyncContextManager[roles.Process], settings: Settings, says: str) -> int:
    """A process that serves nobody, but operators where `ADMIN_LISTEN` is set."""
    begin(settings)
    if settings.broker_url is not None:
        load_faststream()
    with _until_stopped() as stop:
        async with AsyncExitStack() as stack:
            running = await stack.enter_async_context(opened(role))
            if settings.admin_listen is not None:
                # What this process counts (mails, circuits, time to inbox) is nowhere else.
                listening = _loaded().listening_for_operators(running.api, settings, settings.admin_listen)
                click.echo(f"{'Metrics':<{_LABEL}}{await stack.enter_async_context(listening)}/metrics")
            click.echo(says)
            log_everything(settings)
            keep_what_is_there()
            ended_well = await _until(stop, running.core)
    return _stopped(ended_well=ended_well)


async def _until(stop: asyncio.Event, core: Core) -> bool:
    """Wait until the process is told to stop, or is broken; was it told?"""
    waits = [asyncio.create_task(event.wait()) for event in (stop, core.broken)]
    try:
        with watched():
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in waits:
            one.cancel()
    return not core.broken.is_set()


def _stopped(*, ended_well: bool) -> int:
    if not ended_well:
        note("stopped, as a part of it has ended by itself; the log says which")
        return 1
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


# --- The screen -------------------------------------------------------------------------------

_LABEL = 10
"""Width of the labels: a line is the label, padded, and what it names."""


def _print_screen(parts: Parts, settings: Settings, addresses: Addresses) -> None:
    """Everything a person needs to start, in one screen; a program reads the same lines without the frame."""
    lines = _lines(parts, settings, addresses)
    register = (
        f"curl -i {addresses.public}/v1/registrations -H 'Content-Type: application/json' "
        """-d '{"email": "ada@example.com", "name": "Ada Lovelace"}'"""
    )
    title = f"Registrar {version('registrar')} is ready"
    if (screen := terminal()) is not None:
        from rich.panel import Panel
        from rich.table import Table
        from rich.text import Text

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


def _lines(parts: Parts, settings: Settings, addresses: Addresses) -> dict[str, str]:
    lines = {"API": addresses.public, "Docs": f"{addresses.admin}/docs"}
    if parts.front_door:
        lines = {"Start": f"{addresses.public}/"} | lines
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
