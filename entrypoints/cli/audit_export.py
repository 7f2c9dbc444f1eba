"""The audit log in a file."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack, aclosing, nullcontext
from dataclasses import fields
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from entrypoints.bootstrap import CannotStart
from entrypoints.bootstrap.auditor import Auditor
from entrypoints.cli.audit_search import note_what_is_missing
from entrypoints.cli.output import moving, note, print_json
from entrypoints.cli.streams import is_read
from entrypoints.queries.audit import ExportedEntry, Filters
from infrastructure.archive.files import Busy, written
from infrastructure.audit.spreadsheets import csv_lines

_COLUMNS: Final = tuple(field.name for field in fields(ExportedEntry))


async def export(auditor: Auditor, path: Path, filters: Filters, *, as_csv: bool, as_json: bool) -> int:
    """Write the audit log to a file, or to standard output for as long as somebody reads it."""
    to_stdout = str(path) == "-"
    lines = _as_csv if as_csv else _as_json
    count = 0
    try:
        async with AsyncExitStack() as stack:
            output: Any = stack.enter_context(nullcontext(sys.stdout.buffer) if to_stdout else written(path))
            progress = partial(stack.enter_context(moving()), "Exporting")
            pieces = await stack.enter_async_context(aclosing(auditor.audit.exported(filters, progress)))
            if as_csv:
                output.write(csv_lines([_COLUMNS]))
            async for piece in pieces:
                count += len(piece)
                await asyncio.to_thread(output.write, lines(piece))
                if to_stdout and not is_read():
                    return 0
    except Busy as error:
        raise CannotStart(f"{error}.") from None
    if as_json and not to_stdout:
        print_json({"file": str(path), "events": count})
    else:
        note(
            f"Exported {'1 event' if count == 1 else f'{count:,} events'} to {'standard output' if to_stdout else path}."
        )
    await note_what_is_missing(auditor)
    return 0


def _as_json(piece: Sequence[ExportedEntry]) -> bytes:
    return b"".join(msgspec.json.encode(one) + b"\n" for one in piece)


def _as_csv(piece: Sequence[ExportedEntry]) -> bytes:
    return csv_lines([_cell(getattr(one, name)) for name in _COLUMNS] for one in piece)


def _cell(value: object) -> object:
    match value:
        case datetime():
            return value.astimezone(UTC).isoformat()
        case dict():
            return msgspec.json.encode(value).decode() if value else None
    return value
