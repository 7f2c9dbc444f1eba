"""Synthetic registrations: those that the service makes of itself, all the way, to notice what nobody else is there to
notice. They are told from all others by their id, wherever it stands, and count for nothing that people are counted in.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

_MARK: Final = 0x5E1F7E577E57
"""The first 48 bits ("self-test, test"). A UUIDv7 has them in the year 5249, one that is derived from a key once in
2⁴⁸."""

FIRST: Final = UUID(int=_MARK << 80)
LAST: Final = UUID(int=(_MARK + 1 << 80) - 1)
"""Between these, both included, are the ids of synthetic registrations and of no others."""


def is_synthetic(registration_id: UUID) -> bool:
    return registration_id.int >> 80 == _MARK


def marked(registration_id: UUID) -> UUID:
    """The id of a synthetic registration, from one that has 74 other bits of its own."""
    return UUID(int=_MARK << 80 | registration_id.int & (1 << 80) - 1)
