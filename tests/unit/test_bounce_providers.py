"""Each provider's webhook: who is taken for it, and what its events say."""

from __future__ import annotations

import asyncio
import hmac
import json
from base64 import b64encode
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from standardwebhooks import Webhook

from application import bounce_reports
from application.ports import Unavailable
from domain.mail_outcome import Bounce
from infrastructure.bounces.addresses import BounceAddresses
from infrastructure.bounces.providers import PROVIDERS
from infrastructure.bounces.webhooks import AT_ONCE, BounceWebhooks
from infrastructure.settings.bounces import BOUNCE_PROVIDERS
from infrastructure.settings.environment import BadSettings
from infrastructure.settings.settings import Settings
from tests.support.bounces import Reported
from tests.support.scenarios import KEYRING

REGISTRATION = UUID("019cab10-0000-7000-8000-000000000001")
TOKEN = KEYRING.bounce_token(REGISTRATION, 2)
SENDER = BounceAddresses("bounces@mail.example.org", KEYRING).of(REGISTRATION, 2)
NOW = 1_790_000_000.0
PRIVATE = ec.generate_private_key(ec.SECP256R1())
SECRETS = {
    "ses": "correct-horse-battery",
    "postmark": "correct-horse-battery",
    "mailgun": "key-0123456789abcdef0123456789abcdef",
    "sendgrid": b64encode(PRIVATE.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).decode(),
    "resend": "whsec_" + b64encode(b"k" * 24).decode(),
}


def webhooks(reported: Reported, confirm: Callable[[str], None] | None = None) -> BounceWebhooks:
    return BounceWebhooks(SECRETS, KEYRING, reported, now=lambda: NOW, confirm=confirm)


def basic(_body: bytes) -> dict[str, str]:
    return {"authorization": "Basic " + b64encode(b"registrar:correct-horse-battery").decode()}


def twilio(body: bytes, at: float = NOW) -> dict[str, str]:
    timestamp = str(int(at))
    return {
        "x-twilio-email-event-webhook-timestamp": timestamp,
        "x-twilio-email-event-webhook-signature": b64encode(
            PRIVATE.sign(timestamp.encode() + body, ec.ECDSA(SHA256()))
        ).decode(),
    }


def svix(body: bytes, at: float = NOW) -> dict[str, str]:
    signature = Webhook(SECRETS["resend"]).sign("msg_1", datetime.fromtimestamp(at, UTC), body.decode())
    return {"svix-id": "msg_1", "svix-timestamp": str(int(at)), "svix-signature": f"v1a,AAAA {signature}"}


def mailgun(event: dict[str, Any], at: float = NOW) -> dict[str, Any]:
    timestamp, token = str(int(at)), "t" * 50
    signature = hmac.digest(SECRETS["mailgun"].encode(), f"{timestamp}{token}".encode(), "sha256").hex()
    return {"signature": {"timestamp": timestamp, "token": token, "signature": signature}, "event-data": event}


def ses(event: dict[str, Any]) -> dict[str, Any]:
    return {"Type": "Notification", "Message": json.dumps({"mail": {"source": SENDER}, **event})}


def bounce(by: str, failure: str, status: str | None, *, permanent: bool = True) -> Bounce:
    return Bounce(failure, permanent, status, by)  # type: ignore[arg-type]


_META = {"Metadata": {"registrar": TOKEN}}
_VARIABLES = {"user-variables": {"registrar": TOKEN}}
_FAILED = {"event": "failed", "severity": "permanent", **_VARIABLES}
EVENTS: list[tuple[str, Any, Bounce | str | None]] = [
    ("ses", ses({"notificationType": "Bounce", "bounce": {"bounceType": "Permanent", "bouncedRecipients": [{"status": "5.1.1"}]}}), bounce("ses", "mailbox-unknown", "5.1.1")),
    ("ses", ses({"eventType": "Bounce", "bounce": {"bounceType": "Transient", "bouncedRecipients": [{"status": "5.3.0"}]}}), bounce("ses", "temporary", "5.3.0", permanent=False)),
    ("ses", ses({"notificationType": "Complaint"}), "ses"),
    ("ses", ses({"notificationType": "Complaint", "complaint": {"complaintFeedbackType": "abuse"}}), "ses"),
    ("ses", ses({"notificationType": "Complaint", "complaint": {"complaintFeedbackType": "not-spam"}}), None),
    ("ses", ses({"notificationType": "Delivery"}), None),
    ("postmark", {"RecordType": "Bounce", "Type": "HardBounce", **_META}, bounce("postmark", "permanent", None)),
    ("postmark", {"RecordType": "Bounce", "Type": "SoftBounce", **_META}, bounce("postmark", "temporary", None, permanent=False)),
    ("postmark", {"RecordType": "Bounce", "Type": "Transient", **_META}, None),
    ("postmark", {"RecordType": "SpamComplaint", "Type": "SpamComplaint", **_META}, "postmark"),
    ("mailgun", mailgun({**_FAILED, "delivery-status": {"enhanced-code": "5.1.1"}}), bounce("mailgun", "mailbox-unknown", "5.1.1")),
    ("mailgun", mailgun({**_FAILED, "delivery-status": {"enhanced-code": "4.4.7"}}), bounce("mailgun", "temporary", "4.4.7", permanent=False)),
    ("mailgun", mailgun({**_FAILED, "severity": "temporary"}), None),
    ("mailgun", mailgun({"event": "complained", "envelope": {"sender": SENDER}}), "mailgun"),
    ("sendgrid", [{"event": "delivered", "registrar": TOKEN}, {"event": "bounce", "type": "bounce", "status": "5.1.1", "registrar": TOKEN}], bounce("sendgrid", "mailbox-unknown", "5.1.1")),
    ("sendgrid", [{"event": "bounce", "type": "blocked", "status": "5.7.1", "registrar": TOKEN}], bounce("sendgrid", "temporary", "5.7.1", permanent=False)),
    ("sendgrid", [{"event": "deferred", "registrar": TOKEN}], None),
    ("sendgrid", [{"event": "spamreport", "registrar": TOKEN}], "sendgrid"),
    ("resend", {"type": "email.bounced", "data": {"bounce": {"type": "Permanent"}, "headers": [{"name": "X-Entity-Ref-ID", "value": TOKEN}]}}, bounce("resend", "permanent", None)),
    ("resend", {"type": "email.complained", "data": {"tags": {"registrar": TOKEN}}}, "resend"),
    ("resend", {"type": "email.delivered", "data": {"from": SENDER}}, None),
]  # fmt: skip

SIGNED: dict[str, Callable[[bytes], dict[str, str]]] = {
    "ses": basic, "postmark": basic, "mailgun": lambda _: {}, "sendgrid": twilio, "resend": svix,
}  # fmt: skip


@pytest.mark.parametrize(("provider", "event", "said"), EVENTS)
async def test_what_a_provider_says_is_reported_of_the_mail_that_it_names(
    provider: str, event: Any, said: Bounce | str | None
) -> None:
    reported, body = Reported(), json.dumps(event).encode()

    assert webhooks(reported).trusts(provider, SIGNED[provider](body), body)
    await webhooks(reported).take(provider, body)

    assert reported.told == ([] if said is None else [(REGISTRATION, 2, said)])


@pytest.mark.parametrize("provider", BOUNCE_PROVIDERS)
async def test_an_event_about_no_mail_of_ours_changes_nothing(provider: str) -> None:
    reported, forged = Reported(), "a" * 48
    says = [said for by, _, said in EVENTS if by == provider and said is not None]

    for by, event, _ in EVENTS:
        if by == provider:
            await webhooks(reported).take(provider, json.dumps(event).replace(TOKEN, forged).encode())

    assert (reported.told, reported.of_nothing) == ([], len(says))


@pytest.mark.fault("E65")
@pytest.mark.parametrize("provider", BOUNCE_PROVIDERS)
def test_nobody_else_is_taken_for_a_provider(provider: str) -> None:
    reported = Reported()
    hooks = webhooks(reported)
    event = next(event for by, event, said in EVENTS if by == provider and said is not None)
    body = json.dumps(event).encode()
    headers = SIGNED[provider](body)
    assert hooks.trusts(provider, headers, body)
    assert reported.of_nothing == 0

    for name in headers:
        assert not hooks.trusts(provider, {**headers, name: headers[name][:-6] + "AAAAAA"}, body)
        assert not hooks.trusts(provider, {one: headers[one] for one in headers if one != name}, body)
        assert not hooks.trusts(provider, {**headers, name: "\xff="}, body)
    if provider == "mailgun":
        assert not hooks.trusts(provider, {}, body.replace(b'"signature": "', b'"signature": "0'))
        assert not hooks.trusts(provider, {}, b"[]")
    if provider in {"sendgrid", "resend"}:
        assert not hooks.trusts(provider, headers, body + b" ")
    assert reported.of_nothing > 0


@pytest.mark.parametrize("ago", [301, -301])
def test_a_signature_of_another_time_does_not_count(ago: int) -> None:
    hooks = webhooks(Reported())
    old = json.dumps(mailgun(_FAILED, at=NOW - ago)).encode()

    assert not hooks.trusts("mailgun", {}, old)
    assert not hooks.trusts("sendgrid", twilio(b"[]", at=NOW - ago), b"[]")
    assert not hooks.trusts("resend", svix(b"{}", at=NOW - ago), b"{}")


@pytest.mark.parametrize("at", ["9" * 400, "-1", "", "now", None, [[]]])
def test_what_is_no_time_is_not_trusted_either(at: Any) -> None:
    hooks = webhooks(Reported())
    headers = twilio(b"[]", at=NOW)
    timestamp = "x-twilio-email-event-webhook-timestamp"

    assert not hooks.trusts(
        "mailgun", {}, json.dumps({"signature": {"timestamp": at, "token": "", "signature": ""}}).encode()
    )
    assert not hooks.trusts("sendgrid", headers | {timestamp: str(at)}, b"[]")
    assert not hooks.trusts("resend", svix(b"{}", at=NOW) | {"svix-timestamp": str(at)}, b"{}")


async def test_of_a_long_call_all_is_reported_and_no_more_at_once_than_others_leave_room_for() -> None:
    class Counted(Reported):
        under_way = most = 0

        async def complained(self, registration_id: UUID, serial: int, reported_by: str) -> None:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            await asyncio.sleep(0)
            await super().complained(registration_id, serial, reported_by)
            self.under_way -= 1

    reported = Counted()
    unwanted = {"event": "spamreport", "registrar": TOKEN}

    await webhooks(reported).take("sendgrid", json.dumps([unwanted] * 200).encode())

    assert len(reported.told) == 200
    assert reported.most == AT_ONCE < bounce_reports.AT_ONCE


async def test_what_is_early_holds_up_nothing_else_of_its_call() -> None:
    class Early(Reported):
        async def bounced(self, registration_id: UUID, serial: int, bounce: Bounce) -> None:
            raise Unavailable("not handed over yet")

    reported = Early()
    came_back = {"event": "bounce", "type": "bounce", "status": "5.1.1", "registrar": TOKEN}
    unwanted = {"event": "spamreport", "registrar": TOKEN}

    with pytest.raises(Unavailable):
        await webhooks(reported).take("sendgrid", json.dumps([came_back, unwanted]).encode())

    assert reported.told == [(REGISTRATION, 2, "sendgrid")]


@pytest.mark.parametrize("provider", BOUNCE_PROVIDERS)
@pytest.mark.parametrize("body", [b"", b"\xff", b"null", b"7", b'{"a":1}', b"[" * 5000])
async def test_what_is_no_event_is_malformed_or_says_nothing(provider: str, body: bytes) -> None:
    reported = Reported()

    try:
        await webhooks(reported).take(provider, body)
    except ValueError as error:
        assert str(error) == "not what this provider sends"  # noqa: PT017 - either is right

    assert reported.told == []


@pytest.mark.parametrize(
    ("url", "confirmed"),
    [
        ("https://sns.eu-central-1.amazonaws.com/?Action=ConfirmSubscription&Token=x", True),
        ("http://sns.eu-central-1.amazonaws.com/?Action=ConfirmSubscription", False),
        ("https://sns.eu-central-1.amazonaws.com.evil.example/?Action=ConfirmSubscription", False),
        ("https://evil.example/?https://sns.eu-central-1.amazonaws.com/?a", False),
        ("file:///etc/passwd", False),
        (7, False),
    ],
)
async def test_a_subscription_is_confirmed_at_sns_and_nowhere_else(url: object, confirmed: bool) -> None:
    called: list[str] = []
    body = json.dumps({"Type": "SubscriptionConfirmation", "SubscribeURL": url}).encode()

    await webhooks(Reported(), called.append).take("ses", body)

    assert called == ([url] if confirmed else [])


def test_every_provider_that_can_be_set_is_known() -> None:
    assert {*PROVIDERS} == {*BOUNCE_PROVIDERS}


@pytest.mark.parametrize(
    "value", ["postmark", "postmark=short", "other=0123456789abcdef", f"ses={'x' * 16},ses={'y' * 16}"]
)
def test_a_setting_that_cannot_be_used_is_refused_without_its_secret(value: str) -> None:
    with pytest.raises(BadSettings) as refused:
        Settings.from_environment({"REGISTRAR_BOUNCE_WEBHOOKS": value})

    assert "REGISTRAR_BOUNCE_WEBHOOKS" in str(refused.value)
    assert "short" not in str(refused.value).replace("shorter", "")
