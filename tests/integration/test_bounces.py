"""Mails that come back: through the listener, into the log and the read models, and to what becomes of the sign-up."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from application.bounce_reports import AT_ONCE
from application.commands import ImportedUser, ImportUsers, RecordEmailComplained, RecordEmailDispatched, RegisterUser
from application.ports import Context
from domain.mail_outcome import HandOver
from domain.registration import Registration
from entrypoints.bootstrap.bounces import open_listener
from entrypoints.cli import mail
from infrastructure.bounces.addresses import BounceAddresses
from infrastructure.bounces.listener import MAX_MISTAKES, BounceListener
from infrastructure.settings.settings import Settings
from tests.support.bounces import MailExchanger, feedback_report, notification
from tests.support.facts import eventually
from tests.support.http import ADMIN, open_api
from tests.support.log import query
from tests.support.mail import recorded, until_recorded
from tests.support.service import Service, open_service
from tests.support.smtp_stub import SmtpStub

ADDRESS = "bounces@mail.example.org"


@pytest.fixture
async def stub() -> AsyncIterator[SmtpStub]:
    async with SmtpStub() as stub:
        yield stub


@pytest.fixture
async def service(dsn: str, stub: SmtpStub, tmp_path: Path) -> AsyncIterator[Service]:
    settings = Settings.from_environment(
        {
            "REGISTRAR_DATABASE_URL": dsn,
            "REGISTRAR_MASTER_KEY": secrets.token_hex(32),
            "REGISTRAR_DATA_DIR": str(tmp_path),
            "REGISTRAR_SMTP_URLS": f"smtp://127.0.0.1:{stub.port}",
            "REGISTRAR_BOUNCE_ADDRESS": ADDRESS,
            "REGISTRAR_BOUNCE_LISTEN": "127.0.0.1:0",
        }
    )
    async with open_service(settings, follows=True) as service:
        yield service


def client() -> Context:
    return Context("client", uuid4())


@pytest.fixture
async def listener(service: Service) -> AsyncIterator[BounceListener]:
    async with AsyncExitStack() as stack:
        yield await open_listener(service.process.core, service.settings, stack)


async def sent(service: Service, stub: SmtpStub, email: str = "ada@example.com") -> tuple[UUID, str]:
    """Register; the registration, and the envelope's sender of its mail, whose hand-over is recorded."""
    answer = await service.handlers.handle(RegisterUser(email=email, name="Ada"), client())
    await stub.until(lambda: any(email.encode() in mail.recipients for mail in stub.mails))
    [mail] = [mail for mail in stub.mails if email.encode() in mail.recipients]

    async def is_recorded() -> bool:
        return 1 in (await registration(service, answer.subject_id)).handed_over_at

    await eventually(is_recorded)
    return answer.subject_id, mail.sender.decode()


async def registration(service: Service, registration_id: UUID) -> Registration:
    found = (await service.store.load(registration_id)).get(Registration, registration_id)
    assert found is not None
    return found


def counted(service: Service) -> dict[str, int]:
    lines = re.findall(r'^registrar_bounces_total{outcome="(\w+)"} (\S+)$', service.metrics.render().decode(), re.M)
    return {outcome: int(float(count)) for outcome, count in lines}


async def shown(service: Service, registration_id: UUID) -> tuple[str, str]:
    found = await service.api.queries.registrations.by_id(registration_id)
    assert found is not None
    return found.view.status, found.view.mail


@pytest.mark.fault("E60")
async def test_a_mail_that_comes_back_for_good_ends_the_sign_up(
    service: Service, stub: SmtpStub, listener: BounceListener, dsn: str
) -> None:
    registration_id, sender = await sent(service, stub)
    assert sender.startswith("bounces+")
    assert b"Return-Path" not in stub.mails[0].data

    async with MailExchanger(listener.port) as exchanger:
        assert await exchanger.notify(sender.upper()) == 250

    async def is_told() -> bool:
        return await shown(service, registration_id) == ("CANCELLED", "BOUNCED")

    await eventually(is_told, within=5)
    async with MailExchanger(listener.port) as exchanger:
        assert await exchanger.notify(sender) == 250
    assert (await recorded(dsn))["registration.email_bounced"] == 1
    assert counted(service) == {"hard": 1, "soft": 0, "complaint": 0, "unknown": 0}


@pytest.mark.fault("E61")
async def test_what_is_forged_late_or_no_notification_changes_nothing(
    service: Service, stub: SmtpStub, listener: BounceListener, dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    registration_id, sender = await sent(service, stub)
    await until_recorded(dsn, "mail_saga.end_awaited")
    others = BounceAddresses(ADDRESS, service.keyring).of(uuid4(), 1)
    position = await service.store.head()

    async with MailExchanger(listener.port) as exchanger:
        assert await exchanger.notify(sender.replace("+", "+x")) == 550
        assert await exchanger.notify(ADDRESS) == 550
        assert await exchanger.notify("postmaster@mail.example.org") == 550
        assert await exchanger.notify(others) == 250
        assert await exchanger.notify(sender, b"Subject: I am on holiday\r\n\r\nBack soon.") == 250
        assert await exchanger.notify(sender, b"Subject: long\r\n\r\n" + b"x" * 50_000) == 250
        assert await exchanger.notify(sender, notification(action="delayed", status="4.4.1")) == 250

    assert await service.store.head() == position
    assert (await registration(service, registration_id)).is_pending
    assert counted(service) == {"hard": 0, "soft": 0, "complaint": 0, "unknown": 4}
    assert [one.getMessage() for one in caplog.records if one.name in {"flufl.bounce", "mail.log"}] == []


@pytest.mark.fault("E66")
async def test_a_feedback_report_of_a_mail_of_ours_has_the_mailbox_sent_no_more_and_no_other_does(
    service: Service, stub: SmtpStub, listener: BounceListener, dsn: str
) -> None:
    registration_id, sender = await sent(service, stub)
    other_domain = sender.replace("mail.example.org", "mail.example.net")
    forged = [
        feedback_report(about=sender[:-20] + "a" * 4 + sender[-16:]),
        feedback_report(about=other_domain),
        feedback_report(about=ADDRESS),
        feedback_report(about=sender, kind="not-spam"),
        notification(),
        b"Subject: hello\r\n\r\nIs this <" + sender.encode() + b"> yours?",
    ]
    async with MailExchanger(listener.port) as exchanger:
        assert [await exchanger.notify(ADDRESS, one) for one in forged] == [550] * len(forged)
        assert "email_complained" not in " ".join(await recorded(dsn))

        told = [await exchanger.notify(to, feedback_report(about=sender)) for to in (ADDRESS, ADDRESS.upper(), sender)]

    assert told == [250, 250, 250]
    assert (await recorded(dsn))["registration.email_complained"] == 1
    assert counted(service) == {"hard": 0, "soft": 0, "complaint": 1, "unknown": len(forged)}
    assert (await registration(service, registration_id)).is_pending
    again = await service.handlers.handle(RegisterUser(email="ada@example.com", name="Not Ada"), client())
    assert (await registration(service, again.subject_id)).withholds_mail(1)


@pytest.mark.fault("E62")
async def test_a_notification_waits_for_the_hand_over_to_be_recorded(
    service: Service, stub: SmtpStub, listener: BounceListener
) -> None:
    stub.at("eod", "wait")
    answer = await service.handlers.handle(RegisterUser(email="early@example.com", name="Ada"), client())
    address = BounceAddresses(ADDRESS, service.keyring).of(answer.subject_id, 1)

    async with MailExchanger(listener.port) as exchanger:
        told = asyncio.create_task(exchanger.notify(address))
        accepted = HandOver("mx.example:25", 1, 250)
        await service.handlers.handle(
            RecordEmailDispatched(registration_id=answer.subject_id, serial=1, hand_over=accepted), client()
        )
        assert await told == 250

    assert (await registration(service, answer.subject_id)).bounced == {1: True}


@pytest.mark.fault("E63")
async def test_what_is_too_much_is_refused_for_now_and_in_a_session_for_good(
    service: Service, stub: SmtpStub, listener: BounceListener, dsn: str
) -> None:
    _, sender = await sent(service, stub)
    listener.most = 2
    async with (
        MailExchanger(listener.port) as exchanger,
        MailExchanger(listener.port),
        MailExchanger(listener.port) as one_too_many,
    ):
        assert one_too_many.greeting == 421
        listener.reports._under_way = AT_ONCE  # type: ignore[attr-defined]
        assert await exchanger.notify(sender) == 451
        listener.reports._under_way = 0  # type: ignore[attr-defined]
        assert await exchanger.notify(sender) == 250
    await until_recorded(dsn, "registration.email_bounced")
    async with MailExchanger(listener.port) as exchanger:
        refused = [await exchanger.notify(f"{number}@mail.example.org") for number in range(MAX_MISTAKES)]
        assert refused == [550] * MAX_MISTAKES
        await exchanger.notify("once-more@mail.example.org")
        assert await exchanger.notify("once-more@mail.example.org") == 0


@pytest.mark.fault("E64")
async def test_a_thousand_notifications_at_once_are_each_recorded_or_refused_for_now(
    service: Service, stub: SmtpStub, listener: BounceListener, dsn: str
) -> None:
    """All of one mail: they are one bounce, however many there are."""
    _, sender = await sent(service, stub)

    async def exchange() -> list[int]:
        async with MailExchanger(listener.port) as exchanger:
            return [await exchanger.notify(sender) for _ in range(50)]

    codes = [code for some in await asyncio.gather(*(exchange() for _ in range(20))) for code in some]

    assert len(codes) == 1000
    assert set(codes) <= {250, 451}
    assert (await recorded(dsn))["registration.email_bounced"] == 1


@pytest.mark.fault("E65")
async def test_a_provider_reports_over_http_and_nobody_else_does(dsn: str) -> None:
    secret = "correct-horse-battery"
    async with open_api(dsn, bounce_address=ADDRESS, bounce_webhooks=f"postmark={secret}") as api:
        handlers, mailbox = api.service.handlers, api.service.mailbox
        assert mailbox is not None
        registration_id = (
            await handlers.handle(RegisterUser(email="ada@example.com", name="Ada"), client())
        ).subject_id
        await eventually(lambda: bool(mailbox.messages("ada@example.com")))
        [mail] = mailbox.messages("ada@example.com")
        token = mail.headers["X-PM-Metadata-registrar"]
        assert api.service.keyring.mail_of_bounce_token(token) == (registration_id, 1)
        event = {"RecordType": "SpamComplaint", "Type": "SpamComplaint", "Metadata": {"registrar": token}}

        forged = await api.http.post("/v1/bounces/postmark", json=event, auth=("any", "wrong-horse-battery"))
        unknown = await api.http.post("/v1/bounces/ses", json=event, auth=("any", secret))
        malformed = await api.http.post("/v1/bounces/postmark", content=b"{", auth=("any", secret))
        large = await api.http.post("/v1/bounces/postmark", content=b" " * 600_000, auth=("any", secret))
        assert [one.status_code for one in (forged, unknown, malformed, large)] == [401, 404, 422, 413]
        assert "email_complained" not in " ".join(await recorded(dsn))
        taken = [
            await api.http.post("/v1/bounces/postmark", content=json.dumps(event), auth=("any", secret)) for _ in "12"
        ]

        assert [one.status_code for one in taken] == [204, 204]
        assert (await recorded(dsn))["registration.email_complained"] == 1
        assert counted(api.service) == {"hard": 0, "soft": 0, "complaint": 1, "unknown": 1}
        again = await handlers.handle(RegisterUser(email="ada@example.com", name="Not Ada"), client())
        assert (await registration(api.service, again.subject_id)).withholds_mail(1)


async def test_an_operator_sees_which_mailboxes_are_sent_no_more_and_lifts_it(
    dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with open_api(dsn, bounce_address=ADDRESS, resend_cooldown="1ms") as api:
        silenced, calm = UUID(await api.registered("ada@example.com")), UUID(await api.registered("eve@example.com"))
        for _ in "12":
            complaint = RecordEmailComplained(registration_id=silenced, serial=1, reported_by="ses")
            await api.service.handlers.handle(complaint, Context("bounce-report", uuid4()))

        async def listed() -> list[str]:
            found = await api.http.get("/v1/admin/mail/suppressions", headers=ADMIN)
            return [one["registration_id"] for one in found.json()["items"]]

        await eventually(lambda: wanted(listed, [str(silenced)]))
        again = UUID((await api.register("ada+2@example.com")).json()["registration_id"])
        nothing = await api.http.post(f"/v1/admin/mail/{calm}/allow", headers=ADMIN)
        assert (nothing.status_code, await listed()) == (200, [str(silenced)])
        capsys.readouterr()
        who = ("Ada+3@example.com", "Ada@example.com", "nobody@example.com")
        done = [await mail.allow(api.service.desk, one, reason="ticket 4711", as_json=True) for one in who]

        printed = capsys.readouterr().out
        assert done == [0, 0, 1]
        assert [said in printed for said in ('"done"', '"nothing to do"', "example.com")] == [True, True, False]
        assert await listed() == []
        [act] = await query(dsn, "SELECT convert_from(state, 'UTF8')::jsonb FROM events WHERE topic = 'operator.acted'")
        assert (act[0]["act"], act[0]["registration_id"]) == ("allow-mailbox", str(again))
        await api.new_code(str(again))
        await eventually(lambda: bool(api.service.mailbox and api.service.mailbox.messages("ada+2@example.com")))


async def test_the_mailbox_of_an_imported_account_is_found_by_its_id(dsn: str) -> None:
    async with open_api(dsn, follows=False) as api:
        handlers, context = api.service.handlers, Context("bounce-report", uuid4())
        silenced = UUID((await api.register("ada@example.com")).json()["registration_id"])
        await handlers.handle(RecordEmailComplained(registration_id=silenced, serial=1, reported_by="ses"), context)
        user = ImportedUser(email="Ada+shop@example.com", name="Ada", verified=True)
        await handlers.handle(ImportUsers(import_id=uuid4(), users=(user,)), context)
        [[account]] = await query(dsn, "SELECT originator_id FROM events WHERE topic = 'registration.user_imported'")

        done = [await api.http.post(f"/v1/admin/mail/{account}/allow", headers=ADMIN) for _ in "12"]

        assert [answered.status_code for answered in done] == [200, 200]
        [[acts]] = await query(dsn, "SELECT count(*) FROM events WHERE topic = 'operator.acted'")
        assert acts == 1, "the second one has no effect"


async def wanted(asked: Callable[[], Awaitable[object]], answer: object) -> bool:
    return await asked() == answer


async def test_there_is_no_webhook_unless_a_secret_is_set(dsn: str) -> None:
    async with open_api(dsn, follows=False) as api:
        answered = await api.http.post("/v1/bounces/postmark", json={})

    assert answered.status_code == 404
