"""RabbitMQ and every mail server away at once, while people go on registering; only PostgreSQL is there.

The saga's clock is moved, not waited for. RabbitMQ, its connections and what the workers tell each other of the mail
servers are real, so an open circuit stays open for a second here, instead of thirty.

Real time may pass as slowly or as fast as it likes: on a busy machine a mail server that works may take seconds for a
reply, and RabbitMQ a minute to come back. So what is timed by it must not run out here: a try that is given up after
its content would be a second copy of a mail, and a message that expires would be a retry of its own. How often the mail
servers are probed during the first of the minutes is up to the machine as well, and with it which mails fail, and how
often; what is promised to a mail depends on that.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from itertools import pairwise
from typing import Any, Final
from uuid import UUID

import pytest

from domain.mail_saga import MailSaga
from domain.registration import Registration
from infrastructure.circuits import Circuits
from tests.support.facts import MovableClock, eventually
from tests.support.http import Api, open_api
from tests.support.mail import code_in
from tests.support.rabbitmq import PrivateRabbit
from tests.support.smtp_stub import SmtpStub
from tests.support.tcp_proxy import TcpProxy

MINUTE: Final = timedelta(minutes=1)
A_MINUTE: Final = 4
"""People who register."""

BACK_WITHIN: Final = 90.0
"""Seconds until everything is noticed to be back: the next try to connect, the next probe of a mail server. RabbitMQ
takes long for its first answers on a busy machine."""

MOST_MINUTES: Final = 40
"""Until the last mail must be there: the longest wait between two tries that anybody is due by then, and a code's
life."""

THIRD_LOOK: Final = 14 * MINUTE
"""From a code's issue to the saga's third look for its mail (2 + 4 + 8 minutes), if no try of it has failed: the first
look at which the code is older than its ten minutes, and so is replaced. Until then it may still go out: its life
begins with the hand-over."""

KEPT_FOR: Final = (THIRD_LOOK, 12 * MINUTE, 10 * MINUTE)
"""For how long at least a code is not replaced, by how many tries of its mail have failed: none, one, two or more. A
failed try brings a look of its own, after half a minute and then after two, and the next one is due 4 or 8 minutes
later. A code that has not lived its ten minutes is never replaced."""

UNDER_WAY: Final = (MailSaga.MailSagaStarted, MailSaga.MailRequested, MailSaga.FreshCodeAsked)
"""After these notes of the saga a mail is on its way, or about to be."""

UP: Final = {"rabbitmq": (200, "up"), "mail": (200, "up"), "ready": (200, "up")}
AWAY: Final = {"rabbitmq": (503, "down"), "mail": (503, "down"), "ready": (200, "degraded")}


@dataclass
class Story:
    """What became of a registration's mail: when its codes were issued, and how often a try of it failed."""

    issued: list[datetime] = field(default_factory=list)
    failures: int = 0


@dataclass
class Town:
    """The service with all that it depends on, and the people who register there.

    Attributes:
        way: to the mail server.
        ids: of everybody's registration, by address.
        proved: who has come in with the code of a mail.
    """

    api: Api
    clock: MovableClock
    rabbit: PrivateRabbit
    sink: SmtpStub
    way: TcpProxy
    ids: dict[str, str] = field(default_factory=dict)
    proved: set[str] = field(default_factory=set)
    _read: int = 0

    async def people_come(self, many: int = A_MINUTE) -> None:
        """Whatever is away, each is told the same."""
        for number in range(len(self.ids), len(self.ids) + many):
            address = f"person-{number}@example.com"
            answer = await self.api.register(address)
            assert answer.status_code == 202, answer.text
            self.ids[address] = answer.json()["registration_id"]

    async def people_read_their_mail(self) -> None:
        """Everybody uses the code of every mail as soon as it comes, and it works."""
        mails, self._read = self.sink.mails[self._read :], len(self.sink.mails)
        for mail in mails:
            address = mail.recipients[0].decode()
            answer = await self.api.verify(self.ids[address], code_in(mail))
            assert answer.status_code == 200, answer.text
            self.proved.add(address)

    async def health(self) -> Mapping[str, tuple[int, str]]:
        found = {}
        for part in ("rabbitmq", "mail", "ready"):
            answer = await self.api.http.get(f"/health/{part}")
            found[part] = answer.status_code, answer.json()["status"]
        return found

    async def broker_is_shown(self, *, up: bool) -> bool:
        """By the metrics."""
        return f'registrar_broker_up{{broker="rabbitmq"}} {up:d}.0' in (await self.api.http.get("/metrics")).text

    async def becomes(self, expected: Mapping[str, tuple[int, str]], *, within: float = 60) -> None:
        """Of the parts that are named."""

        async def shown() -> bool:
            found = await self.health()
            assert {part: found[part] for part in expected} == expected
            return True

        await eventually(shown, within=within, every=0.1)

    async def until_rest(self, *, in_flight: bool = False, within: float = 60) -> None:
        """Until nothing is due by the clock and, unless that is allowed, no mail is on its way."""

        async def rests() -> bool:
            last: dict[UUID, Any] = {
                event.originator_id: event for event in await self.events() if isinstance(event, MailSaga.Event)
            }
            going_on = [note for note in last.values() if not isinstance(note, MailSaga.MailSagaEnded)]
            due = [note for note in going_on if note.look_again_at <= self.clock()]
            under_way = [note for note in going_on if isinstance(note, UNDER_WAY)]
            assert (len(last), due, [] if in_flight else under_way) == (len(self.ids), [], [])
            return True

        await eventually(rests, within=within, every=0.1)

    async def events(self) -> list[Any]:
        rows, _ = await self.api.service.store.read(0, 10_000)
        return [self.api.service.store.decode(row).event for row in rows]

    async def stories(self) -> dict[str, Story]:
        """By address."""
        found = {registration_id: Story() for registration_id in self.ids.values()}
        for event in await self.events():
            if isinstance(event, Registration.OtpIssued):
                found[str(event.originator_id)].issued.append(event.timestamp)
            elif isinstance(event, Registration.EmailDispatchFailed):
                found[str(event.originator_id)].failures += 1
        return {address: found[registration_id] for address, registration_id in self.ids.items()}

    async def outage(self, minutes: int) -> None:
        """As long as it lasts people come and are told that all is well, and health tells what is not."""
        self.way.refuse()
        self.way.reset()
        await self.people_come(2)  # whose mails open the circuit
        await self.becomes(UP | {"mail": AWAY["mail"], "ready": AWAY["ready"]})
        for _ in range(4):
            self.clock.move(MINUTE / 4)
            await self.people_come()  # whose mails are under way
            await self.until_rest(in_flight=True)
        await asyncio.to_thread(self.rabbit.kill)
        await self.becomes(AWAY)
        assert await self.broker_is_shown(up=False)
        for _ in range(minutes):
            self.clock.move(MINUTE)
            await self.people_come()
            await self.until_rest(in_flight=True)
            assert await self.health() == AWAY
        assert self.way.effects["refuse"], "nobody tried to send a mail"

    async def healing(self) -> None:
        """Time goes on, and nobody does anything."""
        self.way.heal()
        await asyncio.to_thread(self.rabbit.start)
        # Rest alone says nothing of it: no mail may have been on its way when the broker came back.
        await self.becomes({"rabbitmq": UP["rabbitmq"]}, within=BACK_WITHIN)
        await self.until_rest(within=BACK_WITHIN)
        for _ in range(MOST_MINUTES):
            await self.people_read_their_mail()
            if self.proved == self.ids.keys():
                break
            self.clock.move(MINUTE)
            await self.until_rest()
        await self.becomes(UP)
        assert await self.broker_is_shown(up=True)


@pytest.fixture
async def town(dsn: str, killable_rabbit: PrivateRabbit, clock: MovableClock) -> AsyncIterator[Town]:
    async with (
        SmtpStub() as sink,
        TcpProxy(("127.0.0.1", sink.port)) as way,
        open_api(
            dsn,
            works=True,
            clock=clock,
            sleep=at_once,
            circuits=partial(Circuits, open_for=timedelta(seconds=1)),
            broker_url=killable_rabbit.vhost(),
            smtp_urls=f"smtp://127.0.0.1:{way.port}?starttls=never",
            # Seconds that no machine needs, see above: mail servers are away here or they accept, and none hangs.
            send_timeout="60",
            message_ttl="600",
            queue_ttl="600",
        ) as api,
    ):
        yield Town(api, clock, killable_rabbit, sink, way)


async def at_once(_seconds: float) -> None:
    """The waits between the tries of one mail are not waited for here."""


@pytest.mark.fault("C2", "E25")
@pytest.mark.parametrize("minutes", [10, pytest.param(16, id="longer than a code lives")])
async def test_with_broker_and_mail_servers_away_everybody_is_accepted_and_then_gets_one_mail_with_a_code_that_works(
    town: Town, minutes: int
) -> None:
    await town.becomes(UP, within=BACK_WITHIN)
    await town.people_come()
    await town.until_rest()
    await town.people_read_their_mail()
    before = set(town.ids)

    await town.outage(minutes)
    assert town.proved == before
    back_at = town.clock()
    await town.healing()

    assert Counter(mail.recipients[0].decode() for mail in town.sink.mails) == dict.fromkeys(town.ids, 1)
    for registration_id in town.ids.values():
        await town.api.becomes(registration_id, status="ACTIVE")
    for address, story in (await town.stories()).items():
        ages = [later - earlier for earlier, later in pairwise(story.issued)]
        assert all(age >= KEPT_FOR[min(story.failures, 2)] for age in ages), (address, story)
        if address not in before and not story.failures:
            assert bool(ages) == (back_at - story.issued[0] >= THIRD_LOOK), (address, story)
