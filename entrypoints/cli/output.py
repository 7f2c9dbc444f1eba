"""How commands print: tables for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text


def console() -> Console:
    """Standard output, in colours where it is a terminal. Long lines stay lines: a folded id cannot be copied."""
    return Console(highlight=False, width=10_000)


def print_json(value: object, *, one_line: bool = False) -> None:
    """A document, times and ids as the API writes them; with `one_line`, one of many, a line each."""
    encoded = msgspec.json.encode(value)
    click.echo(encoded if one_line else msgspec.json.format(encoded, indent=2))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Aligned columns under their names; None shows as "-"."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(show(value)) for value in row))
    screen = console()
    with screen.capture() as printed:
        screen.print(table)
    for line in printed.get().splitlines():
        click.echo(line.rstrip())


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


def waiting(what: str) -> AbstractContextManager[object]:
    """Show a person that something is under way; a program is shown nothing."""
    screen = Console(stderr=True)
    return screen.status(what) if screen.is_terminal else nullcontext()


def note(message: str) -> None:
    """A remark for a person, on standard error, apart from the data."""
    click.echo(message, err=True)
