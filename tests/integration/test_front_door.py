"""The front door: a sign-up by forms is the API's sign-up, with its limits and its silence, from our own pages only."""

from __future__ import annotations

import io
import json
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Final

import httpx
import pytest

from application.ports import Overloaded
from entrypoints.api.app import create_app
from entrypoints.bootstrap.api import has_front_door
from infrastructure.settings.settings import Settings
from tests.support.http import ADMIN, Api, client_of, open_api

UNKNOWN = "0198c0de-0000-7000-8000-000000000000"
OURS: Final = {"Sec-Fetch-Site": "same-origin"}


@pytest.fixture
async def api(dsn: str) -> AsyncIterator[Api]:
    async with open_api(dsn, limits="registrations=off") as opened:
        yield opened


@pytest.fixture
async def idle(dsn: str) -> AsyncIterator[Api]:
    """Without followers: for what records nothing, or needs nobody to act on it."""
    async with open_api(dsn, follows=False) as opened:
        yield opened


async def post(api: Api, path: str, headers: Mapping[str, str] = OURS, **fields: str) -> httpx.Response:
    return await api.http.post(path, data=fields, headers=dict(headers))


async def begun(api: Api, email: str = "ada@example.com") -> str:
    """The path of the page of a registration that was begun by form."""
    answer = await post(api, "/sign-up", email=email, name="Ada Lovelace")
    assert answer.status_code == 303, answer.text
    location: str = answer.headers["location"]
    await api.becomes(location.rpartition("/")[2], mail="SENT")
    return location


async def test_a_person_signs_up_by_forms_alone(api: Api) -> None:
    first = await api.http.get("/")
    assert 'action="/sign-up"' in first.text
    there = await begun(api)
    page = await api.http.get(there)
    assert page.text.count('autocomplete="one-time-code"') == page.text.count('inputmode="numeric"') == 1

    verified = await post(api, f"{there}/verification", code=await api.code("ada@example.com"))

    assert verified.status_code == 303
    assert re.fullmatch(rf"{there}\?min_position=\d+", verified.headers["location"])
    assert ">Done<" in (await api.http.get(verified.headers["location"])).text
    await api.becomes(there.rpartition("/")[2], status="ACTIVE")


async def test_a_taken_address_is_told_nothing_else_than_a_new_one(api: Api) -> None:
    await api.active("ada@example.com")

    taken, new = await begun(api), await begun(api, "eve@example.com")

    pages = [(await api.http.get(path)).text.replace(path, "") for path in (taken, new)]
    assert "Enter the code" in pages[0]
    assert pages[0].replace("a•••@", "") == pages[1].replace("e•••@", "")


async def test_what_is_wrong_stands_beside_its_field_and_what_was_typed_is_kept(api: Api) -> None:
    refused = await post(api, "/sign-up", email='"><script>x', name="Ada & Co", password="hunter2")

    assert refused.status_code == 422
    assert '<p class="wrong" id="email-wrong">Not a valid mail address.</p>' in refused.text
    assert 'aria-invalid="true" aria-describedby="email-wrong"' in refused.text
    assert 'value="&quot;&gt;&lt;script&gt;x"' in refused.text
    assert 'value="Ada &amp; Co"' in refused.text
    assert "hunter2" not in refused.text
    assert "<script" not in refused.text


async def test_a_wrong_code_is_told_with_the_tries_that_are_left(api: Api) -> None:
    there = await begun(api)

    refused = await post(api, f"{there}/verification", code=await api.wrong_code("ada@example.com"))
    malformed = await post(api, f"{there}/verification", code="x")
    empty = await post(api, f"{there}/verification")

    assert (refused.status_code, malformed.status_code, empty.status_code) == (422, 422, 422)
    assert "Tries left: 4." in refused.text
    assert all('id="code-wrong"' in page.text for page in (refused, malformed, empty))


async def test_a_new_code_too_early_is_refused_with_the_time_to_wait(api: Api) -> None:
    refused = await post(api, f"{await begun(api)}/otp")

    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) <= 60
    assert f"Try again in {refused.headers['retry-after']} seconds." in refused.text
    assert "Enter the code" in refused.text


async def test_a_new_code_is_announced_to_everybody_in_the_same_words(dsn: str) -> None:
    async with open_api(dsn, limits="registrations=off", resend_cooldown="1ms") as api:
        await api.active("ada@example.com")
        told = []
        for email in ("ada@example.com", "eve@example.com"):
            there = await begun(api, email)
            sent = await post(api, f"{there}/otp")
            assert sent.status_code == 303
            told.append((await api.http.get(sent.headers["location"])).text.replace(there, ""))

    assert '<p class="alert done" role="status">' in told[0]
    assert "a new code is on its way" in told[0]
    assert told[0].replace("a•••@", "") == told[1].replace("e•••@", "")


async def test_forms_come_under_the_limits_of_the_api(dsn: str) -> None:
    async with open_api(dsn, follows=False, limits="registrations=2/1h burst 2") as api:
        answers = [await api.register(name="Ada")] + [
            await post(api, "/sign-up", email="ada@example.com", name=f"Ada {number}") for number in range(3)
        ]

        assert [answer.status_code for answer in answers] == [202, 303, 429, 429]
        assert "RateLimit-Policy" in answers[-1].headers


ELSEWHERE: Final[tuple[dict[str, str], ...]] = (
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site", "Origin": "http://registrar.test"},
    {"Sec-Fetch-Site": "none"},
    {"Origin": "https://elsewhere.example"},
    {"Origin": "http://registrar.test.elsewhere.example"},
    {"Origin": "registrar.test"},
    {"Origin": "null"},
    {"Origin": "http://["},
    {},
)


async def test_the_page_of_a_sign_up_that_was_erased_says_so(api: Api) -> None:
    there = await begun(api)
    registration_id = there.rpartition("/")[2]
    await api.http.post(f"/v1/admin/registrations/{registration_id}/erase", headers=ADMIN)
    await api.becomes(registration_id, status="CANCELLED")

    page = await api.http.get(there)

    assert (page.status_code, "(erased)" in page.text) == (200, True)


async def test_a_form_of_another_site_does_nothing(idle: Api) -> None:
    path = f"/sign-up/{(await idle.register()).json()['registration_id']}"
    before = await idle.service.store.head()
    for headers in ELSEWHERE:
        for act in ("/sign-up", f"{path}/verification", f"{path}/otp"):
            refused = await post(idle, act, headers, email="eve@example.com", name="Eve", code="123456")
            assert refused.status_code == 403, (headers, act)
    assert await idle.service.store.head() == before


async def test_a_browser_that_says_no_site_says_its_origin(idle: Api) -> None:
    for origin in ("http://registrar.test", "https://REGISTRAR.test"):
        refused = await post(idle, "/sign-up", {"Origin": origin}, email="x", name="Ada")
        assert refused.status_code == 422


FORM: Final = "application/x-www-form-urlencoded"
BODIES: Final = (
    ("email=a%40b.example&email=c%40d.example&name=Ada", FORM, 422),
    ("email=%ff&name=Ada", f"{FORM}; charset=UTF-8", 422),
    ("network=1.2.3.4&email=a%40b.example&name=Ada", FORM, 422),
    ("&".join(f"a{number}=1" for number in range(20)), FORM, 422),
    ('{"email":"a@b.example","name":"Ada"}', "application/json", 415),
    ("email=a%40b.example&name=Ada", "text/plain", 415),
    ("x" * 20_000, FORM, 413),
)


async def test_a_form_is_read_strictly_and_the_api_takes_none(idle: Api) -> None:
    for body, content_type, status in BODIES:
        answer = await idle.http.post("/sign-up", content=body, headers={**OURS, "Content-Type": content_type})
        assert answer.status_code == status, body[:40]
        assert '<p class="alert" role="alert">' in answer.text, "a page, whoever refuses it"
    assert (await post(idle, "/v1/registrations", email="a@b.example", name="Ada")).status_code == 415


async def test_pages_are_small_run_no_script_and_ask_nobody_else(idle: Api) -> None:
    first = await idle.http.get("/")
    icon = await idle.http.get("/favicon.ico")

    assert len(first.content) + len(icon.content) <= 30 * 1024
    assert icon.headers["content-type"] == "image/x-icon"
    policy = first.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "script-src" not in policy
    assert "unsafe" not in policy
    assert not re.search(r"<script|\bon\w+=|https?://", first.text)
    for path in re.findall(r'(?:href|src)="([^"]+)"', first.text):
        assert (await idle.http.get(path)).status_code == 200, path


async def test_a_registration_that_there_is_not_has_a_page_that_says_so(idle: Api) -> None:
    missing = await idle.http.get(f"/sign-up/{UNKNOWN}")
    acted = await post(idle, f"/sign-up/{UNKNOWN}/verification", code="123456")
    nonsense = await idle.http.get("/sign-up/%3Cb%3E")
    reloaded = await idle.http.get(f"/sign-up/{UNKNOWN}/otp")
    astray = await idle.http.get("/sign-up/a/b/c")
    deleted = await idle.http.delete("/sign-up")

    answers = (missing, acted, nonsense, reloaded, astray, deleted)
    assert [answer.status_code for answer in answers] == [404, 404, 422, 303, 404, 405]
    assert all("text/html" in answer.headers["content-type"] for answer in (astray, deleted))
    assert deleted.headers["allow"] == "GET, HEAD, OPTIONS, POST"
    assert "There is no registration with this id." in missing.text


async def test_an_error_that_a_page_shows_is_counted_and_logged_as_one_of_the_api(
    idle: Api, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = f"/sign-up/{(await idle.register()).json()['registration_id']}"
    async with idle.service.pool.connection() as connection:
        await connection.execute("DROP SCHEMA read_registrations CASCADE")
    answers = [await idle.http.get(there)]
    for error in (ZeroDivisionError(), Overloaded("a test")):

        async def fails(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(type(idle.service.handlers), "handle", fails)
        answers.append(await post(idle, "/sign-up", email="eve@example.com", name="Eve"))

    assert [answer.status_code for answer in answers] == [503, 500, 503]
    assert all(answer.headers["content-type"].startswith("text/html") for answer in answers)
    lines = [json.loads(line) for line in log.getvalue().splitlines() if "request.failed" in line]
    assert [line["route"] for line in lines] == ["/sign-up/{registration_id}", "/sign-up"]
    assert "projections rebuild" in lines[0]["hint"]
    assert lines[0]["correlation_id"] == answers[0].headers["registrar-request-id"]
    assert lines[1]["error"] == "ZeroDivisionError"
    assert 'registrar_shed_total{reason="queue-full"} 1.0' in (await idle.http.get("/metrics")).text


async def test_it_is_there_where_the_mailbox_is_or_where_it_is_asked_for(idle: Api, dsn: str) -> None:
    for smtp, asked_for, there in (("", None, True), ("x", None, False), ("x", True, True), ("", False, False)):
        settings = Settings.from_environment(
            {"REGISTRAR_SMTP_URLS": "smtp://127.0.0.1:9" if smtp else "", "REGISTRAR_FRONT_DOOR": str(asked_for or "")}
            if asked_for is not False
            else {"REGISTRAR_FRONT_DOOR": "false"}
        )
        assert has_front_door(settings, mailbox=not smtp) is there, (smtp, asked_for)
    for parts, status in ((idle.service.api, 200), (replace(idle.service.api, front_door=False), 404)):
        async with client_of(create_app(parts)) as http:
            for path in ("/", "/sign-up"):
                assert (await http.get(path)).status_code == status
            refused = await http.post("/sign-up", data={"email": "x"}, headers=OURS)
            assert refused.status_code == (422 if status == 200 else 404)
            assert ("text/html" in refused.headers["content-type"]) == (status == 200)


async def test_what_is_on_another_listener_is_not_led_to(idle: Api) -> None:
    async with client_of(create_app(idle.service.api, admin=False)) as http:
        page = await http.get("/")
    assert 'href="/docs"' not in page.text
    assert 'href="/metrics"' not in page.text
    assert 'href="/mailbox"' in page.text


async def test_below_a_path_the_pages_lead_to_pages_below_it(dsn: str) -> None:
    async with open_api(dsn, follows=False, public_url="http://registrar.test/accounts") as api:
        page = await api.http.get("/accounts/")
        assert set(re.findall(r'(?:href|action)="(/\w+)', page.text)) == {"/accounts"}
        signed_up = await post(api, "/accounts/sign-up", email="ada@example.com", name="Ada")
        assert signed_up.headers["location"].startswith("/accounts/sign-up/")
        assert (await api.http.get(signed_up.headers["location"])).status_code == 200


# --- The mailbox's new mails ----------------------------------------------------------------------


async def test_the_mailbox_tells_only_what_is_new(api: Api) -> None:
    await begun(api, "one@example.com")
    (first,) = (await api.http.get("/mailbox/messages")).json()
    await begun(api, "two@example.com")

    later = await api.http.get("/mailbox/messages", params={"after": first["received_at"]})
    of_one = await api.http.get("/mailbox/messages", params={"after": first["received_at"], "to": "one@example.com"})
    none = await api.http.get("/mailbox/messages", params={"after": "2100-01-01T00:00:00Z"})

    assert [mail["to"] for mail in later.json()] == ["two@example.com"]
    assert of_one.json() == []
    assert (none.json(), none.headers["registrar-mails"]) == ([], "2")
    assert (await api.http.get("/mailbox/messages", params={"after": "2100"})).status_code == 422
