"""What `audit checkpoints list` and `audit checkpoints rotate-key` print."""

from __future__ import annotations

import click

from entrypoints.bootstrap.audit import LogVerifier
from entrypoints.bootstrap.signing_keys import CannotChange, SigningKeyDesk
from entrypoints.cli.output import note, print_json, print_table, waiting
from infrastructure.audit.known import Known
from infrastructure.audit.note_keys import VerifierKey


async def show(verifier: LogVerifier, *, most: int, as_json: bool) -> int:
    """Print the latest checkpoints and the keys; 1 if a note is none that a known key has signed."""
    known = await verifier.known(most)
    if as_json:
        print_json({"keys": [str(key) for key in verifier.keys], "checkpoints": [_as_json(one) for one in known]})
    else:
        print_table(["position", "size", "root", "state"], [_row(one) for one in known])
        for key in verifier.keys:
            note(f"Signed by {_shown(key)}")
    return 1 if any(one.checkpoint is None for one in known) else 0


async def change_key(desk: SigningKeyDesk, *, old_is_lost: bool, reason: str | None, as_json: bool) -> int:
    """Change the key that signs, and say what is to be done now."""
    try:
        with waiting("Signing"):
            done = await desk.change(old_is_lost=old_is_lost, reason=reason)
    except CannotChange as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        keys = [str(key) for key in done.keys]
        print_json({"keys": keys, "replaced": done.replaced, "first_size": done.first_size, "advice": done.advice})
    else:
        click.echo(f"Checkpoints are signed by a new key now, from that of {done.first_size} blocks on:")
        for key in done.keys:
            click.echo(_shown(key))
    note(done.advice)
    return 0


def _shown(key: VerifierKey) -> str:
    """Whole, if a line of a terminal may hold it."""
    return str(key) if key.signs_every_line else f"{key.short}+… (ML-DSA-44: whole with --json)"


def _state(one: Known) -> str:
    return f"refused: {one.why}" if one.why else "waits" if one.waits else "published"


def _row(one: Known) -> tuple[object, ...]:
    checkpoint = one.checkpoint
    if checkpoint is None:
        return None, None, None, _state(one)
    return checkpoint.position, checkpoint.size, checkpoint.root.hex(), _state(one)


def _as_json(one: Known) -> dict[str, object]:
    checkpoint = one.checkpoint
    return {
        "position": checkpoint and checkpoint.position,
        "size": checkpoint and checkpoint.size,
        "root": checkpoint and checkpoint.root.hex(),
        "state": "refused" if one.why else _state(one),
        "why": one.why,
        "note": one.note,
    }
