"""What a client did and what came of it: written before it is sent, and again after it ended.

    client = Client(journal, lambda: node.url)
    registered = await client.register("ada@example.com", key=fresh_key())
    assert registered.outcome == "ok"

2xx is "ok", 4xx is "fail" (definite: nothing was done), everything else is "unknown" (either is fine): 5xx, no answer,
no connection.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal
from uuid import UUID, uuid4

import httpx

from tests.support.http import NO_TLS

Kind = Literal["register", "look", "verify", "new code"]
Outcome = Literal["invoked", "ok", "fail", "unknown"]

PROBLEM = "urn:registrar:problem:"
NAME = "Quetzalcoatl Canary"


def fresh_key() -> str:
    """An Idempotency-Key that nobody has used."""
    return uuid4().hex


@dataclass(slots=True, eq=False)
class Operation:
    """One request of a client.

    Attributes:
        request_id: sent as `X-Request-Id`, so every event that the request led to carries it as correlation id.
        registration_id: the one asked about, or of a registration the one answered.
        body: fingerprint of the body, None if there was none.
        code: the code offered.
        waits: does it ask for a position that the read model may not have reached yet?
        timeout: seconds within which the service owes an answer.
        outcome: "invoked" while it is under way.
        problem: error code of a problem, or the class of the error in place of an answer.
        took: seconds.
    """

    kind: Kind
    request_id: UUID
    began: datetime
    timeout: float
    address: str | None = field(default=None, repr=False)
    key: str | None = field(default=None, repr=False)
    body: str | None = None
    code: str | None = field(default=None, repr=False)
    registration_id: UUID | None = None
    waits: bool = False
    outcome: Outcome = "invoked"
    ended: datetime | None = None
    took: float = 0.0
    status: int | None = None
    answer: Mapping[str, Any] | None = field(default=None, repr=False)
    problem: str | None = None
    retry_after: str | None = None
    position: int | None = None


class Journal:
    """Every operation of every client of a test, in the order in which they began."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self._entries: list[dict[str, Any]] = []

    def __iter__(self) -> Iterator[Operation]:
        return iter(self.operations)

    def invoke(self, operation: Operation) -> None:
        """It is about to be sent."""
        self.operations.append(operation)
        self._write(operation, operation.began)

    def end(self, operation: Operation, outcome: Outcome) -> None:
        """It ended: what is known of it is in the operation."""
        operation.outcome = outcome
        operation.ended = datetime.now(UTC)
        self._write(operation, operation.ended)

    def of(self, kind: Kind, outcome: Outcome | None = None) -> list[Operation]:
        """The operations of a kind, in the order in which they began."""
        return [one for one in self.operations if one.kind == kind and outcome in {None, one.outcome}]

    def dump(self, file: Path) -> None:
        """Write two JSON lines per operation (one if it never ended): what was asked, and what came of it."""
        file.write_text("".join(json.dumps(entry) + "\n" for entry in self._entries), encoding="utf-8")

    def _write(self, operation: Operation, at: datetime) -> None:
        fields = {name: getattr(operation, name) for name in Operation.__slots__ if name not in {"began", "ended"}}
        entry = {"at": at.isoformat(), **{name: value for name, value in fields.items() if value is not None}}
        self._entries.append(json.loads(json.dumps(entry, default=str)))


class Client:
    """A client of the API that writes down what it does.

    Args:
        url: base URL of the API, asked for at each request: another process may answer by then.
        timeout: seconds within which the service owes an answer (`REQUEST_TIMEOUT`). We wait a little longer.
        http: what sends the requests, if it is not to be the network.
    """

    def __init__(
        self,
        journal: Journal,
        url: Callable[[], str],
        *,
        timeout: float = 30.0,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        self.journal = journal
        self._url = url
        self._timeout = timeout
        self._http = http or httpx.AsyncClient(
            timeout=timeout + 1.5, limits=httpx.Limits(max_connections=None), verify=NO_TLS
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def register(
        self, address: str, *, key: str | None = None, name: str = NAME, password: str | None = None, **more: str
    ) -> Operation:
        body = {"email": address, "name": name, **({"password": password} if password is not None else {}), **more}
        operation = self._operation("register", body, address=address.lower(), key=key)
        return await self._do(operation, "POST", "", body, {"Idempotency-Key": key} if key is not None else {})

    async def look(self, registration_id: UUID, **query: int) -> Operation:
        operation = self._operation("look", None, registration_id=registration_id, waits="min_position" in query)
        return await self._do(operation, "GET", f"/{registration_id}", None, {}, query)

    async def verify(self, registration_id: UUID, code: str) -> Operation:
        body = {"code": code}
        operation = self._operation("verify", body, registration_id=registration_id, code=code)
        return await self._do(operation, "POST", f"/{registration_id}/verification", body)

    async def new_code(self, registration_id: UUID) -> Operation:
        operation = self._operation("new code", None, registration_id=registration_id)
        return await self._do(operation, "POST", f"/{registration_id}/otp")

    async def health(self, part: str) -> Mapping[str, Any]:
        """What `/health/PART` tells; no operation, and in no journal."""
        answer: Mapping[str, Any] = (await self._http.get(f"{self._url()}/health/{part}")).json()
        return answer

    def _operation(self, kind: Kind, body: Mapping[str, str] | None, **fields: Any) -> Operation:
        fingerprint = None
        if body is not None:
            fingerprint = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]
        return Operation(kind, uuid4(), datetime.now(UTC), self._timeout, body=fingerprint, **fields)

    async def _do(
        self,
        operation: Operation,
        method: str,
        path: str,
        body: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, int] | None = None,
    ) -> Operation:
        self.journal.invoke(operation)
        outcome: Outcome = "unknown"
        began = time.monotonic()
        try:
            answer = await self._http.request(
                method,
                f"{self._url()}/v1/registrations{path}",
                json=body,
                headers={"X-Request-Id": str(operation.request_id), **(headers or {})},
                params=query,
            )
            outcome = _read(operation, answer)
        except httpx.TransportError as error:
            operation.problem = type(error).__name__
        except BaseException as error:
            operation.problem = type(error).__name__
            raise
        finally:
            operation.took = time.monotonic() - began
            self.journal.end(operation, outcome)
        return operation


def _read(operation: Operation, answer: httpx.Response) -> Outcome:
    operation.status = answer.status_code
    operation.retry_after = answer.headers.get("retry-after")
    body = answer.json()
    if answer.is_success:
        operation.answer = body
        if operation.kind == "register":
            operation.registration_id = UUID(body["registration_id"])
        if (position := answer.headers.get("registrar-position")) is not None:
            operation.position = int(position)
        return "ok"
    operation.problem = body["type"].removeprefix(PROBLEM)
    return "fail" if answer.is_client_error else "unknown"


@dataclass(frozen=True, slots=True)
class FaultWindow:
    """A fault that was in effect from `begin` to `end`.

    Attributes:
        hits: what does not work meanwhile: "api" (it may not answer at all), "database" (nothing can be appended),
            "slow database" (perhaps nothing can), "mail" (no mail server takes mail), "process" (followers and
            delivery), "broker" (mails wait in the log). A kill of a process hits it from the kill to its next start.
        node: the only one that is hit; empty: all of them.
    """

    what: str
    begin: datetime
    end: datetime
    hits: frozenset[str]
    node: str = ""

    @property
    def lasted(self) -> timedelta:
        return self.end - self.begin


class Faults:
    """The windows of a test. What a fleet does to its nodes is noted by the fleet; note the rest yourself:

    faults.begin("postgres killed", "database")
    faults.end("postgres killed")
    """

    def __init__(self) -> None:
        self._over: list[FaultWindow] = []
        self._open: dict[str, FaultWindow] = {}

    def begin(self, what: str, *hits: str, node: str = "") -> None:
        """From now on; one that has begun already goes on."""
        now = datetime.now(UTC)
        self._open.setdefault(what, FaultWindow(what, now, now, frozenset(hits), node))

    def end(self, what: str) -> None:
        """It is healed."""
        self._over.append(replace(self._open.pop(what), end=datetime.now(UTC)))

    @contextmanager
    def during(self, what: str, *hits: str, node: str = "") -> Iterator[None]:
        """As long as the block runs."""
        self.begin(what, *hits, node=node)
        try:
            yield
        finally:
            self.end(what)

    def end_if_begun(self, what: str) -> None:
        if what in self._open:
            self.end(what)

    @property
    def windows(self) -> list[FaultWindow]:
        """Those that are over, and those that are not, until now."""
        now = datetime.now(UTC)
        return [*self._over, *(replace(window, end=now) for window in self._open.values())]
