"""Verification in the background on real PostgreSQL: every difference is found, none is made up, and it goes on where
it was."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from entrypoints.bootstrap.replay import READ_MODELS, Verifier
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.store import EventStore
from infrastructure.followers.leadership import lead
from infrastructure.followers.parked import ParkedStreams
from infrastructure.postgres.connection import Connection
from infrastructure.replay import background, stretches
from infrastructure.replay.background import BackgroundVerification
from infrastructure.replay.claim import claim_now, claimed, release
from infrastructure.replay.comparison import Difference
from infrastructure.replay.copies import MakesProjection
from infrastructure.replay.progress import nobody_watches
from infrastructure.replay.rebuild import RebuildAct, Rebuilds
from infrastructure.replay.verification import verify
from infrastructure.replay.verified import differences_after
from projections import PROJECTIONS
from projections.accounts import Accounts
from projections.mail import Mails
from tests.support.facts import REGISTRATION, eventually, registered, stream
from tests.support.histories import History
from tests.support.http import ADMIN, open_api
from tests.support.log import append, query
from tests.support.read_models import contents, follow_all, recorded_history, rows

NAMES = [make().name for make in PROJECTIONS]
DAY = timedelta(days=1)
NOW = timedelta(0)

RESULTS = "SELECT read_model, differences, row_count FROM verifications ORDER BY read_model"
LEFT = "SELECT nspname::text FROM pg_namespace WHERE nspname ~ '__verify$'"


@pytest.fixture
async def live(store: EventStore, connection: Connection) -> None:
    """A log, and every read model at its end."""
    await recorded_history(store, registrations=60)
    await follow_all(store, connection)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices and stretches so short that there are many."""
    monkeypatch.setattr(background, "SLICE", 100)
    monkeypatch.setattr(background, "BATCH_EVENTS", 40)
    monkeypatch.setattr(stretches, "ROWS", 7)
    monkeypatch.setattr(background, "GIVE_WAY", timedelta(milliseconds=20))
    monkeypatch.setattr(background, "LOOK", timedelta(milliseconds=20))


@asynccontextmanager
async def verifying(
    dsn: str, read_models: Sequence[MakesProjection] = PROJECTIONS, *, every: timedelta = DAY, share: float = 1.0
) -> AsyncIterator[None]:
    """A process that verifies in the background, without its long rests."""
    work = BackgroundVerification(
        read_models, dsn=dsn, every=every, statement_timeout=timedelta(seconds=10), first=NOW, share=share
    )
    task = asyncio.create_task(lead(work, dsn))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def found_of(connection: Connection, expected: int) -> Callable[[], Any]:
    async def found() -> list[tuple[Any, ...]] | None:
        results = await rows(connection, RESULTS)
        return results if len(results) == expected else None

    return found


async def outcome(dsn: str, connection: Connection, make: MakesProjection) -> int:
    """How many differences the next pass about this read model finds."""
    await connection.execute("DELETE FROM verifications")
    async with verifying(dsn, [make]):
        [(_, differences, _)] = await eventually(found_of(connection, 1))
    return int(differences)


@pytest.mark.usefixtures("live", "small")
async def test_every_read_model_is_verified_row_by_row_and_nothing_is_left_behind(
    dsn: str, connection: Connection
) -> None:
    expected = {
        make().name: sum(len(found) for found in (await contents(connection, make().schema)).values())
        for make in PROJECTIONS
    }

    async with verifying(dsn):
        results = await eventually(found_of(connection, len(PROJECTIONS)))

    assert {name: count for name, _, count in results} == expected
    assert {differences for _, differences, _ in results} == {0}
    assert await rows(connection, LEFT) == []
    assert await rows(connection, "SELECT FROM verification_passes") == []
    assert await rows(connection, "SELECT name::text FROM followers WHERE name ~ '__'") == []


@pytest.mark.usefixtures("live", "small")
@pytest.mark.parametrize("make", PROJECTIONS, ids=lambda make: make.name)
async def test_it_finds_what_an_operators_verification_finds(
    dsn: str, connection: Connection, store: EventStore, make: MakesProjection
) -> None:
    schema = make().schema
    for (table,) in await rows(connection, "SELECT tablename::text FROM pg_tables WHERE schemaname = %s", schema):
        # The first, the last, and every fifth row in between are gone.
        await connection.execute(
            f"DELETE FROM {schema}.{table} AS t USING ("
            f" SELECT ctid AS id, row_number() OVER (ORDER BY r) AS n, count(*) OVER () AS total FROM {schema}.{table} AS r"
            ") AS r WHERE t.ctid = r.id AND (n % 5 = 1 OR n = total)".encode()
        )
        # And there is one that nobody has recorded before the first, and one beyond the last.
        for invented in ("00000000-0000-7000-8000-000000000001", "ffffffff-ffff-7fff-bfff-ffffffffffff"):
            await connection.execute(
                f'INSERT INTO {schema}.{table} SELECT (jsonb_populate_record(t, \'{{"registration_id": "{invented}"}}\')).*'
                f" FROM {schema}.{table} AS t LIMIT 1 ON CONFLICT DO NOTHING".encode()
            )

    async with verifying(dsn, [make]):
        [(_, count, _)] = await eventually(found_of(connection, 1))
    ours = [one for _, one in await differences_after(connection, make().name, 0, limit=10_000)]
    theirs = (await verify(dsn, make, log=store)).kept

    assert count == len(ours) == len(theirs) > 1
    assert _comparable(ours) == _comparable(theirs)


def _comparable(found: Sequence[Difference]) -> list[tuple[Any, ...]]:
    return sorted((one.table, one.row, one.column, str(one.live), str(one.rebuilt)) for one in found)


@pytest.mark.usefixtures("live")
async def test_a_difference_is_an_error_line_without_personal_data(dsn: str, connection: Connection) -> None:
    await connection.execute("UPDATE read_accounts.accounts SET sealed = 'ada@example.com'")
    [(accounts,)] = await rows(connection, "SELECT count(*) FROM read_accounts.accounts")

    with capture_logs() as logs:
        assert await outcome(dsn, connection, Accounts) == accounts

    lines = [line for line in logs if line["event"] == "projection.differs"]
    assert 0 < len(lines) == min(accounts, background.MOST_LOGGED)
    assert {(line["log_level"], line["projection"], line["column"]) for line in lines} == {
        ("error", "accounts", "sealed")
    }
    [end] = [line for line in logs if line["event"] == "projection.verified"]
    assert (end["log_level"], end["differences"]) == ("error", accounts)
    assert "ada@" not in str(logs)
    kept = await rows(connection, "SELECT live, rebuilt FROM found_differences")
    assert set(kept) == {("masked", "masked")}


@pytest.mark.usefixtures("live", "small")
async def test_it_goes_on_where_another_process_was(dsn: str, connection: Connection) -> None:
    state = (
        "SELECT p.begun_at, f.position, p.at_table FROM verification_passes AS p"
        " JOIN followers AS f ON f.name = p.read_model || '__verify'"
    )
    begun, positions = None, []
    for step in ("folding", "comparing"):

        async def under_way(step: str = step) -> list[tuple[Any, ...]]:
            found = await rows(connection, state)
            return [one for one in found if one[1] > 0 and (step == "folding" or one[2])]

        async with verifying(dsn, [Mails], share=0.2):
            await eventually(under_way)
        [(begun_at, position, _)] = await under_way()
        assert begun in {None, begun_at}
        begun = begun_at
        positions.append(position)
    assert positions[0] < positions[1]

    async with verifying(dsn, [Mails]):
        assert await eventually(found_of(connection, 1))
    [(verified_rows,)] = await rows(connection, "SELECT row_count FROM verifications")
    assert verified_rows == sum(len(found) for found in (await contents(connection, "read_mail")).values())


@pytest.mark.usefixtures("live", "small")
async def test_it_is_due_again_after_the_interval_only(dsn: str, connection: Connection) -> None:
    async with verifying(dsn, [Accounts, Mails]):
        first = await eventually(found_of(connection, 2))
    assert first
    [(before,)] = await rows(connection, "SELECT max(verified_at) FROM verifications")

    await connection.execute(
        "UPDATE verifications SET verified_at = verified_at - interval '1 day' WHERE read_model = 'mail'"
    )
    async with verifying(dsn, [Accounts, Mails]):

        async def again() -> bool:
            found = await rows(connection, "SELECT read_model FROM verifications WHERE verified_at > %s", before)
            return found == [("mail",)]

        await eventually(again)
    assert (
        await rows(connection, "SELECT verified_at <= %s FROM verifications WHERE read_model = 'accounts'", before)
    ) == [(True,)]


@pytest.mark.usefixtures("live", "small")
async def test_an_operator_goes_first(dsn: str, connection: Connection) -> None:
    assert await claim_now(connection)
    async with verifying(dsn, [Mails], share=0.2):
        leads = "SELECT FROM pg_stat_activity WHERE application_name = 'registrar verification' AND query ~ 'registrar replay'"
        await eventually(lambda: rows(connection, leads))
        assert await rows(connection, "SELECT FROM verification_passes") == []
        await release(connection)
        async with claimed(dsn, name="verify mail"):
            pass
        assert await eventually(found_of(connection, 1))


@pytest.mark.usefixtures("live", "small")
async def test_what_is_parked_is_no_difference_nor_is_what_was_applied_late(
    dsn: str, connection: Connection, store: EventStore
) -> None:
    await append(store, EventCodec().encode(stream(REGISTRATION, registered())[0]))
    head = await store.head()
    # The projector has parked the new registration, and stands behind it.
    async with connection.transaction():
        await ParkedStreams("accounts", store).add(connection, REGISTRATION, head, "Error")
        await connection.execute("UPDATE followers SET position = %s WHERE name = 'accounts'", (head,))
    assert await outcome(dsn, connection, Accounts) == 0

    # A pass has folded all but what is parked; then that is applied after all.
    await connection.execute("DELETE FROM verifications")
    async with verifying(dsn, [Accounts], share=0.2):
        await eventually(lambda: rows(connection, "SELECT FROM verification_passes WHERE left_out <> '{}'"))
        async with connection.transaction():
            [row], _ = await store.read(head - 1, 1)
            await connection.execute("SET LOCAL search_path = read_accounts, public")
            await Accounts().apply(connection, [store.decode(row)])
            await connection.execute("DELETE FROM parked_events")
        [(_, differences, _)] = await eventually(found_of(connection, 1))
    assert differences == 0


@pytest.mark.usefixtures("live", "small")
async def test_a_copy_that_is_ahead_or_of_other_code_is_begun_anew(
    dsn: str, connection: Connection, store: EventStore
) -> None:
    for spoil in (
        "UPDATE followers SET position = position + 1000000 WHERE name = 'mail__verify'",
        "UPDATE verification_passes SET fold = 'another release'",
        "DROP SCHEMA read_mail__verify CASCADE",
    ):
        await connection.execute("DELETE FROM verifications")
        async with verifying(dsn, [Mails], share=0.2):
            await eventually(
                lambda: rows(connection, "SELECT FROM followers WHERE name = 'mail__verify' AND position > 0")
            )
        await connection.execute(spoil.encode())
        async with verifying(dsn, [Mails]):
            [(_, differences, _)] = await eventually(found_of(connection, 1))
        assert differences == 0


@pytest.mark.slow
async def test_a_read_model_that_moves_all_the_time_is_verified_and_no_lag_is_a_difference(
    dsn: str, connection: Connection, store: EventStore
) -> None:
    events = History(seed=3, registrations=600).events
    verified: set[str] = set()

    async def move() -> None:
        """As a projector: batch after batch, until each read model was verified twice in the meantime."""
        for start in range(0, len(events), 10):
            await store.append(events[start : start + 10])
            await follow_all(store, connection)
            found = await rows(connection, "SELECT read_model || ' at ' || position, differences FROM verifications")
            verified.update(where for where, differences in found if not differences)
            assert not any(differences for _, differences in found)
            if len(verified) >= 2 * len(NAMES):
                return

    async with verifying(dsn, every=timedelta(milliseconds=1), share=0.5):
        await move()
    assert {where.split()[0] for where in verified} == set(NAMES)


@pytest.mark.usefixtures("live")
async def test_rebuilds_and_verifications_of_operators_count(
    dsn: str, connection: Connection, store: EventStore
) -> None:
    async def record(_: RebuildAct) -> None:
        pass

    rebuilds = Rebuilds(dsn, log=store, record=record, watch=nobody_watches)
    await connection.execute("UPDATE read_mail.mails SET failures = failures + 1")
    [(mails,)] = await rows(connection, "SELECT count(*) FROM read_mail.mails")

    async def known() -> list[tuple[Any, ...]]:
        return await rows(
            connection,
            "SELECT v.differences, (SELECT count(*) FROM found_differences) FROM verifications AS v WHERE read_model = 'mail'",
        )

    await Verifier(dsn, store).verify("mail", nobody_watches)  # type: ignore[arg-type]
    assert await known() == [(mails, mails)]
    assert not (await rebuilds.rebuild(READ_MODELS["mail"])).swapped
    assert await known() == [(mails, mails)]
    assert (await rebuilds.rebuild(READ_MODELS["mail"], repair=True)).swapped
    assert await known() == [(0, 0)]
    await rebuilds.roll_back(READ_MODELS["mail"])
    assert await known() == []


async def test_what_was_found_is_in_health_in_metrics_and_in_the_list(dsn: str) -> None:
    async with open_api(dsn, verify_interval="0") as api:

        async def up() -> bool:
            return bool((await api.http.get("/health/projections")).json()["status"] == "up")

        await eventually(up)
        for name, differences in (("mail", 2), ("audit", 0)):
            await query(
                dsn,
                "INSERT INTO verifications (read_model, position, row_count, differences, verified_at)"
                f" VALUES ('{name}', 7, 5, {differences}, '2026-03-01T12:00:00Z') RETURNING 1",
            )
        await query(dsn, "INSERT INTO followers (name, position) VALUES ('mail_9', 3) RETURNING 1")

        health = (await api.http.get("/health/projections")).json()
        listed = (await api.http.get("/v1/admin/projections", headers=ADMIN)).json()
        metrics = (await api.http.get("/metrics")).text

    assert health["status"] == "degraded"
    for found in (health["followers"], listed["items"]):
        of = {one["name"]: (one["status"], one["mismatches"], one["verified_at"]) for one in found}
        assert of["mail"] == ("degraded", 2, "2026-03-01T12:00:00Z")
        assert of["audit"] == ("up", 0, "2026-03-01T12:00:00Z")
        assert of["funnel"] == of["relay"] == ("up", None, None)
    versions = {one["name"]: (one["version"], one["status"]) for one in listed["items"]}
    assert (versions["audit"], versions["mail_9"]) == ((1, "up"), (9, "later"))
    assert 'registrar_projection_mismatches{projection="mail"} 2.0' in metrics
    assert 'registrar_projection_mismatches{projection="audit"} 0.0' in metrics
    assert 'registrar_projection_verified_timestamp_seconds{projection="mail"} 1.7723664e+09' in metrics
    assert 'projection="funnel"' not in metrics


@pytest.mark.parametrize(("interval", "runs"), [("0", False), ("1d", True)])
async def test_it_runs_in_the_process_that_leads_unless_it_is_off(dsn: str, interval: str, runs: bool) -> None:
    async with open_api(dsn, verify_interval=interval):
        leads = (
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objid = hashtext('{}')::oid"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )

        async def others_run() -> bool:
            return await query(dsn, leads.format("deadlines")) == [(1,)]

        async def as_expected() -> bool:
            return await query(dsn, leads.format("verification")) == [(int(runs),)]

        await eventually(others_run)
        await eventually(as_expected)
