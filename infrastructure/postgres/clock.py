"""The database's clock, kept by this machine's monotonic one between looks."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from infrastructure.postgres.connection import Connection, Line


class DatabaseClock:
    """Tells the database's time without asking it: every append's answer brings it along.

    So all processes decide expiry and deadlines by one clock, and a wrong or jumping wall clock here changes nothing.
    """

    def __init__(self) -> None:
        self._told = datetime.now(UTC)
        self._told_at = time.monotonic()

    def __call__(self) -> datetime:
        return self._told + timedelta(seconds=time.monotonic() - self._told_at)

    async def set_by(self, line: Line) -> None:
        """Ask the database.

        Raises:
            Unavailable, psycopg.Error: see `infrastructure.postgres.connection.Line.run`.
        """

        async def ask(connection: Connection) -> datetime:
            row = await (await connection.execute("SELECT clock_timestamp()")).fetchone()
            assert row is not None  # noqa: S101 - a SELECT without FROM has a row
            told: datetime = row[0]
            return told

        asked = time.monotonic()
        told = await line.run(ask)
        self.set(told, asked_ago=timedelta(seconds=time.monotonic() - asked))

    def set(self, told: datetime, *, asked_ago: timedelta = timedelta(0)) -> None:
        """Take over the time that the database told within the last `asked_ago`.

        It was right at some moment of that span, so our own reckoning stands if it agrees with that: a commit that
        took long must not set the clock back by as much.
        """
        if not told <= self() <= told + asked_ago:
            self._told, self._told_at = told, time.monotonic()
