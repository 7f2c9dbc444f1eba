"""Synthetic registrations: a probe goes the whole way as a stranger would, and what it does counts for nobody."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from structlog.testing import capture_logs

from domain.synthetic import is_synthetic
from entrypoints.bootstrap import followers
from entrypoints.cli.listening import listening
from infrastructure.alerts.webhook import Webhook
from infrastructure.followers.leadership import lead
from infrastructure.synthetic.erasing import Erase
from infrastructure.synthetic.probe import Probe
from tests.support.facts import eventually
from tests.support.http import ADMIN, Api, open_api
from tests.support.log import query
from tests.support.rabbitmq import free_ports
from tests.support.smtp_stub import SmtpStub

OUTCOMES = "SELECT outcome, mail, erased_at IS NOT NULL FROM synthetic_registrations WHERE ended_at IS NOT NULL"
NOWHERE = "http://127.0.0.1:9"
STRICT = "network=1/1d burst 1, verifications=1/1d burst 1, registrations=1/1d burst 1"
AS_A_STRANGER = "127.0.0.1/32"
"""As a trusted proxy, it makes loopback an address as any other: limits do not spare it."""


@dataclass
class Probing:
    """A probe that has its service to itself, and what it has said."""

    outcomes: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def of(self, api: Api, url: str, *, deadline: float = 30, erase: Erase | None = None) -> AsyncIterator[None]:
        probe = Probe(
            Webhook(url),
            secrets=api.service.keyring,
            erase=erase or followers.erasing(api.service.process.core),
            every=timedelta(milliseconds=200),
            on_end=lambda outcome, _: self.outcomes.append(outcome),
            deadline=timedelta(seconds=deadline),
            first=timedelta(0),
        )
        task = asyncio.create_task(lead(probe, api.service.dsn))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def probing() -> Probing:
    return Probing()


@pytest.fixture
async def stub() -> AsyncIterator[SmtpStub]:
    async with SmtpStub() as stub:
        yield stub


@asynccontextmanager
async def served(dsn: str, **more: Any) -> AsyncIterator[tuple[Api, str]]:
    """The whole service, with its public address."""
    async with (
        open_api(dsn, port="0", **more) as api,
        listening(api.service.api, api.service.settings) as addresses,
    ):
        yield api, addresses.public


async def ended(dsn: str) -> list[tuple[Any, ...]]:
    return await query(dsn, OUTCOMES)


async def metric(api: Api, name: str) -> list[str]:
    """The lines of a metric that has counted something."""
    text = (await api.http.get("/metrics")).text
    return [
        line for line in text.splitlines() if re.match(rf"{name}(\{{|_count| )", line) and not line.endswith(" 0.0")
    ]


async def test_it_becomes_an_account_again_and_again_and_counts_for_nobody(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    [port] = free_ports(1)
    monkeypatch.setattr("infrastructure.synthetic.probe.FIRST", timedelta(milliseconds=200))
    async with open_api(dsn, port=str(port), synthetic="1/s", limits=STRICT, trusted_proxies=AS_A_STRANGER) as api:
        async with listening(api.service.api, api.service.settings):
            await eventually(lambda: twice(dsn))
        assert (await api.http.get("/v1/admin/funnel", headers=ADMIN)).json()["items"] == []
        assert (await api.http.get("/v1/admin/registrations", headers=ADMIN)).json()["items"] == []
        assert (await api.http.get("/mailbox/messages")).json() == []
        for counted in (
            "registrations_total",
            "verifications_total",
            "time_to_inbox_seconds",
        ):
            assert await metric(api, f"registrar_{counted}") == [], counted
        # Mails take their turn with all others.
        assert {line.split()[0] for line in await metric(api, "registrar_limit_total")} == {
            'registrar_limit_total{outcome="passed",policy="mails"}'
        }
        [age] = await metric(api, "registrar_synthetic_age_seconds")
        assert 0 < float(age.split()[1]) < 60
        assert await metric(api, "registrar_synthetic_interval_seconds") == ["registrar_synthetic_interval_seconds 1.0"]
    actors = await query(dsn, "SELECT DISTINCT actor FROM events WHERE topic = 'registration.personal_data_erased'")
    assert actors == [("probe",)]


async def twice(dsn: str) -> bool:
    """Two have passed, and nothing of them is left."""
    passed = [row for row in await ended(dsn) if row == ("passed", None, True)]
    left = await query(dsn, "SELECT 1 FROM personal_keys UNION ALL SELECT 1 FROM read_accounts.accounts")
    return len(passed) >= 2 and not left


async def test_it_fails_where_a_mail_would_not_be_sent_and_nothing_is_left_of_it(
    dsn: str, stub: SmtpStub, probing: Probing
) -> None:
    stub.at("banner", "421 4.3.2 closed")
    with capture_logs() as logs:
        urls = f"smtp://127.0.0.1:{stub.port}"
        async with served(dsn, smtp_urls=urls, sleep=lambda _: asyncio.sleep(0)) as (api, url):
            async with probing.of(api, url, deadline=1):
                await eventually(lambda: erased(dsn, "mail"))
            assert await metric(api, "registrar_synthetic_age_seconds") == ["registrar_synthetic_age_seconds NaN"]

    assert set(probing.outcomes) == {"mail"}
    failed = next(line for line in logs if line["event"] == "synthetic.failed")
    assert (failed["step"], failed["why"]) == ("mail", "not within 1 s")


async def erased(dsn: str, outcome: str) -> bool:
    return (outcome, None, True) in await ended(dsn)


async def test_with_an_address_for_it_its_mail_goes_through_the_mail_server_to_that_address_alone(
    dsn: str, stub: SmtpStub, probing: Probing
) -> None:
    urls, to = f"smtp://127.0.0.1:{stub.port}", "probe@example.org"
    async with served(dsn, smtp_urls=urls, synthetic_to=to) as (api, url), probing.of(api, url):
        await eventually(lambda: erased(dsn, "passed"))

    assert {one for mail in stub.mails for one in mail.recipients} == {b"probe@example.org"}
    assert b"To: probe@example.org" in stub.mails[0].data


async def test_without_such_an_address_a_mail_server_is_asked_for_all_but_the_mail(
    dsn: str, stub: SmtpStub, probing: Probing
) -> None:
    async with served(dsn, smtp_urls=f"smtp://127.0.0.1:{stub.port}") as (api, url), probing.of(api, url):
        await eventually(lambda: erased(dsn, "passed"))

    assert stub.sessions
    assert b"RCPT" not in stub.received


async def test_it_goes_the_way_through_the_broker_and_a_worker(dsn: str, broker_url: str, probing: Probing) -> None:
    async with served(dsn, works=True, broker_url=broker_url) as (api, url), probing.of(api, url):
        await eventually(lambda: erased(dsn, "passed"))


async def test_it_fails_where_nobody_listens(dsn: str, probing: Probing) -> None:
    async with open_api(dsn, follows=False) as api, probing.of(api, NOWHERE):
        await eventually(lambda: len(probing.outcomes) > 1)

    assert set(probing.outcomes) == {"register"}
    # The request may yet arrive: until it is too old for that, it is looked for again.
    assert ("register", None, False) in await ended(dsn)


async def test_what_a_probe_did_not_survive_is_erased_by_the_next_one(dsn: str, probing: Probing) -> None:
    address = f"{uuid4().hex}@synthetic.registrar.example"
    async with open_api(dsn) as api:
        key = api.service.keyring.synthetic_key("register", address)
        begun = await api.register(address, key=key)
        registration_id = begun.json()["registration_id"]
        await query(dsn, f"INSERT INTO synthetic_registrations (registration_id) VALUES ('{registration_id}')")

        async with probing.of(api, NOWHERE):
            await eventually(lambda: erased(dsn, "interrupted"))

        await api.becomes(registration_id, status="CANCELLED")


async def test_a_mail_that_has_gone_out_and_cannot_be_kept_goes_out_once(dsn: str, stub: SmtpStub) -> None:
    urls = f"smtp://127.0.0.1:{stub.port}"
    async with served(dsn, smtp_urls=urls, synthetic_to="probe@example.com") as (api, _):
        await query(dsn, "ALTER TABLE synthetic_registrations RENAME COLUMN mail TO other")
        address = f"{uuid4().hex}@synthetic.registrar.example"
        key = api.service.keyring.synthetic_key("register", address)
        begun = await api.register(address, key=key)
        await api.becomes(begun.json()["registration_id"], mail="SENT")

    assert [mail.recipients for mail in stub.mails] == [[b"probe@example.com"]]


async def test_one_that_cannot_be_erased_ends_no_probing(dsn: str, probing: Probing) -> None:
    await query(dsn, f"INSERT INTO synthetic_registrations (registration_id) VALUES ('{uuid4()}')")

    async def refuse(registration_id: UUID, _: UUID) -> bool:
        raise KeyError(registration_id)

    async with open_api(dsn) as api, probing.of(api, NOWHERE, erase=refuse):
        await eventually(lambda: len(probing.outcomes) > 1)


async def test_nobody_else_can_make_one(dsn: str) -> None:
    address, other = "a@synthetic.registrar.example", "b@synthetic.registrar.example"
    async with open_api(dsn, follows=False) as api:
        keys = [uuid4().hex * 2, api.service.keyring.synthetic_key("register", other)]
        begun = [await api.register(address, key=key) for key in keys]
        own = UUID(begun[0].json()["registration_id"])
        tried = await api.http.post(
            f"/v1/registrations/{own}/verification",
            json={"code": "000000"},
            headers={"Idempotency-Key": api.service.keyring.synthetic_key("verify", str(uuid4()))},
        )

        assert not any(is_synthetic(UUID(one.json()["registration_id"])) for one in begun)
        assert await metric(api, "registrar_registrations_total") == [
            'registrar_registrations_total{outcome="accepted"} 2.0'
        ]
        assert tried.status_code == 422
        assert await metric(api, "registrar_verifications_total") != []


async def test_one_whose_network_has_used_up_its_limits_is_let_in_all_the_same(dsn: str) -> None:
    """Behind a proxy that is not trusted it shares its network with everybody."""
    limits, address = f"{STRICT}, repeats=1/1d burst 1", f"{uuid4().hex}@synthetic.registrar.example"
    async with open_api(dsn, follows=False, limits=limits, trusted_proxies=AS_A_STRANGER) as api:
        others = [await api.register(f"person-{number}@example.com", key=uuid4().hex) for number in range(5)]
        assert {one.status_code for one in others} == {202, 429}
        counted = await metric(api, "registrar_limit_total")

        begun = await api.register(address, key=api.service.keyring.synthetic_key("register", address))

        assert begun.status_code == 202
        assert await metric(api, "registrar_limit_total") == counted
        assert (await api.register(address, key="f" * 64)).status_code == 429


@pytest.mark.parametrize("age", ["11 min", "9 min"])
async def test_where_no_probe_is_set_any_more_what_the_last_one_left_is_erased_once_nobody_is_about_it(
    dsn: str, age: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("entrypoints.bootstrap.followers.LOOK_FOR_LEFTOVERS", timedelta(milliseconds=50))
    addresses = [f"{uuid4().hex}@synthetic.registrar.example" for _ in range(2)]
    async with open_api(dsn) as api:
        for address, begun_ago in zip(addresses, (age, "20 min"), strict=True):
            key = api.service.keyring.synthetic_key("register", address)
            begun = await api.register(address, key=key)
            await query(
                dsn,
                "INSERT INTO synthetic_registrations (registration_id, begun_at) VALUES (%s, now() - %s::interval)",
                begun.json()["registration_id"],
                begun_ago,
            )
        left = {"11 min": 0, "9 min": 1}[age]
        await eventually(lambda: keys_left(dsn, left))


async def keys_left(dsn: str, number: int) -> bool:
    """Each person has one until they are erased."""
    left = "SELECT (SELECT count(*) FROM personal_keys), count(*) FROM synthetic_registrations WHERE erased_at IS NULL"
    return await query(dsn, left) == [(number, number)]


async def test_what_was_never_asked_for_is_given_up_and_what_is_old_is_forgotten_but_the_last_that_passed(
    dsn: str, probing: Probing
) -> None:
    await query(
        dsn,
        "INSERT INTO synthetic_registrations (registration_id, begun_at, outcome, ended_at, erased_at) VALUES"
        " (gen_random_uuid(), now() - interval '11 min', 'register', now() - interval '10 min', NULL),"
        " (gen_random_uuid(), now(), 'passed', now() - interval '3 days', now()),"
        " (gen_random_uuid(), now(), 'passed', now() - interval '2 days', now()),"
        " (gen_random_uuid(), now(), 'mail', now() - interval '25 hours', now())",
    )
    async with open_api(dsn, follows=False) as api, probing.of(api, NOWHERE):
        await eventually(lambda: probing.outcomes)
        [age] = await metric(api, "registrar_synthetic_age_seconds")

    kept = await query(dsn, "SELECT outcome, erased_at IS NULL FROM synthetic_registrations WHERE begun_at < now()")
    assert ("register", False) in kept
    assert [outcome for outcome, _ in kept].count("passed") == 1
    assert "mail" not in {outcome for outcome, _ in kept}
    assert 172_800 < float(age.split()[1]) < 172_900
