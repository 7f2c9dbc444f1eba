"""Refusals: what the rules do not allow. Each is final: repeating the same command changes nothing.

Refused
├── UnknownRegistration     no registration has this id
├── NotPending              it is active, verified or cancelled already; or was imported, and not invited yet
├── NotHandedOver           a mail bounced whose hand-over is not recorded (yet)
├── NotAnAccount            its address is not verified, or it has ended
├── WrongCode               not the code of the current issue; one try is used up
├── CodeExpired             the code has expired, or it was revoked
├── CodeLocked              the code has no tries left
├── TooManyRequests         a new code was requested too soon or too often
├── IdempotencyKeyReused    the key was used before with another payload
└── AddressTaken            an account has this address (said only where the operator chose to reveal it)
"""

from datetime import timedelta


class Refused(Exception):
    """A rule does not allow this.

    Attributes:
        code: stable name of the situation, part of the public contract.
        replayed: whether it is the answer to an earlier request with the same Idempotency-Key.
    """

    code = "refused"
    replayed = False

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").strip())


class UnknownRegistration(Refused):
    """There is no registration with this id."""

    code = "unknown-registration"


class NotPending(Refused):
    """This registration does not wait for a code, or not any more."""

    code = "not-pending"


class NotHandedOver(Refused):
    """The hand-over of this mail is not recorded yet."""

    code = "not-handed-over"


class NotAnAccount(Refused):
    """This registration is not an account: its address is not verified, or it has ended."""

    code = "not-an-account"


class WrongCode(Refused):
    """This is not the code of the latest mail."""

    code = "wrong-code"

    def __init__(self, attempts_left: int) -> None:
        super().__init__()
        self.attempts_left = attempts_left


class CodeExpired(Refused):
    """This code's time is over; ask for a new one."""

    code = "code-expired"


class CodeLocked(Refused):
    """Too many wrong codes; ask for a new one."""

    code = "code-locked"


class TooManyRequests(Refused):
    """Too many codes were asked for."""

    code = "too-many-requests"

    def __init__(self, retry_after: timedelta) -> None:
        super().__init__()
        self.retry_after = retry_after


class IdempotencyKeyReused(Refused):
    """This Idempotency-Key came before with another payload."""

    code = "idempotency-key-reused"


class AddressTaken(Refused):
    """An account with this address exists."""

    code = "address-taken"
