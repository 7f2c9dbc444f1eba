"""`audit checkpoints`: what was signed of the log, and by whom."""

# ruff: noqa: PLC0415 - a command imports what it needs when it runs: `registrar --help` must not wait for it
from __future__ import annotations

from pathlib import Path

import click

from entrypoints.cli import options


@click.group("checkpoints", epilog=options.example("registrar audit checkpoints list"))
def checkpoints() -> None:
    """Look at the checkpoints of the log."""


@checkpoints.command(
    "list", epilog=options.example("registrar audit checkpoints list", "registrar audit checkpoints list --json")
)
@options.as_json
@options.data_dir
def list_checkpoints(*, as_json: bool, data_dir: Path | None) -> int:
    """List every checkpoint, and the keys that sign them.

    Those in the directory of checkpoints and those in the database, each once, with what is not published yet. Give
    the key to auditors and witnesses. Exit code 1 if there is a note that no known key has signed.
    """
    from entrypoints.cli.checkpoints import show
    from entrypoints.cli.session import verifying_log

    return verifying_log(data_dir, lambda verifier: show(verifier, as_json=as_json))
