"""`backup` and `restore`: their options and examples."""

# ruff: noqa: PLC0415 - as in `main`: a command imports what it needs when it runs
from __future__ import annotations

from datetime import datetime
from pathlib import Path

import click

from entrypoints.cli import options


@click.command(
    epilog=options.example(
        "registrar backup /backup/registrar",
        "registrar backup /backup/registrar --keep 7",
        "registrar backup --drill",
    )
)
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False), metavar="[DIR]", required=False)
@click.option(
    "--drill", is_flag=True, help="Try the latest backup out: restore it into a scratch server, and verify it."
)
@click.option("--keep", type=click.IntRange(min=1), metavar="N", help="Remove all but the last N backups in DIR.")
@options.reason
@options.as_json
@options.data_dir
def backup(
    *,
    directory: Path | None,
    drill: bool,
    keep: int | None,
    reason: str | None,
    as_json: bool,
    data_dir: Path | None,
) -> int:
    """Back up the embedded database into DIR, while it runs.

    From then on its write-ahead log is archived there, too, so that `registrar restore DIR --to TIME` can go back to
    any moment since. The master key is NOT in it: keep master.key elsewhere, as whoever has both can read everything,
    and without it nobody can. Nor is the admin token. Each backup is recorded before it begins, with --reason.

    With --drill, restores the latest backup (in DIR, or where the last one was taken to) beside the running database,
    folds its log, compares it with the newest checkpoint, says how much would be lost and how long it takes, and throws
    it away. Exit code 1 if anything is wrong.
    """
    from entrypoints.cli import backing_up
    from entrypoints.cli.session import finish, log_troubles, read_settings

    if drill and keep is not None:
        raise click.UsageError("--keep does not go with --drill.", click.get_current_context())
    if drill and reason is not None:
        raise click.UsageError("--reason does not go with --drill, which changes nothing.", click.get_current_context())
    if not drill and directory is None:
        raise click.UsageError("Name the directory that the backup goes to.", click.get_current_context())
    settings = read_settings(data_dir=data_dir, with_secrets=False)
    log_troubles(settings)
    if drill or directory is None:
        return finish(backing_up.drill(settings, directory, as_json=as_json))
    return finish(backing_up.back_up(settings, directory, keep=keep, reason=reason, as_json=as_json))


@click.command(
    epilog=options.example(
        "registrar restore /backup/registrar --data-dir restored",
        "registrar restore /backup/registrar --to 2026-01-31T12:00:00Z --data-dir restored",
        "registrar restore /backup/registrar --checkpoints /mnt/checkpoints --data-dir restored",
    )
)
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False, exists=True), metavar="DIR")
@click.option(
    "--to",
    callback=options.parse_time,
    metavar="TIME",
    help="As it was at this time (ISO 8601; UTC without an offset).  [default: the end of the archive]",
)
@click.option(
    "--checkpoints",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    metavar="DIR",
    help="Directory of signed checkpoints with the journal of erasures, which is copied along.",
)
@click.option(
    "--without-journal",
    is_flag=True,
    help="Nobody was erased since, or you erase them yourself: do not look for the journal of erasures.",
)
@options.as_json
@options.data_dir
def restore(
    *,
    directory: Path,
    to: datetime | None,
    checkpoints: Path | None,
    without_journal: bool,
    as_json: bool,
    data_dir: Path | None,
) -> int:
    """Restore a backup in DIR into a data directory without a database.

    Never over an existing database. Put master.key back beside it, then start `registrar up`. Whoever was erased since
    is erased again from the journal of erasures; where there is none, a person at a terminal is asked before anything
    is restored. Exit code 1 if the archive has a gap, or the newest checkpoint covers another log.
    """
    from entrypoints.cli import backing_up
    from entrypoints.cli.session import finish, log_troubles, read_settings

    settings = read_settings(data_dir=data_dir, with_secrets=False)
    log_troubles(settings)
    return finish(
        backing_up.restore(
            settings,
            directory,
            to=to,
            checkpoints=checkpoints,
            without_journal=without_journal,
            as_json=as_json,
        )
    )
