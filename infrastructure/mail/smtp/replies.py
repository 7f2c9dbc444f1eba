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

Stage = Literal["connect", "ehlo", "tls", "login", "mail", "rcpt", "data", "end-of-data"]
STAGES: Final[tuple[Stage, ...]] = get_args(Stage)
"""In the order of a conversation."""

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
}
"""Failures that an operator has to fix: the log event, and its hint. Mails wait meanwhile."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a conversation ended without a 250.

    Attributes:
        failure, permanent, reply_code, reply_status, outcome_unknown: as in `DispatchFailure`.
        outage: the fault of the server, not of this mail or mailbox: counts for the circuit breaker (but see
            `server.Server` for `too_many`), and the next try goes to another server, if there is one.
        hopeless: no mail can go through this server until an operator acts: opens its circuit.
        too_many: the server works, and asks for fewer mails at the same time.
    """

    failure: MailFailure
    permanent: bool = False
    outage: bool = False
    hopeless: bool = False
    reply_code: int | None = None
    reply_status: str | None = None
    outcome_unknown: bool = False
    too_many: bool = False

    @property
    def alarming(self) -> bool:
        """Does it take an operator to fix it?"""
        return self.failure in ALARMS and (self.reply_code is None or self.reply_code >= 500)

    @property
    def costs_a_try(self) -> bool:
        """False where the server refuses us rather than the mail: another server may be willing."""
        return self.failure not in {"authentication", "tls"}


def judge_reply(stage: Stage, code: int, text: str) -> Verdict:
    """Classify a negative reply by its code (RFC 5321, 4.2), enhanced status (RFC 3463) and stage.

    Only what is about this mailbox or this mail is permanent. A 5xx before RCPT is about us: it would be the same for
    every mail, an operator fixes it, and then the mail must still go out. A single reply does not tell whether refused
    content is about one mail or about all of them; `ContentHistory` does.

    Over 40 lines, because it is one table of cases, whose order matters.
    """
    found = re.match(r"([245])\.\d{1,3}\.\d{1,3}(?!\S)", text)
    status = found[0] if found and int(found[1]) == code // 100 else None
    subject = status.split(".")[1] if status else None

    def verdict(
        failure: MailFailure,
        *,
        permanent: bool = False,
        outage: bool = False,
        hopeless: bool = False,
        unknown: bool = False,
        too_many: bool = False,
    ) -> Verdict:
        return Verdict(failure, permanent, outage or hopeless, hopeless, code, status, unknown, too_many)

    if code == 421:
        return verdict("throttled", outage=True, too_many=status != "4.3.2")  # 4.3.2: it shuts down
    if code // 100 not in {4, 5}:  # not a reply to the command
        return verdict("connection", outage=True, unknown=stage == "end-of-data")
    refused_for_good = code // 100 == 5
    match stage:
        case "connect" | "ehlo":
            return verdict("connection" if refused_for_good else "temporary", outage=True)
        case "tls":
            return verdict("tls", outage=True, hopeless=refused_for_good)
        case "login":
            return verdict("authentication", outage=True, hopeless=refused_for_good)
    if not refused_for_good:
        if status == "4.7.0":
            return verdict("throttled", too_many=True)
        if status == "4.7.1" or (code in {450, 451} and subject != "3"):  # X.3: the server's own trouble
            return verdict("greylisted")
        return verdict("temporary")
    match stage:
        case "mail":
            if code == 552 or subject == "3":  # 5.3.4: too big
                return verdict("content", permanent=True)
            return verdict("authentication", hopeless=True)  # our sender address is refused
        case "rcpt":
            if subject == "7" or code == 530:  # relaying denied, blocked: about us, though perhaps not always
                return verdict("authentication")
            if subject == "1" or (subject is None and code in {550, 551, 553, 556}):
                return verdict("mailbox-unknown", permanent=True)
            if code in {550, 551, 553} and subject != "2":  # 5.2: it exists, but is full or disabled
                return verdict("mailbox-unknown", permanent=True)
        case "data" | "end-of-data":
            if subject == "1":
                return verdict("mailbox-unknown", permanent=True)
            if subject in {"6", "7"} or code in {552, 554}:
                return verdict("content", permanent=True)
    return verdict("permanent", permanent=True)


def judge_error(stage: Stage, error: OSError | SMTPException) -> Verdict:
    """Classify what was raised. Replies come first: some of aiosmtplib's are OSErrors, too."""
    if isinstance(error, SMTPResponseException):
        return judge_reply(stage, error.code, error.message)
    if stage in {"connect", "ehlo", "tls"} and _is_tls_failure(error):
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


class ContentHistory:
    """Whether refused content is about one mail or about all of them.

    All our mails have the same content, so a refusal is about that one mail only if the server accepted the one before.
    A second refusal in a row, or one before any was accepted, is about all of them: then it is an outage, and undoes
    nobody's registration.
    """

    def __init__(self) -> None:
        self._latest_was_taken = False
        self._latest_refusal: Verdict | None = None

    @property
    def refusal(self) -> Verdict | None:
        """The verdict to expect on a mail that is sent now; None if it would be accepted, as far as is known."""
        return self._latest_refusal

    def taken(self) -> None:
        self._latest_was_taken, self._latest_refusal = True, None

    def judge(self, verdict: Verdict) -> Verdict:
        """The verdict on this mail. Only one on its content counts here; any other stays as it is."""
        if verdict.failure != "content":
            return verdict
        about_this_mail, self._latest_was_taken = self._latest_was_taken, False
        self._latest_refusal = replace(verdict, permanent=False, outage=True)
        return replace(self._latest_refusal, permanent=about_this_mail)
