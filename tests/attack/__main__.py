"""`python -m tests.attack --requests 100000`: attack a service of two APIs, a worker and a Redis, and judge."""

from __future__ import annotations

import argparse
import logging
import secrets
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import structlog
import uvloop

from tests.attack.running import Report, Stage, run
from tests.support import redis as redis_server
from tests.support.postgres import SURVIVES_KILLS, server
from tests.support.smtp_stub import SmtpStub


def main() -> int:
    """Answers 1 if any claim does not hold; then the logs are left behind."""
    parser = argparse.ArgumentParser(prog="python -m tests.attack", description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000, help="about so many  [100000]")
    parser.add_argument("--cooldown", type=float, default=60.0, help="RESEND_COOLDOWN in seconds  [60]")
    parser.add_argument("--seed", type=int, help="of what is left to chance  [random]")
    arguments = parser.parse_args()
    seed = secrets.randbelow(10**6) if arguments.seed is None else arguments.seed
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    directory = Path(tempfile.mkdtemp(prefix="registrar-attack-"))
    say(f"seed {seed}, {arguments.requests} requests")
    report = None
    try:
        report = uvloop.run(_attack(arguments.requests, arguments.cooldown, seed, directory))
        print(report, flush=True)
    finally:
        if report is None or report.violations:
            say(f"seed {seed}; logs are in {directory}")
        else:
            shutil.rmtree(directory)
    return int(bool(report.violations))


async def _attack(requests: int, cooldown: float, seed: int, directory: Path) -> Report:
    async with _stage(directory) as stage:
        return await run(requests, stage, seed=seed, cooldown=cooldown, say=say)


@asynccontextmanager
async def _stage(directory: Path) -> AsyncIterator[Stage]:
    with (
        server(SURVIVES_KILLS, prefix="registrar-attack-") as postgres,
        redis_server.server() as redis,
        tempfile.TemporaryDirectory() as reached,
    ):
        assert postgres.pid is not None
        async with SmtpStub() as sink:
            yield Stage(postgres.dsn, sink, redis, directory, Path(reached), servers={"postgres": postgres.pid})


def say(what: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S} {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
