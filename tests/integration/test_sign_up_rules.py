"""The operator's rules for addresses and passwords, over HTTP: what they say depends on what was typed alone."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter
from structlog.testing import capture_logs

from entrypoints.api import responses
from tests.support.http import Api, open_api, problem_of

DISPOSABLE = "addresses at this domain are disposable; use one that you keep"
MISSPELT = "its domain looks misspelt; did you mean gmail.com?"


async def counted(api: Api) -> dict[str, float]:
    """`registrar_doubtful_addresses_total` by its labels."""
    name = "registrar_doubtful_addresses_total"
    lines = (await api.http.get("/metrics")).text.splitlines()
    return {
        line[len(name) :].rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in lines
        if line[: len(name)] == name
    }


async def test_by_default_a_doubtful_domain_is_counted_and_logged_without_its_name(dsn: str) -> None:
    async with open_api(dsn, follows=False) as api:
        with capture_logs() as logged:
            for email in ("ada@mailinator.com", "ada@gmial.co", "ada@gmal.com"):
                answer = await api.register(email)
                assert answer.status_code == 202
                assert set(answer.json()) == set(responses.Registered.__dataclass_fields__)

        lines = [line for line in logged if line["event"] == "registration.doubtful_address"]
        assert [line["doubt"] for line in lines] == ["disposable-domain", "misspelt-domain"]
        assert {line["policy"] for line in lines} == {"log"}
        assert not any(word in str(logged) for word in ("ada", "mailinator", "gmal", "gmail"))
        assert await counted(api) == {
            '{doubt="disposable-domain",policy="log"}': 1,
            '{doubt="misspelt-domain",policy="log"}': 1,
        }


async def test_off_means_that_nothing_is_counted_or_said(dsn: str) -> None:
    async with open_api(dsn, follows=False, disposable_domains="off", misspelt_domains="off") as api:
        with capture_logs() as logged:
            for email in ("ada@mailinator.com", "ada@gmal.com"):
                assert set((await api.register(email)).json()) == set(responses.Registered.__dataclass_fields__)
        assert logged == []
        assert await counted(api) == {}


async def test_a_hint_joins_the_answer_whether_or_not_the_address_is_taken(dsn: str) -> None:
    async with open_api(dsn, disposable_domains="hint", misspelt_domains="hint") as api:
        await api.active("taken@gmal.com")
        taken, free = await api.register("taken@gmal.com", name="Eve"), await api.register("spare@gmal.com", name="Eve")

        for answer in (taken, free):
            assert answer.status_code == 202
            TypeAdapter(responses.RegisteredWithHint).validate_python(answer.json())
        assert taken.json()["hint"] == {
            "code": "misspelt-domain",
            "message": MISSPELT,
            "suggestion": "taken@gmail.com",
        }
        renamed = taken.text.replace("taken@", "spare@").replace(
            *(one.json()["registration_id"] for one in (taken, free))
        )
        assert free.text == renamed

        thrown_away = (await api.register("ada@mailinator.com")).json()
        assert thrown_away["hint"] == {"code": "disposable-domain", "message": DISPOSABLE, "suggestion": None}
        assert "hint" not in (await api.register("ada@example.com")).json()


async def test_a_hint_is_the_same_when_the_request_is_repeated(dsn: str) -> None:
    async with open_api(dsn, follows=False, misspelt_domains="hint") as api:
        first = await api.register("ada@gmal.com", key="the-key-of-this-request")
        again = await api.register("ada@gmal.com", key="the-key-of-this-request")
        assert first.content == again.content


@pytest.mark.parametrize(
    ("setting", "email", "message"),
    [("disposable_domains", "ada@x.mailinator.com", DISPOSABLE), ("misspelt_domains", "ada@gmal.com", MISSPELT)],
)
async def test_a_refused_domain_gets_422_with_the_reason_and_nothing_is_recorded(
    dsn: str, setting: str, email: str, message: str
) -> None:
    rules: dict[str, Any] = {setting: "refuse"}
    async with open_api(dsn, follows=False, **rules) as api:
        refused = await api.register(email)

        assert (refused.status_code, problem_of(refused)) == (422, "invalid-request")
        [error] = refused.json()["errors"]
        assert (error["field"], error["message"]) == ("email", message)
        assert error["code"] in {"disposable-domain", "misspelt-domain"}
        assert await api.service.store.head() == 0
        assert (await api.register("ada@example.com")).status_code == 202


async def test_the_name_of_the_service_is_no_password_and_every_reason_is_told_at_once(dsn: str) -> None:
    sender = "Sunny Side <no-reply@example.org>"
    async with open_api(dsn, follows=False, mail_from=sender, disposable_domains="refuse") as api:
        refused = await api.register("ada@mailinator.com", password="sunny side 24")

        assert refused.status_code == 422
        assert refused.json()["errors"] == [
            {
                "field": "password",
                "code": "too-easy",
                "message": "too easy to guess: apart from the name of this service, it has fewer than 8 characters",
            },
            {"field": "email", "code": "disposable-domain", "message": DISPOSABLE},
        ]
        assert "sunny" not in refused.text
        assert (await api.register(password="sunny side of the street")).status_code == 202
