"""What a mail worker needs from the database: the right to send, and with it the registration and its personal key."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final
from uuid import UUID, uuid4

import psycopg
import structlog

from application.ports import SendClaim, Unavailable
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.loader import STREAMS, LoadedStreams
from infrastructure.postgres.batching import Batcher
from infrastructure.postgres.circumstances import TellingRefusals
from infrastructure.postgres.connection import AWAY, Connection, ReconnectingConnection, pipeline

log = structlog.get_logger(__name__)

_Mail = tuple[UUID, int]
"""Registration and serial of an issue."""

RELEASE_WITHIN = timedelta(seconds=1)
"""How long a release waits for a claim to share a transaction with; far less than the delay of a mail's first retry,
which must not find the claim of the failed try (`application.mail_saga.RETRY_DELAYS`: 30 s; the lease lasts 45 s)."""


LOST_AT_ONCE = 2
"""Claims of a mail that a process which is alone drops at its start; the third lasts, and each is twice as long as the
one before. So whatever a crash loop does, a mail has gone out at most five times when its code's ten minutes are over
(0 to 2: at once, then after 180 and 540 s; workers that others take over from: after 45, 135, 315 and 675 s)."""


_RELEASE: Final = """
    DELETE FROM send_claims AS c
    USING unnest(%b::uuid[], %b::integer[], %b::timestamptz[]) AS w (registration_id, serial, lease_until)
    WHERE c.registration_id = w.registration_id AND c.serial = w.serial
        AND c.lease_until = w.lease_until AND c.holder = %b
"""

_CLAIM: Final = """
    INSERT INTO send_claims AS c (registration_id, serial, holder, lease_until)
    SELECT w.registration_id, w.serial, %b, clock_timestamp() + %b
    FROM unnest(%b::uuid[], %b::integer[]) AS w (registration_id, serial)
    ON CONFLICT (registration_id, serial) DO UPDATE
    SET holder = excluded.holder, lost = c.lost + 1,
        lease_until = excluded.lease_until + %b * (power(2, least(c.lost + 1, 8)) - 1)
    WHERE c.lease_until < clock_timestamp()
    RETURNING c.registration_id, c.serial, c.lease_until,
        (SELECT k.wrapped FROM personal_keys AS k WHERE k.registration_id = c.registration_id)
"""


class StoredSendClaims:
    """Implements `application.ports.SendClaims` with leases in the database, timed by its clock.

    A worker that died keeps its claims until their leases end: by then it cannot be sending any more. Whoever takes a
    mail over from one holds it for twice as long, as it may be the mail that they die of. A release shares the
    transaction of the next claim, so it costs no commit of its own. Without one, it is made alone after a moment. The
    registrations are read in that transaction, too, by a statement of their own: it sees what was committed when the
    claims were had.
    """

    def __init__(
        self,
        connection: ReconnectingConnection,
        *,
        lease: timedelta,
        release_within: timedelta = RELEASE_WITHIN,
        pace: timedelta = timedelta(0),
    ) -> None:
        """
        Args:
            lease: longer than sending one mail can take, all tries included.
            release_within: how long a release waits for the next claim; also the time between two attempts at it while
                the database is away.
            pace: see `infrastructure.postgres.batching.Batcher`.
        """
        self._connection = connection
        self._lease = lease
        self._release_within = release_within.total_seconds()
        self._refusals = TellingRefusals("send claims")
        self._codec = EventCodec()
        self._holder = uuid4()
        self._held: dict[_Mail, datetime] = {}
        self._released: list[tuple[UUID, int, datetime]] = []
        self._releasing: asyncio.Task[None] | None = None
        self._kept: set[_Mail] = set()
        self._keeping: asyncio.Task[None] | None = None
        self._extending = asyncio.Lock()  # held from the statement until its answer is noted
        self._claims: Batcher[_Mail, SendClaim | None] = Batcher(
            self._claim, name="send claims", max_batch=500, max_waiting=5000, pace=pace
        )
        self._looks: Batcher[UUID, bool] = Batcher(
            self._look_for_keys, name="personal keys", max_batch=5000, max_waiting=5000
        )

    async def acquire(self, registration_id: UUID, serial: int) -> SendClaim | None:
        """See `application.ports.SendClaims`."""
        with self._refusals:
            return await self._claims.do((registration_id, serial))

    async def is_erased(self, registration_id: UUID) -> bool:
        """See `application.ports.SendClaims`."""
        return await self._looks.do(registration_id)

    async def _look_for_keys(self, registration_ids: Sequence[UUID]) -> Sequence[bool]:
        async def select(connection: Connection) -> set[UUID]:
            cursor = await connection.execute(
                "SELECT registration_id FROM personal_keys WHERE registration_id = ANY (%b)", (list(registration_ids),)
            )
            return {one for (one,) in await cursor.fetchall()}

        try:
            there = await self._connection.execute_idempotent(select)
        except psycopg.Error as error:
            raise Unavailable("the personal keys cannot be looked at") from error
        return [one not in there for one in registration_ids]

    def keep(self, registration_id: UUID, serial: int) -> None:
        """See `application.ports.SendClaims`."""
        self._kept.add((registration_id, serial))
        if self._keeping is None or self._keeping.done():
            self._keeping = asyncio.create_task(self._keep(), name="send claims kept")

    async def release(self, registration_id: UUID, serial: int) -> None:
        """Release a claim that we hold; if we acquired it again after its lease had ended, that is another claim."""
        self._kept.discard((registration_id, serial))
        lease_until = self._held.pop((registration_id, serial), None)
        if lease_until is not None:
            self._release((registration_id, serial), lease_until)

    def _release(self, mail: _Mail, lease_until: datetime) -> None:
        self._released.append((*mail, lease_until))
        if self._releasing is None or self._releasing.done():
            self._releasing = asyncio.create_task(self._release_overdue(), name="send claims releases")

    async def close(self) -> None:
        """Make the pending releases now. Claims may still be made afterwards.

        Raises:
            Unavailable: the database is away; the leases end by themselves.
        """
        async with self._extending:  # cut off, it would leave claims with ends that we do not know, so cannot release
            self._kept.clear()
            await _end(self._keeping)
        await _end(self._releasing)  # the releases that it was making are pending again
        await self._claim([])

    async def forget_the_dead(self) -> None:
        """End the claims of all others, but for mails that have cost several of them (`LOST_AT_ONCE`). Only for a
        process that is certain to be the only one (the embedded data directory)."""

        async def end(connection: Connection) -> None:
            await connection.execute(
                "UPDATE send_claims SET lease_until = clock_timestamp() - interval '1 second' WHERE lost < %s",
                (LOST_AT_ONCE,),
            )

        await self._connection.execute_idempotent(end)

    async def _keep(self) -> None:
        """Extend the leases of claims that are kept, all in one statement, for as long as there are any."""
        while self._kept:
            await asyncio.sleep(self._lease.total_seconds() / 3)
            async with self._extending:
                await self._extend_kept()

    async def _extend_kept(self) -> None:
        leases = [(*mail, self._held[mail]) for mail in self._kept if mail in self._held]
        try:
            extended = await self._connection.execute_idempotent(partial(self._extend, leases)) if leases else []
        except (*AWAY, Unavailable):
            return  # tried again, while the leases last
        except psycopg.Error as error:
            log.error(  # noqa: TRY400 - without a trace, which could contain parts of the statement
                "mail.claims_not_kept",
                error=type(error).__name__,
                hint="may this process's role update send_claims? mails that take long may be sent twice",
            )
            return
        for registration_id, serial, lease_until in extended:
            if (registration_id, serial) in self._held:
                self._held[registration_id, serial] = lease_until
            else:  # released meanwhile, with its lease of before
                self._release((registration_id, serial), lease_until)

    async def _extend(
        self, leases: Sequence[tuple[UUID, int, datetime]], connection: Connection
    ) -> Sequence[tuple[UUID, int, datetime]]:
        """Those that nobody else has taken since; a repeat extends them again."""
        cursor = connection.cursor(binary=True)
        await cursor.execute(
            "UPDATE send_claims AS c SET lease_until = greatest(c.lease_until, clock_timestamp() + %b)"
            " FROM unnest(%b::uuid[], %b::integer[], %b::timestamptz[]) AS w (registration_id, serial, lease_until)"
            " WHERE c.registration_id = w.registration_id AND c.serial = w.serial"
            " AND c.lease_until >= w.lease_until AND c.holder = %b"
            " RETURNING c.registration_id, c.serial, c.lease_until",
            (self._lease, *(list(column) for column in zip(*leases, strict=True)), self._holder),
        )
        return await cursor.fetchall()

    async def _release_overdue(self) -> None:
        """Release what has waited for a whole interval, until nothing is left to release.

        What fails is tried again; at worst the leases end by themselves.
        """
        told = False
        while self._released:
            oldest = self._released[0]
            await asyncio.sleep(self._release_within)
            if self._released and self._released[0] is oldest:  # no claim was made in the meantime
                try:
                    await self._claim([])
                except (*AWAY, Unavailable):
                    pass
                except psycopg.Error as error:  # no outage: it stays until somebody does something about it
                    if not told:
                        log.error(  # noqa: TRY400 - without a trace, which could contain parts of the statement
                            "mail.claims_not_released",
                            error=type(error).__name__,
                            hint="may this process's role delete from send_claims? retries wait for the claims to end",
                        )
                    told = True

    async def _claim(self, mails: Sequence[_Mail]) -> Sequence[SendClaim | Exception | None]:
        released, self._released = self._released, []
        wanted = list(dict.fromkeys(mails))

        async def write(connection: Connection) -> tuple[list[Any], list[Any]]:
            # All in one transaction, which a pipeline is implicitly. Prepared at their first use: if a statement fails,
            # the server leaves out those after it, and the driver would take one that was to be prepared just then for
            # prepared (findings/psycopg-skipped-statement-counts-as-prepared.sh).
            async with pipeline(connection):
                if released:
                    columns = (list(column) for column in zip(*released, strict=True))
                    await connection.execute(_RELEASE, (*columns, self._holder), prepare=True)
                cursor = connection.cursor(binary=True)
                ids, serials = [mail[0] for mail in wanted], [mail[1] for mail in wanted]
                await cursor.execute(_CLAIM, (self._holder, self._lease, ids, serials, self._lease), prepare=True)
                streams = connection.cursor(binary=True)
                if wanted:
                    await streams.execute(STREAMS, {"streams": list(set(ids))}, prepare=True)
            return await cursor.fetchall(), await streams.fetchall() if wanted else []

        try:
            rows, read = await self._connection.execute_idempotent(write)
        except BaseException:
            self._released += released
            raise
        claims, streams = {}, LoadedStreams.of_rows(self._codec, read)
        for registration_id, serial, lease_until, wrapped in rows:
            self._held[registration_id, serial] = lease_until
            claims[registration_id, serial] = SendClaim(wrapped, streams)
        return [claims.pop(mail, None) for mail in mails]  # of two requests for one mail the first one gets it


async def _end(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.wait({task})
