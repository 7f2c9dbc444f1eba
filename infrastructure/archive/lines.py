"""The lines of an exported log: JSON, one object a line (docs/replay.md describes them for others).

head    {"format": "registrar log", "version": 1, …}       what the file is, and where its log ends
event   {"position": 1, "block": 3, "previous_hash": …, …} each event of the log, in order
key     {"registration_id": …, "wrapped": …}               each personal key, if they are in it
end     {"end": 3, "hash": …, "sha256": …}                 the end of the log's chain, and of the file
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final
from uuid import UUID

import msgspec
from msgspec import Meta

FORMAT: Final = "registrar log"
VERSION: Final = 1

MAX_LINE_BYTES: Final = 16 << 20
"""No line of ours comes near it: a request has at most 16 KiB. Beyond it a file is none of ours."""

MAX_BLOCK_EVENTS: Final = 10_000
"""No block of ours comes near it: a transaction records 1,000 events, or one append that has more, such as what the
saga notes about 300 events. Beyond it a file is none of ours."""

Number = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Time = Annotated[datetime, Meta(tz=True)]


class HeadLine(msgspec.Struct, forbid_unknown_fields=True):
    """
    Attributes:
        release: that wrote the file.
        position, hash: the end of the log, in hexadecimal, as the file has it.
        root_secret: that from which every key beside the personal ones is derived, wrapped by the master key; only with
            personal keys.
    """

    format: str
    version: int
    release: str
    exported_at: Time
    position: Number
    hash: str
    root_secret: bytes | None = None


class EventLine(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """
    Attributes:
        block: the last position of the block in which the event was recorded; so a block ends where it is the position.
        previous_hash: of the block before, in hexadecimal.
        state: the event's own bytes, which are JSON, as they are; `state_base64` for bytes that are none.
    """

    position: Number
    block: Number
    previous_hash: str
    stream_id: UUID
    version: Number
    type: str
    recorded_at: Time
    correlation_id: UUID
    causation_position: Number | None
    actor: str
    trace: str | None
    state: msgspec.Raw = msgspec.Raw()
    state_base64: bytes | None = None


class KeyLine(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A person's key, wrapped by the master key."""

    registration_id: UUID
    wrapped: bytes


class EndLine(msgspec.Struct, forbid_unknown_fields=True):
    """
    Attributes:
        end, hash: the end of the log, once more: a file without this line was cut.
        keys: how many keys the file has.
        sha256: of all lines before this one, in hexadecimal.
    """

    end: Number
    hash: str
    keys: Number
    sha256: str


HEAD_BEGINS, EVENT_BEGINS, KEY_BEGINS, END_BEGINS = b'{"format"', b'{"position"', b'{"registration_id"', b'{"end"'
"""With what each kind of line begins, as its first field is its own."""
