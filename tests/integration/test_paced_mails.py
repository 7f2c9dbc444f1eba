"""The limit of all mails: past it they wait, none is dropped, and nobody takes them for lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import UUID, uuid5

import pytest
from structlog.testing import capture_logs

from application.ports import MailRequest, entries_of
from domain.mail_saga import MailSaga
from domain.recorded import Position
from infrastructure.event_store.store import EventStore
from infrastructure.event_store.tail import LogTail
from infrastructure.followers.leadership import LeaderSession
from infrastructure.followers.relay import Relay
from infrastructure.followers.turns import QUIET, Turns, waiting_after
from infrastructure.postgres.connection import connect
from infrastructure.postgres.notifications import Notifications
from infrastructure.settings.limits import Limit, parse_limit
from tests.support.facts import (
    CLIENT,
    REGISTRATION,
    MovableClock,
    email_dispatched,
    eventually,
    mail_requested,
    otp_issued,
    registered,
    saga_started,
    stream,
)
from tests.support.http import Api, open_api
from tests.support.log import query

ONE_A_SECOND = parse_limit("mails=1/1s burst 2")


class Leader:
    """A relay that leads, with a clock moved by hand, and what it has handed over."""

    def __init__(self, dsn: str, store: EventStore, limit: Limit) -> None:
        self.now = 1000.0
        self.handed_over: list[UUID] = []
        self.outcomes: list[str] = []
        self.turns = Turns(limit, on_turn=lambda _, outcome: self.outcomes.append(outcome), clock=lambda: self.now)
        self.relay = Relay(
            tail=LogTail(store),
            notifications=Notifications(dsn),
            hand_over=self._hand_over,
            until_ready=asyncio.Event().wait,  # type: ignore[arg-type]
            turns=self.turns,
        )

    async def _hand_over(self, request: MailRequest) -> None:
        self.handed_over.append(request.registration_id)


@asynccontextmanager
async def leading(dsn: str, store: EventStore, limit: Limit = ONE_A_SECOND) -> AsyncIterator[Leader]:
    leader = Leader(dsn, store, limit)
    async with await connect(dsn, name="relay", statement_timeout=timedelta(seconds=10)) as connection:
        work = asyncio.create_task(leader.relay.work(LeaderSession(connection)))
        try:
            yield leader
        finally:
            work.cancel()
            await asyncio.wait({work}, timeout=30)
            assert work.cancelled()


PEOPLE = [uuid5(REGISTRATION, str(number)) for number in range(5)]


async def ask_for_mails(store: EventStore) -> list[Position]:
    """Positions of the requests."""
    return [
        await store.append(entries_of(stream(MailSaga.stream_id(one), saga_started(one), mail_requested(one)), CLIENT))
        for one in PEOPLE
    ]


async def noted(dsn: str) -> dict[str, Position]:
    return dict(await query(dsn, "SELECT name, position FROM followers"))


async def test_past_the_burst_mails_wait_and_go_out_in_their_order(dsn: str, store: EventStore) -> None:
    positions = await ask_for_mails(store)
    async with leading(dsn, store) as leader:
        await eventually(lambda: len(leader.turns) == 3)
        await eventually(lambda: leader.handed_over == PEOPLE[:2])

        async def saved() -> bool:
            return await noted(dsn) == {"relay": positions[2] - 1, "relay__waiting": positions[2] - 1}

        await eventually(saved)
        for count in (3, 4, 5):
            leader.now += 1
            await eventually(lambda count=count: leader.handed_over == PEOPLE[:count])  # type: ignore[misc]

        leader.now += QUIET.total_seconds()

        async def over() -> bool:
            return await noted(dsn) == {"relay": positions[4]}

        await eventually(over)
    assert leader.outcomes == ["passed"] * 2 + ["waited"] * 3


async def test_mails_past_the_budget_of_a_mailbox_have_nobody_else_wait(dsn: str, store: EventStore) -> None:
    """They stand in the line with the others, or their state would tell that they are not sent."""
    withheld, sent = PEOPLE[:3], PEOPLE[3:]
    for one in PEOPLE:
        issue = otp_issued(withheld=one in withheld)
        await store.append(entries_of(stream(one, registered(), issue), CLIENT))
    await ask_for_mails(store)
    async with leading(dsn, store, parse_limit("mails=1/1s burst 1")) as leader:
        await eventually(lambda: leader.handed_over == PEOPLE[:4])
        assert leader.outcomes == ["passed", "waited"]

        leader.now += 1
        await eventually(lambda: leader.handed_over == [*withheld, *sent])


async def test_a_withheld_mail_waits_as_long_as_one_that_is_sent(dsn: str, store: EventStore) -> None:
    for one in PEOPLE:
        issue = otp_issued(withheld=one == PEOPLE[1])
        await store.append(entries_of(stream(one, registered(), issue), CLIENT))
    await ask_for_mails(store)
    async with leading(dsn, store, parse_limit("mails=1/1s burst 1")) as leader:
        await eventually(lambda: leader.handed_over == PEOPLE[:1])
        await eventually(lambda: len(leader.turns) == 4)

        leader.now += 1
        await eventually(lambda: leader.handed_over == PEOPLE[:3])


async def test_the_log_has_one_line_when_mails_begin_to_wait_and_one_when_none_do(dsn: str, store: EventStore) -> None:
    await ask_for_mails(store)
    with capture_logs() as lines:
        async with leading(dsn, store) as leader:
            for _ in range(3):
                await eventually(lambda: leader.turns.paced)
                leader.now += 1
            await eventually(lambda: len(leader.handed_over) == 5)
            leader.now += QUIET.total_seconds()
            await eventually(lambda: not leader.turns.paced)

    told = [(line["event"], line["limit"]) for line in lines if line["event"].startswith("mails.")]
    assert told == [(event, "mails=1/1s burst 2 on") for event in ("mails.paced", "mails.paced_no_more")]


@pytest.mark.parametrize(("mode", "outcomes"), [("shadow", ["passed"] * 2 + ["would-wait"] * 3), ("off", [])])
async def test_a_limit_that_only_counts_or_is_off_has_nobody_wait(
    dsn: str, store: EventStore, mode: str, outcomes: list[str]
) -> None:
    await ask_for_mails(store)
    entry = "mails=off" if mode == "off" else f"mails=1/1s burst 2 {mode}"
    async with leading(dsn, store, parse_limit(entry)) as leader:
        await eventually(lambda: sorted(leader.handed_over) == sorted(PEOPLE))

    assert leader.outcomes == outcomes


async def test_the_next_leader_goes_on_where_mails_wait_and_knows_what_was_sent_lately(
    dsn: str, store: EventStore
) -> None:
    positions, one_an_hour = await ask_for_mails(store), parse_limit("mails=1/1h burst 2")
    async with leading(dsn, store, one_an_hour) as first:

        async def saved() -> bool:
            return await noted(dsn) == {"relay": positions[2] - 1, "relay__waiting": positions[2] - 1}

        await eventually(saved)
    sent = (registered(), otp_issued(), email_dispatched())
    for one in first.handed_over:  # what came of the first two, a moment ago by the database's clock
        await store.append(entries_of(stream(one, *sent), CLIENT))

    async with leading(dsn, store, one_an_hour) as second:
        await eventually(lambda: len(second.turns) == 3)
        assert second.turns.paced
        second.now += timedelta(hours=4).total_seconds()
        await eventually(lambda: second.handed_over == PEOPLE[2:])

    assert second.outcomes == ["waited"] * 3  # with a full burst two would have passed


# --- The whole service ----------------------------------------------------------------------------

NOBODYS_TURN = "mails=1/31d burst 2"


async def told_of_the_relay(api: Api) -> dict[str, object]:
    followers = (await api.http.get("/health/projections")).json()["followers"]
    return next(one for one in followers if one["name"] == "relay")


async def requested(dsn: str) -> int:
    [(count,)] = await query(dsn, "SELECT count(*) FROM events WHERE topic = 'mail_saga.mail_requested'")
    return int(count)


async def test_a_mail_that_waits_is_neither_lost_nor_stuck_and_its_code_is_good_in_the_end(
    dsn: str, clock: MovableClock
) -> None:
    """The second look is after two minutes, and a code that has not gone out is stale after ten."""
    async with open_api(dsn, clock=clock, limits=NOBODYS_TURN) as api:
        expiring = [await api.registered(f"{name}@example.com") for name in ("ada", "grace")]
        clock.move(timedelta(hours=1))
        waiting = (await api.register("mary@example.com")).json()["registration_id"]

        async def is_paced() -> bool:
            return await waiting_of(dsn) is not None

        await eventually(is_paced)
        clock.move(timedelta(hours=23, minutes=30))
        for one in expiring:  # so the saga has looked at who is due
            await api.becomes(one, status="CANCELLED")

        async def nobody_is_stuck() -> bool:  # as soon as the read model knows that those two have ended
            return "registrar_stuck_registrations 0.0" in (await api.http.get("/metrics")).text

        await eventually(nobody_is_stuck, within=20)
        metrics = (await api.http.get("/metrics")).text
        relay = await told_of_the_relay(api)
        mail = (await api.http.get("/health/mail")).json()

        assert await requested(dsn) == 3
        assert 'registrar_limit_total{outcome="waited",policy="mails"} 1.0' in metrics
        assert (relay["paced"], relay["status"]) == (True, "up")
        assert mail["paced"] is True

    async with open_api(dsn, clock=clock, limits="mails=off") as api:
        await api.becomes(waiting, mail="SENT")
        assert await requested(dsn) == 3
        assert (await api.verify(waiting, await api.code("mary@example.com"))).status_code == 200


async def waiting_of(dsn: str) -> Position | None:
    async with await connect(dsn, name="test", statement_timeout=timedelta(seconds=10)) as connection:
        return await waiting_after(connection)
