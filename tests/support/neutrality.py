"""Can an address be told by how long its registration takes? Addresses in every state, asked about in turn.

In each block of requests one address is new and the others are in the states in question, in random order; each address
is asked about once, since that changes it. What disturbs the machine disturbs all of a block alike, or any as often.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final
from uuid import UUID

import psycopg
import uvloop
from pydantic import SecretStr

from application.commands import (
    ActivateAccount,
    CancelRegistration,
    Command,
    EraseRegistration,
    RecordEmailDispatched,
    RegisterUser,
    RevokeOtp,
    VerifyEmail,
)
from application.ports import Context
from domain.mail_outcome import CancelReason, HandOver
from domain.recorded import Actor
from infrastructure.settings.limits import DEFAULTS
from infrastructure.settings.settings import Settings
from tests.support.facts import MovableClock
from tests.support.load import post
from tests.support.paired import MedianInterval, median_interval
from tests.support.service import Service, open_service

NO_LIMITS: Final = {"REGISTRAR_LIMITS": ", ".join(f"{limit.name}=off" for limit in DEFAULTS)}
"""Those of the requester, who would meet them alike for every address. The silent budget has no switch."""

_TOGETHER: Final = 200
"""Addresses that are prepared at once."""

_CONTEXT: Final = Context(Actor.CLIENT, UUID("c0000000-0000-4000-8000-000000000001"))
_HAND_OVER: Final = HandOver("mail.example.org:465", 1, 250)


@dataclass(slots=True)
class Address:
    """An address and the registrations for it, the oldest first."""

    email: str
    registrations: list[UUID] = field(default_factory=list)


class _Past:
    """Brings addresses into a state, with the service's own commands at times gone by."""

    def __init__(self, service: Service, clock: MovableClock, now: datetime) -> None:
        self._service = service
        self._clock = clock
        self._now = now

    async def step(
        self, ago: timedelta, addresses: Sequence[Address], what: Callable[[Address], Awaitable[None]]
    ) -> None:
        self._clock.now = self._now - ago
        for first in range(0, len(addresses), _TOGETHER):
            await asyncio.gather(*map(what, addresses[first : first + _TOGETHER]))

    async def _do(self, command: Command) -> UUID:
        return (await self._service.handlers.handle(command, _CONTEXT)).subject_id

    def registered(self, network: str) -> Callable[[Address], Awaitable[None]]:
        """Somebody registers it from this network, and the mail is sent."""

        async def register(address: Address) -> None:
            name = f"Somebody {len(address.registrations)}"
            registration = await self._do(RegisterUser(email=address.email, name=name, network=network))
            await self._do(RecordEmailDispatched(registration_id=registration, serial=1, hand_over=_HAND_OVER))
            address.registrations.append(registration)

        return register

    async def activated(self, address: Address) -> None:
        registration = address.registrations[0]
        code = self._service.keyring.code(registration, 1)
        await self._do(VerifyEmail(registration_id=registration, code=SecretStr(code)))
        await self._do(ActivateAccount(registration_id=registration))

    async def cancelled(self, address: Address) -> None:
        registration = address.registrations[0]
        await self._do(RevokeOtp(registration_id=registration))
        await self._do(CancelRegistration(registration_id=registration, reason=CancelReason.EXPIRED))

    async def erased(self, address: Address) -> None:
        await self._do(EraseRegistration(registration_id=address.registrations[0]))


async def _pending(past: _Past, addresses: Sequence[Address]) -> None:
    await past.step(timedelta(hours=2), addresses, past.registered("198.51.100.0/24"))


async def _active(past: _Past, addresses: Sequence[Address]) -> None:
    await past.step(timedelta(hours=50), addresses, past.registered("198.51.100.0/24"))
    await past.step(timedelta(hours=50, minutes=-5), addresses, past.activated)


async def _cancelled(past: _Past, addresses: Sequence[Address]) -> None:
    await past.step(timedelta(hours=50), addresses, past.registered("198.51.100.0/24"))
    await past.step(timedelta(hours=26), addresses, past.cancelled)


async def _erased(past: _Past, addresses: Sequence[Address]) -> None:
    await _active(past, addresses)
    await past.step(timedelta(hours=40), addresses, past.erased)


async def _limited(past: _Past, addresses: Sequence[Address]) -> None:
    """The five mails of a day are used up."""
    for hours, network in zip((20, 16, 12, 8, 4), ("A", "A", "B", "B", "C"), strict=True):
        await past.step(timedelta(hours=hours), addresses, past.registered(network))


async def _duplicate(past: _Past, addresses: Sequence[Address]) -> None:
    """An account has the address."""
    await _active(past, addresses)
    await past.step(timedelta(hours=2), addresses, past.registered("203.0.113.0/24"))


async def _superseded(past: _Past, addresses: Sequence[Address]) -> None:
    """Another registration for the address was proven later."""
    await past.step(timedelta(hours=2, minutes=5), addresses, past.registered("198.51.100.0/24"))
    await past.step(timedelta(hours=2), addresses, past.registered("203.0.113.0/24"))
    await past.step(timedelta(hours=2, minutes=-1), addresses, past.activated)


async def _crowded(past: _Past, addresses: Sequence[Address]) -> None:
    """As many registrations as a mailbox remembers, and as many mails."""
    for number in range(16):
        await past.step(timedelta(hours=20 - number), addresses, past.registered(f"{number % 4}"))


def email(state: str, number: int) -> str:
    """As long as any other; states differ in their first two or last two letters."""
    return f"{state[:2]}{state[-2:]}{number:08d}@neutral.example"


STATES: Final[Mapping[str, Callable[[_Past, Sequence[Address]], Awaitable[None]]]] = {
    "pending": _pending,
    "active": _active,
    "cancelled": _cancelled,
    "erased": _erased,
    "limited": _limited,
    "crowded": _crowded,
    "pending again": _pending,
    "duplicate": _duplicate,
    "superseded": _superseded,
}
"""How an address comes into each state. Of the last two, the latest registration is one that no code opens."""


def prepare(dsn: str, master_key: str, states: Mapping[str, int]) -> dict[str, list[Address]]:
    """Bring as many addresses into each state as it says, in a database to which a service has not come yet."""
    settings = Settings.from_environment({"REGISTRAR_DATABASE_URL": dsn, "REGISTRAR_MASTER_KEY": master_key})
    addresses = {state: [Address(email(state, number)) for number in range(count)] for state, count in states.items()}

    async def run() -> None:
        clock = MovableClock()
        async with open_service(settings, follows=False, clock=clock) as service:
            past = _Past(service, clock, datetime.now(UTC))
            for state, those in addresses.items():
                await STATES[state](past, those)

    uvloop.run(run())
    return addresses


def registering(addresses: Iterable[str], password: str | None = None) -> Iterator[bytes]:
    """Requests that register these addresses, with a name that nobody has registered there yet."""
    for address in addresses:
        said = {"email": address, "name": "Ada Lovelace"} | ({} if password is None else {"password": password})
        yield post("/v1/registrations", json.dumps(said).encode())


class Asker:
    """Asks one request at a time over one connection, and tells how long each took.

    With `cpu_of`, it tells CPU time instead: that of the main threads of these processes. It does not count what others
    do on the machine, or how long somebody waited.
    """

    def __init__(self, port: int, *, status: int = 202, cpu_of: Sequence[int] = ()) -> None:
        """
        Args:
            status: what every request has to be answered with.
        """
        self._status = status
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._processes = [Path(f"/proc/{pid}") for pid in cpu_of]

    def close(self) -> None:
        self._socket.close()

    def ask(self, request: bytes) -> float:
        """Microseconds."""
        before = self._cpu()
        begun = time.perf_counter_ns()
        self._socket.sendall(request)
        answer = self._socket.recv(65536)
        while not _is_whole(answer):
            answer += self._socket.recv(65536)
        took = time.perf_counter_ns() - begun
        assert int(answer[9:12]) == self._status, answer
        return ((self._cpu() - before) if self._processes else took) / 1000

    def blocks(self, requests: Mapping[str, Iterable[bytes]], seed: int = 0) -> dict[str, list[float]]:
        """Ask one request of each kind, in random order, and so on until a kind has no more.

        Answers what each took, by kind and in the order of the blocks: two kinds' are pairs.
        """
        order = random.Random(seed)  # noqa: S311 - the same again in the next run
        found: dict[str, list[float]] = {kind: [] for kind in requests}
        gc.collect()
        gc.disable()
        try:
            for block in zip(*requests.values(), strict=False):
                kinds = list(zip(requests, block, strict=True))
                order.shuffle(kinds)
                for kind, request in kinds:
                    found[kind].append(self.ask(request))
        finally:
            gc.enable()
        return found

    def _cpu(self) -> int:
        """Nanoseconds, once each process has nothing left to do: until then they are not all counted."""
        used = 0
        for process in self._processes:
            while process.joinpath("stat").read_bytes().rpartition(b") ")[2][:1] == b"R":
                os.sched_yield()
            used += int(process.joinpath("schedstat").read_bytes().split()[0])
        return used


def against_new(found: Mapping[str, Sequence[float]], confidence: float = 0.95) -> dict[str, MedianInterval]:
    """Of each kind but the first, by how much it takes longer than the first."""
    (_, first), *others = found.items()
    return {
        kind: median_interval([took - new for took, new in zip(those, first, strict=True)], confidence=confidence)
        for kind, those in others
    }


def backends_of_the_service(dsn: str) -> list[int]:
    """The processes of PostgreSQL that load and append for the service that came to this database last."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        found = connection.execute(
            "SELECT DISTINCT ON (application_name) pid FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name IN ('registrar load', 'registrar append')"
            " ORDER BY application_name, backend_start DESC"
        ).fetchall()
    assert len(found) == 2
    return [row[0] for row in found]


def _is_whole(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    at = head.lower().index(b"content-length: ") + 16 if end else 0
    return bool(end) and len(body) >= int(head[at:].partition(b"\r")[0])
