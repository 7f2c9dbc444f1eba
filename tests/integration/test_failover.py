"""When the primary is gone and its standby takes over: two real servers, one streaming from the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import psycopg
import pytest

from infrastructure.embedded.postgres import EmbeddedPostgres
from tests.support.facts import eventually
from tests.support.http import open_api
from tests.support.log import query
from tests.support.postgres import SURVIVES_KILLS, database_of_either, server, standby_of, stopped


@dataclass(frozen=True)
class Pair:
    primary: EmbeddedPostgres
    standby: EmbeddedPostgres

    @property
    def dsn(self) -> str:
        return database_of_either(self.primary, self.standby, "registrar")

    def fall_silent(self) -> AbstractContextManager[None]:
        return stopped(self.primary)

    def end(self) -> AbstractContextManager[None]:
        self.primary.stop()
        return nullcontext()


@pytest.fixture
def pair() -> Iterator[Pair]:
    with server(SURVIVES_KILLS) as primary, standby_of(primary, SURVIVES_KILLS) as standby:
        yield Pair(primary, standby)


@pytest.mark.parametrize("how", [Pair.fall_silent, Pair.end])
async def test_after_a_failover_whoever_is_ready_takes_registrations(
    pair: Pair, how: Callable[[Pair], AbstractContextManager[None]]
) -> None:
    async with open_api(pair.dsn, follows=False) as api:
        assert (await api.register("before@example.com")).status_code == 202
        await eventually(lambda: caught_up(pair))
        with how(pair):

            async def not_ready() -> bool:
                return (await api.http.get("/health/ready")).status_code == 503

            await eventually(not_ready)
            await query(pair.standby.dsn, "SELECT pg_promote()")

            async def ready() -> bool:
                return (await api.http.get("/health/ready")).status_code == 200

            await eventually(ready, within=60)
            answer = await api.register("after@example.com")

        assert answer.status_code == 202, answer.text
        assert await query(pair.standby.dsn, "SELECT count(DISTINCT originator_id) > 3 FROM events") == [(True,)]


async def caught_up(pair: Pair) -> bool:
    try:
        ends = [await query(one.dsn, "SELECT position FROM head") for one in (pair.primary, pair.standby)]
    except psycopg.errors.UndefinedTable:
        return False
    return ends[0] == ends[1]
