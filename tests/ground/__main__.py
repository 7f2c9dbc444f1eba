"""`python -m tests.ground`: run the product against real servers, each on this machine and by itself, and print a
table."""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from tests.ground import mail_scenarios
from tests.ground.between import BETWEEN
from tests.ground.proxies import PROXIES, behind
from tests.ground.running import NEEDS, RunningServer
from tests.ground.table import Cell, as_markdown, misses
from tests.ground.valkey import valkey
from tests.support.postgres import SHARED, server

MAIL_SERVERS: Final = ("postfix", "exim", "opensmtpd", "sendmail", "courier", "maildev", "haraka")
STORES: Final = {"valkey": valkey}
ALL: Final = (*MAIL_SERVERS, *BETWEEN, *PROXIES, *STORES)


def main() -> int:
    """Answers 1 if anything was a miss, 2 where it cannot run."""
    parser = argparse.ArgumentParser(prog="python -m tests.ground", description=__doc__)
    parser.add_argument("--only", help=f"servers, by commas  [{','.join(ALL)}]")
    parser.add_argument("--scenarios", help="of mail servers and HTTP proxies, by commas: how they begin  [all]")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",") if arguments.only else ALL
    if unknown := set(chosen) - set(ALL):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    missing = [program for program in NEEDS if shutil.which(program) is None]
    if os.geteuid() != 0 or missing:
        lacks = f"lacks {', '.join(missing)}" if missing else "is not root's"
        say(f"This needs root on Debian, for namespaces with packages of their own, and npm; this process {lacks}.")
        return 2
    beginnings = tuple(arguments.scenarios.split(",")) if arguments.scenarios else ("",)
    table = asyncio.run(_until_told_otherwise(chosen, beginnings))
    print(as_markdown(table), flush=True)
    return int(misses(table) > 0)


async def _until_told_otherwise(chosen: Sequence[str], beginnings: tuple[str, ...]) -> dict[str, dict[str, Cell]]:
    """SIGTERM ends it as Ctrl-C does: everything that was started is ended."""
    scenarios = [name for name in mail_scenarios.SCENARIOS if name.startswith(beginnings)]
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    table: dict[str, dict[str, Cell]] = {}
    with server(SHARED, prefix="registrar-ground-") as postgres:
        for name in chosen:
            if name not in MAIL_SERVERS:
                if name in PROXIES:
                    version, cells = await behind(name, postgres, beginnings)
                else:
                    version, cells = await {**BETWEEN, **STORES}[name](postgres)
                table[f"{name} {version}"] = cells
                say(f"{name}: {cells}")
                continue
            async with RunningServer(name) as running:
                row = table.setdefault(f"{name} {running.version}", {})
                for scenario in scenarios:
                    row[scenario] = await mail_scenarios.run(scenario, running, postgres)
                    say(f"{name}, {scenario}: {row[scenario]}")
    return table


def say(what: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S} {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
