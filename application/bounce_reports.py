"""Reports of mails that came back or were not wanted: each waits for its mail's hand-over to be recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Literal
from uuid import UUID, uuid5

from application.commands import Command, RecordEmailBounced, RecordEmailComplained
from application.handlers import Handlers
from application.ports import Context, Overloaded, Unavailable
from domain.errors import NotHandedOver, UnknownRegistration
from domain.mail_outcome import Bounce
from domain.recorded import Actor

PAUSES: Final = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Seconds before a report that was early is looked at again: three in all. A hand-over is recorded within milliseconds
as a rule; after that, whoever reports has to come again."""

AT_ONCE: Final = 64
"""Reports under way in one process; each waits for the database, or for its hand-over. More have to come again."""

COME_AGAIN: Final = 60.0
"""Seconds."""


class EarlyReport(Unavailable):
    """The mail's hand-over is not recorded yet; report it again later."""


Outcome = Literal["hard", "soft", "complaint", "unknown"]
"""What a report was: of a mail that came back for good, or for now, or was not wanted; or of no mail of ours."""


class BounceReports:
    """Records what is reported, once, however often it is.

    Args:
        on_report: is told of each that was recorded, and of each that is unknown.
        sleep: waits for a number of seconds.
    """

    def __init__(
        self,
        handlers: Handlers,
        *,
        on_report: Callable[[Outcome], None] = lambda _: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._handlers = handlers
        self._on_report = on_report
        self._sleep = sleep
        self._under_way = 0

    @property
    def full(self) -> bool:
        """Has one more to come again?"""
        return self._under_way >= AT_ONCE

    async def bounced(self, registration_id: UUID, serial: int, bounce: Bounce) -> None:
        """Record that a mail came back. Returns once it is recorded, or is of no interest any more.

        Raises:
            EarlyReport: its hand-over is not recorded.
            Overloaded: too many are under way.
            Unavailable: the database is away.
        """
        command = RecordEmailBounced(registration_id=registration_id, serial=serial, bounce=bounce)
        await self._record(command, "hard" if bounce.permanent else "soft")

    async def complained(self, registration_id: UUID, serial: int, reported_by: str) -> None:
        """Record that a mail was marked as unwanted.

        Raises:
            Overloaded, Unavailable: see `bounced`.
        """
        command = RecordEmailComplained(registration_id=registration_id, serial=serial, reported_by=reported_by)
        await self._record(command, "complaint")

    def unknown(self) -> None:
        """Something was reported that names no mail of ours, or by somebody who may not: it is counted, no more."""
        self._on_report("unknown")

    async def _record(self, command: RecordEmailBounced | RecordEmailComplained, outcome: Outcome) -> None:
        if self.full:
            raise Overloaded("too many reports at a time", retry_after=COME_AGAIN)
        self._under_way += 1
        try:
            await self._in_time(command, command.registration_id, outcome)
        finally:
            self._under_way -= 1

    async def _in_time(self, command: Command, registration_id: UUID, outcome: Outcome) -> None:
        context = Context(Actor.BOUNCE_REPORT, uuid5(registration_id, "bounce report"))
        for pause in (*PAUSES, None):
            try:
                answer = await self._handlers.handle(command, context)
            except UnknownRegistration:
                self.unknown()  # of this log before it was restored from a backup
                return
            except NotHandedOver:
                if pause is None:
                    raise EarlyReport("the hand-over is not recorded", retry_after=COME_AGAIN) from None
                await self._sleep(pause)
            else:
                if answer.recorded:
                    self._on_report(outcome)
                return
