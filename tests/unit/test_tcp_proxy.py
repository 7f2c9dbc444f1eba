"""The proxy of the fault tests does what it is told, and says so only if it did."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.support.facts import eventually
from tests.support.tcp_proxy import TO_CLIENT, TO_SERVER, TcpProxy


class Echo:
    """A server that answers what it hears, in capitals, and keeps it."""

    def __init__(self) -> None:
        self.heard = b""

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(100):
                self.heard += data
                writer.write(data.upper())
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture(params=["tcp", "unix"])
async def proxy(request: pytest.FixtureRequest, echo: Echo, tmp_path: Path) -> AsyncIterator[TcpProxy]:
    upstream: str | tuple[str, int]
    if request.param == "tcp":
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        upstream = server.sockets[0].getsockname()[:2]
    else:
        upstream = str(tmp_path / "socket")
        server = await asyncio.start_unix_server(echo, upstream)
    async with server, TcpProxy(upstream) as proxy:
        yield proxy


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def note_position(self, count: int) -> bytes:
        async with asyncio.timeout(5):
            return await self.reader.readexactly(count)

    async def is_silent(self) -> bool:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await self.reader.read(1)
        return True

    async def is_cut_off(self) -> bool:
        async with asyncio.timeout(5):
            with pytest.raises(OSError):  # noqa: PT011 - a reset, whatever its class
                await self.reader.read(1)
        return True


@pytest.fixture
async def client(proxy: TcpProxy) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    yield Client(reader, writer)
    writer.transport.abort()


async def test_without_a_fault_it_is_not_there(client: Client, echo: Echo, proxy: TcpProxy) -> None:
    await client.say(b"hello")
    assert await client.note_position(5) == b"HELLO"
    client.writer.write_eof()
    assert await client.reader.read() == b""
    assert not proxy.is_effective


async def test_a_new_connection_is_refused_and_an_old_one_lives_on(client: Client, proxy: TcpProxy) -> None:
    await client.say(b"a")
    assert await client.note_position(1) == b"A"
    proxy.refuse()
    assert not proxy.is_effective
    refused = Client(*await asyncio.open_connection("127.0.0.1", proxy.port))
    assert await refused.is_cut_off()
    refused.writer.transport.abort()
    assert proxy.is_effective
    await client.say(b"b")
    assert await client.note_position(1) == b"B"


async def test_a_reset_is_heard_by_the_client(client: Client, proxy: TcpProxy) -> None:
    await client.say(b"a")
    await client.note_position(1)
    proxy.reset()
    assert proxy.is_effective
    assert await client.is_cut_off()


@pytest.mark.parametrize("direction", [TO_SERVER, TO_CLIENT])
async def test_what_is_held_is_delivered_when_it_heals(
    client: Client, echo: Echo, proxy: TcpProxy, direction: str
) -> None:
    proxy.hold(TO_SERVER if direction == TO_SERVER else TO_CLIENT)
    await client.say(b"late")
    await eventually(lambda: proxy.is_effective)
    assert await client.is_silent()
    assert echo.heard == (b"" if direction == TO_SERVER else b"late")
    proxy.heal()
    assert await client.note_position(4) == b"LATE"


async def test_what_is_held_arrives_although_its_client_went(client: Client, echo: Echo, proxy: TcpProxy) -> None:
    proxy.hold(TO_SERVER, b"held")
    await client.say(b"ok")
    assert await client.note_position(2) == b"OK"
    await client.say(b"held")
    await eventually(lambda: proxy.is_effective)
    client.writer.transport.abort()
    proxy.heal()
    await eventually(lambda: echo.heard == b"okheld")


async def test_a_delay_delays_in_both_directions(client: Client, proxy: TcpProxy) -> None:
    loop = asyncio.get_running_loop()
    proxy.delay(0.05)
    started = loop.time()
    await client.say(b"a")
    assert await client.note_position(1) == b"A"
    assert loop.time() - started >= 0.1
    assert proxy.is_effective


CUTS: dict[str, tuple[Callable[[TcpProxy], None], bytes, bytes]] = {
    "before the server hears": (lambda proxy: proxy.cut(TO_SERVER, b"now", forward=False), b"a:", b"A:"),
    "after the server heard": (lambda proxy: proxy.cut(TO_SERVER, b"now", forward=True), b"a:now", b"A:"),
    "before the client hears": (lambda proxy: proxy.cut(TO_CLIENT, b"NOW", forward=False), b"a:now:z", b"A:"),
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
async def test_a_pattern_cuts_once_also_when_it_comes_in_pieces(
    client: Client, echo: Echo, proxy: TcpProxy, cut: tuple[Callable[[TcpProxy], None], bytes, bytes]
) -> None:
    inject, heard, answered = cut
    inject(proxy)
    await client.say(b"a:")
    assert await client.note_position(2) == answered
    await client.say(b"now:z")
    assert await client.is_cut_off()
    assert proxy.is_effective
    await eventually(lambda: echo.heard == heard)

    again = Client(*await asyncio.open_connection("127.0.0.1", proxy.port))
    await again.say(b"now")
    assert await again.note_position(3) == b"NOW"
    again.writer.transport.abort()
