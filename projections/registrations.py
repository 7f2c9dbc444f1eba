"""Read model `registrations`: every registration as its owner and the operators see it.

Over 400 lines, because a read model is one file: its tables, its fold, its queries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from psycopg.rows import tuple_row

from domain.recorded import Position, Recorded, Told
from domain.registration import BEGINNINGS, Registration, Status
from domain.synthetic import FIRST, LAST
from projections.paging import Page, before, page
from projections.table import Connection, Table, schema_of

# What never changes stands apart from what changes with each event: writing a short row again is cheap, and most
# changes touch no index.
TABLES = """
    CREATE TABLE IF NOT EXISTS registrations (
        registration_id  uuid        PRIMARY KEY,
        created_position bigint      NOT NULL UNIQUE,
        created_at       timestamptz NOT NULL,
        claim_id         uuid        NOT NULL,
        duplicate_of     uuid,
        locale           text        NOT NULL,
        sealed           text        -- NULL once erased
    );
    CREATE INDEX IF NOT EXISTS registrations_of_claim ON registrations (claim_id, created_position);
    CREATE TABLE IF NOT EXISTS progress (
        registration_id  uuid        PRIMARY KEY,
        created_position bigint      NOT NULL,
        position         bigint      NOT NULL,
        status           text        NOT NULL,
        serial           integer     NOT NULL,
        mail             text        NOT NULL,
        handed_over_at   timestamptz,
        rejections       integer     NOT NULL,
        locked           boolean     NOT NULL,
        verified_at      timestamptz,
        activated_at     timestamptz,
        cancelled_at     timestamptz,
        cancel_reason    text
    ) WITH (fillfactor = 60); -- room for a row's next states beside it
    CREATE INDEX IF NOT EXISTS progress_in_status ON progress (status, created_position);
"""

REGISTRATIONS = Table(
    "registrations",
    {
        "registration_id": "uuid",
        "created_position": "bigint",
        "created_at": "timestamptz",
        "claim_id": "uuid",
        "duplicate_of": "uuid",
        "locale": "text",
        "sealed": "text",
    },
    key="registration_id",
    as_text=("claim_id", "duplicate_of"),
)

PROGRESS = Table(
    "progress",
    {
        "registration_id": "uuid",
        "created_position": "bigint",
        "position": "bigint",
        "status": "text",
        "serial": "integer",
        "mail": "text",
        "handed_over_at": "timestamptz",
        "rejections": "integer",
        "locked": "boolean",
        "verified_at": "timestamptz",
        "activated_at": "timestamptz",
        "cancelled_at": "timestamptz",
        "cancel_reason": "text",
    },
    key="registration_id",
)

_RESEAL = """
    UPDATE registrations AS r SET sealed = u.sealed
    FROM (SELECT unnest(%b::uuid[]) AS registration_id, unnest(%b::text[]) AS sealed) AS u
    WHERE r.registration_id = u.registration_id
"""

_ERASE = "UPDATE registrations SET sealed = NULL WHERE registration_id = ANY (%b)"

_VIEW = """
    SELECT r.registration_id, p.status, r.claim_id, r.duplicate_of, r.sealed, k.wrapped, r.locale, p.serial, p.mail,
           p.handed_over_at, p.rejections, p.locked, r.created_at, p.verified_at, p.activated_at, p.cancelled_at,
           p.cancel_reason, p.position, r.created_position
    FROM {registrations} AS r
    JOIN {progress} AS p USING (registration_id)
    LEFT JOIN public.personal_keys AS k USING (registration_id)
"""

# One statement, so rows and position are of one moment; the position comes even where no row does.
_FIND = """
    SELECT f.position, v.*
    FROM (
        SELECT coalesce((SELECT position FROM public.followers WHERE name = %s), 0) AS position
    ) AS f
    LEFT JOIN (
        unnest(%s::uuid[]) AS wanted (id)
        CROSS JOIN LATERAL ({view} WHERE r.registration_id = wanted.id LIMIT 1) AS v
    ) ON true
"""


# Looked up once: an enumeration does it in Python code, event by event.
_PENDING, _VERIFIED, _ACTIVE, _CANCELLED = (
    one.value for one in (Status.PENDING, Status.VERIFIED, Status.ACTIVE, Status.CANCELLED)
)

MailProgress = Literal["NONE", "QUEUED", "SENT", "BOUNCED", "FAILED"]
"""What a registrant can expect of the current mail.

- NONE: there is nothing to be sent: the user was imported, and is an account already or was not invited yet.
- QUEUED: no mail server has it yet.
- SENT: with a mail server; also where the notice to an address's owner was withheld.
- BOUNCED: it came back, and the mailbox takes none.
- FAILED: it will not be sent any more.
"""


@dataclass(frozen=True, slots=True)
class RegistrationView:
    """A registration, with its personal data sealed.

    Attributes:
        sealed, wrapped: personal data and the key that opens it, itself wrapped by the master key; either is None
            once the person was erased.
        serial: the current issue of the code; `mail`, `handed_over_at`, `rejections` and `locked` are about it.
        position: of its last event in this model.
        created_position: of its first event; the order of lists.
    """

    registration_id: UUID
    status: Status
    claim_id: UUID
    duplicate_of: UUID | None
    sealed: str | None = field(repr=False)
    wrapped: bytes | None = field(repr=False)
    locale: str
    serial: int
    mail: MailProgress
    handed_over_at: datetime | None
    rejections: int
    locked: bool
    created_at: datetime
    verified_at: datetime | None
    activated_at: datetime | None
    cancelled_at: datetime | None
    cancel_reason: str | None
    position: Position
    created_position: Position


@dataclass(slots=True)
class _Progress:
    """What changes of a registration: a row of its table."""

    registration_id: UUID
    created_position: Position
    position: Position
    status: str = _PENDING
    serial: int = 0
    mail: MailProgress = "NONE"
    handed_over_at: datetime | None = None
    rejections: int = 0
    locked: bool = False
    verified_at: datetime | None = None
    activated_at: datetime | None = None
    cancelled_at: datetime | None = None
    cancel_reason: str | None = None

    def give_up_mail(self) -> None:
        if self.mail == "QUEUED":
            self.mail = "FAILED"


def _of_the_other_table(row: _Progress, event: Any) -> None:
    """`REGISTRATIONS` keeps it."""


def _registered(row: _Progress, _: Any) -> None:
    row.mail = "QUEUED"  # also to who sees the registration's first event only


def _imported(row: _Progress, event: Any) -> None:
    if event.verified:
        row.status = _ACTIVE
        row.activated_at = event.timestamp


def _issued(row: _Progress, event: Any) -> None:
    row.serial = event.serial
    row.mail = "QUEUED"
    row.handed_over_at = None
    row.rejections = 0
    row.locked = False


def _handed_over(row: _Progress, event: Any) -> None:
    if event.serial == row.serial:
        row.mail = "SENT"
        row.handed_over_at = event.timestamp


def _failed(row: _Progress, event: Any) -> None:
    if event.serial == row.serial and event.permanent:
        row.mail = "FAILED"


def _bounced(row: _Progress, event: Any) -> None:
    if event.serial == row.serial:
        row.mail = "BOUNCED" if event.permanent else "QUEUED"
        row.handed_over_at = None


def _requested_again(row: _Progress, _: Any) -> None:
    if row.mail in {"FAILED", "BOUNCED"}:
        row.mail = "QUEUED"


def _rejected(row: _Progress, event: Any) -> None:
    row.rejections = event.attempt


def _locked(row: _Progress, _: Any) -> None:
    row.locked = True


def _verified(row: _Progress, event: Any) -> None:
    row.status = _VERIFIED
    row.verified_at = event.timestamp
    row.mail = "SENT"  # the code was read, so the mail arrived, whether or not its hand-over was recorded


def _activated(row: _Progress, event: Any) -> None:
    row.status = _ACTIVE
    row.activated_at = event.timestamp


def _mail_given_up(row: _Progress, _: Any) -> None:
    row.give_up_mail()


def _cancelled(row: _Progress, event: Any) -> None:
    row.status = _CANCELLED
    row.cancelled_at = event.timestamp
    row.cancel_reason = event.reason
    row.give_up_mail()


def _reopened(row: _Progress, _: Any) -> None:
    row.status = _PENDING
    row.cancelled_at = None
    row.cancel_reason = None


_CHANGES: dict[Any, Callable[[_Progress, Any], None]] = {
    Registration.UserRegistered: _registered,
    Registration.UserImported: _imported,
    Registration.OtpIssued: _issued,
    Registration.EmailDispatched: _handed_over,
    Registration.EmailWithheld: _handed_over,
    Registration.EmailDispatchFailed: _failed,
    Registration.EmailBounced: _bounced,
    Registration.EmailRetryRequested: _requested_again,
    Registration.EmailDiscarded: _mail_given_up,
    Registration.CodeRejected: _rejected,
    Registration.CodeLocked: _locked,
    Registration.EmailVerified: _verified,
    Registration.AccountActivated: _activated,
    Registration.OtpRevoked: _mail_given_up,
    Registration.RegistrationCancelled: _cancelled,
    Registration.RegistrationReopened: _reopened,
    Registration.PasswordSet: _of_the_other_table,
    Registration.PasswordRehashed: _of_the_other_table,
    Registration.PersonalDataErased: _of_the_other_table,
}
"""What each event changes of its registration's progress."""

_RESEALING = (Registration.PasswordSet, Registration.PasswordRehashed)


def _begun(event: Registration.UserRegistered | Registration.UserImported, position: Position) -> tuple[Any, ...]:
    """A row of `REGISTRATIONS`."""
    duplicate_of = event.duplicate_of if isinstance(event, Registration.UserRegistered) else None
    return (
        event.originator_id, position, event.timestamp,
        event.claim_id, duplicate_of, event.locale, event.personal_data,
    )  # fmt: skip


def _sorted_out(
    events: Sequence[Told],
) -> tuple[dict[int, tuple[Any, ...]], dict[int, UUID], dict[UUID, str], set[UUID]]:
    """What events begin, are about, seal anew and erase."""
    # By the ids' numbers: a UUID's own hash and comparison are Python code, twenty times as slow.
    begun: dict[int, tuple[Any, ...]] = {}
    known: dict[int, UUID] = {}
    resealed: dict[UUID, str] = {}
    erased: set[UUID] = set()
    for recorded in events:
        event: Any = recorded.event
        kind, number = type(event), event.originator_id.int
        if kind in BEGINNINGS:
            begun[number] = _begun(event, recorded.position)
        elif number not in begun:
            known[number] = event.originator_id
        if kind is Registration.PersonalDataErased:
            erased.add(event.originator_id)
        elif kind in _RESEALING:
            resealed[event.originator_id] = event.personal_data
    return begun, known, resealed, erased


def folded(events: Sequence[Recorded], wrapped: bytes | None) -> RegistrationView:
    """What the model shows, or will show, after these events.

    Args:
        events: of one registration, from its first one on.
        wrapped: the personal key.
    """
    # The log also has what no row shows, and the model is not told of.
    events = [recorded for recorded in events if type(recorded.event) in _CHANGES]
    first: Any = events[0].event
    registration_id, created_position, created_at, claim_id, duplicate_of, locale, sealed = _begun(
        first, events[0].position
    )
    row = _Progress(registration_id, created_position, events[-1].position)
    for recorded in events:
        _CHANGES[type(recorded.event)](row, recorded.event)
        if isinstance(recorded.event, _RESEALING):
            sealed = recorded.event.personal_data
        elif isinstance(recorded.event, Registration.PersonalDataErased):
            sealed = None
    return RegistrationView(
        registration_id, Status(row.status), UUID(claim_id), duplicate_of and UUID(duplicate_of), sealed, wrapped,
        locale, row.serial, row.mail,
        row.handed_over_at, row.rejections, row.locked, created_at, row.verified_at, row.activated_at,
        row.cancelled_at, row.cancel_reason, row.position, created_position,
    )  # fmt: skip


class Registrations:
    """A row per registration."""

    name = "registrations"
    topics: tuple[str, ...] | None = tuple(event.TOPIC for event in _CHANGES)
    tables: tuple[str, ...] = (TABLES,)
    metadata = False

    def __init__(self, schema: str | None = None) -> None:
        self.schema = schema = schema or schema_of(self.name)
        self._view = _VIEW.format(registrations=REGISTRATIONS.within(schema), progress=PROGRESS.within(schema))
        self._find = _FIND.format(view=self._view)

    async def apply(self, connection: Connection, events: Sequence[Told]) -> None:
        """Write what a batch of events changes.

        Raises:
            LookupError: an event's registration never started.
        """
        begun, known, resealed, erased = _sorted_out(events)
        cursor = connection.cursor(binary=True, row_factory=tuple_row)
        rows: dict[int, _Progress] = {}
        if known:
            await cursor.execute(PROGRESS.load, (list(known.values()),))
            rows = {columns[0].int: _Progress(*columns) for columns in await cursor.fetchall()}
        for recorded in events:
            event, position = recorded.event, recorded.position
            number = event.originator_id.int
            row = rows.get(number)
            if row is None:
                if number not in begun:
                    raise LookupError(f"registration {event.originator_id} never started")
                row = rows[number] = _Progress(event.originator_id, position, position)
            _CHANGES[type(event)](row, event)
            row.position = position

        if begun:
            await cursor.execute(REGISTRATIONS.insert, REGISTRATIONS.arrays(begun.values()))
            await cursor.execute(PROGRESS.insert, PROGRESS.arrays(rows[number] for number in begun))
        if len(rows) > len(begun):
            changed = (row for number, row in rows.items() if number not in begun)
            await cursor.execute(PROGRESS.upsert, PROGRESS.arrays(changed))
        if resealed:
            await cursor.execute(_RESEAL, (list(resealed), list(resealed.values())), prepare=False)
        if erased:
            await cursor.execute(_ERASE, (list(erased),), prepare=False)

    async def find(self, connection: Connection, ids: Sequence[UUID]) -> tuple[dict[UUID, RegistrationView], Position]:
        """The registrations with these ids, and the position this model is at, in one round trip."""
        cursor = connection.cursor(binary=True, row_factory=tuple_row)
        await cursor.execute(self._find, (self.name, list(ids)))
        found = await cursor.fetchall()
        return {row[1]: _view(row[1:]) for row in found if row[1] is not None}, found[0][0]

    async def search(
        self,
        connection: Connection,
        *,
        status: str | None = None,
        claim_ids: Sequence[UUID] | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page[RegistrationView]:
        """Registrations, newest first, without the synthetic ones.

        Args:
            claim_ids: those of an address: the address's own and the one of its duplicates.

        Raises:
            ValueError: malformed cursor.
        """
        # The created position stands in both tables, so that either's index gives the order.
        created = "r.created_position" if status is None else "p.created_position"
        query = f"{self._view} WHERE {created} < %(before)s AND r.registration_id NOT BETWEEN '{FIRST}' AND '{LAST}'"
        if status is not None:
            query += " AND p.status = %(status)s"
        if claim_ids is not None:
            query += " AND r.claim_id = ANY (%(claim_ids)s)"
        parameters = {
            "before": before(cursor),
            "status": status,
            "claim_ids": list(claim_ids or ()),
            "limit": limit + 1,
        }
        reading = connection.cursor(binary=True, row_factory=tuple_row)
        await reading.execute(f"{query} ORDER BY {created} DESC LIMIT %(limit)s", parameters, prepare=False)
        found = [_view(row) for row in await reading.fetchall()]
        return page(found, limit, lambda view: view.created_position)


def _view(row: Sequence[Any]) -> RegistrationView:
    registration_id, status, *others = row
    return RegistrationView(registration_id, Status(status), *others)
