"""The endpoints' rows: how far each is, and how it fares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Final, Literal, NamedTuple

from psycopg.rows import class_row

from domain.recorded import Position
from infrastructure.postgres.connection import Connection

_READ: Final = """
    SELECT name, position, term, disabled_at, disabled_by, delivered_at, failing_since, failure, failures, retry_at,
           next_try_at
    FROM public.webhooks ORDER BY name
"""

_BEGIN: Final = """
    INSERT INTO public.webhooks (name, position)
    SELECT n.name, h.position FROM public.head AS h CROSS JOIN unnest(%s::text[]) AS n (name)
    ON CONFLICT DO NOTHING
"""

_SAVE: Final = """
    UPDATE public.webhooks
    SET position = %(position)s, delivered_at = coalesce(%(delivered_at)s, delivered_at),
        failing_since = %(failing_since)s, failure = %(failure)s, failures = %(failures)s, retry_at = %(retry_at)s,
        next_try_at = %(next_try_at)s, updated_at = clock_timestamp()
    WHERE name = %(name)s AND term = %(term)s
"""

# All of these begin a new term: the follower stops what it does for the endpoint, and begins anew where the row says.
_DISABLE: Final = """
    UPDATE public.webhooks
    SET disabled_at = clock_timestamp(), disabled_by = %(by)s, retry_at = NULL, next_try_at = NULL, term = term + 1,
        updated_at = clock_timestamp()
    WHERE name = %(name)s AND (disabled_at IS NULL OR disabled_by = 'endpoint' AND %(by)s = 'operator')
"""

_ENABLE: Final = """
    UPDATE public.webhooks
    SET disabled_at = NULL, disabled_by = NULL, retry_at = NULL, next_try_at = NULL, term = term + 1,
        updated_at = clock_timestamp()
    WHERE name = %s
"""

_WAKE: Final = """
    UPDATE public.webhooks
    SET retry_at = NULL, next_try_at = NULL, term = term + 1, updated_at = clock_timestamp()
    WHERE name = %s AND disabled_at IS NULL AND failing_since IS NOT NULL
"""

_REPLAY: Final = """
    UPDATE public.webhooks AS w
    SET position = least(%s::bigint - 1, h.position), failing_since = NULL, failure = NULL, failures = 0,
        retry_at = NULL, next_try_at = NULL, term = term + 1, updated_at = clock_timestamp()
    FROM public.head AS h
    WHERE w.name = %s
    RETURNING w.position + 1
"""


@dataclass(frozen=True, slots=True)
class Standing:
    """How an endpoint fares; see `webhooks.sql` and `webhooks_2.sql`."""

    name: str
    position: Position
    term: int
    disabled_at: datetime | None = None
    disabled_by: Literal["operator", "endpoint"] | None = None
    delivered_at: datetime | None = None
    failing_since: datetime | None = None
    failure: str | None = None
    failures: int = 0
    retry_at: datetime | None = None
    next_try_at: datetime | None = None


class TermIsOver(Exception):
    """An operator, or another process, has changed the row since: what was under way is not to be saved."""


async def begin(connection: Connection, names: Sequence[str]) -> None:
    """Have rows for those endpoints that have none: they get what is recorded from now on."""
    await connection.execute(_BEGIN, (list(names),))


async def forget_others(connection: Connection, names: Sequence[str]) -> None:
    """No endpoint but these is sent to, and none of the others fails."""
    await connection.execute(_FORGET, (list(names),))


async def standings(connection: Connection) -> Mapping[str, Standing]:
    """Of all that there have ever been, by name."""
    cursor = connection.cursor(row_factory=class_row(Standing))
    await cursor.execute(_READ)
    return {one.name: one for one in await cursor.fetchall()}


_FAILING: Final = """
    SELECT name, coalesce(failing_since, disabled_at), failure,
           extract(epoch FROM clock_timestamp() - coalesce(failing_since, disabled_at))::double precision
    FROM public.webhooks
    WHERE failing_since IS NOT NULL AND disabled_by IS DISTINCT FROM 'operator' OR disabled_by = 'endpoint'
    ORDER BY name
"""

# What is not in the settings any more fails no more, and is gone no more; its position stays.
_FORGET: Final = """
    UPDATE public.webhooks
    SET failing_since = NULL, failure = NULL, failures = 0, retry_at = NULL, next_try_at = NULL, term = term + 1,
        disabled_at = CASE disabled_by WHEN 'operator' THEN disabled_at END, disabled_by = nullif(disabled_by, 'endpoint')
    WHERE (failing_since IS NOT NULL OR disabled_by = 'endpoint') AND name <> ALL (%s)
"""


class Failing(NamedTuple):
    """An endpoint that does not take what it is sent, or has asked not to be sent anything.

    Attributes:
        seconds: for how long.
    """

    name: str
    since: datetime
    failure: str | None
    seconds: float


async def failing(connection: Connection) -> list[Failing]:
    """Those that nobody has disabled."""
    return [Failing(*row) for row in await (await connection.execute(_FAILING)).fetchall()]


async def check_right(connection: Connection) -> None:
    """
    Raises:
        psycopg.errors.InsufficientPrivilege: this role may change none of them.
    """
    await connection.execute("UPDATE public.webhooks SET term = term WHERE false")


async def save(connection: Connection, standing: Standing) -> None:
    """
    Raises:
        TermIsOver: the row is of another term.
    """
    if (await connection.execute(_SAVE, asdict(standing))).rowcount != 1:
        raise TermIsOver(standing.name)


async def disable(connection: Connection, name: str, by: Literal["operator", "endpoint"]) -> bool:
    """Send nothing more until it is enabled; its position stays. False if it is disabled, or unknown."""
    return (await connection.execute(_DISABLE, {"by": by, "name": name})).rowcount == 1


async def enable(connection: Connection, name: str) -> bool:
    """Go on where it was, at once. False if it is unknown."""
    return (await connection.execute(_ENABLE, (name,))).rowcount == 1


async def wake(connection: Connection, name: str) -> bool:
    """Go on at once if it is failing. False if it is not, or is disabled, or unknown."""
    return (await connection.execute(_WAKE, (name,))).rowcount == 1


async def replay(connection: Connection, name: str, first: Position) -> Position | None:
    """Go on with this event of the log, or with what comes after its end; returns with which. None if the endpoint is
    unknown."""
    row = await (await connection.execute(_REPLAY, (first, name))).fetchone()
    return None if row is None else row[0]
