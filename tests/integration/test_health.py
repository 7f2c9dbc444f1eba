"""Health: what the checks say while everything works, and while the database or the mail servers do not."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

import httpx
import psycopg
import pytest

from entrypoints.api.http_server import _Server as Listening
from entrypoints.bootstrap import background
from entrypoints.cli.listening import listening
from infrastructure.rabbitmq.inspection import connected
from infrastructure.rabbitmq.topology import Topology
from infrastructure.telemetry.metrics import Metrics
from tests.support.facts import eventually
from tests.support.http import ADA, ADMIN, NO_TLS, Api, open_api, open_api_through, problem_of
from tests.support.log import proxy_to, query
from tests.support.tcp_proxy import TO_CLIENT

PARTS = ("live", "ready", "database", "rabbitmq", "mail", "projections")
AT_ONCE = 2.5
"""Seconds within which every check answers, whatever hangs: two, and some for a busy machine."""


@pytest.fixture
async def api(dsn: str) -> AsyncIterator[Api]:
    async with open_api(dsn) as api:
        yield api


async def health(api: Api) -> dict[str, tuple[int, str]]:
    async def check(part: str) -> tuple[int, str]:
        answer = await asyncio.wait_for(api.http.get(f"/health/{part}"), AT_ONCE)
        return answer.status_code, answer.json()["status"]

    return dict(zip(PARTS, await asyncio.gather(*map(check, PARTS)), strict=True))


async def test_all_is_up_where_all_works(api: Api) -> None:
    await api.active()

    async def all_up() -> None:
        assert await health(api) == dict.fromkeys(PARTS, (200, "up")) | {"rabbitmq": (200, "disabled")}

    await eventually(lambda: succeeds(all_up()))

    async def nothing_waits() -> bool:
        mail = (await api.http.get("/health/mail")).json()
        return list(mail["servers"].values()) == ["closed"] and mail["oldest_unsent_seconds"] == 0

    await eventually(nothing_waits)
    followers = (await api.http.get("/health/projections")).json()["followers"]
    assert {"registrations", "mail-saga", "relay"} <= {one["name"] for one in followers}


async def succeeds(check: Any) -> bool:
    await check
    return True


async def test_an_api_that_finds_no_queues_says_so_until_somebody_has_declared_them(dsn: str, broker_url: str) -> None:
    async with open_api(dsn, follows=False, broker_url=broker_url) as api:

        async def told() -> tuple[str, str, str | None]:
            broker = (await api.http.get("/health/rabbitmq")).json()
            return (await health(api))["ready"][1], broker["status"], broker.get("reason")

        async def tells(*expected: str | None) -> bool:
            return await told() == expected

        await eventually(lambda: tells("degraded", "down", "topology"))

        async with connected(broker_url, Topology.of(queue_ttl=timedelta(minutes=5))):
            await eventually(lambda: tells("up", "degraded", None))  # as nobody consumes


@pytest.mark.fault("B9", "B10")
@pytest.mark.parametrize("away", ["refuses", "hangs"])
async def test_a_database_that_is_away_is_noticed_at_once_and_nothing_hangs(dsn: str, away: str) -> None:
    async with proxy_to(dsn) as proxy, open_api_through(proxy, dsn) as api:
        assert (await health(api))["ready"] == (200, "up")

        if away == "refuses":
            proxy.refuse()
            proxy.reset()
        else:
            proxy.hold(TO_CLIENT)

        async def down() -> None:
            found = await health(api)
            assert found["ready"] == found["database"] == found["projections"] == (503, "down")
            assert found["live"] == (200, "up")

        await eventually(lambda: succeeds(down()), within=15)
        metrics = await asyncio.wait_for(api.http.get("/metrics"), AT_ONCE)
        assert metrics.status_code == 200
        assert "registrar_dead_letters NaN" in metrics.text

        proxy.heal()

        async def up() -> None:
            found = await health(api)
            assert found["ready"] == found["database"] == (200, "up")
            assert found["projections"] == (200, "degraded")  # nothing ever followed this log, and that is said

        await eventually(lambda: succeeds(up()), within=60)


@pytest.mark.fault("B10")
async def test_while_the_database_is_away_requests_are_told_to_come_again(dsn: str) -> None:
    async with proxy_to(dsn) as proxy, open_api_through(proxy, dsn) as api:
        registration_id = (await api.register()).json()["registration_id"]
        proxy.refuse()
        proxy.reset()

        async def answers() -> list[httpx.Response]:
            return [
                await api.register("grace@example.com"),
                await api.look(registration_id),
                await api.verify(registration_id, "123456"),
                await api.http.get("/v1/admin/registrations", headers=ADMIN),
            ]

        for answer in await asyncio.wait_for(answers(), 60):
            assert (answer.status_code, problem_of(answer)) == (503, "unavailable")
            assert int(answer.headers["retry-after"]) >= 1

        proxy.heal()

        async def back() -> bool:
            return {one.status_code for one in await answers()} <= {200, 202, 404, 422}

        await eventually(back, within=60)


async def test_a_database_that_takes_no_writes_is_down(api: Api, dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        name = connection.info.dbname
        connection.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on'.encode())
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = %s AND application_name = 'registrar append'",
            (name,),
        )

    async def down() -> bool:
        return (await health(api))["ready"] == (503, "down")

    await eventually(down)


async def test_mail_that_cannot_go_out_degrades_and_no_more(api: Api) -> None:
    servers = api.service.servers
    assert servers is not None
    await servers.states()  # makes the circuits
    for circuit in servers.circuits:
        circuit.open()

    found = await health(api)
    assert found["ready"] == (200, "degraded")
    assert found["mail"] == (503, "down")
    assert (await api.register()).status_code == 202
    metrics = (await api.http.get("/metrics")).text
    assert 'registrar_circuit_state{name="127.0.0.1:' in metrics
    assert "} 2.0" in next(line for line in metrics.splitlines() if line.startswith("registrar_circuit_state{"))


async def test_a_parked_stream_degrades_its_follower(api: Api, dsn: str) -> None:
    registration_id = await api.registered()
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO parked_events (follower, stream_id, position, error) VALUES ('audit', %s, 1, 'TopicError')",
            (registration_id,),
        )

    found = await api.http.get("/health/projections")

    assert (found.status_code, found.json()["status"]) == (200, "degraded")
    (audit,) = [one for one in found.json()["followers"] if one["name"] == "audit"]
    assert (audit["parked_streams"], audit["status"]) == (1, "degraded")
    metrics = (await api.http.get("/metrics")).text
    assert 'registrar_parked_streams{follower="audit"} 1.0' in metrics


async def test_what_waits_is_measured(dsn: str) -> None:
    async with open_api(dsn, follows=False) as api:
        await api.register()
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("INSERT INTO followers (name, position) VALUES ('registrations', 1)")
            connection.execute(
                "INSERT INTO read_deadlines.deadlines VALUES (gen_random_uuid(), now() - interval '2 minutes', 1, gen_random_uuid())"
            )

        metrics = (await api.http.get("/metrics")).text
        head = await api.service.store.head()

        assert f'registrar_follower_lag_events{{follower="registrations"}} {head - 1}.0' in metrics
        assert "registrar_stuck_registrations 1.0" in metrics


@pytest.mark.fault("F10")
async def test_a_service_that_stops_is_not_ready(api: Api) -> None:
    api.service.api.checks.stop()

    assert (await health(api))["ready"] == (503, "down")
    assert (await health(api))["live"] == (200, "up")


async def test_a_process_is_not_ready_while_another_releases_version_of_a_read_model_has_seen_more(
    api: Api, dsn: str
) -> None:
    async def ready() -> tuple[int, Any]:
        answer = await api.http.get("/health/ready")
        return answer.status_code, answer.json()

    async def other_version_is_at(position: int) -> None:
        await query(
            dsn,
            f"INSERT INTO followers (name, position) VALUES ('mail_2', {position})"
            " ON CONFLICT (name) DO UPDATE SET position = excluded.position RETURNING 1",
        )

    await other_version_is_at(1000)

    status, answer = await ready()

    assert (status, answer["status"], answer["reason"]) == (503, "down", "building read models")
    [behind] = answer["read_models"]
    assert (behind["name"], behind["other"], behind["other_position"]) == ("mail", "mail_2", 1000)
    assert (await api.register("ada@example.com")).status_code == 202  # it is not sent here, but served if it is

    await other_version_is_at(0)
    assert (await ready())[0] == 200
    await other_version_is_at(1000)  # two side by side overtake each other all the time
    assert (await ready())[0] == 200


def test_the_circuit_states_are_numbers() -> None:
    metrics = Metrics()
    for name, state in (("a", "closed"), ("b", "half-opened"), ("c", "opened")):
        metrics.circuit(name, "closed", state)

    lines = metrics.render().decode().splitlines()
    assert [line for line in lines if line.startswith("registrar_circuit_state{")] == [
        'registrar_circuit_state{name="a"} 0.0',
        'registrar_circuit_state{name="b"} 1.0',
        'registrar_circuit_state{name="c"} 2.0',
    ]


@pytest.mark.fault("B12")
async def test_a_service_that_could_not_append_just_now_is_not_ready(api: Api, dsn: str) -> None:
    assert (await health(api))["ready"] == (200, "up")
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await connection.execute("SELECT FROM head FOR UPDATE")
        refused = await api.http.post("/v1/registrations", json=ADA)
        assert refused.status_code == 503
        assert (await health(api))["ready"] == (503, "down")

    async def accepts() -> bool:
        return (await api.http.post("/v1/registrations", json=ADA)).status_code == 202

    await eventually(accepts)
    assert (await health(api))["ready"][0] == 200


async def raises(_: object) -> None:
    raise NotImplementedError("no such DateStyle")


async def returns(_: object) -> None:
    pass


ENDS = pytest.mark.parametrize(("ends", "says"), [(raises, "NotImplementedError"), (returns, "it returned")])


@ENDS
async def test_a_background_work_that_ends_is_an_error_line_and_not_ready(
    dsn: str,
    monkeypatch: pytest.MonkeyPatch,
    log: io.StringIO,
    ends: Callable[[object], Awaitable[None]],
    says: str,
) -> None:
    monkeypatch.setattr(background, "_keep_time", ends)
    async with open_api(dsn, follows=False) as api:

        async def told() -> bool:
            answer = await api.http.get("/health/ready")
            return (answer.status_code, answer.json().get("reason")) == (503, "broken")

        await eventually(told)
        assert (await api.http.get("/health/live")).status_code == 200

    (line,) = [line for line in log.getvalue().splitlines() if "background.failed" in line]
    assert '"work": "clock"' in line
    assert says in line


@ENDS
async def test_a_listener_that_ends_is_an_error_line_and_not_ready_at_the_other(
    dsn: str,
    monkeypatch: pytest.MonkeyPatch,
    log: io.StringIO,
    ends: Callable[[object], Awaitable[None]],
    says: str,
) -> None:
    async with open_api(dsn, follows=False, port="0", admin_listen="127.0.0.1:0") as api:
        started, listeners, loop = asyncio.Event(), iter(["operators", "registrants"]), Listening.main_loop

        async def one_ends(server: Listening) -> None:
            if next(listeners) == "operators":
                await loop(server)
            else:
                await started.wait()
                await ends(server)

        monkeypatch.setattr(Listening, "main_loop", one_ends)
        async with listening(api.service.api, api.service.settings) as addresses:
            started.set()
            async with httpx.AsyncClient(base_url=addresses.admin, verify=NO_TLS) as http:

                async def told() -> bool:
                    answer = await http.get("/health/ready")
                    return (answer.status_code, answer.json().get("reason")) == (503, "broken")

                await eventually(told)

    (line,) = [line for line in log.getvalue().splitlines() if "background.failed" in line]
    assert '"work": "http 127.0.0.1:' in line
    assert says in line


async def test_a_listener_that_is_stopped_has_not_failed(dsn: str, log: io.StringIO) -> None:
    async with open_api(dsn, follows=False, port="0") as api:
        async with listening(api.service.api, api.service.settings):
            pass
        assert not api.service.process.core.broken.is_set()
    assert "background.failed" not in log.getvalue()
