"""Options that several commands have, and how their helps give examples."""

# ruff: noqa: PLC0415 - as in `main`: a command imports what it needs when it runs
from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeVar
from uuid import UUID

import click

from application.reasons import parse_reason

F = TypeVar("F", bound=Callable[..., Any])

WIDE: Final = "registrar.wide"
"""Under this name the context of a command says that `--wide` was given."""


CONFIG: Final = "registrar.config"
"""Under this name the context of a command has what `--config` was given."""


def data_dir(command: F) -> F:
    """Where settings and data are; `--config` reaches the settings through the context."""
    return config_file(
        click.option(
            "--data-dir",
            type=click.Path(path_type=Path),
            help="Directory of the embedded services.  [default: .registrar]",
        )(command)
    )


def config_file(command: F) -> F:
    """Before a command's name or after it, which wins."""

    def keep(ctx: click.Context, _: click.Parameter, value: Path | None) -> None:
        if value is not None:
            ctx.meta[CONFIG] = value

    return click.option(
        "--config",
        type=click.Path(path_type=Path),
        metavar="FILE",
        expose_value=False,
        callback=keep,
        help="File of settings (TOML), beaten by the environment.  [default: REGISTRAR_CONFIG]",
    )(command)


def as_json(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(command)


def wide(command: F) -> F:
    def note(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        ctx.meta[WIDE] = value

    return click.option(
        "--wide", is_flag=True, expose_value=False, callback=note, help="Show all columns, on narrow terminals too."
    )(command)


def reason(command: F) -> F:
    """Why an operator acts."""
    return click.option(
        "--reason",
        callback=_parse_reason,
        metavar="TEXT",
        help="Why you do this. It stays in the audit log for ever: nothing personal.",
    )(command)


def needed_reason(command: F) -> F:
    """`reason`, of an act that nobody undoes."""
    return click.option(
        "--reason",
        required=True,
        callback=_parse_needed_reason,
        metavar="TEXT",
        help="Why you do this. It stays in the audit log for ever: nothing personal.",
    )(command)


def _parse_needed_reason(ctx: click.Context, param: click.Parameter, value: str) -> str:
    reason = _parse_reason(ctx, param, value)
    if reason is None:
        raise click.BadParameter("say why.", ctx, param)
    return reason


def _parse_reason(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    try:
        return parse_reason(value)
    except ValueError as error:
        raise click.BadParameter(f"{error}.", ctx, param) from None


def listen(command: F) -> F:
    command = click.option("--port", type=int, help="TCP port of the API; 0: any free one.  [default: 8000]")(command)
    return click.option("--host", help="Address the API listens on.  [default: 127.0.0.1]")(command)


def example(*lines: str) -> str:
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


def or_standard_input(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """The value; of "-", a line of standard input: what stands in arguments is in the list of processes, and in the
    history of the shell.
    """
    if value != "-":
        return value
    line = sys.stdin.readline().strip()
    if not line:
        raise click.BadParameter("standard input is empty.", ctx, param)
    return line


def registration_or_address(who: str) -> UUID | str:
    """The id of a registration, or an address.

    Raises:
        click.BadParameter: it is neither.
    """
    from application.addresses import parse_address

    try:
        return UUID(who)
    except ValueError:
        pass
    try:
        return parse_address(who.strip())
    except ValueError:
        raise click.BadParameter(
            "it is neither the id of a registration nor a mail address.",
            click.get_current_context(),
            param_hint="'ID|ADDRESS'",
        ) from None


def parse_time(ctx: click.Context, param: click.Parameter, value: str | None) -> datetime | None:
    if value is None:
        return None
    try:
        time = datetime.fromisoformat(value)
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):
        raise click.BadParameter(f"'{value}' is not a time like 2026-01-31T12:00:00Z.", ctx, param) from None


def parse_past(ctx: click.Context, param: click.Parameter, value: str | None) -> datetime | None:
    """A time, or how long ago it was."""
    if value is None:
        return None
    from infrastructure.settings.values import duration

    try:
        ago = duration(value)
        assert isinstance(ago, timedelta)  # noqa: S101 - of text it is
        return datetime.now(UTC) - ago
    except OverflowError:
        raise click.BadParameter(f"'{value}' is longer ago than times go back.", ctx, param) from None
    except ValueError:
        pass
    try:
        return parse_time(ctx, param, value)
    except click.BadParameter:
        raise click.BadParameter(
            f"'{value}' is neither a duration like 7d nor a time like 2026-01-31T12:00:00Z.", ctx, param
        ) from None


def parse_moment(ctx: click.Context, param: click.Parameter, value: str | None) -> int | datetime | None:
    """A position of the log, or a time."""
    if value is not None and value.isascii() and value.isdigit() and len(value) < 19:
        return int(value)
    try:
        return parse_time(ctx, param, value)
    except click.BadParameter:
        raise click.BadParameter(
            f"'{value}' is neither a position of the log nor a time like 2026-01-31T12:00:00Z.", ctx, param
        ) from None
