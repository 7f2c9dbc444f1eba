"""F1, F8: one kind of request, or one client's connections, are too many; what becomes of all the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

import pytest

from entrypoints.api.admission import MOST, Admission, AdmissionSlot, Class
from entrypoints.api.connections import SPARED, Connections
from infrastructure.telemetry.metrics import Metrics
from tests.faults.test_requests import BODY, WHOLE, Client, connected, head, serving
from tests.support.http import ANY_NUMBER, Api, open_api

UNKNOWN = "/v1/registrations/019cab10-0000-7000-8000-00000000dead"
CODE = b'{"code": "123456"}'


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: registrar.test\r\n\r\n".encode()


ASKED: dict[Class, tuple[bytes, int]] = {
    "register": (WHOLE, 202),
    "verify": (head(f"Content-Length: {len(CODE)}", path=f"{UNKNOWN}/verification") + CODE, 404),
    "resend": (head("Content-Length: 0", path=f"{UNKNOWN}/otp"), 404),
    "look": (get(UNKNOWN), 404),
    "wait": (get(f"{UNKNOWN}?min_position=0"), 404),
    "operate": (get("/v1/admin/registrations"), 401),
    "health": (get("/health/live"), 200),
    "other": (get("/nowhere"), 404),
}
"""A request of each class, and what it is answered."""


@pytest.fixture
async def api(dsn: str) -> AsyncIterator[Api]:
    async with open_api(dsn, follows=False, limits=ANY_NUMBER) as api:
        yield api


@pytest.fixture
def no_room(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Class:
    """There is no place for requests of the class that the test is parametrized by."""
    name: Class = request.param
    if name == "register":
        monkeypatch.setattr("entrypoints.api.admission.STEADY", 0)
        monkeypatch.setattr("entrypoints.api.admission.BURST", 0)
    else:
        monkeypatch.setitem(MOST, name, 0)
    return name


@pytest.mark.fault("F8")
@pytest.mark.parametrize("no_room", ASKED, indirect=True)
async def test_a_flood_of_one_class_of_requests_keeps_out_no_other(api: Api, no_room: Class) -> None:
    async with serving(api) as server, connected(server.port) as client:
        for name, (request, expected) in ASKED.items():
            await client.send(request)
            status, headers, body = await client.answer()
            if name == no_room:
                assert (status, headers.get("connection")) == (503, None)
                assert headers["retry-after"] in {"1", "2", "3"}
                assert b"urn:registrar:problem:overloaded" in body
            else:
                assert status == expected, name
    metrics = (await api.http.get("/metrics")).text
    reason = "busy" if no_room == "register" else f"busy-{no_room}"
    assert f'registrar_shed_total{{reason="{reason}"}} 1.0' in metrics
    assert metrics.count("registrar_shed_total{") == 1
    for counter, of in (("registrations", "register"), ("verifications", "verify")):
        assert (f'registrar_{counter}_total{{outcome="overloaded"}} 1.0' in metrics) == (no_room == of)


@pytest.mark.fault("F8")
async def test_a_place_is_held_from_the_last_byte_of_a_request_to_its_answer(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three who were let in to send, the first to end has the place; and it is free once the answer is out."""
    monkeypatch.setitem(MOST, "wait", 1)
    waits = f"{UNKNOWN}?min_position=999&wait=700"
    async with serving(api) as server, AsyncExitStack() as stack:
        late, first, second = [await stack.enter_async_context(connected(server.port)) for _ in range(3)]
        await late.send(f"GET {waits} HTTP/1.1\r\nHost: r\r\nContent-Length: 2\r\n\r\n".encode())
        await first.send(get(waits))
        await second.send(get(waits))
        await late.send(b"{}")
        assert sorted([(await client.answer())[2].count(b"overloaded") for client in (late, first, second)]) == [
            0,
            1,
            1,
        ]

        async def is_free() -> bool:
            await second.send(get(waits))
            return b"overloaded" not in (await second.answer())[2]

        assert await is_free()


@pytest.mark.fault("F8")
def test_a_request_is_of_the_class_that_its_path_and_method_say() -> None:
    admission = Admission(Metrics(), prefix="/accounts")

    def name(method: str, path: str) -> str:
        return admission.bound_of(method.encode(), path.encode()).name

    for prefix in ("", "/accounts"):
        assert name("POST", f"{prefix}/v1/registrations") == "register"
        assert name("GET", f"{prefix}/v1/registrations") == "other"
        assert name("POST", f"{prefix}{UNKNOWN}/verification") == "verify"
        assert name("POST", f"{prefix}{UNKNOWN}/otp") == "resend"
        assert name("GET", f"{prefix}{UNKNOWN}") == "look"
        form = f"{prefix}/sign-up"
        assert [name("POST", path) for path in (form, f"{form}/x/verification", f"{form}/x/otp")] == [
            *("register", "verify", "resend")
        ]
        assert admission.bound_of(b"GET", f"{form}/x".encode(), b"min_position=1").name == "wait"
        assert name("HEAD", f"{prefix}{UNKNOWN}") == "look"
        assert admission.bound_of(b"GET", f"{prefix}{UNKNOWN}".encode(), b"min_position=1").name == "wait"
        assert name("POST", f"{prefix}/v1/admin/mail/x/retry") == "operate"
        assert name("GET", f"{prefix}/health/ready") == "health"
        assert name("GET", f"{prefix}/metrics") == "health"
        assert name("GET", f"{prefix}/mailbox") == "other"


@pytest.mark.fault("F8")
def test_a_place_is_counted_once_however_often_it_is_taken_and_left() -> None:
    admission = Admission(Metrics())
    bound = admission.bound_of(b"GET", UNKNOWN.encode())
    place = AdmissionSlot(bound)

    place.take()
    place.take()
    assert bound.under_way == 1
    place.leave()
    place.leave()
    place.take()
    assert bound.under_way == 0


# --- Slow clients (F1) ------------------------------------------------------------------------------


class Line:
    """An open connection, as `Connections` sees it."""

    def __init__(self, host: str, since: float | None = 0.0) -> None:
        self.host = host
        self.since = since
        self.ended = False

    def idle_since(self) -> float | None:
        return self.since

    def give_up(self) -> None:
        self.ended = True


@pytest.mark.fault("F1")
def test_where_there_is_no_room_the_one_who_has_most_makes_it_until_all_have_as_many() -> None:
    connections = Connections(8, network_of=str, clock=lambda: 0.5)
    flood = [Line("flood") for _ in range(9)]
    assert [connections.enter(line, "flood") for line in flood] == [True] * 8 + [False]

    honest = [Line("honest") for _ in range(5)]
    assert [connections.enter(line, "honest") for line in honest] == [True, True, True, True, False]
    assert [line.ended for line in flood[:8]] == [True] * 4 + [False] * 4
    assert not any(line.ended for line in honest)


@pytest.mark.fault("F1")
def test_a_connection_on_which_a_request_is_worked_on_is_nobodys_to_take() -> None:
    connections = Connections(2, network_of=str, clock=lambda: 100.0)
    working, idle = Line("flood", None), Line("flood")
    for line in (working, idle):
        assert connections.enter(line, "flood")

    assert connections.enter(Line("honest", None), "honest")
    assert (working.ended, idle.ended) == (False, True)
    assert not connections.enter(Line("other"), "other")


@pytest.mark.fault("F1")
def test_from_as_many_networks_as_there_are_places_each_has_its_place_for_a_second() -> None:
    now = 0.0
    connections = Connections(3, network_of=str, clock=lambda: now)
    flood = [Line(f"flood {n}") for n in range(3)]
    for line in flood:
        assert connections.enter(line, line.host)

    assert not connections.enter(Line("honest"), "honest")
    now = 1.5
    assert connections.enter(Line("honest", now), "honest")
    assert [line.ended for line in flood] == [True, False, False]


@pytest.mark.fault("F1")
def test_places_are_given_back_and_a_trusted_proxys_connections_are_nobodys_to_take() -> None:
    connections = Connections(2, network_of=lambda host: SPARED if host == "proxy" else host, clock=lambda: 100.0)
    lines = [Line("proxy"), Line("proxy")]
    for line in lines:
        assert connections.enter(line, "proxy")
    assert not connections.enter(Line("honest"), "honest")
    assert not any(line.ended for line in lines)

    connections.leave(lines[0], "proxy")
    connections.leave(lines[0], "proxy")
    honest = Line("honest")
    assert connections.enter(honest, "honest")
    assert connections.enter(Line("proxy"), "proxy")
    assert honest.ended


@asynccontextmanager
async def connected_from(address: str, port: int) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


@pytest.mark.fault("F1")
async def test_slow_heads_slow_bodies_and_silence_of_one_network_keep_no_other_out(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("entrypoints.api.http_protocol.HEAD_DEADLINE", timedelta(hours=1))
    monkeypatch.setattr("entrypoints.api.guard.BODY_DEADLINE", timedelta(hours=1))
    monkeypatch.setattr("entrypoints.api.connections.spare", lambda: 9)
    whole = head(f"Content-Length: {len(BODY)}")
    async with serving(api) as server, AsyncExitStack() as stack:
        slow = [await stack.enter_async_context(connected_from("127.0.0.2", server.port)) for _ in range(9)]
        for number, client in enumerate(slow):
            await client.send((b"", whole[:20], whole + BODY[:5])[number % 3])

        for _ in range(4):  # one after the other, each of which stays
            honest = await stack.enter_async_context(connected_from("127.0.0.3", server.port))
            await honest.send(WHOLE)
            assert (await honest.answer())[0] == 202
        cut_off = [client for client in slow if client.reader.at_eof() or await is_over(client)]
        assert len(cut_off) == 4


async def is_over(client: Client) -> bool:
    try:
        async with asyncio.timeout(0.05):
            return await client.reader.read(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True
