"""Our event store as a recorder of the library `eventsourcing`, so that the library's own test cases can judge it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from threading import Thread
from typing import Any, TypeVar
from uuid import UUID

from eventsourcing.persistence import (
    AggregateRecorder,
    ApplicationRecorder,
    IntegrityError,
    ListenNotifySubscription,
    Notification,
    StoredEvent,
)

from application.ports import Conflict, Unavailable
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.store import EventStore
from infrastructure.postgres.clock import DatabaseClock
from infrastructure.postgres.notifications import HEAD, Notifications
from tests.support.facts import CLIENT, eventually

T = TypeVar("T")

_PAGE = 1000


class StoreAggregateRecorder(AggregateRecorder):
    """The store, in an event loop of a thread of its own. Callers may be any threads."""

    def __init__(self, dsn: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="event store")
        self._thread.start()
        self.store = EventStore(dsn, codec=EventCodec(), clock=DatabaseClock())
        self.wait_for(self.store.open())

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        return self.start(work).result(timeout=60)

    def close(self) -> None:
        self.wait_for(self.store.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def insert_events(self, stored_events: Sequence[StoredEvent], **_: Any) -> Sequence[int] | None:
        if stored_events:
            self._append(stored_events)
        return None

    def _append(self, stored_events: Sequence[StoredEvent]) -> int:
        async def recorded() -> int | None:
            try:
                return await self.store.append_stored([(event, CLIENT) for event in stored_events])
            except Unavailable:  # behind a batch that takes long on a busy machine: not recorded
                return None

        try:
            return int(self.wait_for(eventually(recorded)))
        except Conflict as error:
            raise IntegrityError(error) from error

    def select_events(
        self,
        originator_id: UUID | str,
        *,
        gt: int | None = None,
        lte: int | None = None,
        desc: bool = False,
        limit: int | None = None,
    ) -> Sequence[StoredEvent]:
        stream_id = UUID(str(originator_id))
        loaded = self.wait_for(self.store.load(stream_id))
        events = [
            StoredEvent(stream_id, version, topic, state)
            for version, topic, state, _ in loaded._rows.get(stream_id, [])
            if (gt is None or version > gt) and (lte is None or version <= lte)
        ]
        return events[:: -1 if desc else 1][:limit]


class StoreApplicationRecorder(StoreAggregateRecorder, ApplicationRecorder):
    """With the log, and the notifications of its growth."""

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn)
        self.notifications = Notifications(dsn)
        self._announcing = self.start(self.notifications.run())

    def close(self) -> None:
        self._announcing.cancel()
        super().close()

    def insert_events(self, stored_events: Sequence[StoredEvent], **_: Any) -> Sequence[int]:
        last = self._append(stored_events)
        return list(range(last - len(stored_events) + 1, last + 1))

    def max_notification_id(self) -> int | None:
        return self.wait_for(self.store.head()) or None

    def select_notifications(
        self,
        start: int | None,
        limit: int,
        stop: int | None = None,
        topics: Sequence[str] = (),
        *,
        inclusive_of_start: bool = True,
    ) -> Sequence[Notification]:
        return self.wait_for(
            self._select((start or 0) - (start is not None and inclusive_of_start), limit, stop, topics)
        )

    async def _select(self, after: int, limit: int, stop: int | None, topics: Sequence[str]) -> Sequence[Notification]:
        found: list[Notification] = []
        while len(found) < limit and (stop is None or after < stop):
            rows, seen = await self.store.read(after, _PAGE, topics or None)
            if seen == after:
                break
            after = seen
            found += [
                Notification(row.stream_id, row.version, row.topic, row.state, row.position)
                for row in rows
                if stop is None or row.position <= stop
            ]
        return found[:limit]

    def subscribe(self, gt: int | None = None, topics: Sequence[str] = ()) -> StoreSubscription:
        return StoreSubscription(self, gt, topics)


class StoreSubscription(ListenNotifySubscription[StoreApplicationRecorder]):
    """Woken by our notifications."""

    def __init__(self, recorder: StoreApplicationRecorder, gt: int | None, topics: Sequence[str]) -> None:
        super().__init__(recorder, gt, topics)
        self._listening = recorder.start(self._listen())

    def __exit__(self, *args: object, **kwargs: Any) -> None:
        self._listening.cancel()
        super().__exit__(*args, **kwargs)

    async def _listen(self) -> None:
        position = 0
        while True:
            if await self._recorder.notifications.wait_past(HEAD, position):
                position = await self._recorder.store.head()
                self._has_been_notified.set()
