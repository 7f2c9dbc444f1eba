"""What operators do and look at over HTTP is recorded, with the reason that they give."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.facts import eventually
from tests.support.http import ADMIN, Api, open_api, problem_of
from tests.support.log import query

BAD_REASONS = {
    "an address": "asked by ada@example.com",
    "an address, encoded": quote("ada@example.com", safe=""),
    "an address, encoded twice": quote(quote("ada@example.com", safe=""), safe=""),
    "lines": quote("a\nb"),
    "a control character": quote("a\x1bb"),
    "too long": "x" * 501,
    "too long, encoded": quote("ü" * 501),
    "not UTF-8": "%ff%fe",
    "not ASCII": "für".encode(),
}


@pytest.fixture
async def idle(dsn: str) -> AsyncIterator[Api]:
    async with open_api(dsn, follows=False) as api:
        yield api


async def acts(api: Api) -> list[tuple[Any, ...]]:
    """What operators did: topic, act, registration and reason."""
    return await query(
        api.service.dsn,
        "SELECT topic, state ->> 'act', state ->> 'registration_id', state ->> 'reason' FROM ("
        " SELECT topic, notification_id, convert_from(state, 'UTF8')::jsonb AS state FROM events) AS e"
        " WHERE starts_with(topic, 'operator.') ORDER BY notification_id",
    )


async def registered(api: Api, email: str = "ada@example.com") -> str:
    registration_id: str = (await api.register(email)).json()["registration_id"]
    return registration_id


async def test_an_act_is_recorded_with_its_reason_in_the_commit_of_its_effects(idle: Api) -> None:
    registration_id = await registered(idle)
    path = f"/v1/admin/registrations/{registration_id}/cancel"

    for _ in range(2):
        done = await idle.http.post(path, headers=ADMIN | {"X-Reason": quote("möchte nicht, Ticket 4711")})
        assert done.status_code == 200, done.text

    assert await acts(idle) == [("operator.acted", "cancel-registration", registration_id, "möchte nicht, Ticket 4711")]
    both = await query(
        idle.service.dsn,
        "SELECT topic, correlation_id, recorded_at, actor FROM events ORDER BY notification_id DESC LIMIT 2",
    )
    assert [row[0] for row in both] == ["registration.registration_cancelled", "operator.acted"]
    assert both[0][1:] == both[1][1:]
    assert both[0][3] == "operator"


async def test_an_act_needs_no_reason(idle: Api) -> None:
    registration_id = await registered(idle)

    await idle.http.post(f"/v1/admin/mail/{registration_id}/discard", headers=ADMIN | {"X-Reason": "  "})

    assert await acts(idle) == [("operator.acted", "discard-mail", registration_id, None)]


@pytest.mark.parametrize("reason", BAD_REASONS.values(), ids=BAD_REASONS)
async def test_a_reason_that_must_not_stay_is_refused_and_nothing_done(idle: Api, reason: str | bytes) -> None:
    registration_id = await registered(idle)
    before = await query(idle.service.dsn, "SELECT position FROM head")

    for method, path in (
        ("POST", f"/v1/admin/registrations/{registration_id}/cancel"),
        ("POST", f"/v1/admin/registrations/{registration_id}/erase"),
        ("POST", f"/v1/admin/mail/{registration_id}/retry"),
        ("POST", f"/v1/admin/mail/{registration_id}/allow"),
        ("POST", "/v1/admin/projections/funnel/rebuild"),
        ("GET", "/v1/admin/registrations"),
        ("GET", f"/v1/admin/registrations/{registration_id}"),
    ):
        refused = await idle.http.request(method, path, headers={**ADMIN, "X-Reason": reason})  # type: ignore[arg-type]
        assert (refused.status_code, problem_of(refused)) == (422, "invalid-request")
        assert refused.json()["errors"][0]["field"] == "X-Reason"
        assert "ada" not in refused.text

    assert await query(idle.service.dsn, "SELECT position FROM head") == before


async def test_two_reasons_are_none(idle: Api) -> None:
    headers = [*ADMIN.items(), ("X-Reason", "one"), ("X-Reason", "two")]

    assert (await idle.http.get("/v1/admin/mail", headers=headers)).status_code == 422


async def test_who_lacks_the_token_is_not_told_about_reasons(idle: Api) -> None:
    assert (await idle.http.get("/v1/admin/mail", headers={"X-Reason": "a@b"})).status_code == 401


async def test_a_look_at_persons_is_recorded_before_they_are_shown(dsn: str) -> None:
    async with open_api(dsn) as api:
        ada, eve = [await api.registered(email) for email in ("ada@example.com", "eve@example.com")]
        why = ADMIN | {"X-Reason": "ticket 4711"}

        shown = await api.http.get(f"/v1/admin/registrations/{ada}", headers=why)
        assert shown.json()["registration"]["email"] == "ada@example.com"
        assert await acts(api) == [("operator.personal_data_read", "show-registration", ada, "ticket 4711")]

        await api.http.get("/v1/admin/registrations", headers=ADMIN)
        assert sorted(await acts(api)) == sorted(
            [
                ("operator.personal_data_read", "show-registration", ada, "ticket 4711"),
                ("operator.personal_data_read", "search-registrations", ada, None),
                ("operator.personal_data_read", "search-registrations", eve, None),
            ]
        )

        async def audited() -> bool:
            wanted = {"registration_id": ada, "type": "operator.personal_data_read"}
            found = (await api.http.get("/v1/admin/audit", params=wanted, headers=ADMIN)).json()["items"]
            return [one["details"]["act"] for one in found] == ["search-registrations", "show-registration"]

        await eventually(audited)


async def test_what_shows_nobody_in_clear_records_nothing(dsn: str) -> None:
    async with open_api(dsn) as api:
        ada = await api.registered()
        await api.http.post(f"/v1/admin/registrations/{ada}/erase", headers=ADMIN)
        await api.becomes(ada, status="CANCELLED")
        before = await acts(api)

        for path in ("registrations", f"registrations/{ada}", "audit", "mail", "funnel", "projections"):
            assert (await api.http.get(f"/v1/admin/{path}", headers=ADMIN)).status_code == 200
        assert (await api.http.get("/v1/admin/registrations?email=nobody@example.com", headers=ADMIN)).is_success

        assert await acts(api) == before


async def test_a_job_acts_for_the_reason_of_its_request(dsn: str) -> None:
    async with open_api(dsn) as api:
        why = ADMIN | {"X-Reason": "--abort or so"}
        begun = await api.http.post("/v1/admin/projections/funnel/rebuild", headers=why)
        assert begun.status_code == 202, begun.text

        async def over() -> bool:
            job = (await api.http.get(begun.headers["location"], headers=ADMIN)).json()
            return bool(job["state"] == "done")

        await eventually(over)
        assert await acts(api) == [
            ("operator.acted", "rebuild-begun", None, "--abort or so"),
            ("operator.acted", "rebuild-swapped", None, "--abort or so"),
        ]
