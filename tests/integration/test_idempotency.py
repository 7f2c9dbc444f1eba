"""Idempotency-Key over HTTP: every POST that comes again with its key gets the first response, byte for byte."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from ipaddress import ip_network
from typing import Any
from uuid import UUID

import httpx
import pytest
from fastapi.routing import APIRoute

from application.commands import RecordEmailComplained
from application.ports import Context, entries_of
from entrypoints.api.admission import MOST
from entrypoints.api.http_server import Server
from infrastructure.settings.values import Network
from tests.faults.database import ANSWER
from tests.integration.test_api import failed_mails, followed
from tests.support.facts import STRAY, MovableClock, eventually, stray_kept, stream
from tests.support.http import ADMIN, ANY_NUMBER, NO_TLS, Api, open_api, open_api_through, problem_of
from tests.support.log import proxy_to, query
from tests.support.tcp_proxy import TO_CLIENT

KEY = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"

OF_THE_REQUEST = {"date", "registrar-request-id", "idempotent-replayed"}
"""Response headers that are about this request, not about what the first one was told."""

Told = tuple[int, Mapping[str, str], bytes]


def told(answer: httpx.Response) -> Told:
    """What is promised to be the same."""
    headers = {name: value for name, value in answer.headers.items() if name not in OF_THE_REQUEST}
    return answer.status_code, headers, answer.content


def is_repeat(answer: httpx.Response) -> bool:
    value = answer.headers.get("Idempotent-Replayed")
    assert value in {None, "true"}
    return value is not None


@asynccontextmanager
async def served(api: Api, *trusted: Network) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the real server."""
    server = Server(api.app, host="127.0.0.1", port=0, trusted_proxies=trusted)
    await server.start()
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", verify=NO_TLS, timeout=60) as http:
            yield http
    finally:
        await server.stop()


class Two:
    """Two processes on one database, each behind a server of its own."""

    def __init__(self, api: Api, clients: tuple[httpx.AsyncClient, ...], clock: MovableClock) -> None:
        self.api = api
        self.clients = clients
        self.clock = clock

    async def post(self, path: str, body: Any = None, *, key: str | None = KEY, on: int = 0) -> httpx.Response:
        headers = ADMIN if key is None else ADMIN | {"Idempotency-Key": key}
        return await self.clients[on % 2].post(path, json=body, headers=headers)

    async def registered(self, email: str) -> str:
        begun = await self.post("/v1/registrations", {"email": email, "name": "Ada"}, key=None)
        assert begun.status_code == 202
        return str(begun.json()["registration_id"])

    def code(self, registration_id: str, serial: int = 1, *, right: bool) -> str:
        code = self.api.service.keyring.code(UUID(registration_id), serial)
        return code if right else f"{(int(code) + 1) % 10**6:06d}"

    async def head(self) -> int:
        return await self.api.service.store.head()


@pytest.fixture
async def two(dsn: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Two]:
    monkeypatch.setattr("entrypoints.bootstrap.jobs.COMMAND", ("true",))
    clock = MovableClock()
    async with (
        open_api(dsn, follows=False, clock=clock) as one,
        open_api(dsn, follows=False, clock=clock) as other,
        served(one) as first,
        served(other) as second,
    ):
        yield Two(one, (first, second), clock)


# --- Every POST -------------------------------------------------------------------------------

Asked = tuple[str, Any]
"""A path, and a body."""

Prepare = Callable[[Two], Awaitable[Asked]]
OF = "/v1/registrations"
ADMINS = "/v1/admin"


async def _register(_: Two) -> Asked:
    return OF, {"email": "Grace@Example.com", "name": "Grace", "password": "correct horse battery", "locale": "de"}


async def _verify(two: Two) -> Asked:
    registration_id = await two.registered("verify@example.com")
    return f"{OF}/{registration_id}/verification", {"code": two.code(registration_id, right=True)}


async def _guess(two: Two) -> Asked:
    registration_id = await two.registered("guess@example.com")
    return f"{OF}/{registration_id}/verification", {"code": two.code(registration_id, right=False)}


async def _new_code(two: Two) -> Asked:
    registration_id = await two.registered("otp@example.com")
    two.clock.now += timedelta(minutes=1)
    return f"{OF}/{registration_id}/otp", None


async def _set_password(two: Two) -> Asked:
    registration_id = await two.registered("password@example.com")
    await two.post(f"{OF}/{registration_id}/verification", {"code": two.code(registration_id, right=True)}, key=None)
    return f"{ADMINS}/accounts/{registration_id}/password", {"password": "roses are red today"}


def _act(path: str) -> Prepare:
    async def prepare(two: Two) -> Asked:
        return ADMINS + path.format(
            await two.registered(f"{path.replace('/', '-')[:-2].strip('-{}')}@example.com")
        ), None

    return prepare


async def _allow_silenced(two: Two) -> Asked:
    registration_id = await two.registered("allow@example.com")
    complained = RecordEmailComplained(registration_id=UUID(registration_id), serial=1, reported_by="ses")
    await two.api.service.handlers.handle(complained, Context("bounce-report", UUID(int=2)))
    return f"{ADMINS}/mail/{registration_id}/allow", None


async def _discard_stray(two: Two) -> Asked:
    kept = stream(STRAY, stray_kept())
    await two.api.service.store.append(entries_of(kept, Context("dead-letter-consumer", UUID(int=1))))
    return f"{ADMINS}/mail/{STRAY}/discard", None


async def _retry_by_cause(two: Two) -> Asked:
    before = await two.head()
    await failed_mails(two.api, "expired", "expired", "expired")
    await followed(two.api, before)
    return f"{ADMINS}/mail/retry", {"failure": "expired", "limit": 2}


async def _retry_parked(two: Two) -> Asked:
    registration_id = await two.registered("parked@example.com")
    statement = "INSERT INTO parked_events (follower, stream_id, position, error) VALUES ('mail', %s, 1, 'KeyError')"
    await query(two.api.service.dsn, statement, registration_id)
    return f"{ADMINS}/projections/parked/{registration_id}/retry", None


def _job(path: str, body: Any = None) -> Prepare:
    async def prepare(two: Two) -> Asked:
        async def idle() -> bool:
            running = "SELECT FROM replay_jobs WHERE state = 'running'"
            return await query(two.api.service.dsn, running) == []

        await eventually(idle)
        return ADMINS + path, body

    return prepare


EVERY: Mapping[str, tuple[Prepare, ...]] = {
    OF: (_register,),
    f"{OF}/{{registration_id}}/verification": (_verify, _guess),
    f"{OF}/{{registration_id}}/otp": (_new_code,),
    f"{ADMINS}/registrations/{{registration_id}}/cancel": (_act("/registrations/{}/cancel"),),
    f"{ADMINS}/registrations/{{registration_id}}/erase": (_act("/registrations/{}/erase"),),
    f"{ADMINS}/accounts/{{registration_id}}/password": (_set_password,),
    f"{ADMINS}/mail/{{registration_id}}/retry": (_act("/mail/{}/retry"),),
    f"{ADMINS}/mail/{{registration_id}}/discard": (_act("/mail/{}/discard"), _discard_stray),
    f"{ADMINS}/mail/{{registration_id}}/allow": (_allow_silenced,),
    f"{ADMINS}/mail/retry": (_retry_by_cause,),
    f"{ADMINS}/projections/parked/{{stream_id}}/retry": (_retry_parked,),
    f"{ADMINS}/projections/{{name}}/rebuild": (_job("/projections/mail/rebuild", {"repair": True}),),
    f"{ADMINS}/projections/{{name}}/rollback": (_job("/projections/mail/rollback"),),
    f"{ADMINS}/projections/{{name}}/abort": (_job("/projections/mail/abort"),),
    f"{ADMINS}/projections/{{name}}/verify": (_job("/projections/mail/verify"),),
    f"{ADMINS}/projections/{{name}}/as-of": (_job("/projections/mail/as-of", {"at": 1}),),
    f"{ADMINS}/projections/{{name}}/diff": (_job("/projections/mail/diff", {"a": 1, "b": 2}),),
    f"{ADMINS}/what-if": (_job("/what-if", {"since": 1}),),
}

ASKS_ONLY = f"{ADMINS}/accounts/{{registration_id}}/password-check"
"""Of this POST nothing is kept: a hash of a password that is fast to compute must be nowhere."""


async def test_every_post_that_comes_again_with_its_key_gets_the_first_response_on_whichever_process(two: Two) -> None:
    posts = {route.path for route in two.api.app.routes if isinstance(route, APIRoute) and route.methods == {"POST"}}
    forms = {path for path in posts if path.startswith("/sign-up")}  # hand their fields to these routes
    assert posts - {ASKS_ONLY} - forms == set(EVERY)

    for number, prepare in enumerate(prepare for prepares in EVERY.values() for prepare in prepares):
        key = f"the-key-of-request-{number}"
        path, body = await prepare(two)
        first = await two.post(path, body, key=key)
        while first.status_code == 409 and problem_of(first) == "replay-under-way":
            first = await two.post(path, body, key=key)  # the job before has ended, and lets go of its lock in a moment
        assert first.status_code in {200, 202} or problem_of(first) == "wrong-code", first.text
        head = await two.head()
        two.clock.now += timedelta(days=2)
        again = [await two.post(path, body, key=key, on=on) for on in (0, 1, 1, 0)]

        assert [told(answer) for answer in again] == [told(first)] * 4, path
        assert [is_repeat(answer) for answer in (first, *again)] == [False, True, True, True, True], path
        assert await two.head() == head, path


@pytest.mark.fault("F7")
async def test_another_body_with_the_same_key_is_refused(two: Two) -> None:
    registration_id = await two.registered("ada@example.com")
    wrong = f"{OF}/{registration_id}/verification", {"code": two.code(registration_id, right=False)}
    password = await _set_password(two)
    asked: list[tuple[Asked, Asked]] = [
        ((OF, {"email": "eve@example.com", "name": "Eve"}), (OF, {"email": "Eve@example.com", "name": "Mallory"})),
        (wrong, (wrong[0], {"code": two.code(registration_id, right=True)})),
        (
            (f"{ADMINS}/mail/retry", {"failure": "expired", "limit": 2}),
            (f"{ADMINS}/mail/retry", {"limit": 3, "failure": "expired"}),
        ),
        (
            (f"{ADMINS}/mail/{registration_id}/retry", None),
            (f"{ADMINS}/registrations/{registration_id}/erase", None),
        ),
        ((f"{ADMINS}/what-if", {"since": 1}), (f"{ADMINS}/what-if", {"since": 2})),
        ((password[0], {"password": "roses are red today"}), (password[0], {"password": "violets are blue today"})),
    ]
    for number, ((path, body), (other_path, other_body)) in enumerate(asked):
        key = f"the-key-of-request-{number}"
        first = await two.post(path, body, key=key)
        head = await two.head()

        refused = await two.post(other_path, other_body, key=key, on=1)

        assert (refused.status_code, problem_of(refused)) == (422, "idempotency-key-reused"), path
        assert not is_repeat(refused)
        assert await two.head() == head
        assert told(await two.post(path, body, key=key)) == told(first)


async def test_how_a_body_is_written_does_not_matter(two: Two) -> None:
    first = await two.post(f"{ADMINS}/mail/retry", {"failure": "expired", "limit": 2})

    again = await two.post(f"{ADMINS}/mail/retry", {"limit": 2, "failure": "expired"}, on=1)

    assert told(again) == told(first)
    assert is_repeat(again)


async def test_a_malformed_key_is_refused_by_every_post(two: Two) -> None:
    bodies = {
        OF: {"email": "ada@example.com", "name": "Ada"},
        f"{OF}/{{registration_id}}/verification": {"code": "123456"},
        f"{ADMINS}/mail/retry": {"failure": "expired"},
        f"{ADMINS}/accounts/{{registration_id}}/password": {"password": "roses are red today"},
        f"{ADMINS}/projections/{{name}}/as-of": {"at": 1},
        f"{ADMINS}/projections/{{name}}/diff": {"a": 1, "b": 2},
    }
    for path in EVERY:
        asked = path.format(registration_id=STRAY, stream_id=STRAY, name="mail")
        for key in ("short", "spaces are not in a key", "x" * 65):
            refused = await two.post(asked, bodies.get(path), key=key)
            assert (refused.status_code, problem_of(refused)) == (422, "invalid-request"), path
            assert refused.json()["errors"][0]["field"] == "idempotency-key"
    assert await two.head() == 0


async def test_every_post_says_in_the_document_that_it_takes_a_key(two: Two) -> None:
    document = (await two.clients[0].get("/openapi.json")).json()

    for path, methods in document["paths"].items():
        for method, route in methods.items():
            keys = [one for one in route.get("parameters", ()) if one["name"] == "Idempotency-Key"]
            assert len(keys) == (method == "post" and path != ASKS_ONLY), path
            if keys:
                success = next(response for status, response in route["responses"].items() if status < "300")
                assert "Idempotent-Replayed" in success["headers"], path
                assert "idempotency-key-reused" in route["responses"]["422"]["description"], path


# --- At once ----------------------------------------------------------------------------------


@pytest.mark.fault("F6")
@pytest.mark.parametrize(
    "prepare",
    [_register, _verify, _guess, _new_code, _act("/registrations/{}/erase"), _retry_by_cause, _job("/what-if")],
    ids=["register", "verify", "guess", "new code", "erase", "retry by cause", "job"],
)
async def test_of_fifty_at_once_on_two_processes_one_is_run_and_all_get_its_response(
    two: Two, prepare: Prepare
) -> None:
    """Within the limits that there are by default: five registrations of an address an hour."""
    path, body = await prepare(two)

    together = min(50, 2 * MOST["operate"]) if path.startswith(ADMINS) else 50  # as many as two processes let in
    answers = await asyncio.gather(*(two.post(path, body, on=on) for on in range(together)))

    assert (
        len({(status, tuple(sorted(headers.items())), content) for status, headers, content in map(told, answers)}) == 1
    )
    assert answers[0].status_code in {200, 202} or problem_of(answers[0]) == "wrong-code"
    assert Counter(map(is_repeat, answers)) == {False: 1, True: together - 1}


# --- After a commit whose answer was lost ---------------------------------------------------------


@pytest.mark.fault("B4")
@pytest.mark.slow
@pytest.mark.parametrize("asked", ["register", "guess", "otp", "erase"])
async def test_a_request_that_was_done_and_answered_with_unavailable_is_told_what_it_did(dsn: str, asked: str) -> None:
    clock = MovableClock()
    async with proxy_to(dsn) as proxy, open_api_through(proxy, dsn, clock=clock, limits=ANY_NUMBER) as api:
        registration_id = (await api.register()).json()["registration_id"]
        wrong = {"code": f"{(int(api.service.keyring.code(UUID(registration_id), 1)) + 1) % 10**6:06d}"}
        clock.now += timedelta(minutes=1)
        path, body = {
            "register": (OF, {"email": "eve@example.com", "name": "Eve"}),
            "guess": (f"{OF}/{registration_id}/verification", wrong),
            "otp": (f"{OF}/{registration_id}/otp", None),
            "erase": (f"{ADMINS}/registrations/{registration_id}/erase", None),
        }[asked]

        async def post() -> httpx.Response:
            return await api.http.post(path, json=body, headers=ADMIN | {"Idempotency-Key": KEY})

        proxy.cut(TO_CLIENT, ANSWER, forward=False)
        proxy.refuse()
        assert (await post()).status_code == 503
        proxy.heal()
        assert proxy.is_effective
        head = await eventually(lambda: _counted(dsn))

        async def answered() -> httpx.Response | None:
            answer = await post()
            return answer if answer.status_code != 503 else None

        first: httpx.Response = await eventually(answered)
        again = await post()

        assert is_repeat(first)
        assert told(again) == told(first)
        assert await _counted(dsn) == head


async def _counted(dsn: str) -> int:
    [(events,)] = await query(dsn, "SELECT count(*) FROM events")
    return int(events)


# --- Limits -----------------------------------------------------------------------------------


async def test_a_client_that_repeats_for_want_of_an_answer_is_never_too_much(dsn: str) -> None:
    trusted = "127.0.0.0/8"
    limits = "registrations=1/1h, network=1/1h, verifications=1/1h, new-codes=1/1h"
    async with (
        open_api(dsn, follows=False, trusted_proxies=trusted, limits=limits) as api,
        served(api, ip_network(trusted)) as http,
    ):
        http.headers["X-Forwarded-For"] = "192.0.2.7"
        ada = {"email": "ada@example.com", "name": "Ada"}
        begun = [await http.post(OF, json=ada, headers={"Idempotency-Key": KEY}) for _ in range(20)]
        path = f"{OF}/{begun[0].json()['registration_id']}/verification"
        wrong = {"code": f"{(int(api.service.keyring.code(UUID(path.split('/')[3]), 1)) + 1) % 10**6:06d}"}
        offered = [await http.post(path, json=wrong, headers={"Idempotency-Key": KEY}) for _ in range(20)]
        made_up = await http.post(OF, json=ada, headers={"Idempotency-Key": f"{KEY}-2"})
        none = await http.post(path, json=wrong)

    assert {answer.status_code for answer in begun} == {202}
    assert {answer.status_code for answer in offered} == {422}
    assert {problem_of(answer) for answer in offered} == {"wrong-code"}
    assert (made_up.status_code, problem_of(made_up)) == (429, "too-many-requests")
    assert (none.status_code, problem_of(none)) == (429, "too-many-requests")


async def test_others_learn_nothing_from_a_key(dsn: str) -> None:
    """S3: with another address it is another key, whether or not somebody has used it."""
    async with open_api(dsn, follows=False) as api:
        await api.register(key=KEY)
        used = await api.register("eve@example.com", key=KEY)
        new = await api.register("mallory@example.com", key=f"{KEY}-2")

    seen = [
        (answer.status_code, sorted(answer.headers), len(answer.content) - len(answer.json()["email"]))
        for answer in (used, new)
    ]
    assert seen[0] == seen[1]
    assert not is_repeat(used)
