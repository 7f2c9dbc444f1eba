"""Witnesses: others who cosign our checkpoints (https://c2sp.org/tlog-witness).

A witness keeps the largest tree that it has seen of a log, and cosigns another one only with a proof that it continues
that one. So a log that shows one history to some and another to others, or goes back behind what it has shown, finds
nobody who cosigns. A checkpoint is published with whatever cosignatures there are by the deadline, be it none.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Final, Literal, NamedTuple
from urllib.parse import urlsplit

import h11
import structlog
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from infrastructure.reach import open_streams
from infrastructure.settings.witnesses import WitnessAddress

log = structlog.get_logger(__name__)

DEADLINE: Final = timedelta(seconds=3)
"""For all witnesses together, from the first call to the last answer: a checkpoint waits no longer."""

MOST_BYTES: Final = 64 << 10
"""Of an answer; a cosignature has some 150, one of ML-DSA-44 3,400."""

Outcome = Literal["cosigned", "away", "refused", "ahead", "forked"]
"""Of asking a witness: "ahead" knows a larger tree than ours, "forked" one that ours does not continue."""

OnOutcome = Callable[[str, Outcome], None]
"""Called with the witness's name, once per checkpoint."""

_HINTS: Final = {
    "away": "checkpoints are published without its cosignature meanwhile",
    "refused": "does it know this log's name and key (`registrar audit checkpoints list`)?",
    "ahead": "unless it is over in a minute, the log was restored from an older backup, or its end was cut off",
    "forked": "it has seen another history of this log than the one that is here now; `registrar audit verify`",
}


class _Answer(NamedTuple):
    status: int
    content_type: str
    body: bytes


class _Asked(NamedTuple):
    """What has become of one call: a line to add, or how to go on."""

    outcome: Outcome
    line: str | None = None
    why: str | None = None


class Witnesses:
    """Those that are configured. Of each it is remembered which size it has seen; after a restart it tells us."""

    def __init__(
        self,
        addresses: Sequence[WitnessAddress],
        *,
        deadline: timedelta = DEADLINE,
        on_outcome: OnOutcome = lambda *_: None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """
        Args:
            tls: which certificates to trust; by default those of the system's authorities.
        """
        self._witnesses = [_Witness(address, tls) for address in addresses]
        self._deadline = deadline.total_seconds()
        self._on_outcome = on_outcome

    async def cosign(self, note: str, size: int, continues: Callable[[int], Awaitable[Sequence[bytes]]]) -> str:
        """The note with the cosignatures that there are by the deadline. It never fails for a witness's sake.

        Args:
            size: of the note's tree.
            continues: RFC 6962's proof that the tree continues the one of the given size, from 0 to `size`. It is
                called outside the deadline, and one call after the other: it may read from a database.
        """
        if not self._witnesses:
            return note
        left = self._deadline
        asked: dict[_Witness, _Asked] = {}
        waiting = self._witnesses
        # Twice: of a witness that has seen another tree than we think, the first answer says which.
        for _ in range(2):
            calls = {one: _body(note, one.seen, await continues(one.seen)) for one in waiting if one.seen <= size}
            began = asyncio.get_running_loop().time()
            asked |= await _all_within(left, {one: one.ask(body, note, size) for one, body in calls.items()})
            left -= asyncio.get_running_loop().time() - began
            waiting = [one for one in waiting if one.told and one.seen <= size and left > 0]
        for one in self._witnesses:
            one.tell(asked.get(one, _Asked("ahead")), self._on_outcome)
        return note + "".join(asked[one].line or "" for one in self._witnesses if one in asked)


async def _all_within(seconds: float, calls: dict[_Witness, Awaitable[_Asked]]) -> dict[_Witness, _Asked]:
    tasks = {asyncio.ensure_future(call): one for one, call in calls.items()}
    if not tasks:
        return {}
    try:
        await asyncio.wait(tasks, timeout=seconds)
    finally:
        late = [task for task in tasks if task.cancel()]
        await asyncio.gather(*late, return_exceptions=True)
    return {
        one: _Asked("away", why="no answer in time") if task in late else task.result() for task, one in tasks.items()
    }


def _body(note: str, old: int, proof: Sequence[bytes]) -> bytes:
    return "".join((f"old {old}\n", *(f"{b64encode(one).decode()}\n" for one in proof), "\n", note)).encode()


class _Witness:
    """
    Attributes:
        seen: the size of the largest tree that it has cosigned, as far as we know.
        told: its last answer was which size it has seen.
    """

    def __init__(self, address: WitnessAddress, tls: ssl.SSLContext | None) -> None:
        self.seen = 0
        self.told = False
        self._address = address
        self._tls = tls
        self._latest: Outcome = "cosigned"

    async def ask(self, body: bytes, note: str, size: int) -> _Asked:
        """Ask for a cosignature of the note."""
        self.told = False
        try:
            answer = await _post(f"{self._address.url}/add-checkpoint", body, self._tls)
        except (OSError, h11.RemoteProtocolError) as error:
            return _Asked("away", why=type(error).__name__)
        match answer.status:
            case 200:
                line = self._cosignature_in(answer.body, note)
                if line is None:
                    return _Asked("refused", why="its answer has no cosignature by its key")
                self.seen = size
                return _Asked("cosigned", line)
            case 409 if answer.content_type.partition(";")[0].strip() == "text/x.tlog.size":
                return self._has_seen(answer.body, size)
            case 409 | 422:
                return _Asked("forked", why=f"status {answer.status}")
            case status if status >= 500 or status == 429:
                return _Asked("away", why=f"status {status}")
            case status:
                return _Asked("refused", why=f"status {status}")

    def _has_seen(self, told: bytes, size: int) -> _Asked:
        if re.fullmatch(rb"(0|[1-9][0-9]{0,17})\n", told) is None:
            return _Asked("refused", why="it tells no size")
        if int(told) == self.seen:
            return _Asked("forked", why="of the tree of this size it knows another root")
        self.seen, self.told = int(told), True
        return _Asked("ahead" if self.seen > size else "away", why=f"it has seen {self.seen} blocks")

    def _cosignature_in(self, answer: bytes, note: str) -> str | None:
        """The line that is this witness's; of other keys' lines nothing is known."""
        signed = note[: note.rindex("\n\n") + 1].encode()
        for line in answer.decode(errors="replace").splitlines():
            found = re.fullmatch(r"— (\S+) ([A-Za-z0-9+/]+=*)", line)
            if found is None or found[1] != self._address.name:
                continue
            try:
                blob = b64decode(found[2], validate=True)
                time = int.from_bytes(blob[4:12], "big")
                message = f"cosignature/v1\ntime {time}\n".encode() + signed
                Ed25519PublicKey.from_public_bytes(self._address.public_key).verify(blob[12:], message)
            except (ValueError, InvalidSignature):
                continue
            if blob[:4] == self._address.key_id:
                return f"{line}\n"
        return None

    def tell(self, asked: _Asked, on_outcome: OnOutcome) -> None:
        """Count the outcome, and log where it is another than the one before."""
        on_outcome(self._address.name, asked.outcome)
        if asked.outcome != self._latest:
            say = log.error if asked.outcome == "forked" else log.info if asked.outcome == "cosigned" else log.warning
            hint = _HINTS.get(asked.outcome)
            say("checkpoint.witness", witness=self._address.name, outcome=asked.outcome, why=asked.why, hint=hint)
        self._latest = asked.outcome


async def _post(url: str, body: bytes, tls: ssl.SSLContext | None) -> _Answer:
    """One call; redirects are not followed.

    Raises:
        OSError, h11.RemoteProtocolError: there was no answer.
    """
    parts = urlsplit(url)
    encrypted = parts.scheme == "https"
    trusted = (tls or ssl.create_default_context()) if encrypted else None
    reader, writer = await open_streams(parts.hostname or "", parts.port or (443 if encrypted else 80), trusted)
    try:
        connection = h11.Connection(h11.CLIENT)
        headers = [("Host", parts.netloc), ("Content-Length", str(len(body))), ("Connection", "close")]
        request = h11.Request(method="POST", target=parts.path, headers=headers)
        for part in (request, h11.Data(data=body), h11.EndOfMessage()):
            writer.write(connection.send(part) or b"")
        await writer.drain()
        return await _answer(reader, connection)
    finally:
        writer.transport.abort()


async def _answer(reader: asyncio.StreamReader, connection: h11.Connection) -> _Answer:
    status, content_type, body = 0, "", b""
    while True:
        match connection.next_event():
            case h11.NEED_DATA:
                connection.receive_data(await reader.read(8192))
            case h11.Response(status_code=code, headers=headers):
                status, content_type = code, dict(headers).get(b"content-type", b"").decode("latin-1")
            case h11.Data(data=data):
                body += data
                if len(body) > MOST_BYTES:
                    raise OSError("the answer is too long")
            case h11.EndOfMessage():
                return _Answer(status, content_type, body)
            case h11.ConnectionClosed():
                raise OSError("no answer")
