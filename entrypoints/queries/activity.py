"""What is going on right now, as far as the database knows: what `registrar top` shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from domain.registration import Registration
from domain.synthetic import FIRST, LAST
from entrypoints.queries.followers import Backlog, FollowerQueries
from infrastructure.mail.shared_circuits import in_use
from infrastructure.postgres.connection import Connection
from infrastructure.postgres.pool import QueryPool

WINDOW: Final = 60
"""Seconds that are counted over."""

MOST: Final = 20_000
"""Events that are looked at: where more happened in a minute, the last ones give the same rates."""

_COUNTED: Final[Mapping[str, str]] = {
    Registration.UserRegistered.TOPIC: "registered",
    Registration.EmailDispatched.TOPIC: "mail_sent",
    Registration.EmailDispatchFailed.TOPIC: "mail_failed",
    Registration.CodeRejected.TOPIC: "wrong_codes",
    Registration.EmailVerified.TOPIC: "verified",
    Registration.AccountActivated.TOPIC: "activated",
}

_HAPPENED: Final = f"""
    SELECT topic, count(*) FILTER (WHERE originator_id NOT BETWEEN '{FIRST}' AND '{LAST}'), count(*),
           extract(epoch FROM clock_timestamp() - min(recorded_at))::double precision
    FROM public.events
    WHERE notification_id > (SELECT position - {MOST} FROM public.head)
        AND recorded_at > clock_timestamp() - interval '{WINDOW} s'
    GROUP BY topic
"""  # noqa: S608 - constants


@dataclass(frozen=True, slots=True)
class Rates:
    """What happened lately, by the log; synthetic registrations do not count.

    Attributes:
        seconds: over which it was counted: `WINDOW`, or less where more than `MOST` events happened.
        counts: of each of `_COUNTED`.
        events: of all kinds, and of synthetic registrations too.
    """

    seconds: float
    counts: Mapping[str, int]
    events: int


@dataclass(frozen=True, slots=True)
class Activity:
    """
    Attributes:
        circuits: the mail servers in use, by name, with the state of each circuit.
    """

    at: datetime
    rates: Rates
    backlog: Backlog
    circuits: Mapping[str, str]


class ActivityQueries:
    """
    Raises (all of them):
        Unavailable, one of `AWAY`: see `infrastructure.postgres.pool.QueryPool.ask`.
    """

    def __init__(self, pool: QueryPool, followers: FollowerQueries) -> None:
        self._pool = pool
        self._followers = followers

    async def now(self) -> Activity:
        """All of it."""
        at, rates, circuits = await self._pool.ask(_look)
        return Activity(at, rates, await self._followers.backlog(), circuits)


async def _look(connection: Connection) -> tuple[datetime, Rates, Mapping[str, str]]:
    row = await (await connection.execute("SELECT clock_timestamp()")).fetchone()
    assert row is not None  # noqa: S101 - a SELECT without FROM has a row
    found = await (await connection.execute(_HAPPENED.encode())).fetchall()
    events = sum(every for _, _, every, _ in found)
    counts = dict.fromkeys(_COUNTED.values(), 0) | {
        _COUNTED[topic]: count for topic, count, _, _ in found if topic in _COUNTED
    }
    seconds = max((age for *_, age in found), default=0.0) if events >= MOST else float(WINDOW)
    return row[0], Rates(seconds, counts, events), await in_use(connection)
