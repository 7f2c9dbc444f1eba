"""The log in a file: it verifies by itself, comes back as it was, and whatever happens to it is told in one line."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import termios
from base64 import b64decode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from fcntl import ioctl
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from application.ports import Person, WrappedKey
from domain.recorded import AnyEvent
from entrypoints.bootstrap.database import create_schema
from infrastructure.archive import exporting
from infrastructure.archive.files import BadFile, Busy, Source, Stopped, lines_of, written
from infrastructure.archive.importing import begin_import, import_events
from infrastructure.archive.reading import ExportedLog
from infrastructure.crypto.keyring import Keyring, open_root_secret
from infrastructure.embedded.postgres import EmbeddedPostgres
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.store import EventStore
from infrastructure.postgres.clock import DatabaseClock
from infrastructure.postgres.connection import connect
from infrastructure.postgres.pool import QueryPool
from tests.integration.conftest import Command
from tests.support.commands import PATIENCE, clean_environment, heeding_ctrl_c
from tests.support.facts import (
    CLAIM,
    CLIENT,
    REGISTRATION,
    email_claimed,
    eventually,
    otp_issued,
    personal_data_erased,
    registered,
    stream,
)
from tests.support.histories import History
from tests.support.log import acts_of, broken_blocks, bytes_of_event, happened, locked, query, until_waiting_for_a_lock
from tests.support.postgres import database_of

MASTER_KEY = "ab" * 32
OTHER = UUID("019cab10-0000-7000-8000-000000000002")
EVENTS = (
    "SELECT originator_id, originator_version, topic, state, notification_id, recorded_at, correlation_id,"
    " causation_position, actor, trace_context FROM events ORDER BY notification_id"
)
BLOCKS = "SELECT first_position, last_position, hash FROM blocks ORDER BY last_position"
HEAD = "SELECT position, hash FROM head"


def rows(dsn: str, statement: str) -> list[tuple[Any, ...]]:
    return asyncio.run(query(dsn, statement))


def the_log(dsn: str) -> list[list[tuple[Any, ...]]]:
    return [rows(dsn, statement) for statement in (EVENTS, BLOCKS, HEAD)]


def broken(dsn: str) -> list[int]:
    async def look() -> list[int]:
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            return await broken_blocks(connection)

    return asyncio.run(look())


def fill(dsn: str, *portions: Sequence[Any], keys: Sequence[WrappedKey] = ()) -> None:
    """Record each portion in a block of its own; the keys with the first one."""

    async def record() -> None:
        store = EventStore(dsn, codec=EventCodec(), clock=DatabaseClock())
        await store.open()
        try:
            for number, portion in enumerate(portions):
                await store.append_stored(portion, keys=keys if number == 0 else ())
        finally:
            await store.close()

    asyncio.run(record())


def lived(registrations: int = 150) -> list[list[Any]]:
    """What people, mail servers and operators did: more than one query takes, in blocks of many sizes."""
    codec = EventCodec()
    entries = [
        (codec.encode(event), context) for event, context in History(seed=11, registrations=registrations).events
    ]
    portions, size = [], 1
    while entries:
        portions.append(entries[:size])
        entries, size = entries[size:], size % 97 + 7
    return portions


def stored(*events: AnyEvent) -> list[Any]:
    codec = EventCodec()
    return [(codec.encode(event), CLIENT) for event in events]


def small(dsn: str) -> None:
    fill(dsn, stored(*stream(REGISTRATION, registered(), otp_issued())), stored(*stream(CLAIM, email_claimed())))


def exported(command: Command, dsn: str, file: Path, *options: str) -> Path:
    done = command("events", "export", str(file), *options, DATABASE_URL=dsn, MASTER_KEY=MASTER_KEY)
    assert (done.code, done.out) == (0, "")
    return file


def imported(command: Command, dsn: str, file: Path, *options: str) -> Any:
    return command("events", "import", str(file), *options, DATABASE_URL=dsn, MASTER_KEY=MASTER_KEY)


def checked(content: bytes) -> ExportedLog:
    log = ExportedLog(lines_of(io.BufferedReader(io.BytesIO(content))))
    for _ in log.blocks():
        pass
    for _ in log.personal_keys():
        pass
    return log


# --- A file that verifies by itself -----------------------------------------------------------


def test_the_file_verifies_with_nothing_but_what_is_in_its_lines(dsn: str, tmp_path: Path, command: Command) -> None:
    fill(dsn, *lived())

    content = exported(command, dsn, tmp_path / "log.jsonl").read_bytes().splitlines()
    head, *lines, end = [json.loads(line) | {"as it is": line} for line in content]

    assert len(lines) > 1500
    assert [line["position"] for line in lines] == [*range(1, len(lines) + 1)]
    before, digests, first = hashlib.sha256(b"").digest(), [], 1
    for line in lines:
        assert line["previous_hash"] == before.hex()
        digests.append(hashlib.sha256(of_line(line)).digest())
        if line["position"] == line["block"]:
            time = datetime.fromisoformat(line["recorded_at"]) - datetime(1970, 1, 1, tzinfo=UTC)
            numbers = [first.to_bytes(8, "big"), (time // timedelta(microseconds=1)).to_bytes(8, "big")]
            before = hashlib.sha256(b"".join([before, *numbers, *digests])).digest()
            digests, first = [], line["position"] + 1
    assert head["hash"] == end["hash"] == before.hex()
    assert head["position"] == end["end"] == len(lines)


def of_line(line: dict[str, Any]) -> bytes:
    return bytes_of_event(
        UUID(line["stream_id"]),
        line["version"],
        line["type"],
        line["as it is"].partition(b'"state":')[2][:-1],
        UUID(line["correlation_id"]),
        line["causation_position"],
        line["actor"],
        line["trace"],
    )


def test_any_byte_that_is_altered_is_found(dsn: str, tmp_path: Path, command: Command) -> None:
    small(dsn)
    content = exported(command, dsn, tmp_path / "log.jsonl").read_bytes()
    assert checked(content).position == 3

    unnoticed = []
    for index in range(len(content)):
        for change in (0x01, 0x20, 0x80):
            altered = bytearray(content)
            altered[index] ^= change
            try:
                checked(bytes(altered))
            except BadFile:
                continue
            unnoticed.append((index, change))

    assert unnoticed == []


def test_a_file_that_is_cut_anywhere_is_found(dsn: str, tmp_path: Path, command: Command) -> None:
    small(dsn)
    content = exported(command, dsn, tmp_path / "log.jsonl").read_bytes()

    for length in range(len(content)):
        with pytest.raises(BadFile):
            checked(content[:length])
    with pytest.raises(BadFile, match="follows its last line"):
        checked(content + b"\n")


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.zst"])
def test_a_check_needs_no_database_and_says_where_the_file_was_altered(
    dsn: str, tmp_path: Path, command: Command, ending: str
) -> None:
    fill(dsn, *lived(20))
    file = exported(command, dsn, tmp_path / f"log.{ending}")

    sound = command("events", "import", "--check", str(file), "--json")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    altered = command("events", "import", "--check", str(file))

    assert sound.code == 0
    assert sound.json["events"] == rows(dsn, HEAD)[0][0]
    assert sound.json["hash"] == rows(dsn, HEAD)[0][1].hex()
    assert altered.code == 1
    assert altered.err.count("\n") == 1
    assert "it was changed" in altered.err


def test_a_file_of_a_later_form_is_left_to_the_release_that_wrote_it(tmp_path: Path, command: Command) -> None:
    file = tmp_path / "log.jsonl"
    file.write_text('{"format":"registrar log","version":2,"release":"9.8.7","new":1}\n')

    done = command("events", "import", "--check", str(file))

    assert done.code == 1
    assert "Registrar 9.8.7 wrote it, in a form that this release does not know" in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("content", [b"", b"\n", b"{}\n", b"PGDMP\x01\x0e", b"x" * 100, b'{"format":"other"}\n'])
def test_a_file_of_something_else_is_told_in_one_line(tmp_path: Path, command: Command, content: bytes) -> None:
    file = tmp_path / "log.jsonl"
    file.write_bytes(content)

    done = command("events", "import", "--check", str(file))

    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "no log that Registrar has exported" in done.err


def test_events_without_a_block_of_their_own_are_not_passed_over(dsn: str, tmp_path: Path, command: Command) -> None:
    fill(dsn, stored(*stream(REGISTRATION, registered())))
    head, line, end = exported(command, dsn, tmp_path / "log.jsonl").read_bytes().splitlines(keepends=True)
    altered = head + 2 * line.replace(b'"block":1', b'"block":0') + line
    digest = hashlib.sha256(altered).hexdigest().encode()

    with pytest.raises(BadFile, match="at line 2, the block of position 1 cannot end at 0"):
        checked(altered + end.replace(json.loads(end)["sha256"].encode(), digest))


def test_a_block_that_never_ends_is_not_collected(dsn: str, tmp_path: Path, command: Command) -> None:
    small(dsn)
    head, first, *_ = exported(command, dsn, tmp_path / "log.jsonl").read_bytes().splitlines(keepends=True)
    read = 0

    def lines() -> Iterator[bytes]:
        nonlocal read
        yield head.replace(b'"position":3', b'"position":%d' % 10**12)
        for position in range(1, 10**12):
            read += 1
            yield first.replace(b'"position":1,"block":2', b'"position":%d,"block":%d' % (position, 10**12))

    with pytest.raises(BadFile, match="the block of position 1 cannot end at"):
        list(ExportedLog(lines()).blocks())
    assert read == 1


def test_types_that_this_release_does_not_know_are_told(dsn: str, tmp_path: Path, command: Command) -> None:
    fill(dsn, [(happened(topic="registration.gone_to_the_moon"), CLIENT)])

    done = command("events", "import", "--check", str(exported(command, dsn, tmp_path / "log.jsonl")))

    assert done.code == 0
    assert "does not know all types of events in it: registration.gone_to_the_moon" in done.err


# --- Export -----------------------------------------------------------------------------------


def test_standard_output_has_the_same_lines(dsn: str, tmp_path: Path, command: Command) -> None:
    fill(dsn, *lived(20))
    file = exported(command, dsn, tmp_path / "log.jsonl")

    done = command("events", "export", "-", DATABASE_URL=dsn, MASTER_KEY=MASTER_KEY)

    assert done.code == 0
    assert done.out.splitlines()[1:-1] == file.read_text().splitlines()[1:-1]


@pytest.mark.parametrize("state", [b"\xff\x00\n" * 50, b'{"a":\n1}', b"not JSON", b"", b'{"a":1}}'])
def test_a_state_that_is_no_json_in_one_line_is_exported_too(
    dsn: str, empty: str, tmp_path: Path, command: Command, state: bytes
) -> None:
    fill(dsn, [(happened(state=b"{}"), CLIENT), (happened(state=state), CLIENT)])
    file = exported(command, dsn, tmp_path / "log.jsonl")

    assert imported(command, empty, file).code == 0
    assert the_log(empty) == the_log(dsn)
    assert b64decode(json.loads(file.read_bytes().splitlines()[2])["state_base64"]) == state


def test_a_former_file_is_replaced_by_a_whole_one_only(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_bytes(b"former")

    def stopped() -> None:
        with written(file) as new:
            new.write(b"half")
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        stopped()
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]
    assert file.read_bytes() == b"former"

    with written(file) as new:
        new.write(b"whole")
        with pytest.raises(Busy), written(file):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]
    assert file.read_bytes() == b"whole"
    assert file.stat().st_mode & 0o777 == 0o600


def test_the_target_of_a_link_is_replaced_and_both_are_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "backups"
    directory.mkdir()
    link = tmp_path / "log.jsonl"
    link.symlink_to(directory / "of_today.jsonl")
    synced: list[tuple[str, bool]] = []

    def sync(descriptor: int) -> None:
        synced.append((str(Path(f"/proc/self/fd/{descriptor}").readlink()), (directory / "of_today.jsonl").exists()))

    monkeypatch.setattr(os, "fsync", sync)

    with written(link) as new:
        new.write(b"whole")

    assert link.readlink() == directory / "of_today.jsonl"
    assert [path.name for path in directory.iterdir()] == ["of_today.jsonl"]
    assert link.read_bytes() == b"whole"
    assert synced == [(str(directory / "of_today.jsonl.part"), False), (str(directory), True)]


def test_a_full_disk_is_told_in_one_line_and_leaves_nothing(dsn: str, tmp_path: Path) -> None:
    fill(dsn, *lived())

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = subprocess.run(
        [Path(sys.executable).with_name("registrar"), "events", "export", tmp_path / "log.jsonl"],
        env=clean_environment(DATABASE_URL=dsn, MASTER_KEY=MASTER_KEY),
        preexec_fn=full,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "File too large" in done.stderr
    assert [*tmp_path.iterdir()] == []


def test_a_log_with_a_gap_is_not_exported_as_if_it_were_whole(dsn: str, tmp_path: Path, command: Command) -> None:
    small(dsn)
    rows(dsn, "ALTER TABLE events DISABLE TRIGGER events_are_for_ever")
    rows(dsn, "DELETE FROM events WHERE notification_id = 2")

    done = command("events", "export", str(tmp_path / "log.jsonl"), DATABASE_URL=dsn, MASTER_KEY=MASTER_KEY)

    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "positions are missing" in done.err
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("at_once", [1, 3])
def test_as_many_queries_are_asked_at_a_time_as_may_be_and_the_lines_are_in_order(dsn: str, at_once: int) -> None:
    fill(dsn, *lived())
    under_way, most = 0, 0

    async def export() -> bytes:
        async with QueryPool(dsn, statement_timeout=timedelta(seconds=10), read_only=True) as pool:

            class Counted:
                async def ask(self, select: Any) -> Any:
                    nonlocal under_way, most
                    under_way += 1
                    most = max(most, under_way)
                    try:
                        return await pool.ask(select)
                    finally:
                        under_way -= 1

            options: Any = {"release": "1", "with_keys": False, "on_events": lambda *_: None, "at_once": at_once}
            return b"".join([piece async for piece in exporting.exported(Counted(), **options)])

    content = asyncio.run(export())

    assert checked(content).position == rows(dsn, HEAD)[0][0] > at_once * exporting.CHUNK_EVENTS
    assert most == at_once


# --- Import -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.zst"])
def test_an_imported_log_is_the_same_log(dsn: str, empty: str, tmp_path: Path, command: Command, ending: str) -> None:
    fill(dsn, *lived())
    file = exported(command, dsn, tmp_path / f"log.{ending}")

    done = imported(command, empty, file)

    assert done.code == 0
    assert the_log(empty) == the_log(dsn)
    assert broken(empty) == []
    again = exported(command, empty, tmp_path / "again.jsonl").read_bytes().splitlines()
    assert again[1:-1] == exported(command, dsn, tmp_path / "plain.jsonl").read_bytes().splitlines()[1:-1]


def test_what_follows_an_import_is_recorded_behind_it(dsn: str, empty: str, tmp_path: Path, command: Command) -> None:
    small(dsn)
    imported(command, empty, exported(command, dsn, tmp_path / "log.jsonl"))

    fill(empty, stored(*stream(OTHER, registered())))

    assert rows(empty, "SELECT position FROM head") == [(4,)]
    assert broken(empty) == []


def test_an_empty_log_can_be_taken_along(dsn: str, empty: str, tmp_path: Path, command: Command) -> None:
    assert imported(command, empty, exported(command, dsn, tmp_path / "log.jsonl")).code == 0
    assert the_log(empty) == the_log(dsn)


def test_a_store_with_anything_in_it_is_refused_and_stays_as_it_is(
    dsn: str, empty: str, tmp_path: Path, command: Command
) -> None:
    small(dsn)
    file = exported(command, dsn, tmp_path / "log.jsonl")
    before = the_log(dsn)

    into_itself = imported(command, dsn, file)
    imported(command, empty, file)
    twice = imported(command, empty, file)

    for done in (into_itself, twice):
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert "This store is not empty" in done.err
    assert the_log(dsn) == the_log(empty) == before


@pytest.mark.parametrize(
    "left",
    [
        "INSERT INTO personal_keys VALUES (gen_random_uuid(), '')",
        "INSERT INTO followers (name, position) VALUES ('mail-saga', 7)",
    ],
)
def test_a_store_is_not_empty_that_has_more_than_events(dsn: str, tmp_path: Path, command: Command, left: str) -> None:
    file = exported(command, dsn, tmp_path / "log.jsonl")
    rows(dsn, left)

    assert "This store is not empty" in imported(command, dsn, file).err
    assert len(rows(dsn, HEAD)) == 1


def test_a_store_that_processes_use_is_refused(dsn: str, empty: str, tmp_path: Path, command: Command) -> None:
    file = exported(command, dsn, tmp_path / "log.jsonl")

    with psycopg.connect(empty, application_name="registrar append"):
        done = imported(command, empty, file)

    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "stop them" in done.err
    assert imported(command, empty, file).code == 0


def test_an_altered_block_is_not_written_and_a_sound_file_goes_on(
    dsn: str, empty: str, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infrastructure.archive.importing.BATCH_EVENTS", 500)
    fill(dsn, *lived())
    file = exported(command, dsn, tmp_path / "log.jsonl")
    altered = tmp_path / "altered.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    assert b'"actor":"' in lines[1500]
    lines[1500] = lines[1500].replace(b'"actor":"', b'"actor":"x')
    altered.write_bytes(b"".join(lines))

    refused = imported(command, empty, altered)
    half = rows(empty, "SELECT max(notification_id) FROM events")[0][0]

    assert (refused.code, refused.err.count("\n")) == (1, 1)
    assert 500 <= half < 1500
    assert imported(command, empty, file).code == 0
    assert the_log(empty) == the_log(dsn)


def test_nothing_can_be_recorded_in_a_half_imported_store_and_no_service_starts_on_it(
    dsn: str, empty: str, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infrastructure.archive.importing.BATCH_EVENTS", 500)
    fill(dsn, *lived())
    cut = tmp_path / "cut.jsonl"
    cut.write_bytes(exported(command, dsn, tmp_path / "log.jsonl").read_bytes()[:-300])
    assert "it was cut after position" in imported(command, empty, cut).err

    with pytest.raises(psycopg.errors.NoDataFound):
        fill(empty, stored(*stream(OTHER, registered())))
    for looking in (
        ("events", "list"),
        ("projections", "list"),
        ("events", "export", "-"),
        ("mail", "discard", str(OTHER)),
    ):
        done = command(*looking, DATABASE_URL=empty, MASTER_KEY=MASTER_KEY)
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert "An import into this database is not finished" in done.err
    doctor = command("doctor", DATABASE_URL=empty, MASTER_KEY=MASTER_KEY)
    assert doctor.code == 1
    assert "an import into it is not finished" in doctor.out

    assert imported(command, empty, tmp_path / "log.jsonl").code == 0
    assert the_log(empty) == the_log(dsn)


@pytest.fixture
def other(postgres: EmbeddedPostgres, administration: psycopg.Connection) -> Iterator[str]:
    """One more database with nothing in it."""
    administration.execute("CREATE DATABASE other_log STRATEGY file_copy")
    yield database_of(postgres, "other_log")
    administration.execute("DROP DATABASE other_log WITH (FORCE)")


def test_another_log_does_not_go_on_with_an_import(
    dsn: str, empty: str, other: str, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infrastructure.archive.importing.BATCH_EVENTS", 1)
    asyncio.run(_tables(other))
    fill(dsn, *lived(20))
    fill(other, *lived(20))  # the same events, at another time
    content = exported(command, dsn, tmp_path / "log.jsonl").read_bytes()
    (tmp_path / "cut.jsonl").write_bytes(content[: len(content) // 2])
    imported(command, empty, tmp_path / "cut.jsonl")
    begun = rows(empty, EVENTS)

    done = imported(command, empty, exported(command, other, tmp_path / "other.jsonl"))

    assert begun
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "An import of another log was begun in this store" in done.err
    assert rows(empty, EVENTS) == begun


async def _tables(dsn: str) -> None:
    async with await connect(dsn, name="setup", statement_timeout=timedelta(seconds=10)) as connection:
        await create_schema(connection)


@pytest.mark.parametrize("passing", [1, 2, 3])
def test_an_import_that_is_killed_goes_on(
    dsn: str, empty: str, tmp_path: Path, command: Command, reached_directory: Path, passing: int
) -> None:
    fill(
        dsn,
        *[[(happened(state=b'{"n":"%d"}' % n), CLIENT) for n in range(k, k + 1000)] for k in range(0, 25_000, 1000)],
    )
    file = exported(command, dsn, tmp_path / "log.jsonl.zst")

    armed = ["-m", "tests.faults.armed", f"import.batch:{passing}", str(reached_directory), "--"]
    killed = subprocess.run(
        [sys.executable, *armed, "events", "import", str(file)],
        env=clean_environment(DATABASE_URL=empty, MASTER_KEY=MASTER_KEY),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=False,
    )
    written_by_then = rows(empty, "SELECT count(*) FROM events")[0][0]
    done = imported(command, empty, file)

    assert killed.returncode == -signal.SIGKILL
    assert written_by_then == 10_000 * (passing - 1)
    assert done.code == 0
    assert the_log(empty) == the_log(dsn)


def test_only_the_owner_of_the_tables_may_begin_an_import(dsn: str) -> None:
    rows(dsn, "CREATE ROLE of_the_service")
    try:
        rows(dsn, "GRANT ALL ON ALL TABLES IN SCHEMA public TO of_the_service")
        for call in ("begin_import()", "end_import(0, '')"):
            with psycopg.connect(dsn) as connection:
                connection.execute("SET ROLE of_the_service")
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(f"SELECT {call}".encode())
    finally:
        rows(dsn, "DROP OWNED BY of_the_service")
        rows(dsn, "DROP ROLE of_the_service")


def test_an_import_is_ended_only_where_the_log_is_whole(dsn: str) -> None:
    small(dsn)
    rows(dsn, "DELETE FROM head")
    (right,) = rows(dsn, "SELECT last_position, hash FROM blocks ORDER BY last_position DESC LIMIT 1")

    with psycopg.connect(dsn, autocommit=True) as connection:
        for wrong in ((right[0] - 1, right[1]), (right[0] + 1, right[1]), (right[0], b"x" * 32), (2, right[1])):
            with pytest.raises(psycopg.errors.DataCorrupted):
                connection.execute("SELECT public.end_import(%s, %s)", wrong)
        connection.execute("SELECT public.end_import(%s, %s)", right)
        with pytest.raises(psycopg.errors.DataCorrupted):
            connection.execute("SELECT public.end_import(%s, %s)", right)


# --- Personal keys ----------------------------------------------------------------------------


def with_people(dsn: str) -> Keyring:
    """One person, and one that is erased."""

    async def keyring() -> Keyring:
        async with await connect(dsn, name="setup", statement_timeout=timedelta(seconds=10)) as connection:
            root = await open_root_secret(connection, bytes.fromhex(MASTER_KEY))
        return Keyring(master_key=bytes.fromhex(MASTER_KEY), root_secret=root)

    found = asyncio.run(keyring())
    sealed, key = found.seal(REGISTRATION, Person(email="ada@example.org", name="Ada", password_hash=None))
    other_sealed, other_key = found.seal(OTHER, Person(email="eve@example.org", name="Eve", password_hash=None))
    fill(
        dsn,
        stored(
            *stream(REGISTRATION, registered(personal_data=sealed)),
            *stream(OTHER, registered(personal_data=other_sealed), personal_data_erased()),
        ),
        keys=[key, other_key],
    )
    rows(dsn, f"DELETE FROM personal_keys WHERE registration_id = '{OTHER}'")
    return found


def test_personal_keys_are_exported_only_if_asked_for(dsn: str, tmp_path: Path, command: Command) -> None:
    with_people(dsn)
    (((wrapped,),), ((root,),)) = (
        rows(dsn, "SELECT wrapped FROM personal_keys"),
        rows(dsn, "SELECT wrapped FROM service_secrets"),
    )

    plain = exported(command, dsn, tmp_path / "plain.jsonl").read_text()
    keys = exported(command, dsn, tmp_path / "keys.jsonl", "--with-keys", "--reason", "moving").read_text()

    assert asyncio.run(acts_of(dsn)) == [("export-log-with-keys", "moving")]
    assert json.loads(plain.splitlines()[0])["root_secret"] is None
    assert not [line for line in plain.splitlines() if line.startswith('{"registration_id"')]
    assert b64decode(json.loads(keys.splitlines()[0])["root_secret"]) == root
    (key,) = [json.loads(line) for line in keys.splitlines() if line.startswith('{"registration_id"')]
    assert (UUID(key["registration_id"]), b64decode(key["wrapped"])) == (REGISTRATION, wrapped)


def test_with_its_keys_a_log_can_be_read_where_it_is_imported(
    dsn: str, empty: str, tmp_path: Path, command: Command
) -> None:
    with_people(dsn)
    file = exported(command, dsn, tmp_path / "log.jsonl.zst", "--with-keys")

    undecided = imported(command, empty, file)
    done = imported(command, empty, file, "--with-keys")

    assert (undecided.code, undecided.err.count("\n")) == (2, 1)
    assert "say --with-keys to take them, --without-keys to leave them" in undecided.err
    assert done.code == 0
    for table in ("personal_keys", "service_secrets"):
        assert rows(empty, f"SELECT * FROM {table}") == rows(dsn, f"SELECT * FROM {table}")


def test_keys_can_be_left_behind(dsn: str, empty: str, tmp_path: Path, command: Command) -> None:
    with_people(dsn)
    file = exported(command, dsn, tmp_path / "log.jsonl", "--with-keys")

    assert imported(command, empty, file, "--without-keys").code == 0

    assert the_log(empty) == the_log(dsn)
    assert rows(empty, "SELECT FROM personal_keys") == rows(empty, "SELECT FROM service_secrets") == []


def test_keys_that_the_master_key_does_not_open_are_refused_before_anything_is_written(
    dsn: str, empty: str, tmp_path: Path, command: Command
) -> None:
    with_people(dsn)
    file = exported(command, dsn, tmp_path / "log.jsonl", "--with-keys")

    done = command("events", "import", "--with-keys", str(file), DATABASE_URL=empty, MASTER_KEY="cd" * 32)

    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "master key is not the one that the keys in this file are wrapped by" in done.err
    assert rows(empty, "SELECT position FROM head") == [(0,)]


def test_keys_do_not_go_into_a_store_with_a_root_secret_of_its_own(
    dsn: str, empty: str, tmp_path: Path, command: Command
) -> None:
    with_people(dsn)
    file = exported(command, dsn, tmp_path / "log.jsonl", "--with-keys")
    asyncio.run(_tables(empty))
    asyncio.run(_a_service_has_started(empty))

    done = imported(command, empty, file, "--with-keys")

    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "root secret of its own" in done.err
    assert rows(empty, "SELECT position FROM head") == [(0,)]


async def _a_service_has_started(dsn: str) -> None:
    async with await connect(dsn, name="setup", statement_timeout=timedelta(seconds=10)) as connection:
        await open_root_secret(connection, bytes.fromhex(MASTER_KEY))


def test_the_embedded_database_is_made_for_an_import(dsn: str, tmp_path: Path, command: Command) -> None:
    with_people(dsn)
    file = exported(command, dsn, tmp_path / "log.jsonl", "--with-keys")
    directory = str(tmp_path / "copy")

    done = command("events", "import", "--with-keys", "--data-dir", directory, str(file), MASTER_KEY=MASTER_KEY)
    listed = command("events", "list", "--data-dir", directory, "--json", MASTER_KEY=MASTER_KEY)

    assert done.code == 0
    assert [event["position"] for event in listed.json] == [1, 2, 3, 4]
    assert listed.json[-1]["type"] == "operator.acted"  # the export with keys


# --- What ends a check, or an import ----------------------------------------------------------


@contextmanager
def reading(*words: str | Path, dsn: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A command that reads from a pipe, to which no more is written than its first byte; and that pipe's other end."""
    theirs, ours = os.pipe()
    with heeding_ctrl_c():
        process = subprocess.Popen(
            [Path(sys.executable).with_name("registrar"), "events", "import", *words, "-"],
            env=clean_environment(DATABASE_URL=dsn, MASTER_KEY=MASTER_KEY),
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    os.write(ours, b"{")

    def has_read_it() -> bool:
        return ioctl(theirs, termios.FIONREAD, bytes(4)) == bytes(4)

    try:
        asyncio.run(eventually(has_read_it))
        yield process, ours
    finally:
        process.kill()
        process.communicate()
        os.close(theirs)
        os.close(ours)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--check"], "Stopped; the log is not checked to its end."),
        ([], "Stopped; the same command goes on behind the last event that is written."),
    ],
)
def test_what_reads_a_silent_pipe_can_be_stopped(dsn: str, words: list[str], says: str, how: signal.Signals) -> None:
    with reading(*words, dsn=dsn) as (process, _):
        process.send_signal(how)
        out, err = process.communicate(timeout=PATIENCE)

    assert (process.returncode, out, err) == (130, "", f"{says}\n")


def test_a_check_of_a_named_pipe_that_nobody_writes_can_be_stopped(tmp_path: Path) -> None:
    pipe = tmp_path / "log.jsonl"
    os.mkfifo(pipe)
    with heeding_ctrl_c():
        process = subprocess.Popen(
            [Path(sys.executable).with_name("registrar"), "events", "import", "--check", pipe],
            env=clean_environment(),
            stderr=subprocess.PIPE,
            text=True,
        )

    def has_opened_it() -> bool:
        return pipe.resolve() in [one.resolve() for one in Path(f"/proc/{process.pid}/fd").iterdir()]

    try:
        asyncio.run(eventually(has_opened_it))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.communicate()

    assert (process.returncode, err) == (130, f"Stopped; {pipe} is not checked to its end.\n")


def test_a_file_is_not_read_on_that_nobody_wants_any_more(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_bytes(b"line\n" * 1_000_000)

    with Source(file) as source, io.BufferedReader(source) as reader:
        lines = lines_of(reader)
        assert next(lines) == b"line\n"
        source.stop()
        with pytest.raises(Stopped):
            sum(1 for _ in lines)
        assert source.tell() < file.stat().st_size


def test_a_file_in_a_pipe_is_read_to_its_end(dsn: str, tmp_path: Path) -> None:
    fill(dsn, *lived(20))
    pipe = tmp_path / "log.jsonl.zst"
    os.mkfifo(pipe)

    def registrar(*words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [Path(sys.executable).with_name("registrar"), "events", *words, pipe],
            env=clean_environment(DATABASE_URL=dsn, MASTER_KEY=MASTER_KEY),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    checking, exporting = registrar("import", "--check"), registrar("export")
    for process in (checking, exporting):
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 0


def test_an_import_that_the_database_ends_does_not_wait_for_more_of_the_file(
    dsn: str, empty: str, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infrastructure.archive.importing.BATCH_EVENTS", 1)
    small(dsn)
    content = exported(command, dsn, tmp_path / "log.jsonl").read_bytes().splitlines(keepends=True)
    asyncio.run(_tables(empty))
    rows(empty, "CREATE FUNCTION refused() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$")
    rows(empty, "CREATE TRIGGER refused BEFORE INSERT ON blocks FOR EACH ROW EXECUTE FUNCTION refused()")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    async def importing() -> None:
        with Source(pipe) as source, io.BufferedReader(source) as file, pipe.open("wb", buffering=0) as writer:
            writer.write(b"".join(content[:4]))  # the first block, and the beginning of the second one
            log = await asyncio.to_thread(ExportedLog, lines_of(file))
            try:
                async with await connect(empty, name="import", statement_timeout=timedelta(seconds=10)) as connection:
                    await begin_import(connection)
                    await import_events(connection, log, on_events=lambda _: None)
            finally:
                source.stop()

    with pytest.raises(psycopg.errors.RaiseException, match="refused"):
        asyncio.run(importing())


def test_a_full_disk_of_the_database_is_told_and_the_import_goes_on_when_there_is_room(
    dsn: str, empty: str, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infrastructure.archive.importing.BATCH_EVENTS", 500)
    fill(dsn, *lived())
    file = exported(command, dsn, tmp_path / "log.jsonl")
    asyncio.run(_tables(empty))
    rows(
        empty,
        "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF NEW.last_position > 1000 THEN"
        " RAISE 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END IF; RETURN NEW; END $$",
    )
    rows(empty, "CREATE TRIGGER full_disk BEFORE INSERT ON blocks FOR EACH ROW EXECUTE FUNCTION full_disk()")

    done = imported(command, empty, file)
    half = rows(empty, "SELECT count(*) FROM events")[0][0]
    rows(empty, "DROP TRIGGER full_disk ON blocks")

    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "The database's disk is full" in done.err
    assert 0 < half <= 1000
    assert imported(command, empty, file).code == 0
    assert the_log(empty) == the_log(dsn)


def test_ctrl_c_ends_an_import_and_the_same_command_goes_on(
    dsn: str, empty: str, tmp_path: Path, command: Command
) -> None:
    small(dsn)
    file = exported(command, dsn, tmp_path / "log.jsonl")
    asyncio.run(_tables(empty))

    async def interrupted() -> tuple[int, str]:
        async with locked(empty, "SET idle_in_transaction_session_timeout = 0; LOCK TABLE blocks IN SHARE MODE"):
            importing = await asyncio.create_subprocess_exec(
                Path(sys.executable).with_name("registrar"),
                *("events", "import", file),
                env=clean_environment(DATABASE_URL=empty, MASTER_KEY=MASTER_KEY),
                stderr=asyncio.subprocess.PIPE,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )
            await until_waiting_for_a_lock(empty, "registrar import")
            importing.send_signal(signal.SIGINT)
            _, said = await importing.communicate()
            assert importing.returncode is not None
            return importing.returncode, said.decode()

    code, said = asyncio.run(interrupted())

    assert code == 130
    assert said.strip() == "Stopped; the same command goes on behind the last event that is written."
    assert imported(command, empty, file).code == 0
    assert the_log(empty) == the_log(dsn)
