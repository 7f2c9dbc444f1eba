"""A witness of checkpoints (https://c2sp.org/tlog-witness): a real HTTP server that keeps what it has seen, and refuses
a fork. What it believes is decided by implementations that are not ours.

async with Witness(tmp_path, log_keys=[key]) as witness:
    witness.then("hang", "500 Internal Server Error")   # instead of its next two answers
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import metamorphic_log
from tlog_scales.tlog import ConsistencyProof, ConsistencyProofInvalid

from tests.support.proofs import Signer

NOW = datetime(2026, 11, 28, 16, tzinfo=UTC)


class Witness:
    """Listens on a free port of 127.0.0.1 while entered.

    Attributes:
        calls: how many there were, however they were answered.
    """

    def __init__(self, directory: Path, *, log_keys: Sequence[str], name: str = "witness.example/w") -> None:
        """
        Args:
            directory: where it keeps what it has seen, also when it is started anew.
            log_keys: of the logs that it knows.
        """
        self.signer = Signer(name, name.encode().ljust(32, b"\0"), cosigns=NOW)
        self.calls = 0
        self._log_keys = list(log_keys)
        self._file = directory / f"{name.replace('/', '-')}.json"
        self._answers: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def address(self) -> str:
        """An entry of `REGISTRAR_CHECKPOINT_WITNESSES`."""
        return f"http://127.0.0.1:{self._port}/prefix#{self.signer.key}"

    @property
    def seen(self) -> dict[str, Any]:
        """Size and root of each log's tree, by its origin."""
        return json.loads(self._file.read_text()) if self._file.exists() else {}

    def then(self, *answers: str) -> Self:
        """Give these answers first, instead of its own: a status line, or "hang", or "drop"."""
        self._answers.extend(answers)
        return self

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:  # also of a connection whose task had not begun
            writer.transport.abort()
        await asyncio.gather(*[writer.wait_closed() for writer in self._writers], return_exceptions=True)
        await self._server.wait_closed()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        self._tasks.add(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            request, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            body = (await reader.readexactly(int(headers["content-length"]))).decode()
            await self._answer(request, body, writer)
        writer.transport.abort()

    async def _answer(self, request: str, body: str, writer: asyncio.StreamWriter) -> None:
        self.calls += 1
        instead = self._answers.pop(0) if self._answers else None
        if instead == "hang":
            await asyncio.Event().wait()
        if instead == "drop":
            return
        status, kind, answer = (instead, "text/plain", "") if instead else self._judge(request, body)
        sent = answer.encode()
        head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(sent)}\r\n\r\n"
        writer.write(head.encode() + sent)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    def _judge(self, request: str, body: str) -> tuple[str, str, str]:
        """Status, type and body of the answer. (No wait in it: look and keep are one.)"""
        if request != "POST /prefix/add-checkpoint HTTP/1.1":
            return "404 Not Found", "text/plain", ""
        about, _, note = body.partition("\n\n")
        first, *proof = about.split("\n")
        old = int(first.removeprefix("old "))
        origin = note.split("\n")[0]
        if origin not in {key.partition("+")[0] for key in self._log_keys}:
            return "404 Not Found", "text/plain", ""
        try:
            head = metamorphic_log.checkpoint_verify(note, self._log_keys)
        except metamorphic_log.VerifyError:
            return "403 Forbidden", "text/plain", ""
        seen, root = self.seen.get(origin, (0, None))
        if old > head.size:
            return "400 Bad Request", "text/plain", ""
        if old != seen:
            return "409 Conflict", "text/x.tlog.size", f"{seen}\n"
        if old == head.size and root not in (None, head.root.hex()):
            return "409 Conflict", "text/plain", ""
        if not _continues(old, root, proof, head):
            return "422 Unprocessable Entity", "text/plain", ""
        self._file.write_text(json.dumps(self.seen | {origin: (head.size, head.root.hex())}))
        return "200 OK", "text/plain", self.signer.line(note[: note.rindex("\n\n") + 1])


def _continues(old: int, root: str | None, proof: Sequence[str], head: metamorphic_log.CheckpointHead) -> bool:
    if old in (0, head.size):
        return not proof
    assert root is not None
    try:
        ConsistencyProof(old, head.size, [base64.b64decode(one) for one in proof]).check(bytes.fromhex(root), head.root)
    except ConsistencyProofInvalid:
        return False
    return True
