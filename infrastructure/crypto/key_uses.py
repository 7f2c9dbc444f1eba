"""What the database says about its master keys (`keys_2.sql`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import psycopg
from psycopg.rows import class_row

from infrastructure.crypto.master_keys import KeyId, Use, names, prefix_of
from infrastructure.postgres.connection import Connection

CHANNEL: Final = "registrar_keys"
"""Announces that a rotation has begun or ended, or that there is a new key to be looked for."""

FIRST: Final = 1

_USES: Final = "SELECT number, key_id, wraps_since, retired_at FROM public.master_keys ORDER BY number"


@dataclass(frozen=True, slots=True)
class Noted:
    """A master key, as the database knows it.

    Attributes:
        number: 1 is the first one; see `keys_2.sql`.
        retired_at: since when nothing is wrapped by it; None: it is in use.
    """

    number: int
    key_id: KeyId
    wraps_since: datetime
    retired_at: datetime | None


async def noted(connection: Connection) -> Sequence[Noted]:
    """Every master key that is known here, in the order of use; empty where nothing was noted yet."""
    cursor = connection.cursor(row_factory=class_row(Noted))
    try:
        await cursor.execute(_USES)
    except psycopg.errors.UndefinedTable:  # of an earlier release; it has never been rotated
        return ()
    return await cursor.fetchall()


def use_of(keys: Sequence[Noted]) -> Use:
    """What a process has to go by."""
    return Use(
        first=next((one.key_id for one in keys if one.number == FIRST), None),
        wraps=keys[-1].key_id if keys else None,
        in_use=frozenset(one.key_id for one in keys if one.retired_at is None),
    )


async def read_use(connection: Connection) -> Use:
    """`use_of` what is noted."""
    return use_of(await noted(connection))


async def note_first_use(connection: Connection, root: bytes, opened_by: KeyId) -> None:
    """Note which key wraps here, where nothing is noted yet. A role that may not leaves it to one that may: until then
    the database is used as one that has never been rotated.

    Args:
        root: the root secret, wrapped; it opened with this key.
    """
    cursor = await connection.execute("SELECT has_table_privilege('public.master_keys', 'INSERT')")
    if await cursor.fetchone() != (True,):
        return
    await connection.execute(
        "INSERT INTO public.master_keys (number, key_id) VALUES (%s, %b) ON CONFLICT DO NOTHING",
        (FIRST if names(root) is None else FIRST + 1, opened_by),
    )


@dataclass(frozen=True, slots=True)
class Count:
    """How many persons' keys a master key wraps; `key_id` None: the first one."""

    key_id: KeyId | None
    persons: int


async def count_persons(connection: Connection) -> Sequence[Count]:
    """Of every master key, whether it is noted or not."""
    cursor = await connection.execute(
        "SELECT CASE WHEN length(wrapped) > 60 THEN substr(wrapped, 2, 8) END, count(*)"
        " FROM public.personal_keys GROUP BY 1 ORDER BY 1 NULLS FIRST"
    )
    return [Count(None if key is None else KeyId(bytes(key)), persons) for key, persons in await cursor.fetchall()]


async def are_wrapped_by(connection: Connection, key: KeyId) -> bool:
    """Are all persons' keys wrapped by this one, which is not the first?"""
    row = await (
        await connection.execute(
            "SELECT NOT EXISTS (SELECT FROM public.personal_keys WHERE substr(wrapped, 1, 9) <> %b)", (prefix_of(key),)
        )
    ).fetchone()
    return row is not None and bool(row[0])
