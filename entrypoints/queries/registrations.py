"""Reading: what the API asks the read models, shared between callers and opened for those who may see it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, TypeVar
from uuid import UUID

import psycopg
from psycopg.rows import tuple_row
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from application.addresses import canonical_address, masked_address
from application.ports import Person, Unavailable
from domain.recorded import Position
from domain.registration import Status
from entrypoints.api.responses import (
    AdminRegistration,
    AdminRegistrationStory,
    AuditEntries,
    Followers,
    FollowerState,
    FunnelBuckets,
    Mails,
    Registrations,
    RegistrationState,
    StrayMessages,
    funnel_bucket,
)
from entrypoints.bootstrap import followers_with
from entrypoints.service import Service
from infrastructure.postgres.batching import Batcher
from infrastructure.postgres.connection import GRACE, Connection, Line, cut_after
from infrastructure.postgres.notifications import LOOK_ANYWAY
from projections.audit import Audit
from projections.deadlines import Deadlines
from projections.funnel import Funnel
from projections.mail import Mails as SentMails
from projections.registrations import Registrations as RegistrationsModel
from projections.registrations import RegistrationView

T = TypeVar("T")

MARGIN = timedelta(milliseconds=500)
"""What a wait for the read model leaves of the request's time, so that its answer is ours and not the timeout's."""

LAGGING = timedelta(minutes=1)
"""A follower that is so far behind, or a next step so long overdue, is something to look at."""

_FOLLOWERS = """
    SELECT h.position, n.name, coalesce(f.position, 0), h.position - coalesce(f.position, 0),
           greatest(0, extract(epoch FROM clock_timestamp() - e.recorded_at))::double precision,
           coalesce(p.streams, 0), f.updated_at
    FROM head AS h
    CROSS JOIN unnest(%s::text[]) AS n (name)
    LEFT JOIN followers AS f ON f.name = n.name
    LEFT JOIN events AS e ON e.notification_id = coalesce(f.position, 0) + 1
    LEFT JOIN (
        SELECT follower, count(DISTINCT stream_id) AS streams FROM parked_events GROUP BY follower
    ) AS p ON p.follower = n.name
    ORDER BY n.name
"""


class Behind(Unavailable):
    """The read model has not got as far as the caller wants to see."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits, or should not.

    Attributes:
        oldest_unsent: how long the registrant who has waited longest has had no mail; zero if nobody waits.
        dead_letters: mails that failed for good and wait for an operator.
        stray_messages: dead letters that are none of ours, and that nobody has discarded.
        stuck: registrations whose next step is overdue.
    """

    followers: Followers
    oldest_unsent: timedelta
    dead_letters: int
    stray_messages: int
    stuck: int


@dataclass(frozen=True, slots=True)
class WorthARetry:
    """Of some mails that failed, those that can still be of use.

    Attributes:
        registration_ids: pending, the failed mail being that of their current code; the latest issue first.
        others: how many mails were looked at besides.
        next_cursor: brings the next mails; None if these were the last.
    """

    registration_ids: list[UUID]
    others: int
    next_cursor: str | None


class ReadModels:
    """The queries of the API.

    Raises (all of them):
        Unavailable, psycopg.OperationalError, psycopg_pool.PoolTimeout: the database is away.
    """

    def __init__(self, service: Service) -> None:
        self._pool = service.pool
        self._keyring = service.keyring
        self._policy = service.policy
        self._clock = service.clock
        self._announcements = service.announcements
        self._follower_names = followers_with(service.settings)
        self._longest_wait = max(timedelta(0), service.settings.request_timeout - MARGIN)
        self._patience = min(service.settings.statement_timeout + GRACE, service.settings.request_timeout)
        # A connection that is never waited for longer than its statements may take: a batch that hung would hold up
        # every later one.
        self._line = Line(service.dsn, name="queries", statement_timeout=service.settings.statement_timeout)
        self._finds: Batcher[UUID, tuple[RegistrationView | None, Position]] = Batcher(
            self._find, name="queries", max_batch=200, max_waiting=2000
        )

    async def close(self) -> None:
        await self._finds.close()
        await self._line.close()

    # --- The registrant -------------------------------------------------------------------------

    async def registration(self, registration_id: UUID) -> RegistrationState | None:
        """The registration as its owner sees it; None if the read model has none of this id."""
        view, _ = await self._finds.do(registration_id)
        return None if view is None else self._public(view)

    async def registration_at(
        self, registration_id: UUID, min_position: Position, wait: timedelta
    ) -> RegistrationState | None:
        """`registration`, once the read model shows everything up to `min_position`.

        Raises:
            Behind: that did not happen within `wait`.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + min(wait, self._longest_wait).total_seconds()
        while True:
            remaining = timedelta(seconds=max(0.0, deadline - loop.time()))
            await self._announcements.beyond(
                RegistrationsModel.name, min_position - 1, within=min(remaining, LOOK_ANYWAY)
            )
            view, position = await self._finds.do(registration_id)
            if position >= min_position:
                return None if view is None else self._public(view)
            if loop.time() >= deadline:
                raise Behind("the read model is behind")

    async def _find(self, wanted: Sequence[UUID]) -> Sequence[tuple[RegistrationView | None, Position] | Exception]:
        views, position = await self._line.ask(
            lambda connection: RegistrationsModel.find(connection, list(set(wanted)))
        )
        return [(views.get(registration_id), position) for registration_id in wanted]

    def _public(self, view: RegistrationView) -> RegistrationState:
        """Nothing in here depends on whether it is a duplicate."""
        person = self._person(view)
        return RegistrationState(
            registration_id=view.registration_id,
            status=view.status,  # type: ignore[arg-type]  # one of them, by the projection
            email=None if person is None else masked_address(person.email),
            mail=view.mail,  # type: ignore[arg-type]
            otp_expires_at=self._otp_expires_at(view),
            attempts_left=self._attempts_left(view),
            created_at=view.created_at,
            verified_at=view.verified_at,
            activated_at=view.activated_at,
            position=view.position,
        )

    # --- Operators ------------------------------------------------------------------------------

    async def story(self, registration_id: UUID) -> AdminRegistrationStory | None:
        """The registration with every mail of it."""

        async def select(connection: Connection) -> AdminRegistrationStory | None:
            views, _ = await RegistrationsModel.find(connection, [registration_id])
            view = views.get(registration_id)
            if view is None:
                return None
            return AdminRegistrationStory(
                self._admin(view), await SentMails.of_registration(connection, registration_id)
            )

        return await self._ask(select)

    async def search(self, *, status: str | None, email: str | None, cursor: str | None, limit: int) -> Registrations:
        """
        Raises:
            ValueError: malformed cursor.
        """
        page = await self._ask(
            lambda connection: RegistrationsModel.search(
                connection, status=status, claim_ids=self._claims(email), cursor=cursor, limit=limit
            )
        )
        return Registrations([self._admin(view) for view in page.items], page.next_cursor)

    async def audit(
        self,
        *,
        registration_id: UUID | None,
        email: str | None,
        actor: str | None,
        topic: str | None,
        correlation_id: UUID | None,
        since: datetime | None,
        until: datetime | None,
        cursor: str | None,
        limit: int,
    ) -> AuditEntries:
        """
        Raises:
            ValueError: malformed cursor.
        """
        page = await self._ask(
            lambda connection: Audit.search(
                connection,
                registration_id=registration_id,
                claim_ids=self._claims(email),
                actor=actor,
                topic=topic,
                correlation_id=correlation_id,
                since=since,
                until=until,
                cursor=cursor,
                limit=limit,
            )
        )
        return AuditEntries(page.items, page.next_cursor)

    async def mails(self, *, state: str | None, cursor: str | None, limit: int) -> Mails:
        """
        Raises:
            ValueError: malformed cursor.
        """
        page = await self._ask(lambda connection: SentMails.search(connection, state=state, cursor=cursor, limit=limit))
        return Mails(page.items, page.next_cursor)

    async def strays(self, *, cursor: str | None, limit: int) -> StrayMessages:
        """
        Raises:
            ValueError: malformed cursor.
        """
        page = await self._ask(lambda connection: SentMails.strays(connection, cursor=cursor, limit=limit))
        return StrayMessages(page.items, page.next_cursor)

    async def worth_a_retry(self, *, failures: Sequence[str] | None, cursor: str | None, limit: int) -> WorthARetry:
        """Of the next mails that failed, those for which a registration still waits.

        Args:
            failures: only mails whose last failure is one of these.
            limit: mails to look at.

        Raises:
            ValueError: malformed cursor.
        """

        async def select(connection: Connection) -> WorthARetry:
            failed = await SentMails.failed(connection, failures=failures, cursor=cursor, limit=limit)
            views, _ = await RegistrationsModel.find(connection, [mail.registration_id for mail in failed.items])
            waiting = [
                mail.registration_id
                for mail in failed.items
                if (view := views.get(mail.registration_id)) is not None
                and (view.status, view.serial) == (Status.PENDING, mail.serial)
            ]
            return WorthARetry(waiting, len(failed.items) - len(waiting), failed.next_cursor)

        return await self._ask(select)

    async def funnel(self, *, since: datetime | None, bucket: Literal["hour", "day"]) -> FunnelBuckets:
        """From `since` on; by default the last day in hours, the last 30 days in days."""
        start = since or self._clock() - (timedelta(days=1) if bucket == "hour" else timedelta(days=30))
        buckets = await self._ask(lambda connection: Funnel.funnel(connection, start, bucket))
        return FunnelBuckets([funnel_bucket(one) for one in buckets])

    # --- The service itself ---------------------------------------------------------------------

    async def followers(self) -> Followers:
        return await self._ask(lambda connection: followers_of(connection, self._follower_names))

    async def oldest_unsent(self) -> timedelta:
        """How long the registrant who has waited longest has had no mail; zero if nobody waits."""
        return self._age(await self._ask(SentMails.oldest_unsent))

    async def backlog(self) -> Backlog:
        async def select(connection: Connection) -> Backlog:
            return Backlog(
                await followers_of(connection, self._follower_names),
                self._age(await SentMails.oldest_unsent(connection)),
                await SentMails.dead_letters(connection),
                await SentMails.stray_messages(connection),
                await Deadlines.overdue(connection, self._clock() - LAGGING),
            )

        return await self._ask(select)

    # --- What they share ------------------------------------------------------------------------

    async def _ask(self, select: Callable[[Connection], Awaitable[T]]) -> T:
        """Run a query on a connection of the pool, on another one if that turned out to be broken.

        It takes no longer than a statement may: the pool itself would wait for a silent database for ever.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience.total_seconds()
        for _ in range(self._pool.max_size):
            try:
                async with self._pool.connection() as connection:
                    with cut_after(timedelta(seconds=deadline - loop.time()), connection):
                        return await select(connection)
            except (PoolTimeout, PoolClosed, TooManyRequests):
                raise  # there was no connection at all
            except (psycopg.OperationalError, psycopg.InterfaceError):
                if not connection.broken or loop.time() >= deadline:
                    raise
        raise Unavailable("the database is away")

    def _age(self, since: datetime | None) -> timedelta:
        return timedelta(0) if since is None else max(timedelta(0), self._clock() - since)

    def _claims(self, email: str | None) -> list[UUID] | None:
        """Those of an address: its own and its duplicates'."""
        if email is None:
            return None
        address = canonical_address(email)
        return [self._keyring.claim_id(address), self._keyring.claim_id(address, duplicate=True)]

    def _person(self, view: RegistrationView) -> Person | None:
        if view.sealed is None or view.wrapped is None:
            return None
        return self._keyring.open(view.registration_id, view.sealed, view.wrapped)

    def _otp_expires_at(self, view: RegistrationView) -> datetime | None:
        return None if view.handed_over_at is None else view.handed_over_at + self._policy.otp_ttl

    def _attempts_left(self, view: RegistrationView) -> int:
        return 0 if view.locked else max(0, self._policy.otp_max_attempts - view.rejections)

    def _admin(self, view: RegistrationView) -> AdminRegistration:
        person = self._person(view)
        return AdminRegistration(
            registration_id=view.registration_id,
            status=view.status,  # type: ignore[arg-type]
            email=None if person is None else person.email,
            name=None if person is None else person.name,
            locale=view.locale,
            duplicate_of=view.duplicate_of,
            serial=view.serial,
            mail=view.mail,  # type: ignore[arg-type]
            handed_over_at=view.handed_over_at,
            otp_expires_at=self._otp_expires_at(view),
            attempts_left=self._attempts_left(view),
            locked=view.locked,
            created_at=view.created_at,
            verified_at=view.verified_at,
            activated_at=view.activated_at,
            cancelled_at=view.cancelled_at,
            cancel_reason=view.cancel_reason,
            erased=person is None,
            position=view.position,
        )


async def followers_of(connection: Connection, names: Sequence[str]) -> Followers:
    """Every follower's position and lag, of one that never ran, too.

    Positions have no gaps, so the next event is found by its number.
    """
    cursor = connection.cursor(row_factory=tuple_row)
    await cursor.execute(_FOLLOWERS, (list(names),))
    rows = await cursor.fetchall()
    return Followers(
        rows[0][0],
        [
            FollowerState(
                name, position, lag, seconds or 0.0, parked, updated_at,
                "degraded" if parked or updated_at is None or (seconds or 0.0) > LAGGING.total_seconds() else "up",
            )
            for _, name, position, lag, seconds, parked, updated_at in rows
        ],
    )  # fmt: skip
