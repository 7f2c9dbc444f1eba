"""Every checkpoint that is known: those of the directory, and those of the table in the database.

Not only the latest of each day: of a log that was rewritten and signed anew, those from before the rewriting tell.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from infrastructure.audit.notes import BadNote, SigningKey, VerifierKey, checkpoint_in, open_note
from infrastructure.audit.publishing import CheckpointDirectory
from infrastructure.audit.roots import Checkpoint
from infrastructure.postgres.connection import Connection

_TABLE: Final = "SELECT note, in_directory, at_url FROM public.checkpoints ORDER BY size"
_ORIGIN: Final = "SELECT origin FROM public.tree_head WHERE origin <> ''"


class Known(NamedTuple):
    """A note that is called a checkpoint.

    Attributes:
        checkpoint: what was signed; None if it was not, by a key that is known here.
        why: it is none.
        waits: it has not been published everywhere yet.
    """

    note: str
    checkpoint: Checkpoint | None
    why: str | None
    waits: bool


async def known_keys(
    connection: Connection, directory: CheckpointDirectory | None, seed: bytes | None
) -> list[VerifierKey]:
    """The keys that sign or signed: the directory knows the earlier ones.

    Args:
        seed: of the key that signs now; None if it is not here.

    Raises:
        OSError: the directory cannot be read.
    """
    keys = await asyncio.to_thread(directory.keys) if directory else []
    if seed is not None:
        rows: list[Any] = await (await connection.execute(_ORIGIN)).fetchall()
        keys += [SigningKey(origin, seed).verifier for (origin,) in rows]
    return list(dict.fromkeys(keys))


async def known_checkpoints(
    connection: Connection, directory: CheckpointDirectory | None, keys: Sequence[VerifierKey]
) -> list[Known]:
    """Every note of directory and table once, the smallest tree first; also those that none of the keys has signed.

    Raises:
        OSError: the directory cannot be read.
    """
    table: list[Any] = await (await connection.execute(_TABLE)).fetchall()
    waiting = {note: not (in_directory and at_url) for note, in_directory, at_url in table}
    return await asyncio.to_thread(_all_known, directory, waiting, keys)  # a tenth of a millisecond for each


def _all_known(
    directory: CheckpointDirectory | None, waiting: dict[str, bool], keys: Sequence[VerifierKey]
) -> list[Known]:
    """
    Args:
        waiting: the notes of the table: has each not been published everywhere yet?
    """
    notes = dict.fromkeys(directory.notes() if directory else (), False) | waiting
    found = [_known(note, waits, keys) for note, waits in notes.items()]
    return sorted(found, key=lambda one: one.checkpoint.size if one.checkpoint else 0)


def _known(note: str, waits: bool, keys: Iterable[VerifierKey]) -> Known:
    try:
        return Known(note, checkpoint_in(open_note(note, keys)), None, waits)
    except BadNote as error:
        return Known(note, None, str(error), waits)
