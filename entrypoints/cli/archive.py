"""The log into a file and out of one, with something to look at meanwhile."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, aclosing, contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any

import click
import msgspec

from application.operator_acts import EXPORT_WITH_KEYS
from entrypoints.bootstrap import CannotStart
from entrypoints.bootstrap.archive import LogFile, check_file, import_file
from entrypoints.bootstrap.desk import Reader
from entrypoints.cli.output import moving, note, print_json
from entrypoints.cli.streams import is_read
from infrastructure.archive.files import BadFile, Busy, Source, written
from infrastructure.archive.lines import EndLine
from infrastructure.event_store.reader import UnreadableLog
from infrastructure.settings.settings import Settings


async def export_log(reader: Reader, path: Path, *, with_keys: bool, reason: str | None, as_json: bool) -> int:
    """Write the log to a file, or to standard output for as long as somebody reads it."""
    if with_keys:
        await reader.record_act(EXPORT_WITH_KEYS, reason)
    to_stdout = _is_standard(path)
    piece = b""
    try:
        async with AsyncExitStack() as stack:
            output = stack.enter_context(nullcontext(sys.stdout.buffer) if to_stdout else written(path))
            progress = partial(stack.enter_context(moving()), "Exporting")
            pieces = await stack.enter_async_context(aclosing(reader.export(with_keys=with_keys, on_events=progress)))
            async for piece in pieces:
                await asyncio.to_thread(output.write, piece)
                if to_stdout and not is_read():
                    return 0
    except UnreadableLog as error:
        raise click.ClickException(f"The log is not whole: {error}.") from None
    except Busy as error:
        raise CannotStart(f"{error}.") from None
    end = msgspec.json.decode(piece, type=EndLine)
    if as_json and not to_stdout:
        print_json({"file": str(path), "events": end.end, "hash": end.hash, "keys": end.keys, "sha256": end.sha256})
    else:
        note(f"Exported {_events(end.end)}{_and_keys(end.keys)} to {_name(path)}; the last block's hash is {end.hash}.")
    return 0


async def check_log(path: Path, *, as_json: bool) -> int:
    """Verify a file by itself."""
    with moving() as progress, _opened(path) as file:
        try:
            found = await check_file(file, partial(progress, "Checking"))
        except asyncio.CancelledError:
            note(f"Stopped; {_name(path)} is not checked to its end.")
            raise
    _tell(path, found, f"{_name(path)} is as it was exported:", as_json=as_json)
    return 0


async def import_log(settings: Settings, path: Path, *, with_keys: bool | None, as_json: bool) -> int:
    """Write a file's log into an empty store, or go on with that."""
    with moving() as progress, _opened(path) as file:
        try:
            found = await import_file(settings, file, with_keys=with_keys, progress=partial(progress, "Importing"))
        except asyncio.CancelledError:
            note("Stopped; the same command goes on behind the last event that is written.")
            raise
    if found.resumed_at is not None and not as_json:
        note(f"Went on behind position {found.resumed_at}.")
    _tell(path, found, f"Imported {_name(path)}:", as_json=as_json)
    return 0


@contextmanager
def _opened(path: Path) -> Iterator[BufferedReader[Any]]:
    with Source(None if _is_standard(path) else path) as source, BufferedReader(source) as file:
        try:
            yield file
        except BadFile as error:
            raise click.ClickException(f"{_name(path)} cannot be used: {error}.") from None
        finally:
            source.stop()  # a thread may still be reading


def _tell(path: Path, found: LogFile, says: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"file": str(path)} | asdict(found))
        return
    click.echo(f"{says} {_events(found.events)}{_and_keys(found.keys)}; the last block's hash is {found.hash}.")
    if found.unknown_types:
        note(
            f"Registrar {found.release} wrote it, and this release does not know all types of events in it: "
            f"{', '.join(found.unknown_types)}."
        )


def _is_standard(path: Path) -> bool:
    return str(path) == "-"


def _name(path: Path) -> str:
    return "the log" if _is_standard(path) else str(path)


def _events(number: int) -> str:
    return "1 event" if number == 1 else f"{number:,} events"


def _and_keys(number: int) -> str:
    return f", and {number:,} personal key{'s' if number != 1 else ''}" if number else ""
