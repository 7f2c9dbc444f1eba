"""How commands print: tables for people, JSON for programs."""

# ruff: noqa: PLC0415 - as in `main`: rich is loaded where there is something to show
from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click
import msgspec

from entrypoints.cli.options import WIDE

if TYPE_CHECKING:
    from rich.console import Console


def console() -> Console:
    """Standard output, in colours where it is a terminal. Long lines stay lines: a folded id cannot be copied."""
    from rich.console import Console

    return Console(highlight=False, width=10_000)


def print_json(value: object, *, one_line: bool = False) -> None:
    """A document, times and ids as the API writes them; with `one_line`, one of many, a line each."""
    encoded = msgspec.json.encode(value)
    click.echo(encoded if one_line else msgspec.json.format(encoded, indent=2))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Aligned columns under their names; None shows as "-".

    On a terminal, unless `--wide` is given, only those columns that fit, in their order: a folded id cannot be copied.
    """
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    width = terminal_width()
    shown = show if width is None else _show_briefly
    cells = [[shown(value) for value in row] for row in rows]
    fitting = _fitting([max(map(cell_len, column)) for column in zip(columns, *cells, strict=True)], width)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index in fitting:
        table.add_column(columns[index], overflow="fold")
    for row in cells:
        table.add_row(*(Text(row[index]) for index in fitting))
    screen = console()
    with screen.capture() as printed:
        screen.print(table)
    for line in printed.get().splitlines():
        click.echo(line.rstrip())
    if len(fitting) < len(columns):
        note(f"Left out: {', '.join(name for index, name in enumerate(columns) if index not in fitting)} (--wide).")


def _fitting(widths: Sequence[int], width: int | None) -> list[int]:
    """Which columns fit, with two spaces between them; the first one always does."""
    chosen: list[int] = []
    left = sys.maxsize if width is None else width
    for index, needed in enumerate(widths):
        if not chosen or needed + 2 <= left:
            left -= needed + (2 if chosen else 0)
            chosen.append(index)
    return chosen


def terminal_width() -> int | None:
    """How wide a table may be; None if that does not matter: to a program, and with `--wide`."""
    context = click.get_current_context(silent=True)
    if not sys.stdout.isatty() or (context is not None and context.meta.get(WIDE)):
        return None
    return shutil.get_terminal_size().columns


def show(value: object) -> str:
    """A value as a person reads it, in one line."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case datetime():
            return value.isoformat(sep=" ", timespec="milliseconds")
        case Mapping():
            return " ".join(f"{name}={show(one)}" for name, one in value.items())
        case _:
            text = str(value)
            return text if text.isprintable() else ascii(text)


def _show_briefly(value: object) -> str:
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}"
    return show(value)


def terminal(*, stderr: bool = False) -> Console | None:
    """Standard output or standard error where a person looks at it, None where a program reads it."""
    stream = sys.stderr if stderr else sys.stdout
    if not stream.isatty() and os.environ.keys().isdisjoint(_SAY_THAT_IT_IS_ONE):
        return None
    from rich.console import Console

    screen = Console(stderr=stderr, highlight=False)
    return screen if screen.is_terminal else None


_SAY_THAT_IT_IS_ONE = {"FORCE_COLOR", "TTY_COMPATIBLE"}
"""Variables that rich asks before it looks."""


def waiting(what: str) -> AbstractContextManager[object]:
    """Show a person that something is under way; a program is shown nothing."""
    screen = terminal(stderr=True)
    return nullcontext() if screen is None else screen.status(what)


def note(message: str) -> None:
    """A remark for a person, on standard error, apart from the data."""
    click.echo(message, err=True)


Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and of how much; 0 if that is not known."""


@contextmanager
def moving() -> Iterator[Progress]:
    """Show a person how far it is: a bar, events per second, and how long it will take. A program is shown nothing."""
    screen = terminal(stderr=True)
    if screen is None:
        yield lambda *_: None
        return
    from entrypoints.cli.bars import bar_on

    with bar_on(screen) as show:
        yield show
