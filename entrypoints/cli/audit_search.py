"""The audit log, searched."""

from __future__ import annotations

import click

from application.addresses import parse_address
from application.typed_text import trimmed
from domain.recorded import Actor
from entrypoints.bootstrap.auditor import Auditor
from entrypoints.cli.output import note, print_json, print_table
from entrypoints.queries.audit import Filters
from projections.audit import Audit
from projections.paging import before


def known_address(email: str | None) -> str | None:
    """The address as given.

    Raises:
        click.BadParameter: it is none.
    """
    if email is None:
        return None
    try:
        return parse_address(str(trimmed(email)))
    except ValueError as error:
        raise click.BadParameter(f"{error}.", click.get_current_context(), param_hint="--email") from None


async def search(auditor: Auditor, filters: Filters, *, cursor: str | None, limit: int, as_json: bool) -> int:
    """Print a page of what is found."""
    try:
        before(cursor)
    except ValueError:
        raise click.BadParameter("It is not from an earlier page.", param_hint="--cursor") from None
    found = await auditor.audit.search(filters, cursor=cursor, limit=limit)
    if as_json:
        print_json(found)
    else:
        print_table(
            ("position", "recorded at", "type", "registration", "actor", "details", "correlation", "caused by"),
            (
                (
                    *(one.position, one.recorded_at, one.topic, one.registration_id, one.actor, one.details or None),
                    *(one.correlation_id, one.causation_position),
                )
                for one in found.items
            ),
        )
        if found.next_cursor is not None:
            note(f"There is more: --cursor {found.next_cursor} goes on.")
    actor = filters.get("actor")
    if not found.items and cursor is None and actor is not None and actor not in [*Actor]:
        note(f"'{actor}' is no actor that this release knows; there are {', '.join(Actor)}.")
    await note_what_is_missing(auditor)
    return 0


async def note_what_is_missing(auditor: Auditor) -> None:
    """Say so if events of the log are not in the audit log yet."""
    audit = await auditor.followers.progress_of(Audit.name)
    tell_what_is_missing(behind=audit.lag_events, parked=audit.parked_streams)


def tell_what_is_missing(*, behind: int, parked: int) -> None:
    """Nothing, if nothing is."""
    if behind:
        note(f"The audit log is behind the log by {behind:,}; does `registrar up` or `registrar process` run?")
    if parked:
        streams = "1 stream is" if parked == 1 else f"{parked:,} streams are"
        note(
            f"The audit log is not complete: {streams} parked, and what happened in them lately is missing; see "
            f"`registrar projections parked list --follower {Audit.name}`."
        )
