"""What `audit checkpoints list` prints."""

from __future__ import annotations

from entrypoints.bootstrap.audit import LogVerifier
from entrypoints.cli.output import note, print_json, print_table
from infrastructure.audit.known import Known


async def show(verifier: LogVerifier, *, as_json: bool) -> int:
    """Print the checkpoints and the keys; 1 if a note is none that a known key has signed."""
    if as_json:
        print_json({"keys": verifier.keys, "checkpoints": [_as_json(one) for one in verifier.known]})
    else:
        print_table(["position", "size", "root", "state"], [_row(one) for one in verifier.known])
        for key in verifier.keys:
            note(f"Signed by {key}")
    return 1 if any(one.checkpoint is None for one in verifier.known) else 0


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
