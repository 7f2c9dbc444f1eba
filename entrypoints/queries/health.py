"""The health of a process: what works, what waits. No check takes longer than two seconds, whatever hangs."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import psycopg
import structlog
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from application.ports import BrokerAway, Unavailable
from entrypoints.queries.followers import Backlog, FollowerQueries
from infrastructure.crypto.password_hashing import PasswordHashing
from infrastructure.event_store.store import EventStore
from infrastructure.followers.versions import Behind
from infrastructure.limits.gcra import Limiter
from infrastructure.mail.shared_circuits import SharedCircuits
from infrastructure.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from infrastructure.mail.smtp.servers import SmtpServers
    from infrastructure.rabbitmq.connection import Broker

T = TypeVar("T")

log = structlog.get_logger(__name__)

State = Literal["up", "down", "degraded", "disabled"]

FRESH: Final = timedelta(milliseconds=500)
"""How long what is known about the database is taken as true."""

PATIENCE: Final = timedelta(seconds=1)
"""A database that does not respond within that time counts as down."""

WAITING_LONG: Final = timedelta(minutes=5)
"""A mail that is unsent for so long went through retries: something is wrong with the mail servers."""

_AWAY = (Unavailable, psycopg.Error, PoolTimeout, PoolClosed, TooManyRequests, OSError)


@dataclass(frozen=True, slots=True)
class Report:
    """A check's outcome."""

    status: State
    details: dict[str, Any] = field(default_factory=dict)


class HealthChecks:
    """Checks the parts of the process.

    Attributes:
        stopping: will the listeners close in a moment?
    """

    def __init__(
        self,
        *,
        store: EventStore,
        followers: FollowerQueries,
        shared_circuits: SharedCircuits,
        servers: SmtpServers | None,
        broker: Broker | None,
        hasher: PasswordHashing,
        metrics: Metrics,
        limiter: Limiter,
        broken: asyncio.Event,
    ) -> None:
        """
        Args:
            servers: the mail servers, None in a process that does not deliver.
            broker: None where mail is handed over inside the process.
            metrics: where `measure` writes what is not counted as it happens.
            broken: set if something that this process does in the background has ended.
        """
        self.stopping = False
        self._store = store
        self._followers = followers
        self._shared_circuits = shared_circuits
        self._servers = servers
        self._broker = broker
        self._hasher = hasher
        self._metrics = metrics
        self._limiter = limiter
        self._broken = broken
        self._not_yet_ahead: Collection[str] = followers.names
        if not followers.has_checkpoints:
            metrics.measured.without_checkpoints()
        self._under_way: set[asyncio.Task[Any]] = set()
        self._look: asyncio.Task[bool] | None = None
        self._writable = False
        self._known_until = 0.0
        self._said_behind = False

    async def close(self) -> None:
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    def stop(self) -> None:
        """Report "not ready" before the listeners close, so that no new requests are sent here."""
        self.stopping = True

    async def ready(self) -> Report:
        """Can this process take registrations, and show them? Mail that is away delays them, no more; without Redis
        each process counts for itself."""
        if self.stopping:
            return Report("down", {"database": "up", "reason": "stopping"})
        if self._broken.is_set():
            return Report("down", {"database": "up", "reason": "broken"})
        if not await self._can_append():
            return Report("down", {"database": "down"})
        behind = await self._behind()
        if behind is None:  # it takes events, and does not say how far the read models are
            return Report("down", {"database": "up", "reason": "read models unknown"})
        if behind:
            found = [one._asdict() for one in behind]
            return Report("down", {"database": "up", "reason": "building read models", "read_models": found})
        broker = self._broker
        mail_is_away = _all_open(await self._circuits()) or (broker is not None and not broker.is_up)
        limiter = await self._limiter.works()
        details = {"database": "up"} | ({} if limiter is None else {"limiter": "up" if limiter else "degraded"})
        return Report("degraded" if mail_is_away or limiter is False else "up", details)

    async def database(self) -> Report:
        """Does it take appends, and is the log what was recorded, signed and published, where there are checkpoints?"""
        if not await self._can_append():
            return Report("down")
        if not self._followers.has_checkpoints:
            return Report("up")
        standing = await self._patiently(self._followers.checkpoints())
        if standing is None:
            return Report("degraded", {"checkpoints": None})
        return Report(standing.status, {"checkpoints": {"status": standing.status, **asdict(standing)}})

    async def rabbitmq(self) -> Report:
        """Do messages get through, and does somebody take them?"""
        broker = self._broker
        if broker is None:
            return Report("disabled")
        try:
            seen = await broker.look()
        except BrokerAway:
            return Report("down", {"reason": broker.trouble or "no answer"})
        taken = all(queue["consumers"] for queue in seen["queues"].values())
        return Report("up" if taken else "degraded", seen)

    async def mail(self) -> Report:
        """The mail servers' circuits, which of them take none of our mails though they may be called, and how long the
        registrant who has waited longest has had no mail; `paced` if mails wait for their turn."""
        circuits, troubles = await self._circuits(), self._shared_circuits.troubles
        oldest = await self._patiently(self._followers.oldest_unsent())
        paced = await self._patiently(self._followers.mails_are_paced())
        status: State = "up"
        if _all_open(circuits) or (oldest is None and not circuits):
            status = "down"
        elif (
            troubles
            or any(state != "closed" for state in circuits.values())
            or (oldest is not None and oldest > WAITING_LONG)
        ):
            status = "degraded"
        seconds = None if oldest is None else oldest.total_seconds()
        found = {"servers": circuits, "troubles": troubles, "oldest_unsent_seconds": seconds}
        return Report(status, found | ({"paced": True} if paced else {}))

    async def projections(self) -> Report:
        progress = await self._patiently(self._followers.progress())
        if progress is None:
            return Report("down")
        healthy = all(follower.status == "up" for follower in progress.items)
        found = [{**asdict(follower), "status": follower.status} for follower in progress.items]
        return Report("up" if healthy else "degraded", {"head": progress.head, "followers": found})

    async def measure(self) -> None:
        """Update the metrics that are not counted as things happen."""
        measured = self._metrics.measured
        ready, circuits, backlog = await asyncio.gather(
            self.ready(), self._circuits(), self._patiently(self._followers.backlog())
        )
        measured.ready(ready.status != "down")
        pool = self._followers.pool_depths()
        measured.queues(hashes=self._hasher.waiting, appends=self._store.waiting, queries=pool.waiting)
        measured.pool(idle=pool.idle, used=pool.used)
        if self._broker is not None:
            measured.broker(up=self._broker.is_up, queues=self._broker.queues)
        self._metrics.circuits(circuits)
        measured.troubles(self._shared_circuits.troubles)
        measured.forget_backlog()  # a follower that no longer exists would stay for ever
        if backlog is not None:
            self._show(backlog)

    def _show(self, backlog: Backlog) -> None:
        measured = self._metrics.measured
        followers = backlog.followers.items
        measured.log(position=backlog.followers.head, paced=any(follower.paced for follower in followers))
        for follower in followers:
            measured.follower(
                follower.name,
                lag_events=follower.lag_events,
                lag_seconds=follower.lag_seconds,
                parked_streams=follower.parked_streams,
            )
            if follower.verified_at is not None and follower.mismatches is not None:
                measured.projection(follower.name, mismatches=follower.mismatches, verified_at=follower.verified_at)
        measured.backlog(
            dead_letters=backlog.dead_letters,
            stray_messages=backlog.stray_messages,
            oldest_unsent_seconds=backlog.oldest_unsent.total_seconds(),
            stuck=backlog.stuck,
        )
        measured.webhook_failing(backlog.webhook_failing)
        if (standing := backlog.checkpoints) is not None:
            measured.checkpoints(
                age_seconds=standing.age_seconds,
                position=standing.position,
                unpublished=standing.unpublished,
                unpublished_seconds=standing.unpublished_seconds,
                mismatches=int(standing.unsound is not None),
            )
        if backlog.synthetic is not None and backlog.synthetic.passed_age is not None:
            measured.synthetic_age(backlog.synthetic.passed_age)
        measured.backups(**{f"{kind}_age": age for kind, age in backlog.ages.items()})

    async def _behind(self) -> list[Behind] | None:
        """The read models that another release's version is ahead of: whoever has read that one must not be sent here.
        None if the database does not say.

        Each counts until it was once seen not to be behind. Later on, two that follow the log side by side overtake
        each other all the time.
        """
        if not self._not_yet_ahead:
            return []
        found = await self._patiently(self._followers.behind(self._not_yet_ahead))
        if found is None:
            return None
        if found and not self._said_behind:
            self._said_behind = True
            hint = "not ready until they have caught up with the earlier release's; `registrar process` of this release builds them"
            log.warning("read_models.behind", names=[one.name for one in found], hint=hint)
        self._not_yet_ahead = [one.name for one in found]
        return found

    async def _circuits(self) -> dict[str, str]:
        """As all workers know them; what this process itself knows is newer."""
        own = await self._servers.states() if self._servers is not None else {}
        return self._shared_circuits.states | own

    async def _can_append(self) -> bool:
        """Does the database take appends? Asked by all callers together, at most twice a second, and not while
        appends themselves show it."""
        if self._store.refuses:
            return False
        if self._store.accepts:
            return True
        if asyncio.get_running_loop().time() < self._known_until:
            return self._writable
        if self._look is None or self._look.done():
            self._look = self._start(self._ask_database())
        await asyncio.wait({self._look}, timeout=PATIENCE.total_seconds())
        return self._look.done() and not self._look.cancelled() and self._look.result()

    async def _ask_database(self) -> bool:
        try:
            await self._store.try_append()
        except _AWAY:
            self._writable = False
        else:
            self._writable = True
        self._known_until = asyncio.get_running_loop().time() + FRESH.total_seconds()
        return self._writable

    async def _patiently(self, query: Coroutine[Any, Any, T]) -> T | None:
        """The query's result; None if the database is away or does not respond in time.

        A query without a response is left alone: to cancel it would take the very response that does not come.
        """
        task = self._start(query)
        await asyncio.wait({task}, timeout=PATIENCE.total_seconds())
        if not task.done():
            return None
        try:
            return task.result()
        except _AWAY:
            return None

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # callers that still waited have seen it


def _all_open(circuits: dict[str, str]) -> bool:
    """Can no mail be sent? Not even while a server is probed."""
    return bool(circuits) and all(state != "closed" for state in circuits.values())
