"""Honest people, each from a network of their own: they register, wait for their mail, and want their account.

They do as `tests.faults.people` does, but for one thing: nothing that attackers do may be told to them.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from uuid import UUID

import httpx

from tests.attack.deeds import Field
from tests.attack.wire import Network
from tests.faults.journal import NAME, Client, Operation, fresh_key
from tests.faults.people import KEY, PASSWORD
from tests.support.facts import eventually
from tests.support.http import NO_TLS

LOOKS_EVERY: Final = 0.25
"""Seconds; people look again and again, too."""

PATIENCE: Final = 300.0


class Person:
    """One of them.

    Attributes:
        name: under which `Deeds.finished` has them.
    """

    def __init__(self, name: str, address: str, network: Network, field: Field, urls: list[str]) -> None:
        self.name = name
        self._address = address
        self._field = field
        self._urls = urls
        self._key = f"{KEY}{fresh_key()}"
        self._id: UUID | None = None
        self._position = 0
        self._asks_again_at = 0.0
        self._tried: set[str] = set()
        self._http = httpx.AsyncClient(timeout=31.5, headers={"X-Forwarded-For": network.address()}, verify=NO_TLS)
        self._client = Client(field.journal, self._url, http=self._http)
        field.deeds.finished[name] = False

    def _url(self) -> str:
        self._urls.append(self._urls.pop(0))
        return self._urls[0]

    async def live(self) -> None:
        if await self.register() is not None:
            await self.get_in()

    async def register(self) -> UUID | None:
        """The id; the same request again until it is answered. None if it was refused."""
        secret = f"{PASSWORD}{self.name}"

        async def answered() -> Operation | None:
            operation = await self._client.register(self._address, key=self._key, name=NAME, password=secret)
            return operation if operation.outcome != "unknown" else None

        operation: Operation = await self._eventually(answered)
        self._id, self._position = operation.registration_id, operation.position or 0
        return self._id

    async def get_in(self) -> None:
        """Until the account is there, or patience is at its end: by the code of any mail that came, or else by that of
        the next one."""
        try:
            await self._eventually(self._is_verified)
            await self._eventually(self._is_active)
        except AssertionError:
            return  # a claim says that they have no account
        finally:
            await self._http.aclose()
        self._field.deeds.finished[self.name] = True

    async def _is_verified(self) -> bool:
        """Tries the newest mail that was not tried yet; asks for another code if all mails are here and none works."""
        is_sent = (await self._seen()).get("mail") == "SENT"
        untried = [code for code in self._field.inbox.codes_for(self._address) if code not in self._tried]
        if untried:
            code = untried[-1]
            operation: Operation = await self._eventually(lambda: self._offered(code))
            self._tried.add(code)
            return operation.outcome == "ok"
        if is_sent:
            await self._ask_for_a_code()
        return False

    async def _offered(self, code: str) -> Operation | None:
        operation = await self._client.verify(self._known, code)
        return operation if operation.outcome != "unknown" else None

    async def _ask_for_a_code(self) -> None:
        """Not before the service has said that it may be asked again."""
        if time.monotonic() < self._asks_again_at:
            return
        operation = await self._client.new_code(self._known)
        self._position = operation.position or self._position
        self._asks_again_at = time.monotonic() + int(operation.retry_after or 0)

    async def _is_active(self) -> bool:
        return (await self._seen()).get("status") == "ACTIVE"

    async def _seen(self) -> Mapping[str, Any]:
        """As it is since the last thing that was accepted: what was sent before is no mail of a new code."""
        return (await self._client.look(self._known, min_position=self._position)).answer or {}

    async def _eventually(self, condition: Callable[[], Awaitable[Any]]) -> Any:
        return await eventually(condition, within=PATIENCE, every=LOOKS_EVERY)

    @property
    def _known(self) -> UUID:
        assert self._id is not None
        return self._id
