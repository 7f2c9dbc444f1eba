"""Signed notes (https://c2sp.org/signed-note), and the checkpoints of the log that are written as such
(https://c2sp.org/tlog-checkpoint).
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

from domain.recorded import Position
from infrastructure.audit.note_keys import SigningKey, VerifierKey
from infrastructure.audit.roots import Checkpoint

_SIGNATURE: Final = re.compile(r"— ([^\s+]+) ([A-Za-z0-9+/]+=*)")

REPLACES: Final = "replaces"
"""Begins a line of the first checkpoint that new keys have signed: behind it stands one of those that they replace."""


class Change(NamedTuple):
    """Keys that sign from now on, and those that they replace."""

    to: Sequence[VerifierKey]
    replaced: Sequence[VerifierKey]


class BadNote(Exception):
    """It is no note that one of the keys has signed; one line, fit to show."""


def signed_note(text: str, keys: Iterable[SigningKey], at: datetime) -> str:
    """The text of a checkpoint, which ends with a newline, with the signatures of these keys."""
    return f"{text}\n{''.join(key.lines(text, at) for key in keys)}"


def open_note(note: str, keys: Iterable[VerifierKey]) -> str:
    """The text of a note, with every line of it signed by at least one of the keys. Those of other keys say nothing.

    Raises:
        BadNote: none of them has, or what one of them should have signed is something else.
    """
    text, separator, lines = note.rpartition("\n\n")
    if not separator or not lines.endswith("\n"):
        raise BadNote("it is no signed note")
    text += "\n"
    known = {(key.name, key.id): key for key in keys}
    signed = False
    for line in lines[:-1].split("\n"):
        found = _SIGNATURE.fullmatch(line)
        if found is None:
            raise BadNote("it has a line that is no signature")
        try:
            blob = b64decode(found[2], validate=True)
        except ValueError:
            raise BadNote("it has a signature that is no base64") from None
        key = known.get((found[1], blob[:4]))
        if key is not None:
            if not key.has_signed(text, blob[4:]):
                raise BadNote(f"it is not what {key.name} signed")
            signed = signed or key.signs_every_line
    if not signed:
        raise BadNote("no known key has signed it")
    return text


def notes_in(text: str) -> Iterator[str]:
    """The notes of a file in which an empty line follows each; what is torn is left out."""
    # By paragraphs: a regular expression would begin again at every character of a file that somebody has spoilt.
    *whole, last = text.split("\n\n")
    before = ""
    for paragraph in [*whole, last.removesuffix("\n")] if last.endswith("\n") else whole:
        if before and all(line.startswith("— ") and len(line) > 2 for line in paragraph.split("\n")):
            yield f"{before}\n\n{paragraph}\n"
            before = ""
        else:
            before = paragraph.lstrip("\n")


def checkpoint_text(origin: str, checkpoint: Checkpoint, time: datetime, change: Change | None = None) -> str:
    """What is signed: the name of the log, its blocks, their root, its last position, and when.

    Args:
        change: of the keys that sign: this is the first checkpoint of the new ones.
    """
    root = b64encode(checkpoint.root).decode()
    when = time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    lines = [origin, checkpoint.size, root, f"position {checkpoint.position}", f"time {when}"]
    if change is not None:
        lines += [f"key {key}" for key in change.to] + [f"{REPLACES} {key}" for key in change.replaced]
    return "".join(f"{line}\n" for line in lines)


def checkpoint_in(text: str) -> Checkpoint:
    """
    Raises:
        BadNote: the text is no checkpoint of ours.
    """
    found = re.match(r"[^\n]+\n(0|[1-9][0-9]{0,18})\n([A-Za-z0-9+/]{43}=)\n(?:.*\n)*?position ([0-9]{1,19})\n", text)
    if found is None:
        raise BadNote("it is no checkpoint")
    position: Position = int(found[3])
    return Checkpoint(int(found[1]), position, b64decode(found[2]))


def time_in(text: str) -> datetime:
    """When a checkpoint of ours was signed.

    Raises:
        BadNote: it does not say so.
    """
    found = re.search(r"^time ([0-9T:-]{19})Z$", text, re.MULTILINE)
    try:
        return datetime.fromisoformat(found[1] if found is not None else "").replace(tzinfo=UTC)
    except ValueError:
        raise BadNote("it does not say when it was signed") from None


def vouched_for(keys: Iterable[VerifierKey], changes: Iterable[str]) -> list[VerifierKey]:
    """The given keys, and those that they lead to: each that is named in a change of keys which one of them has signed.

    Whoever knows one key so knows those before and after it. It is not enough that a key has signed beside one that is
    known, which anybody can have his own key do.

    Args:
        changes: notes that may be the first ones of new keys.
    """
    known, waiting = dict.fromkeys(keys), list(changes)
    while True:
        left = []
        for note in waiting:
            try:
                known |= dict.fromkeys(_keys_named_in(open_note(note, known)))
            except BadNote:
                left.append(note)
        if len(left) == len(waiting):
            return list(known)
        waiting = left


def _keys_named_in(text: str) -> Iterator[VerifierKey]:
    for line in text.splitlines()[3:]:
        word, _, key = line.partition(" ")
        if word in {"key", REPLACES}:
            try:
                yield VerifierKey.parse(key)
            except ValueError:  # of a type that is unknown here
                continue
