"""A watchdog: tells where an event loop stands still. While it does, nothing on it could tell."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

import structlog

log = structlog.get_logger(__name__)

PATIENCE: Final = timedelta(seconds=2)
"""Of a loop that has not turned for so long, clients notice (docs/reliability.md, F13)."""

LOOKS: Final = 2
"""Within that time. Each wakes up the loop, also at rest."""


@contextmanager
def watched(patience: timedelta = PATIENCE) -> Iterator[None]:
    """Watch the running loop until the end of the block, from a thread."""
    watchdog = _Watchdog(asyncio.get_running_loop(), patience.total_seconds() / LOOKS)
    watchdog.start()
    try:
        yield
    finally:
        watchdog.stop()


class _Watchdog(threading.Thread):
    """Says once for each standstill where the loop's thread is."""

    def __init__(self, loop: asyncio.AbstractEventLoop, pause: float) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._loop = loop
        self._pause = pause
        self._watched = threading.get_ident()
        self._ended = threading.Event()
        self._turned = True

    def stop(self) -> None:
        """To be called by the loop's thread."""
        self._ended.set()
        self.join()

    def run(self) -> None:
        missed = 0
        looked_at = time.monotonic()
        while not self._ended.wait(self._pause):
            now, before = time.monotonic(), looked_at
            looked_at = now
            if self._turned:
                missed = 0
                self._turned = False
                self._loop.call_soon_threadsafe(self._note_turn)
            elif now - before < 2 * self._pause:  # or we were suspended ourselves, and it with us
                missed += 1
                if missed == LOOKS:
                    self._tell()

    def _note_turn(self) -> None:
        self._turned = True

    def _tell(self) -> None:
        frame = sys._current_frames().get(self._watched)
        log.error(
            "loop.blocked",
            seconds=round(LOOKS * self._pause, 1),
            # Files, lines and code; no values.
            stack="".join(traceback.format_stack(frame)) if frame is not None else None,
            hint="nothing is served meanwhile; this is a bug, report it with the stack",
        )
