"""Every checkpoint that is known: those of the directory, and those of the table in the database.

Not only the latest of each day: of a log that was rewritten and signed anew, those from before the rewriting tell.
"""

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

_TABLE: Final = "SELECT note, NOT (in_directory AND at_url) FROM public.checkpoints ORDER BY size"
_CHANGES: Final = "SELECT note FROM public.checkpoints WHERE position(E'\\nreplaces ' IN note) > 0"
_ORIGIN: Final = "SELECT origin FROM public.tree_head WHERE origin <> ''"

MANY: Final = 1_000
"""Notes that are looked at in one go."""


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
    found = _Found(keys, with_notes=with_notes)
    if directory is not None:
        await asyncio.to_thread(lambda: found.add((note, False) for note in directory.notes()))
    some = list[Any]()
    async for row in connection.cursor().stream(_TABLE):
        some.append(row)
        if len(some) == MANY:
            await asyncio.to_thread(found.add, some)
            some = []
    await asyncio.to_thread(found.add, some)
    return found.sorted()


class _Found:
    """Looks at the signatures of notes, some tenths of a millisecond for each: not on the event loop."""

    def __init__(self, keys: Sequence[VerifierKey], *, with_notes: bool) -> None:
        self._keys = keys
        self._with_notes = with_notes
        self._by_digest: dict[bytes, Known] = {}

    def add(self, notes: Iterable[tuple[str, bool]]) -> None:
        """
        Args:
            notes: each with whether it has not been published everywhere yet.
        """
        for note, waits in notes:
            digest = sha256(note.encode()).digest()
            known = self._by_digest.get(digest)
            if known is None:
                known = _known(note, self._keys)
                known = known if self._with_notes or known.why else known._replace(note=None)
            self._by_digest[digest] = known._replace(waits=waits)

    def sorted(self) -> list[Known]:
        return sorted(self._by_digest.values(), key=lambda one: one.checkpoint.size if one.checkpoint else 0)


def _known(note: str, keys: Iterable[VerifierKey]) -> Known:
    try:
        return Known(note, checkpoint_in(open_note(note, keys)), None, waits=False)
    except BadNote as error:
        return Known(note, None, str(error), waits=False)
