"""Two that follow the log, and the leader is stopped: the other takes over, and the old one does nothing twice
(B21)."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import datetime, timedelta
from itertools import count, groupby
from typing import Any
from uuid import uuid4

import psutil  # type: ignore[import-untyped]
import pytest

from application.answers import Answer, Handle
from application.commands import Command
from application.ports import Context, MailRequest, entries_of
from domain.mail_saga import MailSaga
from entrypoints.queries.followers import followers_with
from infrastructure.event_store.store import EventStore
from infrastructure.event_store.tail import LogTail
from infrastructure.followers import process_manager
from infrastructure.followers.leadership import lead
from infrastructure.followers.process_manager import ProcessManager
from infrastructure.followers.relay import Relay
from infrastructure.followers.turns import Turns
from infrastructure.postgres.connection import Connection
from infrastructure.postgres.notifications import Notifications
from infrastructure.settings.limits import parse_limit
from infrastructure.settings.settings import Settings
from projections.deadlines import Deadlines, DueLook
from tests.faults.scene import Scene
from tests.integration.test_follower import end, running
from tests.support.facts import (
    CLIENT,
    REGISTRATION,
    email_dispatched,
    email_verified,
    eventually,
    mail_requested,
    otp_issued,
    registered,
    saga_started,
    stream,
)
from tests.support.log import query
from tests.support.scenarios import InMemoryService
from tests.support.smtp_stub import SmtpStub

FOLLOWERS = followers_with(
    Settings.from_environment({"REGISTRAR_DATABASE_URL": "postgresql://a-server", "REGISTRAR_MASTER_KEY": "00" * 32})
)
VERIFIES = 1
"""A leader that is no follower: who verifies read models in the background."""

LEADERS = (
    "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND classid = hashtext('registrar follower')::oid"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)

# Every step of every follower, and whose session made it.
KEEP_MOVES = """
    CREATE TABLE moves (number bigserial, name text, since bigint, upto bigint, session int);
    CREATE FUNCTION keep_move() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO moves (name, since, upto, session) VALUES (NEW.name, OLD.position, NEW.position, pg_backend_pid());
        RETURN NULL;
    END $$;
    CREATE TRIGGER keep_move AFTER UPDATE ON followers FOR EACH ROW
        WHEN (OLD.position IS DISTINCT FROM NEW.position) EXECUTE FUNCTION keep_move()
"""


async def leaders(dsn: str) -> set[int]:
    """The sessions that lead, each in something or in several things."""
    return {row[0] for row in await query(dsn, LEADERS)}


async def until_led(dsn: str, *, by_others_than: set[int]) -> set[int]:
    async def led() -> set[int] | None:
        found = [row[0] for row in await query(dsn, LEADERS)]
        all_are_led = len(found) == len(FOLLOWERS) + VERIFIES
        return set(found) if all_are_led and not set(found) & by_others_than else None

    found: set[int] = await eventually(led, within=60)
    return found


def copies(sink: SmtpStub) -> Counter[bytes]:
    """Mails per recipient."""
    return Counter(mail.recipients[0] for mail in sink.mails)


@pytest.mark.fault("B21")
@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_when_a_leader_is_stopped_another_takes_over_and_nothing_is_done_twice_when_it_goes_on(
    scene: Scene, dsn: str
) -> None:
    await query(dsn, KEEP_MOVES)
    client = await scene.client_within()
    numbers = count()

    async def register(people: int) -> None:
        for _ in range(people):
            await scene.accepted(client, f"person-{next(numbers)}@example.com")

    async def all_mailed() -> bool:
        return len(copies(scene.sink)) == await scene.recorded("registration.user_registered")

    # given: a leader at work, and a standby; whoever is stopped in the middle of a mail finds time to finish it
    options = {"statement_timeout": "2", "send_timeout": "60"}
    first = await scene.fleet.process(**options)
    old = await until_led(dsn, by_others_than=set())
    second = await scene.fleet.process(**options)
    registering = asyncio.create_task(register(40))
    await eventually(lambda: len(scene.sink.mails) > 5, within=60)

    # when: the leader is stopped in the middle
    first.pause()
    await eventually(lambda: psutil.Process(first.pid).status() == psutil.STATUS_STOPPED)
    await registering
    new = await until_led(dsn, by_others_than=old)

    # then: the other one does the work
    sent = len(scene.sink.mails)
    await register(1)
    await eventually(lambda: len(scene.sink.mails) > sent, within=60)

    # when: it goes on, in the belief that it leads
    first.go_on()
    await register(10)
    await eventually(all_mailed, within=60)
    assert await leaders(dsn) == new

    # and: it takes over again when the other one goes
    assert await second.stop() == 0
    await until_led(dsn, by_others_than=old | new)
    await register(1)
    await eventually(all_mailed, within=60)
    await scene.fleet.until_caught_up()
    assert first.is_running

    # then: every mail went out once
    assert set(copies(scene.sink).values()) == {1}
    # and every follower made every step once, in order, from where the one before had left it
    moves = await query(dsn, "SELECT name, since, upto, session FROM moves ORDER BY name, number")
    for _, steps in groupby(moves, key=lambda move: move[0]):
        at = 0
        for _, since, upto, _ in steps:
            assert since == at < upto
            at = upto
    made_by = {session for *_, session in moves}
    assert made_by & old
    assert made_by & new
    # and everything else holds, such as that the read models are what the log says
    await scene.must_hold(refold=True)


@pytest.mark.fault("B21")
async def test_a_relay_that_waits_for_a_hand_over_goes_on_using_the_session_that_makes_it_the_leader(
    dsn: str, store: EventStore
) -> None:
    await store.append(entries_of(stream(MailSaga.stream_id(REGISTRATION), saga_started(), mail_requested()), CLIENT))
    under_way, last_used = asyncio.Event(), "SELECT state_change FROM pg_stat_activity WHERE application_name = %s"

    async def hand_over(_: MailRequest) -> None:
        under_way.set()
        await asyncio.get_running_loop().create_future()

    notifications = Notifications(dsn)
    relay = Relay(
        tail=store,
        notifications=notifications,
        hand_over=hand_over,
        until_ready=never,
        turns=Turns(parse_limit("mails=off")),
        finish_within=NOW,
    )
    async with running(notifications.run()), running(lead(relay, dsn)):
        await under_way.wait()
        for _ in range(2):
            before = await query(dsn, last_used, "registrar relay")

            async def is_used(before: Any = before) -> bool:
                return bool(await query(dsn, last_used, "registrar relay") > before)

            await eventually(is_used)


@pytest.mark.fault("B21")
@pytest.mark.parametrize("recorded", [False, True], ids=["not yet recorded", "recorded"])
async def test_a_saga_that_loses_its_session_while_a_command_runs_has_its_effect_once(
    dsn: str, store: EventStore, recorded: bool
) -> None:
    await store.append(entries_of(stream(REGISTRATION, registered(), otp_issued(), email_verified()), CLIENT))
    runs, under_way, cancelled = 0, asyncio.Event(), asyncio.Event()

    async def hold_the_first(handle: Handle, command: Command, context: Context) -> Answer:
        nonlocal runs
        runs += 1
        if runs > 1:
            return await handle(command, context)
        if recorded:
            await handle(command, context)
        under_way.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError("nobody ends this wait")

    service, notifications = InMemoryService(), Notifications(dsn)
    saga = ProcessManager(
        store=store,
        tail=store,
        handlers=service.process(store, around=[hold_the_first]),
        notifications=notifications,
        clock=service.clock,
        policy=service.policy,
        due=Deadlines().due,
    )
    activated = "SELECT 1 FROM events WHERE topic = 'registration.account_activated'"
    async with running(notifications.run()), running(lead(saga, dsn)):
        await under_way.wait()
        assert bool(await query(dsn, activated)) == recorded

        await end(dsn, "registrar mail-saga")

        await cancelled.wait()
        await eventually(lambda: query(dsn, "SELECT 1 FROM followers WHERE name = 'mail-saga' AND position > 0"))
    assert runs == 2
    assert await query(dsn, activated) == [(1,)]


async def test_a_saga_at_rest_looks_when_the_next_deadline_is_due(store: EventStore, dsn: str) -> None:
    service, notifications, looks = InMemoryService(), Notifications(dsn), 0

    async def due_soon(_connection: Connection, upto: datetime, _limit: int) -> list[DueLook]:
        nonlocal looks
        looks += 1
        soon = service.clock() + timedelta(milliseconds=20)
        assert soon <= upto
        return [DueLook(uuid4(), uuid4(), 1, None, soon)]

    saga = ProcessManager(
        store=store,
        tail=store,
        handlers=service.process(store),
        notifications=notifications,
        clock=service.clock,
        policy=service.policy,
        due=due_soon,
    )
    async with running(notifications.run()), running(lead(saga, dsn)):
        await eventually(lambda: looks >= 20, within=20)  # every three seconds it would take a minute


async def test_a_saga_notes_what_has_no_other_effect_together_with_the_next_registration(
    store: EventStore, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_manager, "LEFT_FOR", timedelta(hours=1))
    service, notifications, tail, looked = InMemoryService(), Notifications(dsn), LogTail(store), set()
    read = tail.read

    async def reading(after: int, *arguments: Any) -> Any:
        found = await read(after, *arguments)
        looked.add(found[1])
        return found

    monkeypatch.setattr(tail, "read", reading)
    saga = ProcessManager(
        store=store,
        tail=tail,
        handlers=service.process(store),
        notifications=notifications,
        clock=service.clock,
        policy=service.policy,
        due=Deadlines().due,
    )
    notes = "SELECT notification_id FROM events WHERE topic LIKE 'mail_saga.%'"
    async with running(notifications.run()), running(lead(saga, dsn)):
        await store.append(entries_of(stream(REGISTRATION, registered(), otp_issued()), CLIENT))
        await eventually(lambda: query(dsn, notes))
        dispatched = await store.append(entries_of(stream(REGISTRATION, email_dispatched(), after=2), CLIENT))
        await eventually(lambda: dispatched in looked)
        noted_before = await query(dsn, notes)

        last = await store.append(entries_of(stream(uuid4(), registered(), otp_issued()), CLIENT))

        await eventually(lambda: query(dsn, "SELECT 1 FROM followers WHERE name = 'mail-saga' AND position = %s", last))
    assert len(noted_before) == 2
    assert len(await query(dsn, notes)) == 5
    assert await query(dsn, "SELECT count(*) FROM blocks") == [(5,)]


NOW = timedelta(0)


async def never() -> None:
    raise AssertionError("no mail server was away")
