"""`events export` and `events import`: their options and examples."""

# ruff: noqa: PLC0415 - as in `main`: a command imports what it needs when it runs
from __future__ import annotations

from pathlib import Path

import click

from entrypoints.cli import options


@click.command(
    "export",
    epilog=options.example(
        "registrar events export log.jsonl.zst",
        "registrar events export --with-keys /backup/log.jsonl.zst",
        "registrar events export - | grep email_dispatch_failed",
    ),
)
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True, dir_okay=False), metavar="FILE")
@click.option("--with-keys", is_flag=True, help="The personal keys, too, wrapped by the master key.")
@options.reason
@options.as_json
@options.data_dir
def export_log(*, file: Path, with_keys: bool, reason: str | None, as_json: bool, data_dir: Path | None) -> int:
    """Write the whole log to FILE, as JSON Lines.

    "-" is standard output; a FILE that ends in .zst is compressed. Each line has the position, the block and the
    hash before it, so the file verifies by itself (`registrar events import --check FILE`). Registrations go on
    meanwhile. Personal data stays sealed, and without --with-keys nobody can open it. An export with keys is recorded
    before it begins, with --reason.
    """
    from entrypoints.cli import archive
    from entrypoints.cli.session import reading

    if reason is not None and not with_keys:
        raise click.UsageError("--reason goes with --with-keys.", click.get_current_context())
    return reading(
        data_dir,
        lambda reader: archive.export_log(reader, file, with_keys=with_keys, reason=reason, as_json=as_json),
    )


@click.command(
    "import",
    epilog=options.example(
        "registrar events import log.jsonl.zst",
        "registrar events import --check log.jsonl.zst",
        "registrar events import --with-keys --data-dir copy log.jsonl.zst",
    ),
)
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True, exists=True, dir_okay=False), metavar="FILE")
@click.option("--check", is_flag=True, help="Only verify the file; needs no database.")
@click.option(
    "--with-keys/--without-keys",
    default=None,
    help="Take the personal keys in the file, or leave them; needed if there are any.",
)
@options.as_json
@options.data_dir
def import_log(*, file: Path, check: bool, with_keys: bool | None, as_json: bool, data_dir: Path | None) -> int:
    """Read an exported log into an empty store.

    "-" is standard input. Positions, times and the hash chain stay as they were; each block is verified before it
    is written. An import that was interrupted goes on when it is repeated, and until it is finished no service
    starts on that store. Exit code 1 if the file is not as it was exported.
    """
    from entrypoints.cli import archive
    from entrypoints.cli.session import finish, log_troubles, read_settings

    if check and with_keys is not None:
        raise click.UsageError(
            "--check takes nothing from the file: neither --with-keys nor --without-keys goes with it.",
            click.get_current_context(),
        )
    if check:
        return finish(archive.check_log(file, as_json=as_json))
    settings = read_settings(data_dir=data_dir)
    log_troubles(settings)
    return finish(archive.import_log(settings, file, with_keys=with_keys, as_json=as_json))
