"""Proofs of what happened to one registration, for those who trust neither the database nor us."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

from domain.errors import UnknownRegistration
from domain.mailbox import Mailbox
from domain.recorded import Position
from infrastructure.audit.proving import CannotProve, Proof, checkpoint_of, prove
from infrastructure.followers.progress import progress_of
from infrastructure.postgres.connection import Connection
from infrastructure.postgres.pool import QueryPool
from projections.audit import ENTRIES, Audit

_READ_MODEL: Final = Audit.name
# A mailbox's events name the other registrations that wait for it, whose ids are nobody else's.
_POSITIONS: Final = f"""
    SELECT position FROM {ENTRIES.within(Audit().schema)}
    WHERE registration_id = %(registration_id)s AND topic <> %(of_others)s ORDER BY position
"""  # noqa: S608 - a constant


class ProofQueries:
    """
    Raises (all of them):
        Unavailable, one of `AWAY`: see `infrastructure.postgres.pool.QueryPool.ask`.
    """

    def __init__(self, pool: QueryPool) -> None:
        self._pool = pool

    async def prove(self, registration_id: UUID, *, size: int | None = None) -> Proof:
        """The proof of all events about a registration alone, whichever stream they stand in, up to a checkpoint.

        Args:
            size: of the checkpoint's tree; None is the latest one.

        Raises:
            UnknownRegistration: nothing in the log is about it.
            CannotProve: see `infrastructure.audit.proving`; also while the read model that knows which events these are
                has not come as far as the checkpoint.
        """

        async def select(connection: Connection) -> Proof:
            checkpoint = await checkpoint_of(connection, size)
            reached = (await progress_of(connection, (_READ_MODEL,))).items[0].position
            if reached < checkpoint.position:
                raise CannotProve(
                    f"The read model `{_READ_MODEL}` is at position {reached} and the checkpoint at "
                    f"{checkpoint.position}, so that events could be left out; try again in a moment."
                )
            positions = await _positions_of(connection, registration_id)
            if not positions:
                raise UnknownRegistration
            return await prove(connection, registration_id, positions, checkpoint)

        return await self._pool.ask(select)


async def _positions_of(connection: Connection, registration_id: UUID) -> list[Position]:
    cursor = connection.cursor(binary=True)
    named = {"registration_id": registration_id, "of_others": Mailbox.MailDecided.TOPIC}
    await cursor.execute(_POSITIONS.encode(), named)
    rows: list[Any] = await cursor.fetchall()
    return [row[0] for row in rows]
