"""The database's clock, carried on by this machine's monotonic clock between two readings."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from infrastructure.postgres.connection import Connection, ReconnectingConnection


class DatabaseClock:
    """The database's time, without a query: every append returns it along with its result.

    So all processes decide expiry and deadlines by one clock, and a wrong or jumping wall clock here changes nothing.
    """

    def __init__(self) -> None:
        self._reading = datetime.now(UTC)
        self._read_at = time.monotonic()

    def __call__(self) -> datetime:
        return self._reading + timedelta(seconds=time.monotonic() - self._read_at)

    async def set_by(self, connection: ReconnectingConnection) -> None:
        """Read the time from the database.

        Raises:
            Unavailable, psycopg.Error: see `infrastructure.postgres.connection.ReconnectingConnection.execute`.
        """

        async def ask(connection: Connection) -> datetime:
            row = await (await connection.execute("SELECT clock_timestamp()")).fetchone()
            assert row is not None  # noqa: S101 - a SELECT without FROM has a row
            reading: datetime = row[0]
            return reading

        asked = time.monotonic()
        reading = await connection.execute(ask)
        self.set(reading, asked_ago=timedelta(seconds=time.monotonic() - asked))

    def set(self, reading: datetime, *, asked_ago: timedelta = timedelta(0)) -> None:
        """Take over the time that the database returned within the last `asked_ago`.

        It was right at some moment of that span, so our own estimate stands if it agrees with that: a slow commit must
        not set the clock back by its duration.
        """
        if not reading <= self() <= reading + asked_ago:
            self._reading, self._read_at = reading, time.monotonic()
