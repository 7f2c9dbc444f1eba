"""Read models as they were: what a projector had by then, beside the live ones, and gone when dropped."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import psycopg
import pytest

from application.ports import entries_of
from domain.recorded import Position
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.store import EventStore
from infrastructure.postgres.clock import DatabaseClock
from infrastructure.postgres.connection import Connection
from infrastructure.replay.copies import MakesProjection
from infrastructure.replay.moments import Moment
from infrastructure.replay.progress import Doing, nobody_watches
from infrastructure.replay.swap import CannotReplay
from infrastructure.replay.time_travel import as_of, diff
from projections import PROJECTIONS
from projections.registrations import Registrations
from tests.integration.conftest import Command
from tests.support.commands import Done
from tests.support.facts import CLIENT, REGISTRATION, registered, stream
from tests.support.log import append, happened, query
from tests.support.read_models import contents, follow, indexes, recorded_history

MASTER_KEY = "ab" * 32
T = TypeVar("T")


async def scratch_of(dsn: str) -> list[tuple[Any, ...]]:
    """What there is beside the live read models."""
    return [
        *await query(dsn, "SELECT nspname::text FROM pg_namespace WHERE nspname LIKE 'read_%\\_\\_%' ORDER BY 1"),
        *await query(dsn, "SELECT name FROM followers WHERE name LIKE '%\\_\\_%' ORDER BY 1"),
        *await query(dsn, "SELECT follower FROM parked_events WHERE follower LIKE '%\\_\\_%' ORDER BY 1"),
    ]


def ran(work: Coroutine[Any, Any, T]) -> T:
    """For tests of commands, which have an event loop of their own."""
    return asyncio.run(work)


async def recorded(dsn: str, registrations: int = 30) -> Position:
    store = EventStore(dsn, codec=EventCodec(), clock=DatabaseClock())
    await store.open()
    try:
        return await recorded_history(store, registrations=registrations)
    finally:
        await store.close()


def told(command: Command, dsn: str, *arguments: str) -> Done:
    return command("projections", *arguments, DATABASE_URL=dsn, MASTER_KEY=MASTER_KEY)


@pytest.mark.parametrize("make", PROJECTIONS, ids=lambda make: make.name)
async def test_a_read_model_as_it_was_is_what_its_projector_had_then(
    dsn: str, store: EventStore, connection: Connection, make: MakesProjection
) -> None:
    end = await recorded_history(store, registrations=30)
    live = make()
    for position in (1, end // 3, end - 1, end):
        await follow(store, connection, live, upto=position)

        found = await as_of(dsn, make, position, log=store, watch=nobody_watches)

        assert (found.position, found.schema) == (position, f"{live.schema}__at_{position}")
        assert await contents(connection, found.schema) == await contents(connection, live.schema)
        assert await indexes(connection, found.schema) == await indexes(connection, live.schema)
        assert found.tables == {table: len(rows) for table, rows in (await contents(connection, live.schema)).items()}
    assert await store.head() == end


async def test_before_the_first_event_a_read_model_is_empty(dsn: str, store: EventStore) -> None:
    await recorded_history(store, registrations=3)

    found = await as_of(dsn, Registrations, 0, log=store, watch=nobody_watches)

    assert found.recorded_at is None
    assert set(found.tables.values()) == {0}


async def test_a_time_means_the_last_event_that_was_recorded_by_then(dsn: str, store: EventStore) -> None:
    await recorded_history(store, registrations=2)
    for _ in range(2):
        await append(store, happened())
    times = await query(
        dsn, "SELECT recorded_at, max(notification_id) FROM events GROUP BY recorded_at ORDER BY recorded_at"
    )
    assert len(times) == 3
    microsecond = timedelta(microseconds=1)
    moments: list[tuple[Moment, Position]] = [
        (times[0][0] - microsecond, 0),
        (times[0][0], times[0][1]),
        (times[1][0] - microsecond, times[0][1]),
        (times[1][0] + microsecond, times[1][1]),
        (times[2][0], times[2][1]),
        (datetime(2999, 1, 1, tzinfo=UTC), times[2][1]),
    ]

    for moment, position in moments:
        found = await as_of(dsn, Registrations, moment, log=store, watch=nobody_watches)
        assert (moment, found.position) == (moment, position)


async def test_a_position_beyond_the_log_is_refused(dsn: str, store: EventStore) -> None:
    end = await recorded_history(store, registrations=2)

    with pytest.raises(CannotReplay, match=f"The log ends at position {end}"):
        await as_of(dsn, Registrations, end + 1, log=store, watch=nobody_watches)
    assert await scratch_of(dsn) == []


async def test_what_is_cancelled_leaves_nothing(dsn: str, store: EventStore) -> None:
    end = await recorded_history(store, registrations=10)

    def stop(_: Doing) -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await as_of(dsn, Registrations, end, log=store, watch=stop)
    with pytest.raises(asyncio.CancelledError):
        await diff(dsn, Registrations, 1, end, log=store, watch=stop)

    assert await scratch_of(dsn) == []


async def test_what_a_killed_command_left_is_replaced(dsn: str, store: EventStore, connection: Connection) -> None:
    end = await recorded_history(store, registrations=10)
    first = await as_of(dsn, Registrations, end, log=store, watch=nobody_watches)
    before = await contents(connection, first.schema)
    await connection.execute(f"DELETE FROM {first.schema}.progress".encode())
    await connection.execute("INSERT INTO followers (name, position) VALUES (%s, 7)", (f"registrations__at_{end}",))

    await as_of(dsn, Registrations, end, log=store, watch=nobody_watches)

    assert await contents(connection, first.schema) == before
    assert await scratch_of(dsn) == [(first.schema,)]


async def test_two_commands_do_not_make_the_same_copy(dsn: str, store: EventStore) -> None:
    end = await recorded_history(store, registrations=2)
    claim = "SELECT pg_advisory_lock(hashtext('registrar replay'), hashtext(%s))"

    async with await psycopg.AsyncConnection.connect(dsn) as other:
        await other.execute(claim, (f"read_registrations__at_{end}",))
        with pytest.raises(CannotReplay, match="being made or dropped by another command"):
            await as_of(dsn, Registrations, end, log=store, watch=nobody_watches)


@pytest.mark.parametrize("make", PROJECTIONS, ids=lambda make: make.name)
async def test_a_difference_between_two_moments_is_that_of_what_was_there(
    dsn: str, store: EventStore, connection: Connection, make: MakesProjection
) -> None:
    end = await recorded_history(store, registrations=30)
    one, other = end // 2, end
    rows_then = await rows_of(dsn, make, one, store, connection)
    rows_now = await rows_of(dsn, make, other, store, connection)

    first, second, found = await diff(dsn, make, one, other, log=store, watch=nobody_watches)
    *_, back = await diff(dsn, make, other, one, log=store, watch=nobody_watches)
    *_, none = await diff(dsn, make, one, one, log=store, watch=nobody_watches)

    assert (first, second, none.count) == (one, other, 0)
    assert found.count > 0
    added = {(it.table, it.row) for it in found.kept if (it.column, it.live) == ("(row)", "missing")}
    assert len(added) == sum(len(rows_now[table].keys() - rows_then[table].keys()) for table in rows_now)
    changed = {(it.table, it.row) for it in found.kept if it.column != "(row)"}
    assert len(changed) == sum(
        rows_now[table][key] != row
        for table in rows_then
        for key, row in rows_then[table].items()
        if key in rows_now[table]
    )
    assert [(it.table, it.row, it.column, it.rebuilt, it.live) for it in back.kept] == [
        (it.table, it.row, it.column, it.live, it.rebuilt) for it in found.kept
    ]
    assert await scratch_of(dsn) == [(f"{make().schema}__at_{at}",) for at in sorted((one, other), key=str)]


async def test_what_a_copy_cannot_apply_keeps_its_error_and_place_between_two_moments(
    dsn: str, store: EventStore
) -> None:
    await store.append(entries_of(stream(REGISTRATION, registered()), CLIENT))
    end = await recorded_history(store, registrations=5)

    class Picky(Registrations):
        async def apply(self, connection: Any, events: Any) -> None:
            if events[0].position == 1:
                raise LookupError("never heard of it")
            await super().apply(connection, events)

    seen = []

    def watch(doing: Doing) -> None:
        if doing.what == "comparing":
            with psycopg.connect(dsn) as other:
                parked = "SELECT follower, error, code FROM parked_events WHERE position = 1 ORDER BY follower"
                seen.extend(other.execute(parked).fetchall())

    await diff(dsn, Picky, 1, end, log=store, watch=watch)

    assert [(follower, error) for follower, error, _ in seen] == [
        ("registrations__earlier", "LookupError"),
        ("registrations__later", "LookupError"),
    ]
    [code] = {code for *_, code in seen}
    assert code.startswith("infrastructure/replay/copies.py:")


async def rows_of(
    dsn: str, make: MakesProjection, position: Position, store: EventStore, connection: Connection
) -> dict[str, dict[tuple[Any, ...], Any]]:
    """All rows as they were, by their keys."""
    found = await as_of(dsn, make, position, log=store, watch=nobody_watches)
    keys = await query(
        dsn,
        "SELECT conrelid::regclass::text, array_agg(attname::text ORDER BY attnum) FROM pg_constraint"
        " JOIN pg_attribute ON attrelid = conrelid AND attnum = ANY (conkey)"
        " WHERE contype = 'p' AND connamespace = %s::regnamespace GROUP BY 1",
        found.schema,
    )
    key_of = {table.split(".")[1]: columns for table, columns in keys}
    return {
        table: {tuple(row[column] for column in key_of[table]): row for row in map(json.loads, rows)}
        for table, rows in (await contents(connection, found.schema)).items()
    }


def test_the_command_says_how_to_ask_and_how_to_drop(dsn: str, command: Command) -> None:
    end = ran(recorded(dsn))

    said = told(command, dsn, "as-of", "registrations", str(end))
    as_json = told(command, dsn, "as-of", "registrations", str(end), "--json").json
    rows = ran(query(dsn, as_json["query"]))
    dropped = told(command, dsn, *as_json["drop"].split()[2:])
    again = told(command, dsn, *as_json["drop"].split()[2:])

    assert said.code == 0
    assert as_json["query"] in said.out
    assert as_json["drop"] in said.out
    assert len(rows) == 10
    assert dropped.out == f"Dropped read_registrations__at_{end}.\n"
    assert again.out == "There is nothing to drop.\n"
    assert ran(scratch_of(dsn)) == []


def test_dropping_the_schema_drops_all_of_it(dsn: str, command: Command) -> None:
    end = ran(recorded(dsn, 3))
    told(command, dsn, "as-of", "mail", str(end))

    ran(query(dsn, f"DROP SCHEMA read_mail__at_{end} CASCADE"))

    assert ran(scratch_of(dsn)) == []


def test_the_command_lists_what_changed_and_masks_what_is_personal(dsn: str, command: Command) -> None:
    end = ran(recorded(dsn))

    plain = told(command, dsn, "diff", "registrations", "1", str(end))
    found = told(command, dsn, "diff", "registrations", "1", str(end), "--json")
    none = told(command, dsn, "diff", "registrations", str(end), str(end), "--json")

    assert (plain.code, found.code, none.code) == (1, 1, 0)
    assert none.json["differences"] == 0
    assert found.json["differences"] == len(found.json["found"]) > 0
    assert "at 1 " in plain.out.splitlines()[0]
    assert "sealed address" not in plain.out + found.out
    assert f"{found.json['differences']:,} differences in registrations between positions 1 and {end}." in plain.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("as-of", "registrations", "yesterday"), "neither a position of the log nor a time"),
        (("as-of", "registration", "1"), "is no read model"),
        (("as-of", "registrations", "1"), "The log ends at position 0"),
        (("diff", "registrations", "0", "-1"), "No such option"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(dsn: str, command: Command, arguments: tuple[str, ...], says: str) -> None:
    done = told(command, dsn, *arguments)

    assert (done.code, done.err.count("\n")) == (2, 1)
    assert says in done.err
