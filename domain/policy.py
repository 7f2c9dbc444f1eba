"""Policy: the figures behind the rules."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True)
class Policy:
    """The durations and limits that the rules use.

    Operators can set four of them: `otp_ttl`, `otp_max_attempts`, `resend_cooldown`, `registration_ttl`
    (`docs/contract.md`, Environment). The others are fixed.

    Attributes:
        otp_ttl: how long a code is valid after its hand-over to a mail server (plan: 10 minutes).
        otp_max_attempts: number of wrong tries after which a code is locked.
        resend_cooldown: minimum time between two issues of a code.
        resends_per_hour: how many new codes a registrant may request within an hour.
        registration_ttl: time after which an unverified registration is undone.
        notice_interval: minimum time between two notices to the owner of an address that others try to register.
        codes_locked: number of locked codes after which the registration is undone. With 5 tries each, this limits
            the guesses at one registration to 25 (docs/security.md, S4); NIST SP 800-63B allows 100.
        mailbox_mails_per_hour, mailbox_mails_per_day: how many mails a mailbox is sent at the request of whomever, the
            first of each registration and every new code; past it they are withheld silently (docs/security.md, S13).
            And one in `resend_cooldown`: with an interval of its own, a new code could be accepted and never be sent.
        network_mails_per_hour, network_mails_per_day: the part of these that one network can use up, so that a stranger
            leaves the person at least one mail an hour and two a day.
    """

    otp_ttl: timedelta = timedelta(minutes=10)
    otp_max_attempts: int = 5
    resend_cooldown: timedelta = timedelta(seconds=60)
    resends_per_hour: int = 5
    registration_ttl: timedelta = timedelta(hours=24)
    notice_interval: timedelta = timedelta(hours=24)
    codes_locked: int = 5
    mailbox_mails_per_hour: int = 3
    mailbox_mails_per_day: int = 5
    network_mails_per_hour: int = 2
    network_mails_per_day: int = 3
