"""Backups of a running embedded database: restored to its end and to a moment, damaged, tried out, and noted."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil  # type: ignore[import-untyped]
import psycopg
import pytest

from application.ports import entries_of
from entrypoints.bootstrap.database import create_schema
from infrastructure.audit.note_keys import SigningKey
from infrastructure.audit.notes import checkpoint_text, signed_note
from infrastructure.audit.publishing import CheckpointDirectory
from infrastructure.embedded.data_directory import DataDirectory
from infrastructure.embedded.files import exclusively
from infrastructure.embedded.postgres import EmbeddedPostgres
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.store import EventStore
from infrastructure.postgres.connection import connect
from tests.integration.conftest import Command
from tests.support.commands import clean_environment
from tests.support.facts import CLIENT, MovableClock, eventually, registered, stream
from tests.support.http import ADMIN, open_api
from tests.support.log import acts_of, query
from tests.support.postgres import SURVIVES_KILLS, in_memory
from tests.support.read_models import contents, follow_all, recorded_history
from tests.support.tampering import checkpoint_at

pytestmark = pytest.mark.slow

REGISTRAR = Path(sys.executable).with_name("registrar")


@dataclass
class Home:
    """A running embedded database with a history, and where its backups go."""

    data: Path
    backups: Path
    postgres: EmbeddedPostgres

    def ask(self, statement: str, *parameters: Any) -> Any:
        """The value that a statement of the superuser's returns."""
        with psycopg.connect(self.postgres.dsn, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), parameters or None)
            row = cursor.fetchone() if cursor.description else None
            return None if row is None else row[0]

    def live(self, *, history: bool = False) -> int:
        """Record more, which every read model sees; returns the end of the log."""
        return asyncio.run(_recorded(self.postgres.dsn, history=history))

    def archived(self) -> None:
        """Everything that was recorded is in the archive."""
        name = self.ask("SELECT pg_walfile_name(pg_switch_wal())")

        def there() -> bool:
            return bool(self.ask("SELECT last_archived_wal >= %s FROM pg_stat_archiver", name))

        asyncio.run(_until(there))

    @property
    def latest(self) -> Path:
        return max(path for path in self.backups.iterdir() if path.is_dir())


async def _until(condition: Any) -> None:
    await eventually(condition, within=30)


async def _recorded(dsn: str, *, history: bool) -> int:
    store = EventStore(dsn, codec=EventCodec(), clock=MovableClock())
    await store.open()
    try:
        async with await connect(dsn, name="test", statement_timeout=timedelta(seconds=10)) as connection:
            await create_schema(connection)
            if history:
                await recorded_history(store, registrations=20)
            else:
                for _ in range(5):
                    await store.append(entries_of(stream(uuid4(), registered()), CLIENT))
            await follow_all(store, connection)
            return await store.head()
    finally:
        await store.close()


@contextmanager
def running(data: Path) -> Iterator[Home]:
    postgres = EmbeddedPostgres(data, SURVIVES_KILLS)
    postgres.start()
    try:
        yield Home(data, data.parent / "backups", postgres)
    finally:
        postgres.stop()


@pytest.fixture(scope="module")
def lived_in() -> Iterator[Path]:
    """A data directory with a history, whose server is stopped: a copy of it is made faster than another one."""
    with tempfile.TemporaryDirectory(prefix="registrar-tests-", dir=in_memory()) as directory:
        data = DataDirectory(Path(directory) / "data")
        data.master_key()
        with running(data.path) as home:
            home.live(history=True)
        yield data.path


@pytest.fixture
def home(lived_in: Path) -> Iterator[Home]:
    with tempfile.TemporaryDirectory(prefix="registrar-tests-", dir=in_memory()) as directory:
        data = Path(directory) / "data"
        subprocess.run(["cp", "--archive", lived_in, data], check=True)  # with its owners
        with running(data) as home:
            yield home


def facts_of(data: Path) -> dict[str, Any]:
    """What a database that does not run holds: its log, and every read model."""
    postgres = EmbeddedPostgres(data, SURVIVES_KILLS)
    postgres.start()
    try:
        return asyncio.run(_facts(postgres.dsn))
    finally:
        postgres.stop()


async def _facts(dsn: str) -> dict[str, Any]:
    async with await connect(dsn, name="test", statement_timeout=timedelta(seconds=10)) as connection:
        schemas = await query(dsn, "SELECT nspname::text FROM pg_namespace WHERE nspname ~ '^read_' ORDER BY 1")
        [head] = await query(dsn, "SELECT position, hash FROM head")
        settings = await query(dsn, "SELECT name, setting FROM pg_settings WHERE name ~ '^archive_(command|timeout)$'")
        return {
            "head": head,
            "archive": dict(settings),
            "timeline": (await query(dsn, "SELECT timeline_id FROM pg_control_checkpoint()"))[0][0],
            "models": {schema: await contents(connection, schema) for (schema,) in schemas},
        }


def test_what_was_recorded_since_the_backup_comes_back_from_the_archive_or_up_to_a_moment(
    home: Home, command: Command
) -> None:
    taken = command("backup", str(home.backups), "--reason", "the nightly one", "--data-dir", str(home.data))
    assert (taken.code, "up to position" in taken.out) == (0, True), taken.err
    assert asyncio.run(acts_of(home.postgres.dsn))[-1] == ("back-up", "the nightly one")
    assert "master key is not in it" in taken.err
    assert "checkpoint.key" in taken.err
    before = home.live()
    moment = home.ask("SELECT clock_timestamp()")
    head = home.live()
    home.archived()
    expected = asyncio.run(_facts(home.postgres.dsn))

    whole, past = home.data.parent / "whole", home.data.parent / "past"
    done = command("restore", str(home.backups), "--data-dir", str(whole), "--json")
    assert done.code == 0, done
    assert done.json["position"] == head
    assert "Put master.key and checkpoint.key back" in done.err
    found = facts_of(whole)
    assert (found["head"], found["models"]) == (expected["head"], expected["models"])
    # It lives on by itself, and archives nothing to where it came from.
    assert found["archive"] == {"archive_command": ":", "archive_timeout": "0"}
    assert found["timeline"] == 2
    assert sorted(path.name for path in whole.iterdir() if "new" in path.name) == []

    done = command("restore", str(home.backups), "--to", moment.isoformat(), "--data-dir", str(past), "--json")
    assert done.code == 0, done
    assert done.json["position"] == before
    assert facts_of(past)["head"][0] == before

    # Restored once more, beside what was restored already.
    again = command("restore", str(home.backups), "--data-dir", str(past))
    assert (again.code, "nothing is restored over one" in again.err) == (2, True)


def test_a_moment_that_no_backup_reaches_is_refused_and_leaves_no_database(home: Home, command: Command) -> None:
    to = str(home.data.parent / "restored")
    before = home.ask("SELECT clock_timestamp()")
    command("backup", str(home.backups), "--data-dir", str(home.data))
    home.archived()

    early = command("restore", str(home.backups), "--to", before.isoformat(), "--data-dir", to)
    late = command("restore", str(home.backups), "--to", "2099-01-01", "--data-dir", to)

    assert (early.code, "The oldest backup" in early.err) == (1, True)
    assert (late.code, "The archive ends before 2099" in late.err, "try again" in late.err) == (1, True, True)
    assert not (Path(to) / "postgres").exists()


def test_a_restore_says_whether_a_journal_of_erasures_is_there(home: Home, command: Command) -> None:
    command("backup", str(home.backups), "--data-dir", str(home.data))
    none, brought = home.data.parent / "none", home.data.parent / "brought"
    (none / "checkpoints").mkdir(parents=True, mode=0o700)
    journal = home.data.parent / "published" / "erasures"
    journal.parent.mkdir()

    without = command("restore", str(home.backups), "--data-dir", str(none), "--checkpoints", str(journal.parent))
    journal.touch()
    having = command("restore", str(home.backups), "--data-dir", str(brought), "--checkpoints", str(journal.parent))

    assert (without.code, "No journal of erasures is there" in without.err) == (0, True), without
    assert (having.code, "No journal of erasures is there" in having.err) == (0, False), having


def test_a_restore_without_a_journal_can_be_said_to_need_none(home: Home, command: Command) -> None:
    command("backup", str(home.backups), "--data-dir", str(home.data))
    asked, told = home.data.parent / "asked", home.data.parent / "told"

    command("restore", str(home.backups), "--data-dir", str(asked))
    done = command("restore", str(home.backups), "--without-journal", "--data-dir", str(told))

    assert (done.code, "journal" in done.err) == (0, False), done
    assert [unsettled(asked), unsettled(told)] == [1, 0]


def unsettled(data: Path) -> int:
    """Restores of a database that does not run, of which erasures since are unknown."""
    postgres = EmbeddedPostgres(data, SURVIVES_KILLS)
    postgres.start()
    try:
        return len(asyncio.run(query(postgres.dsn, "SELECT 1 FROM restores WHERE settled_at IS NULL")))
    finally:
        postgres.stop()


def test_a_person_at_a_terminal_is_asked_before_anything_is_restored_without_a_journal(
    home: Home, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("backup", str(home.backups), "--data-dir", str(home.data))
    to = home.data.parent / "restored"

    def answered(answer: str) -> Any:
        monkeypatch.setattr(sys, "stdin", Terminal(answer))
        return command("restore", str(home.backups), "--data-dir", str(to))

    no = answered("n\n")
    assert (no.code, "can be read again" in no.err, "--checkpoints" in no.err) == (1, True, True), no
    assert not (to / "postgres").exists()
    yes = answered("y\n")
    assert yes.code == 0, yes
    assert unsettled(to) == 0


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_no_journal_takes_the_place_of_another(home: Home, command: Command) -> None:
    """One in the place that is restored to may know of more erasures."""
    command("backup", str(home.backups), "--data-dir", str(home.data))
    to, older = home.data.parent / "restored", home.data.parent / "older"
    for directory, text in ((to / "checkpoints", "newer"), (older, "older")):
        directory.mkdir(parents=True, mode=0o700)
        (directory / "erasures").write_text(text)

    refused = command("restore", str(home.backups), "--data-dir", str(to), "--checkpoints", str(older))
    assert (refused.code, "perhaps newer ones" in refused.err) == (2, True), refused
    done = command("restore", str(home.backups), "--data-dir", str(to))

    assert done.code == 0, done
    assert (to / "checkpoints" / "erasures").read_text() == "newer"


def test_what_is_brought_goes_to_where_the_service_looks_for_it(home: Home, command: Command, tmp_path: Path) -> None:
    command("backup", str(home.backups), "--data-dir", str(home.data))
    published, to = home.data.parent / "published", home.data.parent / "restored"
    published.mkdir()
    (published / "erasures").write_text("notes\n")
    words = ("restore", str(home.backups), "--data-dir", str(to), "--checkpoints", str(published))

    done = command(*words, CHECKPOINT_DIR=str(tmp_path / "checkpoints"))

    assert done.code == 0, done
    assert (tmp_path / "checkpoints" / "erasures").read_text() == "notes\n"


def test_a_backup_of_another_database_and_one_from_the_future_are_never_taken_for_the_last_one(
    home: Home, command: Command
) -> None:
    command("backup", str(home.backups), "--data-dir", str(home.data))
    whole = home.latest

    def tried() -> Any:
        asyncio.run(_until(lambda: home.ask("SELECT clock_timestamp()").strftime("%Y-%m-%dT%H-%M-%SZ") > whole.name))
        return command("backup", str(home.backups), "--keep", "1", "--data-dir", str(home.data))

    description = whole / "backup.json"
    ours = description.read_text()
    identifier = json.loads(ours)["system_identifier"]
    description.write_text(ours.replace(identifier, "7"))
    refused = tried()
    assert (refused.code, "a backup of another database" in refused.err) == (1, True), refused

    description.write_text(ours)
    future = whole.rename(whole.with_name("2099-01-01T00-00-00Z"))
    refused = tried()
    assert (refused.code, "clock of the database" in refused.err) == (1, True), refused
    assert [path for path in home.backups.iterdir() if path.is_dir()] == [future]


def test_a_second_backup_at_the_same_time_says_so(home: Home, command: Command) -> None:
    home.backups.mkdir()
    with exclusively(home.backups / "backup.lock"), exclusively(home.data / "drill.lock"):
        backup = command("backup", str(home.backups), "--data-dir", str(home.data))
        drill = command("backup", "--drill", "--data-dir", str(home.data))

    assert (backup.code, "Another backup is being taken" in backup.err) == (2, True), backup
    assert (drill.code, "Another drill is under way" in drill.err) == (2, True), drill


def test_a_second_backup_takes_the_archive_over_and_a_moment_between_the_two_can_be_reached(
    home: Home, command: Command
) -> None:
    command("backup", str(home.backups), "--data-dir", str(home.data))
    first = home.latest
    position = home.live()
    moment = home.ask("SELECT clock_timestamp()")
    asyncio.run(_until(lambda: home.ask("SELECT clock_timestamp() > %s + interval '1 s'", moment)))
    home.live()
    second = command("backup", str(home.backups), "--data-dir", str(home.data), "--json")
    assert second.code == 0, second
    second = second.json
    assert Path(second["directory"]) == home.latest != first

    done = command(
        "restore", str(home.backups), "--to", moment.isoformat(), "--data-dir", str(home.data / "b"), "--json"
    )
    assert done.code == 0, done
    assert (done.json["position"], Path(done.json["backup"])) == (position, first)

    # Backups are named after the second in which they were begun.
    next_second = home.ask("SELECT date_trunc('second', clock_timestamp()) + interval '1 s'")
    asyncio.run(_until(lambda: home.ask("SELECT clock_timestamp() > %s", next_second)))
    third = command("backup", str(home.backups), "--keep", "1", "--data-dir", str(home.data), "--json")
    assert third.code == 0, third
    kept = third.json
    assert kept["removed"] == [first.name, Path(second["directory"]).name]


def test_a_checkpoint_that_is_being_published_does_not_cost_the_backup(home: Home, command: Command) -> None:
    published = home.data / "checkpoints"
    published.mkdir()
    (published / "2026-11-28.checkpoints").write_text("notes\n")
    # As the checkpointer's temporary file at the wrong moment: listed, and gone when it is opened.
    (published / "checkpoint.new").symlink_to(published / "gone")

    taken = command("backup", str(home.backups), "--data-dir", str(home.data))

    assert taken.code == 0, taken
    assert [path.name for path in (home.latest / "checkpoints").iterdir()] == ["2026-11-28.checkpoints"]


def test_a_drill_tells_what_would_be_lost_and_is_noted_if_it_passes(home: Home, command: Command) -> None:
    nothing = command("backup", "--drill", "--data-dir", str(home.data))
    assert (nothing.code, "No backup of this database is known" in nothing.err) == (2, True)
    command("backup", str(home.backups), "--data-dir", str(home.data))

    drill = command("backup", "--drill", "--data-dir", str(home.data))
    assert drill.code == 0, drill
    assert "its chain verifies" in drill.out
    assert "RPO: 0 s" in drill.out
    assert "RTO: " in drill.out
    noted = home.ask("SELECT json_object_agg(kind, position) FROM backups")
    assert noted["drill"] == noted["backup"] == home.ask("SELECT position FROM head")

    head = home.live()
    behind = command("backup", "--drill", str(home.backups), "--data-dir", str(home.data), "--json")
    assert (behind.code, behind.json["passed"], behind.json["lost_events"]) == (0, True, head - noted["backup"])
    assert behind.json["differences"].keys() >= {"registrations", "mail"}
    assert [path.name for path in home.data.iterdir() if ".new." in path.name] == []


def test_a_drill_fails_where_a_read_model_is_not_what_the_log_says(home: Home, command: Command) -> None:
    home.ask("UPDATE read_mail.mails SET state = 'SENT' WHERE state <> 'SENT'")
    command("backup", str(home.backups), "--data-dir", str(home.data))

    drill = command("backup", "--drill", "--data-dir", str(home.data))

    assert (drill.code, "The drill has FAILED" in drill.out) == (1, True), drill
    assert "mail=" in drill.out
    assert home.ask("SELECT count(*) FROM backups WHERE kind = 'drill'") == 0


def test_a_log_that_somebody_changed_is_not_taken_for_a_good_one(home: Home, command: Command) -> None:
    home.ask("ALTER TABLE events DISABLE TRIGGER ALL")
    home.ask("UPDATE events SET actor = 'nobody' WHERE notification_id = 7")
    command("backup", str(home.backups), "--data-dir", str(home.data))

    drill = command("backup", "--drill", "--data-dir", str(home.data))
    restored = command("restore", str(home.backups), "--data-dir", str(home.data.parent / "restored"))

    assert (drill.code, restored.code) == (1, 1)
    assert "does not verify" in drill.err
    assert not (home.data.parent / "restored" / "postgres").exists()


async def published(home: Home, seed: bytes, *, root: bytes | None = None) -> None:
    """The newest checkpoint, by whoever has that seed."""
    async with await connect(home.postgres.dsn, name="test", statement_timeout=timedelta(seconds=10)) as connection:
        checkpoint = await checkpoint_at(connection)
    if root is not None:
        checkpoint = checkpoint._replace(root=root)
    key, now = SigningKey("registrar/test", seed), datetime.now(UTC)
    directory = CheckpointDirectory(home.data / "checkpoints")
    directory.publish(signed_note(checkpoint_text(key.name, checkpoint, now), [key], now), now, key.verifiers)


def test_a_drill_believes_a_checkpoint_if_a_known_key_has_signed_it(home: Home, command: Command) -> None:
    command("backup", str(home.backups), "--data-dir", str(home.data))

    def drill() -> tuple[int, Any, str]:
        done = command("backup", "--drill", "--data-dir", str(home.data), "--json")
        said = command("backup", "--drill", "--data-dir", str(home.data))
        assert done.code == said.code, said
        return done.code, done.json["checkpoint_agrees"], said.out

    asyncio.run(published(home, bytes(32)))
    code, agrees, said = drill()
    assert (code, agrees, "and this log" in said) == (0, True, True), said

    # Somebody signs with a key of their own.
    latest, keys = home.data / "checkpoints" / "checkpoint", home.data / "checkpoints" / "keys"
    note, known = latest.read_text(), keys.read_text()
    asyncio.run(published(home, bytes([1]) * 32))
    keys.write_text(known)
    code, agrees, said = drill()
    assert (code, agrees, "no known key has signed it" in said) == (1, None, True), said

    # Or alters what was signed.
    latest.write_text(note.replace("\nposition ", "\nposition 1", 1))
    code, _, said = drill()
    assert (code, "it is not what registrar/test signed" in said) == (1, True), said

    # And where the key signed another log, this is another one.
    asyncio.run(published(home, bytes(32), root=bytes(32)))
    code, agrees, said = drill()
    assert (code, agrees, "ANOTHER log" in said) == (1, False, True), said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root works in other users' directories")
def test_root_restores_for_the_owner_of_the_data_directory_and_takes_the_archive_from_nobody(
    home: Home, command: Command
) -> None:
    command("backup", str(home.backups), "--data-dir", str(home.data))
    head = home.live()
    home.archived()
    hers, published = home.data.parent / "hers", home.data.parent / "published"
    published.mkdir()
    (published / "erasures").write_text("")
    hers.mkdir(mode=0o700)
    nobody = 65534
    os.chown(hers, nobody, nobody)
    live = home.data.joinpath("postgres").stat().st_uid

    done = command("restore", str(home.backups), "--data-dir", str(hers), "--checkpoints", str(published), "--json")

    assert done.code == 0, done
    assert done.json["position"] == head
    assert {path.name for path in hers.rglob("*") if path.lstat().st_uid != nobody} == set()
    wal = home.latest / "wal"
    assert {path.stat().st_uid for path in (wal, *wal.iterdir())} == {live} != {nobody}
    home.live()
    home.archived()


@pytest.mark.parametrize("damage", ["byte of the base", "manifest", "short", "segment", "gap"])
def test_damage_is_found_before_anybody_works_with_it(home: Home, command: Command, damage: str) -> None:
    command("backup", str(home.backups), "--data-dir", str(home.data))
    base, wal = home.latest / "base", home.latest / "wal"
    for _ in range(3):
        home.live()
        home.archived()
    segments = sorted(path for path in wal.iterdir() if len(path.name) == 27)
    match damage:
        case "byte of the base":
            content = bytearray(gzip.decompress((base / "base.tar.gz").read_bytes()))
            content[len(content) // 2] ^= 1
            (base / "base.tar.gz").write_bytes(gzip.compress(content, 1))
        case "manifest":
            manifest = base / "backup_manifest"
            manifest.write_text(manifest.read_text().replace("PG_VERSION", "PG_VERSIOM"))
        case "short":
            content = bytearray((base / "base.tar.gz").read_bytes())
            (base / "base.tar.gz").write_bytes(content[: len(content) // 2])
        case "segment":
            segments[-2].write_bytes(segments[-2].read_bytes()[:-100])
        case "gap":
            segments[-2].unlink()

    drill = command("backup", "--drill", "--data-dir", str(home.data))
    restored = command("restore", str(home.backups), "--data-dir", str(home.data.parent / "restored"))

    assert (drill.code, restored.code) == (1, 1), (drill, restored)
    # What is there up to a gap is better than nothing.
    assert (home.data.parent / "restored" / "postgres").exists() == (damage == "gap")
    if damage == "gap":
        assert f"The archive lacks the segment {segments[-2].name[:24]}" in restored.out


def test_a_killed_backup_is_never_taken_for_a_whole_one_and_the_next_one_cleans_up(
    home: Home, command: Command
) -> None:
    command("backup", str(home.backups), "--data-dir", str(home.data))
    whole = home.latest
    with subprocess.Popen(
        [REGISTRAR, "backup", home.backups, "--data-dir", home.data], env=clean_environment()
    ) as process:
        asyncio.run(_until(lambda: home.latest != whole and (home.latest / "base").exists()))
        process.kill()
    unfinished = home.latest
    assert process.returncode == -9
    assert not (unfinished / "backup.json").exists()

    position = home.live()
    home.archived()
    done = command("restore", str(home.backups), "--data-dir", str(home.data.parent / "restored"), "--json")
    assert done.code == 0, done
    assert (Path(done.json["backup"]), done.json["position"]) == (whole, position)

    command("backup", str(home.backups), "--data-dir", str(home.data))
    assert [path.name for path in unfinished.iterdir()] == ["wal"]


def test_what_a_killed_drill_leaves_is_ended_and_removed_by_the_next_backup(home: Home, command: Command) -> None:
    command("backup", str(home.backups), "--data-dir", str(home.data))

    def scratch() -> list[Path]:
        return list(home.data.glob("drill.new.*/postgres/postmaster.pid"))

    with subprocess.Popen(
        [REGISTRAR, "backup", "--drill", "--data-dir", home.data],
        env=clean_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        asyncio.run(_until(scratch))
        process.kill()
    [abandoned] = home.data.glob("drill.new.*/postgres")
    assert servers_on(abandoned) == 1

    done = command("backup", str(home.backups), "--data-dir", str(home.data))

    assert done.code == 0, done
    assert (list(home.data.glob("drill.new.*")), servers_on(abandoned)) == ([], 0)


def servers_on(data: Path) -> int:
    """How many servers run with their data there; what has ended and waits to be reaped has no command line."""
    command_lines = [one.info["cmdline"] or [] for one in psutil.process_iter(["cmdline"])]
    return sum(words[-2:] == ["-D", str(data)] for words in command_lines)


def test_an_archive_that_is_gone_and_comes_back_has_lost_nothing(home: Home, command: Command) -> None:
    command("backup", str(home.backups), "--data-dir", str(home.data))
    wal = home.latest / "wal"
    wal.rename(wal.with_name("away"))
    position = home.live()
    home.ask("SELECT pg_switch_wal()")
    asyncio.run(_until(lambda: home.ask("SELECT failed_count > 0 FROM pg_stat_archiver")))
    assert "archiving fails since" in command("doctor", "--data-dir", str(home.data)).out

    wal.with_name("away").rename(wal)
    home.live()
    position = home.live()
    home.archived()

    drill = command("backup", "--drill", "--data-dir", str(home.data), "--json")
    assert drill.code == 0, drill
    assert (drill.json["passed"], drill.json["position"], drill.json["missing_segment"]) == (True, position, None)


def test_an_external_database_is_left_to_those_who_run_it(dsn: str, command: Command, tmp_path: Path) -> None:
    for arguments in (["backup", str(tmp_path)], ["backup", "--drill"], ["restore", str(tmp_path)]):
        refused = command(*arguments, DATABASE_URL=dsn)
        assert (refused.code, "docs/backup.md" in refused.err) == (2, True), refused
    for arguments in (["backup"], ["backup", "--drill", "--keep", "1"], ["restore", str(tmp_path / "none")]):
        assert command(*arguments).code == 2


async def test_the_ages_of_the_last_backup_and_drill_are_metrics(dsn: str) -> None:
    async with open_api(dsn, follows=False) as api:

        async def shown() -> dict[str, float]:
            lines = (await api.http.get("/metrics", headers=ADMIN)).text.splitlines()
            ages = [line.split() for line in lines if line.startswith(("registrar_backup_age", "registrar_drill_age"))]
            return {name: float(value) for name, value in ages}

        none = await shown()
        assert [value != value for value in none.values()] == [True, True]  # noqa: PLR0124 - NaN
        await query(
            dsn,
            "INSERT INTO backups VALUES ('backup', '/b/1', 7, now() - interval '1 h'),"
            " ('drill', '/b/1', 7, now() - interval '2 h')",
        )
        found = await shown()

    assert 3600 <= found["registrar_backup_age_seconds"] < 7200 <= found["registrar_drill_age_seconds"]
