"""One side of the comparison of folds, in a process of its own, so that its memory can be told."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from datetime import timedelta
from functools import singledispatchmethod
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID

import psycopg
import uvloop
from eventsourcing.application import Application
from eventsourcing.persistence import Tracking
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore, PostgresTrackingRecorder
from eventsourcing.projection import Projection, ProjectionRunner
from psycopg.conninfo import conninfo_to_dict
from psycopg.sql import SQL, Identifier

from bench.history import numbered
from domain.registration import Registration
from entrypoints.cli.garbage_collection import collect_rarely, keep_what_is_there
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.store import EventStore
from infrastructure.event_store.tail import LogTail
from infrastructure.followers.leadership import LeaderSession
from infrastructure.followers.projector import Projector
from infrastructure.postgres.clock import DatabaseClock
from infrastructure.postgres.connection import connect
from infrastructure.postgres.notifications import Notifications
from projections import PROJECTIONS
from projections.registrations import Registrations

_TOPICS = list(Registrations.topics or ())


async def ours(dsn: str, name: str = Registrations.name) -> float:
    """The service's own projector, from an empty read model to the end of the log; answers seconds."""
    [make] = [one for one in PROJECTIONS if one.name == name]
    store = EventStore(dsn, codec=EventCodec(), clock=DatabaseClock())
    await store.open()
    head = await store.head()
    notifications = Notifications(dsn)
    projector = Projector(make(), store=LogTail(store), notifications=notifications)
    async with await connect(dsn, name="fold", statement_timeout=timedelta(seconds=10)) as connection:
        started = time.perf_counter()
        works = [
            asyncio.create_task(projector.work(LeaderSession(connection))),
            asyncio.create_task(notifications.run()),
        ]
        while not await notifications.wait_past(name, head - 1):
            for work in works:
                if work.done():
                    work.result()
        took = time.perf_counter() - started
        for work in works:
            work.cancel()
        await asyncio.gather(*works, return_exceptions=True)
    await store.close()
    return took


async def bare(dsn: str, topics: list[str] | None = _TOPICS) -> float:
    """Read the same events in order, as many at a time, and decode them; nothing else.

    Args:
        topics: by default those of the read model; None: all events.
    """
    codec = EventCodec()
    query = (
        "SELECT originator_id, originator_version, topic, state, notification_id FROM events"
        " WHERE notification_id > %s AND (%s::text[] IS NULL OR topic = ANY (%s)) ORDER BY notification_id LIMIT 1000"
    )
    async with await connect(dsn, name="bare", statement_timeout=timedelta(seconds=10)) as connection:
        cursor = connection.cursor(binary=True)
        started = time.perf_counter()
        after = 0
        while True:
            await cursor.execute(query, (after, topics, topics))
            rows = await cursor.fetchall()
            if not rows:
                return time.perf_counter() - started
            for stream_id, version, topic, state, _ in rows:
                codec.decode(stream_id, version, topic, state)
            after = rows[-1][4]


class _View(PostgresTrackingRecorder):
    """A row per registration, written with its tracking in one transaction, as the library's examples do."""

    def __init__(self, datastore: PostgresDatastore, **kwargs: Any) -> None:
        super().__init__(datastore, **kwargs)
        self.sql_create_statements.append(
            SQL(
                "CREATE TABLE IF NOT EXISTS seen (registration_id uuid PRIMARY KEY, created_at timestamptz NOT NULL,"
                " claim_id uuid NOT NULL, sealed text, status text NOT NULL, serial integer NOT NULL, mail text NOT NULL)"
            ).format()
        )

    def change(self, statement: str, parameters: tuple[Any, ...], tracking: Tracking) -> None:
        with self.datastore.transaction(commit=True) as cursor:
            self._insert_tracking(cursor, tracking)
            cursor.execute(statement.encode(), parameters, prepare=True)


class _Seen(Projection[_View]):
    name = "seen"
    topics: ClassVar[tuple[str, ...]] = tuple(_TOPICS)  # type: ignore[misc]

    @singledispatchmethod
    def process_event(self, domain_event: Any, tracking: Tracking) -> None:
        raise NotImplementedError(type(domain_event))

    @process_event.register
    def _(self, event: Registration.UserRegistered, tracking: Tracking) -> None:
        self.view.change(
            "INSERT INTO seen VALUES (%s, %s, %s, %s, 'PENDING', 0, 'QUEUED')",
            (event.originator_id, event.timestamp, event.claim_id, event.personal_data),
            tracking,
        )

    @process_event.register
    def _(self, event: Registration.OtpIssued, tracking: Tracking) -> None:
        self.view.change(
            "UPDATE seen SET serial = %s, mail = 'QUEUED' WHERE registration_id = %s",
            (event.serial, event.originator_id),
            tracking,
        )

    @process_event.register
    def _(self, event: Registration.EmailDispatched, tracking: Tracking) -> None:
        self.view.change("UPDATE seen SET mail = 'SENT' WHERE registration_id = %s", (event.originator_id,), tracking)

    @process_event.register
    def _(self, event: Registration.EmailVerified, tracking: Tracking) -> None:
        self.view.change(
            "UPDATE seen SET status = 'VERIFIED' WHERE registration_id = %s", (event.originator_id,), tracking
        )

    @process_event.register
    def _(self, event: Registration.AccountActivated, tracking: Tracking) -> None:
        self.view.change(
            "UPDATE seen SET status = 'ACTIVE' WHERE registration_id = %s", (event.originator_id,), tracking
        )


class _Stock(Application[UUID]):
    name = "stock"


def stock(dsn: str, events: int) -> float:
    """The library's runner over its own table with the same events; answers seconds."""
    to = conninfo_to_dict(dsn)
    environment = {
        "PERSISTENCE_MODULE": "eventsourcing.postgres",
        "POSTGRES_DBNAME": str(to["dbname"]),
        "POSTGRES_HOST": str(to["host"]),
        "POSTGRES_PORT": str(to["port"]),
        "POSTGRES_USER": str(to["user"]),
        "POSTGRES_PASSWORD": "",
    }
    app = _Stock(environment)
    recorder = app.recorder
    assert isinstance(recorder, PostgresApplicationRecorder)
    for portion in numbered(0, events // 10):
        recorder.insert_events(portion)
    last = recorder.max_notification_id()
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(
            SQL("SELECT max(notification_id) FROM {} WHERE topic = ANY (%s)").format(
                Identifier(recorder.events_table_name)
            ),
            (_TOPICS,),
        ).fetchone()
        assert row is not None
        last = row[0]
    app.close()
    started = time.perf_counter()
    with ProjectionRunner(
        application_class=_Stock, projection_class=_Seen, view_class=_View, env=environment
    ) as runner:
        while (runner.view.max_tracking_id("stock") or 0) < last:
            runner.run_forever(timeout=0.05)
        return time.perf_counter() - started


def peak_mib(process: int | str = "self") -> float:
    """Of a program alone: `getrusage` counts the program that started it, too."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def main() -> None:
    """Arguments in and outcome out as JSON."""
    job = json.loads(sys.argv[1])
    collect_rarely()  # as the service does, for all sides
    keep_what_is_there()
    match job["who"]:
        case "ours":
            took = uvloop.run(ours(job["dsn"], job.get("name", Registrations.name)))
        case "bare":
            took = uvloop.run(bare(job["dsn"], None if job.get("topics") == "all" else _TOPICS))
        case _:
            took = stock(job["dsn"], job["events"])
    print(json.dumps({"seconds": took, "peak_mib": peak_mib()}))


if __name__ == "__main__":
    main()
