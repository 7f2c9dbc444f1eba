"""Those who register while the nemesis is at work: a steady, open stream of them, whatever the service does.

    crowd = Crowd(client, inbox, random.Random(7), a_second=2.5)
    ...                                  # `crowd.run()` is a task meanwhile
    crowd.go_home()                      # nobody new comes, the others finish what they are about, and `run` returns

Each one does as people do: repeats what was not answered (the same key, the same body), waits for the mail, mistypes,
asks for a new code, gives up, comes back, uses an address that somebody else uses, too.

It sleeps, because people do: a stream that waited for the service would not be open.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Final
from uuid import UUID

from tests.faults.evidence import Canary, copy_of
from tests.faults.journal import NAME, Client, Operation, fresh_key
from tests.support.smtp_stub import SmtpStub

DOMAIN: Final = "mail-of-quetzalcoatl.example"
KEY: Final = "key-of-quetzalcoatl-"
PASSWORD: Final = "pass-of-Quetzalcoatl-"
MARKS: Final = (
    Canary("name", NAME),
    Canary("address", DOMAIN),
    Canary("idempotency key", KEY),
    Canary("password", PASSWORD),
)
"""What everything personal of theirs contains: to look for these is to look for all of it."""

SHARED_ADDRESSES: Final = 12
MOST_AT_ONCE: Final = 160
"""Times as many as come in a second."""

_WAITS_FOR_MAIL: Final = 90.0
_TIRED_AFTER: Final = 12


class Inbox:
    """The codes that reached each address; reads every mail once."""

    def __init__(self, sink: SmtpStub) -> None:
        self._sink = sink
        self._read = 0
        self._codes: dict[str, list[str]] = {}

    def code_for(self, address: str) -> str | None:
        """The newest one."""
        return next(reversed(self.codes_for(address)), None)

    def codes_for(self, address: str) -> Sequence[str]:
        """All of them, the oldest first."""
        for mail in self._sink.mails[self._read :]:
            copy = copy_of(mail)
            self._read += 1
            if copy.code is not None:
                self._codes.setdefault(copy.to, []).append(copy.code)
        return self._codes.get(address, ())


class Crowd:
    """People who arrive at random moments, `a_second` of them on average.

    Attributes:
        turned_away: how many did not come because so many were there: the limit of this test, not of the service.
    """

    def __init__(self, client: Client, inbox: Inbox, chance: random.Random, *, a_second: float) -> None:
        self.turned_away = 0
        self._client = client
        self._inbox = inbox
        self._chance = chance
        self._a_second = a_second
        self._closing = asyncio.Event()

    async def run(self) -> None:
        """Until `go_home`, and until the last one is done."""
        number = 0
        async with asyncio.TaskGroup() as people:
            there: set[asyncio.Task[None]] = set()
            while not await self._pause(self._chance.expovariate(self._a_second)):
                number += 1
                if len(there) >= MOST_AT_ONCE * self._a_second:
                    self.turned_away += 1
                    continue
                chance = random.Random(self._chance.random())  # noqa: S311 - repeatable
                person = _Person(number, self._client, self._inbox, chance, self._pause)
                task = people.create_task(person.live())
                there.add(task)
                task.add_done_callback(there.discard)

    def go_home(self) -> None:
        """Nobody new comes; who is there waits for nothing any more."""
        self._closing.set()

    async def _pause(self, seconds: float) -> bool:
        """Let time pass; True: it is time to go home."""
        try:
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        except TimeoutError:
            return False
        return True


class _Person:
    def __init__(
        self,
        number: int,
        client: Client,
        inbox: Inbox,
        chance: random.Random,
        pause: Callable[[float], Awaitable[bool]],
    ) -> None:
        self._client = client
        self._inbox = inbox
        self._chance = chance
        self._pause = pause
        shared = chance.random() < 0.25
        who = f"shared{chance.randrange(SHARED_ADDRESSES)}" if shared else f"person{number}"
        self.address = f"{who}@{DOMAIN}"
        # The same address, name, password and language are the same registration; who shares an address differs.
        self.body = {"name": f"{NAME} {number}"}
        if chance.random() < 0.15:
            self.body["password"] = f"{PASSWORD}{number}"
        self.key = f"{KEY}{fresh_key()}" if chance.random() < 0.6 else None

    async def live(self) -> None:
        registered = await self._register()
        if registered is None:
            return
        registration_id, position = registered
        if self._chance.random() < 0.5:
            await self._client.look(registration_id, min_position=position, wait=1000)
        await self._come_back()
        if self._chance.random() < 0.2:
            await self._insist(lambda: self._client.new_code(registration_id))
        if self._chance.random() < 0.8:
            await self._prove(registration_id)
        await self._come_back()

    async def _register(self) -> tuple[UUID, int] | None:
        operation = await self._insist(lambda: self._client.register(self.address, key=self.key, **self.body))
        if operation.outcome != "ok" or operation.registration_id is None or operation.position is None:
            return None
        return operation.registration_id, operation.position

    async def _come_back(self) -> None:
        """Some push the button again; some use their key for something else."""
        if self._chance.random() < 0.1:
            await self._register()
        if self.key is not None and self._chance.random() < 0.03:
            await self._client.register(self.address, key=self.key, name=f"{NAME} again")
        if self.key is not None and self._chance.random() < 0.03:
            await self._client.register(f"other-{self.address}", key=self.key, **self.body)

    async def _prove(self, registration_id: UUID) -> None:
        """Verify with the code from the mail, or learn that it cannot be done."""
        for guess in range(self._chance.choice((0, 0, 0, 1, 2, 6))):
            code = await self._code(other_than=None)
            if code is None:
                return
            wrong = f"{(int(code) + 1 + guess) % 1_000_000:06d}"
            await self._client.verify(registration_id, wrong)
        tried: str | None = None
        for _ in range(4):
            code = await self._code(other_than=tried)
            if code is None:
                return
            tried = code
            operation = await self._verify(registration_id, code)
            if operation.outcome == "ok":
                await self._until_active(registration_id)
                return
            if operation.problem in {"code-expired", "code-locked"}:
                await self._insist(lambda: self._client.new_code(registration_id))
            elif operation.problem != "wrong-code":
                return

    async def _verify(self, registration_id: UUID, code: str) -> Operation:
        return await self._insist(lambda: self._client.verify(registration_id, code))

    async def _until_active(self, registration_id: UUID) -> None:
        for _ in range(_TIRED_AFTER):
            operation = await self._client.look(registration_id)
            if (operation.answer or {}).get("status") == "ACTIVE" or await self._pause(1.0):
                return

    async def _code(self, *, other_than: str | None) -> str | None:
        """The newest code that reached the address, if one comes."""
        waited = 0.0
        while waited < _WAITS_FOR_MAIL:
            code = self._inbox.code_for(self.address)
            if code is not None and code != other_than:
                return code
            if await self._pause(0.5):
                return None
            waited += 0.5
        return None

    async def _insist(self, ask: Callable[[], Awaitable[Operation]]) -> Operation:
        """Repeat what was not answered."""
        wait = 0.3
        operation = await ask()
        for _ in range(_TIRED_AFTER):
            too_soon = operation.problem in {"too-many-requests", "idempotency-key-in-use"}
            if (operation.outcome != "unknown" and not too_soon) or await self._pause(wait):
                break
            wait = min(wait * 2, 4.0)
            operation = await ask()
        return operation
