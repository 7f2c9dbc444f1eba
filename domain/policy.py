"""The figures of the rules."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True)
class Policy:
    """How long, how often and how many.

    An operator can set four of them: `otp_ttl`, `otp_max_attempts`, `resend_cooldown`, `registration_ttl`
    (`docs/contract.md`, Environment). The others are the service's own.

    Attributes:
        otp_ttl: how long a code holds after its hand-over to the mail server (plan: 10 minutes).
        otp_max_attempts: wrong tries after which a code is locked.
        resend_cooldown: least time between two issues of a code.
        resends_per_hour: how many new codes a registrant may ask for within an hour.
        registration_ttl: how long after the start an unverified registration is undone.
        notice_interval: least time between two notices to the owner of an address that others try to register.
        codes_locked: how many codes may be locked before the registration is undone. With 5 tries each that bounds
            the guesses at one registration to 25 (docs/security.md, S4), of the 100 that NIST SP 800-63B allows.
    """

    otp_ttl: timedelta = timedelta(minutes=10)
    otp_max_attempts: int = 5
    resend_cooldown: timedelta = timedelta(seconds=60)
    resends_per_hour: int = 5
    registration_ttl: timedelta = timedelta(hours=24)
    notice_interval: timedelta = timedelta(hours=24)
    codes_locked: int = 5
