"""What tests stand on: a PostgreSQL of their own, and in it a fresh database for each test."""

from __future__ import annotations

import asyncio
import gc
import io
import logging
import os
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import hypothesis
import psycopg
import pytest
import structlog
from psycopg import sql

from application.crash_points import CRASH_POINTS
from entrypoints.bootstrap.database import create_schema
from infrastructure.embedded.postgres import EmbeddedPostgres
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.store import EventStore
from infrastructure.postgres.connection import Connection, connect
from infrastructure.telemetry.logs import configure_logging
from tests.faults import reached
from tests.support import redis as redis_server
from tests.support.facts import MovableClock
from tests.support.leaks import must_not_tell
from tests.support.leaks import pytest_runtest_makereport as pytest_runtest_makereport  # noqa: PLC0414 - a hook
from tests.support.postgres import SHARED, database_of, server
from tests.support.rabbitmq import PrivateRabbit, SharedRabbit, demand, node
from tests.support.redis import PrivateRedis

# Tests start hundreds of processes. Where bytecode is not to be written (containers often say so), each of them would
# compile our modules again, which is a sixth of its start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# No test depends on how fast the machine is: an example that takes a while is not a fault.
hypothesis.settings.register_profile("registrar", deadline=None)
hypothesis.settings.load_profile("registrar")

_TEMPLATE = "registrar_template"
_numbers = count(1)
_UNREACHED = pytest.StashKey[list[str]]()


# --- Crash points that no test reaches ----------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--without",
        action="append",
        default=[],
        choices=["rabbitmq", "pgbouncer", "redis", "nginx", "prometheus"],
        help="skip what needs it",
    )
    parser.addoption("--redis-server", help="use this program, which may be Valkey's")
    parser.addoption("--full-size", action="store_true", help="what replays, at the size of `make test-replay`")
    parser.addoption("--every-python", action="store_true", help="install the wheel with every Python there is")


def pytest_configure(config: pytest.Config) -> None:
    if program := config.getoption("--redis-server"):
        PrivateRedis.program = program
    if not hasattr(config, "workerinput"):
        directory = tempfile.TemporaryDirectory(prefix="registrar-reached-")
        config.stash[reached.DIRECTORY] = Path(directory.name)
        config.add_cleanup(directory.cleanup)
        config.add_cleanup(SharedRabbit(Path(directory.name)).end)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    reached.hand_to_worker(node, node.config.stash[reached.DIRECTORY])


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    # Where tests failed, what they did not reach tells nothing.
    if hasattr(session.config, "workerinput") or exitstatus != pytest.ExitCode.OK:
        return
    if reached.is_whole_suite(session.config):
        missing = reached.unreached(CRASH_POINTS, reached.directory_of(session.config))
        session.config.stash[_UNREACHED] = missing
        if missing:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    missing = terminalreporter.config.stash.get(_UNREACHED, [])
    if missing:
        terminalreporter.section("crash points that no test reached", red=True)
        for point in missing:
            terminalreporter.line(f"{point}: a test must arm it (tests/faults), or it must go")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes minutes goes first, and then what is slow, by how long it may take: the other workers do the rest
    meanwhile, and nobody waits for it at the end."""

    def turn(item: pytest.Item) -> tuple[bool, bool, float]:
        return (item.get_closest_marker("minutes") is None, item.get_closest_marker("slow") is None, -_may_take(item))

    items.sort(key=turn)


def _may_take(item: pytest.Item) -> float:
    """Seconds that it has asked for; 0 if none."""
    asked = item.get_closest_marker("timeout")
    return float(asked.args[0]) if asked is not None else 0.0


@pytest.fixture(scope="session")
def reached_directory(pytestconfig: pytest.Config) -> Path:
    """Where is noted which crash points were reached."""
    return reached.directory_of(pytestconfig)


@pytest.fixture(scope="session")
def full_size(pytestconfig: pytest.Config) -> bool:
    """Whether as much is to be done as the promise says, which takes minutes, or the same in small."""
    return bool(pytestconfig.getoption("--full-size"))


# --- The log of the process ----------------------------------------------------------------------


_PROCESSORS = [
    *structlog.get_config()["processors"][:-1],
    structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
]


def _log_plainly() -> None:
    """As structlog does by itself, but for tracebacks: it has rich draw each with all that is local, which takes a
    second of CPU."""
    structlog.reset_defaults()
    structlog.configure(processors=_PROCESSORS)


_log_plainly()


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """What a test sets up for the whole process (`configure_logging`, a command run within) ends with it: the next test
    would write to a stream that is closed."""
    root, hooks = logging.getLogger(), (sys.excepthook, threading.excepthook)
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    sys.excepthook, threading.excepthook = hooks
    _log_plainly()
    structlog.contextvars.clear_contextvars()


@pytest.fixture(autouse=True)
def _garbage_is_collected() -> Iterator[None]:
    """A command that a test runs within has it collected hardly ever, and what there is never. That is right for a
    process of its own; a worker of ours grew to 1.3 GB by it (a context of TLS has 1 MB, and each test of mail servers
    makes some)."""
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    gc.enable()
    gc.unfreeze()


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What the service writes to its log, as it is written; in the end nothing of a person may be in it."""
    stream = io.StringIO()
    configure_logging("json", stream=stream)
    yield stream
    must_not_tell(stream.getvalue())


# --- PostgreSQL ---------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """The server that the tests share. It forgets in a crash: a test of crashes starts one of its own."""
    with server(SHARED) as postgres:
        yield postgres


@pytest.fixture(scope="session")
def administration(postgres: EmbeddedPostgres) -> Iterator[psycopg.Connection]:
    """A connection that creates and drops databases; the template has the event store and every read model."""
    with psycopg.connect(postgres.dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(_TEMPLATE)))
        asyncio.run(_prepare(database_of(postgres, _TEMPLATE)))
        yield connection


async def _prepare(dsn: str) -> None:
    async with await connect(dsn, name="template", statement_timeout=timedelta(seconds=10)) as connection:
        await create_schema(connection)


@pytest.fixture
def dsn(postgres: EmbeddedPostgres, administration: psycopg.Connection) -> Iterator[str]:
    """A fresh database with all tables, for this test alone."""
    name = f"test_{next(_numbers)}"
    administration.execute(
        sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy").format(
            sql.Identifier(name), sql.Identifier(_TEMPLATE)
        )
    )
    yield database_of(postgres, name)
    administration.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def empty(postgres: EmbeddedPostgres, administration: psycopg.Connection) -> Iterator[str]:
    """A database with nothing in it, for this test alone."""
    name = f"empty_{next(_numbers)}"
    administration.execute(sql.SQL("CREATE DATABASE {} STRATEGY file_copy").format(sql.Identifier(name)))
    yield database_of(postgres, name)
    administration.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
async def connection(dsn: str) -> AsyncIterator[Connection]:
    """A session on the test's database."""
    async with await connect(dsn, name="test", statement_timeout=timedelta(seconds=10)) as connection:
        yield connection


# --- RabbitMQ -----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def rabbit(pytestconfig: pytest.Config) -> PrivateRabbit:
    """The node that the tests share. A test that does something to a node takes another one (`killable_rabbit`)."""
    demand(pytestconfig)
    return SharedRabbit(reached.directory_of(pytestconfig)).joined()


@pytest.fixture(scope="session")
def _node_to_kill(pytestconfig: pytest.Config) -> Iterator[PrivateRabbit]:
    demand(pytestconfig)
    with node() as rabbit:
        yield rabbit


@pytest.fixture
def killable_rabbit(_node_to_kill: PrivateRabbit) -> PrivateRabbit:
    """A node that runs, whatever the test before did to it, and keeps what it confirmed however it is killed; `start()`
    revives it. The tests of a worker have it one after the other, each on a virtual host of its own: a first start
    takes more CPU than ten minutes of rest."""
    if not _node_to_kill.is_running:
        _node_to_kill.start()
    return _node_to_kill


@pytest.fixture
def own_rabbit(pytestconfig: pytest.Config) -> Iterator[PrivateRabbit]:
    """As `killable_rabbit`, for this test alone and with nothing in it."""
    demand(pytestconfig)
    with node() as rabbit:
        yield rabbit


@pytest.fixture
def broker_url(rabbit: PrivateRabbit) -> Iterator[str]:
    """A virtual host for this test alone."""
    url = rabbit.vhost()
    yield url
    rabbit.drop(url)


# --- Redis --------------------------------------------------------------------------------------


@pytest.fixture
def redis(pytestconfig: pytest.Config) -> Iterator[PrivateRedis]:
    """A server with nothing in it, for this test alone; it is up in 30 ms."""
    redis_server.demand(pytestconfig)
    with redis_server.server() as redis:
        yield redis


@pytest.fixture
def clock() -> MovableClock:
    """Stands at `words.T0` until a test moves it."""
    return MovableClock()


@pytest.fixture
async def store(dsn: str, clock: MovableClock) -> AsyncIterator[EventStore]:
    """An event store on the test's database, by the test's clock."""
    store = EventStore(dsn, codec=EventCodec(), clock=clock)
    await store.open()
    yield store
    await store.close()
