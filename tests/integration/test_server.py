"""The HTTP server on a real socket: starting, stopping, and clients that do not behave."""

from __future__ import annotations

import asyncio
import errno
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import httpx
import pytest
from fastapi import FastAPI

from entrypoints.api.http_server import Server
from entrypoints.api.malformed import MalformedRequests
from infrastructure.telemetry.metrics import Metrics
from tests.support.facts import eventually
from tests.support.http import ADA, NO_TLS, Api, open_api


@pytest.fixture
async def api(dsn: str) -> AsyncIterator[Api]:
    async with open_api(dsn, follows=False) as api:
        yield api


@pytest.fixture
async def server(api: Api) -> AsyncIterator[Server]:
    server = Server(api.app, host="127.0.0.1", port=0)
    await server.start()
    yield server
    await server.stop()


async def raw(server: Server, *pieces: bytes) -> bytes:
    """What the server answers to these bytes, until it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.close()


def post(body: bytes, *headers: str) -> bytes:
    head = [
        "POST /v1/registrations HTTP/1.1",
        "Host: registrar.test",
        "Content-Type: application/json",
        "Connection: close",
        *headers,
    ]
    return "\r\n".join([*head, "", ""]).encode() + body


async def test_it_serves_on_a_free_port(server: Server) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", verify=NO_TLS) as http:
        begun = await http.post("/v1/registrations", json=ADA)

    assert begun.status_code == 202
    assert "server" not in begun.headers


async def test_a_port_in_use_is_said_so(api: Api, server: Server) -> None:
    second = Server(api.app, host="127.0.0.1", port=server.port)
    with pytest.raises(OSError) as error:  # noqa: PT011 - the number says which
        await second.start()
    assert error.value.errno == errno.EADDRINUSE
    await second.stop()


@pytest.mark.fault("F10")
async def test_a_request_in_flight_is_finished_before_the_end(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(api.app, host="127.0.0.1", port=0, on_stopping=api.service.api.checks.stop)
    await server.start()
    arrived, go_on, load = asyncio.Event(), asyncio.Event(), api.service.store.load

    async def slow(*streams: object, **more: object) -> object:
        arrived.set()
        await go_on.wait()
        return await load(*streams, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(api.service.store, "load", slow)
    body = json.dumps(ADA).encode()
    request = asyncio.create_task(raw(server, post(body, f"Content-Length: {len(body)}")))
    await arrived.wait()
    stopping = asyncio.create_task(server.stop())
    await eventually(lambda: api.service.api.checks.stopping)
    go_on.set()

    assert (await request).startswith(b"HTTP/1.1 202 ")
    await stopping
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", server.port)


async def test_an_application_that_does_not_come_up_is_said_so() -> None:
    @asynccontextmanager
    async def broken(_: FastAPI) -> AsyncIterator[None]:
        raise ValueError
        yield

    server = Server(FastAPI(lifespan=broken), host="127.0.0.1", port=0)
    with pytest.raises(RuntimeError):
        await server.start()


@pytest.mark.fault("F3")
async def test_a_large_body_is_answered_though_it_is_still_being_sent(server: Server) -> None:
    for size in (20_000, 1_000_000):
        answer = await raw(server, post(b"x" * size, f"Content-Length: {size}"))
        assert answer.startswith(b"HTTP/1.1 413 "), size


@pytest.mark.fault("F3")
async def test_a_huge_body_is_refused_before_it_is_sent(server: Server) -> None:
    answer = await raw(server, post(b"", "Content-Length: 50000000"))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer.lower()


async def test_what_is_not_http_is_refused(server: Server) -> None:
    assert (await raw(server, b"HELO registrar\r\n\r\n")).startswith(b"HTTP/1.1 400 ")


async def test_a_flood_of_what_is_not_http_is_counted_and_logged_in_one_line(api: Api, log: io.StringIO) -> None:
    server = Server(api.app, host="127.0.0.1", port=0, metrics=api.service.metrics)
    await server.start()
    try:
        for _ in range(20):
            await raw(server, b"HELO registrar\r\n\r\n")
        metrics = api.service.metrics.render().decode()
        for _ in range(20):
            await raw(server, b"CONNECT registrar.test:443 HTTP/1.1\r\nHost: r\r\nConnection: close\r\n\r\n")
    finally:
        await server.stop()

    assert [json.loads(line)["event"] for line in log.getvalue().splitlines()] == ["requests.malformed"]
    assert 'registrar_requests_seconds_count{route="unmatched",status="400"} 20.0' in metrics


async def test_malformed_requests_after_the_first_are_logged_together(log: io.StringIO) -> None:
    malformed = MalformedRequests(Metrics(), summary=timedelta(milliseconds=1))
    for _ in range(20):
        malformed.refused()
    await eventually(lambda: log.getvalue().count("\n") == 2)
    malformed.refused()
    await eventually(lambda: log.getvalue().count("\n") == 3)

    assert [json.loads(line)["requests"] for line in log.getvalue().splitlines()] == [1, 19, 1]


async def test_two_lengths_or_a_length_and_chunks_are_refused(server: Server) -> None:
    body = json.dumps(ADA).encode()
    for headers in (
        (f"Content-Length: {len(body)}", "Content-Length: 5"),
        (f"Content-Length: {len(body)}", "Transfer-Encoding: chunked"),
    ):
        answer = await raw(server, post(body, *headers))
        assert answer.startswith(b"HTTP/1.1 4"), headers


@pytest.mark.parametrize("sent", [b"", b"GET /health/live HT", b"GET /health/live HTTP/1.1\r\nHost: x\r\nX-Half"])
async def test_who_does_not_send_a_requests_head_is_cut_off(
    server: Server, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr("entrypoints.api.http_protocol.HEAD_DEADLINE", timedelta(milliseconds=200))

    assert await raw(server, sent) == b""


async def test_a_second_request_that_stays_half_is_cut_off_too(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("entrypoints.api.http_protocol.HEAD_DEADLINE", timedelta(milliseconds=500))

    answer = await raw(server, b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\nGET /health/li")

    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b"HTTP/1.1") == 1


async def test_headers_without_end_are_not_taken_in(server: Server) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /health/live HTTP/1.1\r\nHost: x\r\nX: ")
    pieces = 0

    async def flood() -> None:
        nonlocal pieces
        while pieces < 1000:
            writer.write(b"a" * 65_536)
            await writer.drain()
            pieces += 1

    with pytest.raises(ConnectionError):
        await flood()
    writer.close()
    assert pieces < 500  # what fits into the sockets' buffers, and no more


async def test_a_request_that_takes_its_time_after_its_head_is_not_cut_off(
    api: Api, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("entrypoints.api.http_protocol.HEAD_DEADLINE", timedelta(milliseconds=200))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", verify=NO_TLS) as http:
        head = await api.service.store.head()
        late = await http.get(
            "/v1/registrations/00000000-0000-7000-8000-000000000000", params={"min_position": head + 1, "wait": 900}
        )
    assert late.status_code == 503


async def test_a_connection_is_kept_for_a_while_after_each_response_however_long_that_took(
    api: Api, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server._server.config, "timeout_keep_alive", 0.2)
    late = f"/v1/registrations/00000000-0000-7000-8000-000000000000?min_position={await api.service.store.head() + 1}"
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    statuses = []

    async with asyncio.timeout(10):
        for path in ("/health/live", f"{late}&wait=500", "/health/live"):
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            statuses.append(int(head[9:12]))
            await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]))
        rest = await reader.read()
    writer.close()

    assert (statuses, rest) == ([200, 503, 200], b"")


# --- What clients ask for beside their request ----------------------------------------------------

BODY = json.dumps(ADA).encode()
LENGTH = f"Content-Length: {len(BODY)}"


@pytest.mark.parametrize(
    "offer",
    [
        ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA"],
        ["Connection: upgrade", "Upgrade: websocket"],
        ["Connection: close, Upgrade", "Upgrade: h2c"],
        ["connection:  upgrade ,close", "UPGRADE: TLS/1.0, HTTP/2.0"],
        ["Connection: upgrade", "Upgrade: h2c", "Upgrade: websocket"],
    ],
)
async def test_a_request_with_an_offer_to_upgrade_is_answered_as_if_it_had_none(
    server: Server, offer: list[str]
) -> None:
    head = ["POST /v1/registrations HTTP/1.1", "Host: registrar.test", "Content-Type: application/json", *offer]
    whole = "\r\n".join([*head, LENGTH, "", ""]).encode() + BODY
    in_chunks = "\r\n".join([*head, "Transfer-Encoding: chunked", "", ""]).encode()
    in_chunks += b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in (BODY[:9], BODY[9:])) + b"0\r\n\r\n"
    last = b"GET /health/live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"

    for request in (whole, in_chunks):
        assert b"HTTP/1.1 202 Accepted\r\n" in await raw(server, request + last), request
        # A byte at a time, as networks may.
        assert b"HTTP/1.1 202 Accepted\r\n" in await raw(server, *(bytes([byte]) for byte in request + last)), request


async def test_many_offers_in_one_read_are_answered_one_by_one(server: Server) -> None:
    request = b"GET /health/live HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"
    last = b"GET /health/live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"

    answers = await raw(server, 1500 * request + last)

    assert answers.count(b"HTTP/1.1 200 OK\r\n") == 1501


async def test_a_body_that_follows_an_offer_is_no_request(server: Server) -> None:
    hidden = b"GET /health/live HTTP/1.1\r\n\r\n"
    offer = ("Connection: close, upgrade", "Upgrade: h2c", f"Content-Length: {len(hidden)}")

    answers = await raw(server, post(hidden, *offer))

    assert answers.count(b"HTTP/1.1 ") == 1
    assert b" 422 " in answers


@pytest.mark.parametrize("target", [b"registrar.test:443", b"/v1/registrations"])
async def test_a_tunnel_is_refused(server: Server, target: bytes) -> None:
    answer = await raw(server, b"CONNECT %b HTTP/1.1\r\nHost: registrar.test\r\nConnection: close\r\n\r\n" % target)
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 405 "))


async def test_who_waits_for_100_continue_gets_it(server: Server) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(post(b"", "Expect: 100-continue", "Connection: upgrade", "Upgrade: h2c", LENGTH))
        async with asyncio.timeout(10):
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(BODY)
            assert (await reader.read()).startswith(b"HTTP/1.1 202 Accepted\r\n")
    finally:
        writer.close()


async def test_spaces_around_the_value_of_a_header_are_no_part_of_it(server: Server) -> None:
    registration_id, key = "019cab10-0000-7000-8000-00000000dead", "8e03978e-40d5-43e8-bc93-6894a57f9324"
    for space in ("", " ", "\t ", " \t"):
        headers = (f"Idempotency-Key:{space}{key}{space}", f"X-Request-Id:{space}{registration_id}{space}")
        answer = await raw(server, post(BODY, *headers, f"{LENGTH}{space}"))
        assert answer.startswith(b"HTTP/1.1 202 "), (space, answer)
        assert f"registrar-request-id: {registration_id}\r\n".encode() in answer, space


async def test_a_body_in_an_encoding_that_is_not_undone_is_refused(server: Server) -> None:
    in_chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
    for encoding, status in [("chunked", 202), ("Chunked", 202), ("gzip, chunked", 415), ("deflate,chunked", 415)]:
        answer = await raw(server, post(in_chunks, f"Transfer-Encoding: {encoding}"))
        assert answer.startswith(f"HTTP/1.1 {status} ".encode()), encoding


@pytest.mark.parametrize(
    "line",
    [
        b"POST http://registrar.test/v1/registrations HTTP/1.1",
        b"POST HTTPS://REGISTRAR.TEST:443/v1/registrations?from=here HTTP/1.1",
        b"POST /v1/%72egistrations HTTP/1.1",
        b"POST /v1/registrations? HTTP/1.1",
        b"POST /v1/registrations HTTP/1.0",
    ],
)
async def test_a_request_in_any_form_that_http_allows_is_understood(server: Server, line: bytes) -> None:
    request = post(BODY, LENGTH, "Accept: text/html, application/xml;q=0.9").partition(b"\r\n")[2]
    assert (await raw(server, line + b"\r\n" + request)).startswith(b"HTTP/1.1 202 ")


# --- HEAD and OPTIONS -----------------------------------------------------------------------------


async def test_head_answers_as_get_without_the_body(api: Api, server: Server) -> None:
    registration = (await api.register()).headers["location"]
    paths = [
        registration,
        "/health/live",
        "/health/database",
        "/mailbox",
        "/mailbox/messages",
        "/docs",
        "/openapi.json",
    ]
    paths += ["/v1/admin/mail", "/nowhere", "/v1/registrations", f"{registration}/otp", registration + "?wait=x"]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", verify=NO_TLS) as http:
        for path in paths:
            got, head = await http.get(path), await http.head(path)
            assert (head.status_code, head.content) == (got.status_code, b""), path
            for name in ("content-type", "allow", "www-authenticate"):
                assert head.headers.get(name) == got.headers.get(name), path
            assert int(head.headers["content-length"]) > 0, path
        assert (await http.head("/metrics")).status_code == 200


async def test_a_refused_method_and_options_name_those_that_there_are(api: Api) -> None:
    registration = (await api.register()).headers["location"]
    for path, allowed in [
        ("/v1/registrations", "OPTIONS, POST"),
        (registration, "GET, HEAD, OPTIONS"),
        (f"{registration}/verification", "OPTIONS, POST"),
        ("/mailbox/messages", "DELETE, GET, HEAD, OPTIONS"),
        ("/openapi.json", "GET, HEAD, OPTIONS"),
    ]:
        refused = await api.http.put(path)
        assert (refused.status_code, refused.headers["allow"]) == (405, allowed), path
        asked = await api.http.options(path)
        assert (asked.status_code, asked.headers["allow"], asked.content) == (204, allowed, b""), path
    assert (await api.http.options("/nowhere")).status_code == 404


async def test_options_of_the_server_as_such_is_answered(server: Server) -> None:
    for method, status in ((b"OPTIONS", b"204"), (b"GET", b"404")):
        answer = await raw(server, method + b" * HTTP/1.1\r\nHost: registrar.test\r\nConnection: close\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 %b " % status)
        assert (b"content-length" in answer) == (status != b"204"), "the server adds none (RFC 9110, 8.6)"


async def test_a_report_where_nobody_takes_any_is_refused_before_it_is_read(server: Server) -> None:
    head = "POST /v1/bounces/ses HTTP/1.1\r\nHost: registrar.test\r\nContent-Type: text/plain\r\n"
    chunk = b"4001\r\n" + b"x" * 0x4001 + b"\r\n"

    whole = await raw(server, f"{head}Content-Length: 16385\r\n\r\n".encode())
    in_parts = await raw(server, f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunk)
    small = await raw(server, f"{head}Content-Length: 2\r\nConnection: close\r\n\r\n{{}}".encode())

    for answer in (whole, in_parts, small):  # `raw` has the end of the connection, though the report has not ended
        assert answer.startswith(b"HTTP/1.1 404 ")
