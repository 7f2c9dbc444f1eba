"""PostgreSQL dies, hangs, refuses, is locked or slow: nothing acknowledged is lost, nobody waits in vain (B1 to B14,
B18, B20).

The rows about the commit itself are in tests/integration/test_commit_unknown.py, about order in test_ordering.py.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from itertools import count
from typing import Any, Literal

import httpx
import psutil  # type: ignore[import-untyped]
import psycopg
import pytest
from psycopg import sql

from infrastructure.embedded.postgres import EmbeddedPostgres
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.store import EventStore
from infrastructure.postgres.clock import DatabaseClock
from infrastructure.postgres.connection import closing, connect
from tests.faults.crowd import LANES, Crowd, check_log, id_of, registered
from tests.faults.database import (
    ANSWER_LOST,
    LOST,
    BlackHole,
    Hang,
    Inject,
    Killer,
    Stopped,
    healed,
)
from tests.faults.fleet import kill_postmaster
from tests.support.facts import eventually
from tests.support.http import ADMIN, ANY_NUMBER, Api, open_api, open_api_through, problem_of
from tests.support.log import (
    append,
    by_way_of,
    happened,
    locked,
    log_of,
    placed,
    proxy_to,
    query,
    until_waiting_for_a_lock,
)
from tests.support.postgres import SURVIVES_KILLS, database_of, server
from tests.support.tcp_proxy import TcpProxy

REQUEST_TIMEOUT = 8
SHORT: dict[str, Any] = {"request_timeout": str(REQUEST_TIMEOUT), "statement_timeout": "1"}
ENDLESS: dict[str, Any] = {"request_timeout": "600", "statement_timeout": "300"}
"""Longer than any test waits."""

IN_TIME = REQUEST_TIMEOUT + 7.0
"""Seconds in which a request must have ended: its timeout, and some for a busy machine."""

_numbers = count(1)


# --- Words ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_server() -> Iterator[EmbeddedPostgres]:
    """A server that may be killed and stopped; `own_dsn` revives it for the next test."""
    with server(SURVIVES_KILLS) as postgres:
        yield postgres


@pytest.fixture
def own_dsn(own_server: EmbeddedPostgres) -> str:
    """A fresh, empty database on it."""
    own_server.start()  # the test before may have left it dead
    name = f"faults_{next(_numbers)}"
    with psycopg.connect(own_server.dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    return database_of(own_server, name)


@pytest.fixture
async def proxy(dsn: str) -> AsyncIterator[TcpProxy]:
    async with proxy_to(dsn) as proxy:
        yield proxy


async def ready(api: Api) -> int:
    return (await api.http.get("/health/ready")).status_code


async def becomes(api: Api, status: Literal[200, 503], *, within: float = 60) -> None:
    """Readiness tells the truth, soon; the process lives all the time (I16)."""

    async def told() -> bool:
        assert (await api.http.get("/health/live")).status_code == 200
        return await ready(api) == status

    await eventually(told, within=within)


async def accepts_again(api: Api, crowd: Crowd) -> None:
    async def accepted() -> bool:
        return (await crowd.register()).status_code == 202

    await eventually(accepted, within=60)
    await becomes(api, 200)


def told_to_come_again(answers: Sequence[httpx.Response]) -> None:
    assert answers
    for answer in answers:
        assert (answer.status_code, problem_of(answer)) in {(503, "unavailable"), (503, "overloaded")}
        assert int(answer.headers["retry-after"]) >= 1


async def sessions(dsn: str, condition: str = "true") -> list[int]:
    """Process ids of the service's sessions."""
    rows = await query(
        dsn,
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
        f" AND application_name LIKE 'registrar %' AND {condition}",
    )
    return [row[0] for row in rows]


# --- Killed -----------------------------------------------------------------------------------


@pytest.mark.fault("B1")
@pytest.mark.slow
async def test_a_server_killed_under_load_loses_nothing_acknowledged_and_is_used_again_when_it_is_back(
    own_server: EmbeddedPostgres, own_dsn: str
) -> None:
    async with open_api(own_dsn, **SHORT) as api:
        crowd = Crowd(api, within=IN_TIME)
        killed = own_server.pid
        assert killed is not None
        async with crowd.arriving():
            await crowd.until_told(202, 30)
            await asyncio.to_thread(kill_postmaster, killed)
            await crowd.until_told(503, 30)
            await becomes(api, 503)
            assert own_server.pid is None
            await asyncio.to_thread(own_server.start)
            await crowd.until_told(202, 30)
        assert own_server.pid not in {None, killed}

        await accepts_again(api, crowd)
        await crowd.settle(own_dsn)
        # Those who follow the log are back as well.
        await api.becomes(id_of(crowd.told[0]), mail="SENT")


@pytest.mark.fault("B2")
@pytest.mark.slow
async def test_a_backend_killed_under_load_resets_the_server_and_loses_nothing_acknowledged(
    own_server: EmbeddedPostgres, own_dsn: str
) -> None:
    async with open_api(own_dsn, follows=False, **SHORT) as api:
        crowd = Crowd(api, within=IN_TIME)
        async with crowd.arriving():
            await crowd.until_told(202, 30)
            [victim] = await sessions(own_dsn, "application_name = 'registrar append'")
            os.kill(victim, signal.SIGKILL)
            await eventually(lambda: not psutil.pid_exists(victim))
            await crowd.until_told(202, 60)
        log = (own_server.directory / "postgres.log").read_text(errors="replace")
        assert f"(PID {victim}) was terminated by signal 9" in log
        assert "all server processes terminated; reinitializing" in log

        await accepts_again(api, crowd)
        await crowd.settle(own_dsn)


@pytest.mark.fault("B3")
async def test_sessions_ended_again_and_again_cost_nobody_their_registration(dsn: str) -> None:
    async with open_api(dsn, follows=False, **SHORT) as api, Killer(dsn, "registrar %") as killer:
        crowd = Crowd(api, within=IN_TIME, on_answer=killer.answered.set)
        async with crowd.arriving():
            await crowd.until_told(202, 100)
            await eventually(lambda: killer.killed > 20, within=60)
        assert {answer.status_code for answer in crowd.told.values()} <= {202, 503}
    async with open_api(dsn, follows=False) as api:
        crowd._api = api
        await crowd.settle(dsn)


# --- The answer to a commit is lost -----------------------------------------------------------


@pytest.mark.fault("B4", "B5")
@pytest.mark.parametrize("inject", LOST.values(), ids=LOST)
async def test_a_registration_whose_commit_was_cut_off_is_accepted_once(
    proxy: TcpProxy, dsn: str, inject: Inject
) -> None:
    async with open_api_through(proxy, dsn) as api:
        crowd = Crowd(api, within=IN_TIME, lanes=1)
        await crowd.register()
        inject(proxy)

        assert (await crowd.register()).status_code == 202
        assert proxy.is_effective
        await crowd.settle(dsn)
        assert len(await registered(dsn)) == 2


@pytest.mark.fault("B4", "B5")
@pytest.mark.parametrize("lost", ["the whole answer", "the whole request"])
async def test_a_registration_whose_fate_cannot_be_found_out_may_be_repeated_and_never_conflicts(
    proxy: TcpProxy, dsn: str, lost: str
) -> None:
    async with open_api_through(proxy, dsn) as api:
        crowd = Crowd(api, within=IN_TIME, lanes=1)
        await crowd.register()
        LOST[lost](proxy)
        proxy.refuse()

        told_to_come_again([await crowd.register()])
        assert proxy.is_effective
        recorded = await registered(dsn)
        assert len(recorded) == (2 if lost in ANSWER_LOST else 1)
        proxy.heal()
        await becomes(api, 200)
        await crowd.settle(dsn)
        assert recorded <= await registered(dsn)
        assert len(await registered(dsn)) == 2


# --- It hangs ---------------------------------------------------------------------------------


@pytest.fixture(params=["stopped", "black hole"])
async def hanging(
    request: pytest.FixtureRequest, own_server: EmbeddedPostgres, own_dsn: str
) -> AsyncIterator[tuple[Hang, str, str]]:
    """A database that can hang; the address that the service has of it, and one that bypasses what lies between."""
    async with proxy_to(own_dsn) as proxy:
        if request.param == "stopped":
            with healed(Stopped(own_server)) as hang:
                yield hang, own_dsn, own_dsn
        else:
            with healed(BlackHole(proxy)) as hang:
                yield hang, by_way_of(proxy, own_dsn), own_dsn


@pytest.mark.fault("B8", "B9")
async def test_a_hanging_database_costs_who_is_first_two_seconds_and_whoever_comes_later_nothing(
    hanging: tuple[Hang, str, str],
) -> None:
    """Nobody waits for the statement timeout, and what was under way ends as it ends."""
    hang, url, own_dsn = hanging
    async with open_api(url, follows=False, **ENDLESS) as api:
        crowd = Crowd(api, within=45)
        known = id_of(await crowd.register())
        await api.look(known)
        with healed(hang):
            hang.inject()
            told_to_come_again(await asyncio.gather(crowd.register(), api.look(known), verify(api, known)))
            assert api.service.store.refuses  # what they asked for is under way still
            await becomes(api, 503, within=15)

            told_to_come_again(await asyncio.gather(*(crowd.register() for _ in range(100))))
            told_to_come_again(await asyncio.gather(*(api.look(known) for _ in range(100))))
            assert await ready(api) == 503
            assert hang.is_effective

        await accepts_again(api, crowd)
        await crowd.settle(own_dsn)  # repeats what nobody knew the outcome of: recorded once, whether then or now


@pytest.mark.fault("B8", "B9")
async def test_an_operators_list_is_given_up_when_the_database_hangs_and_the_next_ones_at_once(
    hanging: tuple[Hang, str, str],
) -> None:
    hang, url, _ = hanging
    async with open_api(url, follows=False, **ENDLESS) as api:

        async def listed(times: int = 1) -> list[httpx.Response]:
            async with asyncio.timeout(60):
                asked = (api.http.get("/v1/admin/mail", headers=ADMIN) for _ in range(times))
                return await asyncio.gather(*asked)

        assert [answer.status_code for answer in await listed()] == [200]
        with healed(hang):
            hang.inject()
            told_to_come_again(await listed())
            told_to_come_again(await listed(40))
            assert hang.is_effective

        async def works() -> bool:
            return [answer.status_code for answer in await listed()] == [200]

        await eventually(works)


@pytest.mark.fault("B13")
async def test_a_query_that_takes_its_time_is_not_taken_for_a_database_that_hangs(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infrastructure.postgres.pool.LONG", timedelta(milliseconds=50))

    async def select(connection: psycopg.AsyncConnection[Any]) -> bool:
        await connection.execute("SELECT pg_sleep(0.5)")
        return True

    async with open_api(dsn, follows=False) as api:
        assert await api.service.pool.ask(select)
        assert api.service.pool._pulse._feeling is not None  # it was felt


async def verify(api: Api, registration_id: str) -> httpx.Response:
    return await api.verify(registration_id, "123456")


@pytest.mark.fault("B8", "B9")
@pytest.mark.slow
async def test_a_hang_longer_than_every_timeout_is_answered_piles_up_nothing_and_heals(
    hanging: tuple[Hang, str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, logger="psycopg.pool")  # pytest would keep broken connections with its records
    hang, url, own_dsn = hanging
    async with open_api(url, follows=False, **SHORT) as api:
        crowd = Crowd(api, within=IN_TIME)
        async with all_connections(api):
            pass  # so that what the pool has when it is busy is part of what there is before
        await crowd.register()
        await becomes(api, 200)
        tasks, files, connected = own_tasks(), open_files(), len(await sessions(own_dsn))

        async def list_mail() -> httpx.Response:
            async with asyncio.timeout(IN_TIME):
                return await api.http.get("/v1/admin/mail", headers=ADMIN)

        with healed(hang):
            async with crowd.arriving():
                await crowd.until_told(202, 20)
                hang.inject()
                told_to_come_again(await asyncio.gather(*(list_mail() for _ in range(40))))
                await crowd.until_told(503, 100)
                assert await ready(api) == 503
                assert hang.is_effective
                assert own_tasks() < tasks + LANES + 20
                if isinstance(hang, Stopped):  # else the proxy's sockets are among them
                    assert open_files() < files + 20
        await accepts_again(api, crowd)

        async def nothing_is_left() -> None:
            gc.collect()  # psycopg's pool leaves a socket of each connect without an answer to it
            assert own_tasks() <= tasks
            assert open_files() <= files
            assert len(await sessions(own_dsn)) <= connected

        await eventually(lambda: succeeds(nothing_is_left()), within=60)
        await crowd.settle(own_dsn)


@asynccontextmanager
async def all_connections(api: Api) -> AsyncIterator[None]:
    """Those that queries may have are taken."""
    async with AsyncExitStack() as busy:
        for _ in range(api.service.pool.max_size):
            await busy.enter_async_context(api.service.pool.connection())
        yield


async def succeeds(check: Awaitable[None]) -> bool:
    await check
    return True


def own_tasks() -> int:
    """All tasks but those of a proxy."""
    return sum("TcpProxy" not in getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks())


def open_files() -> int:
    count: int = psutil.Process().num_fds()
    return count


# --- It refuses -------------------------------------------------------------------------------


@pytest.mark.fault("B10")
async def test_a_refusing_database_is_not_asked_for_every_request(proxy: TcpProxy, dsn: str) -> None:
    async with open_api_through(proxy, dsn) as api:
        crowd = Crowd(api, within=IN_TIME)
        await crowd.register()
        proxy.refuse()
        proxy.reset()

        told_to_come_again(await asyncio.gather(*(crowd.register() for _ in range(100))))
        await becomes(api, 503, within=15)
        asked = proxy.effects["refuse"]
        told_to_come_again([await crowd.register() for _ in range(200)])
        assert proxy.is_effective
        assert proxy.effects["refuse"] - asked < 100  # most were answered without a connect of their own

        proxy.heal()
        await accepts_again(api, crowd)
        await crowd.settle(dsn)


# --- It is locked, or slow --------------------------------------------------------------------


@pytest.mark.fault("B11")
async def test_while_the_log_is_locked_nobody_piles_up_behind_the_lock(dsn: str) -> None:
    async with open_api(dsn, follows=False, **SHORT) as api:
        crowd = Crowd(api, within=IN_TIME)
        async with locked(dsn, "LOCK TABLE events IN ACCESS EXCLUSIVE MODE"):
            await becomes(api, 503, within=15)  # though nobody has tried yet
            answers = asyncio.gather(*(crowd.register() for _ in range(50)))
            await until_waiting_for_a_lock(dsn, "registrar load")
            assert len(await sessions(dsn, "wait_event_type = 'Lock'")) <= 3
            told_to_come_again(await answers)
            assert await ready(api) == 503

        assert await registered(dsn) == set()
        await accepts_again(api, crowd)
        await crowd.settle(dsn)


@pytest.mark.fault("B12")
@pytest.mark.slow
async def test_a_forgotten_session_that_holds_the_log_is_ended_and_registrations_go_on(dsn: str) -> None:
    async with open_api(dsn, follows=False, **SHORT) as api:
        crowd = Crowd(api, within=IN_TIME)
        # As somebody's psql would be, without any settings of ours: this one is ended by the embedded server's own.
        async with await psycopg.AsyncConnection.connect(dsn) as forgotten:
            await forgotten.execute("SELECT FROM head FOR UPDATE")
            told_to_come_again([await crowd.register()])
            await becomes(api, 503, within=15)

            await accepts_again(api, crowd)
            with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
                await forgotten.execute("SELECT")
            await forgotten.close()
        await crowd.settle(dsn)


@pytest.mark.fault("B12")
async def test_a_process_stopped_in_the_middle_of_a_pipeline_does_not_hold_the_log_for_ever(dsn: str) -> None:
    async with open_api(dsn, follows=False, **SHORT) as api:
        crowd = Crowd(api, within=IN_TIME)
        stopped = await connect(dsn, name="stopped", statement_timeout=timedelta(seconds=1))
        with suppress(psycopg.OperationalError):  # it hears of its end only afterwards
            async with stopped.pipeline():
                await stopped.execute("SELECT FROM head FOR UPDATE")
                stopped.pgconn.send_flush_request()
                stopped.pgconn.flush()
                # For the server it is active, so no timeout of a statement or of an idle session is for it.
                held = "application_name = 'registrar stopped' AND state = 'active' AND wait_event = 'ClientRead'"
                await eventually(lambda: sessions(dsn, held))
                told_to_come_again([await crowd.register()])

                await accepts_again(api, crowd)
                assert await sessions(dsn, held) == []
        await crowd.settle(dsn)


@pytest.mark.fault("B12", "B13")
async def test_every_session_of_the_service_has_its_timeouts_wherever_the_server_is(dsn: str) -> None:
    limits = (
        "SELECT name, setting FROM pg_settings WHERE name IN ('statement_timeout', 'lock_timeout',"
        " 'idle_in_transaction_session_timeout', 'idle_session_timeout') ORDER BY name"
    )
    async with open_api(dsn, follows=False, **SHORT) as api:
        async with api.service.pool.connection() as connection:
            pooled: dict[str, str] = dict(await (await connection.execute(limits)).fetchall())
        timeout = api.service.settings.statement_timeout
        line = await connect(dsn, name="test", statement_timeout=timeout)
        async with closing(line):
            own: dict[str, str] = dict(await (await line.execute(limits)).fetchall())
    assert pooled == own
    assert own == {
        "idle_in_transaction_session_timeout": "5000",
        "idle_session_timeout": "0",
        "lock_timeout": "1000",
        "statement_timeout": "1000",
    }


SLEEP = "CREATE FUNCTION sleep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(60); RETURN NULL; END $$"


@pytest.mark.fault("B13")
async def test_an_append_that_is_too_slow_is_given_up_and_records_nothing(dsn: str) -> None:
    async with open_api(dsn, follows=False, **SHORT) as api:
        crowd = Crowd(api, within=IN_TIME)
        await query(dsn, SLEEP)
        await query(dsn, "CREATE TRIGGER slow AFTER INSERT ON events FOR EACH STATEMENT EXECUTE FUNCTION sleep()")
        async with crowd.arriving():
            await eventually(lambda: sessions(dsn, "wait_event = 'PgSleep'"))  # it took effect
            await becomes(api, 503)  # for a second after each append that was given up
        told_to_come_again(list(crowd.told.values()))
        assert await registered(dsn) == set()

        await query(dsn, "DROP TRIGGER slow ON events")
        await accepts_again(api, crowd)
        await crowd.settle(dsn)


@pytest.mark.fault("B13")
async def test_a_read_model_that_is_too_slow_does_not_hold_up_registrations(dsn: str) -> None:
    async with (
        open_api(dsn, follows=False, **SHORT) as api,
        open_api(dsn, follows=False, **SHORT) as starting,
    ):
        crowd = Crowd(api, within=IN_TIME)
        known = id_of(await crowd.register())
        assert await ready(api) == 200
        await query(dsn, "ALTER TABLE followers RENAME TO was")
        await query(dsn, "CREATE VIEW followers AS SELECT was.* FROM pg_sleep(60) LEFT JOIN was ON true")

        admin = (api.http.get("/v1/admin/projections", headers=ADMIN) for _ in range(5))
        answers = asyncio.gather(*(api.look(known) for _ in range(5)), *admin)
        await eventually(lambda: sessions(dsn, "wait_event = 'PgSleep'"))
        assert (await crowd.register()).status_code == 202
        assert await ready(api) == 200
        unknown = await starting.http.get("/health/ready")
        assert (unknown.status_code, unknown.json()["reason"]) == (503, "read models unknown")
        async with asyncio.timeout(IN_TIME):
            told_to_come_again(await answers)
        await crowd.settle(dsn)


@pytest.mark.fault("B14")
async def test_whoever_finds_all_connections_taken_and_the_queue_full_is_told_at_once(dsn: str) -> None:
    async with open_api(dsn, follows=False) as api:
        pool = api.service.pool
        pool.timeout = 60  # so that those who wait do, however busy the machine is
        async with all_connections(api):
            asked = [asyncio.create_task(api.http.get("/v1/admin/mail", headers=ADMIN)) for _ in range(32)]

            # Twice as many as there are connections may wait; the others are told, while all is still taken.
            await eventually(lambda: sum(task.done() for task in asked) == 16)
            refused = [task.result() for task in asked if task.done()]
            assert {(answer.status_code, problem_of(answer)) for answer in refused} == {(503, "overloaded")}
            assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
            assert pool.get_stats()["requests_waiting"] == 16

        answers = await asyncio.gather(*asked)
        assert [answer.status_code for answer in answers].count(200) == 16


# --- Everybody at once ------------------------------------------------------------------------


@pytest.mark.fault("B18")
@pytest.mark.parametrize("payload", ["the same", "another each"])
async def test_of_50_who_register_one_address_at_once_in_two_processes_nobody_is_ended_and_all_are_answered_alike(
    dsn: str, payload: str
) -> None:
    async with (
        open_api(dsn, follows=False, limits=ANY_NUMBER) as one,
        open_api(dsn, follows=False, limits=ANY_NUMBER) as other,
    ):
        names = [f"Rival {number}" if payload == "another each" else "Ada" for number in range(50)]

        async def register(number: int) -> httpx.Response:
            return await (one, other)[number % 2].register("crowd@example.com", name=names[number])

        answers = await asyncio.gather(*map(register, range(50)))
        for number, answer in enumerate(answers):
            if answer.status_code != 202:  # lost to rivals of the other process, several times over
                told_to_come_again([answer])
                answers[number] = await register(number)

    ids = [id_of(answer) for answer in answers]
    assert len({frozenset(answer.json()) for answer in answers}) == 1
    await check_log(dsn)
    assert set(ids) == await registered(dsn)
    assert len(set(ids)) == (1 if payload == "the same" else 50)
    recorded = "SELECT topic FROM events WHERE topic LIKE 'registration.%'"
    assert {topic for (topic,) in await query(dsn, recorded)} == {
        "registration.user_registered",
        "registration.otp_issued",
    }


# --- A slow transaction -----------------------------------------------------------------------


@pytest.mark.fault("B20")
async def test_a_reader_does_not_pass_a_slow_transaction_that_has_the_earlier_position(
    store: EventStore, dsn: str
) -> None:
    # given: whoever writes "slow" waits at the end of the statement, its position taken, for a lock of ours
    await query(
        dsn,
        "CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        "  IF NEW.topic = 'test.slow' THEN PERFORM pg_advisory_xact_lock(20); END IF; RETURN NULL; END $$",
    )
    await query(dsn, "CREATE TRIGGER linger AFTER INSERT ON events FOR EACH ROW EXECUTE FUNCTION linger()")
    earlier, slow, quick = happened(), happened(topic="test.slow"), happened()
    assert await append(store, earlier) == 1

    other = EventStore(dsn, codec=EventCodec(), clock=DatabaseClock())
    try:
        async with locked(dsn, "SELECT pg_advisory_xact_lock(20)"):
            slow_one = asyncio.create_task(append(store, slow))
            await until_waiting_for_a_lock(dsn)
            quick_one = asyncio.create_task(append(other, quick))
            await eventually(lambda: sessions(dsn, "wait_event_type = 'Lock' AND wait_event <> 'advisory'"))

            assert [row.position for row in (await store.read(0, 10))[0]] == [1]
            assert (await store.read(1, 10)) == ([], 1)

        assert [*await asyncio.gather(slow_one, quick_one)] == [2, 3]
        assert (await store.read(1, 10))[1] == 3
    finally:
        await other.close()
    assert await log_of(dsn) == placed(earlier, slow, quick)
