"""Backups: whether the log is archived, when the last one was taken, and when one was last tried out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Final

from entrypoints.bootstrap.database_roles import current_role
from entrypoints.cli.checks.finding import Finding
from infrastructure.backup.archive import archiving
from infrastructure.backup.records import noted
from infrastructure.postgres.connection import Connection

OLD: Final = timedelta(days=2)
"""A day's backup that was missed once."""

OLD_DRILL: Final = timedelta(days=31)


async def look_at_archive(connection: Connection, *, embedded: bool) -> Finding:
    """Does the server keep what a restore to a moment needs?"""
    found = await archiving(connection)
    if found.level == "minimal":
        return Finding(
            "archive", "warn", "wal_level is minimal: no base backup can be taken", "Set wal_level = replica."
        )
    if found.mode == "off" or found.to_nowhere:
        advice = "`registrar backup DIR` switches it on." if embedded else "docs/backup.md has the settings."
        if embedded and found.mode == "off":
            advice = "`registrar up` switches it on at its next start, then take a backup."
        says = "the log is not archived: a lost disk costs everything since the last backup"
        return Finding("archive", "warn", says, advice)
    if found.fails_since is not None:
        says = f"archiving fails since {found.fails_since:%Y-%m-%dT%H:%M:%SZ}"
        return Finding("archive", "fail", says, "Make room there or bring it back; a new backup mends a gap.")
    return Finding("archive", "ok", "the log is archived")


async def look_at_backups(connection: Connection) -> Finding:
    """Is there a backup, and was it tried out? Of the embedded database: others are backed up by others."""
    found = await noted(connection)
    backup, drill = found.get("backup"), found.get("drill")
    if backup is None:
        return Finding("backups", "warn", "none was taken", "`registrar backup DIR`, every night.")
    says = f"the last one {_ago(backup.age)}, in {backup.directory}"
    says += f"; the last drill passed {_ago(drill.age)}" if drill else "; never tried out"
    if backup.age > OLD.total_seconds():
        return Finding("backups", "warn", says, f"`registrar backup {backup.directory.parent}`, every night.")
    if not drill or drill.age > OLD_DRILL.total_seconds():
        return Finding("backups", "warn", says, "`registrar backup --drill`, every week.")
    return Finding("backups", "ok", says)


async def unsettled_restores(connection: Connection) -> AsyncIterator[Finding]:
    """Restores since which it is not known who was erased."""
    rows = await (
        await connection.execute(
            "SELECT restored_at, position FROM public.restores WHERE settled_at IS NULL ORDER BY 1"
        )
    ).fetchall()
    for restored_at, position in rows:
        yield Finding(
            "erasures",
            "fail",
            f"restored at {restored_at:%Y-%m-%dT%H:%M:%SZ} to position {position}: who was erased after it is not known",
            "Put the journal of erasures into CHECKPOINT_DIR and restart; or erase them again, then UPDATE restores SET "
            "settled_at = now().",
        )


async def look_at_role(connection: Connection, *, embedded: bool) -> Finding:
    """Who are we there, and is that more than any process needs?"""
    found = await current_role(connection)
    if embedded:
        return Finding("role", "ok", f"{found.name}, of the embedded database")
    if found.superuser:
        says = f"{found.name}, a superuser: it may change what was recorded"
        return Finding("role", "warn", says, "`registrar database roles` makes roles with the rights that are needed.")
    if found.owner:
        says = f"{found.name}, which owns the tables: more than any process but upgrades needs (`registrar database roles`)"
        return Finding("role", "ok", says)
    if found.changes:
        says = f"{found.name}, which may {', '.join(found.changes)} recorded events"
        return Finding("role", "warn", says, "`registrar database roles --apply`, as the owner, takes that away.")
    return Finding("role", "ok", f"{found.name}: it can change nothing that was recorded")


def _ago(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:.0f} h ago" if hours < 48 else f"{hours / 24:.0f} days ago"
