"""Every command: all that can be done to Registrar, parsed once at the edge and passed on unchanged.

Malformed input raises `pydantic.ValidationError`. Secrets show as `**********` in any representation.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationInfo, field_validator

from application.addresses import MAX_LENGTH, parse_address
from application.passwords import MAX_BYTES, parse_password
from domain.email_claim import ClaimId
from domain.mail_outcome import CancelReason, DispatchFailure, HandOver, MailKind

_LOCALE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8}){0,3}")


def _parse_name(typed: str) -> str:
    name = unicodedata.normalize("NFC", typed).strip()
    if not name:
        raise ValueError("must not be empty")
    if any(unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} for character in name):
        raise ValueError("contains control characters")
    return name


def _parse_locale(tag: str) -> str:
    if not _LOCALE.fullmatch(tag):
        raise ValueError("not a language tag (BCP 47), such as 'en' or 'de-AT'")
    return tag


class Command(BaseModel):
    """Something that somebody wants done. Doing it twice has the effect of doing it once."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


# --- The registrant ---------------------------------------------------------------------------


class RegisterUser(Command):
    """Begin a registration; its code goes out by mail.

    `idempotency_key`: of the request, not of its body. The registration's id follows from it and the address, so that a
    repeat after any crash meets itself.
    """

    email: Annotated[str, Field(max_length=MAX_LENGTH, examples=["ada@example.com"]), AfterValidator(parse_address)] = (
        Field(repr=False)
    )
    name: Annotated[str, Field(max_length=200, examples=["Ada Lovelace"]), AfterValidator(_parse_name)] = Field(
        repr=False
    )
    password: Annotated[SecretStr | None, Field(max_length=MAX_BYTES, examples=["correct horse battery"])] = None
    locale: Annotated[str, Field(max_length=35, examples=["en"]), AfterValidator(_parse_locale)] = "en"
    idempotency_key: str | None = Field(default=None, repr=False)

    @field_validator("password")
    @classmethod
    def _parse_password(cls, typed: SecretStr | None, others: ValidationInfo) -> SecretStr | None:
        if typed is None:
            return None
        return SecretStr(parse_password(typed.get_secret_value(), email=others.data.get("email", "")))


class VerifyEmail(Command):
    """Prove the address with the code from the mail."""

    registration_id: UUID
    code: SecretStr

    @field_validator("code")
    @classmethod
    def _is_six_digits(cls, code: SecretStr) -> SecretStr:
        if not re.fullmatch(r"[0-9]{6}", code.get_secret_value()):
            raise ValueError("a code has six digits")
        return code


class RequestNewCode(Command):
    """Replace the code by a new one, which goes out by mail."""

    registration_id: UUID


# --- The mail worker --------------------------------------------------------------------------


class RecordEmailDispatched(Command):
    """A mail server took the mail of this issue over."""

    registration_id: UUID
    serial: int
    hand_over: HandOver


class RecordEmailDispatchFailed(Command):
    """No mail server took the mail of this issue.

    `kind`: of the mail that was requested; another than the registration's is refused as no request of ours.
    `request_position`: of the request, if it died in the broker; the same again is a repeat.
    """

    registration_id: UUID
    serial: int
    kind: MailKind
    failure: DispatchFailure
    request_position: int | None = None


class WithholdEmail(Command):
    """Do not send the mail of this issue: the owner of the address had a notice within the day."""

    registration_id: UUID
    serial: int


# --- The consumer of dead letters -----------------------------------------------------------------


class KeepStrayMessage(Command):
    """Keep what can be told of a message that is none of ours; its bytes are not among it."""

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
    """Open the account of a registrant whose address is proved."""

    registration_id: UUID


class RevokeOtp(Command):
    """Undo the issue of the code."""

    registration_id: UUID


class CancelRegistration(Command):
    """Undo the registration."""

    registration_id: UUID
    reason: CancelReason


class ReleaseEmail(Command):
    """Free the address, if this registration still holds it."""

    registration_id: UUID
    claim_id: ClaimId


# --- The operator -----------------------------------------------------------------------------


class EraseRegistration(Command):
    """End the registration, free its address and destroy the person's key."""

    registration_id: UUID


class RetryMail(Command):
    """Try the mail of a pending registration again now."""

    registration_id: UUID


class DiscardMail(Command):
    """Give the mail up and undo the registration."""

    registration_id: UUID


class DiscardStrayMessage(Command):
    """Take a message that is none of ours from the list of dead letters."""

    message_id: UUID
