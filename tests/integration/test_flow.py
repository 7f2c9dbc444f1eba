"""Registrations through the real parts: PostgreSQL, followers, saga, relay, SMTP into the embedded mailbox."""

from __future__ import annotations

import asyncio
import re
import secrets
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from uuid import UUID, uuid4

import psycopg
import pytest
from pydantic import SecretStr

from application.answers import Answer
from application.commands import EraseRegistration, RegisterUser, RequestNewCode, VerifyEmail
from application.ports import Conflict, Context, entries_of
from domain.errors import CodeLocked, Refused, TooManyRequests, WrongCode
from domain.mail_saga import MailSaga
from domain.registration import Registration, Status
from infrastructure.mail.mailbox import MailboxMessage
from infrastructure.settings.settings import Settings
from tests.support.facts import CLIENT, REGISTRATION, eventually, otp_issued, registered, stream
from tests.support.log import query
from tests.support.service import Service, open_service


@pytest.fixture
async def service(dsn: str) -> AsyncIterator[Service]:
    async with serving(dsn) as service:
        yield service


@asynccontextmanager
async def serving(dsn: str, **more: str) -> AsyncIterator[Service]:
    with tempfile.TemporaryDirectory() as directory:
        settings = Settings.from_environment(
            {
                "REGISTRAR_DATABASE_URL": dsn,
                "REGISTRAR_MASTER_KEY": secrets.token_hex(32),
                "REGISTRAR_DATA_DIR": directory,
                **more,
            }
        )
        async with open_service(settings, follows=True) as service:
            yield service


def client() -> Context:
    return Context("client", uuid4())


async def register(service: Service, email: str, name: str = "Ada", **more: object) -> Answer:
    return await service.handlers.handle(RegisterUser.model_validate({"email": email, "name": name, **more}), client())


async def verify(service: Service, registration_id: UUID, code: str) -> Answer:
    return await service.handlers.handle(VerifyEmail(registration_id=registration_id, code=SecretStr(code)), client())


async def mails_to(service: Service, email: str, count: int = 1) -> list[MailboxMessage]:
    """The mails of an address, newest first, once there are so many."""
    assert service.mailbox is not None
    mailbox = service.mailbox
    await eventually(lambda: len(mailbox.messages(email)) >= count, within=60)
    return mailbox.messages(email)


def code_in(message: MailboxMessage) -> str:
    match = re.search(r"^\s*(\d{6})\s*$", message.text, re.MULTILINE)
    assert match is not None
    return match[1]


async def registration(service: Service, registration_id: UUID) -> Registration:
    found = (await service.store.load(registration_id)).get(Registration, registration_id)
    assert found is not None
    return found


async def status_becomes(service: Service, registration_id: UUID, status: Status) -> None:
    async def holds() -> bool:
        return (await registration(service, registration_id)).status is status

    await eventually(holds, within=60)


async def topics(dsn: str) -> Counter[str]:
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        cursor = await connection.execute("SELECT topic FROM events")
        return Counter(row[0] for row in await cursor.fetchall())


async def test_a_registration_is_mailed_verified_and_activated(service: Service, dsn: str) -> None:
    answer = await register(service, "ada@example.com")
    [mail] = await mails_to(service, "ada@example.com")
    verified = await verify(service, answer.subject_id, code_in(mail))
    assert verified.status is Status.VERIFIED
    await status_becomes(service, answer.subject_id, Status.ACTIVE)
    assert len(await mails_to(service, "ada@example.com")) == 1
    recorded = await topics(dsn)
    assert recorded["registration.email_dispatched"] == 1
    assert recorded["registration.account_activated"] == 1


@pytest.mark.fault("B18")
async def test_200_simultaneous_registrations_of_one_address_with_one_payload_are_one(
    service: Service, dsn: str
) -> None:
    answers = await asyncio.gather(*(register(service, "crowd@example.com") for _ in range(200)))
    assert len({answer.subject_id for answer in answers}) == 1
    [mail] = await mails_to(service, "crowd@example.com")
    await verify(service, answers[0].subject_id, code_in(mail))
    await status_becomes(service, answers[0].subject_id, Status.ACTIVE)
    recorded = await topics(dsn)
    assert recorded["email_claim.email_claimed"] == 1
    assert recorded["registration.user_registered"] == 1
    assert len(await mails_to(service, "crowd@example.com")) == 1


@pytest.mark.slow
@pytest.mark.fault("B18")
async def test_200_simultaneous_registrations_of_one_address_are_one_mail_and_its_code_has_the_address(
    service: Service, dsn: str
) -> None:
    answers = await asyncio.gather(
        *(register(service, "rivals@example.com", name=f"Rival {number}") for number in range(200))
    )
    ids = [answer.subject_id for answer in answers]
    assert len(set(ids)) == 200
    begun = [await registration(service, one) for one in ids]
    assert {one.status for one in begun} == {Status.PENDING}
    [granted] = [one.id for one in begun if not one.withholds_mail(1)]

    async def all_look_mailed() -> bool:
        return all([(await registration(service, one)).handed_over_at for one in ids])

    await eventually(all_look_mailed, within=60)
    [mail] = await mails_to(service, "rivals@example.com")
    assert (await verify(service, granted, code_in(mail))).status is Status.VERIFIED
    losers = [one for one in ids if one != granted]
    for one in (losers[0], losers[-1]):
        with pytest.raises(WrongCode):
            await verify(service, one, service.keyring.code(one, 1))
        assert (await registration(service, one)).status is Status.PENDING
    recorded = await topics(dsn)
    assert recorded["email_claim.email_claimed"] == recorded["registration.email_verified"] == 1


@pytest.mark.fault("B18")
async def test_of_many_that_prove_an_address_at_once_through_the_database_one_has_it(
    without_cooldown: Service, dsn: str
) -> None:
    service = without_cooldown
    ids = [
        (await register(service, "race@example.com", name=f"Rival {n}", network=f"192.0.2.{n}")).subject_id
        for n in range(8)
    ]

    async def enter_code(one: UUID) -> Answer:
        while True:
            try:
                return await verify(service, one, service.keyring.code(one, 1))
            except Conflict:
                continue  # lost more than three races, which is a 503: the person tries again

    results = await asyncio.gather(*map(enter_code, ids), return_exceptions=True)
    assert Counter(type(result) for result in results) == {Answer: 1, WrongCode: 7}
    recorded = await topics(dsn)
    assert recorded["email_claim.email_claimed"] == recorded["registration.email_verified"] == 1


async def test_of_200_simultaneous_wrong_guesses_exactly_5_are_evaluated(service: Service, dsn: str) -> None:
    answer = await register(service, "guessed@example.com")
    [mail] = await mails_to(service, "guessed@example.com")
    right = code_in(mail)
    wrong = [f"{number:06d}" for number in range(300) if f"{number:06d}" != right][:200]
    results = await asyncio.gather(
        *(verify(service, answer.subject_id, code) for code in wrong), return_exceptions=True
    )
    kinds = Counter(type(result) for result in results)
    assert kinds == {WrongCode: 5, CodeLocked: 195}
    assert sorted(result.attempts_left for result in results if isinstance(result, WrongCode)) == [0, 1, 2, 3, 4]
    with pytest.raises(CodeLocked):
        await verify(service, answer.subject_id, right)
    recorded = await topics(dsn)
    assert recorded["registration.code_rejected"] == 5
    assert recorded["registration.code_locked"] == 1


async def test_50_simultaneous_right_codes_verify_once_and_are_all_answered_alike(service: Service, dsn: str) -> None:
    answer = await register(service, "eager@example.com")
    [mail] = await mails_to(service, "eager@example.com")
    answers = await asyncio.gather(
        *(verify(service, answer.subject_id, code_in(mail)) for _ in range(50)), return_exceptions=True
    )
    assert {type(answer) for answer in answers} == {Answer}
    assert (await topics(dsn))["registration.email_verified"] == 1


@pytest.fixture
async def without_cooldown(dsn: str) -> AsyncIterator[Service]:
    async with serving(dsn, REGISTRAR_RESEND_COOLDOWN="1ms") as service:
        yield service


async def test_a_taken_address_gets_a_notice_and_a_duplicate_whose_codes_never_match(
    without_cooldown: Service, dsn: str
) -> None:
    service = without_cooldown
    # given: an account
    owner = await register(service, "owner@example.com", locale="de")
    [mail] = await mails_to(service, "owner@example.com")
    await verify(service, owner.subject_id, code_in(mail))
    await status_becomes(service, owner.subject_id, Status.ACTIVE)

    # when: somebody registers the address again
    intruder = await register(service, "Owner@Example.com", name="Mallory")
    again = await register(service, "Owner@Example.com", name="Mallory")

    # then: it is a registration of its own that behaves like any other, and the owner is told, in the owner's words
    assert intruder.subject_id == again.subject_id != owner.subject_id
    notice, _ = await mails_to(service, "owner@example.com", count=2)
    assert re.search(r"^\s*\d{6}\s*$", notice.text, re.MULTILINE) is None
    assert "Konto" in notice.subject
    with pytest.raises(WrongCode):
        await verify(service, intruder.subject_id, service.keyring.code(intruder.subject_id, 1))

    # and: within a day there is no second notice, though the registration looks mailed
    other = await register(service, "owner@example.com", name="Trudy", network="192.0.2.1")

    async def looks_mailed() -> bool:
        return bool((await registration(service, other.subject_id)).handed_over_at)

    await eventually(looks_mailed, within=60)
    assert len(await mails_to(service, "owner@example.com", count=2)) == 2
    recorded = await topics(dsn)
    assert recorded["registration.owner_notified"] == 1
    assert recorded["registration.email_withheld"] == 1
    assert (await registration(service, owner.subject_id)).status is Status.ACTIVE


async def test_a_new_code_replaces_the_old_one_after_the_cooldown(service: Service) -> None:
    answer = await register(service, "resend@example.com")
    await mails_to(service, "resend@example.com")
    with pytest.raises(TooManyRequests) as refusal:
        await service.handlers.handle(RequestNewCode(registration_id=answer.subject_id), client())
    assert 0 < refusal.value.retry_after.total_seconds() <= 60


async def test_an_erased_registration_frees_its_address_and_cannot_be_read(service: Service, dsn: str) -> None:
    answer = await register(service, "gone@example.com", password="correct horse battery staple")
    await mails_to(service, "gone@example.com")
    await service.handlers.handle(EraseRegistration(registration_id=answer.subject_id), client())
    erased = await registration(service, answer.subject_id)
    assert (erased.status, erased.erased) == (Status.CANCELLED, True)
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        cursor = await connection.execute(
            "SELECT count(*) FROM personal_keys WHERE registration_id = %s", (answer.subject_id,)
        )
        assert await cursor.fetchone() == (0,)
    again = await register(service, "gone@example.com")
    assert again.subject_id != answer.subject_id
    assert (await registration(service, again.subject_id)).duplicate_of is None


async def test_repeating_a_registration_with_its_idempotency_key_meets_itself(service: Service) -> None:
    key = "0123456789abcdef-key"
    command = RegisterUser(email="twice@example.com", name="Ada", idempotency_key=key)
    first = await service.handlers.handle(command, client())
    answers = await asyncio.gather(*(service.handlers.handle(command, client()) for _ in range(50)))
    assert {answer.subject_id for answer in answers} == {first.subject_id}
    other = RegisterUser(email="twice@example.com", name="Eve", idempotency_key=key)
    with pytest.raises(Refused, match="Idempotency-Key"):
        await service.handlers.handle(other, client())


async def test_what_is_done_at_a_deadline_belongs_to_the_trace_of_the_request(service: Service, dsn: str) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    # given: a registration whose day is long over
    await service.store.append(
        entries_of(stream(REGISTRATION, registered(), otp_issued()), replace(CLIENT, trace=trace))
    )

    done = {
        event.TOPIC for event in (MailSaga.UndoDecided, Registration.OtpRevoked, Registration.RegistrationCancelled)
    }

    async def undone() -> list[tuple[str, str | None, UUID]]:
        rows = await query(dsn, "SELECT topic, trace_context, correlation_id FROM events ORDER BY notification_id")
        return rows if {topic for topic, *_ in rows} >= done else []

    assert {tuple(of) for _, *of in await eventually(undone)} == {(trace, CLIENT.correlation_id)}
