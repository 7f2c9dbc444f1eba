"""Behind PgBouncer: in session mode all works, whatever it drops; every other mode is refused by name."""

from __future__ import annotations

import io
import json
from datetime import timedelta

import psycopg
import pytest

from entrypoints.bootstrap import CannotStart
from entrypoints.bootstrap.database import check_schema
from entrypoints.cli.checks.database import look_at_database
from infrastructure.postgres.connection import closing, connect
from infrastructure.postgres.session import UnfitSession
from tests.support.facts import eventually
from tests.support.http import open_api, settings
from tests.support.pgbouncer import demand, pgbouncer

WANTED = {
    "bytea_output": "hex",
    "client_encoding": "UTF8",
    "DateStyle": "ISO, MDY",
    "default_transaction_isolation": "read committed",
    "idle_in_transaction_session_timeout": "5s",
    "lock_timeout": "1s",
    "search_path": "public",
    "statement_timeout": "7s",
    "synchronous_commit": "on",
    "transaction_timeout": "21s",
}


@pytest.fixture(autouse=True)
def _installed(pytestconfig: pytest.Config) -> None:
    demand(pytestconfig)


async def answers(dsn: str) -> bool:
    try:
        async with await psycopg.AsyncConnection.connect(dsn, connect_timeout=2):
            return True
    except psycopg.OperationalError:
        return False


@pytest.mark.parametrize("dropped", ["", "extra_float_digits, options"])
async def test_a_session_behind_a_pooler_has_what_we_rest_on(dsn: str, dropped: str) -> None:
    with pgbouncer(dsn, pool_mode="session", ignore_startup_parameters=dropped) as url:
        await eventually(lambda: answers(url))
        connection = await connect(url, name="test", statement_timeout=timedelta(seconds=7))
        async with closing(connection):
            found = {
                name: (await (await connection.execute(f"SHOW {name}".encode())).fetchall())[0][0] for name in WANTED
            }
    assert found == WANTED


async def test_the_service_works_behind_a_pooler_in_session_mode(dsn: str) -> None:
    with pgbouncer(dsn, pool_mode="session", ignore_startup_parameters="options", default_pool_size="40") as url:
        await eventually(lambda: answers(url))
        async with open_api(url) as api:
            await api.active("ada@example.com", name="Zoë")
            assert (await api.http.get("/health/ready")).status_code == 200


@pytest.mark.parametrize("mode", ["transaction", "statement"])
@pytest.mark.parametrize("turns", ["0", "1"])
async def test_a_pooler_that_shares_sessions_is_refused_by_name(dsn: str, mode: str, turns: str) -> None:
    with pgbouncer(dsn, pool_mode=mode, server_round_robin=turns, min_pool_size="3") as url:
        await eventually(lambda: answers(url))
        with pytest.raises(CannotStart, match=r"in transaction mode .* pool_mode = session"):
            await check_schema(url)
        (found,) = [one async for one in look_at_database(settings(url, "/nowhere"))]
        assert (found.state, "transaction mode" in found.says) == ("fail", True)


async def test_a_pooler_whose_connections_are_all_taken_is_told_in_time(dsn: str) -> None:
    with pgbouncer(dsn, pool_mode="session", default_pool_size="1") as url:
        await eventually(lambda: answers(url))
        async with await psycopg.AsyncConnection.connect(url) as taken:
            await taken.execute("SELECT 1")
            (found,) = [one async for one in look_at_database(settings(url, "/nowhere"))]
    assert (found.state, found.says) == ("fail", "it lets us in, but answers no query")
    assert found.advice is not None
    assert "taken" in found.advice


async def test_a_database_that_lets_us_in_and_is_silent_for_now_is_a_warning(dsn: str, log: io.StringIO) -> None:
    with pgbouncer(dsn, pool_mode="session", default_pool_size="1") as url:
        await eventually(lambda: answers(url))
        async with await psycopg.AsyncConnection.connect(url) as taken:
            await taken.execute("SELECT 1")
            with pytest.raises(UnfitSession):
                await connect(url, name="test", statement_timeout=timedelta(seconds=5))
    (said,) = [json.loads(line) for line in log.getvalue().splitlines() if "database.unfit" in line]
    assert (said["event"], said["level"]) == ("database.unfit", "warning")
