"""Reading the log: its events in order, and one registration as it was at some time. Personal data stays sealed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import click

from domain.errors import UnknownRegistration
from domain.recorded import Position
from domain.registration import Registration
from entrypoints.cli.output import note, print_json, print_table, show, terminal_width
from entrypoints.cli.streams import is_read
from entrypoints.queries.events import EventQueries
from infrastructure.event_store.codec import event_classes
from infrastructure.event_store.reader import RecordedRow
from infrastructure.postgres.notifications import LOOK_ANYWAY
from infrastructure.settings.nearest import nearest_of

_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events; what is empty does not matter.

    Attributes:
        registration: only events about this one, whichever stream they stand in.
    """

    types: tuple[str, ...] = ()
    registration: UUID | None = None


def known_types(types: tuple[str, ...]) -> tuple[str, ...]:
    """The types as given.

    Raises:
        click.BadParameter: one of them is no type of event.
    """
    for given in types:
        if given not in event_classes():
            nearest = nearest_of(given, event_classes())
            raise click.BadParameter(
                f"'{given}' is not a type of event; the nearest one is '{nearest}'.",
                click.get_current_context(),
                param_hint="--type",
            )
    return types


async def list_events(
    events: EventQueries, wanted: Wanted, *, after: Position | None, limit: int, follow: bool, as_json: bool
) -> int:
    """Print the latest events, or those after a position; with `follow`, go on for as long as somebody reads it."""
    about = await events.about(wanted.registration) if wanted.registration is not None else None
    head = await events.head()
    rows = await events.in_order(
        after=after or 0, upto=head, limit=limit, latest=after is None, topics=wanted.types, about=about
    )
    if not follow:
        if as_json:
            print_json([_entry(events, row) for row in rows])
        else:
            _print_entries([_entry(events, row) for row in rows])
        return 0

    seen = rows[-1].position if len(rows) == limit else head
    while is_read():
        for entry in (_entry(events, row) for row in rows):
            if as_json:
                print_json(entry, one_line=True)
            else:
                click.echo("  ".join(show(entry[name]) for name in _COLUMNS)[: terminal_width()])
        if seen >= head:
            await asyncio.sleep(LOOK_ANYWAY.total_seconds())
            head = await events.head()
        rows = await events.in_order(after=seen, upto=head, limit=_BATCH, topics=wanted.types, about=about)
        seen = rows[-1].position if len(rows) == _BATCH else head
    return 0


async def show_registration(
    events: EventQueries, registration_id: UUID, *, at: datetime | None, version: int | None, as_json: bool
) -> int:
    """Print one registration as folded from its events: all, those up to a time, or the first `version` ones.

    Raises:
        UnknownRegistration: there is none with this id, or was none then.
    """
    rows = await events.of_registration(registration_id)
    if version is not None and version > len(rows):
        raise click.ClickException(f"This registration has only {len(rows)} events.")
    then = [
        row for row in rows if (at is None or row.recorded_at <= at) and (version is None or row.version <= version)
    ]
    if not then:
        raise UnknownRegistration(f"This registration started later, at {rows[0].recorded_at.isoformat()}.")
    entries = [_entry(events, row) for row in then]
    for entry in entries:
        if entry["data"] is None:
            raise click.ClickException(
                f"The event at position {entry['position']} cannot be read by this version of Registrar; "
                "a newer one wrote it."
            )
    state = _state(events.fold(then), then)
    if as_json:
        print_json(state | {"events": entries})
        return 0
    flat = {name: value for name, value in state.items() if name != "code"}
    flat |= {f"code_{name}": value for name, value in state["code"].items()}
    width = max(map(len, flat)) + 2
    for name, value in flat.items():
        click.echo(f"{name:<{width}}{show(value)}")
    click.echo()
    _print_entries(entries)
    if len(then) < len(rows):
        note(f"{len(rows) - len(then)} later events are left out.")
    return 0


# --- Showing ----------------------------------------------------------------------------------

_COLUMNS = ("position", "recorded_at", "type", "stream_id", "version", "actor", "correlation_id", "data")


def _state(registration: Registration, rows: Sequence[RecordedRow]) -> dict[str, Any]:
    return {
        "registration_id": registration.id,
        "status": registration.status.value,
        "version": rows[-1].version,
        "position": rows[-1].position,
        "created_at": rows[0].recorded_at,
        "changed_at": rows[-1].recorded_at,
        "personal_data": "erased" if registration.erased else "sealed",
        "locale": registration.locale,
        "claim_id": registration.claim_id,
        "duplicate_of": registration.duplicate_of,
        "code": {
            "serial": registration.serial,
            "issued_at": registration.issued_at,
            "handed_over_at": registration.handed_over_at.get(registration.serial),
            "wrong_tries": registration.rejections,
            "locked": registration.locked,
            "revoked": registration.revoked,
        },
    }


def _entry(events: EventQueries, row: RecordedRow) -> dict[str, Any]:
    return asdict(events.entry(row))


def _print_entries(entries: Sequence[dict[str, Any]]) -> None:
    print_table(_COLUMNS, ([entry[name] for name in _COLUMNS] for entry in entries))
