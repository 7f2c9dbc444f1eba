"""How far the followers of the log are, and what waits for them or for an operator."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal

from application.ports import Clock
from domain.recorded import Position
from infrastructure.audit.erasures import ErasureJournal, PostedErasures
from infrastructure.audit.standing import Standing, standing_of
from infrastructure.backup.records import Kind, noted
from infrastructure.followers.names import names_of_followers
from infrastructure.followers.progress import LAGGING, AllProgress, Progress, progress_of
from infrastructure.followers.turns import waiting_after
from infrastructure.followers.versions import Behind, behind_others, others_of, positions, version_of
from infrastructure.postgres.connection import Connection
from infrastructure.postgres.pool import Depths, QueryPool
from infrastructure.settings.settings import Settings
from infrastructure.synthetic.records import Last, last_of
from infrastructure.webhooks.records import failing
from projections import PROJECTIONS
from projections.deadlines import Deadlines
from projections.mail import Mails
from projections.strays import Strays

_READ_MODELS: Final = tuple(projection.name for projection in PROJECTIONS)


def followers_with(settings: Settings) -> tuple[str, ...]:
    """Everything that follows the log under these settings: nobody publishes where there is no broker, and erasures are
    noted in the directory of checkpoints, at their address, or both."""
    names = names_of_followers(_READ_MODELS, publishes=settings.broker_url is not None)
    in_directory = settings.database_url is None or settings.checkpoint_dir is not None
    at_address = settings.checkpoint_url is not None
    return (*names, *[ErasureJournal.name] * in_directory, *[PostedErasures.name] * at_address)


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits, or should not.

    Attributes:
        oldest_unsent: how long the registrant who has waited longest has had no mail; zero if nobody waits.
        dead_letters: mails that failed for good and wait for an operator.
        stray_messages: foreign messages among the dead letters that nobody has discarded.
        stuck: registrations whose next step is overdue.
        ages: in seconds, of the last "backup" and of the last "drill" that was passed, as far as there was one.
        checkpoints: None where there are none.
        synthetic: None where no synthetic registration has ended.
        webhook_failing: for how many seconds the endpoint has failed that has failed for longest; 0: none fails.
    """

    followers: AllProgress
    oldest_unsent: timedelta
    dead_letters: int
    stray_messages: int
    stuck: int
    ages: dict[Kind, float]
    checkpoints: Standing | None
    synthetic: Last | None
    webhook_failing: float


Status = Literal["up", "degraded", "superseded", "later"]


@dataclass(frozen=True, slots=True)
class Listed:
    """A follower in the list of all.

    Attributes:
        status: that of its progress; of a read model's version that this release does not read, "superseded" by ours
            or "later" than it.
    """

    progress: Progress
    status: Status


@dataclass(frozen=True, slots=True)
class AllListed:
    """Every follower by name, and the end of the log that they follow."""

    head: Position
    items: list[Listed]


class FollowerQueries:
    """
    Attributes:
        names: the followers that there should be; see `followers_with`.
        has_checkpoints: does a follower make some?

    Raises (all of them):
        Unavailable, one of `AWAY`: see `infrastructure.postgres.pool.QueryPool.ask`.
    """

    def __init__(
        self,
        pool: QueryPool,
        clock: Clock,
        names: Sequence[str],
        *,
        has_checkpoints: bool = False,
        has_webhooks: bool = False,
    ) -> None:
        self._pool = pool
        self._clock = clock
        self.names = names
        self.has_checkpoints = has_checkpoints
        self._has_webhooks = has_webhooks
        self._mails, self._deadlines = Mails(), Deadlines()
        self._strays = Strays(self._mails.schema)

    async def progress(self) -> AllProgress:
        """Every follower's position and lag, of one that never ran, too."""
        return await self._pool.ask(lambda connection: progress_of(connection, self.names))

    async def listed(self) -> AllListed:
        """Every follower that there should be, also one that never ran, and the versions of our read models that other
        releases follow, or followed."""
        ours = {version.read_model: version.number for name in self.names if (version := version_of(name)) is not None}

        def status_of(progress: Progress) -> Status:
            if progress.name in self.names:
                return progress.status
            version = version_of(progress.name)
            assert version is not None  # noqa: S101 - `others_of` names versions
            return "superseded" if version.number < ours[version.read_model] else "later"

        async def select(connection: Connection) -> AllListed:
            others = others_of(self.names, await positions(connection))
            found = await progress_of(connection, (*self.names, *others))
            return AllListed(found.head, [Listed(one, status_of(one)) for one in found.items])

        return await self._pool.ask(select)

    async def behind(self, names: Collection[str]) -> list[Behind]:
        """Which of these followers keep a read model that another version of it is ahead of."""
        return await self._pool.ask(lambda connection: behind_others(connection, names))

    async def progress_of(self, name: str) -> Progress:
        """This follower's position and lag."""
        found = await self._pool.ask(lambda connection: progress_of(connection, (name,)))
        return found.items[0]

    async def oldest_unsent(self) -> timedelta:
        """How long the registrant who has waited longest has had no mail; zero if nobody waits."""
        return self._age(await self._pool.ask(self._mails.oldest_unsent))

    async def mails_are_paced(self) -> bool:
        """Do mails wait for their turn, because more are asked for than the service may send in all?"""
        return await self._pool.ask(waiting_after) is not None

    async def checkpoints(self) -> Standing:
        """How they stand, where there are some."""
        return await self._pool.ask(standing_of)

    def pool_depths(self) -> Depths:
        """How busy the connections are that all queries share."""
        return self._pool.depths()

    async def backlog(self) -> Backlog:
        """All of it, on one connection."""

        async def select(connection: Connection) -> Backlog:
            return Backlog(
                await progress_of(connection, self.names),
                self._age(await self._mails.oldest_unsent(connection)),
                await self._mails.dead_letters(connection),
                await self._strays.count(connection),
                await self._deadlines.overdue(connection, self._clock() - LAGGING),
                {kind: one.age for kind, one in (await noted(connection)).items()},
                await standing_of(connection) if self.has_checkpoints else None,
                await last_of(connection),
                max((one.seconds for one in await failing(connection)), default=0.0) if self._has_webhooks else 0.0,
            )

        return await self._pool.ask(select)

    def _age(self, since: datetime | None) -> timedelta:
        return timedelta(0) if since is None else max(timedelta(0), self._clock() - since)
