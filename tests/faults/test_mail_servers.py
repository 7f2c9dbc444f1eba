"""Mail servers that hang, drop, refuse and lie, at every stage: from a registration over HTTP to the mail on the wire.

Time is in our hands: the saga's clock, the circuits' clock, and the waits between the tries of a mail.
"""

from __future__ import annotations

import io
import json
import secrets
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import trustme

from domain.mail_saga import MailSaga
from domain.registration import Registration, Status
from infrastructure.circuits import Circuit, Circuits
from infrastructure.mail.smtp.server import PROBE_RECHECK
from infrastructure.mail.smtp.servers import SmtpServers
from tests.faults.canaries import occurs, shown
from tests.support.facts import MovableClock, eventually
from tests.support.http import ADMIN, Api, open_api, problem_of
from tests.support.mail import code_in, message_id_of, move_to_next_look, recorded, until_recorded
from tests.support.smtp_stub import Mail, SmtpStub, Stage

USER, PASSWORD = "registrar", "pa55-" + secrets.token_hex(8)
FAILED, DISPATCHED = "registration.email_dispatch_failed", "registration.email_dispatched"
RETRY, ENDED = "mail_saga.retry_scheduled", "mail_saga.ended"


class Seconds:
    """The circuits' clock: stands still until it is moved."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Post:
    """The service, a mail server, and all that passed between them.

    Attributes:
        pauses: what was waited between tries, without waiting for it.
    """

    api: Api
    dsn: str
    stub: SmtpStub
    clock: MovableClock
    log: io.StringIO
    seconds: Seconds
    pauses: list[float]
    addresses: dict[UUID, str] = field(default_factory=dict)

    async def register(self, email: str = "ada.canary@example.com") -> UUID:
        """The mail server may be as it likes: who registers is told the same."""
        answer = await self.api.register(email, name="Canary Lovelace")
        assert answer.status_code == 202, answer.text
        registration_id = UUID(answer.json()["registration_id"])
        self.addresses[registration_id] = email
        return registration_id

    async def registration(self, registration_id: UUID) -> Registration:
        found = (await self.api.service.store.load(registration_id)).get(Registration, registration_id)
        assert found is not None
        return found

    async def events(self) -> list[Any]:
        store = self.api.service.store
        rows, _ = await store.read(0, 10_000)
        return [store.decode(row).event for row in rows]

    async def count(self, topic: str) -> int:
        return (await recorded(self.dsn))[topic]

    async def until(self, topic: str, count: int = 1) -> None:
        await until_recorded(self.dsn, topic, count)

    async def move_to_next_look(self, registration_id: UUID) -> None:
        await move_to_next_look(self.api.service, registration_id, self.clock)

    async def verifies(self, registration_id: UUID, mail: Mail) -> bool:
        return (await self.api.verify(str(registration_id), code_in(mail))).status_code == 200

    def thirty_seconds_pass(self) -> None:
        """For the circuits, and those who wait for them."""
        self.seconds.now += 30
        self.circuit.wake()  # what its timer does, on the loop's own clock

    @property
    def servers(self) -> SmtpServers:
        assert self.api.service.servers is not None
        return self.api.service.servers

    @property
    def circuit(self) -> Circuit:
        """The mail server's, once a mail was to go there."""
        [circuit] = self.servers.circuits
        return circuit

    async def until_opened(self) -> None:
        """The circuit is open, and no conversation with the server is under way."""

        def opened() -> bool:
            return bool(self.servers.circuits) and self.circuit.state == "opened" and not self.servers.in_flight

        await eventually(opened, within=60)

    async def until_probed(self) -> None:
        """Thirty seconds later somebody tried, and the circuit is open again."""
        before = len(self.stub.sessions)
        self.thirty_seconds_pass()

        async def probed() -> bool:
            if len(self.stub.sessions) > before:
                return True
            await self.look_again()
            return False

        await eventually(probed, within=60)
        await self.until_opened()
        assert len(self.stub.sessions) == before + 1, "one try, whoever waits"

    async def look_again(self) -> None:
        """Whoever waits for the circuit to be probed by another, or for a retry, need not wait any longer."""
        self.seconds.now += PROBE_RECHECK
        self.circuit.wake()
        await self.move_to_retries()

    async def until_all_dispatched(self, count: int) -> None:
        """The server is well again: as often as somebody has to look again for that, they do."""

        async def dispatched() -> bool:
            if await self.count(DISPATCHED) >= count:
                return True
            await self.look_again()
            return False

        self.thirty_seconds_pass()
        await eventually(dispatched, within=60)

    async def move_to_retries(self) -> dict[UUID, Any]:
        """So that whatever is to be tried again is tried again. Answers the last note of each saga."""
        last = {event.originator_id: event for event in await self.events() if isinstance(event, MailSaga.Event)}
        retries = [event.look_again_at for event in last.values() if isinstance(event, MailSaga.RetryScheduled)]
        self.clock.now = max([self.clock.now, *retries])
        return last

    async def until_handed_over(self, registration_id: UUID) -> None:
        """As often as the saga has to look again for that, it does."""

        async def handed_over() -> bool:
            await self.look_again()
            return bool((await self.registration(registration_id)).handed_over_at)

        await eventually(handed_over, within=60)

    def outcomes(self) -> dict[str, int]:
        """Tries by outcome, as the metrics tell."""
        found = {}
        for family in self.api.service.metrics._mail.collect():
            for sample in family.samples:
                if sample.name == "registrar_mail_total":
                    found[sample.labels["outcome"]] = int(sample.value)
        return found

    @property
    def concurrency(self) -> float:
        """How many mails the server may be handed at the same time, as the metrics tell."""
        registry = self.api.service.metrics._registry
        told = registry.get_sample_value("registrar_mail_concurrency", {"provider": self.circuit.name})
        assert told is not None
        return told

    def logged(self, event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log.getvalue().splitlines()]
        return [line for line in lines if line["event"] == event]

    async def prove(self) -> None:
        """I4, I5, I6 and I10, from the log of events, from what the mail server has, and from the log."""
        events, keyring = await self.events(), self.api.service.keyring
        copies: dict[str, list[Mail]] = {}
        for mail in self.stub.mails:
            copies.setdefault(message_id_of(mail).strip("<>").partition("@")[0], []).append(mail)
        codes = set()
        for registration_id, email in self.addresses.items():
            own = [event for event in events if event.originator_id == registration_id]
            dispatched = {event.serial for event in own if isinstance(event, Registration.EmailDispatched)}
            failures = [event for event in own if isinstance(event, Registration.EmailDispatchFailed)]
            ambiguous = Counter(event.serial for event in failures if event.outcome_unknown)
            current = (await self.registration(registration_id)).serial
            for serial in range(1, current + 1):
                mails = copies.pop(keyring.message_id(registration_id, serial), [])
                least = int(serial in dispatched)
                assert least <= len(mails) <= least + ambiguous[serial], "I5"
                assert {code_in(mail) for mail in mails} <= {keyring.code(registration_id, serial)}, "I6"
                assert {recipient for mail in mails for recipient in mail.recipients} <= {email.encode()}, "I6"
                codes.add(keyring.code(registration_id, serial))
            ended = [event.reason for event in own if isinstance(event, Registration.RegistrationCancelled)]
            assert current in dispatched or ended or failures, "I4"
        assert copies == {}, "every mail belongs to an issue"
        told = self.log.getvalue() + self.api.service.metrics.render().decode()
        assert occurs(told, {*self.addresses.values(), "Canary", "canary", PASSWORD}) == [], "I10"
        assert shown(codes, told) == [], "I10"


OpenPost = Callable[..., Any]


@pytest.fixture
def open_post(dsn: str, clock: MovableClock, log: io.StringIO) -> OpenPost:
    @asynccontextmanager
    async def opened(
        stub: SmtpStub, *, url: str | None = None, send_timeout: float = 10, accept_timeout: float | None = None
    ) -> AsyncIterator[Post]:
        seconds, pauses = Seconds(), list[float]()

        async def pause(length: float) -> None:
            pauses.append(length)

        async with open_api(
            dsn,
            clock=clock,
            sleep=pause,
            circuits=partial(Circuits, clock=seconds),
            smtp_urls=url or f"smtp://127.0.0.1:{stub.port}",
            send_timeout=str(send_timeout),
            accept_timeout=str(accept_timeout or send_timeout),
        ) as api:
            yield Post(api, dsn, stub, clock, log, seconds, pauses)

    return opened


@pytest.fixture
async def stub() -> AsyncIterator[SmtpStub]:
    async with SmtpStub() as stub:
        yield stub


@pytest.fixture
async def post(open_post: OpenPost, stub: SmtpStub) -> AsyncIterator[Post]:
    async with open_post(stub) as post:
        yield post


# --- TLS and login --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine trusts the authority, as OpenSSL is told to."""
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))


def certificate(authority: trustme.CA, *, until: datetime | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", not_after=until).configure_cert(context)
    return context


@pytest.fixture
async def secure_stub(authority: trustme.CA, trusted: None) -> AsyncIterator[SmtpStub]:
    """Wants TLS and a login, so that a conversation with it has every stage."""
    async with SmtpStub(tls=certificate(authority), credentials=(USER, PASSWORD)) as stub:
        yield stub


def secure_url(stub: SmtpStub) -> str:
    return f"smtp://{USER}:{PASSWORD}@127.0.0.1:{stub.port}?starttls=required"


# --- Hanging and dropping -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "action"),
    [
        pytest.param(stage, action, marks=pytest.mark.fault(f"E{first + number}"), id=f"{stage}-{action}")
        for action, first in (("hang", 1), ("drop", 10))
        for number, stage in enumerate(("banner", "ehlo", "starttls", "auth", "mail", "rcpt", "data"))
    ],
)
async def test_a_conversation_lost_before_the_content_is_begun_anew_and_one_mail_arrives(
    open_post: OpenPost, secure_stub: SmtpStub, stage: Stage, action: str
) -> None:
    patience = 1.2 if action == "hang" else 10
    async with open_post(secure_stub, url=secure_url(secure_stub), send_timeout=patience) as post:
        secure_stub.at(stage, action, times=1)

        registration_id = await post.register()
        await post.until(DISPATCHED)

        assert secure_stub.faults == {stage: 1}
        assert post.outcomes()["timeout" if action == "hang" else "connection"] >= 1
        assert 2 <= post.pauses[0] <= 3
        assert post.outcomes()["accepted"] == 1
        [mail] = secure_stub.mails
        assert await post.verifies(registration_id, mail)
        await post.prove()


@pytest.mark.parametrize(
    "action",
    [
        pytest.param("hang", marks=pytest.mark.fault("E8")),
        pytest.param("drop", marks=pytest.mark.fault("E17")),
    ],
)
async def test_a_goodbye_that_is_not_answered_changes_nothing_about_the_mail(
    open_post: OpenPost, stub: SmtpStub, action: str
) -> None:
    stub.at("quit", action)

    async with open_post(stub) as post:
        registration_id = await post.register()
        await post.until(DISPATCHED)
    await stub.until(lambda: all(session.over for session in stub.sessions))
    async with open_post(stub) as post:
        post.addresses[registration_id] = "ada.canary@example.com"
        await post.prove()

        assert stub.faults == {"quit": 1}
        assert len(stub.mails) == 1
        assert await post.count(FAILED) == 0


@pytest.mark.fault("E9")
async def test_a_mail_whose_content_is_not_answered_is_an_unknown_outcome_and_sent_once_more_later(
    open_post: OpenPost, stub: SmtpStub
) -> None:
    async with open_post(stub, send_timeout=1.2) as post:
        stub.at("eod", "hang", times=1)
        registration_id = await post.register()
        await post.until(RETRY)

        assert stub.faults == {"eod": 1}
        assert len(stub.mails) == 1, "the server has it: another try at once would be a copy for nothing"
        [failure] = [event for event in await post.events() if isinstance(event, Registration.EmailDispatchFailed)]
        assert (failure.failure, failure.permanent, failure.outcome_unknown) == ("timeout", False, True)
        assert (failure.attempts, post.pauses) == (1, [])

        await post.move_to_next_look(registration_id)
        await post.until(DISPATCHED)

        assert len(stub.mails) == 2
        assert len({(code_in(mail), message_id_of(mail)) for mail in stub.mails}) == 1
        assert await post.verifies(registration_id, stub.mails[0])
        await post.prove()


# --- Not now --------------------------------------------------------------------------------------


@pytest.mark.fault("E18")
@pytest.mark.parametrize("stage", ["banner", "mail", "rcpt", "data", "eod"])
async def test_what_is_refused_for_now_gets_three_tries_and_then_the_sagas(post: Post, stage: Stage) -> None:
    for reply in ("421 4.7.0 too many", "450 4.2.1 not now", "451 4.3.0 no room", "452 4.3.1 full"):
        post.stub.at(stage, f"{reply} <ada.canary@example.com>", times=1)

    registration_id = await post.register()
    await post.until(RETRY)

    assert post.stub.faults == {stage: 3}
    assert [int(pause) for pause in post.pauses] == [2, 4]
    [failure] = [event for event in await post.events() if isinstance(event, Registration.EmailDispatchFailed)]
    assert (failure.permanent, failure.outcome_unknown, failure.attempts) == (False, False, 3)
    assert post.stub.mails == []

    before = post.clock()
    await post.move_to_next_look(registration_id)
    assert timedelta(seconds=24) <= post.clock() - before <= timedelta(seconds=36)
    await post.until(DISPATCHED)

    assert post.stub.faults == {stage: 4}
    [mail] = post.stub.mails
    assert await post.verifies(registration_id, mail)
    await post.prove()


@pytest.mark.fault("E19")
async def test_a_greylisting_of_five_minutes_is_outlasted_and_the_code_works_on_arrival(post: Post) -> None:
    first_seen: list[datetime] = []

    def greylists() -> str | None:
        first_seen.append(post.clock())
        early = post.clock() < first_seen[0] + timedelta(minutes=5)
        return "451 4.7.1 <ada.canary@example.com>: greylisted for 300 s" if early else None

    post.stub.at("rcpt", greylists)

    begun = post.clock()
    registration_id = await post.register()
    for retry in (1, 2, 3):
        await post.until(RETRY, retry)
        await post.move_to_next_look(registration_id)
    await post.until(DISPATCHED)

    assert post.stub.faults == {"rcpt": 9}, "three tries each: at once, after 30 s, after two minutes more"
    assert timedelta(minutes=6) < post.clock() - begun < timedelta(minutes=11)
    [mail] = post.stub.mails
    post.clock.move(timedelta(minutes=9))  # its life counts from the hand-over
    assert await post.verifies(registration_id, mail)
    await post.prove()


@pytest.mark.fault("E26")
@pytest.mark.parametrize(
    ("bears", "throttle", "mails_per_session"),
    [
        pytest.param(2, "421 4.7.0 too many <ada.canary@example.com>", None, id="at-once-421"),
        pytest.param(2, "451 4.7.0 too many <ada.canary@example.com>", None, id="at-once-451"),
        pytest.param(None, "", 1, id="on-one-connection"),
    ],
)
async def test_a_server_that_throttles_gets_what_it_takes_and_everybody_gets_one_mail(
    post: Post, bears: int | None, throttle: str, mails_per_session: int | None
) -> None:
    post.stub.bears, post.stub.throttle, post.stub.mails_per_session = bears, throttle, mails_per_session
    waiting = [await post.register("canary0@example.com")]
    await post.until(DISPATCHED)
    post.circuit.open()  # so that the others come all at once
    waiting += [await post.register(f"canary{number}@example.com") for number in range(1, 60)]
    await post.until("mail_saga.mail_requested", 60)
    await post.until_all_dispatched(60)

    if bears is not None:
        assert post.stub.faults["too many at once"] > 0
        assert 1 <= post.concurrency <= 2 * bears
    else:
        assert post.stub.faults["too many on one connection"] > 0
        assert post.outcomes() == {"accepted": 60}, "it costs no mail a try"
    assert await post.count("registration.registration_cancelled") == 0
    assert len(post.logged("mail.circuit_opened")) == 1, "by this test"
    assert post.circuit.state == "closed"
    assert len(post.stub.mails) == 60
    assert await post.verifies(waiting[-1], next(mail for mail in post.stub.mails if b"canary59@" in mail.data))
    await post.prove()


# --- Not at all -----------------------------------------------------------------------------------


@pytest.mark.fault("E25")
async def test_after_an_outage_of_two_hours_everybody_gets_one_mail_with_a_code_that_works(post: Post) -> None:
    post.stub.at("banner", "drop")
    waiting = [await post.register(f"canary{number}@example.com") for number in range(8)]
    await post.until("mail_saga.mail_requested", 8)
    await post.until_opened()

    for minutes in (1, 4, 25):
        post.clock.move(timedelta(minutes=minutes))
        await post.until_probed()
    post.clock.move(timedelta(minutes=90))

    async def replaced() -> bool:
        """A code older than its ten minutes is replaced, not sent: every saga has looked, and nothing is due."""
        last = await post.move_to_retries()
        looked = all(event.look_again_at > post.clock() for event in last.values())
        return looked and all([(await post.registration(one)).serial > 1 for one in waiting])

    await eventually(replaced, within=60)
    assert await post.count("registration.registration_cancelled") == 0
    assert (await post.api.http.get("/health/ready")).json()["status"] == "degraded"
    probed = post.stub.faults["banner"]
    assert probed == len(post.stub.sessions)

    post.stub.heal()
    post.thirty_seconds_pass()
    for registration_id in waiting:
        await post.until_handed_over(registration_id)

    assert len(post.stub.mails) == 8
    for registration_id in waiting:
        [mail] = [mail for mail in post.stub.mails if mail.recipients == [post.addresses[registration_id].encode()]]
        assert await post.verifies(registration_id, mail)
    assert post.circuit.state == "closed"
    await post.prove()


# --- Never ----------------------------------------------------------------------------------------


@pytest.mark.fault("E20")
async def test_a_mailbox_that_does_not_exist_is_undone_at_once_and_nobody_outside_is_told_why(post: Post) -> None:
    fine = await post.api.register("eve.canary@example.com")
    post.addresses[UUID(fine.json()["registration_id"])] = "eve.canary@example.com"
    await post.until(DISPATCHED)
    post.stub.at("rcpt", "550 5.1.1 <ada.canary@example.com>: nobody of this name")

    refused = await post.api.register("ada.canary@example.com")
    registration_id = UUID(refused.json()["registration_id"])
    post.addresses[registration_id] = "ada.canary@example.com"
    await post.until(ENDED)

    assert post.stub.faults == {"rcpt": 1}, "it is not asked twice"
    assert (await post.count(FAILED), await post.count(RETRY), post.pauses) == (1, 0, [])
    undone = await post.registration(registration_id)
    assert (undone.status, undone.revoked) == (Status.CANCELLED, True)
    shown_to_all = await post.api.becomes(str(registration_id), status="CANCELLED", mail="FAILED")
    code = post.api.service.keyring.code(registration_id, 1)
    verification = await post.api.verify(str(registration_id), code)
    assert problem_of(verification) == "not-pending"
    for told in (refused.text, json.dumps(shown_to_all), verification.text):
        assert "550" not in told
        assert "5.1.1" not in told
        assert "mailbox" not in told

    post.stub.heal()
    post.clock.move(timedelta(minutes=1))  # or the mailbox would have had its mail of the minute
    again = await post.api.register("ada.canary@example.com")
    post.addresses[UUID(again.json()["registration_id"])] = "ada.canary@example.com"
    await post.until(DISPATCHED, 2)

    answers = [answer.json() | {"registration_id": "", "email": ""} for answer in (fine, refused, again)]
    assert answers[0] == answers[1] == answers[2]
    assert again.json()["registration_id"] != str(registration_id), "the address was free again"
    assert post.circuit.state == "closed"
    await post.prove()


@pytest.mark.fault("E21")
async def test_a_content_refused_between_others_that_are_taken_undoes_only_its_own_registration(post: Post) -> None:
    await post.register("before.canary@example.com")
    await post.until(DISPATCHED)
    post.stub.at("eod", "554 5.6.0 <ada.canary@example.com>: looks like spam", times=1)

    refused = await post.register()
    await post.until(ENDED)
    await post.register("after.canary@example.com")
    await post.until(DISPATCHED, 2)

    assert post.stub.faults == {"eod": 1}
    assert (await post.registration(refused)).status is Status.CANCELLED
    assert await post.count("registration.registration_cancelled") == 1
    [alarm] = post.logged("mail.content_refused")
    assert (alarm["level"], alarm["reply"], alarm["status"]) == ("error", 554, "5.6.0")
    assert "filter" in alarm["hint"]
    assert post.outcomes() == {"accepted": 2, "content": 1}
    assert post.circuit.state == "closed"
    await post.prove()


@pytest.mark.fault("E21")
@pytest.mark.parametrize("reply", ["552 5.2.3 too long", "554 5.6.0 looks like spam"])
async def test_contents_refused_of_everybody_open_the_circuit_and_undo_nobody_more(post: Post, reply: str) -> None:
    await post.register("before.canary@example.com")
    await post.until(DISPATCHED)
    post.stub.at("eod", f"{reply} <ada.canary@example.com>")

    waiting = [await post.register(f"canary{number}@example.com") for number in range(12)]
    await post.until_opened()
    refused = post.stub.faults["eod"]
    assert refused >= 4, "more than half of five"
    post.clock.move(timedelta(seconds=40))  # the saga tries again those that were refused
    post.thirty_seconds_pass()

    async def probed() -> bool:
        if post.stub.faults["eod"] > refused:
            return True
        await post.look_again()
        return False

    await eventually(probed, within=60)
    await post.until_opened()
    assert post.stub.faults["eod"] == refused + 1

    undone = [one for one in waiting if (await post.registration(one)).status is Status.CANCELLED]
    assert len(undone) <= 1, "the first, when the server was known to take the others"
    assert post.logged("mail.content_refused")
    assert (await post.api.http.get("/health/ready")).json()["status"] == "degraded"

    post.stub.heal()
    post.thirty_seconds_pass()
    for one in waiting:
        if one not in undone:
            await post.until_handed_over(one)
    assert post.circuit.state == "closed"
    await post.prove()


# --- A server that refuses us ---------------------------------------------------------------------


@pytest.mark.fault("E30")
@pytest.mark.parametrize(
    ("stage", "reply", "alarm", "costs"),
    [
        ("rcpt", "550 Invalid recipient: <ada.canary@example.com>", "mail.recipients_refused", 1),
        ("rcpt", "554 <ada.canary@example.com>: relay access denied", "mail.recipients_refused", 1),
        ("rcpt", "553 5.1.8 <no-reply@registrar.test>: domain does not exist", "mail.unauthorized", 0),
        ("rcpt", "513 Relaying denied.", "mail.unauthorized", 0),
        ("rcpt", "550 5.4.5 daily sending quota exceeded", "mail.limit_reached", 0),
        ("eod", "550 5.7.1 <ada.canary@example.com>: blocked", "mail.content_refused", 0),
    ],
)
async def test_a_row_of_refusals_is_ours_and_whoever_it_cost_is_revived_by_the_operator(
    post: Post, stage: Stage, reply: str, alarm: str, costs: int
) -> None:
    await post.register("before.canary@example.com")
    await post.until(DISPATCHED)
    post.stub.at(stage, reply)

    first = await post.register("canary0@example.com")
    await post.until(FAILED)  # by itself: of several at once it may be that none is believed to be about itself
    waiting = [first, *[await post.register(f"canary{number}@example.com") for number in range(1, 6)]]
    await post.until(FAILED, 4)
    await post.until(ENDED, costs)

    assert {one["level"] for one in post.logged(alarm)} == {"error"}

    async def told() -> bool:
        health = (await post.api.http.get("/health/mail")).json()
        return health["status"] in {"degraded", "down"} and set(health["troubles"].values()) == {"refusing"}

    await eventually(told)
    undone = [one for one in waiting if (await post.registration(one)).status is Status.CANCELLED]
    assert len(undone) == costs
    assert await post.count("registration.registration_cancelled") == costs

    post.stub.heal()
    for one in undone:
        answer = await post.api.http.post(f"/v1/admin/mail/{one}/retry", headers=ADMIN)
        assert answer.json()["status"] == "PENDING", answer.text
    post.thirty_seconds_pass()
    for one in waiting:
        await post.until_handed_over(one)
    for one in undone:
        mail = next(mail for mail in post.stub.mails if mail.recipients == [post.addresses[one].encode()])
        assert await post.verifies(one, mail)
    await post.prove()

    async def well() -> bool:
        return not (await post.api.http.get("/health/mail")).json()["troubles"]

    await eventually(well)


@pytest.mark.fault("E22")
async def test_a_refused_login_uses_up_no_mails_tries_and_all_go_out_once_it_is_right(
    open_post: OpenPost, secure_stub: SmtpStub
) -> None:
    secure_stub.at("auth", f"535 5.7.8 {USER}: wrong password {PASSWORD}")
    async with open_post(secure_stub, url=secure_url(secure_stub)) as post:
        waiting = [await post.register(f"canary{number}@example.com") for number in range(8)]
        await post.until("mail_saga.mail_requested", 8)
        await post.until_opened()
        await post.until_probed()
        await post.until_probed()

        tries = len(secure_stub.sessions)
        assert secure_stub.faults["auth"] >= tries
        assert post.outcomes() == {"authentication": tries}
        assert (await post.count(FAILED), await post.count(RETRY)) == (0, 0)
        alarms = post.logged("mail.unauthorized")
        assert len(alarms) == tries
        assert {(alarm["level"], alarm["reply"], alarm["status"]) for alarm in alarms} == {("error", 535, "5.7.8")}
        assert "REGISTRAR_SMTP_URLS" in alarms[0]["hint"]
        ready = await post.api.http.get("/health/ready")
        assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
        assert (await post.api.http.get("/health/mail")).status_code == 503

        secure_stub.heal()
        await post.until_all_dispatched(8)

        assert await post.count(FAILED) == 0
        assert len(secure_stub.mails) == 8
        assert await post.verifies(waiting[0], next(mail for mail in secure_stub.mails if b"canary0" in mail.data))
        await post.prove()


@pytest.mark.fault("E23")
@pytest.mark.parametrize("fault", ["missing", "stripped", "expired", "not trusted"])
async def test_without_good_encryption_nothing_is_said_and_all_goes_out_once_it_is_there(
    open_post: OpenPost, secure_stub: SmtpStub, authority: trustme.CA, fault: str
) -> None:
    good = secure_stub.tls
    match fault:
        case "missing":
            secure_stub.tls = None
        case "stripped":
            secure_stub.offer_starttls = False
        case "expired":
            secure_stub.tls = certificate(authority, until=datetime.now(UTC) - timedelta(days=1))
        case "not trusted":
            secure_stub.tls = certificate(trustme.CA())
    async with open_post(secure_stub, url=secure_url(secure_stub)) as post:
        for number in range(3):
            await post.register(f"canary{number}@example.com")
        await post.until("mail_saga.mail_requested", 3)
        await post.until_opened()
        await post.until_probed()

        assert {word for session in secure_stub.sessions for word in session.commands} <= {b"EHLO", b"STARTTLS"}
        tries = len(secure_stub.sessions)
        assert post.outcomes() == {"tls": tries}
        assert (await post.count(FAILED), await post.count("registration.registration_cancelled")) == (0, 0)
        assert [alarm["level"] for alarm in post.logged("mail.not_encrypted")] == ["error"] * tries

        secure_stub.tls, secure_stub.offer_starttls = good, True
        await post.until_all_dispatched(3)

        clear = [session for session in secure_stub.sessions if not session.encrypted]
        assert {word for session in clear for word in session.commands} <= {b"EHLO", b"STARTTLS"}
        assert len(secure_stub.mails) == 3
        await post.prove()
