"""The limits of the public API, as clients meet them: through the real server, in one process and in two."""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_network
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from entrypoints.api.client_address import network_of
from entrypoints.api.http_server import Server
from infrastructure.settings.values import Network
from tests.support import redis as redis_server
from tests.support.commands import clean_environment, ran
from tests.support.facts import eventually
from tests.support.http import ADMIN, NO_TLS, Api, open_api, problem_of
from tests.support.log import query
from tests.support.redis import PrivateRedis

PROXIES = (ip_network("127.0.0.0/8"), ip_network("10.0.0.0/8"), ip_network("fd00::/8"))


@asynccontextmanager
async def behind_a_proxy(dsn: str, **settings: Any) -> AsyncIterator[tuple[Api, Server]]:
    """A service that believes whom this machine speaks for."""
    trusted = "127.0.0.0/8"
    async with open_api(dsn, follows=False, trusted_proxies=trusted, **settings) as api:
        server = Server(api.app, host="127.0.0.1", port=0, trusted_proxies=(ip_network(trusted),))
        await server.start()
        try:
            yield api, server
        finally:
            await server.stop()


@asynccontextmanager
async def client_from(address: str, server: Server) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{server.port}", headers={"X-Forwarded-For": address}, verify=NO_TLS
    ) as http:
        yield http


def ada(email: str = "ada@example.com") -> dict[str, str]:
    return {"email": email, "name": "Ada Lovelace"}


# --- What clients are told ------------------------------------------------------------------------


async def test_the_sixth_registration_of_an_address_within_an_hour_is_too_many(dsn: str) -> None:
    async with open_api(dsn, follows=False) as api:
        answers = [await api.register() for _ in range(6)]
        other = await api.register("grace@example.com")
        metrics = (await api.http.get("/metrics")).text

    assert [answer.status_code for answer in answers] == [202] * 5 + [429]
    assert other.status_code == 202
    refused = answers[5]
    assert problem_of(refused) == "too-many-requests"
    assert 700 < int(refused.headers["Retry-After"]) <= 720
    assert refused.headers["RateLimit-Policy"] == '"registrations";q=5;w=3600'
    assert refused.headers["RateLimit"] == f'"registrations";r=0;t={refused.headers["Retry-After"]}'
    assert "RateLimit" not in answers[0].headers
    assert 'registrar_limit_total{outcome="refused",policy="registrations"} 1.0' in metrics
    assert 'registrar_registrations_total{outcome="too-many-requests"} 1.0' in metrics


async def test_a_requester_meets_the_limit_alike_whatever_has_become_of_the_address(dsn: str) -> None:
    """S3: also where the address is an account, or somebody else's sign-up."""
    async with open_api(dsn) as api:
        await api.active("taken@example.com")
        answers = {
            email: [await api.register(email) for _ in range(6)][-1]
            for email in ("new@example.com", "other@example.com")
        }
        taken = [await api.register("taken@example.com") for _ in range(5)]

    assert [answer.status_code for answer in taken] == [202] * 4 + [429]  # its sign-up was the first one
    refused = {(answer.status_code, answer.content) for answer in (*answers.values(), taken[-1])}
    assert len(refused) == 1


async def test_others_never_meet_the_limit_of_one_requester(dsn: str) -> None:
    async with behind_a_proxy(dsn) as (_, server):
        async with client_from("192.0.2.7", server) as http:
            eve = [(await http.post("/v1/registrations", json=ada())).status_code for _ in range(8)]
        async with client_from("198.51.100.1", server) as http:
            owner = await http.post("/v1/registrations", json=ada())

    assert eve == [202] * 5 + [429] * 3
    assert owner.status_code == 202


async def test_a_refused_password_is_not_hashed(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_api(dsn, follows=False) as api:
        for _ in range(5):
            await api.register()
        hashed = []
        monkeypatch.setattr(api.service.process.core.hasher, "hash", lambda *given: hashed.append(given))

        refused = await api.register(password="correct horse battery staple")

    assert refused.status_code == 429
    assert hashed == []


async def test_a_network_is_limited_whatever_it_registers_and_the_log_has_no_more(dsn: str) -> None:
    async with behind_a_proxy(dsn) as (_, server), client_from("2001:db8::1", server) as http:
        sent = [http.post("/v1/registrations", json=ada(f"{number}@example.com")) for number in range(60)]
        answers = await asyncio.gather(*sent)

    assert sum(answer.status_code == 202 for answer in answers) == 20
    assert {answer.status_code for answer in answers} == {202, 429}
    begun = await query(dsn, "SELECT count(*) FROM events WHERE topic = 'registration.user_registered'")
    assert begun == [(20,)]


async def test_codes_are_offered_and_asked_for_within_limits(dsn: str) -> None:
    settings = {"limits": "verifications=3/1h, new-codes=2/1h"}
    async with behind_a_proxy(dsn, **settings) as (api, server), client_from("192.0.2.7", server) as http:
        path = f"/v1/registrations/{(await api.register()).json()['registration_id']}"
        offered = [await http.post(f"{path}/verification", json={"code": "12"}) for _ in range(4)]
        asked = [await http.post(f"{path}/otp") for _ in range(3)]

    assert [answer.status_code for answer in offered] == [422, 422, 422, 429]
    assert offered[3].headers["RateLimit-Policy"] == '"verifications";q=3;w=3600'
    assert [answer.status_code for answer in asked] == [429, 429, 429]
    assert ["RateLimit" in answer.headers for answer in asked] == [False, False, True]  # the first ones: the cooldown


async def test_whoever_guesses_the_operators_token_is_not_even_answered_for_a_while(dsn: str) -> None:
    async with behind_a_proxy(dsn, limits="admin-login=3/1h") as (_, server):
        async with client_from("192.0.2.7", server) as guesser:
            wrong = {"Authorization": "Bearer wrong"}
            guesses = [await guesser.get("/v1/admin/projections", headers=wrong) for _ in range(5)]
            right = await guesser.get("/v1/admin/projections", headers=ADMIN)
        async with client_from("198.51.100.1", server) as operator:
            theirs = [await operator.get("/v1/admin/projections", headers=ADMIN) for _ in range(10)]

    assert [answer.status_code for answer in guesses] == [401, 401, 401, 429, 429]
    assert right.status_code == 429
    assert {answer.status_code for answer in theirs} == {200}


async def test_what_needs_no_limit_has_none(dsn: str) -> None:
    async with behind_a_proxy(dsn, limits="network=1/1d") as (_, server), client_from("192.0.2.7", server) as http:
        registration_id = (await http.post("/v1/registrations", json=ada())).json()["registration_id"]
        assert (await http.post("/v1/registrations", json=ada())).status_code == 429
        for path in (f"/v1/registrations/{registration_id}", "/health/ready", "/health/live", "/metrics"):
            answers = [await http.get(path) for _ in range(100)]
            assert {answer.status_code for answer in answers} == {200}, path


# --- Whose request it is --------------------------------------------------------------------------


def _show(request: Request) -> Response:
    return PlainTextResponse(network_of(request.scope))


CLIENTS: dict[str, tuple[Sequence[str], str]] = {
    "none": ([], "127.0.0.1"),
    "one": (["192.0.2.7"], "192.0.2.7"),
    "spoofed on the left": (["1.1.1.1, 192.0.2.7"], "192.0.2.7"),
    "spoofed as a proxy": (["10.1.1.1, 192.0.2.7"], "192.0.2.7"),
    "spoofed as this machine": (["127.0.0.1, 192.0.2.7"], "192.0.2.7"),
    "through two proxies": (["1.1.1.1, 192.0.2.7, 10.0.0.5"], "192.0.2.7"),
    "two headers": (["1.1.1.1", "192.0.2.7"], "192.0.2.7"),
    "two headers, the last of a proxy's": (["1.1.1.1, 192.0.2.7", "10.0.0.5"], "192.0.2.7"),
    "a port": (["192.0.2.7:4711"], "192.0.2.7"),
    "a port behind a proxy with a port": (["192.0.2.7:4711, 10.0.0.5:80"], "192.0.2.7"),
    "IPv6": (["2001:db8:1:2::1"], "2001:db8:1:2::/64"),
    "IPv6 in brackets": (["[2001:db8:1:2::1]"], "2001:db8:1:2::/64"),
    "IPv6 in brackets with a port": (["[2001:db8:1:2::1]:4711"], "2001:db8:1:2::/64"),
    "IPv6 through a proxy": (["2001:db8:1:2::1, fd00::5"], "2001:db8:1:2::/64"),
    "IPv4 in IPv6": (["::ffff:192.0.2.7"], "192.0.2.7"),
    "a proxy's IPv4 in IPv6": (["192.0.2.7, ::ffff:10.0.0.5"], "192.0.2.7"),
    "proxies only": (["10.0.0.9, 10.0.0.5"], "10.0.0.9"),
    "no spaces": (["1.1.1.1,192.0.2.7,10.0.0.5"], "192.0.2.7"),
    "many spaces": (["1.1.1.1 ,   192.0.2.7 \t"], "192.0.2.7"),
    "unknown": (["1.1.1.1, unknown"], "unknown"),
    "a name": (["1.1.1.1, somebody"], "unknown"),
    "garbage": (["1.1.1.1, \xff\xfe<script>"], "unknown"),
    "no address of this size": (["1.1.1.1, 192.0.2.700"], "unknown"),
    "half a bracket": (["[2001:db8::1"], "unknown"),
    "a million of them": ([", ".join(["1.1.1.1"] * 500) + ", 192.0.2.7"], "192.0.2.7"),
    "empty": ([""], "127.0.0.1"),
    "an empty last one": (["1.1.1.1, "], "127.0.0.1"),
}


@pytest.mark.parametrize("host", ["127.0.0.1", "::ffff:127.0.0.1"])
async def test_a_client_is_the_rightmost_hop_that_is_no_proxy_of_ours(host: str) -> None:
    seen = {name: await _seen(headers, PROXIES, host) for name, (headers, _) in CLIENTS.items()}

    assert seen == {name: expected for name, (_, expected) in CLIENTS.items()}


async def test_without_trusted_proxies_nobody_is_believed() -> None:
    assert {await _seen(headers, ()) for headers, _ in CLIENTS.values()} == {"127.0.0.1"}


async def _seen(headers: Sequence[str], trusted: tuple[Network, ...], host: str = "127.0.0.1") -> str:
    """As whom the server sees a request with these `X-Forwarded-For`, and some that say nothing."""
    app = FastAPI(telemetry={"tracing": False, "metrics": False, "logs": False})
    app.add_route("/", _show)
    server = Server(app, host=host, port=0, trusted_proxies=trusted)
    await server.start()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        lines = ["GET / HTTP/1.1", "Host: x", "Connection: close", "X-Real-IP: 6.6.6.6", "Forwarded: for=6.6.6.6"]
        lines += [f"X-Forwarded-For: {one}" for one in headers]
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        answer = (await reader.read()).decode()
        writer.close()
    finally:
        await server.stop()
    assert answer.startswith("HTTP/1.1 200 "), answer
    return answer.rpartition("\r\n")[2]


# --- With Redis -----------------------------------------------------------------------------------


async def test_of_2000_requests_at_once_to_two_processes_exactly_as_many_pass_as_may(
    dsn: str, redis: PrivateRedis
) -> None:
    settings = {
        "rate_limit_url": redis.url,
        "limits": "registrations=off, network-day=off, larger-network=off, network=150/31d",
    }
    async with behind_a_proxy(dsn, **settings) as (_, one), behind_a_proxy(dsn, **settings) as (_, other):
        found = await asyncio.gather(*(_posted(1000, server, salt) for salt, server in (("a", one), ("b", other))))

    statuses = [status for statuses in found for status in statuses]
    assert len(statuses) == 2000
    assert statuses.count(202) == 150
    assert statuses.count(429) == 1850


async def _posted(requests: int, server: Server, salt: str) -> list[int]:
    """The statuses of so many registrations, on 50 connections at once."""

    async def several(numbers: range) -> list[int]:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        statuses = []
        for number in numbers:
            body = json.dumps(ada(f"{salt}{number}@example.com"))
            head = ["POST /v1/registrations HTTP/1.1", "Host: x", "X-Forwarded-For: 192.0.2.7"]
            head += ["Content-Type: application/json", f"Content-Length: {len(body)}", "", ""]
            writer.write(("\r\n".join(head) + body).encode())
            told = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            await reader.readexactly(int(told.partition("content-length:")[2].split()[0]))
            statuses.append(int(told.split()[1]))
        writer.close()
        return statuses

    found = await asyncio.gather(*(several(range(first, requests, 50)) for first in range(50)))
    return [status for statuses in found for status in statuses]


async def test_neither_an_address_nor_a_network_is_in_redis(dsn: str, redis: PrivateRedis) -> None:
    async with (
        behind_a_proxy(dsn, rate_limit_url=redis.url) as (_, server),
        client_from("192.0.2.7", server) as http,
    ):
        assert (await http.post("/v1/registrations", json=ada("canary@hunter.example"))).status_code == 202

    keys = [key.decode() for key in redis.ask("KEYS", "*")]
    assert sorted(key.split(":")[1] for key in keys) == [
        "domain",
        "larger-network",
        "network",
        "network-day",
        "registrations",
    ]
    assert all(re.fullmatch(r"\{registrar\}:[a-z-]+:[0-9]+/[0-9]+:[0-9a-f]{32}", key) for key in keys)
    assert all(int(redis.ask("PTTL", key)) > 0 for key in keys)


@pytest.mark.fault("D1")
async def test_without_redis_the_service_is_ready_and_says_so_and_limits_more_strictly(
    dsn: str, redis: PrivateRedis
) -> None:
    async with open_api(dsn, follows=False, rate_limit_url=redis.url) as api:
        ready = await api.http.get("/health/ready")
        assert ready.json()["limiter"] == "up"
        redis.kill()
        answers = [await api.register() for _ in range(6)]
        degraded = await api.http.get("/health/ready")
        metrics = (await api.http.get("/metrics")).text
        redis.start()

        async def back() -> bool:
            return bool((await api.http.get("/health/ready")).json()["limiter"] == "up")

        await eventually(back, within=30)

    assert [answer.status_code for answer in answers] == [202, 202, 429, 429, 429, 429]
    assert degraded.status_code == 200
    assert degraded.json() == {"status": "degraded", "database": "up", "limiter": "degraded"}
    assert "registrar_limiter_degraded 1.0" in metrics


# --- For operators --------------------------------------------------------------------------------


def test_doctor_says_whether_redis_counts(pytestconfig: pytest.Config) -> None:
    redis_server.demand(pytestconfig)
    with tempfile.TemporaryDirectory() as directory, redis_server.server() as redis:

        def doctor() -> Any:
            found = ran(
                "doctor", "--json", "--data-dir", directory, environment=clean_environment(RATE_LIMIT_URL=redis.url)
            )
            (finding,) = (one for one in found.json["checks"] if one["check"] == "rate limits")
            return finding

        assert doctor()["state"] == "ok"
        redis.kill()
        assert doctor() == {
            "check": "rate limits",
            "state": "fail",
            "says": "Redis does not count: it cannot be reached",
            "advice": "Look whether it runs, and at REGISTRAR_RATE_LIMIT_URL.",
        }


def test_the_limits_in_force_are_shown() -> None:
    shown = ran("limits", "show", "--json", environment=clean_environment(LIMITS="network=20/1m burst 40 shadow"))

    assert shown.json["counted_in"] == "process"
    assert [one for one in shown.json["limits"] if one["name"] == "network"] == [
        {
            "name": "network",
            "count": 20,
            "per_seconds": 60,
            "burst": 40,
            "interval_seconds": 3.0,
            "mode": "shadow",
            "of": "registrations by an IPv4 address or IPv6 /64",
        }
    ]
