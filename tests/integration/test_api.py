"""The HTTP API from outside: every route, every error code, and that it tells nobody whose address is taken."""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from fastapi import FastAPI
from psycopg import sql
from pydantic import TypeAdapter
from starlette.routing import Match

from application.commands import CancelRegistration, RecordEmailDispatchFailed, ReplaceStaleCode
from application.ports import Conflict, Context, Overloaded, entries_of
from domain.mail_outcome import MAIL_FAILURES, CancelReason, DispatchFailure, MailFailure, MailKind
from domain.recorded import Position
from entrypoints.api import responses
from entrypoints.api.app import create_app
from entrypoints.api.guard import DIRECTLY
from infrastructure.postgres.connection import connect
from infrastructure.telemetry.tracing import Span, Tracing
from projections.mail import Mails
from projections.registrations import Registrations
from tests.support.facts import CLIENT, DIGEST, STRAY, MovableClock, eventually, stray_kept, stream
from tests.support.http import ADA, ADMIN, Api, client_of, open_api, problem_of
from tests.support.log import query
from tests.support.smtp_stub import SmtpStub

WAIT = {"wait": 5000}
UNKNOWN = "019cab10-0000-7000-8000-00000000dead"
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
async def api(dsn: str) -> AsyncIterator[Api]:
    async with open_api(dsn) as api:
        yield api


@pytest.fixture
async def idle(dsn: str) -> AsyncIterator[Api]:
    """Without followers: read models stay behind, no mail goes out."""
    async with open_api(dsn, follows=False) as api:
        yield api


def fits(shape: type, content: Any) -> Any:
    """The content, after a check that the OpenAPI document tells the truth about it."""
    assert set(content) == set(shape.__dataclass_fields__)  # type: ignore[attr-defined]
    TypeAdapter(shape).validate_python(content)
    return content


# --- A registration -----------------------------------------------------------------------------


async def test_a_registration_goes_from_request_to_account(api: Api) -> None:
    begun = await api.register("Ada.L@Example.com", password="correct horse battery")

    assert begun.status_code == 202
    body = fits(responses.Registered, begun.json())
    assert (body["email"], body["status"]) == ("Ada.L@example.com", "PENDING")
    path = f"/v1/registrations/{body['registration_id']}"
    assert begun.headers["location"] == path
    position = int(begun.headers["registrar-position"])

    shown = await api.http.get(path, params={"min_position": position, **WAIT})
    assert shown.status_code == 200
    state = fits(responses.RegistrationState, shown.json())
    assert (state["status"], state["email"], state["attempts_left"]) == ("PENDING", "A•••@example.com", 5)
    assert (state["verified_at"], state["activated_at"]) == (None, None)

    state = await api.becomes(body["registration_id"], mail="SENT")
    handed_over = datetime.fromisoformat(state["otp_expires_at"]) - timedelta(minutes=10)
    assert timedelta(0) <= handed_over - datetime.fromisoformat(state["created_at"]) < timedelta(minutes=1)

    verified = await api.verify(body["registration_id"], await api.code("ada.l@example.com"))
    assert (verified.status_code, verified.json()["status"]) == (200, "VERIFIED")
    state = await api.becomes(body["registration_id"], status="ACTIVE")
    assert state["verified_at"] <= state["activated_at"]

    again = await api.verify(body["registration_id"], "000000")
    assert (again.status_code, again.json()) == (200, {"status": "ACTIVE"})


async def test_what_was_answered_can_be_read_at_its_position(api: Api) -> None:
    async def register_and_look(number: int) -> int:
        begun = await api.register(f"ada{number}@example.com")
        position = begun.headers["registrar-position"]
        return (await api.look(begun.json()["registration_id"], min_position=position, **WAIT)).status_code

    assert set(await asyncio.gather(*(register_and_look(number) for number in range(40)))) == {200}


async def test_many_who_look_share_their_queries(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    registration_id = await api.registered()
    sizes: list[int] = []
    find = Registrations.find

    async def counting(self: Registrations, connection: Any, ids: Any) -> Any:
        sizes.append(len(ids))
        return await find(self, connection, ids)

    monkeypatch.setattr(Registrations, "find", counting)
    looks = await asyncio.gather(*(api.look(registration_id) for _ in range(64)))

    assert {look.status_code for look in looks} == {200}
    assert len(sizes) < 16


async def test_a_read_model_that_is_behind_says_so_after_the_wait(idle: Api) -> None:
    begun = await idle.register()
    registration_id, position = begun.json()["registration_id"], begun.headers["registrar-position"]

    behind = await idle.look(registration_id, min_position=position, wait=50)
    assert (behind.status_code, problem_of(behind)) == (503, "unavailable")
    assert int(behind.headers["retry-after"]) >= 1


async def test_what_was_accepted_can_be_read_at_once(idle: Api) -> None:
    begun = await idle.register("ada@example.com")
    shown = await idle.http.get(begun.headers["location"])
    assert shown.status_code == 200
    state = fits(responses.RegistrationState, shown.json())
    assert (state["status"], state["mail"], state["email"]) == ("PENDING", "QUEUED", "a•••@example.com")


async def test_what_is_read_before_the_read_model_has_it_is_nothing_that_it_would_take_back(
    idle: Api, dsn: str
) -> None:
    registration_id = (await idle.register()).json()["registration_id"]
    [(head,)] = await query(dsn, "SELECT max(notification_id) FROM events WHERE originator_id = %s", registration_id)
    assert (await idle.look(registration_id)).json()["position"] < head

    # A registration that the model has passed over, because its stream is parked, is shown as it is.
    await query(dsn, "INSERT INTO followers (name, position) VALUES ('registrations', %s)", head)
    assert (await idle.look(registration_id)).json()["position"] == head


async def test_only_registrations_are_found(idle: Api, dsn: str) -> None:
    registration_id = (await idle.register()).json()["registration_id"]
    others = await query(dsn, "SELECT DISTINCT originator_id FROM events WHERE originator_id <> %s", registration_id)
    assert others
    for other in (*(str(one) for (one,) in others), str(uuid4())):
        missing = await idle.look(other)
        assert (missing.status_code, problem_of(missing)) == (404, "unknown-registration")


@pytest.mark.fault("F7")
async def test_a_repeat_with_the_same_key_is_the_same_registration(api: Api) -> None:
    first = await api.register(key="0123456789abcdef")
    again = await api.register(key="0123456789abcdef")
    other = await api.register("grace@example.com", key="0123456789abcdef")
    reused = await api.register(key="0123456789abcdef", name="Somebody Else")

    assert again.status_code == 202
    assert again.json() == first.json()
    assert other.json()["registration_id"] != first.json()["registration_id"]
    assert (reused.status_code, problem_of(reused)) == (422, "idempotency-key-reused")


# --- Refusals -----------------------------------------------------------------------------------


async def test_wrong_codes_are_counted_down_and_then_locked(api: Api) -> None:
    registration_id = await api.registered()
    wrong = await api.wrong_code("ada@example.com")

    left = []
    for _ in range(5):
        refused = await api.verify(registration_id, wrong)
        assert (refused.status_code, problem_of(refused)) == (422, "wrong-code")
        left.append(refused.json()["attempts_left"])
    locked = await api.verify(registration_id, await api.code("ada@example.com"))

    assert left == [4, 3, 2, 1, 0]
    assert (locked.status_code, problem_of(locked)) == (423, "code-locked")


async def test_a_code_expires_ten_minutes_after_its_mail(dsn: str) -> None:
    clock = MovableClock()
    async with open_api(dsn, clock=clock) as api:
        registration_id = await api.registered()
        clock.move(timedelta(minutes=10))

        expired = await api.verify(registration_id, await api.code("ada@example.com"))

        assert (expired.status_code, problem_of(expired)) == (410, "code-expired")


async def test_a_new_code_replaces_the_old_one_but_not_at_once(dsn: str) -> None:
    clock = MovableClock()
    async with open_api(dsn, clock=clock) as api:
        registration_id = await api.registered()
        old = await api.code("ada@example.com")
        clock.move(timedelta(seconds=29.5))

        early = await api.new_code(registration_id)
        assert (early.status_code, problem_of(early)) == (429, "too-many-requests")
        assert early.headers["retry-after"] == "31"

        clock.move(timedelta(seconds=31))
        renewed = await api.new_code(registration_id)
        assert renewed.status_code == 202
        fits(responses.CodeRequested, renewed.json())
        await eventually(lambda: len(api.service.mailbox.messages("ada@example.com")) == 2)  # type: ignore[union-attr]
        assert problem_of(await api.verify(registration_id, old)) == "wrong-code"
        assert (await api.verify(registration_id, await api.code("ada@example.com"))).status_code == 200


async def test_a_registration_that_has_ended_takes_no_code(api: Api) -> None:
    registration_id = await api.registered()
    await api.http.post(f"/v1/admin/registrations/{registration_id}/cancel", headers=ADMIN)

    for refused in (await api.verify(registration_id, "123456"), await api.new_code(registration_id)):
        assert (refused.status_code, problem_of(refused)) == (409, "not-pending")


async def test_an_id_that_nobody_has_is_unknown_everywhere(api: Api) -> None:
    answered = [
        await api.look(UNKNOWN),
        await api.verify(UNKNOWN, "123456"),
        await api.new_code(UNKNOWN),
        await api.http.get(f"/v1/admin/registrations/{UNKNOWN}", headers=ADMIN),
        await api.http.post(f"/v1/admin/registrations/{UNKNOWN}/cancel", headers=ADMIN),
        await api.http.post(f"/v1/admin/registrations/{UNKNOWN}/erase", headers=ADMIN),
        await api.http.post(
            f"/v1/admin/accounts/{UNKNOWN}/password", json={"password": "roses are red today"}, headers=ADMIN
        ),
        await api.http.post(f"/v1/admin/mail/{UNKNOWN}/retry", headers=ADMIN),
        await api.http.post(f"/v1/admin/mail/{UNKNOWN}/discard", headers=ADMIN),
        await api.http.post(f"/v1/admin/mail/{UNKNOWN}/allow", headers=ADMIN),
    ]
    assert {(one.status_code, problem_of(one)) for one in answered} == {(404, "unknown-registration")}


async def test_a_taken_address_is_revealed_only_where_the_operator_chose_to(dsn: str) -> None:
    async with open_api(dsn, reveal_duplicates="true") as api:
        await api.active()

        taken = await api.register()

        assert (taken.status_code, problem_of(taken)) == (409, "address-taken")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Conflict(), 503, "unavailable"),
        (Overloaded("full", retry_after=2.5), 503, "overloaded"),
        (RuntimeError("ada@example.com"), 500, "internal-error"),
    ],
)
async def test_what_goes_wrong_inside_is_told_without_a_detail(
    idle: Api, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, code: str
) -> None:
    async def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(idle.service.store, "load", fail)
    answered = await idle.register()

    assert (answered.status_code, problem_of(answered)) == (status, code)
    assert "ada" not in answered.text
    assert ("retry-after" in answered.headers) == (status == 503)
    metrics = (await idle.http.get("/metrics")).text
    assert f'registrar_registrations_total{{outcome="{code}"}} 1.0' in metrics
    assert ("registrar_shed_total{" in metrics) == (code == "overloaded")


async def test_a_request_that_takes_too_long_is_answered_in_time(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_api(dsn, follows=False, request_timeout="0.05") as api:
        monkeypatch.setattr(api.service.store, "load", lambda *_, **__: asyncio.Event().wait())

        late = await api.register()

        assert (late.status_code, problem_of(late)) == (504, "timeout")


# --- Nobody learns whether an address is taken ---------------------------------------------------


def masked(answer: httpx.Response) -> tuple[int, list[tuple[str, str]], str]:
    """All of an answer but ids, times, positions, and the address that was asked for."""

    def mask(text: str) -> str:
        text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", lambda found: "#" * len(found[0]), text)
        text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", text)
        text = re.sub(r'"position":\d+', '"position":N', text)
        return re.sub(r"[a-z]+@example", "A@example", text)

    headers = [(name, "N" if name == "registrar-position" else mask(value)) for name, value in answer.headers.items()]
    headers = [(name, value) for name, value in headers if name != "content-length"]
    return answer.status_code, headers, mask(answer.text)


async def test_answers_are_the_same_for_a_new_a_pending_and_a_taken_address(dsn: str) -> None:
    stories: list[list[Any]] = []
    async with open_api(dsn, clock=MovableClock()) as api:  # it stands still, so that even Retry-After is the same
        await api.registered("abe@example.com", name="Abe")
        await api.active("amy@example.com")

        for email in ("ann@example.com", "abe@example.com", "amy@example.com"):
            begun = await api.register(email)
            registration_id = begun.json()["registration_id"]
            before = await api.look(registration_id, min_position=begun.headers["registrar-position"], **WAIT)
            await api.becomes(registration_id, mail="SENT")
            story = [
                begun,
                await api.register(email),
                await api.look(registration_id),
                await api.new_code(registration_id),
                *[await api.verify(registration_id, "000000") for _ in range(6)],
            ]
            await api.becomes(registration_id, attempts_left=0)
            story.append(await api.look(registration_id))
            assert before.status_code == 200
            assert begun.json()["registration_id"] == story[1].json()["registration_id"]
            stories.append([len(begun.content), *[masked(one) for one in story]])

    for new, pending, taken in zip(*stories, strict=True):
        assert new == pending
        assert new == taken


async def test_a_right_code_for_a_taken_address_is_wrong(api: Api) -> None:
    await api.active("eve@example.com")
    begun = await api.register("eve@example.com")
    registration_id = begun.json()["registration_id"]

    refused = await api.verify(registration_id, api.service.keyring.code(UUID(registration_id), 1))

    assert problem_of(refused) == "wrong-code"


# --- Operators ----------------------------------------------------------------------------------


async def test_an_operator_sees_the_whole_story(dsn: str) -> None:
    async with open_api(dsn, resend_cooldown="1ms") as api:
        await _sees_the_whole_story(api)


async def _sees_the_whole_story(api: Api) -> None:
    owner = await api.active("eve@example.com")
    duplicate = (await api.register("eve@example.com", name="Mallory")).json()["registration_id"]
    await api.becomes(duplicate, mail="SENT")

    async def told() -> dict[str, Any]:
        story: dict[str, Any] = (await api.http.get(f"/v1/admin/registrations/{duplicate}", headers=ADMIN)).json()
        assert [(one["kind"], one["state"]) for one in story["mails"]] == [("notice", "SENT")]
        return story

    story = await eventually(told)
    found = (await api.http.get("/v1/admin/registrations", params={"email": "EVE@example.com"}, headers=ADMIN)).json()
    active = (await api.http.get("/v1/admin/registrations", params={"status": "ACTIVE"}, headers=ADMIN)).json()

    fits(responses.AdminRegistration, story["registration"])
    assert story["registration"]["duplicate_of"] == owner
    assert (story["registration"]["email"], story["registration"]["name"]) == ("eve@example.com", "Mallory")
    assert [one["registration_id"] for one in found["items"]] == [duplicate, owner]
    assert [one["registration_id"] for one in active["items"]] == [owner]


async def test_lists_come_in_pages_newest_first(api: Api) -> None:
    made = [await api.registered(f"ada{number}@example.com") for number in range(5)]

    async def pages(path: str) -> list[list[dict[str, Any]]]:
        got, cursor = [], None
        while True:
            query = {"limit": 2} | ({"cursor": cursor} if cursor else {})
            page = (await api.http.get(path, params=query, headers=ADMIN)).json()
            got.append(page["items"])
            cursor = page["next_cursor"]
            if cursor is None:
                return got

    async def all_shown(path: str) -> bool:
        found = await pages(path)
        return [len(page) for page in found] == [2, 2, 1] and [
            one["registration_id"] for page in found for one in page
        ] == made[::-1]

    for path in ("/v1/admin/registrations", "/v1/admin/mail"):
        await eventually(partial(all_shown, path))


async def test_the_audit_log_tells_who_did_what_and_why(api: Api) -> None:
    correlation = str(uuid4())
    begun = await api.http.post(
        "/v1/registrations", json=ADA, headers={"X-Request-Id": correlation, "traceparent": TRACE}
    )
    registration_id = begun.json()["registration_id"]
    assert begun.headers["registrar-request-id"] == correlation
    await api.becomes(registration_id, mail="SENT")

    async def audit(**query: str) -> list[dict[str, Any]]:
        answer = await api.http.get("/v1/admin/audit", params=query, headers=ADMIN)
        assert answer.status_code == 200, answer.text
        items: list[dict[str, Any]] = answer.json()["items"]
        return items

    async def dispatched() -> list[dict[str, Any]]:
        return await audit(type="registration.email_dispatched", correlation_id=correlation)

    (entry,) = await eventually(dispatched)
    assert (entry["actor"], entry["registration_id"]) == ("mail-worker", registration_id)
    by_client = await audit(actor="client", registration_id=registration_id)
    assert {one["correlation_id"] for one in by_client} == {correlation}
    assert {one["trace"] for one in by_client} == {TRACE}
    everything = await audit(email="ada@example.com", since=by_client[-1]["recorded_at"])
    assert len(everything) > len(by_client)
    assert await audit(email="ada@example.com", until=by_client[-1]["recorded_at"]) == []
    assert "ada@example.com" not in str(everything)


async def test_an_operator_cancels_and_erases(api: Api) -> None:
    registration_id = await api.registered()
    cancelled = await api.http.post(f"/v1/admin/registrations/{registration_id}/cancel", headers=ADMIN)
    again = await api.http.post(f"/v1/admin/registrations/{registration_id}/cancel", headers=ADMIN)
    erased = await api.http.post(f"/v1/admin/registrations/{registration_id}/erase", headers=ADMIN)

    for done in (cancelled, again, erased):
        assert done.status_code == 200
        assert fits(responses.Done, done.json())["status"] == "CANCELLED"
    await api.becomes(registration_id, status="CANCELLED", email=None)
    story = (await api.http.get(f"/v1/admin/registrations/{registration_id}", headers=ADMIN)).json()
    assert story["registration"]["erased"]
    assert (story["registration"]["email"], story["registration"]["name"]) == (None, None)


async def test_an_account_is_not_cancelled_but_erased(api: Api) -> None:
    registration_id = await api.active()
    refused = await api.http.post(f"/v1/admin/registrations/{registration_id}/cancel", headers=ADMIN)
    erased = await api.http.post(f"/v1/admin/registrations/{registration_id}/erase", headers=ADMIN)

    assert (refused.status_code, problem_of(refused)) == (409, "not-pending")
    assert erased.json()["status"] == "CANCELLED"


async def test_a_mail_is_retried_or_discarded(idle: Api) -> None:
    registration_id = (await idle.register()).json()["registration_id"]
    retried = await idle.http.post(f"/v1/admin/mail/{registration_id}/retry", headers=ADMIN)
    discarded = await idle.http.post(f"/v1/admin/mail/{registration_id}/discard", headers=ADMIN)

    assert [retried.json()["status"], discarded.json()["status"]] == ["PENDING", "PENDING"]


async def test_mails_to_mailboxes_that_do_not_exist_are_history_once_their_registrations_are_undone(dsn: str) -> None:
    async with SmtpStub() as smtp:
        smtp.at("rcpt", "550 5.1.1 no such mailbox")
        async with open_api(dsn, smtp_urls=f"smtp://127.0.0.1:{smtp.port}") as api:
            ids = {(await api.register(f"nobody{n}@example.com")).json()["registration_id"] for n in range(12)}

            async def undone() -> bool:
                failed = await listed_mails(api, state="FAILED")
                return {mail["registration_id"] for mail in failed if mail["settled"]} == ids

            await eventually(undone)
            assert await listed_mails(api, state="WAITING") == []
            assert await measures(api, "registrar_dead_letters 0.0")
            discarded = await api.http.post(f"/v1/admin/mail/{min(ids)}/discard", headers=ADMIN)
            assert discarded.json()["status"] == "CANCELLED"


async def test_a_mail_that_failed_for_good_waits_until_an_operator_has_discarded_it(idle: Api) -> None:
    [registration_id] = await failed_mails(idle, "mailbox-unknown", permanent=True)
    await followed(idle)
    [waits] = await listed_mails(idle, state="WAITING")
    assert (waits["registration_id"], waits["settled"]) == (str(registration_id), False)
    assert await measures(idle, "registrar_dead_letters 1.0")

    await idle.http.post(f"/v1/admin/mail/{registration_id}/discard", headers=ADMIN)
    head = await idle.service.store.head()
    await followed(idle, after=head - 1)
    assert await listed_mails(idle, state="WAITING") == []
    assert await measures(idle, "registrar_dead_letters 0.0")
    [discarded] = await listed_mails(idle)
    assert discarded["state"] == "DISCARDED"


async def listed_mails(api: Api, **query: str) -> list[dict[str, Any]]:
    page = (await api.http.get("/v1/admin/mail", params=query, headers=ADMIN)).json()
    items: list[dict[str, Any]] = fits(responses.Mails, page)["items"]
    return items


async def test_a_stray_message_is_shown_until_it_is_discarded(api: Api) -> None:
    await api.service.store.append(entries_of(stream(STRAY, stray_kept()), Context("dead-letter-consumer", uuid4())))

    async def listed() -> list[dict[str, Any]]:
        page = (await api.http.get("/v1/admin/mail", params={"state": "STRAY"}, headers=ADMIN)).json()
        items: list[dict[str, Any]] = fits(responses.StrayMessages, page)["items"]
        return items

    (shown,) = await eventually(listed)
    assert (shown["id"], shown["digest"], shown["reason"]) == (str(STRAY), DIGEST, "not-a-mail-request")
    await eventually(partial(measures, api, "registrar_stray_messages 1.0", "registrar_dead_letters 0.0"))
    assert (await api.http.get("/v1/admin/mail", headers=ADMIN)).json()["items"] == []

    for _ in range(2):
        discarded = await api.http.post(f"/v1/admin/mail/{STRAY}/discard", headers=ADMIN)
        assert (discarded.status_code, discarded.json()) == (
            200,
            {"registration_id": str(STRAY), "status": "CANCELLED"},
        )
    await eventually(partial(measures, api, "registrar_stray_messages 0.0"))
    assert await listed() == []

    async def audited() -> bool:
        query = {"registration_id": str(STRAY)}
        found = (await api.http.get("/v1/admin/audit", params=query, headers=ADMIN)).json()["items"]
        return [(one["topic"], one["actor"]) for one in found] == [
            ("stray_message.discarded", "operator"),
            ("stray_message.kept", "dead-letter-consumer"),
        ]

    await eventually(audited)


async def measures(api: Api, *lines: str) -> bool:
    text = (await api.http.get("/metrics")).text
    return all(line in text.splitlines() for line in lines)


async def test_the_id_of_a_stray_message_is_no_registrations(idle: Api) -> None:
    await idle.service.store.append(entries_of(stream(STRAY, stray_kept()), Context("dead-letter-consumer", uuid4())))
    for act in ("mail/{}/retry", "registrations/{}/cancel", "registrations/{}/erase"):
        refused = await idle.http.post(f"/v1/admin/{act.format(STRAY)}", headers=ADMIN)
        assert (refused.status_code, problem_of(refused)) == (404, "unknown-registration")


async def retry_by_cause(api: Api, failure: str, **more: Any) -> dict[str, Any]:
    answered = await api.http.post("/v1/admin/mail/retry", json={"failure": failure, **more}, headers=ADMIN)
    assert answered.status_code == 200, answered.text
    retried: dict[str, Any] = fits(responses.MailsRetried, answered.json())
    return retried


async def followed(api: Api, after: Position = 0) -> None:
    """What the followers of two read models do, once; no mail goes out meanwhile."""
    rows, _ = await api.service.store.read(after, 1000)
    for projection in (Registrations(), Mails()):
        async with await connect(api.service.dsn, name="test", statement_timeout=timedelta(seconds=10)) as connection:
            schema = sql.Identifier(projection.schema)
            await connection.execute(sql.SQL("SET search_path = {}, public").format(schema))
            wanted = [api.service.store.decode(row) for row in rows if row.topic in (projection.topics or ())]
            await projection.apply(connection, wanted)


async def failed_mails(api: Api, *failures: MailFailure, permanent: bool = False) -> list[UUID]:
    """Registrations whose mails failed, each for its own reason."""
    ids = []
    for number, failure in enumerate(failures):
        begun = await api.register(f"ada{number}@example.com")
        ids.append(UUID(begun.json()["registration_id"]))
        failed = mail_failed(ids[-1], failure, permanent=permanent)
        await api.service.handlers.handle(failed, Context("dead-letter-consumer", uuid4()))
    return ids


async def test_mails_are_retried_by_cause_so_many_a_request(idle: Api) -> None:
    ids = await failed_mails(idle, "expired", "expired", "expired", "expired", "expired", "greylisted")
    await idle.http.post(f"/v1/admin/registrations/{ids[0]}/cancel", headers=ADMIN)
    await idle.service.handlers.handle(ReplaceStaleCode(registration_id=ids[1], serial=1), CLIENT)
    await followed(idle)
    head = await idle.service.store.head()

    first = await retry_by_cause(idle, "expired", limit=2)
    second = await retry_by_cause(idle, "expired", limit=2, cursor=first["next_cursor"])

    # The mail of the replaced code and that of the cancelled registration are no failed mails any more.
    assert (first["requested"], first["passed_over"]) == (2, 0)
    assert second == {"requested": 1, "passed_over": 0, "next_cursor": None}
    rows, _ = await idle.service.store.read(head, 1000)
    assert [(row.topic, row.stream_id, row.actor) for row in rows[1::2]] == [
        ("registration.email_retry_requested", registration_id, "operator") for registration_id in ids[4:1:-1]
    ]
    assert [row.topic for row in rows[::2]] == ["operator.acted"] * 3
    nothing = {"requested": 0, "passed_over": 0, "next_cursor": None}
    assert await retry_by_cause(idle, "crashed") == nothing


async def test_a_cause_that_no_mail_fails_by_is_refused_and_told_those_there_are(idle: Api) -> None:
    refused = await idle.http.post("/v1/admin/mail/retry", json={"failure": "expird"}, headers=ADMIN)

    assert (refused.status_code, problem_of(refused)) == (422, "invalid-request")
    [error] = refused.json()["errors"]
    assert error["field"] == "failure"
    assert all(f"'{known}'" in error["message"] for known in MAIL_FAILURES)
    assert "expird" not in refused.text


async def test_a_mail_that_cannot_be_of_use_any_more_is_passed_over(idle: Api) -> None:
    ended, gone_on, waits = await failed_mails(idle, "expired", "expired", "expired")
    await idle.service.handlers.handle(CancelRegistration(registration_id=ended, reason=CancelReason.EXPIRED), CLIENT)
    await followed(idle)
    # The read models do not know this yet.
    await idle.http.post(f"/v1/admin/registrations/{gone_on}/cancel", headers=ADMIN)

    assert await retry_by_cause(idle, "expired") == {"requested": 1, "passed_over": 2, "next_cursor": None}

    rows, _ = await idle.service.store.read(0, 1000)
    retried = [row.stream_id for row in rows if row.topic == "registration.email_retry_requested"]
    assert retried == [waits]


def mail_failed(registration_id: UUID, failure: MailFailure, *, permanent: bool = False) -> RecordEmailDispatchFailed:
    return RecordEmailDispatchFailed(
        registration_id=registration_id,
        serial=1,
        kind=MailKind.CODE,
        failure=DispatchFailure(failure, permanent=permanent, provider="broker", attempts=0),
    )


async def test_the_funnel_and_the_followers_are_shown(api: Api) -> None:
    await api.active()

    async def counted() -> dict[str, Any]:
        buckets = (await api.http.get("/v1/admin/funnel", params={"bucket": "day"}, headers=ADMIN)).json()["items"]
        assert buckets[-1]["registrations"]["stages"].get("activated") == 1
        flow: dict[str, Any] = buckets[-1]["registrations"]
        return flow

    flow = await eventually(counted)
    assert flow["stages"]["registered"] == 1
    assert sum(flow["durations"]["registered_to_activated"]["histogram"].values()) == 1

    async def caught_up() -> dict[str, Any]:
        followers: dict[str, Any] = (await api.http.get("/v1/admin/projections", headers=ADMIN)).json()
        assert {one["lag_events"] for one in followers["items"]} == {0}
        return followers

    followers = await eventually(caught_up)
    for one in followers["items"]:
        fits(responses.FollowerState, one)
    assert {"registrations", "mail", "audit", "funnel", "mail-saga", "relay"} <= {
        one["name"] for one in followers["items"]
    }


ADMIN_ROUTES = [
    ("GET", "/v1/admin/registrations"),
    ("GET", f"/v1/admin/registrations/{UNKNOWN}"),
    ("POST", f"/v1/admin/registrations/{UNKNOWN}/cancel"),
    ("GET", "/v1/admin/accounts?email=ada@example.com"),
    ("POST", f"/v1/admin/accounts/{UNKNOWN}/password-check"),
    ("POST", f"/v1/admin/accounts/{UNKNOWN}/password"),
    ("POST", f"/v1/admin/registrations/{UNKNOWN}/erase"),
    ("GET", "/v1/admin/audit"),
    ("GET", "/v1/admin/mail"),
    ("POST", f"/v1/admin/mail/{UNKNOWN}/retry"),
    ("POST", f"/v1/admin/mail/{UNKNOWN}/discard"),
    ("POST", f"/v1/admin/mail/{UNKNOWN}/allow"),
    ("GET", "/v1/admin/mail/suppressions"),
    ("POST", "/v1/admin/mail/retry"),
    ("GET", "/v1/admin/funnel"),
    ("GET", "/v1/admin/projections"),
]


async def test_only_the_token_lets_an_operator_in(idle: Api) -> None:
    wrong = [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer wrong"},
        {"Authorization": ADMIN["Authorization"][:-1]},
        {"Authorization": ADMIN["Authorization"] + "x"},
        {"Authorization": ADMIN["Authorization"].replace("Bearer", "Basic")},
        {"Authorization": b"Bearer \xff\xfe"},
    ]
    for method, path in ADMIN_ROUTES:
        for headers in wrong:
            refused = await idle.http.request(method, path, headers=headers)  # type: ignore[arg-type]
            assert (refused.status_code, problem_of(refused)) == (401, "unauthorized")
            assert refused.headers["www-authenticate"].startswith("Bearer")
        body = {"failure": "expired"} if path.endswith("/mail/retry") else None
        if "/password" in path:
            body = {"password": "roses are red today"}
        admitted = await idle.http.request(method, path, headers=ADMIN, json=body)
        assert admitted.status_code in {200, 404}


async def test_without_a_token_nobody_is_an_operator(idle: Api) -> None:
    async with client_of(create_app(replace(idle.service.api, admin_token=None))) as http:
        for headers in ({}, {"Authorization": "Bearer "}, {"Authorization": "Bearer None"}, ADMIN):
            assert (await http.get("/v1/admin/mail", headers=headers)).status_code == 401


@pytest.mark.fault("X4")
async def test_while_the_token_is_changed_both_open_the_operators_routes(idle: Api) -> None:
    following = {"Authorization": "Bearer what-comes-after-it"}
    both = replace(idle.service.api, next_admin_token="what-comes-after-it")
    for parts, status in ((idle.service.api, 401), (both, 200)):
        async with client_of(create_app(parts)) as http:
            assert (await http.get("/v1/admin/mail", headers=following)).status_code == status
            assert (await http.get("/v1/admin/mail", headers=ADMIN)).status_code == 200
            assert (await http.get("/v1/admin/mail", headers={"Authorization": "Bearer other"})).status_code == 401


# --- Which routes there are ----------------------------------------------------------------------

PUBLIC = {
    "POST /v1/registrations",
    "GET /v1/registrations/{registration_id}",
    "POST /v1/registrations/{registration_id}/verification",
    "POST /v1/registrations/{registration_id}/otp",
    "GET /mailbox",
    "GET /mailbox/messages",
    "DELETE /mailbox/messages",
}
FRONT_DOOR = {
    "GET /",
    *(f"{method} /sign-up" for method in ("GET", "POST")),
    "GET /sign-up/{registration_id}",
    *(f"{method} /sign-up/{{registration_id}}/{act}" for method in ("GET", "POST") for act in ("verification", "otp")),
}
ICON = {"GET /favicon.ico"}
HEALTH = {f"GET /health/{part}" for part in ("live", "ready", "database", "rabbitmq", "mail", "projections")}
OPERATORS = {
    "GET /v1/admin/registrations",
    "GET /v1/admin/registrations/{registration_id}",
    "POST /v1/admin/registrations/{registration_id}/cancel",
    "POST /v1/admin/registrations/{registration_id}/erase",
    "GET /v1/admin/accounts",
    "POST /v1/admin/accounts/{registration_id}/password-check",
    "POST /v1/admin/accounts/{registration_id}/password",
    "GET /v1/admin/audit",
    "GET /v1/admin/mail",
    "POST /v1/admin/mail/{registration_id}/retry",
    "POST /v1/admin/mail/{registration_id}/discard",
    "POST /v1/admin/mail/{registration_id}/allow",
    "GET /v1/admin/mail/suppressions",
    "POST /v1/admin/mail/retry",
    "GET /v1/admin/funnel",
    "GET /v1/admin/projections",
    "GET /v1/admin/projections/parked",
    "GET /v1/admin/projections/parked/{stream_id}",
    "POST /v1/admin/projections/parked/{stream_id}/retry",
    "GET /v1/admin/projections/{name}/rebuild",
    "GET /v1/admin/projections/{name}/verification",
    "POST /v1/admin/projections/{name}/rebuild",
    "POST /v1/admin/projections/{name}/rollback",
    "POST /v1/admin/projections/{name}/abort",
    "POST /v1/admin/projections/{name}/verify",
    "POST /v1/admin/projections/{name}/as-of",
    "POST /v1/admin/projections/{name}/diff",
    "POST /v1/admin/what-if",
    "GET /v1/admin/jobs/{job_id}",
    "GET /v1/admin/events/export",
    "GET /metrics",
    "GET /openapi.json",
    "GET /docs",
    "GET /docs/docs.js",
    "GET /docs/docs.css",
    "GET /docs/swagger-ui.css",
    "GET /docs/swagger-ui-bundle.js",
}


def routes(app: FastAPI) -> set[str]:
    methods = {(route.path, method) for route in app.routes for method in route.methods}  # type: ignore[attr-defined]
    return {f"{method} {path}" for path, method in methods if method != "HEAD"}


async def test_each_listener_has_its_routes_and_no_others(idle: Api) -> None:
    assert routes(idle.app) == PUBLIC | FRONT_DOOR | HEALTH | OPERATORS | ICON
    assert routes(create_app(idle.service.api, admin=False)) == PUBLIC | FRONT_DOOR | HEALTH | ICON
    assert routes(create_app(idle.service.api, public=False)) == HEALTH | OPERATORS | ICON


async def test_without_the_embedded_mailbox_there_is_no_mailbox_route(idle: Api) -> None:
    without = create_app(replace(idle.service.api, mailbox=None))
    assert not any("mailbox" in route for route in routes(without))


async def test_operators_routes_are_not_on_the_public_listener(idle: Api) -> None:
    async with client_of(create_app(idle.service.api, admin=False)) as http:
        for path in ("/docs", "/openapi.json", "/metrics", "/v1/admin/mail"):
            missing = await http.get(path, headers=ADMIN)
            assert (missing.status_code, problem_of(missing)) == (404, "not-found")


async def test_a_fault_behind_a_search_is_not_taken_for_a_malformed_cursor(api: Api) -> None:
    await api.becomes(await api.registered(), status="PENDING")
    assert (await api.http.get("/v1/admin/registrations", headers=ADMIN)).status_code == 200
    async with await connect(api.service.dsn, name="test", statement_timeout=timedelta(seconds=10)) as connection:
        await connection.execute("UPDATE personal_keys SET wrapped = '\\x00'")  # the cipher refuses so short a nonce

    broken = await api.http.get("/v1/admin/registrations", headers=ADMIN)

    assert (broken.status_code, problem_of(broken)) == (500, "internal-error")


# --- Documentation ------------------------------------------------------------------------------


async def test_the_document_describes_every_route_with_its_problems(idle: Api) -> None:
    document = (await idle.http.get("/openapi.json")).json()
    described = {f"{method.upper()} {path}" for path, item in document["paths"].items() for method in item}
    apart = await _document_of(create_app(idle.service.api, public=False))

    assert described == {
        route
        for route in PUBLIC | HEALTH | OPERATORS
        if "docs" not in route and route not in {"GET /mailbox", "GET /openapi.json"}
    }
    assert apart == document
    post = document["paths"]["/v1/registrations"]["post"]
    assert _fields_of(post, document) == {"email", "name", "password", "locale"}
    assert post["responses"]["422"]["content"]["application/problem+json"]["examples"].keys() == {
        "invalid-request",
        "idempotency-key-reused",
    }
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', (await idle.http.get("/openapi.json")).text))
    assert references <= set(document["components"]["schemas"])
    assert "HTTPValidationError" not in references
    retry = document["paths"]["/v1/admin/mail/retry"]["post"]
    assert _fields_of(retry, document) == {"failure", "cursor", "limit"}
    assert {"200", "401", "408", "413", "415", "422"} <= set(retry["responses"])
    listed = document["paths"]["/v1/admin/mail"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert str(listed).count("#/components/schemas/") == 2


def _fields_of(operation: Any, document: Any) -> set[str]:
    name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    return set(document["components"]["schemas"][name]["properties"])


async def _document_of(app: FastAPI) -> Any:
    async with client_of(app) as http:
        return (await http.get("/openapi.json")).json()


async def test_the_documentation_needs_nobody_elses_server(idle: Api) -> None:
    page = await idle.http.get("/docs")

    assert page.headers["content-type"].startswith("text/html")
    assert "script-src 'self'" in page.headers["content-security-policy"]
    for path in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert path.startswith("docs/") or path in {"favicon.ico", "openapi.json"}, (
            "relative to the page, which may be below a path"
        )
        assert (await idle.http.get(f"/{path}")).status_code == 200


async def test_the_mailbox_page_runs_its_own_script_only(idle: Api) -> None:
    page = await idle.http.get("/mailbox")
    other = await idle.http.get("/mailbox")

    nonce = re.search(r"script-src 'nonce-([^']+)'", page.headers["content-security-policy"])
    assert nonce is not None
    assert f'nonce="{nonce[1]}"' in page.text
    assert other.headers["content-security-policy"] != page.headers["content-security-policy"]


async def test_the_mailbox_shows_and_forgets_mails(api: Api) -> None:
    await api.registered()
    (message,) = (await api.http.get("/mailbox/messages", params={"to": "ADA@example.com"})).json()
    cleared = await api.http.delete("/mailbox/messages")

    assert set(message) == {"to", "subject", "text", "html", "headers", "received_at"}
    assert cleared.status_code == 204
    assert (await api.http.get("/mailbox/messages")).json() == []


# --- Metrics and traces ---------------------------------------------------------------------------


async def test_metrics_have_the_names_of_the_contract(api: Api) -> None:
    await api.active()
    await api.look(UNKNOWN)
    await api.http.get("/nowhere/ada@example.com")

    expected = (
        'registrar_registrations_total{outcome="accepted"} 1.0',
        'registrar_verifications_total{outcome="accepted"} 1.0',
        'registrar_mail_total{outcome="accepted",provider="127.0.0.1:',
        'registrar_mail_concurrency{provider="127.0.0.1:',
        "registrar_time_to_inbox_seconds_count 1.0",
        "registrar_append_seconds_count",
        "registrar_append_batch_size_count",
        'registrar_follower_lag_events{follower="registrations"} 0.0',
        'registrar_follower_lag_seconds{follower="mail-saga"} 0.0',
        'registrar_parked_streams{follower="relay"} 0.0',
        'registrar_circuit_state{name="127.0.0.1:',
        "registrar_dead_letters 0.0",
        "registrar_stray_messages 0.0",
        "registrar_oldest_unsent_seconds 0.0",
        "registrar_stuck_registrations 0.0",
        'registrar_requests_seconds_count{route="/v1/registrations/{registration_id}",status="404"}',
        'registrar_requests_seconds_count{route="unmatched",status="404"} 1.0',
        "# TYPE registrar_shed_total counter",
        "registrar_hash_queue_depth 0.0",
    )

    async def measured() -> str:
        text: str = (await api.http.get("/metrics")).text
        assert [name for name in expected if name not in text] == []
        return text

    assert "ada" not in await eventually(measured)


async def test_a_trace_is_continued_and_its_spans_carry_nothing_personal(idle: Api) -> None:
    spans: list[Span] = []
    async with client_of(create_app(replace(idle.service.api, tracing=Tracing(spans.append)))) as http:
        begun = await http.post("/v1/registrations?x=ada@example.com", json=ADA, headers={"traceparent": TRACE})
        await http.get("/nowhere/ada@example.com")
        await http.get("/health/live")

    of_request, of_nothing = spans
    assert (of_request.trace_id, of_request.parent_id) == (TRACE[3:35], TRACE[36:52])
    assert of_request.name == "POST /v1/registrations"
    assert of_request.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/registrations",
        "http.response.status_code": 202,
        "registrar.correlation_id": begun.headers["registrar-request-id"],
    }
    assert of_nothing.name == "GET"
    assert "http.route" not in of_nothing.attributes
    rows, _ = await idle.service.store.read(0, 10)
    assert {row.trace for row in rows} == {f"{TRACE[:36]}{of_request.span_id}-01"}


async def test_a_log_line_of_a_request_carries_its_correlation_id_and_its_trace(
    idle: Api, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(type(idle.service.handlers), "handle", fails)
    answer = await idle.http.post("/v1/registrations", json=ADA, headers={"traceparent": TRACE})
    assert answer.status_code == 500
    [line] = [json.loads(line) for line in log.getvalue().splitlines() if "request.failed" in line]
    assert (line["correlation_id"], line["trace_id"]) == (answer.headers["registrar-request-id"], TRACE[3:35])


@pytest.mark.parametrize(
    ("method", "path", "is_direct"),
    [
        ("POST", "/v1/registrations", True),
        ("GET", "/v1/registrations/019cab10-0000-7000-8000-000000000001", True),
        ("GET", "/v1/registrations/x", True),
        ("GET", "/v1/registrations", False),
        ("GET", "/v1/registrations/", False),
        ("POST", "/v1/registrations/", False),
        ("HEAD", "/v1/registrations/x", False),
        ("GET", "/v1/registrations/x/otp", False),
        ("GET", "/v1/registrations/x/", False),
        ("GET", "/v1/registrationsx", False),
        ("POST", f"/v1/admin/accounts/{UNKNOWN}/password-check", True),
        ("GET", f"/v1/admin/accounts/{UNKNOWN}/password-check", False),
        ("POST", f"/v1/admin/accounts/{UNKNOWN}/password", False),
        ("POST", "/v1/admin/accounts/x/password-check", False),
        ("POST", f"/v1/admin/accounts/{UNKNOWN.replace('-', '')}/password-check", False),
    ],
)
async def test_the_shortcut_leads_where_the_framework_would_have_led(
    idle: Api, method: str, path: str, is_direct: bool
) -> None:
    shortcut = idle.app.shortcut
    assert shortcut is not None
    scope: dict[str, Any] = {"type": "http", "method": method, "path": path, "root_path": "", "headers": []}
    found = [
        (route, child) for route in idle.app.routes for match, child in [route.matches(scope)] if match is Match.FULL
    ]

    assert shortcut.found(scope) is is_direct
    if is_direct:
        [(route, child)] = found
        assert scope["route"] is route
        assert (scope[DIRECTLY] is route.endpoint) is (not path.endswith("/password-check"))
        assert scope.get("path_params", {}) == child["path_params"]


@pytest.mark.parametrize("passed_on", ["", "/accounts"])
async def test_below_a_path_every_address_that_is_told_leads_back(dsn: str, passed_on: str) -> None:
    """`passed_on`: what the proxy leaves of the path of `PUBLIC_URL`."""
    async with open_api(dsn, public_url="https://registrar.test/accounts/") as api:
        begun = await api.http.post(f"{passed_on}/v1/registrations", json=ADA)
        assert begun.status_code == 202
        location = begun.headers["Location"]
        assert location.startswith("/accounts/v1/registrations/")
        there = location.removeprefix("" if passed_on else "/accounts")
        position = begun.headers["Registrar-Position"]
        assert (await api.http.get(there, params={"min_position": position})).status_code == 200

        document = (await api.http.get(f"{passed_on}/openapi.json")).json()
        assert [server["url"] for server in document["servers"]] == ["/accounts"]
        pages = {page: await api.http.get(f"{passed_on}{page}") for page in ("/docs", "/docs/docs.js", "/mailbox")}
        for page in pages.values():
            assert page.status_code == 200
            assert not re.search(r"""(?:href=|src=|fetch\()["']/""", page.text)
        assert (await api.http.get("/accountsX/health/live")).status_code == 404
