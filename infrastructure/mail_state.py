"""What a mail worker asks the database for beside the log: personal keys, and the right to send."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from uuid import UUID, uuid4

from infrastructure.batching import Batcher
from infrastructure.line import Connection, Line

_Mail = tuple[UUID, int]
"""Registration and serial of an issue."""


class StoredPersonalKeys:
    """Implements `application.ports.PersonalKeys`; concurrent callers share a query."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._fetches: Batcher[tuple[UUID, ...], Mapping[UUID, bytes]] = Batcher(
            self._fetch, name="personal keys", max_batch=500, max_waiting=5000, weigh=len
        )

    async def fetch(self, registration_ids: Sequence[UUID]) -> Mapping[UUID, bytes]:
        """Wrapped keys; one that is missing was destroyed."""
        return await self._fetches.do(tuple(registration_ids))

    async def _fetch(self, wishes: Sequence[tuple[UUID, ...]]) -> Sequence[Mapping[UUID, bytes] | Exception]:
        ids = list({registration_id for wish in wishes for registration_id in wish})

        async def select(connection: Connection) -> dict[UUID, bytes]:
            cursor = connection.cursor(binary=True)
            await cursor.execute(
                "SELECT registration_id, wrapped FROM personal_keys WHERE registration_id = ANY(%b::uuid[])", (ids,)
            )
            return dict(await cursor.fetchall())

        keys = await self._line.ask(select)
        return [keys for _ in wishes]


class StoredSendClaims:
    """Implements `application.ports.SendClaims` by leases in the database, told by its clock.

    A worker that died keeps its claims until their leases end: by then it cannot be sending any more. A release waits
    for the next claim to be made, or `close`: it is in no hurry, and costs no commit of its own.
    """

    def __init__(self, line: Line, *, lease: timedelta) -> None:
        """
        Args:
            lease: longer than sending one mail can take, all tries included.
        """
        self._line = line
        self._lease = lease
        self._holder = uuid4()
        self._held: dict[_Mail, datetime] = {}
        self._released: list[tuple[UUID, int, datetime]] = []
        self._claims: Batcher[_Mail, bool] = Batcher(self._claim, name="send claims", max_batch=500, max_waiting=5000)

    async def acquire(self, registration_id: UUID, serial: int) -> bool:
        """True: it is ours until released or until the lease ends. False: somebody may be sending it now."""
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

    async def _claim(self, mails: Sequence[_Mail]) -> Sequence[bool | Exception]:
        released, self._released = self._released, []
        wanted = list(dict.fromkeys(mails))

        async def settle(connection: Connection) -> dict[_Mail, datetime]:
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
                cursor = await connection.execute(
                    "INSERT INTO send_claims AS c (registration_id, serial, holder, lease_until)"
                    " SELECT w.registration_id, w.serial, %b, clock_timestamp() + %b"
                    " FROM unnest(%b::uuid[], %b::integer[]) AS w (registration_id, serial)"
                    " ON CONFLICT (registration_id, serial) DO UPDATE"
                    " SET holder = excluded.holder, lease_until = excluded.lease_until"
                    " WHERE c.lease_until < clock_timestamp()"
                    " RETURNING c.registration_id, c.serial, c.lease_until",
                    (self._holder, self._lease, [mail[0] for mail in wanted], [mail[1] for mail in wanted]),
                )
            return {(id_, serial): lease_until for id_, serial, lease_until in await cursor.fetchall()}

        try:
            got = await self._line.ask(settle)
        except BaseException:
            self._released += released
            raise
        self._held |= got
        return [got.pop(mail, None) is not None for mail in mails]  # of two wishes for one mail the earlier gets it
