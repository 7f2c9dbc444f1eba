"""What mail providers report by webhook: whether it is they who call, and what their events say.

An event names its mail by the token of its bounce address, wherever in it the provider repeats what it was given: the
envelope's sender or a header. So an event that is signed well, but about no mail of ours, changes nothing.
"""

from __future__ import annotations

import hmac
import json
import re
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from typing import Any, Final, Literal

from domain.mail_outcome import Bounce
from infrastructure.bounces.addresses import TOKEN
from infrastructure.bounces.notices import bounce_of

Said = Bounce | Literal["complained"] | None
"""None: nothing that changes anything; it was delivered, or is still being tried."""

TOLERANCE: Final = timedelta(minutes=5)
"""How far the time in a signature may be from ours. A repeat within it records nothing new."""

_TOKEN: Final = re.compile(rf"(?<![a-z2-7])[a-z2-7]{{{TOKEN}}}(?![a-z2-7])", re.IGNORECASE)
_WRONG: Final = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""What a header or a body leads to that is not what a provider sends; `binascii.Error` is a `ValueError`."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request to a webhook.

    Attributes:
        headers: by name, in lower case.
    """

    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Provider:
    """How one of them signs, and what it says.

    Attributes:
        signed: was the call made with this secret, at a time like this (seconds since the epoch)?
        events: those of a body; raises what is in `_WRONG` where it is none.
        said: what one of them says.
    """

    signed: Callable[[Call, str, float], bool]
    events: Callable[[Any], list[Any]]
    said: Callable[[Mapping[str, Any]], Said]


def is_signed(provider: str, call: Call, secret: str, now: float) -> bool:
    """Was it the provider who called? Whatever the call is, without an error."""
    try:
        return PROVIDERS[provider].signed(call, secret, now)
    except _WRONG:
        return False


def read_events(provider: str, body: bytes) -> Iterator[tuple[list[str], Said]]:
    """Each event's possible tokens, and what it says.

    Raises:
        ValueError: it is not what the provider sends.
    """
    known = PROVIDERS[provider]
    try:
        events = known.events(json.loads(body))
    except _WRONG:
        raise ValueError("not what this provider sends") from None
    for event in events:
        try:
            said = known.said(event)
        except _WRONG:
            continue  # of a kind that is not known here
        if said is not None:
            yield _TOKEN.findall(json.dumps(event)), said


# --- Signatures -------------------------------------------------------------------------------


def _by_password(call: Call, secret: str, _now: float) -> bool:
    """HTTP Basic, as in `https://any:SECRET@host/…`."""
    kind, _, credentials = call.headers["authorization"].partition(" ")
    password = b64decode(credentials, validate=True).partition(b":")[2]
    return kind.lower() == "basic" and hmac.compare_digest(password, secret.encode())


def _by_mailgun(call: Call, secret: str, now: float) -> bool:
    signature = json.loads(call.body)["signature"]
    signed = f"{signature['timestamp']}{signature['token']}".encode()
    expected = hmac.digest(secret.encode(), signed, "sha256").hex()
    return _is_recent(signature["timestamp"], now) and hmac.compare_digest(
        expected.encode(), str(signature["signature"]).encode()
    )


def _by_sendgrid(call: Call, secret: str, now: float) -> bool:
    # Loaded where it is needed: elsewhere nothing verifies an ECDSA signature.
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey  # noqa: PLC0415
    from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_der_public_key  # noqa: PLC0415

    timestamp = call.headers["x-twilio-email-event-webhook-timestamp"]
    signature = b64decode(call.headers["x-twilio-email-event-webhook-signature"], validate=True)
    key = load_der_public_key(b64decode(secret, validate=True))
    if not isinstance(key, EllipticCurvePublicKey) or not _is_recent(timestamp, now):
        return False
    try:
        key.verify(signature, timestamp.encode() + call.body, ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True


def _by_standard_webhooks(call: Call, secret: str, now: float) -> bool:
    """Standard Webhooks, v1 (HMAC), under the names of Svix."""
    sent, timestamp = call.headers["svix-id"], call.headers["svix-timestamp"]
    key = b64decode(secret.removeprefix("whsec_"), validate=True)
    expected = hmac.digest(key, f"{sent}.{timestamp}.".encode() + call.body, sha256)
    given = [one.partition(",") for one in call.headers["svix-signature"].split()]
    return _is_recent(timestamp, now) and any(
        version == "v1" and hmac.compare_digest(b64decode(signature), expected) for version, _, signature in given
    )


def _is_recent(timestamp: object, now: float) -> bool:
    return abs(now - int(str(timestamp))) <= TOLERANCE.total_seconds()


# --- Events -----------------------------------------------------------------------------------


def _ses_events(body: Any) -> list[Any]:
    """SES's own, or wrapped by SNS; the request to confirm a subscription has none."""
    if "Type" not in body:
        return [body]
    return [json.loads(body["Message"])] if body["Type"] == "Notification" else []


def _ses(event: Mapping[str, Any]) -> Said:
    kind = event.get("notificationType") or event["eventType"]
    if kind == "Complaint":
        # As the recipient's provider has it (RFC 5965, 7.3): "not-spam", say, is none.
        what = (event.get("complaint") or {}).get("complaintFeedbackType")
        return "complained" if what in {None, "abuse", "fraud"} else None
    if kind != "Bounce":
        return None
    bounce = event["bounce"]
    status = next((one.get("status") for one in bounce.get("bouncedRecipients", [])), None)
    permanent = bounce["bounceType"] == "Permanent"
    return _at_most(bounce_of(status, permanent=permanent, reported_by="ses"), permanent=permanent)


_POSTMARK: Final = {
    "HardBounce": True,
    "BadEmailAddress": True,
    "SoftBounce": False,
    "DnsError": False,
    "Blocked": False,
}
"""Types that say that a mail came back, and whether for good; others are still being tried, or no bounces."""


def _postmark(event: Mapping[str, Any]) -> Said:
    if event["RecordType"] == "SpamComplaint" or event.get("Type") == "SpamComplaint":
        return "complained"
    permanent = _POSTMARK.get(event.get("Type", ""))
    if event["RecordType"] != "Bounce" or permanent is None:
        return None
    return _at_most(bounce_of(None, permanent=permanent, reported_by="postmark"), permanent=permanent)


def _mailgun(event: Mapping[str, Any]) -> Said:
    if event["event"] == "complained":
        return "complained"
    if event["event"] != "failed" or event["severity"] != "permanent":
        return None  # a temporary failure is tried again there
    return bounce_of(event.get("delivery-status", {}).get("enhanced-code"), reported_by="mailgun")


def _sendgrid(event: Mapping[str, Any]) -> Said:
    if event["event"] == "spamreport":
        return "complained"
    if event["event"] not in {"bounce", "dropped"}:
        return None
    blocked = event.get("type") == "blocked"
    return _at_most(bounce_of(event.get("status"), reported_by="sendgrid"), permanent=not blocked)


def _resend(event: Mapping[str, Any]) -> Said:
    if event["type"] == "email.complained":
        return "complained"
    if event["type"] != "email.bounced":
        return None
    permanent = event["data"]["bounce"]["type"] == "Permanent"
    return bounce_of(None, permanent=permanent, reported_by="resend")


def _at_most(bounce: Bounce, *, permanent: bool) -> Bounce:
    """What a provider takes for temporary is not for good, whatever the status says."""
    if permanent or not bounce.permanent:
        return bounce
    return Bounce("temporary", permanent=False, reply_status=bounce.reply_status, reported_by=bounce.reported_by)


PROVIDERS: Final[Mapping[str, Provider]] = {
    "ses": Provider(_by_password, _ses_events, _ses),
    "postmark": Provider(_by_password, lambda body: [body], _postmark),
    "mailgun": Provider(_by_mailgun, lambda body: [body["event-data"]], _mailgun),
    "sendgrid": Provider(_by_sendgrid, list, _sendgrid),
    "resend": Provider(_by_standard_webhooks, lambda body: [body], _resend),
}
