"""`python -m tests.faults`: break everything at random while people register, then prove that nothing came of it."""

from __future__ import annotations

import argparse
import asyncio
import logging
import secrets
import shutil
import signal
import sys
import tempfile
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path

import structlog

from tests.faults.chaos import A_SECOND, Report, run
from tests.faults.rebuilding import Outcome, on_servers_of_their_own
from tests.support.rabbitmq import node

REBUILDS = 100


def main() -> int:
    """Answers 1 if anything did not hold; then what is needed to find out why is left behind."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="of faults; healing and judging come on top  [10]")
    parser.add_argument("--seed", type=int, help="the same schedule of faults as another run  [random]")
    parser.add_argument("--broker", action="store_true", help="with mail over a RabbitMQ that is broken, too")
    parser.add_argument("--people", type=float, default=A_SECOND, help="who come in a second  [2.5]")
    parser.add_argument("--reads", type=int, default=0, help="of as many, while read models are rebuilt, none may fail")
    arguments = parser.parse_args()
    seed = secrets.randbelow(10**6) if arguments.seed is None else arguments.seed
    # What the checker's own projectors say while they fight for a batch is no news.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.getLogger("psycopg").setLevel(logging.ERROR)
    say(f"seed {seed}, {arguments.minutes:g} minutes")
    directory = Path(tempfile.mkdtemp(prefix="registrar-chaos-"))
    failed = False
    try:
        report = asyncio.run(
            _until_told_otherwise(
                seed, arguments.minutes * 60, directory, broker=arguments.broker, people=arguments.people
            )
        )
        failed = bool(report.violations)
        print(report, flush=True)
        if arguments.reads:
            outcome = asyncio.run(_rebuilding(arguments.reads, directory))
            failed |= not outcome.is_sound
            print(outcome, flush=True)
    except (KeyboardInterrupt, asyncio.CancelledError):
        say(f"stopped; seed {seed}")
        return 130
    except BaseException:
        failed = True
        say(f"failed; seed {seed}")
        raise
    finally:
        if failed:
            say(f"logs, journal and faults are in {directory}")
        else:
            shutil.rmtree(directory)
    return int(failed)


async def _rebuilding(reads: int, directory: Path) -> Outcome:
    with tempfile.TemporaryDirectory() as reached:
        return await on_servers_of_their_own(directory, Path(reached), rebuilds=REBUILDS, reads=reads, say=say)


async def _until_told_otherwise(seed: int, seconds: float, directory: Path, *, broker: bool, people: float) -> Report:
    """SIGTERM ends it as Ctrl-C does: everything that was started is ended."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with tempfile.TemporaryDirectory() as reached, node() if broker else nullcontext() as rabbit:
        return await run(
            seed, seconds, directory=directory, reached=Path(reached), rabbit=rabbit, people=people, say=say
        )


def say(what: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S} {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
