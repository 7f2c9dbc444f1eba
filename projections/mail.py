"""Read model `mail`: every mail and what became of it, the dead letters among them, and foreign messages.

Over 400 lines, because a read model is one file: its tables, its fold, its queries.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.rows import tuple_row

from domain.mail_outcome import CancelReason
from domain.mail_saga import MailSaga
from domain.mail_state import STATES, UNSENT, WAITING, MailState
from domain.recorded import AnyEvent, Position, Told
from domain.registration import Registration
from projections import strays
from projections.paging import LAST_POSITION, Page, before, page
from projections.registrations import PROGRESS, Registrations
from projections.table import Connection, Table, schema_of, uuid_of

# A mail's state comes from its registration's stream alone, its requests and next try from the saga's alone: so it
# does not matter which of the two streams is ahead, should the other one be parked.
TABLES = """
    CREATE TABLE IF NOT EXISTS mails (
        registration_id  uuid        NOT NULL,
        serial           integer     NOT NULL,
        created_position bigint      NOT NULL UNIQUE,
        position         bigint      NOT NULL,
        kind             text        NOT NULL,
        state            text        NOT NULL,
        requested_at     timestamptz NOT NULL,
        waiting_since    timestamptz NOT NULL,
        requests         integer     NOT NULL,
        failures         integer     NOT NULL,
        failure          text,
        provider         text,
        attempts         integer,
        reply_code       integer,
        reply_status     text,
        last_attempt_at  timestamptz,
        dispatched_at    timestamptz,
        look_again_at    timestamptz,
        PRIMARY KEY (registration_id, serial)
    ) WITH (fillfactor = 70); -- room for a row's next states beside it
    CREATE INDEX IF NOT EXISTS mails_in_state ON mails (state, created_position);
    CREATE INDEX IF NOT EXISTS mails_unsent ON mails (waiting_since) WHERE state IN ('QUEUED', 'RETRYING');
    -- The cause is in it, to be looked for without the rows: an outage leaves thousands, of which few have this one.
    CREATE INDEX IF NOT EXISTS mails_failed ON mails (created_position, failure) WHERE state IN ('RETRYING', 'FAILED');
"""

SETTLED = """
    -- Failed for good and over: its registration has ended, or has a later code.
    ALTER TABLE mails ADD COLUMN IF NOT EXISTS settled boolean NOT NULL DEFAULT false;
"""

# Scripts of their own, because each gives up its locks at its end: mails are read while the index is made, and written,
# too, while the old ones are settled.
WAITING_INDEX = """
    -- Of the many that ever failed, it holds the few that are not settled.
    CREATE INDEX IF NOT EXISTS mails_waiting ON mails (created_position) WHERE state = 'FAILED' AND NOT settled;
"""

SETTLE = """
    -- What was settled before there was the column, as a fold up to this model's position has it; once only, so it may
    -- take its time. (A server before PostgreSQL 17 has no transaction_timeout.)
    SET LOCAL statement_timeout = 0;
    SELECT set_config('transaction_timeout', '0', true) FROM pg_settings WHERE name = 'transaction_timeout';
    UPDATE mails SET settled = true
    WHERE state = 'FAILED' AND NOT settled AND (
        EXISTS (
            SELECT FROM public.events AS e
            WHERE e.originator_id = mails.registration_id
              AND e.topic IN ('registration.registration_cancelled', 'registration.email_verified')
              AND e.notification_id <= (SELECT f.position FROM public.followers AS f WHERE f.name = 'mail'))
        OR EXISTS (
            SELECT FROM mails AS later
            WHERE later.registration_id = mails.registration_id AND later.serial > mails.serial));
"""

MAILS = Table(
    "mails",
    {
        "registration_id": "uuid", "serial": "integer", "created_position": "bigint", "position": "bigint",
        "kind": "text", "state": "text", "requested_at": "timestamptz", "waiting_since": "timestamptz",
        "requests": "integer", "failures": "integer", "failure": "text", "provider": "text", "attempts": "integer",
        "reply_code": "integer", "reply_status": "text", "last_attempt_at": "timestamptz",
        "dispatched_at": "timestamptz", "look_again_at": "timestamptz", "settled": "boolean",
    },
    key=("registration_id", "serial"),
)  # fmt: skip

# The read model `registrations` is asked, too: a leader of the release before, which may still lead while a new version
# is rolled out, settles nothing. Row by row through the index, whatever the planner knows of either table: OFFSET 0
# keeps it from turning this into a join.
_ENDED = """
    EXISTS (
        SELECT FROM {progress} AS p
        WHERE p.registration_id = mails.registration_id AND (p.status <> 'PENDING' OR p.serial > mails.serial)
        OFFSET 0)
"""

_WAITS = f"state = 'FAILED' AND NOT settled AND NOT {_ENDED}"

_INSTEAD = {
    "look_again_at": "CASE WHEN state IN ('QUEUED', 'RETRYING') THEN look_again_at END",
    "settled": f"state = 'FAILED' AND (settled OR {_ENDED})",
}
"""What is shown of a column, where that is not what it holds."""

_VIEW = f"SELECT {', '.join(_INSTEAD.get(column, column) for column in MAILS.columns)} FROM {{mails}}"  # noqa: S608 - a constant


@dataclass(slots=True)
class Mail:
    """One issue's mail.

    Attributes:
        created_position: of its first event; the order of lists.
        kind: "code" or "notice".
        state: see `domain.mail_state`.
        requested_at: when its code came into force.
        waiting_since: since when the registrant has had no mail: `requested_at`, or that of an earlier issue whose
            mail was not sent either.
        requests: how often the saga asked for it.
        failures: how often it could not be sent (up to three tries each).
        failure: what the last of these was.
        provider, attempts, reply_code, reply_status: of the last outcome, good or bad.
        next_try_at: when the saga looks at it again, while it is unsent.
        settled: failed for good, and nobody has to do anything: its registration has ended, or has a later code.
    """

    registration_id: UUID
    serial: int
    created_position: Position
    position: Position
    kind: str
    state: str
    requested_at: datetime
    waiting_since: datetime
    requests: int = 0
    failures: int = 0
    failure: str | None = None
    provider: str | None = None
    attempts: int | None = None
    reply_code: int | None = None
    reply_status: str | None = None
    last_attempt_at: datetime | None = None
    dispatched_at: datetime | None = None
    next_try_at: datetime | None = None
    settled: bool = False


class _Batch:
    """The mails of the registrations that a batch is about, by the ids' numbers, which compare much faster."""

    def __init__(self, loaded: Sequence[Mail]) -> None:
        self._of: defaultdict[int, dict[int, Mail]] = defaultdict(dict)
        for mail in loaded:
            self._of[mail.registration_id.int][mail.serial] = mail
        self.changed: dict[tuple[int, int], Mail] = {}

    def registered(self, event: Registration.UserRegistered, position: Position) -> None:
        # Comes with issue 1 in the same commit, always; only here it shows what kind of mail it is to be.
        kind = "code" if event.duplicate_of is None else "notice"
        self._begin(event.originator_id, 1, position, kind, event.timestamp)

    def invited(self, event: Registration.UserInvited, position: Position) -> None:
        self._begin(event.originator_id, 1, position, "code", event.timestamp)  # its issue is in the same commit, too

    def issued(self, event: Registration.OtpIssued, position: Position) -> None:
        if event.serial == 1:
            self._change(event.originator_id, event.serial, position)
        else:
            self._replace(event, position)

    def dispatched(self, event: Registration.EmailDispatched, position: Position) -> None:
        mail = self._change(event.originator_id, event.serial, position)
        mail.state = "SENT"
        mail.provider = event.provider
        mail.attempts = event.attempts
        mail.reply_code = event.reply_code
        mail.reply_status = None
        mail.last_attempt_at = mail.dispatched_at = event.timestamp

    def withheld(self, event: Registration.EmailWithheld, position: Position) -> None:
        self._change(event.originator_id, event.serial, position).state = "WITHHELD"

    def failed(self, event: Registration.EmailDispatchFailed, position: Position) -> None:
        mail = self._change(event.originator_id, event.serial, position)
        mail.state = "FAILED" if event.permanent else "RETRYING"
        mail.failures += 1
        mail.failure = event.failure
        mail.provider = event.provider
        mail.attempts = event.attempts
        mail.reply_code = event.reply_code
        mail.reply_status = event.reply_status
        mail.last_attempt_at = event.timestamp

    def bounced(self, event: Registration.EmailBounced, position: Position) -> None:
        mail = self._change(event.originator_id, event.serial, position)
        mail.failures += 1
        mail.failure = event.failure
        mail.reply_code = None
        mail.reply_status = event.reply_status
        if event.permanent or event.serial < max(self._of[event.originator_id.int]):
            mail.state = "BOUNCED"
        else:
            mail.state = "RETRYING"
            mail.waiting_since = event.timestamp

    def requested_again(self, event: Registration.EmailRetryRequested, position: Position) -> None:
        mail = self._change(event.originator_id, event.serial, position)
        mail.state = "RETRYING" if mail.failures else "QUEUED"

    def discarded(self, event: Registration.EmailDiscarded, position: Position) -> None:
        mail = self._change(event.originator_id, event.serial, position)
        if mail.state not in {"SENT", "WITHHELD"}:
            mail.state = "DISCARDED"

    def verified(self, event: Registration.EmailVerified, position: Position) -> None:
        self._end(event.originator_id, position, "DROPPED")

    def cancelled(self, event: Registration.RegistrationCancelled, position: Position) -> None:
        unsent: MailState = "FAILED" if event.reason == CancelReason.EXPIRED else "DROPPED"
        self._end(event.originator_id, position, unsent)

    def requested(self, event: MailSaga.MailRequested, position: Position) -> None:
        mail = self._begin(uuid_of(event.registration_id), event.serial, position, event.kind, event.issued_at)
        mail.requests = event.request
        mail.next_try_at = event.look_again_at

    def postponed(self, event: MailSaga.RetryScheduled | MailSaga.FreshCodeAsked, position: Position) -> None:
        mail = self._change(uuid_of(event.registration_id), event.serial, position)
        mail.next_try_at = event.look_again_at

    def _begin(self, registration_id: UUID, serial: int, position: Position, kind: str, issued_at: datetime) -> Mail:
        mails = self._of[registration_id.int]
        if serial not in mails:
            mails[serial] = Mail(registration_id, serial, LAST_POSITION, 0, kind, "QUEUED", issued_at, issued_at)
        return self._change(registration_id, serial, position)

    def _replace(self, issued: Registration.OtpIssued, position: Position) -> None:
        earlier = self._find(issued.originator_id, issued.serial - 1)
        mail = self._begin(issued.originator_id, issued.serial, position, earlier.kind, issued.timestamp)
        if earlier.state in UNSENT:
            mail.waiting_since = earlier.waiting_since
            self._change(issued.originator_id, earlier.serial, position).state = "DROPPED"
        self._settle(earlier)

    def _find(self, registration_id: UUID, serial: int) -> Mail:
        mail = self._of[registration_id.int].get(serial)
        if mail is None:
            raise LookupError(f"mail {serial} of registration {registration_id} was never asked for")
        return mail

    def _change(self, registration_id: UUID, serial: int, position: Position) -> Mail:
        mail = self._find(registration_id, serial)
        mail.created_position = min(mail.created_position, position)
        mail.position = max(mail.position, position)
        self.changed[registration_id.int, serial] = mail
        return mail

    def _end(self, registration_id: UUID, position: Position, unsent: MailState) -> None:
        """The registration is over: its unsent mails are now this, and nothing is left to do about any that failed."""
        # (A later mail is there already if the registration was reopened, and this stream was parked before that.)
        for mail in [one for one in self._of[registration_id.int].values() if one.created_position <= position]:
            if mail.state in UNSENT:
                self._change(registration_id, mail.serial, position).state = unsent
            self._settle(mail)

    def _settle(self, mail: Mail) -> None:
        if mail.state == "FAILED" and not mail.settled:
            mail.settled = True
            self.changed[mail.registration_id.int, mail.serial] = mail


_CHANGES: dict[Any, Callable[[_Batch, Any, Position], None]] = {
    Registration.UserRegistered: _Batch.registered,
    Registration.UserInvited: _Batch.invited,
    Registration.OtpIssued: _Batch.issued,
    Registration.EmailDispatched: _Batch.dispatched,
    Registration.EmailWithheld: _Batch.withheld,
    Registration.EmailDispatchFailed: _Batch.failed,
    Registration.EmailBounced: _Batch.bounced,
    Registration.EmailRetryRequested: _Batch.requested_again,
    Registration.EmailDiscarded: _Batch.discarded,
    Registration.EmailVerified: _Batch.verified,
    Registration.RegistrationCancelled: _Batch.cancelled,
    MailSaga.MailRequested: _Batch.requested,
    MailSaga.RetryScheduled: _Batch.postponed,
    MailSaga.FreshCodeAsked: _Batch.postponed,
}


class Mails:
    """A row per registration and issue, and one per stray message (`projections.strays`)."""

    name = "mail"
    topics: tuple[str, ...] | None = tuple(event.TOPIC for event in (*_CHANGES, *strays.CHANGES))
    tables: tuple[str, ...] = (TABLES + strays.TABLES, SETTLED, WAITING_INDEX, SETTLE)
    metadata = False

    def __init__(self, schema: str | None = None, *, registrations: str | None = None) -> None:
        """Tables in `schema`; in `registrations` those of the read model of that name, which is asked, too."""
        self.schema = schema = schema or schema_of(self.name)
        progress = PROGRESS.within(registrations or schema_of(Registrations.name))
        self._mails = MAILS.within(schema)
        self._waits = _WAITS.format(progress=progress)
        self._view = _VIEW.format(progress=progress, mails=self._mails)

    async def apply(self, connection: Connection, events: Sequence[Told]) -> None:
        """Write what a batch of events changes.

        Raises:
            LookupError: an event's mail was never asked for, or its stray message never kept.
        """
        cursor = connection.cursor(binary=True, row_factory=tuple_row)
        of_strays = [recorded for recorded in events if type(recorded.event) in strays.CHANGES]
        if of_strays:
            await strays.apply(cursor, of_strays)
            events = [recorded for recorded in events if type(recorded.event) not in strays.CHANGES]
        if not events:
            return
        ids = {one.int: one for one in (_registration_of(recorded.event) for recorded in events)}
        await cursor.execute(MAILS.load, (list(ids.values()),))
        mails = _Batch([Mail(*row) for row in await cursor.fetchall()])
        for recorded in events:
            _CHANGES[type(recorded.event)](mails, recorded.event, recorded.position)
        if mails.changed:
            await cursor.execute(MAILS.upsert, MAILS.arrays(mails.changed.values()))

    async def search(
        self, connection: Connection, *, state: str | None = None, cursor: str | None = None, limit: int = 50
    ) -> Page[Mail]:
        """Mails, the latest issue first.

        Args:
            state: one of the `STATES`, or `WAITING`.

        Raises:
            ValueError: malformed cursor.
        """
        if state is None:
            condition = "true"
        elif state == WAITING:
            condition = self._waits
        else:
            condition = "state = %(state)s"
        return await self._page(connection, condition, {"state": state}, cursor, limit)

    async def failed(
        self,
        connection: Connection,
        *,
        failures: Sequence[str] | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page[Mail]:
        """Mails that failed, for now or for good, the latest issue first.

        Args:
            failures: only those whose last failure is one of these.

        Raises:
            ValueError: malformed cursor.
        """
        condition, parameters = "state IN ('RETRYING', 'FAILED')", dict[str, Any]()
        if failures is not None:
            condition += " AND failure = ANY (%(failures)s)"
            parameters["failures"] = list(failures)
        return await self._page(connection, condition, parameters, cursor, limit)

    async def _page(
        self, connection: Connection, condition: str, parameters: dict[str, Any], cursor: str | None, limit: int
    ) -> Page[Mail]:
        reading = connection.cursor(binary=True, row_factory=tuple_row)
        await reading.execute(
            f"{self._view} WHERE created_position < %(before)s AND {condition}"
            " ORDER BY created_position DESC LIMIT %(limit)s",
            parameters | {"before": before(cursor), "limit": limit + 1},
            prepare=False,
        )
        found = [Mail(*row) for row in await reading.fetchall()]
        return page(found, limit, lambda mail: mail.created_position)

    async def of_registration(self, connection: Connection, registration_id: UUID) -> list[Mail]:
        """A registration's mails, in the order of their issues."""
        reading = connection.cursor(binary=True, row_factory=tuple_row)
        await reading.execute(self._view + " WHERE registration_id = %s ORDER BY serial", (registration_id,))
        return [Mail(*row) for row in await reading.fetchall()]

    async def counts(self, connection: Connection) -> dict[str, int]:
        """How many mails are in each of the `STATES`. Reads the whole index: for people, not for every scrape."""
        reading = connection.cursor(binary=True, row_factory=tuple_row)
        await reading.execute(f"SELECT state, count(*) FROM {self._mails} GROUP BY state")  # noqa: S608 - a constant
        return dict.fromkeys(STATES, 0) | {state: int(count) for state, count in await reading.fetchall()}

    async def oldest_unsent(self, connection: Connection) -> datetime | None:
        """Since when the registrant who has waited longest has had no mail; None if nobody waits."""
        reading = connection.cursor(binary=True, row_factory=tuple_row)
        await reading.execute(f"SELECT min(waiting_since) FROM {self._mails} WHERE state IN ('QUEUED', 'RETRYING')")  # noqa: S608
        [(since,)] = await reading.fetchall()
        return since  # type: ignore[no-any-return]

    async def dead_letters(self, connection: Connection) -> int:
        """How many mails have failed for good and wait for an operator, as `search` lists them with `WAITING`."""
        reading = connection.cursor(binary=True, row_factory=tuple_row)
        await reading.execute(f"SELECT count(*) FROM {self._mails} WHERE {self._waits}", prepare=False)  # noqa: S608
        return int((await reading.fetchall())[0][0])


def _registration_of(event: AnyEvent) -> UUID:
    named: str | None = vars(event).get("registration_id")  # the saga's
    return event.originator_id if named is None else uuid_of(named)
