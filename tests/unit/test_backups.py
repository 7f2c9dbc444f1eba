"""Where backups are, what is missing in an archive, and whether there is room for one."""

from __future__ import annotations

import shutil
import subprocess
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest

from infrastructure.backup.archive import archive_command, restore_command
from infrastructure.backup.layout import (
    FORMAT,
    VERSION,
    BadBackup,
    Description,
    NoRoom,
    archives_from,
    backup_for,
    drop_unfinished,
    finish,
    forget,
    gap_in,
    new_directory,
    whole_backups,
)
from infrastructure.backup.restoring import SPARE, restored


def at(minute: int) -> datetime:
    return datetime(2026, 3, 1, 12, minute, tzinfo=UTC)


def taken(directory: Path, minute: int) -> Path:
    """A whole backup, that ended a minute after it began."""
    path = new_directory(directory, at(minute))
    (path / "wal").mkdir()
    described = ("0.1.0", "18.4", "1", at(minute), at(minute + 1), 7, "00" * 32, 9)
    finish(path, Description(FORMAT, VERSION, *described))
    return path


def test_a_backup_without_its_description_is_not_one(tmp_path: Path) -> None:
    with pytest.raises(BadBackup, match="no whole backup"):
        backup_for(tmp_path, None)
    whole = taken(tmp_path, 1)
    unfinished = new_directory(tmp_path, at(2))
    (unfinished / "base").mkdir()
    (unfinished / "wal").mkdir()

    assert [one.path for one in whole_backups(tmp_path)] == [whole]
    assert backup_for(tmp_path, None).path == whole
    assert archives_from(backup_for(tmp_path, None)) == [whole / "wal", unfinished / "wal"]

    # What it archived is of use for the one before.
    drop_unfinished(tmp_path)
    assert [path.name for path in unfinished.iterdir()] == ["wal"]


def test_the_latest_backup_that_was_at_its_end_is_chosen(tmp_path: Path) -> None:
    paths = [taken(tmp_path, minute) for minute in (10, 20, 30)]

    assert backup_for(tmp_path, None).path == paths[2]
    assert backup_for(tmp_path, at(31)).path == paths[2]
    assert backup_for(tmp_path, at(30)).path == paths[1]
    with pytest.raises(BadBackup, match="12:11"):
        backup_for(tmp_path, at(10))


def test_only_the_last_backups_are_kept_if_so_asked(tmp_path: Path) -> None:
    paths = [taken(tmp_path, minute) for minute in (10, 20, 30)]

    assert forget(tmp_path, keep=3) == []
    assert forget(tmp_path, keep=1) == [path.name for path in paths[:2]]
    assert [one.path for one in whole_backups(tmp_path)] == paths[2:]


def test_a_description_of_another_form_is_refused_and_never_guessed_at(tmp_path: Path) -> None:
    path = taken(tmp_path, 1)
    description = path / "backup.json"

    description.write_text(description.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(BadBackup, match=r"0\.1\.0 wrote"):
        whole_backups(tmp_path)
    description.write_text("{}")
    with pytest.raises(BadBackup, match="move that backup away"):
        whole_backups(tmp_path)


def test_the_first_missing_segment_is_named(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    for name in ("0000000100000000000000FE", "0000000100000000000000FF"):
        (one / f"{name}.gz").touch()
    for name in ("000000010000000100000000", "000000020000000100000000", "00000002.history"):
        (other / f"{name}.gz").touch()

    assert gap_in([one, other, tmp_path / "none"]) is None
    (one / "0000000100000000000000FF.gz").unlink()
    assert gap_in([one, other]) == "0000000100000000000000FF"


@pytest.mark.parametrize("name", ["wal", 'it\'s 100% "odd" $HOME'])
def test_what_the_shell_archives_it_fetches_and_what_it_cannot_read_ends_a_recovery(tmp_path: Path, name: str) -> None:
    archive, data = tmp_path / name, tmp_path / "data"
    archive.mkdir()
    (data / "pg_wal" / "archive_status").mkdir(parents=True)
    (data / "pg_wal" / "A").write_bytes(b"segment" * 1000)

    def sh(command: str, file: str, path: str) -> int:
        command = command.replace("%f", file).replace("%p", path).replace("%%", "%")
        return subprocess.run(["sh", "-c", command], cwd=data, check=False, capture_output=True).returncode

    archiving, fetching = archive_command(archive), restore_command([tmp_path / "none", archive])
    assert sh(archiving, "A", "pg_wal/A") == 0
    assert [path.name for path in archive.iterdir()] == ["A.gz"]
    assert sh(archiving, "A", "pg_wal/A") == 0  # once more, as after a crash
    assert sh(fetching, "A", "pg_wal/B") == 0
    assert (data / "pg_wal" / "B").read_bytes() == (data / "pg_wal" / "A").read_bytes()
    assert sh(fetching, "C", "pg_wal/C") == 1
    (archive / "A.gz").write_bytes(b"\x1f\x8bnonsense")
    assert sh(fetching, "A", "pg_wal/B") == 126


def test_while_the_archive_is_away_segments_wait_and_beyond_a_number_are_dropped(tmp_path: Path) -> None:
    status = tmp_path / "pg_wal" / "archive_status"
    status.mkdir(parents=True)
    (tmp_path / "pg_wal" / "A").write_bytes(b"segment")
    command = archive_command(tmp_path / "none", may_wait=2).replace("%f", "A").replace("%p", "pg_wal/A")

    codes = []
    for number in range(4):
        codes.append(subprocess.run(["sh", "-c", command], cwd=tmp_path, check=False).returncode)
        (status / f"{number}.ready").touch()

    assert codes == [1, 1, 1, 0]


async def test_what_would_fill_the_disk_is_not_begun(tmp_path: Path) -> None:
    """A drill unpacks beside the live database, which stops on a full disk."""
    backups, within = tmp_path / "backups", tmp_path / "data"
    within.mkdir()
    base = taken(backups, 1) / "base"
    base.mkdir()
    nearly_all = shutil.disk_usage(tmp_path).free - SPARE // 2
    body = b'{"Files": [{"Path": "base/1/1", "Size": %d, "Checksum": ""}],\n' % nearly_all
    digest = sha256(body).hexdigest().encode()
    (base / "backup_manifest").write_bytes(body + b'"Manifest-Checksum": "' + digest + b'"}\n')

    with pytest.raises(NoRoom, match="2 GiB must stay free"):
        async with restored(backup_for(backups, None), within, purpose="drill"):
            pass

    assert list(within.iterdir()) == []
