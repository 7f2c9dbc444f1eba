"""The hash chain: the digest of an event, the hash of a block.

The standard library only, so that a verifier needs no other code of ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from struct import Struct
from uuid import UUID


def event_digest(
    stream_id: UUID,
    version: int,
    topic: str,
    state: bytes,
    correlation_id: UUID,
    causation_position: int | None,
    actor: str,
    trace: str | None,
) -> bytes:
    """An event in the chain: SHA-256 over all of it except its position and time, which its block's hash covers.

    Equal to `event_digest` in log.sql.
    """
    metadata = metadata_of(correlation_id, causation_position, actor, trace)
    return digest_of(stream_id.bytes, _eight(version), _text(topic), _four(len(state)) + state, metadata)


def digest_of(*parts: bytes) -> bytes:
    """`event_digest` from what it is over: id, version, topic, state and metadata."""
    return sha256(b"".join(parts)).digest()


def metadata_of(correlation_id: UUID, causation_position: int | None, actor: str, trace: str | None) -> bytes:
    """The end of what a digest is over: the same for events that are recorded together."""
    return (
        correlation_id.bytes
        + (_NULL if causation_position is None else _four(8) + _eight(causation_position))
        + _text(actor)
        + (_NULL if trace is None else _text.__wrapped__(trace))
    )


_four = Struct("!i").pack
_eight = Struct("!q").pack
_two_eights = Struct("!qq").pack
_NULL = _four(-1)


@lru_cache(maxsize=256)
def _text(value: str) -> bytes:
    """A text's length and bytes; there are few topics and actors."""
    encoded = value.encode()
    return _four(len(encoded)) + encoded


BEFORE_ALL = sha256(b"").digest()
"""What the first block follows."""


def block_hash(previous: bytes, first_position: int, recorded_at: datetime, digests: Iterable[bytes]) -> bytes:
    """A block's hash: over the previous one, its first position, the time of its events, and their digests in order.

    Equal to `block_hash` in log.sql.
    """
    return block_hash_at(previous, first_position, (recorded_at - _EPOCH) // _MICROSECOND, digests)


def block_hash_at(previous: bytes, first_position: int, microseconds: int, digests: Iterable[bytes]) -> bytes:
    """`block_hash`, the time in microseconds since 1970."""
    return sha256(b"".join((previous, _two_eights(first_position, microseconds), *digests))).digest()


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
