"""UUIDs from what is known to be one, in a third of the time of their constructor, which asks what it is given."""

from __future__ import annotations

from typing import Final
from uuid import UUID, SafeUUID


def uuid_of_int(value: int) -> UUID:
    """The UUID of 128 bits."""
    made = _blank(UUID)
    _set_int(made, value)
    _set_safety(made, _UNKNOWN)
    return made


def uuid_of_text(text: str) -> UUID:
    """The UUID that an event of ours has as text.

    Raises:
        ValueError: it is none.
    """
    return uuid_of_int(int(text.replace("-", ""), 16)) if len(text) == _LENGTH else UUID(text)


_LENGTH: Final = 36
_blank: Final = object.__new__
_set_int: Final = vars(UUID)["int"].__set__
_set_safety: Final = vars(UUID)["is_safe"].__set__
"""UUIDs are frozen; their slots are not."""
_UNKNOWN: Final = SafeUUID.unknown
