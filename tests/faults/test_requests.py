"""F: requests that are slow, huge, malformed, repeated, or too many; and a service that is told to stop among them."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest

from entrypoints.api.admission import BURST, STEADY, Registrations
from entrypoints.api.app import create_app
from entrypoints.api.http_server import Server
from entrypoints.api.refusals import is_a_registration
from infrastructure.crypto import password_hashing
from infrastructure.telemetry.metrics import Metrics
from tests.faults.programs import Program, process, serve
from tests.support.facts import eventually
from tests.support.http import ADA, ANY_NUMBER, NO_TLS, Api, client_of, open_api, problem_of
from tests.support.load import open_loop, registration
from tests.support.log import query
from tests.support.smtp_stub import SmtpStub
from tests.support.tcp_proxy import TO_CLIENT, TcpProxy

MIB = 2**20
BODY = json.dumps(ADA).encode()


@pytest.fixture
async def api(dsn: str) -> AsyncIterator[Api]:
    async with open_api(dsn, follows=False, limits=ANY_NUMBER) as api:
        yield api


@asynccontextmanager
async def serving(api: Api) -> AsyncIterator[Server]:
    server = Server(create_app(api.service.api), host="127.0.0.1", port=0, metrics=api.service.metrics)
    await server.start()
    yield server
    await server.stop()


def head(*headers: str, path: str = "/v1/registrations") -> bytes:
    lines = (f"POST {path} HTTP/1.1", "Host: registrar.test", "Content-Type: application/json", *headers, "", "")
    return "\r\n".join(lines).encode()


class Client:
    """A connection on which bytes are sent as a client's library would never send them."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next answer: status, headers, body."""
        async with asyncio.timeout(60):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:-2])}
            body = await self.reader.readexactly(int(headers["content-length"]))
        return int(lines[0].split()[1]), headers, body


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


async def registered_in(dsn: str) -> int:
    ((count,),) = await query(dsn, "SELECT count(*) FROM events WHERE topic = 'registration.user_registered'")
    return int(count)


# --- Slow and huge (F2, F3, F4) -------------------------------------------------------------------


@pytest.mark.fault("F2")
async def test_a_body_that_trickles_in_is_given_up_after_its_deadline_while_others_are_served(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("entrypoints.api.guard.BODY_DEADLINE", timedelta(seconds=1))
    async with serving(api) as server, connected(server.port) as slow, connected(server.port) as other:
        await slow.send(head(f"Content-Length: {len(BODY)}"))
        first = asyncio.create_task(slow.answer())
        sent = 0
        while not first.done():
            await slow.send(BODY[sent : sent + 1])
            sent += 1
            await asyncio.wait({first}, timeout=0.1)
        status, headers, _ = await first
        assert (status, headers["connection"]) == (408, "close")
        assert 1 < sent < len(BODY)
        assert await slow.reader.read() == b""

        await other.send(head(f"Content-Length: {len(BODY)}"), BODY)
        assert (await other.answer())[0] == 202


ENDLESS = {
    "a length": (head(f"Content-Length: {10**9}"), b"x" * 65_536),
    "chunks": (head("Transfer-Encoding: chunked"), b"10000\r\n" + b"x" * 65_536 + b"\r\n"),
    "zipped chunks": (
        head("Transfer-Encoding: chunked", "Content-Encoding: gzip"),
        b"10000\r\n" + b"\0" * 65536 + b"\r\n",
    ),
}


@pytest.mark.fault("F3")
async def test_a_gigabyte_is_refused_long_before_its_end_and_takes_no_memory(dsn: str) -> None:
    async with serve(dsn) as program, program.client() as http:
        assert (await http.post("/v1/registrations", json=ADA)).status_code == 202
        before = program.resources.memory_info().rss
        for name, (begin, piece) in ENDLESS.items():
            sent = [await flood(program, begin, piece) for _ in range(8)]
            assert max(sent) < 64 * MIB, name
        assert program.peak_memory < before + 64 * MIB
        assert (await http.post("/v1/registrations", json=ADA | {"email": "b@example.com"})).status_code == 202
    assert await registered_in(dsn) == 2


async def flood(program: Program, begin: bytes, piece: bytes) -> int:
    """Send without end; answers how many bytes it took until the connection was closed on us."""
    async with connected(program.port) as client:
        status = 0

        async def listen() -> None:
            nonlocal status
            status, _, _ = await client.answer()

        listening = asyncio.create_task(listen())
        sent = 0
        try:
            await client.send(begin)
            while sent < 10**9:
                await client.send(piece)
                sent += len(piece)
        except ConnectionError:
            pass
        await asyncio.wait({listening}, timeout=10)
        # The reset that says "enough" may overtake the answer; one that did come is the right one.
        if not listening.cancel() and listening.exception() is None:
            assert status == (415 if b"gzip" in begin else 413)
        return sent


def keys(count: int) -> bytes:
    return b"{" + b",".join(b'"k%d":1' % number for number in range(count)) + b"}"


@pytest.mark.fault("F4")
async def test_any_number_of_keys_is_refused_and_nothing_is_recorded(api: Api) -> None:
    async with serving(api) as server:
        for body, expected in ((keys(1_000), 422), (keys(100_000), 413), (keys(1_000_000), 413)):
            async with connected(server.port) as client:
                try:
                    await client.send(head(f"Content-Length: {len(body)}"), body)
                except ConnectionError:
                    assert len(body) > MIB
                status, headers, _ = await client.answer() if len(body) < MIB else (413, PROBLEM, b"")
                assert (status, headers["content-type"]) == (expected, "application/problem+json")
        assert await api.service.store.head() == 0
        async with connected(server.port) as client:
            await client.send(head(f"Content-Length: {len(BODY)}"), BODY)
            assert (await client.answer())[0] == 202


PROBLEM = {"content-type": "application/problem+json"}


# --- Repeated (F6) ----------------------------------------------------------------------------------


async def _registered_with_a_key(api: Api) -> httpx.Response:
    """Answered 503, as somebody is where the machine is busy, it comes again with its key."""

    async def answered() -> httpx.Response | None:
        answer = await api.register(key="0123456789abcdef")
        return None if answer.status_code == 503 else answer

    answer: httpx.Response = await eventually(answered)
    return answer


@pytest.mark.fault("F6")
async def test_fifty_requests_with_one_key_at_once_are_one_registration_and_one_mail(dsn: str) -> None:
    async with open_api(dsn, limits=ANY_NUMBER) as api:
        answers = await asyncio.gather(*(_registered_with_a_key(api) for _ in range(50)))

        accepted = [answer for answer in answers if answer.status_code == 202]
        assert {answer.status_code for answer in answers} <= {202, 409}
        assert accepted
        assert len({answer.json()["registration_id"] for answer in accepted}) == 1
        for answer in answers:
            assert answer.status_code == 202 or problem_of(answer) == "idempotency-key-in-use"
        await api.becomes(accepted[0].json()["registration_id"], mail="SENT")
        assert len((await api.http.get("/mailbox/messages")).json()) == 1
    assert await registered_in(dsn) == 1


# --- Too many (F8) ----------------------------------------------------------------------------------

WHOLE = head(f"Content-Length: {len(BODY)}") + BODY
WAYS_TO_ASK: dict[str, tuple[bytes, ...]] = {
    "in one piece": (WHOLE,),
    "head and body apart": (head(f"Content-Length: {len(BODY)}"), BODY),
    "byte by byte": tuple(bytes([byte]) for byte in WHOLE),
    "in chunks": (head("Transfer-Encoding: chunked"), b"%x\r\n%b\r\n" % (len(BODY), BODY), b"0\r\n\r\n"),
    "with a keep-alive": (head(f"Content-Length: {len(BODY)}", "Connection: keep-alive") + BODY,),
    "with a path written otherwise": (head(f"Content-Length: {len(BODY)}", path="/v1/%72egistrations?x=1") + BODY,),
    "with an absolute address": (head(f"Content-Length: {len(BODY)}", path="http://x/v1/registrations") + BODY,),
    "without a body": (head("Content-Length: 0"),),
}


async def test_an_accepted_registration_is_answered_alike_however_it_is_asked_for(api: Api) -> None:
    forms = set()
    async with serving(api) as server, connected(server.port) as client:
        for name, pieces in WAYS_TO_ASK.items():
            if name != "without a body":
                await client.send(*pieces)
                status, headers, body = await client.answer()
                assert status == 202, name
                forms.add((*headers, *json.loads(body)))
    assert len(forms) == 1


async def test_whole_registrations_in_one_piece_are_answered_in_their_turn(api: Api) -> None:
    async with serving(api) as server, connected(server.port) as client:
        ids = [str(uuid4()) for _ in range(3)]
        slow = json.dumps(ADA | {"password": "correct horse battery staple"}).encode()
        bodies = zip(ids, (slow, BODY, BODY), strict=True)
        await client.send(
            b"".join(head(f"Content-Length: {len(body)}", f"X-Request-Id: {one}") + body for one, body in bodies)
        )
        answers = [await client.answer() for _ in ids]

    assert [(status, headers["registrar-request-id"]) for status, headers, _ in answers] == [(202, one) for one in ids]


@pytest.mark.parametrize(
    "whole",
    [WHOLE.replace(b"HTTP/1.1", b"HTTP/1.0"), head(f"Content-Length: {len(BODY)}", "Connection: close") + BODY],
    ids=["HTTP/1.0", "Connection: close"],
)
async def test_a_connection_that_is_not_to_be_kept_ends_with_the_answer(api: Api, whole: bytes) -> None:
    async with serving(api) as server, connected(server.port) as client:
        await client.send(whole)
        status, headers, _ = await client.answer()
        assert (status, headers["connection"]) == (202, "close")
        assert await client.reader.read() == b""


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """There is room for no registration; what it is given back by undoing it."""
    with monkeypatch.context() as no_room:
        no_room.setattr("entrypoints.api.admission.STEADY", 0)
        no_room.setattr("entrypoints.api.admission.BURST", 0)
        yield no_room


@pytest.mark.fault("F8")
async def test_a_registration_too_many_is_refused_however_it_is_asked_for_and_the_connection_lives_on(
    api: Api, full: pytest.MonkeyPatch
) -> None:
    async with serving(api) as server, connected(server.port) as client:
        for name, pieces in WAYS_TO_ASK.items():
            for _ in range(2):  # at first, and where a request went before
                await client.send(*pieces)
                status, headers, body = await client.answer()
                assert (status, headers.get("connection")) == (503, None), name
                assert headers["retry-after"] in {"1", "2", "3"}
                assert headers["content-type"] == "application/problem+json"
                assert headers["cache-control"] == "no-store"
                assert json.loads(body)["type"] == "urn:registrar:problem:overloaded"
        assert await api.service.store.head() == 0
        metrics = (await api.http.get("/metrics")).text
        refused = 2 * len(WAYS_TO_ASK)
        assert f'registrar_shed_total{{reason="busy"}} {refused}.0' in metrics
        assert f'registrar_registrations_total{{outcome="overloaded"}} {refused}.0' in metrics
        assert f'registrar_requests_seconds_count{{route="/v1/registrations",status="503"}} {refused}.0' in metrics

        full.undo()
        await client.send(WHOLE)
        assert (await client.answer())[0] == 202


@pytest.mark.fault("F8")
async def test_while_there_is_no_room_for_registrations_the_rest_is_served(api: Api, full: pytest.MonkeyPatch) -> None:
    async with (
        serving(api) as server,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", verify=NO_TLS) as http,
    ):
        assert (await http.post("/v1/registrations", json=ADA)).status_code == 503
        unknown = "/v1/registrations/019cab10-0000-7000-8000-00000000dead"
        answers = [
            await http.get("/health/live"),
            await http.get("/health/ready"),
            await http.get("/metrics"),
            await http.get(unknown),
            await http.post(f"{unknown}/verification", json={"code": "123456"}),
            await http.post(f"{unknown}/otp"),
        ]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 404, 404, 404]


CLOSING: dict[str, tuple[bytes, ...]] = {
    "who asks for it": (head(f"Content-Length: {len(BODY)}", "Connection: close") + BODY,),
    "who speaks HTTP/1.0": (WHOLE.replace(b"HTTP/1.1", b"HTTP/1.0"),),
    "who waits to be told to go on": (head(f"Content-Length: {len(BODY)}", "Expect: 100-continue"),),
    "who never ends": (head("Content-Length: 10000000"), *[b"x" * 65_536] * 8),
}


@pytest.mark.fault("F8")
async def test_a_refusal_closes_the_connection_of_those_who_cannot_keep_it(api: Api, full: pytest.MonkeyPatch) -> None:
    async with serving(api) as server:
        for name in ("who asks for it", "who speaks HTTP/1.0"):
            async with connected(server.port) as client:
                await client.send(*CLOSING[name])
                status, headers, _ = await client.answer()
                assert (status, headers["connection"]) == (503, "close"), name
                assert await client.reader.read() == b""
        async with connected(server.port) as client:
            await client.send(*CLOSING["who waits to be told to go on"])
            assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            await client.send(BODY)
            assert (await client.answer())[0] == 503
        async with connected(server.port) as client:
            assert await is_cut_off(client, *CLOSING["who never ends"])

        async with connected(server.port) as client:  # who asks on and on, and does not listen
            assert await is_cut_off(client, *[WHOLE * 100] * 1000)


async def is_cut_off(client: Client, *pieces: bytes) -> bool:
    try:
        await client.send(*pieces)
        await client.answer()
    except (ConnectionError, asyncio.IncompleteReadError):
        return True
    return False


@pytest.mark.fault("F8")
async def test_what_only_looks_like_one_whole_registration_is_parsed(api: Api, full: pytest.MonkeyPatch) -> None:
    """A body of another request that reads like a registration, and heads that a parser must refuse."""
    smuggled = head("Content-Length: 5") + b"12345"
    async with serving(api) as server:
        async with connected(server.port) as client:
            await client.send(WHOLE)
            assert (await client.answer())[0] == 503
            code = "/v1/registrations/019cab10-0000-7000-8000-00000000dead/verification"
            await client.send(head(f"Content-Length: {len(smuggled)}", "Expect: 100-continue", path=code))
            assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            await client.send(smuggled)
            assert (await client.answer())[0] == 422
        for headers in (
            ("Content-Length: 5", "Content-Length: 2"),
            ("Content-Length: 5", "Transfer-Encoding: chunked"),
            ("Content-Length: 5", "X: y\nTransfer-Encoding: chunked"),
            ("Content-Length: 5", "X: \0"),
            ("Content-Length: 5", "no colon"),
            ("Content-Length : 5",),
        ):
            async with connected(server.port) as client:
                await client.send(WHOLE)
                assert (await client.answer())[0] == 503
                await client.send(head(*headers) + b"12345")
                assert (await client.answer())[0] == 400, headers


@pytest.mark.fault("F8")
@pytest.mark.parametrize(
    ("length", "sent", "is_whole"),
    [("10", 10, True), ("000000010", 10, True), ("0000000107", 10, False), ("11", 10, False), ("+10", 10, False)],
)
def test_a_request_is_whole_when_its_length_says_so(length: str, sent: int, *, is_whole: bool) -> None:
    """Of 0000000107 nine digits make 10: the other 97 bytes would be taken for a request, behind a proxy for somebody
    else's."""
    assert is_a_registration(head(f"Content-Length: {length}") + b"x" * sent) is is_whole


@pytest.mark.fault("F8")
async def test_what_follows_a_refusal_in_one_piece_is_answered_in_its_turn(api: Api, full: pytest.MonkeyPatch) -> None:
    """A read that waits, behind a refused registration; then another registration, before that is answered."""
    read = "/v1/registrations/019cab10-0000-7000-8000-00000000dead?min_position=999&wait=700"
    waits = f"GET {read} HTTP/1.1\r\nHost: registrar\r\n\r\n".encode()
    async with serving(api) as server, connected(server.port) as client:
        await client.send(WHOLE + waits)
        assert (await client.answer())[0] == 503
        await client.send(WHOLE)
        status, _, body = await client.answer()
        assert (status, json.loads(body)["type"]) == (503, "urn:registrar:problem:unavailable")
        assert (await client.answer())[0] == 202  # asked for before it was its turn, so nobody counted it


async def test_an_empty_line_after_a_request_does_not_hold_a_connection_open(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("entrypoints.api.http_protocol.HEAD_DEADLINE", timedelta(seconds=0.5))
    async with serving(api) as server, connected(server.port) as client:
        await client.send(b"GET /health/live HTTP/1.1\r\nHost: registrar\r\n\r\n")
        assert (await client.answer())[0] == 200
        await client.send(b"\r\n")
        async with asyncio.timeout(10):
            assert await client.reader.read() == b""


@pytest.mark.fault("F8")
async def test_places_are_given_back_whatever_becomes_of_a_request(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one place each of these would keep the next one out for ever."""
    monkeypatch.setattr("entrypoints.api.admission.STEADY", 1)
    monkeypatch.setattr("entrypoints.api.admission.BURST", 1)
    monkeypatch.setattr("entrypoints.api.admission.CALM", timedelta(0))
    async with serving(api) as server:

        async def accepted() -> bool:
            async with connected(server.port) as client:
                await client.send(WHOLE)
                return (await client.answer())[0] == 202

        async with connected(server.port) as slow:  # who sends slowly keeps nobody out
            await slow.send(head(f"Content-Length: {len(BODY)}"), BODY[:5])
            await eventually(accepted)
            await slow.send(BODY[5:])
            assert (await slow.answer())[0] == 202
        await eventually(accepted)
        async with connected(server.port) as refused:
            await refused.send(head("Content-Length: 2") + b"[]")
            assert (await refused.answer())[0] == 422
        await eventually(accepted)
        async with connected(server.port) as gone:
            await gone.send(WHOLE)
        await eventually(accepted)
        async with connected(server.port) as impatient:  # three at once on one connection
            await impatient.send(WHOLE * 3)
            assert [(await impatient.answer())[0] for _ in range(3)] == [202] * 3
        await eventually(accepted)


@pytest.mark.fault("F8")
def test_a_burst_is_let_in_and_a_queue_is_not() -> None:
    now = 0.0
    admission = Registrations(Metrics(), clock=lambda: now)

    # a burst: many at once, none of which has waited yet
    for _ in range(BURST):
        assert not admission.full
        admission.acquire()
    assert admission.full

    # a hiccup of the disk: some waited too long, and then no more
    admission.release(0.3)
    now = 0.4
    assert not admission.full
    admission.release(0.1)

    # an idle service: what was slow before says nothing about now
    while admission.under_way:
        admission.release(0.3)
    now = 100.0
    for _ in range(BURST):
        assert not admission.full
        admission.acquire()

    # a queue: those that come out waited too long, and again, so none comes in before it is short
    admission.release(0.3)
    now = 101.0
    while admission.under_way > STEADY:
        assert admission.full
        admission.release(0.3)
    admission.release(0.3)
    assert not admission.full

    # whoever was refused is the sign that it is not over
    admission.acquire()
    admission.release(0.01)
    admission.acquire()
    assert not admission.full
    admission.refused()
    assert admission.full


@pytest.mark.fault("F8")
@pytest.mark.slow
async def test_more_than_can_be_done_is_refused_and_nothing_that_was_accepted_is_lost(dsn: str) -> None:
    async with serve(dsn) as program, program.client() as http:
        assert (await http.post("/v1/registrations", json=ADA)).status_code == 202
        before = program.resources.memory_info().rss

        # when: a thousand connections ask all the time
        outcome = await open_loop(program.port, registration("flood"), rate=10_000, seconds=1, connections=1000)

        accepted, refused = outcome.statuses.pop(202), outcome.statuses.pop(503)
        unknown = outcome.statuses.pop(0, 0)
        assert outcome.statuses == {}
        assert (accepted + refused + unknown, accepted > 0) == (10_000, True)
        assert program.runs
        assert program.peak_memory < before + 128 * MIB
        metrics = (await http.get("/metrics")).text
        assert f'registrar_shed_total{{reason="busy"}} {refused}.0' in metrics
        assert (await http.post("/v1/registrations", json=ADA | {"email": "b@example.com"})).status_code == 202
    assert accepted + 2 <= await registered_in(dsn) <= accepted + 2 + unknown


# --- Passwords (F12) --------------------------------------------------------------------------------


def with_password(number: int) -> dict[str, str]:
    return {
        "email": f"flood-{number}@example.com",
        "name": "Ada Lovelace",
        "password": (f"{number}-correct-horse-" * 16)[:128],
    }


@pytest.mark.slow
@pytest.mark.fault("F12")
async def test_a_flood_of_passwords_is_hashed_as_far_as_the_queue_goes_and_refused_beyond(dsn: str) -> None:
    async with serve(dsn) as program, program.client() as http:
        assert (await http.post("/v1/registrations", json=ADA)).status_code == 202
        before = program.resources.memory_info().rss

        answers = await asyncio.gather(*(http.post("/v1/registrations", json=with_password(n)) for n in range(200)))

        accepted = [answer.json()["registration_id"] for answer in answers if answer.status_code == 202]
        refused = [answer for answer in answers if answer.status_code != 202]
        assert accepted
        assert refused
        for answer in refused:
            assert (answer.status_code, problem_of(answer)) == (503, "overloaded")
            assert int(answer.headers["retry-after"]) >= 1
        assert program.peak_memory < before + 80 * MIB
        assert 'registrar_shed_total{reason="queue-full"}' in (await http.get("/metrics")).text
        assert (await http.post("/v1/registrations", json=with_password(1000))).status_code == 202
    found = await query(dsn, "SELECT originator_id::text FROM events WHERE topic = 'registration.user_registered'")
    assert {row[0] for row in found} >= set(accepted)
    assert len(found) == len(accepted) + 2


@pytest.mark.fault("F12")
async def test_a_password_that_is_refused_costs_no_hash(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed, hash_it = [], password_hashing._hash

    def counted(password: str, salt: bytes) -> str:
        hashed.append(password)
        return hash_it(password, salt)

    monkeypatch.setattr(password_hashing, "_hash", counted)
    async with client_of(create_app(api.service.api)) as http:
        answers = await asyncio.gather(*(http.post("/v1/registrations", json=with_password(n)) for n in range(100)))

    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {202, 503}
    assert len(hashed) == statuses.count(202)


# --- Told to stop (F10) -----------------------------------------------------------------------------


async def is_refused(port: int) -> bool:
    try:
        async with connected(port):
            return False
    except ConnectionRefusedError:
        return True


@pytest.mark.fault("F10")
async def test_an_api_that_is_told_to_stop_says_so_then_refuses_and_finishes_what_is_in_flight(dsn: str) -> None:
    patient = {"durations": {"entrypoints.api.guard.BODY_DEADLINE": 30}}
    async with serve(dsn, how=patient, stop_delay="3") as program, connected(program.port) as client:
        await client.send(head(f"Content-Length: {len(BODY)}"), BODY[:5])

        program.signal(signal.SIGTERM)

        async def not_ready() -> bool:
            async with connected(program.port) as balancer:
                await balancer.send(b"GET /health/ready HTTP/1.1\r\nHost: registrar.test\r\n\r\n")
                return (await balancer.answer())[0] == 503

        await eventually(not_ready)  # where it listens: a connection that is refused fails the test
        await eventually(lambda: is_refused(program.port), within=60)
        await client.send(BODY[5:])
        status, headers, answered = await client.answer()
        assert (status, headers["connection"]) == (202, "close")
        assert await program.ends() == 0
    found = await query(dsn, "SELECT originator_id::text FROM events WHERE topic = 'registration.user_registered'")
    assert found == [(json.loads(answered)["registration_id"],)]


@pytest.mark.fault("F10")
@pytest.mark.slow
async def test_a_worker_that_is_told_to_stop_finishes_the_mails_that_are_under_way(dsn: str) -> None:
    count = 5
    async with (
        SmtpStub() as sink,
        TcpProxy(("127.0.0.1", sink.port)) as proxy,
        serve(dsn) as api,
        api.client() as http,
        process(dsn, proxy.port) as worker,
    ):
        # given: mails for which the server's reply is still on its way
        proxy.hold(TO_CLIENT)
        for number in range(count):
            await http.post("/v1/registrations", json=ADA | {"email": f"ada{number}@example.com"})
        await eventually(lambda: proxy.effects[f"hold {TO_CLIENT}"] == count, within=60)

        worker.signal(signal.SIGTERM)
        await eventually(lambda: "stopping" in worker.written, within=60)
        assert (worker.runs, sink.mails) == (True, [])
        proxy.heal()

        # then: they go out, once, and are recorded before the end
        assert await worker.ends() == 0
        recipients = sorted(address for mail in sink.mails for address in mail.recipients)
        assert recipients == [f"ada{number}@example.com".encode() for number in range(count)]
        dispatched = await query(dsn, "SELECT 1 FROM events WHERE topic = 'registration.email_dispatched'")
        assert len(dispatched) == count

        # and: whoever takes over has nothing left to send
        async with process(dsn, sink.port):
            ids: Any = await query(dsn, "SELECT position FROM head")

            async def caught_up() -> bool:
                rows = await query(dsn, "SELECT position FROM followers WHERE name = 'relay'")
                return bool(rows[0][0] >= ids[0][0])

            await eventually(caught_up, within=60)
        assert len(sink.mails) == count
