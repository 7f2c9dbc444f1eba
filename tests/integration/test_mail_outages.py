"""The saga, the relay and the mail delivery against mail servers that misbehave, with the clock moved by hand."""

from __future__ import annotations

import asyncio
import secrets
import tempfile
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from uuid import UUID, uuid4

import psycopg
import pytest
from eventsourcing.persistence import StoredEvent
from pydantic import SecretStr

from application.commands import DiscardMail, RegisterUser, RequestNewCode, RetryMail, VerifyEmail
from application.ports import Context
from domain.mail_saga import MailSaga
from domain.registration import Registration, Status
from infrastructure.settings.settings import Settings
from tests.support.facts import MovableClock, eventually
from tests.support.mail import code_in, message_id_of, recorded, until_recorded
from tests.support.service import Service, open_service
from tests.support.smtp_stub import SmtpStub

MASTER_KEY = secrets.token_hex(32)


async def at_once(_seconds: float) -> None:
    """The waits between the tries of one mail are not waited for here."""


def running(
    dsn: str, stub: SmtpStub, clock: MovableClock, *, follows: bool = True
) -> AbstractAsyncContextManager[Service]:
    @asynccontextmanager
    async def run() -> AsyncIterator[Service]:
        with tempfile.TemporaryDirectory() as directory:
            settings = Settings.from_environment(
                {
                    "REGISTRAR_DATABASE_URL": dsn,
                    "REGISTRAR_MASTER_KEY": MASTER_KEY,
                    "REGISTRAR_DATA_DIR": directory,
                    "REGISTRAR_SMTP_URLS": f"smtp://127.0.0.1:{stub.port}",
                    "REGISTRAR_SEND_TIMEOUT": "2",
                    "REGISTRAR_ACCEPT_TIMEOUT": "2",
                }
            )
            async with open_service(settings, follows=follows, clock=clock, sleep=at_once) as service:
                yield service

    return run()


@pytest.fixture
async def stub() -> AsyncIterator[SmtpStub]:
    async with SmtpStub() as stub:
        yield stub


def operator() -> Context:
    return Context("operator", uuid4())


async def register(service: Service, email: str = "ada@example.com") -> UUID:
    answer = await service.handlers.handle(RegisterUser(email=email, name="Ada"), Context("client", uuid4()))
    return answer.subject_id


async def registration(service: Service, registration_id: UUID) -> Registration:
    found = (await service.store.load(registration_id)).get(Registration, registration_id)
    assert found is not None
    return found


@pytest.mark.fault("E18")
async def test_a_mail_refused_for_now_is_tried_again_after_half_a_minute_with_the_same_code(
    dsn: str, stub: SmtpStub, clock: MovableClock
) -> None:
    stub.at("rcpt", "450 4.2.0 try later", times=3)
    async with running(dsn, stub, clock) as service:
        registration_id = await register(service)
        await until_recorded(dsn, "mail_saga.retry_scheduled")
        assert stub.mails == []
        clock.move(timedelta(seconds=23))
        await until_recorded(dsn, "mail_saga.retry_scheduled")
        clock.move(timedelta(seconds=14))
        await until_recorded(dsn, "registration.email_dispatched")
        [mail] = stub.mails
        code = code_in(mail)
        assert code == service.keyring.code(registration_id, 1)
        answer = await service.handlers.handle(
            VerifyEmail(registration_id=registration_id, code=SecretStr(code)), Context("client", uuid4())
        )
        assert answer.status is Status.VERIFIED


@pytest.mark.fault("E20")
async def test_a_mailbox_that_does_not_exist_undoes_the_registration(
    dsn: str, stub: SmtpStub, clock: MovableClock
) -> None:
    stub.at("rcpt", "550 5.1.1 no such user")
    async with running(dsn, stub, clock) as service:
        registration_id = await register(service)
        await until_recorded(dsn, "mail_saga.ended")
        undone = await registration(service, registration_id)
        assert (undone.status, undone.revoked) == (Status.CANCELLED, True)
        assert stub.mails == []
        # In reverse order of what was done, each step an event of its own.
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            cursor = await connection.execute("SELECT topic FROM events ORDER BY notification_id")
            order = [row[0] for row in await cursor.fetchall()]
        steps = ["registration.otp_revoked", "registration.registration_cancelled", "mail_saga.ended"]
        assert [topic for topic in order if topic in steps] == steps
        stub.heal()
        clock.move(timedelta(minutes=1))  # the pause between two mails to a mailbox
        again = await register(service)
        assert again != registration_id
        await until_recorded(dsn, "registration.email_dispatched")


@pytest.mark.fault("E9")
async def test_a_connection_lost_after_the_final_dot_leads_to_one_more_copy_with_the_same_message_id(
    dsn: str, stub: SmtpStub, clock: MovableClock
) -> None:
    stub.at("eod", "drop", times=1)
    async with running(dsn, stub, clock) as service:
        await register(service)
        await until_recorded(dsn, "mail_saga.retry_scheduled")
        clock.move(timedelta(seconds=37))
        await until_recorded(dsn, "registration.email_dispatched")
        assert len(stub.mails) == 2
        assert len({message_id_of(mail) for mail in stub.mails}) == 1
        assert len({code_in(mail) for mail in stub.mails}) == 1
        failed = await recorded(dsn)
        assert failed["registration.email_dispatch_failed"] == 1


async def test_a_registration_that_nobody_verifies_ends_after_a_day(
    dsn: str, stub: SmtpStub, clock: MovableClock
) -> None:
    async with running(dsn, stub, clock) as service:
        registration_id = await register(service)
        await until_recorded(dsn, "mail_saga.end_awaited")
        clock.move(timedelta(hours=23, minutes=59))
        other = await register(service, "other@example.com")
        await until_recorded(dsn, "mail_saga.end_awaited", 2)
        assert (await registration(service, registration_id)).status is Status.PENDING
        clock.move(timedelta(minutes=2))
        await until_recorded(dsn, "mail_saga.ended")
        assert (await registration(service, registration_id)).status is Status.CANCELLED
        assert (await registration(service, other)).status is Status.PENDING


async def test_registrations_taken_while_nothing_follows_are_mailed_once_something_does(
    dsn: str, stub: SmtpStub, clock: MovableClock
) -> None:
    async with running(dsn, stub, clock, follows=False) as service:
        ids = [await register(service, f"early{number}@example.com") for number in range(20)]
    assert stub.mails == []
    clock.move(timedelta(hours=3))
    async with running(dsn, stub, clock) as service:
        await until_recorded(dsn, "registration.email_dispatched", 20)
        assert len(stub.mails) == 20
        assert {code_in(mail) for mail in stub.mails} == {service.keyring.code(id_, 1) for id_ in ids}


async def test_two_processes_that_follow_send_each_mail_once(dsn: str, stub: SmtpStub, clock: MovableClock) -> None:
    async with running(dsn, stub, clock) as service, running(dsn, stub, clock):
        await asyncio.gather(*(register(service, f"pair{number}@example.com") for number in range(50)))
        await until_recorded(dsn, "registration.email_dispatched", 50)
        assert len(stub.mails) == 50


async def test_the_end_of_a_process_lets_the_mail_it_is_sending_finish(
    dsn: str, stub: SmtpStub, clock: MovableClock
) -> None:
    async with running(dsn, stub, clock) as service:
        await asyncio.gather(*(register(service, f"late{number}@example.com") for number in range(30)))
        await eventually(lambda: len(stub.mails) >= 1, within=60)
    async with running(dsn, stub, clock):
        await until_recorded(dsn, "registration.email_dispatched", 30)
    assert len(stub.mails) == 30


async def test_an_operator_can_retry_and_discard_a_mail_that_waits(
    dsn: str, stub: SmtpStub, clock: MovableClock
) -> None:
    stub.at("rcpt", "450 4.2.0 try later", times=6)
    async with running(dsn, stub, clock) as service:
        first = await register(service, "retry@example.com")
        await until_recorded(dsn, "mail_saga.retry_scheduled", 1)
        second = await register(service, "discard@example.com")
        await until_recorded(dsn, "mail_saga.retry_scheduled", 2)
        await service.handlers.handle(RetryMail(registration_id=first), operator())
        await service.handlers.handle(DiscardMail(registration_id=second), operator())
        await until_recorded(dsn, "registration.email_dispatched")
        await until_recorded(dsn, "mail_saga.ended")
        assert len(stub.mails) == 1
        assert (await registration(service, second)).status is Status.CANCELLED
        assert (await registration(service, first)).status is Status.PENDING


async def test_the_mail_of_a_replaced_code_is_not_sent_any_more(dsn: str, stub: SmtpStub, clock: MovableClock) -> None:
    stub.at("rcpt", "450 4.2.0 try later", times=3)
    async with running(dsn, stub, clock) as service:
        registration_id = await register(service)
        await until_recorded(dsn, "mail_saga.retry_scheduled")
        clock.move(timedelta(seconds=61))
        await service.handlers.handle(RequestNewCode(registration_id=registration_id), Context("client", uuid4()))
        await until_recorded(dsn, "registration.email_dispatched")
        assert {code_in(mail) for mail in stub.mails} <= {
            service.keyring.code(registration_id, 1),
            service.keyring.code(registration_id, 2),
        }
        assert code_in(stub.mails[-1]) == service.keyring.code(registration_id, 2)


async def test_one_unreadable_saga_stands_alone_and_goes_on_once_it_can_be_read(
    dsn: str, stub: SmtpStub, clock: MovableClock
) -> None:
    async with running(dsn, stub, clock) as service:
        broken = await register(service, "broken@example.com")
        await until_recorded(dsn, "mail_saga.end_awaited")
    # An event of a later version of the service, which this one cannot read.
    unknown = StoredEvent(MailSaga.stream_id(broken), 4, "mail_saga.from_the_future", b"{}")
    async with running(dsn, stub, clock, follows=False) as service:
        await service.store.append_stored([(unknown, operator())])
    clock.move(timedelta(hours=25))
    async with running(dsn, stub, clock) as service:
        await register(service, "fine@example.com")
        await until_recorded(dsn, "registration.email_dispatched", 2)

        async def parked() -> bool:
            async with await psycopg.AsyncConnection.connect(dsn) as connection:
                cursor = await connection.execute(
                    "SELECT stream_id, error FROM parked_events WHERE follower = 'mail-saga'"
                )
                return await cursor.fetchall() == [(broken, "TopicError")]

        await eventually(parked, within=60)


async def test_what_a_deadline_leads_to_belongs_to_the_request_that_began_it(
    dsn: str, stub: SmtpStub, clock: MovableClock
) -> None:
    async with running(dsn, stub, clock) as service:
        ids = [await register(service, f"{name}@example.com") for name in ("one", "two")]
        await until_recorded(dsn, "mail_saga.end_awaited", 2)
        clock.move(timedelta(hours=25))
        await until_recorded(dsn, "mail_saga.ended", 2)
        rows, _ = await service.store.read(0, 1000)
    for registration_id in ids:
        streams = {registration_id, MailSaga.stream_id(registration_id)}
        assert len({row.correlation_id for row in rows if row.stream_id in streams}) == 1
    assert len({row.correlation_id for row in rows}) == 2
