"""What makes a call worth believing: its id, its time, and the signatures over both and the body.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md, 1.0.0. The libraries that we
know of verify `v1` alone; `docs/webhooks.md` shows how `v1a` is verified.
"""

# ruff: noqa: PLC0415 - as in `cli.main`: Ed25519 is loaded where there is a key for it
from __future__ import annotations

import hmac
from base64 import b64encode
from collections.abc import Callable
from typing import Final

from infrastructure.settings.webhooks import WebhookEndpoint

PUBLIC: Final = "whpk_"
"""Begins the public half of an Ed25519 key."""

Sign = Callable[[bytes], bytes]


class Signer:
    """Signs the calls to one endpoint with each of its secrets: during a rotation with the old one and the new one."""

    def __init__(self, endpoint: WebhookEndpoint) -> None:
        self._signs: list[tuple[bytes, Sign]] = [(b"v1,", _shared(secret)) for secret in endpoint.secrets]
        self._signs += [(b"v1a,", _private(key)) for key in endpoint.private_keys]

    def headers(self, message_id: str, sent_at: int, body: bytes) -> bytes:
        """The three lines of a request's head.

        Args:
            message_id: the same in every try, and without a full stop.
            sent_at: seconds since 1970 at this try.
        """
        head = f"{message_id}.{sent_at}.".encode()
        signatures = b" ".join(kind + b64encode(sign(head + body)) for kind, sign in self._signs)
        return (
            f"webhook-id: {message_id}\r\nwebhook-timestamp: {sent_at}\r\n".encode()
            + b"webhook-signature: %b\r\n" % signatures
        )


def _shared(secret: bytes) -> Sign:
    return lambda signed: hmac.digest(secret, signed, "sha256")


def _private(seed: bytes) -> Sign:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(seed).sign


def public_keys(endpoint: WebhookEndpoint) -> tuple[str, ...]:
    """What an endpoint verifies `v1a` with."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    keys = [Ed25519PrivateKey.from_private_bytes(seed).public_key() for seed in endpoint.private_keys]
    return tuple(PUBLIC + b64encode(key.public_bytes_raw()).decode() for key in keys)
