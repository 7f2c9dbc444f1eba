"""Re-wraps everything under a new master key, while the service runs.

In this order, each step repeatable, so that a rotation killed anywhere is resumed by the next one:

1. Every running process has the new key; otherwise nothing begins. The log has it that an operator does this.
2. In one commit: the new key wraps from now on, and the root secret is re-wrapped. The root comes first, because a
   process opens it at its start: one without the new key is refused there, with the key's id, instead of failing on one
   person after the other.
3. Every running process wraps with the new key, and what it wrapped before is recorded.
4. The persons' keys, in batches. A row is changed only if it still holds what was read: an erased key does not come
   back. No batch waits for a row that somebody else has locked, so no append ever waits in a circle with it.
5. Once more every running process wraps with the new key: one that was reconnecting at the third step showed nothing.
6. In one commit: nothing is left under another key, and the others are retired. What is wrapped by one of them all the
   same is re-wrapped, and only then is the rotation done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence, Set
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final
from uuid import UUID

from application.crash_points import crash_point
from infrastructure.crypto.key_uses import FIRST, are_wrapped_by, noted, use_of
from infrastructure.crypto.key_watch import What, lacking
from infrastructure.crypto.keyring import ROOT, binding
from infrastructure.crypto.master_keys import KeyId, MasterKeys, Unopened, names, prefix_of
from infrastructure.postgres.connection import Connection
from infrastructure.postgres.notifications import LOOK_ANYWAY

BATCH: Final = 500
"""Persons in a transaction: some 20 ms, for which an erasure of one of them waits."""

GIVE_WAY: Final = 0.5
"""Rest after each batch, as a part of the time that it took: the service goes first."""

PATIENCE: Final = timedelta(seconds=15)
"""For running processes to learn of a key; they look every 3 s without being told, and are told."""

REJOINED: Final = 3 * LOOK_ANYWAY
"""From the begin of a rotation: by then a process that had just lost its listening session shows itself again, or is
cut off from the database altogether."""

LOOK: Final = timedelta(milliseconds=100)

LEFT_ALONE: Final = timedelta(milliseconds=200)
"""Before the next pass, if one found only rows that others have locked."""

_TELL: Final = "SELECT pg_notify('registrar_keys', '')"
"""On `infrastructure.crypto.key_uses.CHANNEL`."""

_LOCK: Final = "SELECT pg_try_advisory_lock(hashtext('registrar key rotation'))"
_BEGIN: Final = """
    INSERT INTO public.master_keys (number, key_id)
    SELECT greatest(2, (SELECT max(number) + 1 FROM public.master_keys)), %b
"""
_READ: Final = """
    SELECT registration_id, wrapped FROM public.personal_keys
    WHERE registration_id > %s AND substr(wrapped, 1, 9) <> %b ORDER BY registration_id LIMIT %s
"""
_WRITE: Final = """
    UPDATE public.personal_keys AS k SET wrapped = found.rewrapped
    FROM (
        SELECT l.registration_id, n.rewrapped
        FROM unnest(%b::uuid[], %b::bytea[], %b::bytea[]) AS n (registration_id, wrapped, rewrapped)
        JOIN public.personal_keys AS l ON l.registration_id = n.registration_id AND l.wrapped = n.wrapped
        FOR UPDATE OF l SKIP LOCKED
    ) AS found
    WHERE k.registration_id = found.registration_id
"""
_RETIRE: Final = """
    UPDATE public.master_keys SET retired_at = clock_timestamp()
    WHERE key_id <> %b AND retired_at IS NULL
        AND NOT EXISTS (SELECT FROM public.personal_keys WHERE substr(wrapped, 1, 9) <> %b)
"""
_BEFORE_ALL: Final = UUID(int=0)


class CannotRotate(Exception):
    """The rotation does not begin, or does not end; one line that says what to do. It is repeatable."""


@dataclass(slots=True)
class Rotated:
    """What a rotation did.

    Attributes:
        key: wraps everything now.
        retired: wrap nothing any more.
        persons: whose keys this run has re-wrapped.
        resumed: an earlier run had begun it.
        damaged: registrations whose keys do not open; they stay as they are.
    """

    key: KeyId
    retired: list[KeyId] = field(default_factory=list)
    persons: int = 0
    resumed: bool = False
    damaged: set[UUID] = field(default_factory=set)


Watch = Callable[[int, int], None]
"""Called with how many persons' keys are done, and of how many."""


async def rotate(
    connection: Connection,
    keys: MasterKeys,
    to: KeyId,
    *,
    watch: Watch = lambda *_: None,
    first: Callable[[], Awaitable[None]] | None = None,
) -> Rotated:
    """Have everything wrapped by the master key `to`, which is one of `keys`.

    Args:
        first: done before anything is changed, once nothing stands in the way; also if it was begun before.

    Raises:
        CannotRotate: see there.
        WrongMasterKey: a key that wraps something is not here; it is named.
        psycopg.Error: of the database; what is re-wrapped by then stays so.
    """
    if not await _one(connection, _LOCK):
        raise CannotRotate("Another rotation is under way on this database; it does the same.")
    done = Rotated(to, resumed=await _begun(connection, to))
    if not done.resumed:
        await _until_none_lacks(connection, "has", to, _WITHOUT_IT)
    if first is not None:
        await first()
    await _begin(connection, keys, to, anew=not done.resumed)
    rejoined = asyncio.get_running_loop().time() + REJOINED.total_seconds()
    crash_point("rotation.begun")
    await _until_none_lacks(connection, "wraps", to, _STILL_WITH_THE_OLD)
    ended = False
    while not ended:
        await _rewrap_all(connection, keys, done, watch)
        _refuse_damaged(done.damaged)
        # Not a condition that could be waited for: a process that is not connected cannot be seen.
        await asyncio.sleep(rejoined - asyncio.get_running_loop().time())
        await _until_none_lacks(connection, "wraps", to, _STILL_WITH_THE_OLD)
        ended = await _retire_others(connection, to)
    done.retired = [one.key_id for one in await noted(connection) if one.retired_at is not None]
    return done


def _refuse_damaged(damaged: Set[UUID]) -> None:
    """
    Raises:
        CannotRotate: there are any.
    """
    if damaged:
        shown = ", ".join(str(one) for one in sorted(damaged)[:5])
        raise CannotRotate(
            f"{len(damaged)} personal keys do not open, they were damaged: {shown}. All others are re-wrapped. "
            "Erase these registrations, or restore their rows of personal_keys from a backup; then rotate again."
        )


async def _retire_others(connection: Connection, to: KeyId) -> bool:
    """Retire all but this key; False if something is wrapped by one of them."""
    crash_point("rotation.before_end")
    async with connection.transaction():
        await connection.execute(_RETIRE, (to, prefix_of(to)))
        await connection.execute(_TELL)
    # Looked at after the commit: the statement did not see what was being recorded meanwhile.
    in_use = {one.key_id for one in await noted(connection) if one.retired_at is None}
    return in_use == {to} and await are_wrapped_by(connection, to)


async def _begun(connection: Connection, to: KeyId) -> bool:
    """Does the key wrap already?

    Raises:
        CannotRotate: it is one that was retired.
    """
    known = await noted(connection)
    for one in known:
        if one.key_id == to and (one is not known[-1] or one.number == FIRST):
            what = "is the one in use" if one is known[-1] else "has been replaced here before"
            raise CannotRotate(f"The master key {to.hex()} {what}; give a new one (`openssl rand -hex 32` prints one).")
    return bool(known) and known[-1].key_id == to


_WITHOUT_IT: Final = "do not have the new master key {key}; start them with it (REGISTRAR_NEXT_MASTER_KEY)"
_STILL_WITH_THE_OLD: Final = "still wrap with another master key than {key}; look into their logs (keys.missing)"


async def _until_none_lacks(connection: Connection, what: What, key: KeyId, complaint: str) -> None:
    """
    Raises:
        CannotRotate: some running process does not show it in time; which.
    """
    deadline = asyncio.get_running_loop().time() + PATIENCE.total_seconds()
    await connection.execute(_TELL)
    while found := await lacking(connection, what, key):
        if asyncio.get_running_loop().time() > deadline:
            which = ", ".join(map(str, found))
            raise CannotRotate(f"Running processes {complaint.format(key=key.hex())}, then rotate again: {which}.")
        await asyncio.sleep(LOOK.total_seconds())


async def _begin(connection: Connection, keys: MasterKeys, to: KeyId, *, anew: bool) -> None:
    async with connection.transaction():
        row = await (
            await connection.execute("SELECT wrapped FROM public.service_secrets WHERE name = 'root' FOR UPDATE")
        ).fetchone()
        if row is None:
            raise CannotRotate("No service has run on this database yet: there is nothing to re-wrap.")
        root = keys.unwrap(row[0], ROOT)
        if anew:
            await connection.execute(_BEGIN, (to,))
        keys.follow(use_of(await noted(connection)))
        if names(row[0]) != to:
            await connection.execute(
                "UPDATE public.service_secrets SET wrapped = %b WHERE name = 'root'", (keys.wrap(root, ROOT, by=to),)
            )
        await connection.execute(_TELL)


async def _rewrap_all(connection: Connection, keys: MasterKeys, done: Rotated, watch: Watch) -> None:
    """Pass over the persons' keys until none is left under another key, except damaged ones."""
    left = await _one(
        connection, "SELECT count(*) FROM public.personal_keys WHERE substr(wrapped, 1, 9) <> %b", prefix_of(done.key)
    )
    assert isinstance(left, int)  # noqa: S101 - narrows
    while not await are_wrapped_by(connection, done.key):
        before = done.persons
        seen = await _pass(connection, keys, done, lambda: watch(done.persons, max(left, done.persons)))
        if seen and seen <= done.damaged:
            return
        if done.persons == before:
            await asyncio.sleep(LEFT_ALONE.total_seconds())


async def _pass(connection: Connection, keys: MasterKeys, done: Rotated, moved: Callable[[], None]) -> set[UUID]:
    """Once over all that are not wrapped by the key; those that are left, as far as they could not be changed."""
    loop, after = asyncio.get_running_loop(), _BEFORE_ALL
    left: set[UUID] = set()
    while True:
        begun = loop.time()
        cursor = connection.cursor(binary=True)
        await cursor.execute(_READ, (after, prefix_of(done.key), BATCH))
        found = await cursor.fetchall()
        if not found:
            return left
        after = found[-1][0]
        rows = _rewrapped(found, keys, done)
        left |= {one for one, _ in found}
        if rows:
            changed = await _write(connection, rows)
            done.persons += changed
            if changed == len(rows):
                left -= {one for one, _, _ in rows}
        crash_point("rotation.after_batch")
        moved()
        await asyncio.sleep((loop.time() - begun) * GIVE_WAY)


def _rewrapped(found: Sequence[tuple[UUID, bytes]], keys: MasterKeys, done: Rotated) -> list[tuple[UUID, bytes, bytes]]:
    """Each with what it is now and what it becomes; a damaged one is noted, and left out."""
    rows = []
    for registration_id, wrapped in found:
        bound_to = binding(registration_id)
        try:
            rows.append((registration_id, wrapped, keys.wrap(keys.unwrap(wrapped, bound_to), bound_to, by=done.key)))
        except Unopened:
            done.damaged.add(registration_id)
    return rows


async def _write(connection: Connection, rows: Sequence[tuple[UUID, bytes, bytes]]) -> int:
    async with connection.transaction():
        # What a crash of the server undoes is re-wrapped again: the end of the rotation is not committed before it.
        await connection.execute("SET LOCAL synchronous_commit = off")
        cursor = connection.cursor(binary=True)
        await cursor.execute(_WRITE, tuple(list(column) for column in zip(*rows, strict=True)))
        crash_point("rotation.mid_batch")
        return cursor.rowcount


async def _one(connection: Connection, query: str, *parameters: object) -> object:
    row = await (await connection.execute(query.encode(), parameters or None)).fetchone()
    return None if row is None else row[0]
