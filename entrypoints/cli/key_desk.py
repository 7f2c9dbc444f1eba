"""What `keys list` and `keys rotate` do."""

from __future__ import annotations

import click

from entrypoints.bootstrap.keys import CannotRotate, KeyDesk
from entrypoints.cli.output import moving, note, print_json, print_table


async def list_keys(desk: KeyDesk, *, as_json: bool) -> int:
    """Print the master keys in the order of their use; 1 if one is missing."""
    found = await desk.keys()
    if as_json:
        print_json(found)
    else:
        print_table(
            ("key", "use", "here", "persons", "wraps since", "retired at"),
            ((one.key, one.use, one.here, one.persons, one.wraps_since, one.retired_at) for one in found),
        )
    missing = [one.key or "without an id" for one in found if one.is_missing]
    if missing:
        note(f"Not here, and needed: the master key {' and '.join(missing)}.")
    return 1 if missing else 0


async def rotate(desk: KeyDesk, *, reason: str | None, as_json: bool) -> int:
    """Change the master key, and say what is to be done now."""
    try:
        with moving() as show:
            done = await desk.rotate(lambda ready, of: show("Re-wrapping", ready, of), reason)
    except CannotRotate as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        print_json(done)
    else:
        begun = "An earlier run had begun; this one has" if done.resumed else "It has"
        persons = "1 person" if done.persons == 1 else f"{done.persons:,} persons"
        click.echo(f"Everything is wrapped by the master key {done.key} now. {begun} re-wrapped {persons}.")
    note(done.advice)
    return 0
