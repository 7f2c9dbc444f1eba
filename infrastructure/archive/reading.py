"""An exported log, read and verified on the way: nothing is handed out that the chain does not cover."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Final, TypeVar

import msgspec

from domain.recorded import Position
from infrastructure.archive.files import BadFile
from infrastructure.archive.lines import (
    END_BEGINS,
    EVENT_BEGINS,
    FORMAT,
    HEAD_BEGINS,
    KEY_BEGINS,
    MAX_BLOCK_EVENTS,
    VERSION,
    EndLine,
    EventLine,
    HeadLine,
    KeyLine,
)
from infrastructure.event_store.chain import BEFORE_ALL, block_hash, event_digest

T = TypeVar("T")

_HEAD: Final = msgspec.json.Decoder(HeadLine)
_EVENT: Final = msgspec.json.Decoder(EventLine)
_KEY: Final = msgspec.json.Decoder(KeyLine)
_END: Final = msgspec.json.Decoder(EndLine)


@dataclass(slots=True)
class Block:
    """What was recorded in one transaction; its hash is that of its events.

    Attributes:
        events: each with its own bytes.
    """

    first: Position
    last: Position
    recorded_at: datetime
    hash: bytes
    events: list[tuple[EventLine, bytes]]


class ExportedLog:
    """The parts of a file, each read once and to its end before the next: `blocks`, then `personal_keys`.

    Attributes:
        head: what the file says about itself.
        position, hash: up to where it is verified.
        types: of the events up to there.

    Raises (all of it):
        BadFile: the file is not as it was exported; says where.
        OSError: it cannot be read.
    """

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = iter(lines)
        self._digest = sha256()
        self._digest_before = ""
        self._number = 0
        self.position: Position = 0
        self.hash = BEFORE_ALL
        self.types: set[str] = set()
        self._advance()
        if not self._line.startswith(HEAD_BEGINS):
            raise BadFile(_NOT_OURS)
        self.head = self._head()
        self._advance()

    def _head(self) -> HeadLine:
        try:
            said = msgspec.json.decode(self._line, type=dict)
        except (msgspec.MsgspecError, ValueError):
            raise self._fault("it is not as Registrar writes it") from None
        if said["format"] != FORMAT:
            raise BadFile(_NOT_OURS)
        if said.get("version") != VERSION:
            raise BadFile(
                f"Registrar {str(said.get('release'))[:40]} wrote it, in a form that this release does not know; "
                "use that release, or a later one"
            )
        return self._decoded(_HEAD)

    def blocks(self) -> Iterator[Block]:
        """All blocks, each one verified."""
        while self._event is not None:
            yield self._block(self._event)
        if (self.position, self.hash.hex()) != (self.head.position, self.head.hash):
            raise self._fault(f"the events end at position {self.position}, not as the first line says")

    def _block(self, event: EventLine) -> Block:
        first, previous, digests = self.position + 1, self.hash.hex(), []
        if not first <= event.block <= min(self.head.position, first + MAX_BLOCK_EVENTS - 1):
            raise self._fault(f"the block of position {first} cannot end at {event.block}")
        block = Block(first, event.block, event.recorded_at, b"", [])
        for position in range(first, block.last + 1):
            if self._event is None or self._event.position != position:
                raise self._fault(f"position {position} is missing")
            event = self._event
            if (event.block, event.recorded_at, event.previous_hash) != (block.last, block.recorded_at, previous):
                raise self._fault(f"position {position} does not fit its block")
            state = self._state(event)
            digests.append(
                event_digest(
                    *(event.stream_id, event.version, event.type, state, event.correlation_id),
                    *(event.causation_position, event.actor, event.trace),
                )
            )
            block.events.append((event, state))
            self.types.add(event.type)
            self._advance()
        block.hash = block_hash(self.hash, first, block.recorded_at, digests)
        if block.hash.hex() != (self.head.hash if self._event is None else self._event.previous_hash):
            raise self._fault(f"positions {first} to {block.last} do not have the hash that follows them")
        self.position, self.hash = block.last, block.hash
        return block

    def _state(self, event: EventLine) -> bytes:
        state = bytes(event.state)
        if bool(state) == (event.state_base64 is not None):
            raise self._fault(f"position {event.position} has no state")
        return state or event.state_base64 or b""

    def personal_keys(self) -> Iterator[KeyLine]:
        """The personal keys; after them the file is at its end, and all of it verified."""
        keys = 0
        while self._line.startswith(KEY_BEGINS):
            keys += 1
            yield self._decoded(_KEY)
            self._advance()
        if not self._line.startswith(END_BEGINS):
            raise self._fault("it is of no known kind")
        end = self._decoded(_END)
        if next(self._lines, None) is not None:
            raise BadFile("something follows its last line")
        if (end.end, end.hash, end.keys, end.sha256) != (self.position, self.hash.hex(), keys, self._digest_before):
            raise BadFile("it was changed, though its events are as they were recorded")

    def _advance(self) -> None:
        """Go to the next line."""
        line = next(self._lines, b"")
        if not line.endswith(b"\n"):
            raise BadFile(f"it was cut after position {self.position}" if self._number else _NOT_OURS)
        self._number += 1
        if line.startswith(END_BEGINS):
            self._digest_before = self._digest.hexdigest()
        self._digest.update(line)
        self._line = line
        self._event = self._decoded(_EVENT) if line.startswith(EVENT_BEGINS) else None

    def _decoded(self, decoder: msgspec.json.Decoder[T]) -> T:
        try:
            return decoder.decode(self._line)
        except (msgspec.MsgspecError, ValueError):
            raise self._fault("it is not as Registrar writes it") from None

    def _fault(self, why: str) -> BadFile:
        return BadFile(f"it was changed: at line {self._number}, {why}")


_NOT_OURS = "it is no log that Registrar has exported"
