"""Read model `mail`: every mail and what became of it, the dead letters among them, and those that are none of ours."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import tuple_row

from domain.mail_outcome import CancelReason
from domain.mail_saga import MailSaga
from domain.recorded import AnyEvent, Position, Recorded
from domain.registration import Registration
from domain.stray_message import StrayMessage
from projections.paging import LAST_POSITION, Page, before, page

STATES = ("QUEUED", "RETRYING", "SENT", "WITHHELD", "FAILED", "DISCARDED", "DROPPED")
"""What a mail can be.

- QUEUED: to be sent, no try has failed.
- RETRYING: every try so far failed, another follows.
- SENT: with a mail server.
- WITHHELD: the address's owner had a notice within the day, so this one is not sent.
- FAILED: a dead letter: refused for good, or not delivered by the registration's end. It waits for an operator until it
  is settled.
- DISCARDED: given up by an operator.
- DROPPED: not wanted any more: a later issue took its place, or its registration went on or ended without it.
"""

STRAY = "STRAY"
"""In place of a mail's state: the dead letters that are none of ours, and so no mails."""

WAITING = "WAITING"
"""In place of a mail's state: FAILED and not settled, so that an operator can still do something about it."""

UNSENT = frozenset({"QUEUED", "RETRYING"})

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
    CREATE TABLE IF NOT EXISTS strays (
        id           uuid        PRIMARY KEY,
        digest       text        NOT NULL,
        reason       text        NOT NULL,
        died_of      text        NOT NULL,
        size         integer     NOT NULL,
        content_type text,
        fields       text        NOT NULL,
        other_fields integer     NOT NULL,
        kept_at      timestamptz NOT NULL,
        position     bigint      NOT NULL UNIQUE,
        discarded    boolean     NOT NULL
    );
    CREATE INDEX IF NOT EXISTS strays_kept ON strays (position) WHERE NOT discarded;
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
    -- take its time.
    SET LOCAL statement_timeout = 0;
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

_COLUMNS = (
    "registration_id, serial, created_position, position, kind, state, requested_at, waiting_since, requests, failures,"
    " failure, provider, attempts, reply_code, reply_status, last_attempt_at, dispatched_at, look_again_at, settled"
)

# Registration by registration through the index, on purpose: a plan made and kept while the table was empty would scan
# it for ever. OFFSET 0 keeps the planner from turning this into a join.
_LOAD = f"""
    SELECT m.*
    FROM unnest(%b::uuid[]) AS wanted (id)
    CROSS JOIN LATERAL (SELECT {_COLUMNS} FROM mails WHERE registration_id = wanted.id OFFSET 0) AS m
"""  # noqa: S608 - a constant

_SAVE = f"""
    INSERT INTO mails ({_COLUMNS})
    SELECT * FROM unnest(
        %b::uuid[], %b::integer[], %b::bigint[], %b::bigint[], %b::text[], %b::text[], %b::timestamptz[],
        %b::timestamptz[], %b::integer[], %b::integer[], %b::text[], %b::text[], %b::integer[], %b::integer[],
        %b::text[], %b::timestamptz[], %b::timestamptz[], %b::timestamptz[], %b::boolean[])
    ON CONFLICT (registration_id, serial) DO UPDATE SET
        created_position = excluded.created_position, position = excluded.position, kind = excluded.kind,
        state = excluded.state, requested_at = excluded.requested_at, waiting_since = excluded.waiting_since,
        requests = excluded.requests, failures = excluded.failures, failure = excluded.failure,
        provider = excluded.provider, attempts = excluded.attempts, reply_code = excluded.reply_code,
        reply_status = excluded.reply_status, last_attempt_at = excluded.last_attempt_at,
        dispatched_at = excluded.dispatched_at, look_again_at = excluded.look_again_at, settled = excluded.settled
"""  # noqa: S608 - a constant

# The read model `registrations` is asked, too: a leader of the release before, which may still lead while a new version
# is rolled out, settles nothing. Row by row through the index, whatever the planner knows of either table: OFFSET 0
# keeps it from turning this into a join.
_ENDED = """
    EXISTS (
        SELECT FROM read_registrations.progress AS p
        WHERE p.registration_id = mails.registration_id AND (p.status <> 'PENDING' OR p.serial > mails.serial)
        OFFSET 0)
"""

_WAITS = f"state = 'FAILED' AND NOT settled AND NOT {_ENDED}"

_VIEW = f"""
    SELECT registration_id, serial, created_position, position, kind, state, requested_at, waiting_since, requests,
           failures, failure, provider, attempts, reply_code, reply_status, last_attempt_at, dispatched_at,
           CASE WHEN state IN ('QUEUED', 'RETRYING') THEN look_again_at END,
           state = 'FAILED' AND (settled OR {_ENDED})
    FROM read_mail.mails
"""  # noqa: S608 - a constant

_STRAY_COLUMNS = "id, digest, reason, died_of, size, content_type, fields, other_fields, kept_at, position, discarded"

_KEEP_STRAYS = f"""
    INSERT INTO strays ({_STRAY_COLUMNS})
    SELECT * FROM unnest(
        %b::uuid[], %b::text[], %b::text[], %b::text[], %b::integer[], %b::text[], %b::text[], %b::integer[],
        %b::timestamptz[], %b::bigint[], %b::boolean[])
"""  # noqa: S608 - a constant

_DISCARD_STRAYS = "UPDATE strays SET discarded = true WHERE id = ANY (%b::uuid[]) RETURNING id"


@dataclass(slots=True)
class Mail:
    """One issue's mail.

    Attributes:
        created_position: of its first event; the order of lists.
        kind: "code" or "notice".
        state: see `STATES`.
        requested_at: when its code came into force.
        waiting_since: since when the registrant has had no mail: `requested_at`, or that of an earlier issue whose
            mail was not sent either.
        requests: how often the saga asked for it.
        failures: how often it could not be sent (up to three tries each).
        failure: what the last of these was.
        provider, attempts, reply_code, reply_status: of the last outcome, good or bad.
        next_try_at: when the saga looks at it again, while it is unsent.
        settled: failed for good, and nobody can do anything about it any more: its registration has ended, or has a
            later code.
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

    def columns(self) -> tuple[Any, ...]:
        return (
            self.registration_id, self.serial, self.created_position, self.position, self.kind, self.state,
            self.requested_at, self.waiting_since, self.requests, self.failures, self.failure, self.provider,
            self.attempts, self.reply_code, self.reply_status, self.last_attempt_at, self.dispatched_at,
            self.next_try_at, self.settled,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stray:
    """A message among the dead letters that is none of ours, in words of ours: nothing that somebody else wrote.

    Attributes:
        digest: SHA-256 of its bytes, in hexadecimal.
        reason: what it lacks.
        died_of: how it came among the dead letters, by RabbitMQ's word; "unknown" if somebody put it there.
        size: in bytes.
        fields: those of a mail request that it has, separated by commas; `other_fields`: how many more at its top.
        position: of the event that keeps it; the order of lists.
    """

    id: UUID
    digest: str
    reason: str
    died_of: str
    size: int
    content_type: str | None
    fields: str
    other_fields: int
    kept_at: datetime
    position: Position
    discarded: bool


class _Batch:
    """The mails of the registrations that a batch is about."""

    def __init__(self, loaded: Sequence[Mail]) -> None:
        self._of: defaultdict[UUID, dict[int, Mail]] = defaultdict(dict)
        for mail in loaded:
            self._of[mail.registration_id][mail.serial] = mail
        self.changed: dict[tuple[UUID, int], Mail] = {}

    def fold(self, event: AnyEvent, position: Position) -> None:
        match event:
            case Registration.UserRegistered():
                # Comes with issue 1 in the same commit, always; only here it shows what kind of mail it is to be.
                kind = "code" if event.duplicate_of is None else "notice"
                self._begin(event.originator_id, 1, position, kind, event.timestamp)
            case Registration.OtpIssued(serial=1):
                self._change(event.originator_id, event.serial, position)
            case Registration.OtpIssued():
                self._replace(event, position)
            case Registration.EmailDispatched():
                mail = self._change(event.originator_id, event.serial, position)
                mail.state = "SENT"
                mail.provider = event.provider
                mail.attempts = event.attempts
                mail.reply_code = event.reply_code
                mail.reply_status = None
                mail.last_attempt_at = mail.dispatched_at = event.timestamp
            case Registration.EmailWithheld():
                self._change(event.originator_id, event.serial, position).state = "WITHHELD"
            case Registration.EmailDispatchFailed():
                mail = self._change(event.originator_id, event.serial, position)
                mail.state = "FAILED" if event.permanent else "RETRYING"
                mail.failures += 1
                mail.failure = event.failure
                mail.provider = event.provider
                mail.attempts = event.attempts
                mail.reply_code = event.reply_code
                mail.reply_status = event.reply_status
                mail.last_attempt_at = event.timestamp
            case Registration.EmailRetryRequested():
                mail = self._change(event.originator_id, event.serial, position)
                mail.state = "RETRYING" if mail.failures else "QUEUED"
            case Registration.EmailDiscarded():
                mail = self._change(event.originator_id, event.serial, position)
                if mail.state not in {"SENT", "WITHHELD"}:
                    mail.state = "DISCARDED"
            case Registration.EmailVerified():
                self._end(event.originator_id, position, "DROPPED")
            case Registration.RegistrationCancelled():
                self._end(
                    event.originator_id, position, "FAILED" if event.reason == CancelReason.EXPIRED else "DROPPED"
                )
            case MailSaga.MailRequested():
                registration_id = UUID(event.registration_id)
                mail = self._begin(registration_id, event.serial, position, event.kind, event.issued_at)
                mail.requests = event.request
                mail.next_try_at = event.look_again_at
            case MailSaga.RetryScheduled() | MailSaga.FreshCodeAsked():
                mail = self._change(UUID(event.registration_id), event.serial, position)
                mail.next_try_at = event.look_again_at

    def _begin(self, registration_id: UUID, serial: int, position: Position, kind: str, issued_at: datetime) -> Mail:
        mails = self._of[registration_id]
        if serial not in mails:
            mails[serial] = Mail(
                registration_id,
                serial,
                created_position=LAST_POSITION,
                position=0,
                kind=kind,
                state="QUEUED",
                requested_at=issued_at,
                waiting_since=issued_at,
            )
        return self._change(registration_id, serial, position)

    def _replace(self, issued: Registration.OtpIssued, position: Position) -> None:
        earlier = self._find(issued.originator_id, issued.serial - 1)
        mail = self._begin(issued.originator_id, issued.serial, position, earlier.kind, issued.timestamp)
        if earlier.state in UNSENT:
            mail.waiting_since = earlier.waiting_since
            self._change(issued.originator_id, earlier.serial, position).state = "DROPPED"
        self._settle(earlier)

    def _find(self, registration_id: UUID, serial: int) -> Mail:
        mail = self._of[registration_id].get(serial)
        if mail is None:
            raise LookupError(f"mail {serial} of registration {registration_id} was never asked for")
        return mail

    def _change(self, registration_id: UUID, serial: int, position: Position) -> Mail:
        mail = self._find(registration_id, serial)
        mail.created_position = min(mail.created_position, position)
        mail.position = max(mail.position, position)
        self.changed[registration_id, serial] = mail
        return mail

    def _end(self, registration_id: UUID, position: Position, unsent: str) -> None:
        """The registration is over: its unsent mails are now this, and nothing is left to do about any that failed."""
        for mail in self._of[registration_id].values():
            if mail.state in UNSENT:
                self._change(registration_id, mail.serial, position).state = unsent
            self._settle(mail)

    def _settle(self, mail: Mail) -> None:
        if mail.state == "FAILED" and not mail.settled:
            mail.settled = True
            self.changed[mail.registration_id, mail.serial] = mail


class Mails:
    """A row per registration and issue, and one per stray message."""

    name = "mail"
    topics: tuple[str, ...] | None = tuple(
        event.TOPIC
        for event in (
            Registration.UserRegistered,
            Registration.OtpIssued,
            Registration.EmailDispatched,
            Registration.EmailWithheld,
            Registration.EmailDispatchFailed,
            Registration.EmailRetryRequested,
            Registration.EmailDiscarded,
            Registration.EmailVerified,
            Registration.RegistrationCancelled,
            MailSaga.MailRequested,
            MailSaga.RetryScheduled,
            MailSaga.FreshCodeAsked,
            StrayMessage.StrayMessageKept,
            StrayMessage.StrayMessageDiscarded,
        )
    )
    tables: tuple[str, ...] = (TABLES, SETTLED, WAITING_INDEX, SETTLE)

    async def apply(self, connection: psycopg.AsyncConnection[Any], events: Sequence[Recorded]) -> None:
        """Write what a batch of events changes.

        Raises:
            LookupError: an event's mail was never asked for, or its stray message never kept.
        """
        cursor = connection.cursor(binary=True, row_factory=tuple_row)
        strays = [recorded for recorded in events if isinstance(recorded.event, _OF_STRAYS)]
        if strays:
            await _apply_strays(cursor, strays)
            events = [recorded for recorded in events if not isinstance(recorded.event, _OF_STRAYS)]
        if not events:
            return
        await cursor.execute(_LOAD, (list({_registration_of(recorded.event) for recorded in events}),))
        mails = _Batch([Mail(*row) for row in await cursor.fetchall()])
        for recorded in events:
            mails.fold(recorded.event, recorded.position)
        if mails.changed:
            rows = [mail.columns() for mail in mails.changed.values()]
            await cursor.execute(_SAVE, [list(column) for column in zip(*rows, strict=True)])

    @staticmethod
    async def search(
        connection: psycopg.AsyncConnection[Any],
        *,
        state: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page[Mail]:
        """Mails, the latest issue first.

        Args:
            state: one of the `STATES`, or `WAITING`.

        Raises:
            ValueError: malformed cursor.
        """
        if state is None:
            condition = ""
        elif state == WAITING:
            condition = f" AND {_WAITS}"
        else:
            condition = " AND state = %(state)s"
        reading = connection.cursor(binary=True, row_factory=tuple_row)
        await reading.execute(
            f"{_VIEW} WHERE created_position < %(before)s{condition} ORDER BY created_position DESC LIMIT %(limit)s",
            {"before": before(cursor), "state": state, "limit": limit + 1},
            prepare=False,
        )
        found = [Mail(*row) for row in await reading.fetchall()]
        return page(found, limit, lambda mail: mail.created_position)

    @staticmethod
    async def failed(
        connection: psycopg.AsyncConnection[Any],
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
        reading = connection.cursor(binary=True, row_factory=tuple_row)
        await reading.execute(
            _VIEW
            + " WHERE created_position < %(before)s AND state IN ('RETRYING', 'FAILED')"
            + ("" if failures is None else " AND failure = ANY (%(failures)s)")
            + " ORDER BY created_position DESC LIMIT %(limit)s",
            {
                "before": before(cursor),
                "failures": None if failures is None else list(failures),
                "limit": limit + 1,
            },
            prepare=False,
        )
        found = [Mail(*row) for row in await reading.fetchall()]
        return page(found, limit, lambda mail: mail.created_position)

    @staticmethod
    async def strays(
        connection: psycopg.AsyncConnection[Any], *, cursor: str | None = None, limit: int = 50
    ) -> Page[Stray]:
        """Stray messages that nobody has discarded, the latest first.

        Raises:
            ValueError: malformed cursor.
        """
        reading = connection.cursor(binary=True, row_factory=tuple_row)
        await reading.execute(
            f"SELECT {_STRAY_COLUMNS} FROM read_mail.strays WHERE NOT discarded AND position < %s"  # noqa: S608
            " ORDER BY position DESC LIMIT %s",
            (before(cursor), limit + 1),
            prepare=False,
        )
        found = [Stray(*row) for row in await reading.fetchall()]
        return page(found, limit, lambda stray: stray.position)

    @staticmethod
    async def of_registration(connection: psycopg.AsyncConnection[Any], registration_id: UUID) -> list[Mail]:
        """A registration's mails, in the order of their issues."""
        reading = connection.cursor(binary=True, row_factory=tuple_row)
        await reading.execute(_VIEW + " WHERE registration_id = %s ORDER BY serial", (registration_id,))
        return [Mail(*row) for row in await reading.fetchall()]

    @staticmethod
    async def counts(connection: psycopg.AsyncConnection[Any]) -> dict[str, int]:
        """How many mails are in each of the `STATES`. Reads the whole index: for people, not for every scrape."""
        reading = connection.cursor(binary=True, row_factory=tuple_row)
        await reading.execute("SELECT state, count(*) FROM read_mail.mails GROUP BY state")
        return dict.fromkeys(STATES, 0) | {state: int(count) for state, count in await reading.fetchall()}

    @staticmethod
    async def oldest_unsent(connection: psycopg.AsyncConnection[Any]) -> datetime | None:
        """Since when the registrant who has waited longest has had no mail; None if nobody waits."""
        reading = connection.cursor(binary=True, row_factory=tuple_row)
        await reading.execute("SELECT min(waiting_since) FROM read_mail.mails WHERE state IN ('QUEUED', 'RETRYING')")
        row = await reading.fetchone()
        return None if row is None else row[0]

    @staticmethod
    async def dead_letters(connection: psycopg.AsyncConnection[Any]) -> int:
        """How many mails have failed for good and wait for an operator, as `search` lists them with `WAITING`."""
        reading = connection.cursor(binary=True, row_factory=tuple_row)
        await reading.execute(f"SELECT count(*) FROM read_mail.mails WHERE {_WAITS}", prepare=False)  # noqa: S608
        row = await reading.fetchone()
        return 0 if row is None else int(row[0])

    @staticmethod
    async def stray_messages(connection: psycopg.AsyncConnection[Any]) -> int:
        """How many stray messages wait to be looked at."""
        reading = connection.cursor(binary=True, row_factory=tuple_row)
        await reading.execute("SELECT count(*) FROM read_mail.strays WHERE NOT discarded")
        row = await reading.fetchone()
        return 0 if row is None else int(row[0])


_OF_STRAYS = (StrayMessage.StrayMessageKept, StrayMessage.StrayMessageDiscarded)


async def _apply_strays(cursor: psycopg.AsyncCursor[Any], events: Sequence[Recorded]) -> None:
    kept = [_kept(r.event, r.position) for r in events if isinstance(r.event, StrayMessage.StrayMessageKept)]
    if kept:
        await cursor.execute(_KEEP_STRAYS, [list(column) for column in zip(*kept, strict=True)])
    discarded = [r.event.originator_id for r in events if isinstance(r.event, StrayMessage.StrayMessageDiscarded)]
    if discarded:
        await cursor.execute(_DISCARD_STRAYS, (discarded,))
        if len(await cursor.fetchall()) < len(discarded):
            raise LookupError("a stray message that was never kept was discarded")


def _kept(event: StrayMessage.StrayMessageKept, position: Position) -> tuple[Any, ...]:
    return (
        event.originator_id, event.digest, event.reason, event.died_of, event.size, event.content_type, event.fields,
        event.other_fields, event.timestamp, position, False,
    )  # fmt: skip


def _registration_of(event: AnyEvent) -> UUID:
    if isinstance(event, MailSaga.MailRequested | MailSaga.RetryScheduled | MailSaga.FreshCodeAsked):
        return UUID(event.registration_id)
    return event.originator_id
