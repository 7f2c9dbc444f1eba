"""Requests as attackers send them: raw, on kept connections, each in the name of some network.

    wire = Wire([api.port, other.port])
    answer = await wire.register(Who.BOMBING, network, "ada@example.com")
    assert answer.status in {202, 429}

The generator shares the cores with what it attacks, so a request is bytes and an answer is bytes.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import count, cycle
from typing import Final, NamedTuple
from uuid import UUID

from tests.faults.people import DOMAIN
from tests.support.load import Connection

IDLE: Final = 10.0
"""Seconds after which a kept connection is not used again: the server is about to end it."""


class Who(IntEnum):
    """Whose request it is; it stands in the request's id, and so in every event that the request leads to."""

    PREPARING = 1
    BOMBING = 2
    SPOOFING = 3
    GUESSING = 4
    SPRAYING = 5
    COMPARING = 6
    REPEATING = 7
    HIJACKING = 8


# --- Networks ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Network:
    """Where requests come from.

    Attributes:
        name: as limits count it: an IPv4 address, or the /64 of an IPv6 address.
        larger: the /24 or /48 around it.
        site: of an IPv6 network what begins each of its addresses, with the last colon; empty for IPv4.
    """

    number: int
    name: str
    larger: str
    site: str = ""

    def address(self, turn: int = 1) -> str:
        """One of its addresses: an IPv6 network has more than anybody can count."""
        return f"{self.site}:{turn & 0xFFFF:x}" if self.site else self.name


def ipv4(number: int, address: str) -> Network:
    return Network(number, address, f"{address.rpartition('.')[0]}.0/24")


def ipv6(number: int, site: int, subnet: int = 1) -> Network:
    return Network(
        number, f"2001:db8:{site:x}:{subnet:x}::/64", f"2001:db8:{site:x}::/48", f"2001:db8:{site:x}:{subnet:x}:"
    )


NETWORKS: Final = (
    *(ipv4(number, f"198.18.{number}.7") for number in range(100)),
    *(ipv6(number, number) for number in range(100, 180)),
    # Neighbours, who share a larger network.
    *(ipv4(number, f"198.19.0.{number}") for number in range(180, 190)),
    *(ipv6(number, 0xFFFF, number) for number in range(190, 200)),
)
"""The attackers': 200 of them."""


def honest_network(number: int) -> Network:
    """Where an honest person lives; nobody else does."""
    return ipv4(1000 + number, f"{100 + number // 65536}.{number // 256 % 256}.{number % 256}.9")


# --- Answers ----------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """`status` is 0 if there was none."""

    status: int
    head: bytes
    body: bytes

    @property
    def registration_id(self) -> UUID:
        return UUID(json.loads(self.body)["registration_id"])

    @property
    def request_id(self) -> UUID:
        """Which every event has that the request led to."""
        found = re.search(rb"registrar-request-id: ([0-9a-f-]{36})", self.head)
        assert found is not None
        return UUID(found[1].decode())

    @property
    def problem(self) -> str:
        """The error code, empty if it is no problem."""
        found = re.search(rb'urn:registrar:problem:([a-z-]+)"', self.body)
        return found[1].decode() if found else ""

    @property
    def limits(self) -> list[str]:
        """The rate limits that refused the request."""
        return [name.decode() for name in _POLICY.findall(self.head)] if b"ratelimit-policy: " in self.head else []


_POLICY: Final = re.compile(rb'"([a-z-]+)";q=')
_VARIES: Final = (
    (re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"), b"<id>"),
    (re.compile(rb"\r\ndate: [^\r]*"), b"\r\ndate: <date>"),
    (re.compile(rb"\r\nregistrar-position: \d+"), b"\r\nregistrar-position: <position>"),
    (re.compile(rb"\r\nretry-after: \d+"), b"\r\nretry-after: <seconds>"),
    (re.compile(rb";t=\d+"), b";t=<seconds>"),
    (re.compile(rb'"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[^"]*"'), b'"<time>"'),
    (re.compile(rb'"position":\d+'), b'"position":<position>'),
)


def masked(answer: Answer, *own: str) -> bytes:
    """Every byte of an answer, but for what differs from one request to the next whoever asks for whatever address.

    Args:
        own: what the requester had typed.
    """
    head = answer.head
    length = f"\r\ncontent-length: {len(answer.body)}".encode()
    if length in head:
        head = head.replace(length, b"\r\ncontent-length: <length>")
    text = head + b"\r\n\r\n" + answer.body
    for word in own:
        text = text.replace(word.encode(), b"<own>")
    for pattern, instead in _VARIES:
        text = pattern.sub(instead, text)
    return text


# --- The ledger of limits ---------------------------------------------------------------------------


REGISTERING: Final = ("network", "network-day", "larger-network")


@dataclass(slots=True)
class Ledger:
    """What each limit let through, by its name and by whom it counts.

    Attributes:
        passed: counted for certain.
        asked: counted or not: no answer says that the limit refused it.
        refused: named by a 429.
    """

    passed: Counter[tuple[str, str]] = field(default_factory=Counter)
    asked: Counter[tuple[str, str]] = field(default_factory=Counter)
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)

    def note(self, answer: Answer, whom: dict[str, str]) -> None:
        """
        Args:
            whom: the limits that the request comes under, each with whom it counts.
        """
        if refused := answer.limits:
            for name in refused:
                self.refused[name, whom.get(name, "nobody")] += 1
            return
        if b"\r\nidempotent-replayed: true" in answer.head.lower() or answer.problem == "idempotency-key-reused":
            return  # a key that is known uses up the limit of repeats only
        # A registration that is malformed, or was turned away at the door, is not counted; of a code it does not
        # matter what it is.
        certain = answer.status == 202 or "network" not in whom
        for key in whom.items():
            self.asked[key] += 1
            if certain and 0 < answer.status < 500:
                self.passed[key] += 1


# --- Requests ---------------------------------------------------------------------------------------


class Wire:
    """Sends requests to the APIs in turn, on as many connections as there are requests at the same time.

    Attributes:
        asked: how many requests were sent.
        statuses: of the answers, by who asked.
        troubles: error codes of answers that say that the service could not.
    """

    def __init__(self, ports: Sequence[int]) -> None:
        self.asked = 0
        self.statuses: dict[Who, Counter[int]] = {who: Counter() for who in Who}
        self.troubles: Counter[str] = Counter()
        self.ledger = Ledger()
        self._ports = cycle(ports)
        self._free: dict[int, deque[tuple[float, Connection]]] = {port: deque() for port in ports}
        self._numbers = count(1)

    async def register(
        self,
        who: Who,
        network: Network,
        address: str,
        *,
        name: str,
        password: str | None = None,
        key: str | None = None,
        forwarded: str = "",
        turn: int = 1,
    ) -> Answer:
        """
        Args:
            key: the Idempotency-Key.
            forwarded: header lines that say where the request comes from, in place of the usual one.
            turn: which of the network's addresses it comes from.
        """
        head = forwarded or f"X-Forwarded-For: {network.address(turn)}\r\n"
        head += f"Idempotency-Key: {key}\r\n" if key else ""
        body = json.dumps({"email": address, "name": name, **({"password": password} if password else {})})
        answer = await self._ask(who, network, "POST", "", head, body)
        whom = dict(zip(REGISTERING, (network.name, network.name, network.larger), strict=True))
        self.ledger.note(answer, {"registrations": f"{network.name} {address.lower()}", **whom})
        return answer

    async def verify(self, who: Who, network: Network, registration_id: UUID, code: str) -> Answer:
        head, body = f"X-Forwarded-For: {network.address()}\r\n", f'{{"code": "{code}"}}'
        answer = await self._ask(who, network, "POST", f"/{registration_id}/verification", head, body)
        self.ledger.note(answer, {"verifications": network.name})
        return answer

    async def new_code(self, who: Who, network: Network, registration_id: UUID) -> Answer:
        head = f"X-Forwarded-For: {network.address()}\r\n"
        answer = await self._ask(who, network, "POST", f"/{registration_id}/otp", head)
        self.ledger.note(answer, {"new-codes": network.name})
        return answer

    async def look(self, who: Who, network: Network, registration_id: UUID) -> Answer:
        head = f"X-Forwarded-For: {network.address()}\r\n"
        return await self._ask(who, network, "GET", f"/{registration_id}", head)

    def close(self) -> None:
        for free in self._free.values():
            for _, connection in free:
                connection.close()

    async def _ask(self, who: Who, network: Network, method: str, path: str, head: str, body: str = "") -> Answer:
        self.asked += 1
        head = (
            f"{method} /v1/registrations{path} HTTP/1.1\r\nHost: registrar.test\r\n"
            f"X-Request-Id: {_request_id(who, network, next(self._numbers))}\r\n{head}"
        )
        if method == "POST":
            head += f"Content-Type: application/json\r\nContent-Length: {len(body.encode())}\r\n"
        answer = await self._exchange(f"{head}\r\n{body}".encode("latin-1"))
        self.statuses[who][answer.status] += 1
        if not 0 < answer.status < 500:
            self.troubles[f"{method}{' /otp' if path.endswith('/otp') else ''} {answer.status} {answer.problem}"] += 1
        return answer

    async def _exchange(self, request: bytes) -> Answer:
        port = next(self._ports)
        connection = await self._connected(port)
        answered: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def then(_: Connection, status: int) -> None:
            if not answered.done():
                answered.set_result(status)

        connection.send(request, then)
        answer = Answer(await answered, connection.head, connection.body)
        if not answer.status or b"\r\nconnection: close" in answer.head:
            connection.close()
        else:
            self._free[port].append((time.monotonic(), connection))
        return answer if answer.status else Answer(0, b"", b"")

    async def _connected(self, port: int) -> Connection:
        free = self._free[port]
        while free:
            since, connection = free.pop()
            if not connection.lost and time.monotonic() < since + IDLE:
                return connection
            connection.close()
        _, made = await asyncio.get_running_loop().create_connection(lambda: Connection(_fail), "127.0.0.1", port)
        return made


def _fail(error: Exception) -> None:
    raise error


def _request_id(who: Who, network: Network, number: int) -> str:
    return f"{who:08x}-{network.number:04x}-4000-8000-{number:012x}"


def request_id_of(correlation_id: UUID) -> tuple[Who, int] | None:
    """Who sent a request, and the number of the network it came from; None if it was no attacker's."""
    who, network, *_ = correlation_id.fields
    if correlation_id.fields[2:5] != (0x4000, 0x80, 0x00) or who not in set(Who):
        return None
    return Who(who), network


def at_our_domain(local: str) -> str:
    """An address whose mail the sink gets, and whose domain is a canary."""
    return f"{local}@{DOMAIN}"
