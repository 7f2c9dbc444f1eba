"""Backups, restores and drills: what they say."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

import click

from entrypoints.bootstrap import backups
from entrypoints.bootstrap.backups import Drill
from entrypoints.bootstrap.restored_log import Arrived
from entrypoints.cli.output import moving, note, print_json, show
from infrastructure.audit.erasures import FILE
from infrastructure.settings.settings import Settings

_WITHOUT_JOURNAL: Final = (
    "There is no journal of erasures {}: whoever was erased after the moment that you go back to can be read again. "
    "If there is one elsewhere, answer no, and name its directory with --checkpoints. "
    "Restore all the same, and never ask for it again?"
)


async def back_up(settings: Settings, directory: Path, *, keep: int | None, reason: str | None, as_json: bool) -> int:
    """Take a backup."""
    with _interruptible("what is there is no whole backup, and is never taken for one."), moving() as progress:
        taken = await backups.back_up(settings, directory, keep=keep, progress=progress, reason=reason)
    path, found = taken.backup.path, taken.backup.description
    if as_json:
        print_json({"directory": str(path), "archives": taken.archives, "removed": taken.removed, **_fields(found)})
    else:
        click.echo(f"Backed up to {path}: {found.size / 2**20:.1f} MiB, up to position {found.position:,} at least.")
        for name in taken.removed:
            click.echo(f"Removed {name}.")
    if not taken.archives:
        note("The log is archived there after the next start of `registrar up`; until then --to is not possible.")
    if taken.same_disk:
        note("It is on the disk that the database is on, and is lost with it; copy it, or name another directory.")
    note(
        f"The master key is not in it: keep {settings.data_dir / 'master.key'} in another place, and checkpoint.key, "
        "which signs checkpoints, as well."
    )
    return 0


async def restore(
    settings: Settings,
    directory: Path,
    *,
    to: datetime | None,
    checkpoints: Path | None,
    without_journal: bool,
    as_json: bool,
) -> int:
    """Bring a backup back; 1 if it is not all that was recorded, or not what was signed."""
    journal = backups.journal_for(settings, checkpoints)
    asked = not without_journal and not journal.exists() and sys.stdin.isatty()
    if asked and not click.confirm(_WITHOUT_JOURNAL.format(journal), err=True):
        return 1
    with _interruptible("nothing was restored."), moving() as progress:
        arrived = await backups.restore(
            settings,
            directory,
            to=to,
            checkpoints=checkpoints,
            without_journal=without_journal or asked,
            progress=progress,
        )
    if as_json:
        print_json({"data_dir": str(settings.data_dir), **_arrival(arrived)})
    else:
        click.echo(f"Restored {arrived.backup.path} into {settings.data_dir}: {_where(arrived)}.")
        _tell(arrived)
    if missing := _not_in_backups(settings):
        note(f"Put {' and '.join(missing)} back into {settings.data_dir} before you start `registrar up`.")
    if not (without_journal or asked or (backups.checkpoints_of(settings) / FILE).exists()):
        note(
            "No journal of erasures is there: whoever was erased after that position can be read again. Copy the newest "
            f"one into {backups.checkpoints_of(settings)} before you start `registrar up`, or say --without-journal."
        )
    return 1 if arrived.is_troubled else 0


def _not_in_backups(settings: Settings) -> list[str]:
    """The files of keys that a restored database needs, and that are not there."""
    keys = {"master.key": settings.master_key, "checkpoint.key": settings.checkpoint_key}
    return [name for name, key in keys.items() if key is None and not (settings.data_dir / name).exists()]


async def drill(settings: Settings, directory: Path | None, *, as_json: bool) -> int:
    """Try the latest backup out; 1 if it is of no use."""
    with _interruptible("what was restored is thrown away."), moving() as progress:
        found = await backups.drill(settings, directory, progress)
    if as_json:
        print_json(
            {
                "passed": found.passed,
                **_arrival(found.arrived),
                "differences": found.differences,
                "lost_events": found.lost,
                "recovery_point_seconds": None
                if found.recovery_point is None
                else found.recovery_point.total_seconds(),
                "recovery_time_seconds": found.recovery_time.total_seconds(),
                "seconds": found.in_all.total_seconds(),
            }
        )
        return 0 if found.passed else 1
    click.echo(f"Restored {found.arrived.backup.path}: {_where(found.arrived)}; its chain verifies.")
    _tell(found.arrived)
    differing = {name: count for name, count in found.differences.items() if count}
    click.echo(f"Read models: {show(differing)} differ" if differing else "Read models: equal a fold of the log.")
    click.echo(f"RPO: {_lost(found)}")
    click.echo(
        f"RTO: {found.recovery_time.total_seconds():.1f} s until it took writes ({found.in_all.total_seconds():.1f} s with all checks)."
    )
    click.echo("The drill has passed." if found.passed else "The drill has FAILED.")
    return 0 if found.passed else 1


def _lost(found: Drill) -> str:
    if found.lost is None or found.recovery_point is None:
        return "unknown, there is no running database to compare with."
    if not found.lost:
        return "0 s, everything that is recorded by now is in it."
    return (
        f"{found.recovery_point.total_seconds():.1f} s: {found.lost:,} events that were recorded since are not in it."
    )


def _where(arrived: Arrived) -> str:
    if arrived.log.recorded_at is None:
        return "an empty log"
    return f"position {arrived.log.position:,}, recorded at {show(arrived.log.recorded_at)}"


def _tell(arrived: Arrived) -> None:
    if arrived.gap is not None:
        click.echo(
            f"The archive lacks the segment {arrived.gap}: what came after it is not restored. Take a new backup."
        )
    for one in arrived.unsigned:
        click.echo(f"Checkpoint: there is NONE in {one}.")
    if arrived.checkpointed is None:
        click.echo("Checkpoint: there is none to compare with.")
    elif arrived.agrees is None:
        beyond = arrived.checkpointed - arrived.log.position
        click.echo(f"Checkpoint: the newest one covers {beyond:,} events more, which are not restored.")
    elif arrived.agrees:
        click.echo(f"Checkpoint: the newest one covers position {arrived.checkpointed:,}, and this log.")
    else:
        click.echo("Checkpoint: the newest one covers ANOTHER log; `registrar audit verify` says more.")


def _arrival(arrived: Arrived) -> dict[str, object]:
    return {
        "backup": str(arrived.backup.path),
        "position": arrived.log.position,
        "hash": arrived.log.hash.hex(),
        "recorded_at": arrived.log.recorded_at,
        "missing_segment": arrived.gap,
        "checkpoint_position": arrived.checkpointed,
        "checkpoint_agrees": arrived.agrees,
        "unsigned_checkpoints": arrived.unsigned,
    }


def _fields(found: object) -> dict[str, object]:
    return {name: getattr(found, name) for name in found.__struct_fields__}  # type: ignore[attr-defined]


@contextmanager
def _interruptible(what_is: str) -> Iterator[None]:
    """Says what is there if Ctrl-C or SIGTERM comes in the block."""
    try:
        yield
    except asyncio.CancelledError:
        note(f"Interrupted: {what_is}")
        raise
