"""Webhooks: what sends them, and what their commands work on."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, NamedTuple
from uuid import uuid4

import msgspec

from application.operator_acts import DISABLE_WEBHOOK, ENABLE_WEBHOOK, REPLAY_WEBHOOK, TEST_WEBHOOK
from domain.recorded import Position
from entrypoints.bootstrap.acts import record_act
from entrypoints.bootstrap.core import Core
from entrypoints.bootstrap.database import check_schema, dsn_to_read, first_connection
from infrastructure.event_store.reader import head_of
from infrastructure.settings.addresses import Reachable
from infrastructure.settings.settings import Settings
from infrastructure.settings.webhooks import WebhookEndpoint
from infrastructure.webhooks import records
from infrastructure.webhooks.calls import Calls, NotDelivered
from infrastructure.webhooks.follower import Webhooks
from infrastructure.webhooks.records import Standing
from infrastructure.webhooks.signing import public_keys

__all__ = ["BeyondTheLog", "ListedEndpoint", "NotDelivered", "WebhookDesk", "webhook_desk", "webhooks"]

TEST_TYPE: Final = "registrar.test.v1"
"""Of the event that `webhooks test` sends; it is in no log."""


def calls_to(settings: Settings) -> Mapping[str, Calls]:
    """The calls to each endpoint, by its name."""
    endpoints = settings.webhook_endpoints
    encrypts = any(one.url.startswith("https:") for one in endpoints)
    tls = ssl.create_default_context() if encrypts else None
    return {one.name: Calls(one, Reachable(settings.webhook_networks), tls=tls) for one in endpoints}


async def webhooks(core: Core, settings: Settings) -> Webhooks:
    """What sends to the endpoints. One that is new gets what is recorded from now on.

    Raises:
        CannotStart: the database is away.
    """
    calls = calls_to(settings)
    async with first_connection(core.database.dsn) as connection:
        await records.begin(connection, list(calls))
    return Webhooks(
        tail=core.tail,
        notifications=core.notifications,
        endpoints=calls,
        clock=core.clock,
        on_attempt=core.metrics.webhook,
    )


# --- For operators ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ListedEndpoint:
    """An endpoint, and how it fares; see `infrastructure.webhooks.records.Standing`.

    Attributes:
        where: host and port; None: it is not in the settings here.
        state: "new" until a process that sends has seen it; "gone": it has answered 410.
        behind: positions of the log that are not delivered or passed over; not each of them is a call.
        retry_at: of the next try; None, too, while it is under way.
        public_keys: what it verifies `v1a` with.
    """

    name: str
    where: str | None
    state: Literal["up", "failing", "disabled", "gone", "new"]
    position: Position | None
    behind: int | None
    failing_since: datetime | None
    failures: int
    failure: str | None
    retry_at: datetime | None
    delivered_at: datetime | None
    public_keys: tuple[str, ...]


class BeyondTheLog(Exception):
    """There is no such position.

    Attributes:
        head: the last one.
    """

    def __init__(self, head: Position) -> None:
        super().__init__(head)
        self.head = head


class Replay(NamedTuple):
    """Where an endpoint goes on.

    Attributes:
        skipped: the first and the last position that it had not reached, and is sent nothing of now; None: none.
    """

    begins: Position
    skipped: tuple[Position, Position] | None


@dataclass(frozen=True, slots=True)
class WebhookDesk:
    """For a command about webhooks."""

    endpoints: Mapping[str, WebhookEndpoint]
    _calls: Mapping[str, Calls]
    _dsn: str = field(repr=False)
    _statement_timeout: timedelta

    async def names(self) -> frozenset[str]:
        """Of the endpoints that are in the settings, or ever were."""
        async with first_connection(self._dsn, read_only=True) as connection:
            return frozenset(self.endpoints.keys() | await records.standings(connection))

    async def list(self) -> list[ListedEndpoint]:
        """All of them, by name."""
        async with first_connection(self._dsn, read_only=True) as connection:
            found, head = await records.standings(connection), await head_of(connection)
        return [self._listed(name, found.get(name), head) for name in sorted(self.endpoints.keys() | found)]

    def _listed(self, name: str, found: Standing | None, head: Position) -> ListedEndpoint:
        endpoint = self.endpoints.get(name)
        one = found or Standing(name, head, 1)
        return ListedEndpoint(
            name=name,
            where=None if endpoint is None else self._calls[name].where,
            state=_state(found),
            position=None if found is None else found.position,
            behind=None if found is None else max(0, head - found.position),
            failing_since=one.failing_since,
            failures=one.failures,
            failure=one.failure,
            retry_at=one.retry_at or one.next_try_at,
            delivered_at=one.delivered_at,
            public_keys=() if endpoint is None else public_keys(endpoint),
        )

    async def test(self, name: str, reason: str | None) -> bool:
        """Call an endpoint that is in the settings once, with an event that is in no log. If it is failing, and takes
        that, it is tried again at once.

        Returns whether it is.

        Raises:
            NotDelivered: with what went wrong.
            Unavailable: the act could not be recorded, so nothing was sent.
        """
        await self._record(TEST_WEBHOOK, name, reason)
        test_id = uuid4()
        event = {"specversion": "1.0", "id": test_id, "source": "/registrar", "type": TEST_TYPE}
        event |= {"time": datetime.now(UTC), "datacontenttype": "application/json", "data": {}}
        calls = self._calls[name]
        try:
            await calls.post(f"test-{test_id}", msgspec.json.encode(event))
        finally:
            calls.drop()
        async with first_connection(self._dsn) as connection:
            return await records.wake(connection, name)

    async def replay(self, name: str, first: Position, reason: str | None) -> Replay | None:
        """See `infrastructure.webhooks.records.replay`; None if no process has sent to it yet.

        Raises:
            BeyondTheLog: the position is none yet, nor the next one.
        """
        async with first_connection(self._dsn, read_only=True) as connection:
            found, head = (await records.standings(connection)).get(name), await head_of(connection)
        if first > head + 1:
            raise BeyondTheLog(head)
        await self._record(REPLAY_WEBHOOK, f"{name} from {first}", reason)
        async with first_connection(self._dsn) as connection:
            begins = await records.replay(connection, name, first)
        if begins is None or found is None:
            return None
        return Replay(begins, skipped=(found.position + 1, begins - 1) if begins > found.position + 1 else None)

    async def disable(self, name: str, reason: str | None) -> bool:
        """See `infrastructure.webhooks.records.disable`."""
        await self._record(DISABLE_WEBHOOK, name, reason)
        async with first_connection(self._dsn) as connection:
            return await records.disable(connection, name, "operator")

    async def enable(self, name: str, reason: str | None) -> bool:
        """See `infrastructure.webhooks.records.enable`."""
        await self._record(ENABLE_WEBHOOK, name, reason)
        async with first_connection(self._dsn) as connection:
            return await records.enable(connection, name)

    async def _record(self, act: str, what: str, reason: str | None) -> None:
        """What is done, and to which endpoint: an act has no field for that. Not where it could not be done."""
        async with first_connection(self._dsn) as connection:
            await records.check_right(connection)
        told = what if reason is None else f"{what}: {reason}"
        await record_act(self._dsn, act, told, statement_timeout=self._statement_timeout)


def _state(found: Standing | None) -> Literal["up", "failing", "disabled", "gone", "new"]:
    if found is None:
        return "new"
    if found.disabled_by is not None:
        return "disabled" if found.disabled_by == "operator" else "gone"
    return "up" if found.failing_since is None else "failing"


@asynccontextmanager
async def webhook_desk(settings: Settings) -> AsyncIterator[WebhookDesk]:
    """It runs nothing, and needs no secret but those of the webhooks.

    Raises:
        CannotStart, BadDataDirectory, DatabaseDidNotStart: one line each, fit to show.
    """
    async with AsyncExitStack() as stack:
        dsn = await dsn_to_read(settings, stack)
        await check_schema(dsn)
        endpoints = {one.name: one for one in settings.webhook_endpoints}
        yield WebhookDesk(endpoints, calls_to(settings), dsn, settings.statement_timeout)
