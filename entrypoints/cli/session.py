"""What every command uses: settings, the event loop, a service for its duration, and errors in one line."""

# ruff: noqa: PLC0415 - as in `main`: a command imports what it needs when it runs
from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import structlog
import uvloop

from application.ports import Conflict, Unavailable, WrongMasterKey
from domain.errors import Refused
from entrypoints.bootstrap import CannotStart
from entrypoints.cli.garbage_collection import collect_from_now_on, collect_hardly_ever
from entrypoints.cli.options import CONFIG
from entrypoints.cli.output import waiting
from entrypoints.cli.streams import CannotPrint, never_wait
from infrastructure.embedded.data_directory import BadDataDirectory, DataDirectory
from infrastructure.embedded.postgres import DatabaseDidNotStart
from infrastructure.postgres.circumstances import why_unusable
from infrastructure.postgres.connection import AWAY
from infrastructure.settings.cautions import cautions
from infrastructure.settings.environment import BadSettings, Given, links_in
from infrastructure.settings.settings import Settings
from infrastructure.telemetry.logs import configure_logging

if TYPE_CHECKING:
    from entrypoints.bootstrap.audit import LogVerifier
    from entrypoints.bootstrap.auditor import Auditor
    from entrypoints.bootstrap.desk import Desk, Reader
    from entrypoints.bootstrap.erasing import ErasureDesk
    from entrypoints.bootstrap.keys import KeyDesk
    from entrypoints.bootstrap.replay import Rebuilder, Verifier
    from entrypoints.bootstrap.signing_keys import SigningKeyDesk
    from entrypoints.bootstrap.webhooks import WebhookDesk

T = TypeVar("T")

log = structlog.get_logger(__name__)

HARMLESS = (BadSettings, BadDataDirectory, DatabaseDidNotStart, CannotStart, Unavailable)
"""Exceptions whose texts are ours and hold nothing personal."""

_OURS = ("application", "domain", "entrypoints", "infrastructure", "projections")


def read_settings(
    *, with_secrets: bool = True, instead: Mapping[str, str] | None = None, **options: object
) -> Settings:
    """The settings of this process, with the options of the command line on top; see `Settings.from_environment`.

    Args:
        instead: variables that count in place of those of the environment.

    Raises:
        BadSettings: see there.
    """
    environ = {**os.environ, **(instead or {})}
    return Settings.from_environment(environ, with_secrets=with_secrets, config=_config(), **options)


def given_settings(**options: object) -> Given:
    """What `read_settings` checks, with where it comes from."""
    return Settings.given(os.environ, config=_config(), **options)


def _config() -> Path | None:
    """What `--config` names."""
    context = click.get_current_context(silent=True)
    found: Path | None = context.meta.get(CONFIG) if context else None
    return found


def log_everything(settings: Settings | None = None) -> None:
    """Log as a service does."""
    configure_logging(settings.log_format if settings else None, messages_of=HARMLESS)


def log_troubles(settings: Settings | None = None) -> None:
    """Log what goes wrong only: what goes as planned is not worth a line beside what a command prints."""
    log_everything(settings)
    for package in _OURS:
        logging.getLogger(package).setLevel(logging.WARNING)


def begin(settings: Settings) -> None:
    """What a service says before it starts: only what an operator should change."""
    never_wait()
    log_troubles(settings)
    if links := links_in(os.environ):
        hint = "Kubernetes or Docker set them for a service named like ours; they are no settings"
        log.warning("settings.ignored", variables=", ".join(links), hint=hint)
    for one in cautions(settings):
        log.warning("settings.caution", says=one.says, hint=one.advice)


def finish(work: Coroutine[Any, Any, int]) -> int:
    """Run a command to its end on a loop of its own; returns its exit code. SIGTERM ends it as Ctrl-C does."""

    async def until_told_otherwise() -> int:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - this is a coroutine
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await work

    collect_from_now_on()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(until_told_otherwise())
        except (asyncio.CancelledError, KeyboardInterrupt):
            return 130


@asynccontextmanager
async def opened(parts: AbstractAsyncContextManager[T]) -> AsyncIterator[T]:
    """What a role or a desk opens, with something to look at meanwhile."""
    async with AsyncExitStack() as stack:
        with waiting("Starting"):
            found = await stack.enter_async_context(parts)
        yield found


def reading(data_dir: Path | None, work: Callable[[Reader], Awaitable[int]]) -> int:
    """Run a short command that only looks at the database: the one that is set, or the embedded one, started if it does
    not run.

    Raises:
        CannotStart: there is no embedded database yet. Looking at one is no reason to make one.
    """
    from entrypoints.bootstrap.desk import reader

    collect_hardly_ever()
    return _with(read_settings(data_dir=data_dir, with_secrets=False), reader, work)


def acting(data_dir: Path | None, work: Callable[[Desk], Awaitable[int]]) -> int:
    """`reading`, for a command that records events."""
    from entrypoints.bootstrap.desk import desk

    return _with(read_settings(data_dir=data_dir), desk, work)


def auditing(data_dir: Path | None, work: Callable[[Auditor], Awaitable[int]], *, with_keys: bool) -> int:
    """`reading`, for the auditor's commands.

    Args:
        with_keys: they look up addresses or Message-IDs, for which the master key is needed.
    """
    from entrypoints.bootstrap.auditor import auditor

    collect_hardly_ever()
    settings = read_settings(data_dir=data_dir, with_secrets=with_keys)
    return _with(settings, partial(auditor, with_keys=with_keys), work)


def erasing_with(data_dir: Path | None, work: Callable[[ErasureDesk], Awaitable[int]]) -> int:
    """`acting`, for a command that erases."""
    from entrypoints.bootstrap.erasing import erasure_desk

    return _with(read_settings(data_dir=data_dir), erasure_desk, work)


def keeping_keys(data_dir: Path | None, work: Callable[[KeyDesk], Awaitable[int]]) -> int:
    """`reading`, for a command about the master keys."""
    from entrypoints.bootstrap.keys import key_desk

    return _with(read_settings(data_dir=data_dir), key_desk, work)


def changing_signing_key(data_dir: Path | None, work: Callable[[SigningKeyDesk], Awaitable[int]]) -> int:
    """`reading`, for the command that changes the key which signs checkpoints: it needs no other secret."""
    from entrypoints.bootstrap.signing_keys import signing_key_desk

    return _with(read_settings(data_dir=data_dir, with_secrets=False), signing_key_desk, work)


def calling_webhooks(data_dir: Path | None, work: Callable[[WebhookDesk], Awaitable[int]]) -> int:
    """`reading`, for a command about webhooks: it needs their secrets, and none of the service."""
    from entrypoints.bootstrap.webhooks import webhook_desk

    return _with(read_settings(data_dir=data_dir, with_secrets=False), webhook_desk, work)


def rebuilding(data_dir: Path | None, work: Callable[[Rebuilder], Awaitable[int]]) -> int:
    """`reading`, for a command that rebuilds read models; exit code as of `comparing`."""
    from entrypoints.bootstrap.replay import rebuilder

    collect_hardly_ever()
    with _one_means_a_difference():
        return _with(read_settings(data_dir=data_dir), rebuilder, work)


def verifying(data_dir: Path | None, work: Callable[[Verifier], Awaitable[int]]) -> int:
    """`reading`, for a command that compares read models with the log; exit code as of `comparing`."""
    from entrypoints.bootstrap.replay import verifier

    collect_hardly_ever()
    with _one_means_a_difference():
        return _with(read_settings(data_dir=data_dir, with_secrets=False), verifier, work)


def verifying_log(data_dir: Path | None, work: Callable[[LogVerifier], Awaitable[int]]) -> int:
    """`reading`, for a command that verifies the log or its checkpoints; exit code as of `comparing`."""
    from entrypoints.bootstrap.audit import log_verifier

    collect_hardly_ever()
    with _one_means_a_difference():
        return _with(read_settings(data_dir=data_dir, with_secrets=False), log_verifier, work)


def comparing(data_dir: Path | None, work: Callable[[Reader], Awaitable[int]]) -> int:
    """`reading`, for a command whose exit code 1 says that something differs: what cannot be done is 2, also where the
    database is away."""
    with _one_means_a_difference():
        return reading(data_dir, work)


@contextmanager
def _one_means_a_difference() -> Iterator[None]:
    try:
        yield
    except click.ClickException:
        raise
    except Exception as error:
        says, _ = explain(error)
        from infrastructure.replay.swap import CannotReplay

        raise CannotReplay(says) from error


def _with(
    settings: Settings,
    opening: Callable[[Settings], AbstractAsyncContextManager[T]],
    work: Callable[[T], Awaitable[int]],
) -> int:
    log_troubles(settings)
    if settings.database_url is None and not _holds_a_database(settings.data_dir):
        raise CannotStart(
            f"There is no database in {settings.data_dir}; `registrar up` makes one, "
            "--data-dir names another directory, REGISTRAR_DATABASE_URL another database."
        )

    async def session() -> int:
        async with opened(opening(settings)) as parts:
            return await work(parts)

    return finish(session())


def _holds_a_database(directory: Path) -> bool:
    return directory.exists() and (DataDirectory(directory).path / "postgres").is_dir()


def explain(error: Exception) -> tuple[str, int]:
    """An error in one line that says what to do, and the exit code."""
    from entrypoints.queries.audit import NoSecrets
    from infrastructure.audit.verification import CannotVerify
    from infrastructure.backup.layout import BadBackup, NoRoom
    from infrastructure.backup.taking import BackupFailed
    from infrastructure.replay.copies import ToldTwice
    from infrastructure.replay.swap import CannotReplay

    if (reason := why_unusable(error.__cause__ if isinstance(error, Unavailable) else error)) is not None:
        return reason, 2
    match error:
        case BadSettings() | BadDataDirectory() | DatabaseDidNotStart() | CannotStart():
            return str(error), 2
        case CannotReplay() | ToldTwice() | CannotVerify() | NoRoom():
            return str(error), 2
        case BadBackup() | BackupFailed():
            return str(error), 1
        case WrongMasterKey():
            where = "REGISTRAR_MASTER_KEY or REGISTRAR_NEXT_MASTER_KEY, or master.key in the data directory"
            return f"{str(error)[:1].upper()}{str(error)[1:]}; put that key back ({where}).", 2
        case NoSecrets():
            return "Addresses and Message-IDs are looked up with the master key; give it, or use the id.", 2
        case Refused():
            return f"{error} ({error.code})", 1
        case Conflict():
            return "Somebody else changed it at the same time; try again.", 1
        case Unavailable():
            return f"{str(error)[:1].upper()}{str(error)[1:]}; try again in a moment, `registrar doctor` says more.", 1
        case _ if isinstance(error, AWAY):
            return "The database does not respond as it should; `registrar doctor` says more.", 1
        case CannotPrint():
            return f"Cannot write to standard output: {error.strerror}.", 1
        case OSError() if error.strerror:
            return f"{error.strerror}{f': {error.filename}' if error.filename else ''}.", 2
    log_everything()
    log.error("command failed", exc_info=error)
    return f"This is a bug ({type(error).__name__}); the line above says where it happened, please report it.", 1
