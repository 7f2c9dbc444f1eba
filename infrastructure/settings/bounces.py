"""Settings about bounces: the address that names mails, and the providers that may report."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import BeforeValidator, SecretStr

from infrastructure.settings.entries import each
from infrastructure.settings.sender import mailbox

LONGEST_BOUNCE_LOCAL_PART: Final = 15
"""Characters of `BOUNCE_ADDRESS` before the @: with a plus sign and a token of 48 they are 64 (RFC 5321, 4.5.3.1.1)."""


def _bounce_address(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        address = mailbox(value)
    except ValueError:
        raise ValueError("is not a mail address without a name") from None
    if len(address.rpartition("@")[0]) > LONGEST_BOUNCE_LOCAL_PART:
        raise ValueError(f"has more than {LONGEST_BOUNCE_LOCAL_PART} characters before the @, where a token is added")
    return address


BOUNCE_PROVIDERS: Final = ("ses", "postmark", "mailgun", "sendgrid", "resend")
BOUNCE_HEADERS: Final = {
    "postmark": "X-PM-Metadata-registrar: {token}",
    "mailgun": 'X-Mailgun-Variables: {"registrar":\r\n "{token}"}',
    "sendgrid": 'X-SMTPAPI: {"unique_args": {"registrar":\r\n "{token}"}}',
    "resend": "X-Entity-Ref-ID: {token}",
}
"""What a provider is to repeat in what it reports of a mail; SES repeats the envelope's sender."""

SHORTEST_BOUNCE_SECRET: Final = 16
"""Characters; some are passwords, at which anybody may guess."""


def bounce_webhooks(text: str) -> dict[str, str]:
    """Each provider and its secret, of `postmark=SECRET, mailgun=KEY`.

    Raises:
        ValueError: it is not written like this. The message completes "BOUNCE_WEBHOOKS …", and has no secret in it.
    """
    found: dict[str, str] = {}

    def find(entry: str) -> None:
        provider, _, secret = (part.strip() for part in entry.partition("="))
        if provider not in BOUNCE_PROVIDERS:
            raise ValueError(f"is not a provider ({', '.join(BOUNCE_PROVIDERS)}) with = and a secret")
        if provider in found:
            raise ValueError(f"is the second one of {provider}")
        if len(secret) < SHORTEST_BOUNCE_SECRET:
            raise ValueError(f"has a secret of fewer than {SHORTEST_BOUNCE_SECRET} characters")
        found[provider] = secret

    each(filter(None, map(str.strip, re.split(r"[,\n]", text))), find)
    return found


def _bounce_webhooks(value: object) -> object:
    if isinstance(value, str):
        bounce_webhooks(value)
    return value


BounceAddress = Annotated[str, BeforeValidator(_bounce_address)]
BounceSecrets = Annotated[SecretStr, BeforeValidator(_bounce_webhooks)]
