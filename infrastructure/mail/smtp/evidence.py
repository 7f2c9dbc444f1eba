"""What a mail server's latest replies show: whether a refusal is about one mail, or about all of ours."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Protocol

import structlog

if TYPE_CHECKING:
    from infrastructure.mail.smtp.replies import Verdict

log = structlog.get_logger(__name__)

RECENT: Final = timedelta(days=1)
"""How long a mail that a server has taken shows that it takes ours. After a night without mails the first mistyped
address should not look like an outage; and the first refusal of one costs a single registration, which `mail retry`
revives."""

ONLY_DEFERRED: Final = timedelta(minutes=10)
"""After that long of nothing but deferrals an operator has to look: greylisting ends earlier. Postfix, for one, may
well answer to a relay that it will never do by a 454, for a day, until every registration has expired."""


class Beliefs(Protocol):
    """Which refusals were taken to be about one mail, over all workers, by the server's `host:port`."""

    def latest(self, provider: str) -> float | None:
        """Identifies the latest, as far as this worker knows; None if there was none."""
        ...

    async def may_believe(self, provider: str, known: float | None) -> bool:
        """May this one be? Not if any worker has believed one after the `known` one, or has seen a row of refusals."""
        ...


class Alone:
    """The beliefs of a process that is the only one."""

    def latest(self, provider: str) -> float | None:  # noqa: ARG002 - the protocol's
        return None

    async def may_believe(self, provider: str, known: float | None) -> bool:  # noqa: ARG002 - the protocol's
        return True


@dataclass(slots=True, eq=False)
class Standing:
    """What a server has done with our mails, for health checks and alerts. Times are the event loop's.

    Attributes:
        taken_at: when it last took one.
        refused_since: since when it has refused us and taken none.
        deferred_since: since when it has put our mails off and taken none.
        refusals: how many different mails it has refused since.
        latest: the latest of these refusals or deferrals.
    """

    taken_at: float | None = None
    refused_since: float | None = None
    deferred_since: float | None = None
    refusals: int = 0
    latest: Verdict | None = None


class Evidence:
    """Judges one server's refusals by what it did before.

    All our mails are alike but for the recipient. So a refusal that does not say why is about that one mail only if the
    server has just taken somebody else's. The next one in a row, or one before any was taken, is about all of them: it
    undoes nobody's registration.

    Attributes:
        taken_elsewhere_at: when the server last took a mail of another worker, as far as this one knows.

    Args:
        provider: the server's `host:port`.
        on_change: called when the others should know at once: the first two mails of a row were refused, or the server
            takes mails again.
    """

    def __init__(
        self,
        provider: str,
        *,
        beliefs: Beliefs,
        on_change: Callable[[], None] = lambda: None,
        recent: timedelta = RECENT,
        only_deferred: timedelta = ONLY_DEFERRED,
    ) -> None:
        self.provider = provider
        self.standing = Standing()
        self.taken_elsewhere_at: float | None = None
        self._beliefs = beliefs
        self._on_change = on_change
        self._recent = recent.total_seconds()
        self._only_deferred = only_deferred.total_seconds()
        self._told_at = -math.inf  # when it was last said that it only defers
        self._taken: tuple[int, float | None] | None = None  # whose, and `latest`; None once a refusal was judged by it
        self._refused: set[int] = set()
        self._expected: Verdict | None = None

    @property
    def expected(self) -> Verdict | None:
        """The verdict to expect on a mail that is sent now; None if it would be accepted, as far as is known."""
        return self._expected

    @property
    def only_defers(self) -> bool:
        """Has it put off all our mails for so long that this is no greylisting?"""
        since = self.standing.deferred_since
        return since is not None and _now() - since >= self._only_deferred

    def tell_if_it_only_defers(self) -> None:
        """Say so, and (again) not more often than it takes to find out."""
        latest = self.standing.latest
        if latest is None or not self.only_defers or _now() - self._told_at < self._only_deferred:
            return
        self._told_at = _now()
        log.error(
            "mail.only_deferred",
            provider=self.provider,
            failure=latest.failure,
            reply=latest.reply_code,
            status=latest.reply_status,
            hint="it has taken none of our mails for ten minutes, and only put them off: look at its log",
        )

    def taken(self, to: str) -> None:
        """The server accepted a mail."""
        was_in_trouble, now = self.standing.refused_since is not None or self.only_defers, _now()
        self._taken, self._expected = (hash(to), self._beliefs.latest(self.provider)), None
        self._refused.clear()
        self.standing = Standing(taken_at=now)
        if was_in_trouble:
            self._on_change()

    def taken_from_another(self, ago: float) -> None:
        """The server accepted a mail, as a rule another worker's, so many seconds ago: what it refused before is no row
        of now."""
        standing, at = self.standing, _now() - ago
        if standing.taken_at is None or at > standing.taken_at + 1.0:  # otherwise it may be the one that we told of
            self.taken_elsewhere_at = at
        if standing.refused_since is not None and standing.refused_since < at:
            standing.refused_since, standing.refusals, self._expected = None, 0, None
            self._refused.clear()
        if standing.deferred_since is not None and standing.deferred_since < at:
            standing.deferred_since = None

    async def judge(self, verdict: Verdict, to: str) -> Verdict:
        """The verdict on this mail, in which `on_evidence` is settled."""
        is_content = verdict.failure == "content"
        if (
            is_content
        ):  # all are alike: even one that is about this mail counts for the circuit, and is asked of the next
            verdict = replace(verdict, outage=True)
            self._expected = replace(verdict, permanent=False, on_evidence=False)
        if verdict.on_evidence:
            is_about_it = await self._is_about_this_mail(verdict, to)
            failure = verdict.failure if is_content or is_about_it else "refused"
            verdict = replace(verdict, failure=failure, permanent=is_about_it, on_evidence=False)
        if verdict.about_us:
            self._refuses(verdict, to)
        elif not verdict.permanent and verdict.reply_code is not None:
            self._defers(verdict)
        return verdict

    async def _is_about_this_mail(self, verdict: Verdict, to: str) -> bool:
        taken, self._taken = self._taken, None
        if taken is None or (taken[0] == hash(to) and verdict.failure != "content"):
            return False
        taken_at = self.standing.taken_at
        is_recent = taken_at is not None and _now() - taken_at <= self._recent
        return is_recent and await self._beliefs.may_believe(self.provider, taken[1])

    def _refuses(self, verdict: Verdict, to: str) -> None:
        standing, known = self.standing, len(self._refused)
        self._refused.add(hash(to))
        standing.refusals, standing.latest = len(self._refused), verdict
        if standing.refused_since is None:
            standing.refused_since = _now()
        if not verdict.hopeless:  # of those the withheld mail finds out by itself
            self._expected = verdict
        if known < len(self._refused) <= 2:
            self._on_change()

    def _defers(self, verdict: Verdict) -> None:
        standing = self.standing
        if standing.refused_since is None:
            standing.latest = verdict
        if standing.deferred_since is None:
            standing.deferred_since = _now()


def _now() -> float:
    return asyncio.get_running_loop().time()
