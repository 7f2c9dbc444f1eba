"""I15: whoever repeats a request with its key, through kills, lost answers of commits and two processes, has done it
once, and is told so in the same words each time."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest

from tests.faults.database import LOST
from tests.faults.fleet import Node, database_through
from tests.faults.scene import Scene
from tests.support.facts import eventually
from tests.support.log import query
from tests.support.tcp_proxy import TcpProxy

PEOPLE = 10
REPEATS = 10_000
"""Of all requests together (issue 13)."""

LANES = 8
"""Who repeat one request at the same time, half of them with either process."""

MAILS = 2
"""Each person's: that of the registration, and that of the new code."""

_SAME = re.compile(rb"^(?!date|registrar-request-id|idempotent-replayed|connection)[a-z-]+: .*$", re.MULTILINE)


@dataclass
class Asked:
    """A request with its key, and what it was answered.

    Attributes:
        told: answers that are promised to be the same, each with how often it came.
        first: how many of them were not said to be repeats: at most one, none if that was never heard.
    """

    path: str
    body: bytes
    key: str
    told: Counter[tuple[int, tuple[bytes, ...], bytes]] = field(default_factory=Counter)
    first: int = 0
    unheard: int = 0

    @property
    def request(self) -> bytes:
        head = [f"POST /v1/registrations{self.path} HTTP/1.1", "Host: registrar.test", f"Idempotency-Key: {self.key}"]
        head += ["Content-Type: application/json", f"Content-Length: {len(self.body)}"] if self.body else []
        return "\r\n".join([*head, "", ""]).encode() + self.body

    def hear(self, status: int, head: bytes, body: bytes) -> None:
        if status in {503, 504}:  # come again
            self.unheard += 1
            return
        head = head.lower()
        self.first += b"\r\nidempotent-replayed: true" not in head
        self.told[status, tuple(sorted(_SAME.findall(head.replace(b"\r", b"")))), body] += 1

    @property
    def answer(self) -> dict[str, Any]:
        """The only answer that there was."""
        ((_, _, body),) = self.told
        found: dict[str, Any] = json.loads(body)
        return found


async def repeat(asked: Asked, nodes: tuple[Node, Node], times: int) -> None:
    """Send it until so many have been answered, on connections that are made anew when they break."""
    enough = asyncio.Event()

    async def lane(number: int) -> None:
        while not enough.is_set():
            with suppress(OSError, asyncio.IncompleteReadError):
                await on_a_connection(nodes[number % 2])
            asked.unheard += 1
            await asyncio.sleep(0)

    async def on_a_connection(node: Node) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(node.url.rpartition(":")[2]))
        try:
            while not enough.is_set():
                writer.write(asked.request)
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head.lower())
                assert length is not None
                asked.hear(int(head.split()[1]), head, await reader.readexactly(int(length[1])))
                if asked.told.total() >= times:
                    enough.set()
        finally:
            writer.close()

    async with asyncio.timeout(120):
        await asyncio.gather(*(lane(number) for number in range(LANES)))


Trouble = Callable[[], Awaitable[None]]


class Troubles:
    """What happens while a request is repeated, another thing each time."""

    def __init__(self, proxy: TcpProxy, nodes: tuple[Node, Node]) -> None:
        self._proxy = proxy
        self._nodes = nodes
        self._turn = count()
        self.kills = 0
        lost = [self._losing(name) for name in LOST]
        self._all: list[Trouble] = [lost[0], self._kill, lost[2], self._kill, lost[1], self._away, lost[3]]

    def _losing(self, name: str) -> Trouble:
        async def lose() -> None:
            LOST[name](self._proxy)

        return lose

    async def _away(self) -> None:
        """The answer of a commit is lost, and whoever would ask what became of it finds no database for a while."""
        LOST["the whole answer"](self._proxy)
        self._proxy.refuse()
        hits = self._proxy.effects["refuse"]
        await eventually(lambda: self._proxy.effects["refuse"] > hits, within=20)
        self._proxy.heal()

    async def _kill(self) -> None:
        node = self._nodes[self.kills % 2]
        self.kills += 1
        await node.kill()
        await node.revive()

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        trouble = asyncio.ensure_future(self._all[next(self._turn) % len(self._all)]())
        try:
            yield
        finally:
            await trouble
            self._proxy.heal()


@pytest.mark.fault("A2", "B4", "B5", "F6", "F7")
@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_ten_thousand_repeats_are_one_registration_of_each_person_and_one_mail_of_each_code(scene: Scene) -> None:
    async with database_through(scene.fleet.dsn) as (proxy, by_proxy):
        one, other = await asyncio.gather(
            *(scene.fleet.serve(dsn=by_proxy, resend_cooldown="1ms", statement_timeout="500ms") for _ in range(2))
        )
        await scene.fleet.process(resend_cooldown="1ms")
        troubles = Troubles(proxy, (one, other))
        everything: list[Asked] = []

        async def ask(path: str, body: dict[str, str] | None = None) -> Asked:
            asked = Asked(path, b"" if body is None else json.dumps(body).encode(), f"the-key-of-{len(everything):05}")
            everything.append(asked)
            async with troubles.one():
                await repeat(asked, (one, other), REPEATS // PEOPLE // 4)
            return asked

        for number in range(PEOPLE):
            address = f"person-{number}@example.com"
            registered = await ask("", {"email": address, "name": "Ada"})
            path = f"/{registered.answer['registration_id']}"
            first = await scene.code_of(address)
            await ask(f"{path}/verification", {"code": f"{(int(first) + 1) % 10**6:06d}"})
            await ask(f"{path}/otp")
            await ask(f"{path}/verification", {"code": await scene.code_of(address, other_than=first)})

        assert proxy.is_effective
        assert proxy.effects["cut"] >= PEOPLE
        assert troubles.kills >= PEOPLE
        assert sum(asked.unheard for asked in everything) >= troubles.kills
        assert sum(asked.told.total() for asked in everything) >= REPEATS
        assert [(asked.path, asked.told) for asked in everything if len(asked.told) != 1] == []
        assert {asked.first for asked in everything} <= {0, 1}
        assert Counter(status for asked in everything for status, _, _ in asked.told) == Counter(
            {202: 2 * PEOPLE, 422: PEOPLE, 200: PEOPLE}
        )
        assert {asked.answer["attempts_left"] for asked in everything if "attempts_left" in asked.answer} == {4}
        await scene.fleet.until_caught_up()
        assert set(scene.copies.values()) == {MAILS}
        assert len(scene.copies) == PEOPLE
    topics = dict(await query(scene.fleet.dsn, "SELECT topic, count(*)::integer FROM events GROUP BY 1"))
    assert {
        topic: topics[f"registration.{topic}"]
        for topic in ("user_registered", "otp_issued", "code_rejected", "email_verified", "account_activated")
    } == {
        "user_registered": PEOPLE,
        "otp_issued": 2 * PEOPLE,
        "code_rejected": PEOPLE,
        "email_verified": PEOPLE,
        "account_activated": PEOPLE,
    }
    assert topics["kept_answer.kept"] == 3 * PEOPLE
