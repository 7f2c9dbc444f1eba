"""What a mail server's replies mean: a table of verdicts.

Everything that aiosmtplib raises becomes a `Verdict` here and is then dropped: its exceptions quote the server's reply,
and servers quote the address.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

from aiosmtplib import SMTPException, SMTPResponseException

from domain.mail_outcome import MailFailure

Stage = Literal["connect", "greeting", "ehlo", "tls", "login", "mail", "rcpt", "data", "end-of-data"]
STAGES: Final[tuple[Stage, ...]] = get_args(Stage)
"""In the order of a conversation."""
OPENING: Final = frozenset(STAGES[: STAGES.index("mail")])
"""Those of a session that cannot take a mail yet."""

ALARMS: Final = {
    "authentication": (
        "mail.unauthorized",
        "login, sender or relaying is refused: correct REGISTRAR_SMTP_URLS, REGISTRAR_MAIL_FROM or our account there",
    ),
    "tls": (
        "mail.not_encrypted",
        "no mail is sent unencrypted: there is no TLS, or the certificate is expired, not trusted or another host's",
    ),
    "content": (
        "mail.content_refused",
        "all our mails are alike: look at that server's filter, at blocklists, at our domain's SPF, DKIM and DMARC",
    ),
    "refused": (
        "mail.recipients_refused",
        "nothing shows that these mailboxes do not exist: may we relay through that server, and is our sender known there?",
    ),
    "throttled": (
        "mail.limit_reached",
        "our account there may send no more for now: raise its limit, or add a server to REGISTRAR_SMTP_URLS",
    ),
}
"""Failures that an operator has to fix, if the reply is a 5xx or there is none: the log event, and its hint. Mails wait
meanwhile."""

_SENDER: Final = frozenset({"1.7", "1.8"})
"""Details (RFC 3463, RFC 5248) that are about our sender address."""
_NO_MAILBOX: Final = frozenset({"1.1", "1.2", "1.3", "1.6", "1.10"})
"""Details that say that there is no such mailbox: nobody there, no such domain, no address, moved, no mail at all."""
_MAILBOX_CLOSED: Final = frozenset({"2.1", "2.2", "2.4"})
"""Details that say that the mailbox exists, but is disabled or full, or a list that does not expand. At other stages
they may be about ours (Exchange Online: 554 5.2.2 when the sender's mailbox is full), as others may be at any
(5.2.25x)."""
_LIMITS: Final = frozenset({"4.5", "1.90", *(f"2.25{digit}" for digit in range(1, 6))})
"""System congestion, by which providers mean a limit per day; Exchange Online's limit of recipients per day, and its
throttling of senders who made too many errors."""
_TOO_MANY: Final = frozenset({"3.2", "5.3", "7.0"})
"""Details of a 4xx that ask for less: of the connections that send (Exchange Online), of the mails of one session, and
of whatever a policy counts."""
_ABOUT_US: Final = frozenset({*range(500, 505), 513, 521, 530, 535, 538, 555})
"""Codes of a server that does not take this command, or nothing at all, from us (RFC 4954, 5321, 7504; 513:
Courier)."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a conversation ended without a 250.

    Attributes:
        failure, permanent, reply_code, reply_status, outcome_unknown: as in `DispatchFailure`.
        outage: the fault of the server, not of this mail or mailbox: counts for the circuit breaker (but see
            `server.Server` for `too_many`), and the next try goes to another server, if there is one.
        on_evidence: `permanent` only if the server takes other mails of ours; see `evidence.Evidence`.
        hopeless: no mail can go through this server until an operator acts: opens its circuit.
        too_many: the server works, and asks for fewer mails at the same time.
    """

    failure: MailFailure
    permanent: bool = False
    on_evidence: bool = False
    outage: bool = False
    hopeless: bool = False
    reply_code: int | None = None
    reply_status: str | None = None
    outcome_unknown: bool = False
    too_many: bool = False

    @property
    def alarming(self) -> bool:
        """Does it take an operator to fix it, or may it be the first of many that do?"""
        return self.failure in ALARMS and (self.reply_code is None or self.reply_code >= 500)

    @property
    def about_us(self) -> bool:
        """Would it be the same for every mail, until an operator acts?"""
        return self.alarming and not self.permanent

    @property
    def costs_a_try(self) -> bool:
        """False where the server refuses us rather than the mail: another server may be willing."""
        if self.failure == "throttled":
            return not self.about_us
        return self.failure not in {"authentication", "refused", "tls"}


def judge_reply(stage: Stage, code: int, text: str) -> Verdict:
    """Classify a negative reply by its code (RFC 5321, 4.2), enhanced status (RFC 3463) and stage.

    Only what is about this mailbox or this mail is permanent. Servers word a reply that is about us just as one about a
    mailbox (OpenSMTPD's "550 Invalid recipient" says either), so without an enhanced status that says so a mailbox is
    not taken for unknown by the reply alone; nor does a single reply tell whether refused content is about one mail or
    about all of them. For these, `evidence.Evidence` decides.
    """
    found = re.match(r"([245])\.(\d{1,3}\.\d{1,3})(?!\S)", text)
    status, detail = (found[0], found[2]) if found and int(found[1]) == code // 100 else (None, "")
    if code == 421:  # also 4.3.2, by which Sendmail means "too many", too: who takes others does not shut down
        verdict = Verdict("throttled", outage=True, too_many=True)
    elif code // 100 not in {4, 5}:  # not a reply to the command
        verdict = Verdict("connection", outage=True, outcome_unknown=stage == "end-of-data")
    elif stage in OPENING:
        verdict = _before_the_mail(stage, refused_for_good=code // 100 == 5)
    elif code // 100 == 4:
        verdict = _for_now(stage, code, detail)
    else:
        verdict = _for_good(stage, code, detail)
    return replace(verdict, reply_code=code, reply_status=status)


def _before_the_mail(stage: Stage, *, refused_for_good: bool) -> Verdict:
    match stage:
        case "tls":
            return Verdict("tls", outage=True, hopeless=refused_for_good)
        case "login":
            return Verdict("authentication", outage=True, hopeless=refused_for_good)
        case _:
            return Verdict("connection" if refused_for_good else "temporary", outage=True)


def _for_now(stage: Stage, code: int, detail: str) -> Verdict:
    if detail in _TOO_MANY or (code == 454 and stage != "rcpt"):  # 454: "Throttling failure", by Amazon's SES
        return Verdict("throttled", too_many=True)
    if detail in _SENDER or code == 454:  # 454: relaying denied, by Debian's Postfix
        return Verdict("authentication")
    if detail == "7.1" or (code in {450, 451} and not detail.startswith("3.")):  # X.3: the server's own trouble
        return Verdict("greylisted")
    return Verdict("temporary")


def _for_good(stage: Stage, code: int, detail: str) -> Verdict:
    """What a 5xx to MAIL, RCPT, DATA or the content means."""
    content = Verdict("content", permanent=True, on_evidence=True)
    if detail in _LIMITS:
        return Verdict("throttled")
    if stage == "mail":
        too_big = code == 552 or detail.startswith("3.")
        return content if too_big else Verdict("authentication", outage=True, hopeless=True)
    if detail in _SENDER or code in _ABOUT_US:
        return Verdict("authentication")
    if detail in _NO_MAILBOX:
        return Verdict("mailbox-unknown", permanent=True)
    if detail in _MAILBOX_CLOSED and stage == "rcpt":
        return Verdict("permanent", permanent=True)
    if detail.startswith("7."):  # blocked, denied, taken for spam: our mails are all alike
        return Verdict("authentication") if stage == "rcpt" else Verdict("content", outage=True)
    if stage != "rcpt" or detail.startswith("6.") or detail == "2.3":
        return content
    if code // 10 == 55:
        return Verdict("mailbox-unknown", permanent=True, on_evidence=True)
    return Verdict("refused")


def judge_error(stage: Stage, error: OSError | SMTPException) -> Verdict:
    """Classify what was raised. Replies come first: some of aiosmtplib's are OSErrors, too."""
    if isinstance(error, SMTPResponseException):
        return judge_reply(stage, error.code, error.message)
    if stage in OPENING - {"login"} and _is_tls_failure(error):
        return Verdict("tls", outage=True, hopeless=True)
    if not isinstance(error, OSError):  # aiosmtplib's own "not supported by this server"
        if stage == "tls":
            return Verdict("tls", outage=True, hopeless=True)
        if stage == "login":
            return Verdict("authentication", outage=True, hopeless=True)
    failure: MailFailure = "timeout" if isinstance(error, TimeoutError) else "connection"
    return Verdict(failure, outage=True, outcome_unknown=stage == "end-of-data")


def _is_tls_failure(error: BaseException | None) -> bool:
    """A bad certificate or no TLS at all, also as the cause of a failed connect; not a connection lost meanwhile."""
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return not isinstance(error, ssl.SSLEOFError)
        error = error.__cause__
    return False


def is_plain_refusal(error: BaseException) -> bool:
    """The server said no, and the session goes on."""
    return isinstance(error, SMTPResponseException) and error.code // 100 in {4, 5} and error.code != 421


def may_be_used_up(error: OSError | SMTPException) -> bool:
    """May the server have ended this connection, idle until now, because of the mails that it has carried?"""
    verdict = judge_error("mail", error)
    return verdict.reply_code == 421 and verdict.reply_status not in {"4.3.2", "4.4.2"}  # shuts down, waited too long
