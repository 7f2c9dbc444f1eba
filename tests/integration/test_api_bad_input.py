"""Bad input: whatever a client sends is answered with a problem that repeats none of it, and nothing is recorded."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import pytest

from entrypoints.api.app import create_app
from entrypoints.api.body_reading import BODY_LIMIT
from entrypoints.api.guard import Guard
from tests.support.http import ADA, ADMIN, Api, client_of, open_api, problem_of

JSON = {"Content-Type": "application/json"}
SECRET = "s3cret-v4lue"
ID = "019cab10-0000-7000-8000-00000000dead"


@pytest.fixture
async def api(dsn: str) -> AsyncIterator[Api]:
    async with open_api(dsn, follows=False) as api:
        yield api


async def post(api: Api, body: bytes | str, path: str = "/v1/registrations", **headers: str) -> httpx.Response:
    return await api.http.post(path, content=body, headers=JSON | {k.replace("_", "-"): v for k, v in headers.items()})


def with_ada(**more: Any) -> str:
    return json.dumps(ADA | more)


MALFORMED: dict[str, bytes | str] = {
    "nothing": b"",
    "not JSON": b"email=ada@example.com",
    "half of it": b'{"email": "ada@example.com"',
    "more than it": b'{"email": "ada@example.com", "name": "Ada"} {}',
    "no object": b'["ada@example.com"]',
    "a string": b'"ada@example.com"',
    "null": b"null",
    "NaN": b'{"email": "ada@example.com", "name": NaN}',
    "infinity": b'{"email": "ada@example.com", "name": "Ada", "locale": -Infinity}',
    "a float beyond all floats": b'{"email": "ada@example.com", "name": 1e999}',
    "a huge number": b'{"email": "ada@example.com", "name": ' + b"9" * 10_000 + b"}",
    "deep nesting": b"[" * 8_000 + b"]" * 8_000,
    "deep nesting in a field": b'{"email": "ada@example.com", "name": ' + b'{"a":' * 900 + b"1" + b"}" * 901,
    "a key twice": b'{"email": "ada@example.com", "name": "Ada", "email": "eve@example.com"}',
    "a key twice, written otherwise": b'{"email": "ada@example.com", "name": "Ada", "\\u0065mail": "eve@example.com"}',
    "not UTF-8": b'{"email": "ada@example.com", "name": "\xff\xfe"}',
    "UTF-16": '{"email": "ada@example.com", "name": "Ada"}'.encode("utf-16"),
    "two byte order marks": b'\xef\xbb\xbf\xef\xbb\xbf{"email": "ada@example.com", "name": "Ada"}',
    "a control character": b'{"email": "ada@example.com", "name": "A\nda"}',
    "missing fields": b"{}",
    "no name": with_ada(name=""),
    "a name of spaces": with_ada(name="   "),
    "a long name": with_ada(name="a" * 201),
    "a NUL": with_ada(name="Ada\x00"),
    "a lone surrogate": b'{"email": "ada@example.com", "name": "Ada \\ud800"}',
    "a lone surrogate as key": b'{"email": "ada@example.com", "name": "Ada", "\\ud800": 1}',
    "a line separator": with_ada(name="Ada\u2028Lovelace"),
    "a number as name": with_ada(name=5),
    "a list as address": with_ada(email=["ada@example.com"]),
    "an object as address": with_ada(email={"$ne": ""}),
    "true as address": with_ada(email=True),
    "null as address": with_ada(email=None),
    "no address": with_ada(email="ada"),
    "a header in the address": with_ada(email="ada@example.com\r\nBcc: eve@example.com"),
    "a NUL in the address": with_ada(email="ada\x00@example.com"),
    "two addresses": with_ada(email="ada@example.com,eve@example.com"),
    "a long address": with_ada(email="a" * 250 + "@example.com"),
    "a short password": with_ada(password="short"),
    "a common password": with_ada(password="password123"),
    "a long password": with_ada(password="p" * 129),
    "a surrogate in the password": b'{"email": "ada@example.com", "name": "Ada", "password": "\\ud800 battery staple"}',
    "a number as password": with_ada(password=12345678),
    "no locale": with_ada(locale="not a locale"),
    "a role": with_ada(role="admin"),
    "a status": with_ada(status="ACTIVE"),
    "an id": with_ada(registration_id=ID),
}


@pytest.mark.fault("F4")
async def test_a_malformed_registration_is_refused(api: Api) -> None:
    for name, body in MALFORMED.items():
        refused = await post(api, body)
        assert (refused.status_code, problem_of(refused)) == (422, "invalid-request"), name
        assert all(set(one) == {"field", "code", "message"} for one in refused.json()["errors"]), name
    assert await api.service.store.head() == 0


async def test_a_problem_names_the_fields_and_repeats_no_value(api: Api) -> None:
    body = {
        "email": f"{SECRET}@",
        "name": f"{SECRET}\x00",
        "password": SECRET[:7],
        "locale": f"{SECRET}!",
        SECRET + "@": SECRET,
        "role": SECRET,
    }
    refused = await post(api, json.dumps(body))

    assert {one["field"] for one in refused.json()["errors"]} == {
        "email",
        "name",
        "password",
        "locale",
        "role",
        "(unknown)",
    }
    assert SECRET[:7] not in refused.text


MALFORMED_CODES = [
    "",
    "{}",
    "[]",
    '{"code": 123456}',
    '{"code": null}',
    '{"code": "12345"}',
    '{"code": "1234567"}',
    '{"code": "12345\N{FULLWIDTH LATIN SMALL LETTER A}"}',
    '{"code": "12345\\n"}',
    '{"code": "123.456"}',
    '{"code": "123456", "code": "123457"}',
    '{"code": "123456", "serial": 1}',
    f'{{"code": "123456", "registration_id": "{ID}"}}',
]


MALFORMED_RETRIES = [
    "",
    "{}",
    "[]",
    '{"failure": null}',
    '{"failure": ["expired"]}',
    '{"failure": ""}',
    '{"failure": "Expired"}',
    '{"failure": "expird"}',
    '{"failure": "expired\\n"}',
    '{"failure": "expired\' OR 1=1"}',
    '{"failure": "expired", "failure": "timeout"}',
    '{"failure": "expired", "limit": 0}',
    '{"failure": "expired", "limit": 201}',
    '{"failure": "expired", "limit": "5"}',
    '{"failure": "expired", "limit": true}',
    '{"failure": "expired", "cursor": "x"}',
    '{"failure": "expired", "cursor": "LTE="}',
    '{"failure": "expired", "state": "FAILED"}',
]


@pytest.mark.fault("F4")
async def test_a_malformed_retry_by_cause_is_refused(api: Api) -> None:
    for body in MALFORMED_RETRIES:
        refused = await post(api, body, "/v1/admin/mail/retry", **ADMIN)
        assert (refused.status_code, problem_of(refused)) == (422, "invalid-request"), body
    assert await api.service.store.head() == 0


@pytest.mark.fault("F4")
async def test_a_malformed_code_is_refused_and_uses_up_no_try(api: Api) -> None:
    registration_id = (await api.register()).json()["registration_id"]
    head = await api.service.store.head()
    for body in MALFORMED_CODES:
        refused = await post(api, body, f"/v1/registrations/{registration_id}/verification")
        assert (refused.status_code, problem_of(refused)) == (422, "invalid-request"), body
    assert await api.service.store.head() == head


async def test_an_id_that_is_none_is_refused(api: Api) -> None:
    for bad in ("1", "zz", ID[:-1], ID + "0", "%00", "%ff%fe", "a" * 300, "..%2f..%2fetc"):
        for answered in (
            await api.http.get(f"/v1/registrations/{bad}"),
            await post(api, '{"code": "123456"}', f"/v1/registrations/{bad}/verification"),
            await api.http.post(f"/v1/registrations/{bad}/otp"),
            await api.http.post(f"/v1/admin/registrations/{bad}/erase", headers=ADMIN),
        ):
            assert (answered.status_code, problem_of(answered)) in {(422, "invalid-request"), (404, "not-found")}, bad
            assert "zz" not in answered.text


QUESTIONS = [
    "min_position=x",
    "min_position=-1",
    "min_position=1e3",
    f"min_position={2**63}",
    "min_position=" + "9" * 5000,
    "min_position=1&wait=-1",
    "wait=-1",
    "wait=x",
    "wait=30001",
    "wait=" + "9" * 18,
]


async def test_a_malformed_question_is_refused(api: Api) -> None:
    for query in QUESTIONS:
        refused = await api.http.get(f"/v1/registrations/{ID}?{query}")
        assert (refused.status_code, problem_of(refused)) == (422, "invalid-request"), query


SEARCHES = [
    "registrations?limit=0",
    "registrations?limit=201",
    "registrations?limit=x",
    "registrations?status=DONE",
    "registrations?statu=ACTIVE",
    "registrations?email=ada",
    "registrations?email=%00",
    "registrations?cursor=x",
    "registrations?cursor=%00",
    "registrations?cursor=" + "A" * 500,
    "registrations?cursor=LTE=",
    "mail?state=LOST",
    "mail?cursor=!!",
    "mail?cursor=MDE=",
    "mail?state=STRAY&cursor=MDE=",
    "funnel?bucket=week",
    "funnel?since=yesterday",
    "funnel?since=2026-03-01T00:00:00",
    "audit?actor=%00",
    "audit?actor=a%20b",
    "audit?type=x%27%20or%201=1",
    "audit?type=",
    "audit?registration_id=1",
    "audit?correlation_id=1",
    "audit?until=x",
    "audit?email=ada%0d%0a@example.com",
    "audit?cursor=",
]


async def test_a_malformed_search_is_refused(api: Api) -> None:
    for query in SEARCHES:
        refused = await api.http.get(f"/v1/admin/{query}", headers=ADMIN)
        assert (refused.status_code, problem_of(refused)) == (422, "invalid-request"), query


async def test_a_cursor_that_no_page_gave_is_named(api: Api) -> None:
    refused = await api.http.get("/v1/admin/registrations?cursor=LTE=", headers=ADMIN)
    retry = await api.http.post("/v1/admin/mail/retry", json={"failure": "expired", "cursor": "LTE="}, headers=ADMIN)

    assert (
        refused.json()["errors"]
        == retry.json()["errors"]
        == [{"field": "cursor", "code": "invalid-value", "message": "not a cursor"}]
    )


async def test_the_first_and_the_last_day_can_be_asked_for(api: Api) -> None:
    for since in ("0001-01-01T00:00:00%2B14:00", "9999-12-31T23:59:59-14:00", "1970-01-01T00:00:00Z"):
        for path in ("audit", "funnel"):
            assert (await api.http.get(f"/v1/admin/{path}?since={since}", headers=ADMIN)).status_code == 200, since


async def test_an_idempotency_key_has_16_to_64_safe_characters(api: Api) -> None:
    bad = ["a" * 15, "a" * 65, "a" * 16 + " ", "a" * 16 + "\t.", "ä" * 20, ""]
    bad += ['"' + "a" * 15 + '"', '"' + "a" * 16, "a" * 16 + '"', "'" + "a" * 16 + "'", '""' + "a" * 16 + '""', '""']
    for key in bad:
        refused = await api.http.post("/v1/registrations", json=ADA, headers=[(b"Idempotency-Key", key.encode())])
        assert (refused.status_code, problem_of(refused)) == (422, "invalid-request"), key
        assert refused.json()["errors"][0]["field"] == "idempotency-key"
    for key in ("a" * 16, "a" * 64, "Az09_-" * 5, '"' + "a" * 64 + '"'):
        assert (await api.register(key=key)).status_code == 202


async def test_an_idempotency_key_in_quotes_is_the_same_key(api: Api) -> None:
    key = "8e03978e-40d5-43e8-bc93-6894a57f9324"
    bare, quoted = await api.register(key=key), await api.register(key=f'"{key}"')
    assert quoted.json() == bare.json()
    assert problem_of(await api.register(key=f'"{key}"', name="Eve")) == "idempotency-key-reused"


async def test_an_idempotency_key_in_the_body_is_refused_with_and_without_one_in_the_header(api: Api) -> None:
    body = with_ada(idempotency_key="a" * 16)
    for headers in ({}, {"idempotency_key": "a" * 16}):
        refused = await post(api, body, **headers)
        assert (refused.status_code, problem_of(refused)) == (422, "invalid-request")
        assert [error["field"] for error in refused.json()["errors"]] == ["idempotency_key"]


# --- The body as such ---------------------------------------------------------------------------


@pytest.mark.fault("F3")
async def test_a_body_of_16_kib_is_read_and_one_byte_more_is_not(api: Api) -> None:
    body = with_ada(padding="")
    fits = await post(api, with_ada(padding="x" * (BODY_LIMIT - len(body))))
    large = await post(api, with_ada(padding="x" * (BODY_LIMIT - len(body) + 1)))

    assert (fits.status_code, problem_of(fits)) == (422, "invalid-request")
    assert (large.status_code, problem_of(large)) == (413, "payload-too-large")


@pytest.mark.fault("F3")
async def test_a_large_body_is_refused_whether_or_not_it_tells_its_length(api: Api) -> None:
    async def chunks(count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield b" " * 4096

    for count in (5, 50, 5000):
        refused = await api.http.post("/v1/registrations", content=chunks(count), headers=JSON)
        assert (refused.status_code, problem_of(refused)) == (413, "payload-too-large")
    for size in (BODY_LIMIT + 1, 500_000, 5_000_000):
        refused = await post(api, b" " * size)
        assert (refused.status_code, problem_of(refused)) == (413, "payload-too-large")


async def test_a_body_that_comes_in_pieces_is_read(api: Api) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for byte in with_ada().encode():
            yield bytes([byte])

    assert (await api.http.post("/v1/registrations", content=pieces(), headers=JSON)).status_code == 202


NOT_JSON = [
    "",
    "text/plain",
    "application/x-www-form-urlencoded",
    "application/jsonx",
    "application/problem+json",
    "application/json; charset=latin-1",
    "application/json; charset=utf-8; x=y",
    "application/json, text/plain",
    "application/json charset=utf-8",
    "application/json;; charset=utf-16",
    'application/json; charset="utf-8',
]


async def test_a_body_that_is_not_called_json_is_refused(api: Api) -> None:
    for kind in NOT_JSON:
        refused = await api.http.post("/v1/registrations", content=with_ada(), headers={"Content-Type": kind})
        assert (refused.status_code, problem_of(refused)) == (415, "unsupported-media-type"), kind


async def test_json_may_name_its_encoding(api: Api) -> None:
    for number, kind in enumerate(
        (
            "application/json",
            "Application/JSON",
            "application/json; charset=utf-8",
            'application/json;charset="UTF-8"',
            "application/json; charset=utf8",
            "application/json;",
            "application/json;\tcharset=utf-8 ;",
        )
    ):
        body = with_ada(email=f"ada{number}@example.com")
        answered = await api.http.post("/v1/registrations", content=body, headers={"Content-Type": kind})
        assert answered.status_code == 202, kind


async def test_json_may_begin_with_a_byte_order_mark(api: Api) -> None:
    assert (await post(api, b"\xef\xbb\xbf" + with_ada().encode())).status_code == 202


async def test_no_body_may_be_called_anything(api: Api) -> None:
    async def nothing() -> AsyncIterator[bytes]:
        return
        yield b""

    registration = (await api.register()).headers["location"]
    for length in ({"Transfer-Encoding": "chunked"}, {"Content-Length": "00"}, {"Content-Length": "0"}):
        answered = await api.http.post(f"{registration}/otp", content=nothing(), headers=length)
        assert problem_of(answered) == "too-many-requests", length


@pytest.mark.fault("F3")
async def test_an_encoded_body_is_refused(api: Api) -> None:
    for encoding in ("gzip", "br", "identity"):
        refused = await post(api, with_ada(), content_encoding=encoding)
        assert (refused.status_code, problem_of(refused)) == (415, "unsupported-media-type")


@pytest.mark.fault("F2")
async def test_a_body_that_does_not_arrive_in_time_is_given_up(api: Api) -> None:
    guard = Guard(
        api.app,
        metrics=api.service.metrics,
        request_timeout=timedelta(seconds=30),
        body_deadline=timedelta(seconds=0.05),
    )

    async def never() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async with httpx.AsyncClient(transport=httpx.ASGITransport(guard), base_url="http://registrar.test") as http:
        late = await http.post("/v1/registrations", content=never(), headers=JSON)

    assert (late.status_code, problem_of(late)) == (408, "request-timeout")


async def test_headers_beyond_8_kib_are_refused(api: Api) -> None:
    refused = await api.http.get("/health/live", headers={"X-Much": "x" * 8192})
    assert (refused.status_code, problem_of(refused)) == (431, "headers-too-large")


# --- Paths, methods, headers --------------------------------------------------------------------


async def test_a_path_that_is_none_of_ours_is_a_problem(api: Api) -> None:
    for path in ("/v1", "/v1/registrations/", "/admin", "/docs/../api.py", "/docs/x.js", "/mailbox/", "/%00"):
        missing = await api.http.get(path)
        assert (missing.status_code, problem_of(missing)) in {(404, "not-found")}, path


async def test_a_method_that_is_not_for_a_path_is_a_problem(api: Api) -> None:
    for method, path in [("GET", "/v1/registrations"), ("DELETE", f"/v1/registrations/{ID}"), ("PATCH", "/metrics")]:
        refused = await api.http.request(method, path)
        assert (refused.status_code, problem_of(refused)) == (405, "method-not-allowed")
        assert refused.headers["allow"]


async def test_every_answer_has_the_headers_of_a_careful_service(api: Api) -> None:
    answered = [
        await api.register(),
        await api.http.get(f"/v1/registrations/{ID}"),
        await api.http.get("/nowhere"),
        await api.http.get("/v1/admin/mail"),
        await api.http.get("/health/live"),
        await post(api, b"x" * 20_000),
    ]
    for one in answered:
        assert one.headers["cache-control"] == "no-store"
        assert one.headers["x-content-type-options"] == "nosniff"
        assert one.headers["referrer-policy"] == "no-referrer"
        assert one.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert "server" not in one.headers
        assert "strict-transport-security" not in one.headers  # TLS ends at the proxy
        assert not any(name.startswith("access-control") for name in one.headers)


async def test_only_a_uuid_is_taken_over_as_request_id(api: Api) -> None:
    ours = set()
    for sent in ("", "1", ID[:-1], "\x1b[31m", '\\n{"level":"ERROR"', ID.replace("-", ""), "x" * 4000):
        answered = await api.http.get("/health/live", headers=[(b"X-Request-Id", sent.encode())])
        ours.add(answered.headers["registrar-request-id"])
    taken = await api.http.get("/health/live", headers={"X-Request-Id": ID.upper()})

    assert len(ours) == 7
    assert taken.headers["registrar-request-id"] == ID


NOT_TRACES = [
    "",
    "x",
    f"00-{'0' * 32}-00f067aa0ba902b7-01",
    f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01",
    "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
]


async def test_a_malformed_trace_is_ignored(api: Api) -> None:
    for number, header in enumerate(NOT_TRACES):
        begun = await api.http.post(
            "/v1/registrations", json=ADA | {"email": f"ada{number}@example.com"}, headers={"traceparent": header}
        )
        assert begun.status_code == 202
    rows, _ = await api.service.store.read(0, 100)

    assert {row.trace for row in rows} == {None}


async def test_a_failure_inside_is_logged_without_what_was_sent(
    api: Api, monkeypatch: pytest.MonkeyPatch, log: io.StringIO
) -> None:
    async def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError(f"about {SECRET}")

    monkeypatch.setattr(api.service.store, "load", fail)
    async with client_of(create_app(api.service.api)) as http:
        failed = await http.post("/v1/registrations", json=ADA | {"name": SECRET})

    logged = log.getvalue()
    assert problem_of(failed) == "internal-error"
    assert "RuntimeError" in logged
    assert "/v1/registrations" in logged
    assert failed.headers["registrar-request-id"] in logged
    assert SECRET not in logged + failed.text
    assert "ada" not in logged.lower()
