"""People who register while something breaks, and whether all that they were told is true."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count

import httpx
import psycopg

from tests.support.facts import eventually
from tests.support.http import Api, problem_of
from tests.support.log import broken_blocks, query

LANES = 16
"""Who register at the same time."""

BREATH = 0.1
"""Seconds that somebody who was refused takes before the next one has a turn: load, not a busy loop."""


class Crowd:
    """Everybody registers once, with an address and an Idempotency-Key of their own.

    Attributes:
        told: the answer to each person, by number.
    """

    def __init__(
        self, api: Api, *, within: float, on_answer: Callable[[], None] = lambda: None, lanes: int = LANES
    ) -> None:
        """
        Args:
            within: seconds in which every request must have ended: the service's own timeout, and some for a busy
                machine (I12).
        """
        self.told: dict[int, httpx.Response] = {}
        self._api = api
        self._within = within
        self._on_answer = on_answer
        self._lanes = lanes
        self._numbers = count()
        self._over = False

    def told_so(self, status: int) -> int:
        """How many were answered with this status."""
        return Counter(answer.status_code for answer in self.told.values())[status]

    async def register(self) -> httpx.Response:
        """One more."""
        number = next(self._numbers)
        answer = self.told[number] = await self._ask(number)
        self._on_answer()
        return answer

    @asynccontextmanager
    async def arriving(self) -> AsyncIterator[None]:
        """They come, one after the other in each lane; at the end those under way are waited for."""
        lanes = [asyncio.create_task(self._lane()) for _ in range(self._lanes)]
        try:
            yield
        finally:
            self._over = True
            await asyncio.gather(*lanes)

    async def until_told(self, status: int, more: int, *, within: float = 60) -> None:
        """Wait until so many more than now were answered with this status."""
        before = self.told_so(status)
        await eventually(lambda: self.told_so(status) >= before + more, within=within)

    async def settle(self, dsn: str) -> None:
        """Everything works again: whatever they were told must be true, and whoever repeats it loses nothing.

        I12: each was answered, 202 or else "come again", never that it was their fault. I1: a 202 is in the log.
        I15, I3: all repeat with the same key, and everybody has exactly one registration, the accepted the same one.
        """
        for answer in self.told.values():
            if answer.status_code != 202:
                assert (answer.status_code, problem_of(answer)) in COME_AGAIN, answer.text
                assert int(answer.headers["retry-after"]) >= 1
        accepted = {number: id_of(answer) for number, answer in self.told.items() if answer.status_code == 202}
        assert set(accepted.values()) <= await registered(dsn)

        gate = asyncio.Semaphore(self._lanes)

        async def repeat(number: int) -> str:
            async with gate:
                return id_of(await self._ask(number))

        ids = dict(zip(self.told, await asyncio.gather(*map(repeat, self.told)), strict=True))
        assert {number: ids[number] for number in accepted} == accepted
        assert set(ids.values()) == await registered(dsn)
        assert len(set(ids.values())) == len(self.told)
        await check_log(dsn)

    async def _lane(self) -> None:
        while not self._over:
            if (await self.register()).status_code != 202:
                await asyncio.sleep(BREATH)

    async def _ask(self, number: int) -> httpx.Response:
        async with asyncio.timeout(self._within):
            return await self._api.register(f"person-{number}@example.com", key=f"key-of-person-{number:06}")


COME_AGAIN = {(503, "unavailable"), (503, "overloaded"), (504, "timeout")}


def id_of(answer: httpx.Response) -> str:
    assert answer.status_code == 202, answer.text
    registration_id: str = answer.json()["registration_id"]
    return registration_id


async def registered(dsn: str) -> set[str]:
    """The registrations in the log."""
    rows = await query(dsn, "SELECT originator_id FROM events WHERE topic = 'registration.user_registered'")
    return {str(row[0]) for row in rows}


async def check_log(dsn: str) -> None:
    """I3: nobody claims what is not free. And the hash chain holds."""
    claims = await query(
        dsn,
        "SELECT array_agg(topic ORDER BY originator_version) FROM events"
        " WHERE topic LIKE 'email_claim.%%' GROUP BY originator_id",
    )
    for (topics,) in claims:
        assert set(topics[::2]) == {"email_claim.email_claimed"}
        assert set(topics[1::2]) <= {"email_claim.email_released"}
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        # Others may go on writing.
        await connection.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
        assert await broken_blocks(connection) == []
