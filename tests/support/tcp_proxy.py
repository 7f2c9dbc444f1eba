"""A TCP proxy that misbehaves as told, in front of a TCP port or a Unix socket, and counts what its faults hit.

async with TcpProxy(("127.0.0.1", 5672)) as proxy:     # or TcpProxy("/run/postgresql/.s.PGSQL.5432")
    proxy.cut(TO_CLIENT, b"COMMIT", forward=False)     # the answer is lost
    ...
    assert proxy.is_effective
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Literal, Self

Direction = Literal["to server", "to client"]
TO_SERVER: Final = "to server"
TO_CLIENT: Final = "to client"


@dataclass
class _Trap:
    fault: Literal["cut", "hold"]
    direction: Direction
    pattern: bytes
    forward: bool


@dataclass(eq=False)
class _Link:
    """One connection through the proxy: whom each direction writes to, and what it saw last."""

    writers: dict[Direction, asyncio.StreamWriter]
    seen: dict[Direction, bytes] = field(default_factory=lambda: {TO_SERVER: b"", TO_CLIENT: b""})

    def reset(self) -> None:
        for writer in self.writers.values():
            _reset(writer)


class TcpProxy:
    """Listens on a free port of 127.0.0.1 while entered; faults may be combined, `heal` ends those that last."""

    def __init__(self, upstream: str | tuple[str, int]) -> None:
        self.port = 0
        self.injected: set[str] = set()
        self.effects: Counter[str] = Counter()
        self._upstream = upstream
        self._links: set[_Link] = set()
        self._traps: list[_Trap] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._healed = asyncio.Event()
        self._lasting: set[str] = set()
        self._pause = 0.0

    @property
    def is_effective(self) -> bool:
        """Did every fault that was injected hit something?"""
        return bool(self.injected) and all(self.effects[fault] for fault in self.injected)

    def refuse(self) -> None:
        """Reset every new connection at once."""
        self._begin("refuse")

    def reset(self) -> None:
        """Reset the connections there are."""
        self.injected.add("reset")
        self.effects["reset"] += len(self._links)
        for link in self._links:
            link.reset()

    def hold(self, direction: Direction, pattern: bytes = b"") -> None:
        """Keep what goes this way, the ends of connections included, until `heal` delivers it.

        With a pattern: only from the first chunk on that carries it, and only on that connection.
        """
        self._begin(f"hold {direction}", lasting=not pattern)
        if pattern:
            self._traps.append(_Trap("hold", direction, pattern, forward=False))

    def delay(self, seconds: float) -> None:
        """Pass everything on that much later, in both directions."""
        self._begin("delay")
        self._pause = seconds

    def cut(self, direction: Direction, pattern: bytes, *, forward: bool) -> None:
        """Reset the connection on which the pattern passes, once: after passing it on, or right before it."""
        self.injected.add("cut")
        self._traps.append(_Trap("cut", direction, pattern, forward))

    def heal(self) -> None:
        """End every fault that lasts, disarm the others, deliver what was held."""
        self._lasting.clear()
        self._traps.clear()
        self._healed.set()

    def lead_to(self, upstream: str | tuple[str, int]) -> None:
        """What connects from now on."""
        self._upstream = upstream

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.heal()
        for link in self._links:
            link.reset()
        await asyncio.gather(*self._tasks)

    def _begin(self, fault: str, *, lasting: bool = True) -> None:
        self.injected.add(fault)
        if lasting:
            self._lasting.add(fault)
        if self._healed.is_set():
            self._healed = asyncio.Event()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        if "refuse" in self._lasting:
            self.effects["refuse"] += 1
            return _reset(to_client)
        try:
            if isinstance(self._upstream, str):
                server, to_server = await asyncio.open_unix_connection(self._upstream)
            else:
                server, to_server = await asyncio.open_connection(*self._upstream)
        except OSError:
            return _reset(to_client)
        link = _Link({TO_SERVER: to_server, TO_CLIENT: to_client})
        self._links.add(link)
        try:
            await asyncio.gather(self._pump(link, TO_SERVER, client), self._pump(link, TO_CLIENT, server))
        finally:
            self._links.discard(link)
            to_client.close()
            to_server.close()

    async def _pump(self, link: _Link, direction: Direction, reader: asyncio.StreamReader) -> None:
        writer = link.writers[direction]
        writer.transport.set_write_buffer_limits(high=0)  # drain() means: it is with the kernel
        try:
            while True:
                data = await reader.read(65536)
                if data and "delay" in self._lasting:
                    self.effects["delay"] += 1
                    await asyncio.sleep(self._pause)
                if f"hold {direction}" in self._lasting:
                    self.effects[f"hold {direction}"] += bool(data)
                    await self._healed.wait()
                if not data:
                    break
                trap, at = self._sprung(link, direction, data)
                writer.write(data[:at])
                await writer.drain()
                if trap and trap.fault == "cut":
                    self.effects["cut"] += 1
                    link.reset()
                elif trap:
                    self.effects[f"hold {direction}"] += 1
                    await self._healed.wait()
                    writer.write(data[at:])
                    await writer.drain()
            writer.write_eof()
        except OSError:
            _reset(writer)  # it hears of it, as it would without us

    def _sprung(self, link: _Link, direction: Direction, data: bytes) -> tuple[_Trap | None, int]:
        """The trap whose pattern ends in this chunk, and where in the chunk it acts."""
        seen = link.seen[direction]
        window = seen + data
        link.seen[direction] = window[-100:]
        for trap in self._traps:
            at = window.find(trap.pattern, max(0, len(seen) - len(trap.pattern) + 1))
            if trap.direction == direction and at >= 0:
                self._traps.remove(trap)
                return trap, max(0, at + (len(trap.pattern) if trap.forward else 0) - len(seen))
        return None, len(data)


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
