"""What a process loads before it has anything to do."""

from __future__ import annotations

import ast
import signal
import subprocess
import sys
from pathlib import Path

import pytest

LATER = ("faststream", "aio_pika", "redis", "opentelemetry", "fastapi", "uvicorn")
"""Half of a start together (our measurement), and only needed where a broker, Redis or a collector is set,
or HTTP is served."""


@pytest.mark.parametrize("module", ["entrypoints.cli.run", "entrypoints.cli.events", "entrypoints.cli.mail"])
def test_what_only_some_processes_use_is_not_loaded_by_all(module: str) -> None:
    program = f"import sys, {module}; print([name for name in {LATER} if name in sys.modules])"
    assert printed_by(program) == "[]"


NEVER_IN_SERVE = (
    "aiosmtpd",
    "aiosmtplib",
    "entrypoints.bootstrap.delivery",
    "entrypoints.bootstrap.desk",
    "entrypoints.bootstrap.followers",
    "entrypoints.bootstrap.replay",
    "entrypoints.cli.operating",
    "infrastructure.audit.checkpointer",
    "infrastructure.followers.process_manager",
    "jinja2",
    "opentelemetry.sdk",
    "rich",
)
"""Sends mail, follows the log, makes spans for a collector, is for operators, shows something to a person."""


def test_what_serves_http_loads_nothing_that_sends_follows_or_shows() -> None:
    program = (
        "import sys; from entrypoints.cli.libraries import load_fastapi, load_structlog; "
        "load_structlog(); load_fastapi(); import entrypoints.cli.main, entrypoints.cli.run, entrypoints.cli.listening; "
        "import entrypoints.bootstrap.api, entrypoints.bootstrap.erasures; "
        f"print([name for name in {NEVER_IN_SERVE} if name in sys.modules])"
    )
    assert printed_by(program) == "[]"


def test_neither_does_it_for_a_broker() -> None:
    program = (
        "import sys; from entrypoints.cli.libraries import load_structlog; load_structlog(); "
        "from entrypoints.bootstrap.broker import broker_for; "
        "from infrastructure.settings.settings import Settings; "
        "settings = Settings.from_environment({'REGISTRAR_BROKER_URL': 'amqp://localhost'}, with_secrets=False); "
        f"print(broker_for('serve', settings) is None, [name for name in {NEVER_IN_SERVE} if name in sys.modules])"
    )
    assert printed_by(program) == "False []"


def test_what_takes_mails_from_a_broker_loads_nothing_that_serves_http() -> None:
    never = ("entrypoints.api", "entrypoints.queries", "infrastructure.audit", "infrastructure.replay", "uvicorn")
    program = (
        "import sys; from entrypoints.cli.libraries import load_faststream, load_structlog; load_structlog(); "
        "load_faststream(); import entrypoints.cli.run, entrypoints.bootstrap.delivery; "
        "import infrastructure.rabbitmq.mail_worker, infrastructure.rabbitmq.connection; "
        f"print([name for name in {never} if name in sys.modules])"
    )
    assert printed_by(program) == "[]"


def test_an_application_is_made_without_a_library_whose_models_it_would_refuse() -> None:
    program = (
        "import sys; from entrypoints.cli.libraries import without_pydantic_v1; from fastapi import FastAPI\n"
        "with without_pydantic_v1(): FastAPI().get('/', response_model=int)(lambda: 1)\n"
        "print('pydantic.v1' in sys.modules); from pydantic import v1; print(v1.BaseModel.__name__)"
    )
    assert printed_by(program) == "False\nBaseModel"


def test_what_sends_mail_loads_no_mailbox() -> None:
    program = "import sys, entrypoints.bootstrap.delivery; print('aiosmtpd' in sys.modules)"
    assert printed_by(program) == "False"


def test_help_loads_no_library_of_a_service() -> None:
    libraries = {*LATER, *NEVER_IN_SERVE, "psycopg", "structlog"} - {"entrypoints.cli.operating"}  # which it lists
    program = (
        "import sys; from entrypoints.cli.main import run; run(['--help']); "
        f"print([name for name in {libraries} if name in sys.modules])"
    )
    assert printed_by(program).splitlines()[-1] == "[]"


def test_models_of_openapi_documents_wait_for_a_document_and_ours_do_not() -> None:
    program = (
        "from entrypoints.cli.libraries import load_fastapi; load_fastapi(); "
        "from fastapi.openapi.models import Contact; from pydantic import BaseModel; "
        "print(Contact.__pydantic_complete__, type('Ours', (BaseModel,), {}).__pydantic_complete__, "
        "Contact(name='Ada').name)"
    )
    assert printed_by(program) == "False True Ada"


WAITING = """
import asyncio, gc, sys
from contextlib import asynccontextmanager
from entrypoints.bootstrap import CannotStart
from entrypoints.cli import run
from infrastructure.settings.settings import Settings

LATER = ("fastapi", "entrypoints.cli.listening", "entrypoints.bootstrap.delivery", "entrypoints.bootstrap.followers")

@asynccontextmanager
async def waiting_for_a_database(settings):
    before = [name for name in LATER if name in sys.modules]
    await asyncio.sleep(0)
    print(before, [name for name in LATER if name not in sys.modules], gc.isenabled(), sys.getswitchinterval())
    raise CannotStart("it never comes")
    yield

run.roles.up = waiting_for_a_database
settings = Settings.from_environment({"REGISTRAR_DATA_DIR": sys.argv[1]})
try:
    asyncio.run(run.up(settings))
except CannotStart:
    pass
"""


def test_up_loads_what_it_runs_while_its_database_starts(tmp_path: Path) -> None:
    assert printed_by(WAITING, str(tmp_path)).splitlines()[-1] == "[] [] True 0.005"


def printed_by(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


SLOW = "import signal\nprint('loading', flush=True)\nwhile True: signal.pause()\n"


def test_a_stop_that_comes_while_the_program_is_loading_is_obeyed(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text(SLOW)  # comes before the library, and never finishes
    with subprocess.Popen(
        # As in the first process of a container, SIGTERM does nothing unless there is a handler.
        ["/bin/sh", "-c", 'trap "" TERM; exec "$@"', "sh", Path(sys.executable).with_name("registrar"), "up"],
        env={"PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "loading\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == -signal.SIGTERM
        finally:
            process.kill()


def test_what_is_loaded_before_a_stop_is_obeyed_is_nothing_to_wait_for() -> None:
    program = "import sys; before = set(sys.modules); import entrypoints.cli.start; print(set(sys.modules) - before)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert {"entrypoints", "entrypoints.cli", "entrypoints.cli.start"} >= {
        name for name in ast.literal_eval(done.stdout) if name not in {"__future__", "signal"}
    }
