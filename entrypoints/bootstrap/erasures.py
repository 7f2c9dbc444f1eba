"""The journal of erasures: where it is, and the erasures in it that a restore has undone."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final
from uuid import UUID, uuid4

import structlog

from application.commands import EraseRegistration
from application.ports import Context
from domain.recorded import Actor
from domain.registration import Registration
from entrypoints.bootstrap import CannotStart
from entrypoints.bootstrap.checkpoint_places import checkpoint_directory
from entrypoints.bootstrap.core import Core
from entrypoints.bootstrap.database import first_connection
from infrastructure.audit.erasures import FILE, ORIGIN, Journal, JournalEntry, read_journal, refusal_of
from infrastructure.audit.note_keys import SigningKey
from infrastructure.crypto.keyring import Keyring
from infrastructure.postgres.connection import Connection
from infrastructure.settings.settings import Settings

log = structlog.get_logger(__name__)


def note_key(keyring: Keyring) -> SigningKey:
    """The key that signs the journal and proofs of erasure."""
    return SigningKey(ORIGIN, keyring.journal_seed)


def journal_file(settings: Settings) -> Path | None:
    """Where the journal of erasures is; None: nowhere."""
    directory = checkpoint_directory(settings)
    return None if directory is None else directory.path / FILE


# --- After a restore --------------------------------------------------------------------------

_BACK: Final = f"""
    SELECT k.registration_id,
           CASE WHEN e.topic <> '{Registration.UserImported.TOPIC}' THEN e.recorded_at END
    FROM public.personal_keys AS k
    LEFT JOIN public.events AS e ON e.originator_id = k.registration_id AND e.originator_version = 1
    WHERE k.registration_id = ANY (%s)
"""  # noqa: S608 - a constant
_UNSETTLED: Final = "SELECT restored_at, position FROM public.restores WHERE settled_at IS NULL ORDER BY 1"


async def erase_again(core: Core, settings: Settings) -> bool:
    """Before a process does anything: erase whom the journal says was erased, and a restore has brought back.

    Returns:
        Is it known of every restore who was erased? If not, an error in the log says so.

    Raises:
        CannotStart: the database is away, or the journal cannot be read.
        Unavailable: as of any command.
    """
    file, key = journal_file(settings), note_key(core.keyring)
    journal = Journal() if file is None else await asyncio.to_thread(_journal, file)
    async with first_connection(core.database.dsn) as connection:
        back = await _back(connection, journal, key)
        for registration_id in back:
            await core.handlers.handle(
                EraseRegistration(registration_id=registration_id), Context(Actor.RESTORE, uuid4())
            )
        if back:
            # Of a registration that the log knows to be erased nothing is recorded again; its key is another matter.
            await connection.execute("DELETE FROM public.personal_keys WHERE registration_id = ANY (%s)", (back,))
            log.warning("erasures.repeated", registrations=len(back), hint="a restore had brought them back")
        return await _settle(connection, journal, key)


def _journal(file: Path) -> Journal:
    """Empty: there is none."""
    try:
        return read_journal(file)
    except FileNotFoundError:
        return Journal()
    except OSError as error:
        raise CannotStart(
            f"The journal of erasures {file} cannot be read ({error.strerror}), and a restore may have brought back who "
            "is in it; make it readable for this process."
        ) from None


async def _back(connection: Connection, journal: Journal, key: SigningKey) -> list[UUID]:
    """Registrations in the journal whose keys are there. One that began after the erasure is another with the same id,
    which an Idempotency-Key gives it after a restore; but not one that was imported, whose id follows from the address:
    that is the person who was erased."""
    lines: dict[UUID, list[JournalEntry]] = {}
    for entry in journal.entries:
        lines.setdefault(entry.erasure.registration_id, []).append(entry)
    if not lines:
        return []
    cursor = await connection.execute(_BACK, (list(lines),))
    back = []
    for registration_id, began_at in await cursor.fetchall():
        signed = [one.erasure for one in lines[registration_id] if _is_signed(one.note, key, registration_id)]
        if any(began_at is None or began_at < one.erased_at for one in signed):
            back.append(registration_id)
    return back


def _is_signed(note: str, key: SigningKey, registration_id: UUID | None = None) -> bool:
    refusal = refusal_of(note, key)
    if refusal is not None:
        hint = f"that note of the journal has no effect: {refusal}"
        log.error("erasures.not_signed", registration_id=registration_id and str(registration_id), hint=hint)
    return refusal is None


async def _settle(connection: Connection, journal: Journal, key: SigningKey) -> bool:
    """Only a journal that was complete before the restore says who was erased by then, also if that is nobody; one that
    was begun afterwards does not."""
    unsettled = await (await connection.execute(_UNSETTLED)).fetchall()
    if not unsettled:
        return True
    first = min((one.complete.since for one in journal.complete if _is_signed(one.note, key)), default=None)
    unknown = [row for row in unsettled if first is None or first >= row[0]]
    await connection.execute(
        "UPDATE public.restores SET settled_at = clock_timestamp() WHERE settled_at IS NULL AND restored_at > %s",
        (first,),
    )
    if not unknown:
        return True
    restored_at, position = unknown[0]
    log.error(
        "erasures.unknown_since_restore",
        restored_at=restored_at.isoformat(),
        position=position,
        hint="this database was restored from a backup, and there is no journal of erasures that was complete before: whoever "
        "was erased after that position can be read again. Put the journal into CHECKPOINT_DIR and start again, or "
        "erase them again and then UPDATE restores SET settled_at = now()",
    )
    return False
