"""G: clocks that are wrong, and time that passes without us. Order and expiry go by the database's clock."""

from __future__ import annotations

import re
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import pytest

from tests.faults.programs import process, serve
from tests.support.facts import eventually
from tests.support.log import query
from tests.support.redis import PrivateRedis
from tests.support.smtp_stub import Mail, SmtpStub
from tests.support.tcp_proxy import TO_CLIENT, TcpProxy

ADA = {"email": "ada@example.com", "name": "Ada Lovelace"}
AHEAD, BEHIND = 660.0, -3600.0


@pytest.fixture
async def sink() -> AsyncIterator[SmtpStub]:
    async with SmtpStub() as stub:
        yield stub


def code_in(mail: Mail) -> str:
    found = re.search(rb"^\s*(\d{6})\s*$", mail.data, re.MULTILINE)
    assert found is not None
    return found[1].decode()


def message_id_of(mail: Mail) -> bytes:
    (found,) = re.findall(rb"^message-id: *(\S+)", mail.data, re.MULTILINE | re.IGNORECASE)
    return bytes(found)


async def wrong_by(http: httpx.AsyncClient) -> float:
    """Seconds by which the process's clock differs from ours, as the Date header shows it."""
    date = parsedate_to_datetime((await http.get("/health/live")).headers["date"])
    return (date - datetime.now(UTC)).total_seconds()


async def mailed(http: httpx.AsyncClient, registration_id: str) -> dict[str, Any]:
    async def sent() -> dict[str, Any] | None:
        state: dict[str, Any] = (await http.get(f"/v1/registrations/{registration_id}")).json()
        return state if state.get("mail") == "SENT" else None

    state: dict[str, Any] = await eventually(sent, within=60)
    return state


@pytest.mark.slow
@pytest.mark.fault("D9")
async def test_processes_whose_clocks_are_apart_count_requests_by_that_of_redis(dsn: str, redis: PrivateRedis) -> None:
    """One more request may come every two minutes; eleven are enough for all five."""
    settings = {"rate_limit_url": redis.url, "limits": "verifications=5/10m", "trusted_proxies": "127.0.0.1/32"}
    async with (
        serve(dsn, how={"shifts": [AHEAD]}, **settings) as ahead,
        serve(dsn, how={"shifts": [BEHIND]}, **settings) as behind,
        ahead.client() as one,
        behind.client() as other,
    ):
        assert abs(await wrong_by(one) - AHEAD) < 60
        assert abs(await wrong_by(other) - BEHIND) < 60
        path = "/v1/registrations/019cab10-0000-7000-8000-00000000dead/verification"
        answers = [
            await http.post(path, json={"code": "123456"}, headers={"X-Forwarded-For": "192.0.2.7"})
            for http in (one, other, one, other, one, other, one, other)
        ]
        assert [answer.status_code for answer in answers] == 5 * [404] + 3 * [429]
        assert all(1 <= int(answer.headers["retry-after"]) <= 120 for answer in answers[5:])


@pytest.mark.slow
@pytest.mark.fault("G1", "G3")
async def test_processes_whose_clocks_are_wrong_or_jump_decide_by_the_databases_and_answer_the_same(
    dsn: str, sink: SmtpStub
) -> None:
    async with AsyncExitStack() as stack:
        # given: an API that is 11 minutes ahead, one an hour behind, and a worker whose clock jumps between the two
        ahead_program, behind_program, _ = [
            await stack.enter_async_context(one)
            for one in (
                serve(dsn, how={"shifts": [AHEAD]}),
                serve(dsn, how={"shifts": [BEHIND]}),
                process(dsn, sink.port, how={"shifts": [AHEAD, BEHIND, 0.0]}),
            )
        ]
        ahead = await stack.enter_async_context(ahead_program.client())
        behind = await stack.enter_async_context(behind_program.client())
        assert abs(await wrong_by(ahead) - AHEAD) < 60
        assert abs(await wrong_by(behind) - BEHIND) < 60

        # when
        begun = await ahead.post("/v1/registrations", json=ADA)
        again = await behind.post("/v1/registrations", json=ADA)
        registration_id = begun.json()["registration_id"]

        # then: it is one registration, and both see the same, with the database's times
        assert (begun.status_code, again.json()) == (202, begun.json())
        states = [await mailed(http, registration_id) for http in (ahead, behind)]
        assert states[0] == states[1]
        for name, expected in (("created_at", timedelta(0)), ("otp_expires_at", timedelta(minutes=10))):
            off = datetime.fromisoformat(states[0][name]) - datetime.now(UTC) - expected
            assert abs(off) < timedelta(minutes=2), name

        # and: a code that was just asked for is not due again, whichever way a clock is wrong
        for http in (ahead, behind):
            refused = await http.post(f"/v1/registrations/{registration_id}/otp")
            assert refused.status_code == 429
            assert 1 <= int(refused.headers["retry-after"]) <= 60

        # and: tries are counted together, and the code is good where eleven minutes seem to have passed
        (mail,) = sink.mails
        wrong = f"{(int(code_in(mail)) + 1) % 1_000_000:06d}"
        left = [
            (await http.post(f"/v1/registrations/{registration_id}/verification", json={"code": wrong})).json()
            for http in (ahead, behind)
        ]
        assert [one["attempts_left"] for one in left] == [4, 3]
        verified = await ahead.post(f"/v1/registrations/{registration_id}/verification", json={"code": code_in(mail)})
        assert verified.status_code == 200, verified.text


@pytest.mark.slow
@pytest.mark.fault("G1", "G3")
async def test_a_code_expires_by_the_databases_clock_where_it_seems_to_be_an_hour_earlier(
    dsn: str, sink: SmtpStub
) -> None:
    async with (
        serve(dsn, how={"shifts": [BEHIND]}, otp_ttl="2") as program,
        process(dsn, sink.port, how={"shifts": [0.0, BEHIND]}, otp_ttl="2"),
        program.client() as http,
    ):
        assert abs(await wrong_by(http) - BEHIND) < 60
        registration_id = (await http.post("/v1/registrations", json=ADA)).json()["registration_id"]
        await mailed(http, registration_id)
        wrong = f"{(int(code_in(sink.mails[0])) + 1) % 1_000_000:06d}"

        async def expired() -> bool:
            answer = await http.post(f"/v1/registrations/{registration_id}/verification", json={"code": wrong})
            assert answer.status_code in {410, 422, 423}, answer.text
            return bool(answer.status_code == 410)

        await eventually(lambda: ends_of(dsn, registration_id), within=60)
        assert await expired()


async def ends_of(dsn: str, registration_id: str) -> bool:
    """By the database's clock the code's two seconds are over."""
    ((over,),) = await query(
        dsn,
        "SELECT clock_timestamp() > recorded_at + interval '2.5 seconds' FROM events"
        " WHERE originator_id = %s AND topic = 'registration.email_dispatched'",
        registration_id,
    )
    return bool(over)


LEASE = {"entrypoints.bootstrap.delivery.SEND_MARGIN": 2.0, "entrypoints.bootstrap.delivery.RECORDING": 0.5}
"""With half a second for a try the lease of a mail is 3.5 s."""

HELD = {"before the mail was handed over": (b"250 2.1.5", 1), "after it was": (b"250 2.0.0 accepted", 2)}
"""The reply that does not come before the process is stopped, and the copies that there may be then: none more than
tries whose outcome nobody saw."""


@pytest.mark.slow
@pytest.mark.fault("G4")
@pytest.mark.parametrize("when", HELD)
async def test_who_was_stopped_for_longer_than_its_lease_does_not_send_what_another_has_sent(
    dsn: str, sink: SmtpStub, when: str
) -> None:
    reply, copies = HELD[when]
    async with AsyncExitStack() as stack:
        # given: a worker in the middle of a delivery
        proxy = await stack.enter_async_context(TcpProxy(("127.0.0.1", sink.port)))
        api = await stack.enter_async_context(serve(dsn))
        http = await stack.enter_async_context(api.client())
        paused = await stack.enter_async_context(
            process(dsn, proxy.port, how={"durations": LEASE}, send_timeout="0.5", accept_timeout="0.5")
        )
        proxy.hold(TO_CLIENT, reply)
        registration_id = (await http.post("/v1/registrations", json=ADA)).json()["registration_id"]
        await eventually(lambda: proxy.effects[f"hold {TO_CLIENT}"] == 1, within=60)

        # when: it is stopped, loses its sessions, and is woken after another worker has done its work
        paused.signal(signal.SIGSTOP)
        sessions = await sessions_of_followers(dsn)
        await query(dsn, "SELECT pg_terminate_backend(pid) FROM unnest(%s::integer[]) AS pid", sessions)
        stack.push_async_callback(heal, proxy)
        other = {"durations": LEASE}
        await stack.enter_async_context(
            process(dsn, sink.port, how=other, send_timeout="0.5", accept_timeout="0.5", leads=False)
        )
        await mailed(http, registration_id)
        assert len(sink.mails) == copies
        assert paused.resources.status() == "stopped"
        written = len(paused.written)
        proxy.heal()
        paused.signal(signal.SIGCONT)

        # then: it notices, and there are no more copies than tries whose outcome was not seen
        await eventually(lambda: "follower." in paused.written[written:], within=60)
        ended = await http.post(
            f"/v1/registrations/{registration_id}/verification", json={"code": code_in(sink.mails[-1])}
        )
        assert ended.status_code == 200
        paused.signal(signal.SIGTERM)
        assert await paused.ends() == 0
        assert len(sink.mails) == copies
        assert len({(code_in(mail), message_id_of(mail)) for mail in sink.mails}) == 1
        ((dispatched,),) = await query(dsn, "SELECT count(*) FROM events WHERE topic = 'registration.email_dispatched'")
        assert dispatched == 1


async def heal(proxy: TcpProxy) -> None:
    proxy.heal()


async def sessions_of_followers(dsn: str) -> list[int]:
    """Every session of `registrar process`: those that hold a leadership, and its others."""
    rows = await query(
        dsn,
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid IN"
        " (SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND classid = hashtext('registrar follower')::oid)",
    )
    assert len(rows) == 3, rows  # one for the read model that clients wait for, one for the others, one for the mails
    return [row[0] for row in rows]
