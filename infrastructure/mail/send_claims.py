"""What a mail worker asks the database for beside the log: the right to send, and with it the personal key."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID, uuid4

from application.ports import SendClaim
from infrastructure.postgres.batching import Batcher
from infrastructure.postgres.connection import Connection, Line

_Mail = tuple[UUID, int]
"""Registration and serial of an issue."""


class StoredSendClaims:
    """Implements `application.ports.SendClaims` by leases in the database, told by its clock.

    A worker that died keeps its claims until their leases end: by then it cannot be sending any more. A release waits
    for the next claim to be made, or `close`: it is in no hurry, and costs no commit of its own.
    """

    def __init__(self, line: Line, *, lease: timedelta, pace: timedelta = timedelta(0)) -> None:
        """
        Args:
            lease: longer than sending one mail can take, all tries included.
            pace: see `infrastructure.postgres.batching.Batcher`.
        """
        self._line = line
        self._lease = lease
        self._holder = uuid4()
        self._held: dict[_Mail, datetime] = {}
        self._released: list[tuple[UUID, int, datetime]] = []
        self._claims: Batcher[_Mail, SendClaim | None] = Batcher(
            self._claim, name="send claims", max_batch=500, max_waiting=5000, pace=pace
        )

    async def acquire(self, registration_id: UUID, serial: int) -> SendClaim | None:
        """See `application.ports.SendClaims`."""
        return await self._claims.do((registration_id, serial))

    async def release(self, registration_id: UUID, serial: int) -> None:
        """Give a claim back that we hold; one that we took anew after its lease ended is another claim."""
        lease_until = self._held.pop((registration_id, serial), None)
        if lease_until is not None:
            self._released.append((registration_id, serial, lease_until))

    async def close(self) -> None:
        """Give everything back.

        Raises:
            Unavailable: the database is away; the leases end by themselves.
        """
        await self._claim([])

    async def forget_the_dead(self) -> None:
        """Drop every claim. Only for a process that is certain to be the only one (the embedded data directory)."""

        async def delete(connection: Connection) -> None:
            await connection.execute("DELETE FROM send_claims")

        await self._line.ask(delete)

    async def _claim(self, mails: Sequence[_Mail]) -> Sequence[SendClaim | Exception | None]:
        released, self._released = self._released, []
        wanted = list(dict.fromkeys(mails))

        async def settle(connection: Connection) -> list[tuple[UUID, int, datetime, bytes | None]]:
            # Both in one transaction, which a pipeline is by itself.
            async with connection.pipeline():
                if released:
                    await connection.execute(
                        "DELETE FROM send_claims AS c"
                        " USING unnest(%b::uuid[], %b::integer[], %b::timestamptz[])"
                        " AS w (registration_id, serial, lease_until)"
                        " WHERE c.registration_id = w.registration_id AND c.serial = w.serial"
                        " AND c.lease_until = w.lease_until AND c.holder = %b",
                        (*(list(column) for column in zip(*released, strict=True)), self._holder),
                    )
                cursor = connection.cursor(binary=True)
                await cursor.execute(
                    "INSERT INTO send_claims AS c (registration_id, serial, holder, lease_until)"
                    " SELECT w.registration_id, w.serial, %b, clock_timestamp() + %b"
                    " FROM unnest(%b::uuid[], %b::integer[]) AS w (registration_id, serial)"
                    " ON CONFLICT (registration_id, serial) DO UPDATE"
                    " SET holder = excluded.holder, lease_until = excluded.lease_until"
                    " WHERE c.lease_until < clock_timestamp()"
                    " RETURNING c.registration_id, c.serial, c.lease_until,"
                    " (SELECT k.wrapped FROM personal_keys AS k WHERE k.registration_id = c.registration_id)",
                    (self._holder, self._lease, [mail[0] for mail in wanted], [mail[1] for mail in wanted]),
                )
            return await cursor.fetchall()

        try:
            got = await self._line.ask(settle)
        except BaseException:
            self._released += released
            raise
        claims = {}
        for registration_id, serial, lease_until, wrapped in got:
            self._held[registration_id, serial] = lease_until
            claims[registration_id, serial] = SendClaim(wrapped)
        return [claims.pop(mail, None) for mail in mails]  # of two wishes for one mail the earlier gets it
