"""What `erase` does."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from uuid import UUID

import click

from application.ports import Conflict, Unavailable
from domain.errors import Refused
from domain.recorded import Position
from entrypoints.bootstrap.erasing import Erased, ErasureDesk
from entrypoints.cli.output import note, print_json, print_table


@dataclass(frozen=True, slots=True)
class Report:
    """What became of one registration.

    Attributes:
        outcome: "erased", "erased before", "refused" or "failed".
        why_not: in a word or a line.
    """

    registration_id: UUID
    outcome: str
    position: Position | None = None
    erased_at: datetime | None = None
    why_not: str | None = None


async def erase(
    desk: ErasureDesk, who: UUID | str, reason: str, *, sure: bool, proof: Path | None, as_json: bool
) -> int:
    """Erase, report, and prove it if that is wanted; 1 if anybody was not erased, or nobody was found."""
    behind = not isinstance(who, UUID) and not await desk.caught_up()
    if behind:
        note(
            "The read models are behind the log, so not every registration may be found; repeat this when they are not."
        )
    ids = [who] if isinstance(who, UUID) else await desk.of_address(who)
    if not ids:
        note("There is no registration of this address that is not erased.")
        return 1
    what = f"{len(ids)} registrations of this address" if len(ids) > 1 else f"the registration {ids[0]}"
    if not sure and sys.stdin.isatty() and not click.confirm(f"Erase {what}? It cannot be undone.", err=True):
        return 1
    with nullcontext() if proof is None else proof.open("a", encoding="utf-8") as file:  # before what cannot be undone
        reports, erased = [], []
        for registration_id in ids:
            report, done = await _report(desk, registration_id, reason)
            reports.append(report)
            erased += [done] if done is not None else []
        _show(reports, as_json=as_json)
        if file is not None and erased:
            file.truncate(0)
            file.write("\n".join(desk.proof(one) for one in erased))
            note(f"{proof} proves it, to whoever has this key: {desk.public_key}")
    return 1 if behind or any(one.outcome in {"refused", "failed"} for one in reports) else 0


def _show(reports: Sequence[Report], *, as_json: bool) -> None:
    if as_json:
        print_json(reports)
    else:
        print_table(
            ("registration", "outcome", "position", "erased at", "why not"),
            ((one.registration_id, one.outcome, one.position, one.erased_at, one.why_not) for one in reports),
        )


async def _report(desk: ErasureDesk, registration_id: UUID, reason: str) -> tuple[Report, Erased | None]:
    try:
        done = await desk.erase(registration_id, reason)
    except Refused as refusal:
        return Report(registration_id, "refused", why_not=refusal.code), None
    except Conflict:
        return Report(registration_id, "failed", why_not="somebody else changed it at the same time"), None
    except Unavailable as error:
        return Report(registration_id, "failed", why_not=str(error)), None
    return Report(registration_id, done.outcome, done.position, done.erased_at), done
