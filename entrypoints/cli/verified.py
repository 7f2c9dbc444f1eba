"""What `audit verify` prints: a line for each finding, and what was verified."""

from __future__ import annotations

from typing import Any

import click

from entrypoints.bootstrap.audit import LogVerifier
from entrypoints.cli.output import moving, note, print_json
from infrastructure.audit.roots import Checkpoint
from infrastructure.audit.rows import Restore
from infrastructure.audit.verification import Verified
from infrastructure.audit.walk import Finding


async def verify(verifier: LogVerifier, *, since_checkpoint: bool, as_json: bool) -> int:
    """Verify the log and print what was found; 1 if it is not as it was recorded."""
    with moving() as progress:
        result = await verifier.verify(
            since_checkpoint=since_checkpoint,
            told=lambda done, of: progress("Verifying", done, of),
        )
    if unsigned := result.checkpoints.unsigned:
        notes = "1 note is no checkpoint" if unsigned == 1 else f"{unsigned:,} notes are no checkpoints"
        note(f"{notes}: `registrar audit checkpoints list` says why.")
    restored = [
        one for one in await verifier.restores() if any(_may_come_of(one, finding) for finding in result.findings)
    ]
    if as_json:
        print_json({**_as_json(result), "restores": [one._asdict() for one in restored]})
    else:
        for one in result.findings:
            click.echo(line(one))
        if result.found > len(result.findings):
            note(f"{result.found - len(result.findings):,} more findings are counted, but not listed.")
        for restore in restored:
            note(
                f"This database notes that it was restored up to position {restore.position}, on "
                f"{restore.restored_at:%Y-%m-%d at %H:%M:%S %Z}. If it was, the checkpoints of what came later in the "
                "log of before do not agree with it: move them aside (docs/backup.md)."
            )
        click.echo(summary(result))
    return 1 if result.found else 0


def _may_come_of(restore: Restore, finding: Finding) -> bool:
    """Can checkpoints of the log of before a restore be why they do not agree?"""
    return finding.kind in {"cut", "checkpoint"} and finding.first <= restore.position + 1 <= finding.last


def line(finding: Finding) -> str:
    """A finding in plain words."""
    kind, first, last, says = finding
    if kind == "checkpoint":
        subject = f"something in positions {first} to {last} is"
    else:
        subject = f"position {first} is" if first == last else f"positions {first} to {last} are"
    return f"{subject} not what was recorded: {says}"


def summary(result: Verified) -> str:
    """What was verified, in a sentence."""
    of = f"positions {result.since + 1} to {result.upto}" if result.since else f"the log up to position {result.upto}"
    counted = f"{_many(result.events, 'event')} in {_many(result.blocks, 'block')}"
    if result.found:
        return f"{_many(result.found, 'finding')} in {of} ({counted})." + _agrees(result.checkpoints.last)
    checkpoints = result.checkpoints
    if not checkpoints.compared:
        return (
            f"Verified {of}: {counted}, as they were recorded. "
            "There is no checkpoint: a log that was rewritten whole would look the same."
        )
    agree = "1 checkpoint agrees" if checkpoints.compared == 1 else f"{checkpoints.compared:,} checkpoints agree"
    if result.since == result.upto:
        return f"Nothing was recorded after position {result.upto}, to which the latest checkpoint leads; {agree}."
    return f"Verified {of}: {counted}, as they were recorded; {agree}."


def _many(count: int, of: str) -> str:
    return f"1 {of}" if count == 1 else f"{count:,} {of}s"


def _agrees(checkpoint: Checkpoint | None) -> str:
    return "" if checkpoint is None else f" The last checkpoint that agrees is that of position {checkpoint.position}."


def _as_json(result: Verified) -> dict[str, Any]:
    checkpoints = result.checkpoints
    return {
        "as_recorded": not result.found,
        "since": result.since,
        "upto": result.upto,
        "events": result.events,
        "blocks": result.blocks,
        "findings": result.found,
        "first_bad_position": result.findings[0].first if result.findings else None,
        "listed": [one._asdict() for one in result.findings],
        "checkpoints": {
            "compared": checkpoints.compared,
            "last_that_agrees": checkpoints.last and _checkpoint(checkpoints.last),
            "first_that_does_not": checkpoints.disagrees and _checkpoint(checkpoints.disagrees),
        },
    }


def _checkpoint(one: Checkpoint) -> dict[str, Any]:
    return {"size": one.size, "position": one.position, "root": one.root.hex()}
