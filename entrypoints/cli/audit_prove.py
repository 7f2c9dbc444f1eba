"""`audit prove`: what happened to one registration, in a file that verifies by itself."""

# ruff: noqa: PLC0415 - a command imports what it needs when it runs: `registrar --help` must not wait for it
from __future__ import annotations

from pathlib import Path
from uuid import UUID

import click

from entrypoints.cli import options


@click.command(
    "prove",
    epilog=options.example(
        "registrar audit prove 0199c3a2-5d1c-7000-8000-00805f9b34fb",
        "registrar audit prove 0199c3a2-5d1c-7000-8000-00805f9b34fb --output - --checkpoint 1234",
    ),
)
@click.argument("registration_id", type=click.UUID, metavar="ID")
@click.option(
    "--output",
    type=click.Path(path_type=Path, allow_dash=True, dir_okay=False),
    metavar="FILE",
    help='Where to write it; "-" is standard output.  [default: ID.proof.json]',
)
@click.option(
    "--checkpoint", "size", type=click.IntRange(min=1), metavar="SIZE", help="Lead to this one, not to the latest."
)
@options.as_json
@options.data_dir
def prove(*, registration_id: UUID, output: Path | None, size: int | None, as_json: bool, data_dir: Path | None) -> int:
    """Write a file that proves what happened to one registration.

    It has all events about the registration up to a checkpoint, with the hashes that lead from them to what was signed
    there. Who has it and the log's public key needs neither the database nor a network, nor anything of ours:
    examples/registrar_verify.py checks it. Personal data stays sealed, and nothing about others is in it. Exit code 1
    if there is nothing to prove yet, or the log is not what was signed.
    """
    from entrypoints.cli import proofs
    from entrypoints.cli.session import reading

    path = output or Path(f"{registration_id}.proof.json")
    return reading(
        data_dir, lambda reader: proofs.prove(reader.proofs, registration_id, path, size=size, as_json=as_json)
    )
