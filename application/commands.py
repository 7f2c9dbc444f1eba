"""Every command: everything that changes Registrar's state, parsed once at the edge and passed on unchanged.

Malformed input raises `pydantic.ValidationError`. Secrets show as `**********` in any representation.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    ValidationInfo,
    field_validator,
)

from application.addresses import MAX_LENGTH, parse_address
from application.passwords import MAX_BYTES, parse_password
from application.typed_text import LOCALE_LENGTH, parse_code, parse_locale, parse_name, trimmed
from domain.email_claim import ClaimId
from domain.mail_outcome import Bounce, CancelReason, DispatchFailure, HandOver, MailKind
from domain.recorded import Position
from domain.user_import import Counts


class Command(BaseModel):
    """A request to change something. Idempotent: running it twice has the effect of running it once."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


# --- The registrant ---------------------------------------------------------------------------


UNKNOWN_NETWORK = "unknown"
"""The network of whoever has no address: on a Unix socket, or behind a proxy that names none. They share one."""


MailAddress = Annotated[
    str,
    BeforeValidator(trimmed),  # what is around it does not count for its length
    Field(max_length=MAX_LENGTH, examples=["ada@example.com"]),
    AfterValidator(parse_address),
]
Name = Annotated[
    str,
    StringConstraints(strip_whitespace=True, max_length=200),
    Field(examples=["Ada Lovelace"]),
    AfterValidator(parse_name),
]
Locale = Annotated[
    str,
    StringConstraints(strip_whitespace=True, max_length=LOCALE_LENGTH),
    Field(examples=["en"]),
    AfterValidator(parse_locale),
]


class RegisterUser(Command):
    """Start a registration; its code is sent by mail, unless the mailbox's budget is used up.

    `idempotency_key` comes from the request's header, not its body. The registration's id is derived from it and the
    address, so a repeat after a crash finds the registration that the first request made. Nor does `network`, the
    requester's, by which the mailbox's budget is shared out.
    """

    email: MailAddress = Field(repr=False)
    name: Name = Field(repr=False)
    password: Annotated[SecretStr | None, Field(max_length=MAX_BYTES, examples=["correct horse battery"])] = None
    locale: Locale = "en"
    idempotency_key: str | None = Field(default=None, repr=False)
    network: str = Field(default=UNKNOWN_NETWORK, repr=False)

    @field_validator("password")
    @classmethod
    def _parse_password(cls, typed: SecretStr | None, others: ValidationInfo) -> SecretStr | None:
        if typed is None:
            return None
        return SecretStr(parse_password(typed.get_secret_value(), email=others.data.get("email", "")))


class VerifyEmail(Command):
    """Verify the address with the code from the mail. `idempotency_key`: from the request's header."""

    registration_id: UUID
    code: SecretStr
    idempotency_key: str | None = Field(default=None, repr=False)

    @field_validator("code")
    @classmethod
    def _parse_code(cls, typed: SecretStr) -> SecretStr:
        return SecretStr(parse_code(typed.get_secret_value()))


class RequestNewCode(Command):
    """Replace the code with a new one, which is sent by mail, unless the mailbox's budget is used up. `network`: the
    requester's. `idempotency_key`: from the request's header."""

    registration_id: UUID
    idempotency_key: str | None = Field(default=None, repr=False)
    network: str = Field(default=UNKNOWN_NETWORK, repr=False)


# --- The mail worker --------------------------------------------------------------------------


class RecordEmailDispatched(Command):
    """Record that a mail server accepted the mail of this issue."""

    registration_id: UUID
    serial: int
    hand_over: HandOver


class RecordEmailDispatchFailed(Command):
    """Record that no mail server accepted the mail of this issue.

    `kind`: that of the requested mail; if it is not the registration's, the request is foreign and refused.
    `request_position`: that of a request which became a dead letter in the broker; the same again is a repeat.
    """

    registration_id: UUID
    serial: int
    kind: MailKind
    failure: DispatchFailure
    request_position: int | None = None


class WithholdEmail(Command):
    """Record that the mail of this issue is not sent, for one of the reasons of `Registration.EmailWithheld`."""

    registration_id: UUID
    serial: int


# --- Reports of bounces ---------------------------------------------------------------------------


class RecordEmailBounced(Command):
    """Record that the mail of this issue came back."""

    registration_id: UUID
    serial: int
    bounce: Bounce


class RecordEmailComplained(Command):
    """Record that the mail of this issue was marked as unwanted, and have its mailbox sent no more."""

    registration_id: UUID
    serial: int
    reported_by: str


# --- The consumer of dead letters -----------------------------------------------------------------


class KeepStrayMessage(Command):
    """Record a description of a foreign message, without its bytes."""

    digest: str
    reason: str
    died_of: str
    size: int
    content_type: str | None
    fields: tuple[str, ...]
    other_fields: int


# --- The mail saga ----------------------------------------------------------------------------


class ReplaceStaleCode(Command):
    """Replace the code of issue `serial` if its mail is still to be sent."""

    registration_id: UUID
    serial: int


class ActivateAccount(Command):
    """Activate the account of a registrant whose address is verified."""

    registration_id: UUID


class RevokeOtp(Command):
    """Revoke the code."""

    registration_id: UUID


class CancelRegistration(Command):
    """Cancel the registration."""

    registration_id: UUID
    reason: CancelReason


class ReleaseEmail(Command):
    """Release the address, if this registration holds it."""

    registration_id: UUID
    claim_id: ClaimId


# --- The operator -----------------------------------------------------------------------------


class EraseRegistration(Command):
    """End the registration, release its address and destroy the person's key."""

    registration_id: UUID


class SetPassword(Command):
    """Give an account another password.

    `personal_data`: the person's, sealed with the new hash; `replaces`: what it was made of. If the account's is
    another one by now, somebody else was faster.
    """

    registration_id: UUID
    personal_data: str = Field(repr=False)
    replaces: str = Field(repr=False)


class RehashPassword(Command):
    """Keep a stronger hash of an account's password. The fields are those of `SetPassword`."""

    registration_id: UUID
    personal_data: str = Field(repr=False)
    replaces: str = Field(repr=False)


class RecordFailedChecks(Command):
    """Record that checks of an account's password have failed; the same `checks_id` again is a repeat. The other fields
    are those of `PasswordChecks.ChecksFailed`."""

    checks_id: UUID
    registration_id: UUID
    failed: int
    since: datetime


class ImportedUser(BaseModel):
    """A user of another system, within the limits of those who register.

    `password_hash`: as it came; whether it can be checked here is the caller's business. `verified`: whether that
    system has verified the address.
    """

    model_config = Command.model_config

    email: MailAddress = Field(repr=False)
    name: Name = Field(repr=False)
    locale: Locale = "en"
    password_hash: str | None = Field(default=None, max_length=512, repr=False)
    verified: bool


class ImportUsers(Command):
    """Take over users, in one commit; those who are here stay as they are. No address may be there twice.

    `dry_run`: only say what would become of them.
    """

    import_id: UUID
    users: tuple[ImportedUser, ...] = Field(repr=False)
    dry_run: bool = False


class InviteUser(Command):
    """Have an imported user who waits sent a first code. `dry_run`: only say what would become of them."""

    import_id: UUID
    user: ImportedUser = Field(repr=False)
    dry_run: bool = False


class RecordImport(Command):
    """Record that an import has begun, or what came of it (`counts`); the same again is a repeat.

    `skipped`: lines of the file that were left out.
    """

    import_id: UUID
    counts: Counts | None = None
    skipped: int = 0


class RetryMail(Command):
    """Retry the mail of a pending registration now."""

    registration_id: UUID


class DiscardMail(Command):
    """Give up on the mail and undo the registration."""

    registration_id: UUID


class AllowMailbox(Command):
    """Have this registration's mailbox sent mails again, if it is sent no more since somebody complained there."""

    registration_id: UUID


class DiscardStrayMessage(Command):
    """Remove a foreign message from the list of dead letters."""

    message_id: UUID


class RecordRebuild(Command):
    """Record what an operator has done to a read model; `position`, `differences` and `decision` as the event has
    them."""

    rebuild_id: UUID
    read_model: str
    act: Literal["begun", "swapped", "rolled-back", "aborted", "version-dropped"]
    position: Position = 0
    differences: int = 0
    decision: str = ""


class RetryParkedStream(Command):
    """Have a follower try the events of a stream again that it has parked; the same `retry_id` again is a repeat.

    `registration_id`: that the stream is about; None: none, or it is not known.
    """

    retry_id: UUID
    follower: str
    stream_id: UUID
    registration_id: UUID | None = None


class KeepAnswer(Command):
    """Keep what an operator's request with an Idempotency-Key was answered that took several commands; the same again
    is a repeat. The fields are those of `KeptAnswer`."""

    answer_id: UUID
    request: str
    fingerprint: str
    details: tuple[str, ...]


class RecordPersonalDataRead(Command):
    """Record that an operator is about to be shown these persons in clear; the same `read_id` again is a repeat.

    `act`: where they are shown, a name of `application.operator_acts`.
    """

    read_id: UUID
    act: str
    registration_ids: tuple[UUID, ...] = Field(min_length=1)
