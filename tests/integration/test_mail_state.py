"""The right to send a mail, and the personal key with it, as workers ask the database for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from functools import partial
from math import ceil
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from structlog.testing import capture_logs

from application.ports import Unavailable
from infrastructure.event_store.store import EventStore
from infrastructure.mail.send_claims import StoredSendClaims
from infrastructure.postgres.connection import Connection, ReconnectingConnection
from tests.support.facts import REGISTRATION, eventually
from tests.support.log import append, by_way_of, happened, proxy_to, query

LEASE = timedelta(minutes=1)


@pytest.fixture
async def connection(dsn: str) -> AsyncIterator[ReconnectingConnection]:
    connection = ReconnectingConnection(dsn, name="mail", statement_timeout=timedelta(seconds=10))
    yield connection
    await connection.close()


@pytest.fixture
async def other_connection(dsn: str) -> AsyncIterator[ReconnectingConnection]:
    connection = ReconnectingConnection(dsn, name="mail of another worker", statement_timeout=timedelta(seconds=10))
    yield connection
    await connection.close()


async def test_of_many_who_want_to_send_a_mail_one_gets_the_right(
    connection: ReconnectingConnection, other_connection: ReconnectingConnection
) -> None:
    one, other = StoredSendClaims(connection, lease=LEASE), StoredSendClaims(other_connection, lease=LEASE)
    mail = uuid4()
    got = await asyncio.gather(*(worker.acquire(mail, 1) for worker in (one, other) for _ in range(10)))
    assert sum(claim is not None for claim in got) == 1
    assert await one.acquire(mail, 2)
    assert await other.acquire(uuid4(), 1)


async def test_a_claim_comes_with_all_that_was_recorded_until_it_was_had(dsn: str, store: EventStore) -> None:
    patient = ReconnectingConnection(
        dsn, name="mail", statement_timeout=timedelta(seconds=60), lock_timeout=timedelta(seconds=60)
    )
    worker, mail = StoredSendClaims(patient, lease=LEASE), uuid4()
    first = await append(store, happened(mail))
    async with await psycopg.AsyncConnection.connect(dsn) as holder:
        await holder.execute(
            "INSERT INTO send_claims (registration_id, serial, holder, lease_until) VALUES (%s, 1, %s, now())",
            (mail, uuid4()),
        )
        claiming = asyncio.create_task(worker.acquire(mail, 1))
        await eventually(lambda: query(dsn, "SELECT 1 FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"))
        second = await append(store, happened(mail, 2))
        await holder.rollback()
    # The next ones share a batch, as they wait for the end of that one.
    others = await asyncio.gather(*(worker.acquire(mail, serial) for serial in (2, 3, 4)))

    for claim in (await claiming, *others):
        assert claim is not None
        assert [claim.streams.position_at(mail, version) for version in (1, 2)] == [first, second]
        with pytest.raises(IndexError):
            claim.streams.position_at(mail, 3)
    await worker.close()
    await patient.close()


async def test_a_claim_that_failed_spoils_no_later_one(dsn: str) -> None:
    """Whenever it fails: the driver prepares a statement at its sixth use, unless told to do so at the first."""
    line = ReconnectingConnection(
        dsn, name="mail", statement_timeout=timedelta(seconds=60), lock_timeout=timedelta(milliseconds=20)
    )
    worker, mail = StoredSendClaims(line, lease=LEASE), uuid4()
    async with await psycopg.AsyncConnection.connect(dsn) as holder:
        await holder.execute(
            "INSERT INTO send_claims (registration_id, serial, holder, lease_until) VALUES (%s, 1, %s, now())",
            (mail, uuid4()),
        )
        for _ in range(8):
            with pytest.raises(Unavailable):
                await worker.acquire(mail, 1)
            assert await worker.acquire(uuid4(), 1)
    await worker.close()
    await line.close()


async def test_a_claim_that_was_given_back_can_be_had_by_others(
    connection: ReconnectingConnection, other_connection: ReconnectingConnection
) -> None:
    one, other = StoredSendClaims(connection, lease=LEASE), StoredSendClaims(other_connection, lease=LEASE)
    mail = uuid4()
    assert await one.acquire(mail, 1)
    await one.release(mail, 1)
    assert await one.acquire(mail, 1)  # the release goes before it, in the same round trip
    await one.release(mail, 1)
    await one.close()
    assert await other.acquire(mail, 1)


@pytest.mark.parametrize("serial", [pytest.param(1, id="a mail"), pytest.param(0, id="the owner's notice")])
async def test_a_claim_that_was_given_back_can_soon_be_had_by_others_though_no_other_is_made(
    connection: ReconnectingConnection, other_connection: ReconnectingConnection, serial: int
) -> None:
    one, other = StoredSendClaims(connection, lease=LEASE), StoredSendClaims(other_connection, lease=LEASE)
    mail = uuid4()
    assert await one.acquire(mail, serial)
    for giver, taker in ((one, other), (other, one)):
        await giver.release(mail, serial)
        await eventually(partial(taker.acquire, mail, serial))


async def test_claims_given_back_while_the_database_is_away_can_be_had_by_others_once_it_is_back(
    dsn: str, other_connection: ReconnectingConnection
) -> None:
    mail = uuid4()
    async with proxy_to(dsn) as proxy:
        connection = ReconnectingConnection(
            by_way_of(proxy, dsn), name="mail by way of a proxy", statement_timeout=timedelta(seconds=10)
        )
        one = StoredSendClaims(connection, lease=LEASE, release_within=timedelta(milliseconds=20))
        other = StoredSendClaims(other_connection, lease=LEASE)
        assert await one.acquire(mail, 1)
        proxy.refuse()
        proxy.reset()
        await one.release(mail, 1)
        await eventually(lambda: proxy.is_effective)
        assert not await other.acquire(mail, 1)

        proxy.heal()
        await eventually(lambda: other.acquire(mail, 1))
        await one.close()
        await connection.close()


async def test_a_worker_that_may_not_release_claims_says_so_once_and_releases_them_when_it_may(
    connection: ReconnectingConnection, other_connection: ReconnectingConnection, dsn: str
) -> None:
    one = StoredSendClaims(connection, lease=LEASE, release_within=timedelta(milliseconds=1))
    other = StoredSendClaims(other_connection, lease=LEASE)
    mail = uuid4()
    assert await one.acquire(mail, 1)
    await query(
        dsn,
        "CREATE SEQUENCE refused; CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " PERFORM nextval('refused'); RAISE insufficient_privilege; END $$;"
        " CREATE TRIGGER refuse BEFORE DELETE ON send_claims FOR EACH STATEMENT EXECUTE FUNCTION refuse()",
    )
    with capture_logs() as logged:
        await one.release(mail, 1)
        await eventually(lambda: query(dsn, "SELECT 1 FROM refused WHERE last_value > 2"))
        await query(dsn, "DROP TRIGGER refuse ON send_claims")
        await eventually(lambda: other.acquire(mail, 1))
    await one.close()

    assert [entry["event"] for entry in logged] == ["mail.claims_not_released"]
    assert logged[0]["error"] == "InsufficientPrivilege"


async def test_a_dead_workers_claim_ends_with_its_lease(
    connection: ReconnectingConnection, other_connection: ReconnectingConnection
) -> None:
    dead = StoredSendClaims(connection, lease=timedelta(milliseconds=300))
    heir = StoredSendClaims(other_connection, lease=LEASE)
    mail = uuid4()
    assert await dead.acquire(mail, 1)
    await eventually(lambda: heir.acquire(mail, 1))
    # Whoever comes back from the dead gives back only what was theirs.
    await dead.release(mail, 1)
    await dead.close()
    assert not await dead.acquire(mail, 1)


@pytest.mark.fault("E31")
async def test_a_claim_that_is_kept_outlasts_its_lease_until_it_is_given_back(
    connection: ReconnectingConnection, other_connection: ReconnectingConnection, dsn: str
) -> None:
    lease = timedelta(seconds=5)
    one, other = StoredSendClaims(connection, lease=lease), StoredSendClaims(other_connection, lease=LEASE)
    assert await one.acquire(REGISTRATION, 1)
    [(first,)] = await query(dsn, "SELECT lease_until FROM send_claims")
    one.keep(REGISTRATION, 1)

    async def outlasts_it() -> bool:
        [(until, now)] = await query(dsn, "SELECT lease_until, clock_timestamp() FROM send_claims")
        return bool(until > now > first)

    await eventually(outlasts_it)
    assert await other.acquire(REGISTRATION, 1) is None

    await one.release(REGISTRATION, 1)
    await one.close()
    assert await other.acquire(REGISTRATION, 1)


async def test_a_claim_whose_extension_is_under_way_when_the_worker_ends_is_given_back(
    connection: ReconnectingConnection, other_connection: ReconnectingConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (
        StoredSendClaims(connection, lease=timedelta(seconds=1)),
        StoredSendClaims(other_connection, lease=LEASE),
    )
    assert await one.acquire(REGISTRATION, 1)

    extended, noted = asyncio.Event(), asyncio.Event()
    execute = connection.execute_idempotent

    async def answer_late(use: Callable[[Connection], Awaitable[Any]]) -> Any:
        answer = await execute(use)
        extended.set()
        await noted.wait()
        return answer

    monkeypatch.setattr(connection, "execute_idempotent", answer_late)
    one.keep(REGISTRATION, 1)
    await extended.wait()
    await one.release(REGISTRATION, 1)
    closing = asyncio.create_task(one.close())
    asyncio.get_running_loop().call_soon(noted.set)
    await closing
    assert await other.acquire(REGISTRATION, 1)


async def test_a_claim_that_was_lost_is_not_kept(
    connection: ReconnectingConnection, other_connection: ReconnectingConnection, dsn: str
) -> None:
    one = StoredSendClaims(connection, lease=timedelta(milliseconds=30))
    other = StoredSendClaims(other_connection, lease=LEASE)
    assert await one.acquire(REGISTRATION, 1)

    async def taken() -> bool:
        return await other.acquire(REGISTRATION, 1) is not None

    await eventually(taken)
    one.keep(REGISTRATION, 1)
    keeping = one._keeping
    assert keeping is not None
    extended = await one._extend([(REGISTRATION, 1, one._held[REGISTRATION, 1])], await connection._connected())
    assert extended == []
    await one.release(REGISTRATION, 1)
    await asyncio.wait({keeping})  # nothing is left to keep
    assert await query(dsn, "SELECT lease_until > clock_timestamp() + interval '1 s' FROM send_claims") == [(True,)]


async def test_giving_back_an_ended_claim_leaves_the_one_that_was_taken_since(
    connection: ReconnectingConnection, dsn: str
) -> None:
    worker = StoredSendClaims(connection, lease=timedelta(milliseconds=100))
    mail = uuid4()
    assert await worker.acquire(mail, 1)
    [(first,)] = await query(dsn, "SELECT lease_until FROM send_claims")
    await eventually(lambda: worker.acquire(mail, 1))
    worker._released.append((mail, 1, first))  # a release that was on its way all the time
    await worker.close()
    [(second,)] = await query(dsn, "SELECT lease_until FROM send_claims")
    assert second > first


async def test_a_process_that_is_alone_forgets_the_dead(
    connection: ReconnectingConnection, other_connection: ReconnectingConnection
) -> None:
    dead, alone = StoredSendClaims(connection, lease=LEASE), StoredSendClaims(other_connection, lease=LEASE)
    mail = uuid4()
    assert await dead.acquire(mail, 1)
    await alone.forget_the_dead()
    assert await alone.acquire(mail, 1)


async def leases_of(dsn: str, mail: UUID) -> tuple[int, int]:
    """How often the mail's holder was lost, and how many leases the claim lasts from now on, begun ones included."""
    [(lost, rest)] = await query(
        dsn, "SELECT lost, lease_until - clock_timestamp() FROM send_claims WHERE registration_id = %s", mail
    )
    return lost, ceil(rest / LEASE)


async def test_a_process_that_is_alone_sends_a_mail_that_it_dies_of_three_times_and_then_waits_longer_each_time(
    connection: ReconnectingConnection, dsn: str
) -> None:
    """At each of its starts it is another holder, alone, and dies with the mail in hand."""
    mail = uuid4()

    async def starts() -> StoredSendClaims:
        claims = StoredSendClaims(connection, lease=LEASE)
        await claims.forget_the_dead()
        return claims

    for lost, leases in ((0, 1), (1, 2), (2, 4)):
        assert await (await starts()).acquire(mail, 1)
        assert await leases_of(dsn, mail) == (lost, leases)
    assert await (await starts()).acquire(mail, 1) is None
    assert await leases_of(dsn, mail) == (2, 4)

    await query(dsn, "UPDATE send_claims SET lease_until = clock_timestamp() - interval '1 second'")
    last = await starts()
    assert await last.acquire(mail, 1)
    assert await leases_of(dsn, mail) == (3, 8)
    await last.release(mail, 1)
    await last.close()
    assert await query(dsn, "SELECT * FROM send_claims") == []


async def test_a_claim_brings_the_personal_key_if_there_is_one(connection: ReconnectingConnection, dsn: str) -> None:
    there, destroyed = uuid4(), uuid4()
    await query(dsn, "INSERT INTO personal_keys VALUES (%s, 'wrapped')", there)
    worker = StoredSendClaims(connection, lease=LEASE)
    first, second, third = await asyncio.gather(
        *(worker.acquire(*mail) for mail in ((there, 1), (there, 2), (destroyed, 1)))
    )
    assert first is not None
    assert first.wrapped == b"wrapped"
    assert second == first
    assert third is not None
    assert third.wrapped is None
