"""What mail servers and readers report of mails that were taken: in time, too early, again and again, or forged."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from random import Random
from typing import Final, Literal
from uuid import UUID

from application.answers import Answer
from application.bounce_reports import BounceReports
from application.commands import AllowMailbox, Command
from application.handlers import Handlers
from application.ports import Conflict, Context, Unavailable
from domain.mail_outcome import Bounce
from tests.simulation.faults import Faults, Network
from tests.simulation.mail import KEYRING, Copy
from tests.simulation.oracle import Oracle
from tests.simulation.people import AnswerLost, Request

Kind = Literal["hard", "soft", "complaint", "forged"]

BOUNCES: Final = {
    "hard": Bounce("mailbox-unknown", permanent=True, reply_status="5.1.1", reported_by="dsn"),
    "soft": Bounce("temporary", permanent=False, reply_status="4.2.2", reported_by="dsn"),
}
TRIES: Final = 200
"""Of one report; a mail server goes on for days."""


class Bounces:
    """Draws from a source of its own: a run without bounces is as it was before there were any.

    Args:
        call: sends a request to any API process.
    """

    def __init__(
        self,
        seed: int,
        *,
        call: Callable[[Request], Awaitable[Answer]],
        network: Network,
        faults: Faults,
        oracle: Oracle,
    ) -> None:
        self._rng = rng = Random(f"bounces {seed}")  # noqa: S311 - repeatable
        self._call = call
        self._network = network
        self._faults = faults
        self._oracle = oracle
        happens = rng.random() < 0.4
        self._likelihood: dict[Kind, float] = {
            kind: rng.choice((0.1, 0.3)) if happens else 0.0 for kind in ("hard", "soft", "complaint", "forged")
        }

    def about(self, copy: Copy) -> Iterator[Kind]:
        """What is going to be reported of a mail with a code. (What comes back of a notice, nobody waits for.)"""
        if copy.letter.code is None or self._faults.healed:
            return
        for kind, likelihood in self._likelihood.items():
            if likelihood and self._rng.random() < likelihood:
                yield kind

    async def tell(self, kind: Kind, registration_id: UUID, serial: int) -> None:
        """Report it, at once or after a while, until it is taken; some tell it twice."""
        early = self._rng.random() < 0.4
        await self._network.pause(0.0 if early else self._rng.random() * self._rng.choice((5.0, 3000.0)))
        if self._faults.healed:
            return
        self._faults.count(f"reported: {kind}")
        if kind == "forged":
            await self._forge(registration_id, serial)
            return
        self._oracle.on_report(registration_id, serial, kind)
        for _ in range(self._rng.choice((1, 1, 2))):
            if await self._until_taken(kind, registration_id, serial):
                self._oracle.on_report_taken(registration_id, serial, kind)
        if kind == "complaint" and self._rng.random() < 0.5:
            await self._network.pause(self._rng.random() * 600.0)
            await self._allow(registration_id)

    async def _until_taken(self, kind: Kind, registration_id: UUID, serial: int) -> bool:
        async def request(handlers: Handlers) -> Answer:
            reports = BounceReports(handlers, sleep=self._pause)
            if kind == "complaint":
                await reports.complained(registration_id, serial, "ses")
            else:
                await reports.bounced(registration_id, serial, BOUNCES[kind])
            return Answer(registration_id, None, 0, recorded=False)

        for _ in range(TRIES):
            try:
                await self._call(request)
            except (Unavailable, Conflict, AnswerLost):
                await self._network.pause(1.0 + self._rng.random() * 59.0)
            else:
                return True
        return False

    async def _pause(self, seconds: float) -> None:
        await self._network.pause(seconds)

    async def _forge(self, registration_id: UUID, serial: int) -> None:
        """By an address with a letter changed, which names no mail, and about a registration that there is not."""
        token = KEYRING.bounce_token(registration_id, serial)
        at = self._rng.randrange(len(token))
        changed = token[:at] + ("a" if token[at] != "a" else "b") + token[at + 1 :]
        if KEYRING.mail_of_bounce_token(changed) is not None:
            self._oracle.violated("bounces", f"{changed} is taken for the token of a mail")
        await self._until_taken("hard", UUID(int=self._rng.getrandbits(128)), serial)

    async def _allow(self, registration_id: UUID) -> None:
        """An operator has the mailbox sent mails again."""
        self._faults.count("mailbox allowed")
        command: Command = AllowMailbox(registration_id=registration_id)
        context = Context("operator", UUID(int=self._rng.getrandbits(128)))

        async def request(handlers: Handlers) -> Answer:
            return await handlers.handle(command, context)

        for _ in range(3):
            try:
                await self._call(request)
            except (Unavailable, Conflict, AnswerLost):
                await self._network.pause(1.0 + self._rng.random() * 20.0)
            else:
                return
