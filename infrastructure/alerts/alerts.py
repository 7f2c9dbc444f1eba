"""Alerts: calls an operator's webhook when dead letters gather, a mail server's circuit opens a read model is not
what the log says, or the log not what was recorded, and when that is over.

An incident is a row, from its start until its end has been delivered. So a crash, a new leader or a webhook that is
away neither loses one nor reports it as new; a call may be repeated, with the same `Idempotency-Key`. A call is

    POST, Content-Type: application/json, Idempotency-Key: <id>-<state>
    {"id", "alert", "state": "firing" | "resolved", "service": our public URL, "at", "details"}

with the same `id` for both states of an incident. For `details`, see `docs/alerts.md`: counts, times and the addresses
of mail servers, never personal data.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal
from uuid import UUID

import msgspec
import structlog
from psycopg.types.json import Jsonb
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_exponential, wait_random

from infrastructure.alerts.webhook import NotTaken, Webhook
from infrastructure.audit.standing import standing_of
from infrastructure.followers.leadership import TOUCH, LeaderSession, touch
from infrastructure.mail.shared_circuits import DEFERRING, REFUSING, TROUBLE
from infrastructure.mail.smtp.evidence import ONLY_DEFERRED
from infrastructure.postgres.connection import Connection
from infrastructure.webhooks.records import failing

log = structlog.get_logger(__name__)

DEAD_LETTERS: Final = "dead-letters"
CIRCUIT_OPEN: Final = "circuit-open"
MAIL_REFUSED: Final = "mail-refused"
MAIL_DEFERRED: Final = "mail-deferred"
PROJECTION_DIFFERS: Final = "projection-differs"
CHAIN_BROKEN: Final = "chain-broken"
CHECKPOINT_GAP: Final = "checkpoint-gap"

WEBHOOK_FAILING: Final = "webhook-failing"

_BEGUN: Final = "SELECT subject FROM public.alerts WHERE alert = %s AND resolved_at IS NULL"

CHECK_INTERVAL: Final = timedelta(seconds=5)

SETTLED: Final = timedelta(seconds=30)
"""How long a circuit must be closed before that is reported: one that opens again at once is the same incident."""

UNUSED: Final = timedelta(minutes=10)
"""A server that no worker has named for that long was taken out of service; a restart takes less."""

FAILS_LONG: Final = timedelta(minutes=5)
"""How long an endpoint of webhooks must fail before that is reported: a restart of it takes less."""

NEWS_FOR: Final = timedelta(hours=1)
"""An incident that has been over for that long before its start could be delivered is dropped: a webhook that comes
back after a day must not be flooded with all of that day."""

RETRY_WAIT: Final = wait_exponential(multiplier=1, max=300) + wait_random(0, 1)
"""Between two attempts at a call: from a second up to five minutes, then every five minutes for ever."""

State = Literal["firing", "resolved"]

_FIRE = """
    INSERT INTO alerts (alert, subject, firing) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING
    RETURNING alert_id
"""

_RESOLVE = """
    UPDATE alerts SET resolved = %s, resolved_at = clock_timestamp()
    WHERE alert = %s AND subject = %s AND resolved_at IS NULL
    RETURNING alert_id
"""

# A call that failed may have been accepted all the same, by a webhook whose response was lost. So if the start of an
# incident was tried, its end is delivered; only other incidents are deleted.
_REPORT_END_ONLY = """
    UPDATE alerts SET firing_told = true
    WHERE NOT firing_told AND firing_tried AND resolved_at < clock_timestamp() - %s
    RETURNING alert_id, alert
"""

_FORGET = """
    DELETE FROM alerts WHERE NOT firing_told AND NOT firing_tried AND resolved_at < clock_timestamp() - %s
    RETURNING alert_id, alert
"""

_CIRCUITS = """
    SELECT name, changed_at, named_at > clock_timestamp() - %(unused)s, state = 'opened',
           changed_at <= clock_timestamp() - %(settled)s
    FROM circuits ORDER BY name
"""

_TROUBLES = f"""
    SELECT name, named_at > clock_timestamp() - %(unused)s, {TROUBLE}, refused_since, deferred_since, failure,
           reply_code, reply_status
    FROM circuits JOIN mail_standings USING (name) ORDER BY name
"""  # noqa: S608 - a constant

_VERIFICATIONS = "SELECT read_model, position, differences, verified_at FROM verifications ORDER BY read_model"

# The next notice to deliver, marked as tried beforehand.
_NEXT = """
    WITH next AS (
        SELECT alert_id, alert,
               CASE WHEN firing_told THEN 'resolved' ELSE 'firing' END AS state,
               CASE WHEN firing_told THEN resolved_at ELSE firing_at END AS since,
               CASE WHEN firing_told THEN resolved ELSE firing END AS details
        FROM alerts WHERE NOT firing_told OR resolved_at IS NOT NULL
        ORDER BY since, alert_id LIMIT 1
    )
    UPDATE alerts SET firing_tried = true FROM next WHERE alerts.alert_id = next.alert_id
    RETURNING next.*
"""


@dataclass(frozen=True, slots=True)
class Notice:
    """One call to be made.

    Attributes:
        alert_id: of the incident, the same for its start and its end.
        at: when it began or ended, by the database's clock.
    """

    alert_id: UUID
    alert: str
    state: State
    at: datetime
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Call:
    """A call that is being made until it is accepted."""

    notice: Notice
    task: asyncio.Task[None]

    async def cancel(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


OnAttempt = Callable[[str, Literal["told", "failed"]], None]
"""Called with the alert and the outcome of each call."""


class Alerts:
    """Detects what operators should know, and calls them; one process leads (`followers.leadership.lead`).

    Each incident is reported once as "firing" and once as "resolved", in order, and again only where a response was
    lost. A "firing" that may have been received is followed by a "resolved" in the end.
    """

    name = "alerts"

    def __init__(
        self,
        webhook: Webhook,
        *,
        service: str,
        threshold: int,
        dead_letters: Callable[[Connection], Awaitable[int]],
        has_checkpoints: bool = False,
        webhooks: Collection[str] = (),
        on_attempt: OnAttempt = lambda *_: None,
        look_every: timedelta = CHECK_INTERVAL,
        settled: timedelta = SETTLED,
        only_deferred: timedelta = ONLY_DEFERRED,
        pauses: Any = RETRY_WAIT,
    ) -> None:
        """
        Args:
            service: identifies us to a webhook that several services call.
            threshold: that many dead letters fire; half of it, rounded down, or fewer resolve.
            dead_letters: how many there are now.
            has_checkpoints: does a follower make some?
            webhooks: the endpoints that integration events are sent to.
            settled: see `SETTLED`.
            only_deferred: see `infrastructure.mail.smtp.evidence.ONLY_DEFERRED`.
            pauses: waits between the attempts at a call, in tenacity's terms.
        """
        self._webhook = webhook
        self._service = service
        self._threshold = threshold
        self._dead_letters = dead_letters
        self._has_checkpoints = has_checkpoints
        self._webhooks = webhooks
        self._on_attempt = on_attempt
        self._look_every = look_every
        self._settled = settled
        self._only_deferred = only_deferred
        self._pauses = pauses

    async def work(self, session: LeaderSession) -> None:
        """Check and call until cancelled; see `infrastructure.followers.leadership.LeaderTask`.

        The call is made concurrently: a webhook that hangs must not keep the session from being used.
        """
        async with session.turn() as connection:  # all the time: it has the session to itself
            await self._work(connection)

    async def _work(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        check_at = loop.time()
        call: _Call | None = None
        try:
            while True:
                if loop.time() >= check_at:
                    given_up = await self._check(connection)
                    if call is not None and call.notice.alert_id in given_up:
                        await call.cancel()
                        call = None
                    check_at = loop.time() + self._look_every.total_seconds()
                if call is not None and call.task.done():
                    call.task.result()
                    await _mark_delivered(connection, call.notice)
                    call = None
                if call is None:
                    notice = await _next(connection)
                    call = None if notice is None else _Call(notice, asyncio.create_task(self._deliver(notice)))
                else:
                    await touch(connection)
                rest = min(TOUCH, self._look_every).total_seconds()
                if call is None:
                    await asyncio.sleep(rest)
                else:
                    await asyncio.wait({call.task}, timeout=rest)
        finally:
            if call is not None:
                await call.cancel()

    # --- Detection ------------------------------------------------------------------------------

    async def _check(self, connection: Connection) -> set[UUID]:
        """Start and end incidents, by edges, not levels: one that is firing already does not fire again.

        Returns the incidents whose start is no longer to be delivered.
        """
        dead_letters = await self._dead_letters(connection)
        details: dict[str, Any] = {"dead_letters": dead_letters, "threshold": self._threshold}
        if dead_letters >= self._threshold:
            await _fire(connection, DEAD_LETTERS, "", details)
        elif dead_letters <= self._threshold // 2:
            await _resolve(connection, DEAD_LETTERS, "", details)
        cursor = await connection.execute(_CIRCUITS, {"unused": UNUSED, "settled": self._settled})
        for server, changed_at, used, opened, settled in await cursor.fetchall():
            details = {"server": server, "since": changed_at.isoformat()}
            if not used:
                await _resolve(connection, CIRCUIT_OPEN, server, {"server": server, "reason": "unused"})
            elif opened:
                await _fire(connection, CIRCUIT_OPEN, server, details)
            elif settled:
                await _resolve(connection, CIRCUIT_OPEN, server, {**details, "reason": "closed"})
        await self._check_troubles(connection)
        await self._check_projections(connection)
        if self._has_checkpoints:
            await _check_checkpoints(connection)
        if self._webhooks:
            await _check_webhooks(connection, self._webhooks)
        given_up = [
            row
            for query in (_REPORT_END_ONLY, _FORGET)
            for row in await (await connection.execute(query, (NEWS_FOR,))).fetchall()
        ]
        for _, alert in given_up:
            log.error("alert.given_up", alert=alert, hint="it was over for an hour; repair the webhook")
        return {alert_id for alert_id, _ in given_up}

    async def _check_troubles(self, connection: Connection) -> None:
        """Servers that take none of our mails though they may be called."""
        cursor = await connection.execute(_TROUBLES, {"unused": UNUSED, "only_deferred": self._only_deferred})
        for server, used, trouble, refused_since, deferred_since, failure, code, status in await cursor.fetchall():
            reply = {"failure": failure, "reply_code": code, "reply_status": status}
            for alert, of, since in (
                (MAIL_REFUSED, REFUSING, refused_since),
                (MAIL_DEFERRED, DEFERRING, deferred_since),
            ):
                if used and trouble == of:
                    await _fire(connection, alert, server, {"server": server, "since": since.isoformat(), **reply})
                else:
                    reason = "taken" if used else "unused"
                    await _resolve(connection, alert, server, {"server": server, "reason": reason})

    async def _check_projections(self, connection: Connection) -> None:
        """Read models that their last full verification has found to differ from the log."""
        for projection, position, differences, at in await (await connection.execute(_VERIFICATIONS)).fetchall():
            details = {"projection": projection, "position": position, "differences": differences}
            details["verified_at"] = at.isoformat()
            change = _fire if differences else _resolve
            await change(connection, PROJECTION_DIFFERS, projection, details)

    # --- Delivery -------------------------------------------------------------------------------

    async def _deliver(self, notice: Notice) -> None:
        """Call until the notice is accepted."""

        async def call() -> None:
            await self._webhook.post(self._body(notice), _headers(notice))

        def note(tried: RetryCallState) -> None:
            failure = tried.outcome.exception() if tried.outcome is not None else None
            self._on_attempt(notice.alert, "failed")
            log.warning(
                "alert.not_told",
                alert=notice.alert,
                state=notice.state,
                webhook=self._webhook.where,
                failure=failure.failure if isinstance(failure, NotTaken) else None,
                attempt=tried.attempt_number,
                again_in=round(tried.upcoming_sleep, 1),
                hint="is REGISTRAR_ALERT_URL right? `registrar doctor` tells whether it can be reached",
            )

        await AsyncRetrying(retry=retry_if_exception_type(NotTaken), wait=self._pauses, before_sleep=note)(call)
        self._on_attempt(notice.alert, "told")
        log.info("alert.told", alert=notice.alert, state=notice.state)

    def _body(self, notice: Notice) -> bytes:
        return msgspec.json.encode(
            {
                "id": notice.alert_id,
                "alert": notice.alert,
                "state": notice.state,
                "service": self._service,
                "at": notice.at,
                "details": notice.details,
            }
        )


def _headers(notice: Notice) -> Mapping[str, str]:
    return {
        "Content-Type": "application/json",
        "User-Agent": "registrar",
        "Idempotency-Key": f"{notice.alert_id}-{notice.state}",
    }


async def _check_webhooks(connection: Connection, names: Collection[str]) -> None:
    """Do the endpoints take what they are sent?"""
    found = {one.name: one for one in await failing(connection) if one.seconds >= FAILS_LONG.total_seconds()}
    for name in names:
        one = found.get(name)
        details = {"endpoint": name, "since": None if one is None else one.since.isoformat()}
        details["failure"] = None if one is None else one.failure
        await (_resolve if one is None else _fire)(connection, WEBHOOK_FAILING, name, details)
    for (name,) in await (await connection.execute(_BEGUN, (WEBHOOK_FAILING,))).fetchall():
        if name not in names:
            await _resolve(connection, WEBHOOK_FAILING, name, {"endpoint": name, "reason": "unused"})


async def _check_checkpoints(connection: Connection) -> None:
    """Is the log what was recorded, signed and published?"""
    standing = await standing_of(connection)
    unsound = _resolve if standing.unsound is None else _fire
    await unsound(connection, CHAIN_BROKEN, "", {"signed_upto": standing.position, "found": standing.unsound})
    gap = _fire if standing.has_gap else _resolve
    details = {"position": standing.position, "age_seconds": round(standing.age_seconds)}
    details |= {"unpublished": standing.unpublished, "unpublished_seconds": round(standing.unpublished_seconds)}
    await gap(connection, CHECKPOINT_GAP, "", details)


async def _fire(connection: Connection, alert: str, subject: str, details: Mapping[str, Any]) -> None:
    if (await connection.execute(_FIRE, (alert, subject, Jsonb(details)))).rowcount:
        log.warning("alert.firing", alert=alert, **details)


async def _resolve(connection: Connection, alert: str, subject: str, details: Mapping[str, Any]) -> None:
    if (await connection.execute(_RESOLVE, (Jsonb(details), alert, subject))).rowcount:
        log.info("alert.resolved", alert=alert, **details)


async def _next(connection: Connection) -> Notice | None:
    row = await (await connection.execute(_NEXT)).fetchone()
    return None if row is None else Notice(*row)


async def _mark_delivered(connection: Connection, notice: Notice) -> None:
    if notice.state == "resolved":
        await connection.execute("DELETE FROM alerts WHERE alert_id = %s", (notice.alert_id,))
    else:
        await connection.execute("UPDATE alerts SET firing_told = true WHERE alert_id = %s", (notice.alert_id,))
