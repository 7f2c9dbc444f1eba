"""Logs in memory, with the tree over their blocks and its checkpoint: made by the definitions, not by our code.

Only the digests and hashes of events and blocks are the event store's own, so that a verifier is compared with it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from infrastructure.event_store.chain import BEFORE_ALL, block_hash, event_digest

ORIGIN = "registrar/0123456789abcdef"
START = datetime(2026, 11, 28, 15, 4, 5, 678901, UTC)
TOLD = UUID("01900000-0000-7000-8000-000000000001")
SAGA = UUID("01900000-0000-5000-8000-000000000002")
OTHER = UUID("01900000-0000-7000-8000-000000000003")


# --- Signatures -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Signer:
    """A key of the test: `cosigns` makes it that of a witness."""

    name: str = ORIGIN
    seed: bytes = bytes(32)
    cosigns: datetime | None = None

    @property
    def key(self) -> str:
        return f"{self.name}+{self._id.hex()}+{base64.b64encode(self._public).decode()}"

    @property
    def _public(self) -> bytes:
        public = Ed25519PrivateKey.from_private_bytes(self.seed).public_key().public_bytes_raw()
        return (b"\1" if self.cosigns is None else b"\4") + public

    @property
    def _id(self) -> bytes:
        return sha256(self.name.encode() + b"\n" + self._public).digest()[:4]

    def line(self, text: str) -> str:
        private = Ed25519PrivateKey.from_private_bytes(self.seed)
        if self.cosigns is None:
            signature = private.sign(text.encode())
        else:
            time = int(self.cosigns.timestamp())
            signature = time.to_bytes(8, "big") + private.sign(f"cosignature/v1\ntime {time}\n{text}".encode())
        return f"— {self.name} {base64.b64encode(self._id + signature).decode()}\n"


# --- Trees, by the definitions of RFC 6962, 2.1 -----------------------------------------------------------------


def tree_root(leaves: Sequence[bytes]) -> bytes:
    """MTH, of leaves that are hashed already."""
    if len(leaves) < 2:
        return leaves[0] if leaves else sha256(b"").digest()
    split = _split(len(leaves))
    return sha256(b"\1" + tree_root(leaves[:split]) + tree_root(leaves[split:])).digest()


def audit_path(index: int, leaves: Sequence[bytes]) -> list[bytes]:
    """PATH."""
    if len(leaves) == 1:
        return []
    split = _split(len(leaves))
    if index < split:
        return [*audit_path(index, leaves[:split]), tree_root(leaves[split:])]
    return [*audit_path(index - split, leaves[split:]), tree_root(leaves[:split])]


def consistency(old: int, leaves: Sequence[bytes]) -> list[bytes]:
    """PROOF: that the tree continues the one of its first `old` leaves."""
    return _subproof(old, leaves, whole=True) if 0 < old < len(leaves) else []


def _subproof(old: int, leaves: Sequence[bytes], *, whole: bool) -> list[bytes]:
    if old == len(leaves):
        return [] if whole else [tree_root(leaves)]
    split = _split(len(leaves))
    if old <= split:
        return [*_subproof(old, leaves[:split], whole=whole), tree_root(leaves[split:])]
    return [*_subproof(old - split, leaves[split:], whole=False), tree_root(leaves[:split])]


def _split(size: int) -> int:
    """The largest power of two below the size."""
    return 1 << (size - 1).bit_length() - 1


# --- Logs -------------------------------------------------------------------------------------------------------


def event(stream: UUID, version: int, type_: str, state: Mapping[str, Any] | bytes, **changed: Any) -> dict[str, Any]:
    """An event as a proof has it."""
    if isinstance(state, bytes):
        how = {"state_base64": base64.b64encode(state).decode()}
    else:
        how = {"state": json.dumps(state, separators=(",", ":"))}
    return {
        "stream_id": str(stream),
        "version": version,
        "type": type_,
        "correlation_id": "01900000-0000-7000-8000-0000000000ff",
        "causation_position": None,
        "actor": "client",
        "trace": None,
        **how,
        **changed,
    }


def about_another(version: int) -> dict[str, Any]:
    return event(OTHER, version, "registration.otp_issued", {"serial": version})


def digest_of(entry: Mapping[str, Any]) -> bytes:
    state = entry["state"].encode() if "state" in entry else base64.b64decode(entry["state_base64"])
    return event_digest(
        UUID(entry["stream_id"]), entry["version"], entry["type"], state, UUID(entry["correlation_id"]),
        entry["causation_position"], entry["actor"], entry["trace"],
    )  # fmt: skip


@dataclass
class Log:
    """Blocks of events, one after the other."""

    blocks: list[list[dict[str, Any]]] = field(default_factory=list)

    @property
    def position(self) -> int:
        return sum(map(len, self.blocks))

    def hashes(self) -> list[bytes]:
        """Of the blocks, each over the one before."""
        found: list[bytes] = []
        first = 1
        for number, block in enumerate(self.blocks):
            before = found[-1] if found else BEFORE_ALL
            found.append(block_hash(before, first, _time(number), map(digest_of, block)))
            first += len(block)
        return found

    def leaves(self) -> list[bytes]:
        return [sha256(b"\0" + one).digest() for one in self.hashes()]

    def checkpoint(self, *signers: Signer) -> str:
        leaves = self.leaves()
        root = base64.b64encode(tree_root(leaves)).decode()
        text = f"{ORIGIN}\n{len(leaves)}\n{root}\nposition {self.position}\ntime 2026-11-28T16:00:00Z\n"
        return text + "\n" + "".join(signer.line(text) for signer in signers or (Signer(),))

    def proof(self, registration_id: UUID = TOLD, *signers: Signer) -> dict[str, Any]:
        """What `registrar audit prove` writes about it."""
        hashes, leaves = self.hashes(), self.leaves()
        blocks = []
        first = 1
        for number, block in enumerate(self.blocks):
            entries = [entry if _is_about(entry, registration_id) else digest_of(entry).hex() for entry in block]
            if any(isinstance(entry, dict) for entry in entries):
                blocks.append(
                    {
                        "index": number,
                        "previous_hash": (hashes[number - 1] if number else BEFORE_ALL).hex(),
                        "first_position": first,
                        "recorded_at": _time(number).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
                        "inclusion": [one.hex() for one in audit_path(number, leaves)],
                        "events": entries,
                    }
                )
            first += len(block)
        return {
            "format": "registrar proof",
            "version": 1,
            "registration_id": str(registration_id),
            "checkpoint": self.checkpoint(*signers),
            "blocks": blocks,
        }


def _time(number: int) -> datetime:
    return START + timedelta(milliseconds=250 * number)


def _is_about(entry: Mapping[str, Any], registration_id: UUID) -> bool:
    return str(registration_id) in (entry["stream_id"], json.loads(entry.get("state", "{}")).get("registration_id"))


def a_log() -> Log:
    """A registration from its beginning to its end, among others, in 11 blocks."""
    about = {"registration_id": str(TOLD)}
    return Log(
        [
            [about_another(1)],
            [
                event(TOLD, 1, "registration.user_registered", {"locale": "en", "personal_data": "c2VhbGVk"}),
                about_another(2),
                event(TOLD, 2, "registration.otp_issued", {"serial": 1}, trace="00-aa-bb-01"),
            ],
            [event(SAGA, 1, "mail_saga.started", about, actor="mail-saga", causation_position=2), about_another(3)],
            [about_another(4)],
            [
                about_another(5),
                event(SAGA, 2, "mail_saga.mail_requested", about, actor="mail-saga", causation_position=4),
            ],
            [event(TOLD, 3, "registration.email_dispatched", {"serial": 1}, actor="mail-worker")],
            [about_another(6), about_another(7)],
            [
                event(TOLD, 4, "registration.email_verified", {"serial": 1}),
                event(UUID(int=7), 3, "email_claim.email_claimed", about),
            ],
            [event(TOLD, 5, "registration.account_activated", b"\xff\x00 not JSON", actor="mail-saga")],
            [about_another(8)],
            [about_another(9)],
        ]
    )
