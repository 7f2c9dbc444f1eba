"""A base backup out of its archives, each file compared with PostgreSQL's manifest on the way.

The `pg_verifybackup` of the wheel crashes (docs/library-notes.md); this checks the same, and needs no second pass.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Final

import msgspec

from infrastructure.backup.layout import BadBackup

_CHUNK: Final = 1 << 20

Progress = Callable[[int, int], None]
"""Called with how many bytes are written, and of how many."""


class _File(msgspec.Struct, frozen=True, rename={"path": "Path", "size": "Size", "checksum": "Checksum"}):
    """Of the database, as the manifest has it."""

    path: str = ""
    size: int = 0
    checksum: str = ""


class _Manifest(msgspec.Struct, frozen=True, rename={"files": "Files"}):
    files: list[_File]


def unpacked_size(base: Path) -> int:
    """Bytes of the database in a base backup, without its write-ahead log.

    Raises:
        BadBackup: its manifest is missing, or not as it was written.
    """
    return _total(_expected(base / "backup_manifest"))


def unpack(base: Path, to: Path, owner: tuple[int, int] | None, progress: Progress) -> None:
    """Write a base backup into a new directory, which belongs to the server's user; memory is bounded by the number of
    files, not by their sizes.

    Args:
        owner: user and group of the server, None for our own.

    Raises:
        BadBackup: it is not as it was written.
        OSError: it cannot be read, or written.
    """
    expected = _expected(base / "backup_manifest")
    total = _total(expected)
    to.mkdir(mode=0o700)
    done = 0
    with _told(base):
        for name, into in (("base.tar.gz", ""), ("pg_wal.tar.gz", "pg_wal/")):
            for path, size, digest in _extracted(base / name, to, into):
                file = expected.pop(path, None)
                if file is not None and (file.size, file.checksum) != (size, digest):
                    raise BadBackup(f"{path} in {base} is not as it was written; use another backup.")
                done += size
                progress(min(done, total), total)
    if expected:
        raise BadBackup(f"{min(expected)} is missing in {base}; use another backup.")
    if owner is not None:
        for one in (to, *to.rglob("*")):
            os.chown(one, *owner, follow_symlinks=False)


def _expected(manifest: Path) -> dict[str, _File]:
    """What must be there. (The segments of the write-ahead log are not in it; their records have checksums.)"""
    try:
        content = manifest.read_bytes()
        body, line, _ = content.rpartition(b'"Manifest-Checksum": "')
        stated = content[len(body) + len(line) :][:64]
        found = msgspec.json.decode(content, type=_Manifest)
    except (msgspec.MsgspecError, ValueError, FileNotFoundError):
        raise BadBackup(f"{manifest} is missing, or not as PostgreSQL writes it; use another backup.") from None
    if hashlib.sha256(body).hexdigest().encode() != stated:
        raise BadBackup(f"{manifest} is not as PostgreSQL wrote it; use another backup.")
    return {file.path: file for file in found.files if file.path}


def _total(expected: Mapping[str, _File]) -> int:
    return sum(file.size for file in expected.values())


@contextmanager
def _told(base: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise BadBackup(f"{base} cannot be unpacked ({type(error).__name__}); use another backup.") from None


def _extracted(archive: Path, to: Path, into: str) -> Iterator[tuple[str, int, str]]:
    """Writes the files of an archive; each one's path in the database, size and SHA-256."""
    # (tarfile's own "r|gz" stops at the first of several gzip members; pg_basebackup begins pg_wal.tar.gz with an empty
    # one.)
    with gzip.open(archive) as content_of, tarfile.open(fileobj=content_of, mode="r|") as members:
        for member in members:
            inside = PurePosixPath(into + member.name)
            if inside.is_absolute() or ".." in inside.parts or not (member.isfile() or member.isdir()):
                raise BadBackup(f"{archive} holds {member.name!r}, which no database of ours has; use another backup.")
            target = to / inside
            if member.isdir():
                target.mkdir(mode=0o700, parents=True, exist_ok=True)
                continue
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            content = members.extractfile(member)
            assert content is not None  # noqa: S101 - it is a file
            yield str(inside), member.size, _written(content, target)


def _written(content: IO[bytes], path: Path) -> str:
    digest = hashlib.sha256()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        while chunk := content.read(_CHUNK):
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()
