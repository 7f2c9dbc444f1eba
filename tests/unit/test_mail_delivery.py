"""Sending one requested mail, in memory: what is sent, what is recorded, and what is repeated."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from application.mail_delivery import MailDelivery, SendInProgress
from application.ports import (
    Conflict,
    ForeignRequest,
    Letter,
    MailRequest,
    MailServersAway,
    NotSent,
    SendClaim,
    Unavailable,
    WantedMail,
    entries_of,
)
from domain.errors import UnknownRegistration
from domain.mail_outcome import DispatchFailure, HandOver, MailKind
from domain.registration import Registration
from domain.synthetic import is_synthetic
from infrastructure.mail.look import Look
from infrastructure.mail.rendering import TemplateLetters
from tests.support.facts import CLIENT, REGISTRATION, T0, eventually
from tests.support.memory_log import MemoryLog
from tests.support.scenarios import KEYRING, InMemoryService, registers, right_code, verifies


class Servers:
    """Mail servers that take every letter, or do as told."""

    def __init__(self) -> None:
        self.letters: list[Letter] = []
        self.does: Callable[[], None] = lambda: None
        self.accepts: asyncio.Event | None = None
        self.probed = 0
        self.away = False

    async def send(
        self, letter: Letter, *, until: float | None = None, on_content: Callable[[], None] = lambda: None
    ) -> HandOver:
        self.does()
        self.letters.append(letter)
        if self.accepts is not None:
            on_content()
            await self.accepts.wait()
        return HandOver("mail.example:25", 1, 250)

    async def probe(self, *, until: float | None = None) -> HandOver:
        self.probed += 1
        if self.away:
            raise NotSent(DispatchFailure("connection", permanent=False, provider="mail.example:25", attempts=3))
        return HandOver("mail.example:25", 1, 250)

    async def until_ready(self) -> None:
        raise AssertionError("the delivery does not wait")


class Sink:
    """Where the mails of synthetic registrations end."""

    def __init__(self) -> None:
        self.mails: list[tuple[UUID, str | None]] = []

    async def send(
        self,
        registration_id: UUID,
        letter: Letter,
        *,
        until: float | None = None,
        on_content: Callable[[], None] = lambda: None,
    ) -> HandOver:
        self.mails.append((registration_id, letter.code))
        return HandOver("synthetic-sink", 1, 250)


class Claims:
    def __init__(self, log: MemoryLog) -> None:
        self.held: set[tuple[UUID, int]] = set()
        self.kept: list[tuple[UUID, int]] = []
        self._log = log

    async def acquire(self, registration_id: UUID, serial: int) -> SendClaim | None:
        if (registration_id, serial) in self.held:
            return None
        self.held.add((registration_id, serial))
        return SendClaim(self._log.keys.get(registration_id), await self._log.load(registration_id))

    async def is_erased(self, registration_id: UUID) -> bool:
        return registration_id not in self._log.keys

    def keep(self, registration_id: UUID, serial: int) -> None:
        self.kept.append((registration_id, serial))

    async def release(self, registration_id: UUID, serial: int) -> None:
        self.held.remove((registration_id, serial))


class Trouble(MemoryLog):
    """A log whose next appends fail."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[Exception] = []

    async def append(self, *arguments: Any, **more: Any) -> int:
        if self.errors:
            raise self.errors.pop(0)
        return await super().append(*arguments, **more)


class Post:
    """A mail worker in a house."""

    def __init__(self) -> None:
        self.log = Trouble()
        self.house = InMemoryService(log=self.log)
        self.servers = Servers()
        self.claims = Claims(self.log)
        self.slept: list[float] = []
        self.on_sleep: Callable[[], None] = lambda: None
        self.sink = Sink()
        self.first_mails: list[timedelta] = []
        self.delivery = MailDelivery(
            handlers=self.house.handlers,
            secrets=KEYRING,
            claims=self.claims,
            servers=self.servers,
            letters=TemplateLetters(
                ttl=timedelta(minutes=10), look=Look("http://here.example"), sender="no-reply@here.example"
            ),
            clock=self.house.clock,
            policy=self.house.policy,
            retry_claimed_after=timedelta(seconds=5),
            synthetic=self.sink,
            on_first_mail=self.first_mails.append,
            sleep=self.sleep,
        )

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.on_sleep()

    async def deliver(
        self, registration_id: UUID, serial: int = 1, kind: str = "code", position: int | None = 1
    ) -> None:
        wanted = WantedMail(registration_id, serial, MailKind(kind), T0)
        await self.delivery.deliver(MailRequest(wanted, position, CLIENT.correlation_id, None))

    def count(self, event: type) -> int:
        return sum(isinstance(one, event) for one in self.log.events)


@pytest.fixture
def post() -> Post:
    return Post()


async def test_a_mail_of_a_registration_that_nobody_knows_is_refused_and_claims_nothing_for_long(post: Post) -> None:
    with pytest.raises(UnknownRegistration):
        await post.deliver(REGISTRATION)

    assert post.servers.letters == []
    assert post.claims.held == set()


async def test_a_mail_with_the_id_of_something_else_is_one_of_a_registration_that_nobody_knows(post: Post) -> None:
    registration_id = await post.house.registered()

    with pytest.raises(UnknownRegistration):
        await post.deliver(post.house.registration(registration_id).claim_id)

    assert post.servers.letters == []


@pytest.mark.parametrize("is_duplicate", [False, True])
async def test_a_request_for_a_mail_of_another_kind_is_none_of_ours_and_changes_nothing(
    post: Post, is_duplicate: bool
) -> None:
    owner = await post.house.active()
    registration_id = await post.house.registered(
        registers(name="Mallory") if is_duplicate else registers(email="grace@example.com")
    )
    recorded = len(post.log.events)

    with pytest.raises(ForeignRequest):
        await post.deliver(registration_id, kind="code" if is_duplicate else "notice")

    assert len(post.log.events) == recorded
    assert post.servers.letters == []
    assert post.claims.held == set()
    assert post.house.registration(owner).may_notify_owner(post.house.clock(), post.house.policy)


async def test_a_wanted_mail_is_sent_once_and_recorded(post: Post) -> None:
    registration_id = await post.house.registered()

    await post.deliver(registration_id)
    await post.deliver(registration_id)

    assert [letter.to for letter in post.servers.letters] == ["ada@example.com"]
    assert post.count(Registration.EmailDispatched) == 1
    assert post.claims.held == set()


async def test_a_claim_is_kept_while_a_server_takes_its_time_over_the_content(post: Post) -> None:
    registration_id = await post.house.registered()
    post.servers.accepts = asyncio.Event()
    post.delivery._give_up_after = 0.05

    delivering = asyncio.create_task(post.deliver(registration_id))
    began = asyncio.get_running_loop().time()
    await eventually(lambda: post.claims.kept and asyncio.get_running_loop().time() > began + 0.1)
    assert not delivering.done()
    assert post.claims.kept == [(registration_id, 1)]
    post.servers.accepts.set()
    await delivering

    assert post.count(Registration.EmailDispatched) == 1
    assert post.claims.held == set()


@pytest.mark.parametrize("trouble", [Unavailable("away"), Conflict("moved on")])
async def test_a_mail_is_not_sent_again_because_its_outcome_cannot_be_recorded(post: Post, trouble: Exception) -> None:
    registration_id = await post.house.registered()
    post.servers.does = lambda: post.log.errors.extend([trouble] * 12)

    await post.deliver(registration_id)

    assert len(post.servers.letters) == 1
    assert post.count(Registration.EmailDispatched) == 1
    assert bool(post.slept) == isinstance(trouble, Unavailable)  # a lost race is the handlers' to decide again


async def test_a_failure_is_recorded_once_however_long_that_takes(post: Post) -> None:
    registration_id = await post.house.registered()

    def refuse() -> None:
        post.log.errors.extend([Unavailable("away")] * 3)
        raise NotSent(
            DispatchFailure("greylisted", permanent=False, provider="mail.example:25", attempts=3, reply_code=451)
        )

    post.servers.does = refuse
    await post.deliver(registration_id)

    assert post.count(Registration.EmailDispatchFailed) == 1


@pytest.mark.fault("E9")
async def test_of_requests_that_piled_up_one_is_tried_and_after_its_failure_only_what_is_requested_anew(
    post: Post,
) -> None:
    registration_id = await post.house.registered()
    earlier, later = 1, 2

    def accept_and_hang() -> None:
        raise NotSent(
            DispatchFailure("timeout", permanent=False, provider="mail.example:25", attempts=1, outcome_unknown=True)
        )

    post.servers.does = accept_and_hang
    await post.deliver(registration_id, position=later)
    post.servers.does = lambda: None
    for request in (later, earlier):
        await post.deliver(registration_id, position=request)

    assert post.servers.letters == []
    assert post.claims.held == set()

    await post.deliver(registration_id, position=len(post.log.events) + 1)

    assert len(post.servers.letters) == 1
    assert post.count(Registration.EmailDispatchFailed) == post.count(Registration.EmailDispatched) == 1


@pytest.mark.parametrize("position", [None, 1])
async def test_a_request_is_tried_unless_the_latest_news_of_its_registration_is_a_failed_try(
    post: Post, position: int | None
) -> None:
    registration_id = await post.house.registered()
    dead = DispatchFailure("expired", permanent=False, provider="broker", attempts=0)
    tried = DispatchFailure("greylisted", permanent=False, provider="mail.example:25", attempts=3)
    registration = post.house.registration(registration_id)
    if position is None:  # a message without its header
        registration.record_dispatch_failed(serial=1, failure=tried, now=T0)
    else:  # another request died in the broker: nothing was tried
        registration.record_dispatch_failed(serial=1, failure=dead, now=T0, request_position=7)
    await post.log.append(entries_of(registration.collect_events(), CLIENT))

    await post.deliver(registration_id, position=position)

    assert len(post.servers.letters) == 1


@pytest.mark.fault("E22", "E25")
async def test_servers_that_are_away_use_up_nothing(post: Post) -> None:
    registration_id = await post.house.registered()

    def away() -> None:
        raise MailServersAway("away")

    post.servers.does = away
    with pytest.raises(MailServersAway):
        await post.deliver(registration_id)

    assert post.count(Registration.EmailDispatchFailed) == 0
    assert post.claims.held == set()


async def test_what_somebody_else_may_be_sending_is_left_to_them(post: Post) -> None:
    registration_id = await post.house.registered()
    await post.claims.acquire(registration_id, 1)

    with pytest.raises(SendInProgress):
        await post.deliver(registration_id)

    assert post.servers.letters == []


async def test_a_duplicates_withheld_mail_takes_as_long_as_one_that_is_sent(post: Post) -> None:
    owner = await post.house.active()
    post.house.clock.move(timedelta(minutes=1))
    first = await post.house.registered(registers(name="Mallory"))
    post.servers.does = lambda: post.house.clock.move(timedelta(seconds=3))
    await post.deliver(first, kind="notice")
    post.house.clock.move(timedelta(minutes=1))
    second = await post.house.registered(registers(name="Trudy").model_copy(update={"network": "192.0.2.1"}))

    await post.deliver(second, kind="notice")

    assert [letter.to for letter in post.servers.letters] == ["ada@example.com"]
    assert post.house.registration(owner).owner_notified_at is not None
    assert post.count(Registration.EmailWithheld) == 1
    assert (post.servers.probed, post.slept) == (1, [3.0])


async def test_a_duplicates_withheld_mail_shares_the_fate_of_one_that_is_sent(post: Post) -> None:
    await post.house.active()
    post.house.clock.move(timedelta(minutes=1))
    await post.deliver(await post.house.registered(registers(name="Mallory")), kind="notice")
    second = await post.house.registered(registers(name="Trudy"))
    post.servers.away = True

    await post.deliver(second, kind="notice")

    assert post.count(Registration.EmailWithheld) == 0
    assert post.count(Registration.EmailDispatchFailed) == 1


@pytest.mark.parametrize("because", ["the budget", "another's proof"])
async def test_a_code_whose_mail_is_withheld_is_told_from_no_other(post: Post, because: str) -> None:
    first = await post.house.registered()
    post.servers.does = lambda: post.house.clock.move(timedelta(seconds=3))
    await post.deliver(first)
    if because == "the budget":
        withheld = await post.house.registered(registers(name="Mallory"))
    else:
        post.house.clock.move(timedelta(minutes=1))
        withheld = await post.house.registered(registers(name="Mallory"))
        await post.house.handle(verifies(first, right_code(first)))

    await post.deliver(withheld)

    assert len(post.servers.letters) == 1
    assert post.house.log.history(withheld)[-1] == "EmailWithheld"
    assert (post.servers.probed, post.slept) == (1, [3.0])


async def test_a_withheld_code_shares_the_fate_of_one_that_is_sent(post: Post) -> None:
    await post.deliver(await post.house.registered())
    withheld = await post.house.registered(registers(name="Mallory"))
    post.servers.away = True

    await post.deliver(withheld)

    assert post.count(Registration.EmailWithheld) == 0
    assert post.count(Registration.EmailDispatchFailed) == 1


async def test_the_time_to_the_inbox_is_that_of_a_registrations_first_mail(post: Post) -> None:
    registration_id = await post.house.registered()
    post.house.clock.move(timedelta(minutes=2))
    await post.deliver(registration_id)
    post.house.clock.move(timedelta(minutes=2))
    post.log.errors.clear()
    registration = post.house.registration(registration_id)
    registration.request_new_code(now=post.house.clock(), policy=post.house.policy)
    await post.log.append(entries_of(registration.collect_events(), CLIENT))
    await post.deliver(registration_id, serial=2)

    assert len(post.servers.letters) == 2
    assert post.first_mails == [timedelta(minutes=2)]


async def test_the_time_to_the_inbox_ends_with_the_acceptance_however_long_its_recording_takes(post: Post) -> None:
    registration_id = await post.house.registered()
    post.servers.does = lambda: post.house.clock.move(timedelta(seconds=3))
    post.log.errors = [Unavailable("the database is away")] * 3
    post.on_sleep = lambda: post.house.clock.move(timedelta(minutes=1))

    await post.deliver(registration_id)

    assert post.count(Registration.EmailDispatched) == 1
    assert post.first_mails == [timedelta(seconds=3)]


async def test_the_mail_of_a_synthetic_registration_goes_to_the_sink_and_is_not_timed(post: Post) -> None:
    address = "0123@synthetic.registrar.example"
    command = registers(address, key=KEYRING.synthetic_key("register", address))
    registration_id = await post.house.registered(command)

    await post.deliver(registration_id)

    assert is_synthetic(registration_id)
    assert post.sink.mails == [(registration_id, right_code(registration_id))]
    assert (post.servers.letters, post.first_mails) == ([], [])
    assert post.count(Registration.EmailDispatched) == 1


async def test_the_mail_of_an_erased_person_is_not_sent(post: Post) -> None:
    registration_id = await post.house.registered()
    post.log.keys.clear()

    await post.deliver(registration_id)

    assert post.servers.letters == []


async def test_a_letter_that_waits_is_let_go_of_once_its_person_is_erased(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it waits for: its turn at the mail server, the next try, or the server's reply."""
    monkeypatch.setattr("application.mail_delivery.ERASED_WITHIN", timedelta(milliseconds=1))
    registration_id = await post.house.registered()
    waiting = asyncio.Event()

    async def for_ever(*_: Any, **__: Any) -> None:
        waiting.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(post.servers, "send", for_ever)
    delivery = asyncio.ensure_future(post.deliver(registration_id))
    await waiting.wait()
    post.log.keys.clear()

    with pytest.raises(SendInProgress):
        await delivery

    assert post.claims.held == set()
    assert post.count(Registration.EmailDispatched) == 0


async def test_a_letter_that_waits_is_kept_while_its_person_is_there(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("application.mail_delivery.ERASED_WITHIN", timedelta(milliseconds=1))
    registration_id = await post.house.registered()
    asked = 0

    async def is_erased(_: UUID) -> bool:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise Unavailable("the database is away")
        if asked == 3:
            go.set()
        return False

    go = asyncio.Event()
    send = post.servers.send

    async def slowly(letter: Letter, **more: Any) -> HandOver:
        await go.wait()
        return await send(letter, **more)

    monkeypatch.setattr(post.claims, "is_erased", is_erased)
    monkeypatch.setattr(post.servers, "send", slowly)

    await post.deliver(registration_id)

    assert asked >= 3
    assert len(post.servers.letters) == 1
