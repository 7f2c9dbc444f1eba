"""What a server can take: a client with nothing but a fixed number of connections, each kept for as long as it
lasts."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from aiosmtplib import SMTP, SMTPException

CONNECTIONS: Final = (5, 10, 2, 20, 1)
"""Numbers that are tried, the likely ones first: one that is slower than the best so far is given up."""


async def seconds_for(port: int, sender: str, letters: Sequence[tuple[str, bytes]], *, connections: int) -> float:
    """How long it takes until each letter, a recipient and a content, is accepted."""
    started = time.perf_counter()
    waiting = deque(letters)
    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(_send(port, sender, waiting))
    return time.perf_counter() - started


async def _send(port: int, sender: str, waiting: deque[tuple[str, bytes]]) -> None:
    while waiting:
        with suppress(SMTPException, OSError):
            async with SMTP(
                hostname="127.0.0.1", port=port, start_tls=False, local_hostname="sender.example", timeout=120
            ) as client:
                while waiting:
                    to, content = waiting.popleft()
                    try:
                        await client.sendmail(sender, [to], content)
                    except BaseException:
                        waiting.append((to, content))
                        raise
            continue
        await asyncio.sleep(0.5)  # as a plain client does before it tries a server again that refuses it
