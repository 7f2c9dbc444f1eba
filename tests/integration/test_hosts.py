"""Whom a request is for: the names that the service is called by, however a request names one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest

from entrypoints.api.app import create_app
from entrypoints.api.http_server import Server
from tests.support.http import ADA, ADMIN, Api, client_of, open_api, problem_of

ID = "019cab10-0000-7000-8000-00000000dead"


@pytest.fixture
async def api(dsn: str) -> AsyncIterator[Api]:
    async with open_api(
        dsn, follows=False, public_url="https://accounts.example.org/signup", allowed_hosts="api-1"
    ) as api:
        yield api


@pytest.fixture
async def server(api: Api) -> AsyncIterator[Server]:
    server = Server(api.app, host="127.0.0.1", port=0, prefix="/signup")
    await server.start()
    yield server
    await server.stop()


async def status(server: Server, head: str, body: bytes = b"") -> int:
    """Of the response to a request that is written by hand."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(head.replace("\n", "\r\n").encode() + b"Connection: close\r\n\r\n" + body)
        async with asyncio.timeout(10):
            answer = await reader.read()
    finally:
        writer.close()
    assert answer.count(b"HTTP/1.1 ") == 1
    return int(answer.split(b" ", 2)[1])


OURS = [
    "accounts.example.org",
    "ACCOUNTS.Example.org",
    "accounts.example.org.",
    "accounts.example.org:443",
    "accounts.example.org:",
    "api-1:8000",
    "localhost:18000",
    "127.0.0.1",
    "10.1.2.3:8080",
    "[::1]",
    "[2001:db8::1]:8000",
]
NOT_OURS = [
    "evil.example",
    "accounts.example.org.evil.example",
    "evil-accounts.example.org",
    "www.accounts.example.org",
    "accounts.example.org..",
    "accounts.example.org:80:80",
    "accounts.example.org@evil.example",
    "accounts.example.org, evil.example",
    "accounts.example.org/",
    "1.2.3.4.evil.example",
    "[accounts.example.org]",
    "[::1",
    "::1",
    "127.1",
    "*",
    "a" * 4000,
]


async def test_a_request_to_one_of_our_names_is_answered(api: Api) -> None:
    for host in OURS:
        for path in (f"/v1/registrations/{ID}", f"/signup/v1/registrations/{ID}"):
            answer = await api.http.get(path, headers={"Host": host})
            assert problem_of(answer) == "unknown-registration", host


async def test_a_request_to_another_name_is_misdirected(api: Api) -> None:
    for host in NOT_OURS:
        headers = {"Host": host, **ADMIN}
        for path in (f"/v1/registrations/{ID}", "/v1/admin/registrations", "/openapi.json", "/mailbox", "/nowhere"):
            answer = await api.http.get(path, headers=headers)
            assert (answer.status_code, problem_of(answer)) == (421, "misdirected-request"), (host, path)
        answer = await api.http.post("/v1/registrations", json=ADA, headers=headers)
        assert answer.status_code == 421, host
        assert answer.headers["cache-control"] == "no-store"


async def test_a_load_balancer_asks_for_health_by_any_name(api: Api) -> None:
    for host in ("10.0.0.5:8000", "evil.example", "probe"):
        for path in ("/health/live", "/health/ready", "/signup/health/live"):
            assert (await api.http.get(path, headers={"Host": host})).status_code == 200


async def test_operators_own_listener_answers_to_any_name(api: Api) -> None:
    async with client_of(create_app(api.service.api, public=False)) as operators:
        for path in ("/metrics", "/v1/admin/mail"):
            answer = await operators.get(path, headers={"Host": "registrar-process-1:8001", **ADMIN})
            assert answer.status_code == 200, path


async def test_without_a_public_url_any_name_will_do(dsn: str) -> None:
    async with open_api(dsn, follows=False) as api:
        for host in (*OURS, *NOT_OURS):
            assert (await api.http.get(f"/v1/registrations/{ID}", headers={"Host": host})).status_code == 404


LOOK = f"/signup/v1/registrations/{ID} HTTP/1.1\n"
LOOK_1_0 = LOOK.replace("1.1", "1.0")


HEADS = [
    (f"GET {LOOK}Host: api-1\n", 404),
    (f"GET {LOOK}", 400),
    (f"GET {LOOK}Host:\n", 400),
    (f"GET {LOOK}Host: api-1\nHost: api-1\n", 400),
    (f"GET {LOOK}Host: api-1\nHost: evil.example\n", 400),
    (f"GET {LOOK_1_0}", 421),
    (f"GET {LOOK_1_0}Host: api-1\n", 404),
    ("GET /health/live HTTP/1.0\n", 200),
    ("GET /health/live HTTP/1.1\n", 400),
    (f"GET http://api-1{LOOK}Host: evil.example\n", 404),
    (f"GET http://evil.example{LOOK}Host: api-1\n", 421),
    (f"GET http://api-1@evil.example{LOOK}Host: api-1\n", 421),
    ("GET http://api-1 HTTP/1.1\nHost: api-1\n", 200),
    ("OPTIONS http://api-1 HTTP/1.1\nHost: api-1\n", 204),
    ("OPTIONS * HTTP/1.1\nHost: api-1\n", 204),
    ("OPTIONS * HTTP/1.1\nHost: evil.example\n", 421),
]


async def test_the_host_of_the_target_counts_and_one_must_be_named(server: Server) -> None:
    for head, expected in HEADS:
        assert await status(server, head) == expected, head


async def test_a_misdirected_registration_leaves_nothing_behind(api: Api, server: Server) -> None:
    body = json.dumps(ADA).encode()
    about = f"Host: evil.example\nContent-Type: application/json\nContent-Length: {len(body)}\n"

    assert await status(server, f"POST /v1/registrations HTTP/1.1\n{about}", body) == 421
    assert (await api.service.store.head()) == 0


async def test_the_connection_is_kept_after_a_misdirected_request(server: Server) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as http:
        body = json.dumps(ADA)
        about = {"Content-Type": "application/json"}
        refused = await http.post("/v1/registrations", content=body, headers=about | {"Host": "evil.example"})
        taken = await http.post("/v1/registrations", content=body, headers=about)
    assert (refused.status_code, taken.status_code) == (421, 202)
