"""`audit verify`: is the log as it was recorded, and if not, from which position on?"""

# ruff: noqa: PLC0415 - a command imports what it needs when it runs: `registrar --help` must not wait for it
from __future__ import annotations

from pathlib import Path

import click

from entrypoints.cli import options


@click.command(
    "verify", epilog=options.example("registrar audit verify", "registrar audit verify --since-checkpoint --json")
)
@click.option("--since-checkpoint", is_flag=True, help="Only the events after the latest checkpoint.")
@options.as_json
@options.data_dir
def verify(*, since_checkpoint: bool, as_json: bool, data_dir: Path | None) -> int:
    """Verify that the log is as it was recorded.

    The hash chain is computed anew from every event, whoever may have altered, added, moved or removed what, and
    compared with the end of the log and with every checkpoint. What is not as it was recorded is listed in the order of
    its positions. Exit code 1 if there is anything.

    With --since-checkpoint events before the latest checkpoint that agrees are not read again, so one that was altered
    there is only found without it. The hashes of all blocks are compared with the checkpoints all the same: a chain
    that was rewritten or cut off is found.
    """
    from entrypoints.cli import verified
    from entrypoints.cli.session import verifying_log

    return verifying_log(
        data_dir, lambda verifier: verified.verify(verifier, since_checkpoint=since_checkpoint, as_json=as_json)
    )
