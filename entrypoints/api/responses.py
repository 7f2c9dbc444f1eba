"""What the API returns: one dataclass per shape, which is both what is encoded and what the OpenAPI document shows, and
the one place that makes them from what the queries found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import msgspec
from pydantic import Field
from starlette.responses import Response

from application.addresses import masked_address
from domain.languages import Language
from domain.recorded import Position
from entrypoints.queries.followers import AllListed, Status
from entrypoints.queries.funnel import as_told
from entrypoints.queries.parked import RefusedEvent
from entrypoints.queries.registrations import OpenedRegistration, Story
from entrypoints.queries.suppressions import Suppression
from infrastructure.followers.parked_listing import ParkedStream
from projections.audit import Entry
from projections.funnel import Bucket
from projections.mail import Mail
from projections.paging import Page
from projections.registrations import MailProgress
from projections.strays import Stray

Id = Annotated[UUID, Field(examples=["019cab10-3b5e-7c31-8f6a-1d2e3f405162"])]
StatusName = Literal["PENDING", "VERIFIED", "ACTIVE", "CANCELLED"]
"""A `Status` as clients know it: as the enum itself it would be a schema of its own in the OpenAPI document."""
Time = Annotated[datetime, Field(examples=["2026-03-01T12:00:00Z"])]
LogPosition = Annotated[Position, Field(description="place in the log", examples=[4711])]
Cursor = Annotated[str | None, Field(description="brings the next page; null on the last one", examples=["NDcxMQ=="])]

_NONE: Final[Mapping[str, str]] = {}
_encoder = msgspec.json.Encoder(decimal_format="number")


class _Json(Response):
    """One of whose body and headers nothing has to be asked: half the time of the framework's."""

    media_type = "application/json"

    def __init__(self, body: bytes, status: int, headers: Mapping[str, str]) -> None:
        self.body = body
        self.status_code = status
        self.background = None
        self.raw_headers = [(name.lower().encode("latin-1"), headers[name].encode("latin-1")) for name in headers]
        self.raw_headers += ((b"content-length", b"%d" % len(body)), (b"content-type", b"application/json"))


def answer(content: object, status: int = 200, headers: Mapping[str, str] = _NONE) -> Response:
    """The content as JSON: times in UTC with `Z`, ids in their usual form."""
    return _Json(_encoder.encode(content), status, headers)


# --- Public -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Registered:
    """The same for a new address and one that is taken.

    Attributes:
        mail_language: in which the mail is written: English, where we have none in the language of `locale`.
    """

    registration_id: Id
    email: Annotated[str, Field(examples=["ada@example.com"])]
    status: Annotated[str, Field(examples=["PENDING"])]
    message: Annotated[str, Field(examples=["If this address can be registered, a code is on its way to it."])]
    mail_language: Language


@dataclass(frozen=True, slots=True)
class Hint:
    """Something about the address as it was typed, whoever has it: the registration goes on.

    Attributes:
        message: completes "The address: …".
        suggestion: the address that was meant, for the person to confirm; null if we know none.
    """

    code: Literal["misspelt-domain", "disposable-domain"]
    message: Annotated[str, Field(examples=["its domain looks misspelt; did you mean gmail.com?"])]
    suggestion: Annotated[str | None, Field(examples=["ada@gmail.com"])]


@dataclass(frozen=True, slots=True)
class RegisteredWithHint(Registered):
    """The same, where `DISPOSABLE_DOMAINS` or `MISSPELT_DOMAINS` is `hint` and there is one."""

    hint: Hint


@dataclass(frozen=True, slots=True)
class RegistrationState:
    """A registration as its owner sees it.

    Attributes:
        email: masked; null once the person was erased.
        otp_expires_at: null until a mail server has the mail; a code that is not handed over does not expire.
    """

    registration_id: Id
    status: StatusName
    email: Annotated[str | None, Field(examples=["a•••@example.com"])]
    mail: MailProgress
    otp_expires_at: Time | None
    attempts_left: Annotated[int, Field(examples=[5])]
    created_at: Time
    verified_at: Time | None
    activated_at: Time | None
    position: LogPosition


@dataclass(frozen=True, slots=True)
class Verification:
    """The address is proved."""

    status: Literal["VERIFIED", "ACTIVE"]


@dataclass(frozen=True, slots=True)
class CodeRequested:
    """A new code replaces the old one."""

    registration_id: Id
    message: Annotated[str, Field(examples=["A new code is on its way; the one before does not work any more."])]


# --- Operators ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AdminRegistration:
    """A registration as operators see it.

    Attributes:
        email, name: in clear; null once the person was erased.
        duplicate_of: the account that held the address already; the public routes do not show it.
        serial: of the current code; `mail`, `handed_over_at`, `attempts_left` and `locked` are about it.
    """

    registration_id: Id
    status: StatusName
    email: Annotated[str | None, Field(examples=["ada@example.com"])]
    name: Annotated[str | None, Field(examples=["Ada Lovelace"])]
    locale: Annotated[str, Field(examples=["en"])]
    duplicate_of: UUID | None
    serial: Annotated[int, Field(examples=[1])]
    mail: MailProgress
    handed_over_at: Time | None
    otp_expires_at: Time | None
    attempts_left: Annotated[int, Field(examples=[5])]
    locked: bool
    created_at: Time
    verified_at: Time | None
    activated_at: Time | None
    cancelled_at: Time | None
    cancel_reason: Annotated[str | None, Field(examples=["expired"])]
    erased: bool
    position: LogPosition


@dataclass(frozen=True, slots=True)
class AdminRegistrationStory:
    """A registration and every mail of it."""

    registration: AdminRegistration
    mails: list[Mail]


@dataclass(frozen=True, slots=True)
class Registrations:
    """A page, newest first."""

    items: list[AdminRegistration]
    next_cursor: Cursor


@dataclass(frozen=True, slots=True)
class Mails:
    """A page, the latest issue first."""

    items: list[Mail]
    next_cursor: Cursor


@dataclass(frozen=True, slots=True)
class StrayMessages:
    """A page of the foreign messages among the dead letters, the latest first."""

    items: list[Stray]
    next_cursor: Cursor


@dataclass(frozen=True, slots=True)
class Suppressions:
    """A page of the mailboxes that are sent no more, the latest complaint first."""

    items: list[Suppression]
    next_cursor: Cursor


@dataclass(frozen=True, slots=True)
class AuditEntries:
    """A page, newest first."""

    items: list[Entry]
    next_cursor: Cursor


@dataclass(frozen=True, slots=True)
class FunnelBuckets:
    """Counts and durations in hours or days (UTC), oldest first; one in which nothing happened is left out."""

    items: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class FollowerState:
    """How far a follower is.

    Attributes:
        version: of the read model that it keeps, 1 if it keeps none.
        lag_seconds: age of the first event that it has not applied.
        updated_at: when it last moved; None if it never ran.
        verified_at: when a read model was last compared with the log, all of it; None: never.
        mismatches: how many differences that has found.
        rebuild: how far a rebuild is that is under way, or waits for a decision.
        paced: mails wait for their turn, because more are asked for than the service may send in all.
        status: "degraded" while streams are parked, the lag is more than a minute, it never ran, or it is not what the
            log says; "superseded" or "later": a version of a read model that another release reads.
    """

    name: Annotated[str, Field(examples=["registrations"])]
    version: Annotated[int, Field(examples=[1])]
    position: LogPosition
    lag_events: int
    lag_seconds: float
    parked_streams: int
    updated_at: Time | None
    verified_at: Time | None
    mismatches: Annotated[int | None, Field(examples=[0])]
    rebuild: Literal["filling", "indexed"] | None
    paced: bool
    status: Status


@dataclass(frozen=True, slots=True)
class Followers:
    """Every follower, and the end of the log that they follow."""

    head: LogPosition
    items: list[FollowerState]


@dataclass(frozen=True, slots=True)
class ParkedStreams:
    """What followers have put aside, the stream that waits longest first."""

    items: Sequence[ParkedStream]


@dataclass(frozen=True, slots=True)
class ParkedEvents:
    """The parked events of a stream, each with what refused it; sealed fields stay sealed."""

    items: Sequence[RefusedEvent]


@dataclass(frozen=True, slots=True)
class ParkedRetried:
    """An operator's act on a parked stream.

    Attributes:
        followers: those that try it again now, within a second or two.
    """

    stream_id: Id
    followers: Sequence[str]


@dataclass(frozen=True, slots=True)
class Done:
    """What an operator's act led to.

    Attributes:
        registration_id: or the id of the stray message, whose `status` is CANCELLED once it is discarded.
    """

    registration_id: Id
    status: StatusName


@dataclass(frozen=True, slots=True)
class MailsRetried:
    """What became of the mails that one bulk retry looked at.

    Attributes:
        requested: they are tried again now.
        passed_over: not tried again, because a later code took their place, or their registration went on or ended.
        next_cursor: goes on with the mails that it did not look at; null once there are none.
    """

    requested: Annotated[int, Field(examples=[48])]
    passed_over: Annotated[int, Field(examples=[2])]
    next_cursor: Cursor


# --- From what the queries found ----------------------------------------------------------------


def registration_state(found: OpenedRegistration) -> RegistrationState:
    """For its owner; nothing in it depends on whether it is a duplicate."""
    view = found.view
    return RegistrationState(
        registration_id=view.registration_id,
        status=view.status.value,
        email=None if found.person is None else masked_address(found.person.email),
        mail=view.mail,
        otp_expires_at=found.otp_expires_at,
        attempts_left=found.attempts_left,
        created_at=view.created_at,
        verified_at=view.verified_at,
        activated_at=view.activated_at,
        position=view.position,
    )


def admin_registration(found: OpenedRegistration) -> AdminRegistration:
    """For operators: everything, the person in clear."""
    view, person = found.view, found.person
    return AdminRegistration(
        registration_id=view.registration_id,
        status=view.status.value,
        email=None if person is None else person.email,
        name=None if person is None else person.name,
        locale=view.locale,
        duplicate_of=view.duplicate_of,
        serial=view.serial,
        mail=view.mail,
        handed_over_at=view.handed_over_at,
        otp_expires_at=found.otp_expires_at,
        attempts_left=found.attempts_left,
        locked=view.locked,
        created_at=view.created_at,
        verified_at=view.verified_at,
        activated_at=view.activated_at,
        cancelled_at=view.cancelled_at,
        cancel_reason=view.cancel_reason,
        erased=person is None,
        position=view.position,
    )


def admin_story(story: Story) -> AdminRegistrationStory:
    return AdminRegistrationStory(admin_registration(story.registration), story.mails)


def registrations_page(page: Page[OpenedRegistration]) -> Registrations:
    return Registrations([admin_registration(found) for found in page.items], page.next_cursor)


def followers(found: AllListed) -> Followers:
    return Followers(
        found.head,
        [FollowerState(**asdict(one.progress), version=one.progress.version, status=one.status) for one in found.items],
    )


def funnel_buckets(buckets: Sequence[Bucket]) -> FunnelBuckets:
    return FunnelBuckets([as_told(bucket) for bucket in buckets])


# --- Health, mailbox ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Health:
    """Whether a part works; `details` differ by part."""

    status: Literal["up", "down", "degraded", "disabled"]


@dataclass(frozen=True, slots=True)
class MailboxMessages:
    """Mails in the embedded mailbox, newest first."""

    to: str
    subject: str
    text: str
    html: str
    headers: dict[str, str]
    received_at: Time
