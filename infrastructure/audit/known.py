"""Every checkpoint that is known: those of the directory, and those of the table in the database."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any, Final, NamedTuple

from infrastructure.audit.note_keys import SigningKey, VerifierKey
from infrastructure.audit.notes import REPLACES, BadNote, checkpoint_in, open_note, vouched_for
from infrastructure.audit.publishing import CheckpointDirectory
from infrastructure.audit.roots import Checkpoint
from infrastructure.postgres.connection import Connection

_TABLE: Final = "SELECT note, in_directory, at_url FROM public.checkpoints ORDER BY size"
_CHANGES: Final = "SELECT note FROM public.checkpoints WHERE position(E'\\nreplaces ' IN note) > 0"
_ORIGIN: Final = "SELECT origin FROM public.tree_head WHERE origin <> ''"


class Known(NamedTuple):
    """A note that is called a checkpoint.

    Attributes:
        note: itself; None where nobody asked for it.
        checkpoint: what was signed; None if it was not, by a key that is known here.
        why: it is none.
        waits: it has not been published everywhere yet.
    """

    note: str | None
    checkpoint: Checkpoint | None
    why: str | None
    waits: bool


async def known_keys(
    connection: Connection, directory: CheckpointDirectory | None, seeds: Sequence[bytes]
) -> list[VerifierKey]:
    """The keys that sign or signed: ours, those of the directory, and those that the changes of keys lead to.

    What stands in the database is not believed for that: only what one of these keys has signed is.

    Args:
        seeds: of the keys that are here.

    Raises:
        OSError: the directory cannot be read.
    """
    rows: list[Any] = await (await connection.execute(_ORIGIN)).fetchall()
    keys = [key for (origin,) in rows for seed in seeds for key in SigningKey(origin, seed).verifiers]
    changes = []
    if directory is not None:
        keys += await asyncio.to_thread(directory.keys)
        changes = await asyncio.to_thread(lambda: [note for note in directory.notes() if f"\n{REPLACES} " in note])
    changes += [note for (note,) in await (await connection.execute(_CHANGES)).fetchall()]
    return vouched_for(keys, changes)


async def known_checkpoints(
    connection: Connection,
    directory: CheckpointDirectory | None,
    keys: Sequence[VerifierKey],
    *,
    with_notes: bool = False,
) -> list[Known]:
    """Every note of directory and table once, the smallest tree first; also those that none of the keys has signed.

    Args:
        with_notes: also of checkpoints. A year has millions of them, of some kilobytes each.

    Raises:
        OSError: the directory cannot be read.
    """
    found: dict[bytes, Known] = {}

    def add(note: str, *, waits: bool) -> None:
        digest = sha256(note.encode()).digest()
        known = found.get(digest)
        if known is None:
            known = _known(note, keys)
            known = known if with_notes or known.why else known._replace(note=None)
        found[digest] = known._replace(waits=waits)

    def add_all_of(directory: CheckpointDirectory) -> None:
        for note in directory.notes():
            add(note, waits=False)

    if directory is not None:
        await asyncio.to_thread(add_all_of, directory)
    async for note, in_directory, at_url in connection.cursor().stream(_TABLE):
        add(note, waits=not (in_directory and at_url))
    return sorted(found.values(), key=lambda one: one.checkpoint.size if one.checkpoint else 0)


def _known(note: str, keys: Iterable[VerifierKey]) -> Known:
    try:
        return Known(note, checkpoint_in(open_note(note, keys)), None, waits=False)
    except BadNote as error:
        return Known(note, None, str(error), waits=False)
