#!/usr/bin/env bash
# aio-pika 10.2.1, uvloop 0.23.0. Needs Linux and Python 3.11 or later.
#
# aio-pika's `happy_eyeballs_delay` is handed on to the event loop's create_connection(). asyncio's own loop knows it;
# uvloop's does not: no connection is made at all, to any address, and what is raised is a TypeError, which no handler of
# AMQP or network errors expects.
#
# Seen (a listener that says nothing takes the connection):
#   asyncio: TimeoutError, after it was connected
#   uvloop: TypeError: create_connection() got an unexpected keyword argument 'happy_eyeballs_delay'
set -euo pipefail
source "$(dirname "$0")/support/common.sh"
install aio-pika==10.2.1 uvloop==0.23.0
python <<'PYTHON'
import asyncio
import sys

import aio_pika
import uvloop


async def outcome():
    connected = []
    server = await asyncio.start_server(lambda reader, writer: connected.append(writer), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        async with asyncio.timeout(2):
            await aio_pika.connect(f"amqp://guest:guest@127.0.0.1:{port}/", happy_eyeballs_delay=0.25)
    except Exception as error:
        said = f"{type(error).__name__}: {error}".rstrip(": ")
        return said + (", after it was connected" if connected else "")
    finally:
        for writer in connected:
            writer.close()
        server.close()


on_asyncio = asyncio.run(outcome())
on_uvloop = uvloop.run(outcome())
print(f"asyncio: {on_asyncio}")
print(f"uvloop: {on_uvloop}")
sys.exit(0 if on_asyncio.startswith("TimeoutError, after") and on_uvloop.startswith("TypeError") else 1)
PYTHON
