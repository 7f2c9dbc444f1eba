"""Whether others append to the log meanwhile: whoever folds it then leaves them a processor of the server."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Final

from infrastructure.postgres.connection import Connection

LOOKS_EVERY: Final = timedelta(seconds=1)

LATELY: Final = timedelta(seconds=1)

MUCH: Final = 20
"""Events that were recorded lately, two registrations from sign-up to account. With fewer, hardly anybody would notice.
"""

_MUCH = """
    SELECT EXISTS (
        SELECT FROM public.head AS h JOIN public.events AS e ON e.notification_id = h.position - %s
        WHERE e.recorded_at > clock_timestamp() - %s
    )
"""


class Traffic:
    """Looks at the end of the log, once a second at most."""

    def __init__(self) -> None:
        self._look_at = 0.0
        self._much = False

    async def is_much(self, connection: Connection) -> bool:
        """Were more than `MUCH` events recorded within a second, when it was looked last?"""
        now = asyncio.get_running_loop().time()
        if now >= self._look_at:
            row = await (await connection.execute(_MUCH, (MUCH, LATELY))).fetchone()
            self._much = row is not None and bool(row[0])
            self._look_at = now + LOOKS_EVERY.total_seconds()
        return self._much
