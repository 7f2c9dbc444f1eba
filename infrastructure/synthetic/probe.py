"""The probe: registers by itself, as a stranger would, again and again, and says whether it became an account.

It calls the public address of the service, with its proxy and its TLS, and takes the code from the mail, as composed
for the wire. What it asks with is an ordinary request with an Idempotency-Key, which nobody else can derive
(`Secrets.synthetic_key`): by it the API counts it in no limit and in no figure about people, and gives it an id that
says so for ever (`domain.synthetic`). At the end it erases what it made.
"""

from __future__ import annotations

import asyncio
import email
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from secrets import token_hex
from typing import Any, Final, Literal, TypeVar
from uuid import UUID, uuid4

import msgspec
import structlog

from application.ports import Secrets
from infrastructure.alerts.webhook import NotTaken, Webhook
from infrastructure.followers.leadership import LeaderSession, while_touching
from infrastructure.postgres.connection import Connection
from infrastructure.synthetic import records
from infrastructure.synthetic.erasing import Erase, erase_left

log = structlog.get_logger(__name__)

T = TypeVar("T")

DOMAIN: Final = "synthetic.registrar.example"
"""Of the addresses: a name that nobody can have (RFC 2606), so that no mail could ever reach anybody."""

DEADLINE: Final = timedelta(seconds=60)
"""For all of it: the objective of the mails of real registrations."""

FIRST: Final = timedelta(seconds=2)
"""Least time from taking over to the first one: where everything is one process, it listens by then."""

_LOOK: Final = timedelta(milliseconds=100)
"""Between two looks at what has not happened yet."""

_CODE: Final = re.compile(r"^\s*(\d{6})\s*$", re.MULTILINE)

Step = Literal["register", "mail", "verify", "activate"]

OnEnd = Callable[[str, float], None]
"""Called with the outcome, `records.PASSED` or the `Step` that failed, and with what it took in seconds."""


class _Failed(Exception):
    """A step did not succeed; the text says why, in our own words."""


@dataclass(slots=True)
class _Run:
    """One synthetic registration, and how far it is."""

    address: str
    key: str
    registration_id: UUID
    correlation_id: UUID
    step: Step = "register"


class Probe:
    """Makes synthetic registrations; one process does (`followers.leadership.lead`)."""

    name = "synthetic-registrations"

    def __init__(
        self,
        web: Webhook,
        *,
        secrets: Secrets,
        erase: Erase,
        every: timedelta,
        on_end: OnEnd,
        deadline: timedelta = DEADLINE,
        first: timedelta | None = None,
    ) -> None:
        """
        Args:
            web: the public address of the service.
            every: from the begin of one to the begin of the next.
            first: None means `FIRST`.
        """
        self._web = web
        self._secrets = secrets
        self._erase = erase
        self._every = every.total_seconds()
        self._on_end = on_end
        self._deadline = deadline.total_seconds()
        self._first = (FIRST if first is None else first).total_seconds()

    async def work(self, session: LeaderSession) -> None:
        """Until cancelled; see `infrastructure.followers.leadership.LeaderTask`."""
        async with session.turn() as connection:  # all the time: it has the session to itself
            await self._work(connection)

    async def _work(self, connection: Connection) -> None:
        earliest = self._first
        while True:
            await while_touching(connection, erase_left(connection, self._erase))
            ago = await records.since_last(connection)
            wait = 0.0 if ago is None else self._every - ago
            await while_touching(connection, asyncio.sleep(max(wait, earliest)))
            earliest = 0.0
            await while_touching(connection, self._run(connection))

    async def _run(self, connection: Connection) -> None:
        run = self._next()
        await records.begin(connection, run.registration_id)
        now = asyncio.get_running_loop().time
        begun, why = now(), f"not within {self._deadline:g} s"
        outcome: str = records.PASSED
        try:
            async with asyncio.timeout(self._deadline):
                await self._go(connection, run)
        except (TimeoutError, _Failed, NotTaken) as failed:
            outcome, why = run.step, str(failed) or why
        took = now() - begun
        await records.end(connection, run.registration_id, outcome)
        self._on_end(outcome, took)
        if outcome != records.PASSED:
            log.warning(
                "synthetic.failed",
                step=outcome,
                why=why,
                seconds=round(took, 3),
                registration_id=str(run.registration_id),
                correlation_id=str(run.correlation_id),
                hint="nobody may be able to register; `registrar audit explain` with its id says how far it came",
            )

    def _next(self) -> _Run:
        address = f"{token_hex(8)}@{DOMAIN}"
        key = self._secrets.synthetic_key("register", address)
        return _Run(address, key, self._secrets.registration_id_for(address, key), uuid4())

    async def _go(self, connection: Connection, run: _Run) -> None:
        begun = await self._ask(run, "POST", "", 202, {"email": run.address, "name": "Synthetic"}, run.key)
        if begun.get("registration_id") != str(run.registration_id):
            raise _Failed("it did not know the key: another release, or another master key")
        run.step = "mail"
        code = await self._code(connection, run)
        run.step = "verify"
        at = f"/{run.registration_id}"
        await self._ask(
            run,
            "POST",
            f"{at}/verification",
            200,
            {"code": code},
            self._secrets.synthetic_key("verify", str(run.registration_id)),
        )
        run.step = "activate"

        async def active() -> bool | None:
            return (await self._ask(run, "GET", at, 200)).get("status") == "ACTIVE" or None

        await _found(active)

    async def _ask(
        self, run: _Run, method: str, path: str, expected: int, body: Mapping[str, str] | None = None, key: str = ""
    ) -> dict[str, Any]:
        """
        Raises:
            _Failed: the status is another one.
            NotTaken: there was no response.
        """
        headers = {"User-Agent": "registrar", "X-Request-Id": str(run.correlation_id)}
        if body is not None:
            headers |= {"Content-Type": "application/json", "Idempotency-Key": key}
        sent = b"" if body is None else msgspec.json.encode(body)
        status, answered = await self._web.ask(method, f"/v1/registrations{path}", sent, headers)
        if status != expected:
            raise _Failed(f"status {status}")
        try:
            return msgspec.json.decode(answered, type=dict[str, Any])
        except msgspec.DecodeError:
            raise _Failed("the response is not JSON") from None

    async def _code(self, connection: Connection, run: _Run) -> str:
        mail = await _found(lambda: records.mail_of(connection, run.registration_id))
        # As it is on the wire (RFC 5321, 4.5.2), to the final dot.
        message = email.message_from_bytes(mail.removesuffix(b".\r\n").replace(b"\r\n..", b"\r\n."))
        for part in message.walk():
            if part.get_content_type() == "text/plain":
                text = part.get_payload(decode=True)
                found = _CODE.search(text.decode()) if isinstance(text, bytes) else None
                if found is not None:
                    return found[1]
        raise _Failed("there is no code in the mail")


async def _found(look: Callable[[], Awaitable[T | None]]) -> T:
    """What is there at last, however long it takes."""
    while True:
        found = await look()
        if found is not None:
            return found
        await asyncio.sleep(_LOOK.total_seconds())
