"""Circuits that workers share: one opens them for all, one probes for all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta

import pytest

from application.ports import Letter, MailServersAway, NotSent, Rendered
from domain.mail_outcome import HandOver
from infrastructure.circuits import Circuits
from infrastructure.mail import shared_circuits
from infrastructure.mail.shared_circuits import CHANNEL, DEFERRING, POLL_INTERVAL, REFUSING, SharedCircuits
from infrastructure.mail.smtp.evidence import ONLY_DEFERRED
from infrastructure.mail.smtp.pool import Limits
from infrastructure.mail.smtp.servers import SmtpServers
from infrastructure.postgres.connection import ReconnectingConnection
from infrastructure.postgres.notifications import Notifications, Watch
from infrastructure.settings.values import MailServer
from tests.support.facts import eventually
from tests.support.log import query
from tests.support.smtp_stub import SmtpStub

LETTER = Letter("ada@example.com", Rendered("Your code", "123456", "<p>123456</p>"), "<1@registrar.test>", "en")
OTHER = replace(LETTER, to="eve@example.com")


@dataclass
class Worker:
    """What a mail worker has of all this.

    Attributes:
        now: what its circuits go by, in seconds.
    """

    circuits: SharedCircuits
    servers: SmtpServers
    now: float = 0.0
    outcomes: list[str] = field(default_factory=list)

    async def send(self, letter: Letter = LETTER) -> str:
        try:
            accepted: HandOver = await self.servers.send(letter)
        except NotSent as error:
            return error.failure.failure
        except MailServersAway:
            return "away"
        return f"accepted {accepted.attempts}"


@asynccontextmanager
async def worker(dsn: str, stub: SmtpStub, *, only_deferred: timedelta = ONLY_DEFERRED) -> AsyncIterator[Worker]:
    connection = ReconnectingConnection(dsn, name="circuits", statement_timeout=timedelta(seconds=10))
    shared = SharedCircuits(connection, probe_lasts=timedelta(seconds=20), only_deferred=only_deferred)
    made: Worker

    async def at_once(_seconds: float) -> None:
        """Waits between tries are not waited for."""

    servers = SmtpServers(
        [MailServer(scheme="smtp", host="127.0.0.1", port=stub.port, starttls="never")],
        sender="Registrar <no-reply@registrar.test>",
        circuits=Circuits(on_transition=shared.changed, clock=lambda: made.now),
        limits=Limits(timeout=timedelta(seconds=2)),
        may_probe=shared.may_probe,
        beliefs=shared,
        on_standing=shared.standing_changed,
        on_opened=shared.share,
        sleep=at_once,
    )
    made = Worker(shared, servers)
    await servers.states()  # makes the circuits
    notifications = Notifications(dsn, watches=[Watch(CHANNEL, shared.told)])
    running = [asyncio.create_task(one.run()) for one in (notifications, shared)]
    try:
        yield made
    finally:
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await servers.close()
        await connection.close()


@pytest.fixture(autouse=True)
def _look_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """At what is not announced: what a server did with others' mails."""
    monkeypatch.setattr("infrastructure.mail.shared_circuits.AT_REST", POLL_INTERVAL)


@contextmanager
def refusing(stub: SmtpStub) -> Iterator[None]:
    stub.at("banner", "421 4.3.2 shutting down")
    try:
        yield
    finally:
        stub.heal()


async def test_what_one_worker_finds_out_all_of_them_know(dsn: str) -> None:
    async with SmtpStub() as stub, worker(dsn, stub) as one, worker(dsn, stub) as other:
        name = f"127.0.0.1:{stub.port}"
        with refusing(stub):
            while await one.send() != "away":
                pass
        # when: it has opened the circuit, the other calls nobody
        await eventually(lambda: other.circuits.states == {name: "opened"})
        assert await other.send() == "away"
        # (the one knows what all know only once it has read it: perhaps a second after the other)
        await eventually(lambda: (one.circuits.all_open, other.circuits.all_open) == (True, True))

        # when: the one's probe succeeds, the other's calls go through, too
        one.now += 31
        assert await one.send() == "accepted 1"
        await eventually(lambda: other.circuits.states == {name: "closed"})
        assert await other.send() == "accepted 1"


async def test_a_circuit_that_opens_is_announced_to_those_that_rest(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with SmtpStub() as stub, worker(dsn, stub) as one, worker(dsn, stub) as other:
        name = f"127.0.0.1:{stub.port}"
        await eventually(lambda: other.circuits.states == {name: "closed"})
        monkeypatch.setattr("infrastructure.mail.shared_circuits.AT_REST", timedelta(hours=1))
        monkeypatch.setattr("infrastructure.postgres.notifications.LOOK_AGAIN", timedelta(hours=1))
        await other.circuits.looked()

        with refusing(stub):
            while await one.send() != "away":
                pass

        await eventually(lambda: other.circuits.states == {name: "opened"})


async def test_of_all_workers_one_probes(dsn: str) -> None:
    async with SmtpStub() as stub, worker(dsn, stub) as one, worker(dsn, stub) as other:
        name = f"127.0.0.1:{stub.port}"
        with refusing(stub):
            while await one.send() != "away":
                pass
        await eventually(lambda: other.circuits.states == {name: "opened"})
        one.now = other.now = 31
        called = len(stub.mails)

        assert [await one.circuits.may_probe(name), await other.circuits.may_probe(name)] == [True, False]

        # and: the one that was refused looks again a second later, not at once
        assert await other.send() == "away"
        assert other.now == 31
        assert len(stub.mails) == called


async def test_a_probe_that_fails_is_everybodys(dsn: str) -> None:
    async with SmtpStub() as stub, worker(dsn, stub) as one, worker(dsn, stub) as other:
        name = f"127.0.0.1:{stub.port}"
        with refusing(stub):
            while await one.send() != "away":
                pass
            await eventually(lambda: other.circuits.states == {name: "opened"})
            one.now = other.now = 31
            assert await one.send() == "throttled"
            # The other has not heard of it yet, or has: either way it must not be the second to try.
            assert await other.send() == "away"


async def test_a_mail_goes_to_the_workers_now_and_then_while_all_circuits_are_open(dsn: str) -> None:
    async with SmtpStub() as stub, worker(dsn, stub) as one:
        assert one.circuits.take_probe_permit()
        with refusing(stub):
            while await one.send() != "away":
                pass
            await eventually(lambda: one.circuits.all_open)
            assert not one.circuits.take_probe_permit()  # not before they may be probed


async def test_as_long_as_nobody_probes_the_workers_get_more_and_more_mails_to_probe_with(dsn: str) -> None:
    async with SmtpStub() as stub, worker(dsn, stub) as one:

        async def handed_over() -> int:
            await one.circuits.looked()
            return sum(one.circuits.take_probe_permit() for _ in range(100))

        with refusing(stub):
            while await one.send() != "away":
                pass
            await eventually(lambda: one.circuits.all_open)
        await query(dsn, "UPDATE circuits SET open_until = clock_timestamp()")
        one.now += 31

        # given: the first mails are of codes that have been replaced
        await eventually(one.circuits.take_probe_permit)
        assert [await handed_over(), await handed_over()] == [2, 4]

        # when: somebody has found one to probe with
        assert await one.circuits.may_probe(f"127.0.0.1:{stub.port}")
        assert await handed_over() == 0


async def test_of_a_row_of_refusals_one_is_believed_whichever_workers_get_them(dsn: str) -> None:
    async with SmtpStub() as stub, worker(dsn, stub) as one, worker(dsn, stub) as other:
        for number in range(3):
            assert [await one.send(OTHER), await other.send(OTHER)] == ["accepted 1", "accepted 1"], number
            stub.at("rcpt", "550 no such user")
            assert [await one.send(), await other.send()] == ["mailbox-unknown", "refused"], number
            assert [await one.send(), await other.send()] == ["refused", "refused"], number
            stub.heal()
            # Each tells how long ago it was refused: told later than the next mail is taken, it would seem to be so.
            for told in (one, other, one, other):  # the first time, a look may have been under way
                told.circuits.standing_changed()
                await told.circuits.looked()


async def test_everybody_knows_that_a_server_refuses_and_that_it_takes_mails_again(dsn: str) -> None:
    async with SmtpStub() as stub, worker(dsn, stub) as one, worker(dsn, stub) as other:
        name = f"127.0.0.1:{stub.port}"
        stub.at("rcpt", "550 no such user")
        assert [await one.send(), await one.send(OTHER)] == ["refused", "refused"]
        await eventually(lambda: other.circuits.troubles == {name: REFUSING})
        assert other.circuits.states == {name: "closed"}

        # and: that the other has a mail taken is known to the one that had them refused
        stub.heal()
        assert await other.send() == "accepted 1"
        await one.send()
        await eventually(lambda: (one.circuits.troubles, other.circuits.troubles) == ({}, {}))


async def test_one_mailbox_that_a_server_does_not_know_is_no_trouble(dsn: str) -> None:
    async with SmtpStub() as stub, worker(dsn, stub) as one:
        stub.at("rcpt", "550 no such user")
        assert [await one.send(), await one.send()] == ["refused", "refused"]
        one.circuits.standing_changed()
        await one.circuits.looked()
        await one.circuits.looked()
        assert one.circuits.troubles == {}


async def test_a_server_that_only_defers_is_trouble_after_a_while(dsn: str) -> None:
    async with SmtpStub() as stub, worker(dsn, stub, only_deferred=timedelta(0)) as one, worker(dsn, stub) as patient:
        stub.at("rcpt", "454 4.7.1 relay access denied")
        assert await one.send() == "authentication"
        one.circuits.standing_changed()
        await eventually(lambda: one.circuits.troubles == {f"127.0.0.1:{stub.port}": DEFERRING})
        await patient.circuits.looked()
        assert patient.circuits.troubles == {}


async def test_a_worker_whose_mails_alone_are_refused_again_is_heard_again(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing of its own standing has changed, so it is heard when it names its servers next: as a rule 20 s later.
    monkeypatch.setattr(shared_circuits, "NAMING_INTERVAL", timedelta(seconds=1))
    async with SmtpStub() as stub, worker(dsn, stub) as one, worker(dsn, stub) as other:
        trouble = {f"127.0.0.1:{stub.port}": REFUSING}
        stub.at("rcpt", "550 5.7.1 relaying denied")
        assert await one.send() == "authentication"
        await eventually(lambda: other.circuits.troubles == trouble)
        stub.heal()
        assert await other.send() == "accepted 1"
        await eventually(lambda: (one.circuits.troubles, other.circuits.troubles) == ({}, {}))

        stub.at("rcpt", "550 5.7.1 relaying denied")
        assert await one.send() == "authentication"
        await eventually(lambda: other.circuits.troubles == trouble)
