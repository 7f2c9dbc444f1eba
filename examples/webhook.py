"""An application that hears of registrations by webhooks: verifies each call, and prints what it is told once.

    python examples/webhook.py 3000 whsec_…

Keys are secrets that Registrar has, too (whsec_…), or public keys of it (whpk_…, as `registrar webhooks list` shows
them; these need the package `cryptography`). During a rotation give the old one and the new one.
"""

from __future__ import annotations

import base64
import hmac
import json
import sys
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOLERANCE = 5 * 60
"""Seconds that a call may be old: whoever has recorded one cannot send it again later."""


def verify(keys: Sequence[str], message_id: str, timestamp: str, signatures: str, body: bytes) -> bool:
    """Was this signed with one of the keys, and just now? `body` are the bytes as they came, before any parsing."""
    if not timestamp.isdigit() or abs(time.time() - int(timestamp)) > TOLERANCE:
        return False
    signed = f"{message_id}.{timestamp}.".encode() + body
    for key in keys:
        kind, _, encoded = key.partition("_")
        raw = base64.b64decode(encoded + "=" * (-len(encoded) % 4))
        for one in signatures.split(" "):
            version, _, signature = one.partition(",")
            if (kind, version) == ("whsec", "v1") and _same(raw, signed, signature):
                return True
            if (kind, version) == ("whpk", "v1a") and _signed_by(raw, signed, signature):
                return True
    return False


def _same(secret: bytes, signed: bytes, signature: str) -> bool:
    expected = base64.b64encode(hmac.digest(secret, signed, "sha256"))
    return hmac.compare_digest(expected, signature.encode())


def _signed_by(public_key: bytes, signed: bytes, signature: str) -> bool:
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - needed for public keys only
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415 - the same

    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(base64.b64decode(signature), signed)
    except (InvalidSignature, ValueError):
        return False
    return True


class Receiver(BaseHTTPRequestHandler):
    """Answers 204 once it has done what is to be done; anything else is sent again."""

    protocol_version = "HTTP/1.1"  # connections are kept
    keys: Sequence[str] = ()
    seen: set[str] = set()  # noqa: RUF012 - in earnest a table, written in the transaction of what the event leads to

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        message_id, sent_at, signatures = (
            self.headers.get(f"webhook-{name}", "") for name in ("id", "timestamp", "signature")
        )
        if not verify(self.keys, message_id, sent_at, signatures, body):
            self._answer(401)
            return
        if message_id not in self.seen:
            event = json.loads(body)
            print(event["type"], event.get("subject", ""), flush=True)
            self.seen.add(message_id)
        self._answer(204)

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    Receiver.keys = sys.argv[2:]
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver)
    print("listening", server.server_port, flush=True)
    server.serve_forever()
