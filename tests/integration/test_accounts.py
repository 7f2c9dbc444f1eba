"""Accounts for a login service over HTTP: found by address, their passwords checked and set."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from nacl import pwhash

from application.commands import SetPassword
from application.ports import Context
from domain.recorded import Actor
from projections.accounts import Accounts
from tests.support.facts import eventually
from tests.support.http import ADMIN, Api, open_api, problem_of
from tests.support.log import query

PASSWORD = "violets are blue today"
ANOTHER = "roses are red today"
UNKNOWN = "019cab10-ffff-7000-8000-00000000ffff"
KEY = {"Idempotency-Key": "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"}


@pytest.fixture
async def api(dsn: str) -> AsyncIterator[Api]:
    async with open_api(dsn) as opened:
        yield opened


async def found(api: Api, email: str) -> list[dict[str, Any]]:
    answered = await api.http.get("/v1/admin/accounts", params={"email": email}, headers=ADMIN)
    assert answered.status_code == 200, answered.text
    items: list[dict[str, Any]] = answered.json()["items"]
    return items


async def check(api: Api, account_id: str, password: str, **headers: str) -> httpx.Response:
    path = f"/v1/admin/accounts/{account_id}/password-check"
    return await api.http.post(path, json={"password": password}, headers=ADMIN | headers)


async def matches(api: Api, account_id: str, password: str) -> bool:
    answered = await check(api, account_id, password)
    assert answered.status_code == 200, answered.text
    assert answered.json().keys() == {"matches"}
    told: bool = answered.json()["matches"]
    return told


async def set_password(api: Api, account_id: str, password: str, **headers: str) -> httpx.Response:
    path = f"/v1/admin/accounts/{account_id}/password"
    return await api.http.post(path, json={"password": password}, headers=ADMIN | headers)


async def topics(api: Api, pattern: str) -> list[str]:
    wanted = "SELECT topic FROM events WHERE topic LIKE %s ORDER BY notification_id"
    return [topic for (topic,) in await query(api.service.dsn, wanted, pattern)]


async def in_read_model(api: Api, account_id: str) -> str | None:
    """The password's hash that the read models show, once both show the same."""

    async def agreed() -> list[str]:
        rows = await query(
            api.service.dsn,
            "SELECT a.sealed FROM read_accounts.accounts AS a JOIN read_registrations.registrations AS r"
            " ON r.registration_id = a.registration_id AND r.sealed = a.sealed WHERE a.registration_id = %s",
            UUID(account_id),
        )
        return [row[0] for row in rows]

    (sealed,) = await eventually(agreed)
    key = await query(api.service.dsn, "SELECT wrapped FROM personal_keys WHERE registration_id = %s", UUID(account_id))
    return api.service.keyring.open(UUID(account_id), sealed, key[0][0]).password_hash


async def test_an_account_is_found_by_its_exact_address_and_its_password_checked(api: Api) -> None:
    account_id = await api.active("Ada.Lovelace@example.com", password=PASSWORD)
    await api.registered("bob@example.com", password=PASSWORD)
    items = await eventually(lambda: found(api, "ada.lovelace@EXAMPLE.com"))

    assert [(one["registration_id"], one["locale"], one["has_password"]) for one in items] == [(account_id, "en", True)]
    assert "lovelace" not in str(items).casefold()  # nothing personal, so that looking is no event
    assert await found(api, "lovelace@example.com") == await found(api, "bob@example.com") == []
    assert await matches(api, account_id, PASSWORD)
    assert not await matches(api, account_id, PASSWORD + " ")
    assert await topics(api, "operator.%") == await topics(api, "password_checks.%") == []


async def test_who_registers_the_address_of_an_account_neither_ends_its_logins_nor_can_log_in(dsn: str) -> None:
    async with open_api(dsn, resend_cooldown="1ms") as api:
        account_id = await api.active("ada@example.com", password=PASSWORD)
        other_id = await api.registered("ada@example.com", password="somebody else's words")

        async def notified() -> bool:
            return await topics(api, "registration.owner_notified") != []

        await eventually(notified)

        assert await matches(api, account_id, PASSWORD)
        assert not await matches(api, account_id, "somebody else's words")
        assert not await matches(api, other_id, "somebody else's words")
        assert (await set_password(api, account_id, PASSWORD + "!")).status_code == 200
        assert await matches(api, account_id, PASSWORD + "!")


async def test_no_password_matches_what_is_no_account_or_has_none_and_as_much_is_hashed(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    pending = await api.registered("pending@example.com", password=PASSWORD)
    without = await api.active("without@example.com")
    erased = await api.active("erased@example.com", password=PASSWORD)
    assert (await api.http.post(f"/v1/admin/registrations/{erased}/erase", headers=ADMIN)).status_code == 200
    active = await api.active("active@example.com", password=PASSWORD)
    hashed: list[object] = []
    fastest = pwhash.argon2id.kdf

    def counted(password: bytes, salt: bytes, *, passes: int, memory: int) -> bytes:
        hashed.append((passes, memory))
        return fastest(32, password, salt, opslimit=passes, memlimit=memory)

    monkeypatch.setattr("infrastructure.crypto.argon2id.fastest", lambda: counted)

    assert not any([await matches(api, one, PASSWORD) for one in (pending, without, erased, UNKNOWN)])
    assert await matches(api, active, PASSWORD)

    assert len(hashed) == 5
    assert len({*hashed}) == 1


async def test_a_password_is_set_by_the_rules_and_the_former_is_gone(api: Api) -> None:
    account_id = await api.active(password=PASSWORD)
    before = await in_read_model(api, account_id)

    for refused in (
        await set_password(api, account_id, "ada@example.com"),
        await set_password(api, account_id, "12345678"),
    ):
        assert (refused.status_code, problem_of(refused)) == (422, "invalid-request")
        assert [one["field"] for one in refused.json()["errors"]] == ["password"]
    done = await set_password(api, account_id, ANOTHER, **{"X-Reason": "forgotten"})
    assert (done.status_code, done.json()) == (200, {"registration_id": account_id, "status": "ACTIVE"})

    # At once, however far behind the read model is.
    assert (await matches(api, account_id, ANOTHER), await matches(api, account_id, PASSWORD)) == (True, False)
    assert await topics(api, "operator.%") == ["operator.acted"]
    assert await topics(api, "registration.password%") == ["registration.password_set"]

    async def after() -> bool:
        return await in_read_model(api, account_id) != before

    await eventually(after)
    again = await set_password(api, account_id, ANOTHER)
    assert again.status_code == 200
    assert await topics(api, "registration.password%") == ["registration.password_set"]


async def test_only_an_account_is_given_a_password(api: Api) -> None:
    pending = await api.registered("pending@example.com")

    refused = [await set_password(api, one, ANOTHER) for one in (pending, UNKNOWN)]

    assert [(one.status_code, problem_of(one)) for one in refused] == [
        (409, "not-an-account"),
        (404, "unknown-registration"),
    ]
    assert await topics(api, "registration.password%") == []


async def test_a_key_repeats_the_setting_and_no_hash_of_a_password_is_kept_that_could_be_guessed_fast(api: Api) -> None:
    account_id = await api.active(password=PASSWORD)

    first, again = [await set_password(api, account_id, ANOTHER, **KEY) for _ in range(2)]
    other = await set_password(api, account_id, "yet another password", **KEY)
    checked = await check(api, account_id, ANOTHER, **KEY)

    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert (other.status_code, problem_of(other)) == (422, "idempotency-key-reused")
    assert checked.json() == {"matches": True}
    kept = await query(
        api.service.dsn,
        "SELECT convert_from(state, 'UTF8')::jsonb ->> 'fingerprint' FROM events WHERE topic = 'kept_answer.kept'",
    )
    assert len(kept) == 1  # the check kept nothing
    path = f"/v1/admin/accounts/{account_id}/password"
    answer_id = api.service.handlers.keys.operators_id(KEY["Idempotency-Key"])
    fast = api.service.keyring.fingerprint(str(answer_id), "\n".join((path, "", f'{{"password": "{ANOTHER}"}}')))
    assert kept[0][0] != fast


async def test_failed_checks_are_told_ever_less_often_outside_of_the_accounts_stream(dsn: str) -> None:
    async with open_api(dsn, limits="password-checks=off") as api:
        account_id = await api.active(password=PASSWORD)
        version = "SELECT max(originator_version) FROM events WHERE originator_id = %s"
        before = await query(dsn, version, UUID(account_id))

        for n in range(12):
            assert not await matches(api, account_id, f"{ANOTHER} {n}")
        assert await matches(api, account_id, PASSWORD)
        for n in range(2):  # begins anew
            assert not await matches(api, account_id, f"{ANOTHER} {n}")
            assert not await matches(api, UNKNOWN, f"{ANOTHER} {n}")

        told = await query(
            dsn,
            "SELECT (convert_from(state, 'UTF8')::jsonb ->> 'failed')::int FROM events"
            " WHERE topic = 'password_checks.failed' ORDER BY notification_id",
        )
        assert told == [(3,), (6,), (12,)]
        assert await query(dsn, version, UUID(account_id)) == before

        async def audited() -> bool:
            params = {"registration_id": account_id, "type": "password_checks.failed"}
            items = (await api.http.get("/v1/admin/audit", params=params, headers=ADMIN)).json()["items"]
            return [one["details"]["failed"] for one in items] == [12, 6, 3] and "password" not in str(
                items[0]["details"]
            )

        await eventually(audited)


async def test_checks_are_limited_by_the_account_whether_or_not_there_is_one_and_in_all(dsn: str) -> None:
    async with open_api(dsn, limits="password-checks=2/1h,all-password-checks=6/1h") as api:
        account_id = await api.active(password=PASSWORD)

        for one in (account_id, UNKNOWN):
            assert [(await check(api, one, ANOTHER)).status_code for _ in range(3)] == [200, 200, 429]
        limited = await check(api, account_id, PASSWORD)  # the right one, too
        assert (limited.status_code, problem_of(limited)) == (429, "too-many-requests")
        assert '"password-checks"' in limited.headers["ratelimit-policy"]

        others = [await check(api, str(uuid4()), ANOTHER) for _ in range(3)]
        assert [one.status_code for one in others] == [200, 200, 429]
        assert '"all-password-checks"' in others[-1].headers["ratelimit-policy"]


async def test_passwords_that_are_set_at_once_are_set_one_after_the_other(api: Api) -> None:
    account_id = await api.active(password=PASSWORD)

    answered = await asyncio.gather(*(set_password(api, account_id, f"{ANOTHER} {n}") for n in range(4)))

    assert [one.status_code for one in answered] == [200] * 4
    assert len(await topics(api, "registration.password_set")) == 4
    assert len([n for n in range(4) if await matches(api, account_id, f"{ANOTHER} {n}")]) == 1


async def test_erasing_an_account_takes_every_password_of_it(api: Api) -> None:
    account_id = await api.active(password=PASSWORD)
    await set_password(api, account_id, ANOTHER)

    erased = await api.http.post(f"/v1/admin/registrations/{account_id}/erase", headers=ADMIN)

    assert erased.status_code == 200
    assert not await matches(api, account_id, ANOTHER)
    refused = await set_password(api, account_id, PASSWORD)
    assert (refused.status_code, problem_of(refused)) == (404, "unknown-registration")
    assert await eventually(lambda: _nobody(api))


async def _nobody(api: Api) -> bool:
    return await found(api, "ada@example.com") == []


async def test_a_hash_that_is_not_made_as_today_is_replaced_at_the_first_match(api: Api) -> None:
    account_id = await api.active(password=PASSWORD)
    weaker = pwhash.argon2id.str(PASSWORD.encode(), opslimit=1, memlimit=8 * 1024 * 1024).decode()
    passwords = api.service.api.passwords
    sealed = await passwords._persons.sealed(UUID(account_id))
    assert sealed is not None
    assert sealed.wrapped is not None
    keyring = api.service.keyring
    person = keyring.open(UUID(account_id), sealed.sealed, sealed.wrapped)
    await _becomes(
        api, account_id, keyring.seal_again(UUID(account_id), replace(person, password_hash=weaker), sealed.wrapped)
    )

    assert not await matches(api, account_id, ANOTHER)
    assert await matches(api, account_id, PASSWORD)

    assert await topics(api, "registration.password%") == [
        "registration.password_set",
        "registration.password_rehashed",
    ]
    assert await matches(api, account_id, PASSWORD)
    assert len(await topics(api, "registration.password%")) == 2

    async def stronger() -> bool:
        shown = await in_read_model(api, account_id)
        return shown is not None and shown.startswith("$argon2id$v=19$m=19456,t=2,p=1$")

    await eventually(stronger)


async def _becomes(api: Api, account_id: str, personal_data: str) -> None:
    """The account has this personal data from here on."""
    sealed = await api.service.api.passwords._persons.sealed(UUID(account_id))
    assert sealed is not None
    command = SetPassword(registration_id=UUID(account_id), personal_data=personal_data, replaces=sealed.sealed)
    await api.service.handlers.handle(command, Context(Actor.OPERATOR, uuid4()))


async def test_a_read_model_that_is_folded_again_has_the_latest_password(api: Api) -> None:
    account_id = await api.active(password=PASSWORD)
    before = await in_read_model(api, account_id)
    await set_password(api, account_id, ANOTHER)

    async def after() -> bool:
        return await in_read_model(api, account_id) != before

    await eventually(after)
    verified = await api.http.post(f"/v1/admin/projections/{Accounts.name}/verify", headers=ADMIN)
    assert verified.status_code == 202, verified.text

    async def over() -> dict[str, Any] | None:
        job: dict[str, Any] = (await api.http.get(verified.headers["location"], headers=ADMIN)).json()
        return job if job["state"] != "running" else None

    job = await eventually(over)
    assert job["state"] == "done", job
    assert await after()
