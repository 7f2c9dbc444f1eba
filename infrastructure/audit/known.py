"""Every note that calls itself a checkpoint: those of the directory, and those of the table in the database.

Not only the latest of each day: of a log that was rewritten and signed anew, those from before the rewriting tell. A
year has millions of them, of some kilobytes each, so that only those of a few days are in memory at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from infrastructure.audit.note_keys import SigningKey, VerifierKey
from infrastructure.audit.notes import REPLACES, BadNote, checkpoint_in, notes_in, open_note, vouched_for
from infrastructure.audit.publishing import CheckpointDirectory
from infrastructure.audit.roots import Checkpoint, Claim
from infrastructure.postgres.connection import Connection

_TABLE: Final = "SELECT note, NOT (in_directory AND at_url) FROM public.checkpoints ORDER BY size DESC LIMIT %s"
_NOTES: Final = "SELECT note FROM public.checkpoints"
_CHANGES: Final = f"SELECT note FROM public.checkpoints WHERE position(E'\\n{REPLACES} ' IN note) > 0"  # noqa: S608 - a constant
_ORIGIN: Final = "SELECT origin FROM public.tree_head WHERE origin <> ''"


class Known(NamedTuple):
    """A note that is called a checkpoint.

    Attributes:
        note: itself.
        checkpoint: what was signed; None if it was not, by a key that is known here.
        why: it is none.
        waits: it has not been published everywhere yet.
    """

    note: str
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
    ours = [key for (origin,) in rows for seed in seeds for key in SigningKey(origin, seed).verifiers]
    changes = list[str]()
    if directory is not None:
        changes = await asyncio.to_thread(lambda: [note for note in directory.notes() if f"\n{REPLACES} " in note])
    return await keys_that_lead(connection, directory, ours, changes)


async def keys_that_lead(
    connection: Connection,
    directory: CheckpointDirectory | None,
    ours: Sequence[VerifierKey],
    changes: Sequence[str] = (),
) -> list[VerifierKey]:
    """Ours, those of the directory, and those that these changes of keys, and the table's, lead to.

    Raises:
        OSError: the directory cannot be read.
    """
    keys = [*ours, *(await asyncio.to_thread(directory.keys) if directory is not None else ())]
    rows: list[Any] = await (await connection.execute(_CHANGES)).fetchall()
    return vouched_for(keys, [*changes, *(note for (note,) in rows)])


async def known_checkpoints(
    connection: Connection, directory: CheckpointDirectory | None, keys: Sequence[VerifierKey], *, most: int
) -> list[Known]:
    """The latest notes of directory and table, the smallest tree first; also those that none of the keys has signed.

    Args:
        most: so many of each.

    Raises:
        OSError: the directory cannot be read.
    """
    found = dict[str, bool]()
    if directory is not None:
        latest = await asyncio.to_thread(lambda: list(islice(directory.latest_notes(), most)))
        found = dict.fromkeys(latest, False)
    rows: list[Any] = await (await connection.execute(_TABLE, (most,))).fetchall()
    known = await asyncio.to_thread(lambda: [_known(note, waits, keys) for note, waits in (found | dict(rows)).items()])
    known.sort(key=lambda one: one.checkpoint.size if one.checkpoint else 0)
    genuine = [one for one in known if one.checkpoint is not None]
    return [one for one in known if one.checkpoint is None] + genuine[-most:]


def _known(note: str, waits: bool, keys: Iterable[VerifierKey]) -> Known:
    try:
        return Known(note, checkpoint_in(open_note(note, keys)), None, waits)
    except BadNote as error:
        return Known(note, None, str(error), waits)


@dataclass(frozen=True, slots=True)
class Claims:
    """All that call themselves checkpoints now, to be compared with the log."""

    _keys: Sequence[VerifierKey]
    _days: Sequence[_Day]
    _table: Sequence[Claim]

    @classmethod
    async def of(
        cls, connection: Connection, directory: CheckpointDirectory | None, keys: Sequence[VerifierKey]
    ) -> Self:
        """
        Args:
            keys: that sign or signed.

        Raises:
            OSError: the directory cannot be read.
        """
        days = []
        if directory is not None:
            days = await asyncio.to_thread(lambda: [day for file in directory.files() if (day := _Day.of(file))])
        rows: list[Any] = await (await connection.execute(_NOTES)).fetchall()
        return cls(keys, days, list(_claims_of(note for (note,) in rows)))

    def is_signed(self, claim: Claim) -> bool:
        try:
            return checkpoint_in(open_note(claim.note, self._keys)) == claim.checkpoint
        except BadNote:
            return False

    def __iter__(self) -> Iterator[Claim]:
        """The smallest tree first. Files are read when the trees of before are passed, and again each time.

        Raises:
            OSError: a file cannot be read.
        """
        waiting = list(self._table)
        heapify(waiting)
        for day in sorted(self._days, key=lambda one: one.least):
            while waiting and waiting[0].checkpoint.size < day.least:
                yield heappop(waiting)
            for claim in day.claims():
                heappush(waiting, claim)
        while waiting:
            yield heappop(waiting)


@dataclass(frozen=True, slots=True)
class _Day:
    """A file of the directory as it is now: it may grow.

    Attributes:
        least: the size of the smallest tree in it.
    """

    file: Path
    length: int
    least: int

    @classmethod
    def of(cls, file: Path) -> Self | None:
        """None if nothing in it is like a checkpoint."""
        content = file.read_bytes()
        least = min((one.checkpoint.size for one in _claims_in(content)), default=None)
        return None if least is None else cls(file, len(content), least)

    def claims(self) -> Iterator[Claim]:
        with self.file.open("rb") as opened:
            return _claims_in(opened.read(self.length))


def _claims_in(content: bytes) -> Iterator[Claim]:
    return _claims_of(notes_in(content.decode(errors="replace")))


def _claims_of(notes: Iterable[str]) -> Iterator[Claim]:
    """What is no checkpoint in form claims nothing."""
    for note in notes:
        try:
            yield Claim(checkpoint_in(note), note)
        except BadNote:
            continue
