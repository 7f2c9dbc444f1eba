"""`keys list` and `keys rotate`: their options and examples."""

# ruff: noqa: PLC0415 - as in `main`: a command imports what it needs when it runs
from __future__ import annotations

from pathlib import Path

import click

from entrypoints.cli import options


@click.group(epilog=options.example("registrar keys list"))
def keys() -> None:
    """See the master keys, and change them.

    A master key wraps the key of every person, and the secret that all other keys are derived from.
    """


@keys.command("list", epilog=options.example("registrar keys list", "registrar keys list --json"))
@options.wide
@options.as_json
@options.data_dir
def keys_list(*, as_json: bool, data_dir: Path | None) -> int:
    """List the master keys by their ids: which of them wraps, what, and whether it is here.

    An id is eight bytes that follow from a key and do not lead back to it. Exit code 1 if one is missing that wraps
    something.
    """
    from entrypoints.cli import key_desk
    from entrypoints.cli.session import keeping_keys

    return keeping_keys(data_dir, lambda desk: key_desk.list_keys(desk, as_json=as_json))


@keys.command("rotate", epilog=options.example('registrar keys rotate --reason "every November"'))
@options.reason
@options.as_json
@options.data_dir
def keys_rotate(*, reason: str | None, as_json: bool, data_dir: Path | None) -> int:
    """Wrap everything by the next master key, while the service runs.

    First set REGISTRAR_NEXT_MASTER_KEY (or …_FILE) in every process, and restart them one by one; this command waits
    for none, it says which of them do not have the key. With the embedded database it makes the key itself, and what
    runs there learns of it. Ended at any point, it goes on where it was when it is run again.
    """
    from entrypoints.cli import key_desk
    from entrypoints.cli.session import keeping_keys

    return keeping_keys(data_dir, lambda desk: key_desk.rotate(desk, reason=reason, as_json=as_json))
