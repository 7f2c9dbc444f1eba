"""Pages of a long list, newest first, by position: rows that arrive meanwhile shift nothing."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from domain.recorded import Position

T = TypeVar("T")

LAST_POSITION: Position = 2**63 - 1
"""No event is ever beyond it: the greatest number of its column."""


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some items of a list.

    Attributes:
        next_cursor: brings the page after this one; None on the last one.
    """

    items: list[T]
    next_cursor: str | None


def before(cursor: str | None) -> Position:
    """The page's items are those whose position is less than this.

    Raises:
        ValueError: the cursor is not from one of our pages.
    """
    if cursor is None:
        return LAST_POSITION
    try:
        position = int(urlsafe_b64decode(cursor.encode("ascii")).decode("ascii"))
    except ValueError as error:
        raise ValueError("not a cursor") from error
    # Compared, because base64 and numbers can both be written in more than one way.
    if not 0 < position <= LAST_POSITION or _cursor(position) != cursor:
        raise ValueError("not a cursor")
    return position


def page(found: Sequence[T], limit: int, position_of: Callable[[T], Position]) -> Page[T]:
    """The page that `found` makes, of which one more than `limit` was asked for to see whether there is a next."""
    items = list(found[:limit])
    return Page(items, _cursor(position_of(items[-1])) if len(found) > limit else None)


def _cursor(position: Position) -> str:
    return urlsafe_b64encode(str(position).encode("ascii")).decode("ascii")
