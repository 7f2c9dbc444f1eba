"""Where log lines go: a stopped reader, a closed pipe or a full disk costs lines, and never holds up a request.

A line is written at once if it can be without a wait, as nearly all are, and so is in the log before its process may
die. Else it waits, in order and bounded, for a thread that ends when all of it is written.
"""

from __future__ import annotations

import os
import select
from collections import deque
from collections.abc import Callable
from threading import Condition, Thread

WAITING_BYTES = 1024 * 1024
"""At most so much waits to be written: some 4,000 lines, minutes of a service in trouble."""

FLUSH_WITHIN = 1.0
"""Seconds that the process' end waits for what still waits."""


def is_ready(descriptor: int) -> bool:
    """Whether a write of PIPE_BUF bytes would end at once, be it with an error."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(0))


class LogOutput:
    """Writes lines to a file descriptor, whose other end may do as it likes.

    Attributes:
        lost: lines that were not written, and will not be.
    """

    def __init__(self, descriptor: int, notice: Callable[[int], bytes]) -> None:
        """`notice`: the line that is written before the next one once so many were lost."""
        self._descriptor = descriptor
        self._notice = notice
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._changed = Condition()
        self._at_work = False  # whether there is a thread that writes
        self._unreported = 0
        self._torn = False  # whether the last line was written in part
        self.lost = 0

    def write(self, line: bytes) -> None:
        """Write it, keep it for later, or lose it; without a wait, and without an error, in each case."""
        with self._changed:
            if not self._at_work and self._takes(line):
                self._put(line)
                return
            self._keep(line)
            if not self._at_work:
                self._at_work = True
                Thread(target=self._drain, name="log-output", daemon=True).start()

    def flush(self, within: float = FLUSH_WITHIN) -> None:
        """Wait until nothing waits any more, or for so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not self._at_work, within)

    def _takes(self, line: bytes) -> bool:
        """A pipe that is ready has room for PIPE_BUF (POSIX): for the line with a notice before it. What is longer
        could wait for its second half."""
        return len(line) <= select.PIPE_BUF // 2 and is_ready(self._descriptor)

    def _keep(self, line: bytes) -> None:
        if self._bytes + len(line) > WAITING_BYTES:
            self._lose()
        else:
            self._waiting.append(line)
            self._bytes += len(line)

    def _lose(self) -> None:
        self.lost += 1
        self._unreported += 1

    def _drain(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._at_work = False
                    self._changed.notify_all()
                    return
                line = self._waiting.popleft()
                self._bytes -= len(line)
            self._put(line)

    def _put(self, line: bytes) -> None:
        unreported = self._unreported
        text = rest = b"\n" * self._torn + (self._notice(unreported) if unreported else b"") + line
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError:  # nobody reads it, or the disk is full: the count is the only place to say so
            with self._changed:
                self._torn |= rest != text
                self._lose()
        else:
            with self._changed:
                self._torn = False
                self._unreported -= unreported
