"""The words that tests of the HTTP API are written in."""

from __future__ import annotations

import asyncio
import re
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import httpx
from fastapi import FastAPI

from entrypoints.api.app import Api as App
from entrypoints.api.app import create_app
from infrastructure.circuits import Circuits
from infrastructure.postgres.clock import DatabaseClock
from infrastructure.settings.settings import Settings
from tests.support.facts import eventually
from tests.support.log import by_way_of
from tests.support.service import Service, open_service
from tests.support.tcp_proxy import TcpProxy

MASTER_KEY = "7" * 64
TOKEN = "t0ken-of-the-operators"
ADMIN = {"Authorization": f"Bearer {TOKEN}"}
PROBLEM = "urn:registrar:problem:"
ADA = {"email": "ada@example.com", "name": "Ada Lovelace"}
ANY_NUMBER = "registrations=off"
"""`LIMITS` of a test that registers one address more often than the plan's five times an hour."""


def settings(dsn: str, directory: str, **more: str) -> Settings:
    return Settings.from_environment(
        {
            "REGISTRAR_DATABASE_URL": dsn,
            "REGISTRAR_MASTER_KEY": MASTER_KEY,
            "REGISTRAR_ADMIN_TOKEN": TOKEN,
            "REGISTRAR_DATA_DIR": directory,
            **{f"REGISTRAR_{name.upper()}": value for name, value in more.items()},
        }
    )


@dataclass(slots=True)
class Api:
    """The whole service behind its HTTP API, as a client sees it."""

    service: Service
    app: App
    http: httpx.AsyncClient

    async def register(self, email: str = "ada@example.com", *, key: str | None = None, **more: Any) -> httpx.Response:
        body = {"email": email, "name": "Ada Lovelace", **more}
        return await self.http.post(
            "/v1/registrations", json=body, headers={"Idempotency-Key": key} if key is not None else {}
        )

    async def registered(self, email: str = "ada@example.com", **more: Any) -> str:
        """The id of a registration that is begun, once its mail is in the mailbox and the read model knows."""
        answer = await self.register(email, **more)
        assert answer.status_code == 202, answer.text
        registration_id: str = answer.json()["registration_id"]
        await self.becomes(registration_id, mail="SENT")
        return registration_id

    async def active(self, email: str = "ada@example.com", **more: Any) -> str:
        """The id of a registration that is an account."""
        registration_id = await self.registered(email, **more)
        answer = await self.verify(registration_id, await self.code(email))
        assert answer.status_code == 200, answer.text
        await self.becomes(registration_id, status="ACTIVE")
        return registration_id

    async def look(self, registration_id: str, **query: Any) -> httpx.Response:
        return await self.http.get(f"/v1/registrations/{registration_id}", params=query)

    async def becomes(self, registration_id: str, *, within: float = 60, **expected: Any) -> dict[str, Any]:
        """The registration as the API shows it, once these fields have these values.

        Args:
            within: seconds.
        """

        async def shown() -> dict[str, Any] | None:
            answer = await self.look(registration_id)
            state: dict[str, Any] = answer.json()
            assert {name: state.get(name) for name in expected} == expected
            return state

        state: dict[str, Any] = await eventually(shown, within=within)
        return state

    async def verify(self, registration_id: str, code: str) -> httpx.Response:
        return await self.http.post(f"/v1/registrations/{registration_id}/verification", json={"code": code})

    async def new_code(self, registration_id: str) -> httpx.Response:
        return await self.http.post(f"/v1/registrations/{registration_id}/otp")

    async def code(self, email: str) -> str:
        """The code in the newest mail to this address."""
        messages = (await self.http.get("/mailbox/messages", params={"to": email})).json()
        match = re.search(r"^\s*(\d{6})\s*$", messages[0]["text"], re.MULTILINE)
        assert match is not None
        return match[1]

    async def wrong_code(self, email: str) -> str:
        return f"{(int(await self.code(email)) + 1) % 1_000_000:06d}"


NO_TLS: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Trusts nobody, for `verify` of a client of plain HTTP: to read whom the system trusts costs more than the requests of
most tests."""


@asynccontextmanager
async def client_of(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application, which is started and ended around it."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=True)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://registrar.test") as http,
    ):
        http.event_hooks = {"response": [_no_length_of_nothing]}
        yield http


async def _no_length_of_nothing(answer: httpx.Response) -> None:
    """Whatever a test is about: a 204 may not say how long it is (RFC 9110, 8.6)."""
    if answer.status_code == 204:
        assert not {"content-length", "transfer-encoding"} & answer.headers.keys(), answer.request.url.path


@asynccontextmanager
async def open_api(
    dsn: str,
    *,
    follows: bool = True,
    works: bool = False,
    clock: DatabaseClock | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    circuits: Callable[..., Circuits] = Circuits,
    **more: str,
) -> AsyncIterator[Api]:
    """The whole service on this database, with the embedded mailbox unless a mail server is set."""
    with tempfile.TemporaryDirectory() as directory:
        async with open_service(
            settings(dsn, directory, **more),
            follows=follows,
            works=works,
            clock=clock,
            sleep=sleep,
            circuits=circuits,
        ) as service:
            app = create_app(service.api)
            async with client_of(app) as http:
                yield Api(service, app, http)


@asynccontextmanager
async def open_api_through(proxy: TcpProxy, dsn: str, **more: Any) -> AsyncIterator[Api]:
    """The service without followers, on a database that it reaches through the proxy; healed at the end."""
    async with open_api(by_way_of(proxy, dsn), follows=False, **more) as api:
        try:
            yield api
        finally:
            proxy.heal()


def problem_of(answer: httpx.Response) -> str:
    """The error code of a problem."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    body = answer.json()
    assert body["status"] == answer.status_code
    assert body["title"]
    code: str = body["type"].removeprefix(PROBLEM)
    return code
