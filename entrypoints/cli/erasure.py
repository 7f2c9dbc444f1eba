"""`erase`: its options and examples."""

# ruff: noqa: PLC0415 - as in `main`: a command imports what it needs when it runs
from __future__ import annotations

from pathlib import Path

import click

from entrypoints.cli import options


@click.command(
    "erase",
    epilog=options.example(
        'registrar erase 0198c0de-0000-7000-8000-000000000000 --reason "request of 28 November"',
        'registrar erase - --reason "ticket 4711" --yes --proof erased.txt < address.txt',
    ),
)
@click.argument("who", metavar="ID|ADDRESS", callback=options.or_standard_input)
@options.needed_reason
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.option(
    "--proof",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write what proves it to FILE, without personal data; of an erasure of before, too.",
)
@options.as_json
@options.data_dir
def erase(*, who: str, reason: str, yes: bool, proof: Path | None, as_json: bool, data_dir: Path | None) -> int:
    """Erase a person: destroy the key of all that is known of them.

    The registration or account ends, its address is free, mails that wait are not sent, and the person's data cannot
    be read again, here or in any copy of the log. Of an ADDRESS, every registration is erased. "-" reads
    it from standard input, so that an address is in no history of a shell. It can be repeated.
    """
    from entrypoints.cli import erasing
    from entrypoints.cli.session import erasing_with

    wanted = options.registration_or_address(who)
    return erasing_with(
        data_dir, lambda desk: erasing.erase(desk, wanted, reason, sure=yes, proof=proof, as_json=as_json)
    )
