"""`audit checkpoints`: what was signed of the log, and by whom."""

# ruff: noqa: PLC0415 - a command imports what it needs when it runs: `registrar --help` must not wait for it
from __future__ import annotations

from pathlib import Path

import click

from entrypoints.cli import options


@click.group("checkpoints", epilog=options.example("registrar audit checkpoints list"))
def checkpoints() -> None:
    """Look at the checkpoints of the log, and change the key that signs them."""


@checkpoints.command(
    "list", epilog=options.example("registrar audit checkpoints list", "registrar audit checkpoints list --json")
)
@click.option("--last", type=click.IntRange(1), default=100, show_default=True, help="How many.")
@options.as_json
@options.data_dir
def list_checkpoints(*, last: int, as_json: bool, data_dir: Path | None) -> int:
    """List the last checkpoints, and the keys that sign them.

    Those in the directory of checkpoints and those in the database, each once, with what is not published yet. Give
    the key to auditors and witnesses. Exit code 1 if there is a note that no known key has signed.
    """
    from entrypoints.cli.checkpoints import show
    from entrypoints.cli.session import verifying_log

    return verifying_log(data_dir, lambda verifier: show(verifier, most=last, as_json=as_json))


@checkpoints.command(
    "rotate-key", epilog=options.example('registrar audit checkpoints rotate-key --reason "every November"')
)
@click.option("--old-key-is-lost", is_flag=True, help="The new key signs without it.")
@options.reason
@options.as_json
@options.data_dir
def rotate_key(*, old_key_is_lost: bool, reason: str | None, as_json: bool, data_dir: Path | None) -> int:
    """Have another key sign checkpoints from now on, while the service runs.

    First set REGISTRAR_NEXT_CHECKPOINT_KEY (or …_FILE) in every process that may sign, and restart them one by one.
    With the embedded database the command makes the key itself. The first checkpoint of the new key is signed by the
    old one, too, and names both: who knows one of them so knows the other, and what was signed before still verifies.
    Ended at any point, it is finished when it is run again.
    """
    from entrypoints.cli.checkpoints import change_key
    from entrypoints.cli.session import changing_signing_key

    return changing_signing_key(
        data_dir, lambda desk: change_key(desk, old_is_lost=old_key_is_lost, reason=reason, as_json=as_json)
    )
