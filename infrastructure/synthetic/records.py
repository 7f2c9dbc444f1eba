"""What the database knows of synthetic registrations."""

from __future__ import annotations

from typing import Final, NamedTuple
from uuid import UUID

from infrastructure.postgres.connection import Connection

PASSED: Final = "passed"
"""The outcome of a registration that became an account."""

_LAST: Final = f"""
    SELECT outcome, extract(epoch FROM clock_timestamp() - ended_at)::double precision,
           (SELECT extract(epoch FROM clock_timestamp() - max(ended_at)) FROM public.synthetic_registrations
            WHERE outcome = '{PASSED}')::double precision
    FROM public.synthetic_registrations WHERE ended_at IS NOT NULL ORDER BY ended_at DESC LIMIT 1
"""  # noqa: S608 - a constant

# What passed last is kept, however long ago: its age is a metric.
_FORGET: Final = f"""
    DELETE FROM public.synthetic_registrations
    WHERE erased_at IS NOT NULL AND ended_at < clock_timestamp() - interval '1 day' AND registration_id IS DISTINCT FROM
        (SELECT registration_id FROM public.synthetic_registrations WHERE outcome = '{PASSED}'
         ORDER BY ended_at DESC LIMIT 1)
"""  # noqa: S608 - a constant


class Last(NamedTuple):
    """How the last synthetic registration that has ended did.

    Attributes:
        outcome: `PASSED`, or the step that failed.
        age: seconds since it ended.
        passed_age: seconds since one has passed; None: none ever has.
    """

    outcome: str
    age: float
    passed_age: float | None


async def last_of(connection: Connection) -> Last | None:
    """None: none is known of."""
    row = await (await connection.execute(_LAST)).fetchone()
    return None if row is None else Last(*row)


async def begin(connection: Connection, registration_id: UUID) -> None:
    """Note it before it is asked for: whatever happens, it is erased."""
    await connection.execute(
        "INSERT INTO public.synthetic_registrations (registration_id) VALUES (%b)", (registration_id,)
    )


async def end(connection: Connection, registration_id: UUID, outcome: str) -> None:
    """Note how it did; its mail is forgotten."""
    await connection.execute(
        "UPDATE public.synthetic_registrations SET outcome = %s, ended_at = clock_timestamp(), mail = NULL"
        " WHERE registration_id = %s",
        (outcome, registration_id),
    )


async def mail_of(connection: Connection, registration_id: UUID) -> bytes | None:
    """As it would have gone to a mail server; None: there is none yet."""
    cursor = await connection.execute(
        "SELECT mail FROM public.synthetic_registrations WHERE registration_id = %s", (registration_id,)
    )
    row = await cursor.fetchone()
    return None if row is None else row[0]


async def since_last(connection: Connection) -> float | None:
    """Seconds since the last one was begun; None: none is known of."""
    cursor = await connection.execute(
        "SELECT extract(epoch FROM clock_timestamp() - max(begun_at))::double precision"
        " FROM public.synthetic_registrations"
    )
    row = await cursor.fetchone()
    return None if row is None else row[0]


async def not_erased(connection: Connection) -> list[tuple[UUID, float]]:
    """Those that there may be accounts of, each with its age in seconds."""
    cursor = await connection.execute(
        "SELECT registration_id, extract(epoch FROM clock_timestamp() - begun_at)::double precision"
        " FROM public.synthetic_registrations WHERE erased_at IS NULL ORDER BY begun_at"
    )
    return await cursor.fetchall()


async def note_erased(connection: Connection, registration_id: UUID) -> None:
    await connection.execute(
        "UPDATE public.synthetic_registrations SET erased_at = clock_timestamp(), mail = NULL,"
        " ended_at = coalesce(ended_at, clock_timestamp()), outcome = coalesce(outcome, 'interrupted')"
        " WHERE registration_id = %s",
        (registration_id,),
    )


async def forget_old(connection: Connection) -> None:
    """Keep those of the last day, and the last that passed."""
    await connection.execute(_FORGET)
