"""Proofs, written to where they are wanted."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from uuid import UUID

import click

from entrypoints.bootstrap import CannotStart
from entrypoints.cli.output import note, print_json
from entrypoints.queries.proofs import ProofQueries
from infrastructure.archive.files import Busy, written
from infrastructure.audit.proving import CannotProve, Proof


async def prove(proofs: ProofQueries, registration_id: UUID, path: Path, *, size: int | None, as_json: bool) -> int:
    """Write the proof, and say what it covers.

    Raises:
        UnknownRegistration: nothing in the log is about this one.
    """
    try:
        proof = await proofs.prove(registration_id, size=size)
    except CannotProve as error:
        raise click.ClickException(str(error)) from None
    to_stdout = str(path) == "-"
    await asyncio.to_thread(_write, None if to_stdout else path, proof.file.encode())
    if as_json and not to_stdout:
        print_json(_told(proof, path))
        return 0
    events = "1 event" if proof.events == 1 else f"{proof.events} events"
    where = "" if to_stdout else f" in {path}"
    note(
        f"Proved{where}: {events}, by the checkpoint of {proof.checkpoint.size} blocks at {proof.checkpoint.position}."
    )
    if proof.later:
        note(f"{proof.later} later ones are not covered by that checkpoint; prove again when there is a newer one.")
    return 0


def _write(path: Path | None, content: bytes) -> None:
    if path is None:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return
    try:
        with written(path) as file:
            file.write(content)
    except Busy as error:
        raise CannotStart(f"{error}.") from None


def _told(proof: Proof, path: Path) -> dict[str, object]:
    return {
        "file": str(path),
        "registration_id": str(proof.file.registration_id),
        "events": proof.events,
        "later": proof.later,
        "checkpoint": proof.checkpoint.size,
        "position": proof.checkpoint.position,
    }
