"""Whether others append to the log meanwhile: whoever folds it then leaves them a processor of the server."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Final

from domain.recorded import Position
from infrastructure.event_store.reader import head_of
from infrastructure.postgres.connection import Connection

LOOKS_EVERY: Final = timedelta(seconds=1)

MUCH: Final = 20
"""Events a second, two registrations from sign-up to account. With fewer, hardly anybody would notice."""


class Traffic:
    """Looks at the end of the log, once a second at most."""

    def __init__(self) -> None:
        self._end: Position | None = None
        self._looked_at = 0.0
        self._much = False

    async def is_much(self, connection: Connection) -> bool:
        """Were there more than `MUCH` events a second, when it was looked last? Not known before the second look."""
        now = asyncio.get_running_loop().time()
        passed = now - self._looked_at
        if self._end is None or passed >= LOOKS_EVERY.total_seconds():
            end = await head_of(connection)
            self._much = self._end is not None and end - self._end > MUCH * passed
            self._end, self._looked_at = end, now
        return self._much
