"""Alerts: tells an operator's webhook when dead letters gather or a mail server's circuit opens, and when that is over.

An occasion is a row, from its begin until its end has been told. So a crash, a new leader or a webhook that is away
neither loses one nor tells it as new, and one call may come twice, with the same `Idempotency-Key`. A call is

    POST, Content-Type: application/json, Idempotency-Key: <id>-<state>
    {"id", "alert", "state": "firing" | "resolved", "service": our public URL, "at", "details"}

with the same `id` for both states of an occasion. Of `details`, see `docs/alerts.md`: counts, times and the addresses of
mail servers, never anything of a person.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal
from uuid import UUID

import msgspec
import structlog
from psycopg.types.json import Jsonb
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_exponential, wait_random

from infrastructure.alerts.webhook import NotTaken, Webhook
from infrastructure.followers.leadership import TOUCH, touch
from infrastructure.postgres.connection import Connection

log = structlog.get_logger(__name__)

DEAD_LETTERS: Final = "dead-letters"
CIRCUIT_OPEN: Final = "circuit-open"

LOOK_EVERY: Final = timedelta(seconds=5)

SETTLED: Final = timedelta(seconds=30)
"""A circuit is closed for so long before that is told: one that opens again at once is the same trouble."""

UNUSED: Final = timedelta(minutes=10)
"""A server that no worker has named for so long was taken out of service; a restart takes less."""

NEWS_FOR: Final = timedelta(hours=1)
"""An occasion that was over for so long before anyone could be told of its begin is given up: a webhook that comes back
after a day is not to be flooded with the day."""

PAUSES: Final = wait_exponential(multiplier=1, max=300) + wait_random(0, 1)
"""Between two tries of a call: from a second up to five minutes, and so on for ever."""

State = Literal["firing", "resolved"]

_BEGIN = """
    INSERT INTO alerts (alert, subject, firing) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING
    RETURNING alert_id
"""

_END = """
    UPDATE alerts SET resolved = %s, resolved_at = clock_timestamp()
    WHERE alert = %s AND subject = %s AND resolved_at IS NULL
    RETURNING alert_id
"""

# A call that failed may have been taken all the same, by a webhook whose answer was lost. So of an occasion whose begin was
# tried the end is told, and only others are forgotten.
_TELL_ITS_END_ONLY = """
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

# What is to be told next, noted as tried before it is.
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
        alert_id: of the occasion, the same for its begin and its end.
        at: when it began or ended, by the database's clock.
    """

    alert_id: UUID
    alert: str
    state: State
    at: datetime
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Call:
    """A call that is being made until it is taken."""

    notice: Notice
    task: asyncio.Task[None]

    async def cancel(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


OnAttempt = Callable[[str, Literal["told", "failed"]], None]
"""Told the alert and what became of one call."""


class Alerts:
    """Looks for what operators should know, and calls them; one leads (`infrastructure.followers.leadership.lead`).

    Each occasion is told once as "firing" and once as "resolved", in order, and again only where an answer was lost.
    Whoever may have taken a "firing" is told "resolved" in the end.
    """

    name = "alerts"

    def __init__(
        self,
        webhook: Webhook,
        *,
        service: str,
        threshold: int,
        dead_letters: Callable[[Connection], Awaitable[int]],
        on_attempt: OnAttempt = lambda *_: None,
        look_every: timedelta = LOOK_EVERY,
        settled: timedelta = SETTLED,
        pauses: Any = PAUSES,
    ) -> None:
        """
        Args:
            service: names us to whoever is called by several services.
            threshold: so many dead letters fire; half of it, rounded down, or fewer resolve.
            dead_letters: how many there are now.
            settled: see `SETTLED`.
            pauses: waits between the tries of a call, in tenacity's terms.
        """
        self._webhook = webhook
        self._service = service
        self._threshold = threshold
        self._dead_letters = dead_letters
        self._on_attempt = on_attempt
        self._look_every = look_every
        self._settled = settled
        self._pauses = pauses

    async def work(self, connection: Connection) -> None:
        """Look and call until cancelled; see `infrastructure.followers.leadership.Leading`.

        The call is made beside the session, which a webhook that hangs must not keep silent.
        """
        loop = asyncio.get_running_loop()
        look_at = loop.time()
        call: _Call | None = None
        try:
            while True:
                if loop.time() >= look_at:
                    given_up = await self._look(connection)
                    if call is not None and call.notice.alert_id in given_up:
                        await call.cancel()
                        call = None
                    look_at = loop.time() + self._look_every.total_seconds()
                if call is not None and call.task.done():
                    call.task.result()
                    await _told(connection, call.notice)
                    call = None
                if call is None:
                    notice = await _next(connection)
                    call = None if notice is None else _Call(notice, asyncio.create_task(self._tell(notice)))
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

    # --- What there is to tell ------------------------------------------------------------------

    async def _look(self, connection: Connection) -> set[UUID]:
        """Begin and end occasions. Edges, not levels: what has begun already begins no second time.

        Returns the occasions of whose begin nobody is to be told any more.
        """
        dead_letters = await self._dead_letters(connection)
        details: dict[str, Any] = {"dead_letters": dead_letters, "threshold": self._threshold}
        if dead_letters >= self._threshold:
            await _begin(connection, DEAD_LETTERS, "", details)
        elif dead_letters <= self._threshold // 2:
            await _end(connection, DEAD_LETTERS, "", details)
        cursor = await connection.execute(_CIRCUITS, {"unused": UNUSED, "settled": self._settled})
        for server, changed_at, used, opened, settled in await cursor.fetchall():
            details = {"server": server, "since": changed_at.isoformat()}
            if not used:
                await _end(connection, CIRCUIT_OPEN, server, {"server": server, "reason": "unused"})
            elif opened:
                await _begin(connection, CIRCUIT_OPEN, server, details)
            elif settled:
                await _end(connection, CIRCUIT_OPEN, server, {**details, "reason": "closed"})
        given_up = [
            row
            for give_up in (_TELL_ITS_END_ONLY, _FORGET)
            for row in await (await connection.execute(give_up, (NEWS_FOR,))).fetchall()
        ]
        for _, alert in given_up:
            log.error("alert.given_up", alert=alert, hint="it was over for an hour; mend the webhook")
        return {alert_id for alert_id, _ in given_up}

    # --- Telling it -----------------------------------------------------------------------------

    async def _tell(self, notice: Notice) -> None:
        """Call until the notice is taken."""

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


async def _begin(connection: Connection, alert: str, subject: str, details: Mapping[str, Any]) -> None:
    if (await connection.execute(_BEGIN, (alert, subject, Jsonb(details)))).rowcount:
        log.warning("alert.firing", alert=alert, **details)


async def _end(connection: Connection, alert: str, subject: str, details: Mapping[str, Any]) -> None:
    if (await connection.execute(_END, (Jsonb(details), alert, subject))).rowcount:
        log.info("alert.resolved", alert=alert, **details)


async def _next(connection: Connection) -> Notice | None:
    row = await (await connection.execute(_NEXT)).fetchone()
    return None if row is None else Notice(*row)


async def _told(connection: Connection, notice: Notice) -> None:
    if notice.state == "resolved":
        await connection.execute("DELETE FROM alerts WHERE alert_id = %s", (notice.alert_id,))
    else:
        await connection.execute("UPDATE alerts SET firing_told = true WHERE alert_id = %s", (notice.alert_id,))
