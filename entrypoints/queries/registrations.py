"""Registrations as the read model has them, opened for those who may see the person."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from uuid import UUID

from application.addresses import canonical_address
from application.ports import Person, Unavailable
from domain.policy import Policy
from domain.recorded import Position, Recorded
from domain.registration import BEGINNINGS
from infrastructure.crypto.keyring import Keyring
from infrastructure.event_store.reader import COLUMNS, RecordedRow
from infrastructure.postgres.batching import Batcher
from infrastructure.postgres.connection import Connection, ReconnectingConnection
from infrastructure.postgres.notifications import LOOK_ANYWAY, Notifications
from infrastructure.postgres.pool import QueryPool
from projections.mail import Mail, Mails
from projections.paging import Page
from projections.registrations import Registrations, RegistrationView, folded

# Row by row through the index: see `projections.table.Table.load`.
_IN_LOG = f"""
    SELECT e.*, k.wrapped
    FROM unnest(%s::uuid[]) AS wanted (id)
    CROSS JOIN LATERAL (
        SELECT {COLUMNS} FROM public.events WHERE originator_id = wanted.id ORDER BY originator_version
    ) AS e
    LEFT JOIN public.personal_keys AS k ON k.registration_id = wanted.id
"""  # noqa: S608 - a constant

MARGIN = timedelta(milliseconds=500)
"""What a wait for the read model leaves of the request's time, so that its own response comes before the timeout's."""


class ReadModelBehind(Unavailable):
    """The read model has not reached the position that the caller asked for."""


@dataclass(frozen=True, slots=True)
class OpenedRegistration:
    """A registration with its person.

    Attributes:
        person: None once the person was erased.
        otp_expires_at: None until a mail server has the mail; a code that is not handed over does not expire.
        attempts_left: of the current code; 0, too, where there has never been one.
    """

    view: RegistrationView
    person: Person | None
    otp_expires_at: datetime | None
    attempts_left: int


@dataclass(frozen=True, slots=True)
class Story:
    """A registration and every mail of it."""

    registration: OpenedRegistration
    mails: list[Mail]


class RegistrationQueries:
    """
    Raises (all of them):
        Unavailable, one of `AWAY`: see `infrastructure.postgres.pool.QueryPool.ask`.
    """

    def __init__(
        self,
        pool: QueryPool,
        connection: ReconnectingConnection,
        *,
        keyring: Keyring,
        policy: Policy,
        notifications: Notifications,
        request_timeout: timedelta,
        decode: Callable[[RecordedRow], Recorded],
    ) -> None:
        """
        Args:
            decode: see `infrastructure.event_store.reader.LogReader.decode`.
            connection: for the queries by id, which are gathered while the one before is under way. It is never waited
                for longer than its statements may take: a batch that hung would hold up every later one.
            request_timeout: no wait for the read model lasts longer.
        """
        self._pool = pool
        self._connection = connection
        self._keyring = keyring
        self._policy = policy
        self._notifications = notifications
        self._longest_wait = max(timedelta(0), request_timeout - MARGIN)
        self._registrations, self._mails = Registrations(), Mails()
        self._decode = decode
        self._finds: Batcher[UUID, tuple[RegistrationView | None, Position]] = Batcher(
            self._find, name="queries", max_batch=200, max_waiting=2000
        )

    async def close(self) -> None:
        await self._finds.close()
        await self._connection.close()

    async def by_id(self, registration_id: UUID) -> OpenedRegistration | None:
        """None if there is none of this id."""
        view, _ = await self._finds.do(registration_id)
        return None if view is None else self._opened(view)

    async def by_id_at(
        self, registration_id: UUID, min_position: Position, wait: timedelta
    ) -> OpenedRegistration | None:
        """`by_id`, once the read model shows everything up to `min_position`.

        Raises:
            ReadModelBehind: that did not happen within `wait`.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + min(wait, self._longest_wait).total_seconds()
        while True:
            remaining = timedelta(seconds=max(0.0, deadline - loop.time()))
            await self._notifications.wait_past(
                Registrations.name, min_position - 1, within=min(remaining, LOOK_ANYWAY)
            )
            view, position = await self._finds.do(registration_id)
            if position >= min_position:
                return None if view is None else self._opened(view)
            if loop.time() >= deadline:
                raise ReadModelBehind("the read model is behind")

    async def story(self, registration_id: UUID) -> Story | None:
        """The registration with every mail of it; None if the read model has none of this id."""

        async def select(connection: Connection) -> Story | None:
            views, _ = await self._registrations.find(connection, [registration_id])
            view = views.get(registration_id)
            if view is None:
                return None
            return Story(self._opened(view), await self._mails.of_registration(connection, registration_id))

        return await self._pool.ask(select)

    async def search(
        self, *, status: str | None, email: str | None, cursor: str | None, limit: int
    ) -> Page[OpenedRegistration]:
        """Registrations, newest first.

        Args:
            email: only those of this address; its duplicates are found, too.

        Raises:
            ValueError: malformed cursor.
        """
        claim_ids = None if email is None else claims_of(self._keyring, email)
        page = await self._pool.ask(
            lambda connection: self._registrations.search(
                connection, status=status, claim_ids=claim_ids, cursor=cursor, limit=limit
            )
        )
        return Page([self._opened(view) for view in page.items], page.next_cursor)

    async def _find(self, wanted: Sequence[UUID]) -> Sequence[tuple[RegistrationView | None, Position] | Exception]:
        views, position = await self._connection.execute_idempotent(
            partial(self._find_in_model_or_log, list(set(wanted)))
        )
        return [(views.get(registration_id), position) for registration_id in wanted]

    async def _find_in_model_or_log(
        self, ids: Sequence[UUID], connection: Connection
    ) -> tuple[dict[UUID, RegistrationView], Position]:
        """What the model has not come to yet is shown as it began, and not as it is by now: what is read next is the
        model's, which may be no further. What the model has passed over (its stream is parked) is shown as it is."""
        views, position = await self._registrations.find(connection, ids)
        missing = [registration_id for registration_id in ids if registration_id not in views]
        if missing:
            for events, wrapped in await in_log(connection, missing, self._decode):
                shown = events if events[0].position <= position else events[:1]
                views[events[0].event.originator_id] = folded(shown, wrapped)
        return views, position

    def _opened(self, view: RegistrationView) -> OpenedRegistration:
        has_code = view.mail != "NONE" and not view.locked
        return OpenedRegistration(
            view,
            person=self._person(view),
            otp_expires_at=None if view.handed_over_at is None else view.handed_over_at + self._policy.otp_ttl,
            attempts_left=max(0, self._policy.otp_max_attempts - view.rejections) if has_code else 0,
        )

    def _person(self, view: RegistrationView) -> Person | None:
        if view.sealed is None or view.wrapped is None:
            return None
        return self._keyring.open(view.registration_id, view.sealed, view.wrapped)


async def in_log(
    connection: Connection, ids: Sequence[UUID], decode: Callable[[RecordedRow], Recorded]
) -> Sequence[tuple[list[Recorded], bytes | None]]:
    """The events of those that are registrations, each with its personal key.

    Args:
        decode: see `infrastructure.event_store.reader.LogReader.decode`.
    """
    cursor = connection.cursor(binary=True)
    await cursor.execute(_IN_LOG, (ids,))
    keys: dict[UUID, bytes | None] = {}
    streams: dict[UUID, list[Recorded]] = {}
    for *columns, wrapped in await cursor.fetchall():
        row = RecordedRow._make(columns)
        keys[row.stream_id] = wrapped
        streams.setdefault(row.stream_id, []).append(decode(row))
    return [
        (events, keys[stream_id]) for stream_id, events in streams.items() if isinstance(events[0].event, BEGINNINGS)
    ]


def claims_of(keyring: Keyring, email: str) -> list[UUID]:
    """The claims of an address: its own and its duplicates'."""
    address = canonical_address(email)
    return [keyring.claim_id(address), keyring.claim_id(address, duplicate=True)]
