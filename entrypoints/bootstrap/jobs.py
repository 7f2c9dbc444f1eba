"""Commands that operators have run over HTTP, with the settings of the process that runs them."""

from __future__ import annotations

import os
import sys
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Final

from pydantic import SecretBytes, SecretStr

from infrastructure.postgres.connection import ReconnectingConnection
from infrastructure.replay.jobs import Jobs
from infrastructure.settings.environment import FILE, PREFIX
from infrastructure.settings.settings import Settings

COMMAND: Final = (sys.executable, "-P", "-c", "from entrypoints.cli.start import main; main()")
"""`registrar`, wherever it is installed."""

_NEEDED: Final = (
    "database_url",
    "master_key",
    "next_master_key",
    "data_dir",
    "statement_timeout",
    "otp_ttl",
    "otp_max_attempts",
    "resend_cooldown",
    "registration_ttl",
)
"""The settings of such a command; it has nothing to do with mail servers and brokers, and does not get to know them."""


def jobs_of(dsn: str, settings: Settings, stack: AsyncExitStack) -> Jobs:
    """Taken down with the stack, and with it what is under way."""
    line = ReconnectingConnection(dsn, name="jobs", statement_timeout=settings.statement_timeout)
    jobs = Jobs(line, command=COMMAND, environment=environment_of(settings))
    stack.push_async_callback(jobs.close)
    return jobs


def environment_of(settings: Settings) -> dict[str, str]:
    """Our environment, with these settings and no others. A secret that is in a file stays there."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    for name in _NEEDED:
        file = getattr(settings, name + FILE, None)
        value = getattr(settings, name)
        if file is not None:
            environment[f"{PREFIX}{name}{FILE}".upper()] = str(file.absolute())
        elif value is not None:
            environment[f"{PREFIX}{name}".upper()] = _written(value)
    return environment


def _written(value: object) -> str:
    """As the environment has it."""
    match value:
        case timedelta():
            return f"{value.total_seconds():.6f}"
        case SecretBytes():
            return value.get_secret_value().hex()
        case SecretStr():
            return value.get_secret_value()
        case Path():
            return str(value.absolute())
    return str(value)
