"""What a mail that came to a bounce address says: that a mail came back, is late, was not wanted, or none of it.

Notifications in the standard form (RFC 3464, RFC 6533) are read here, where their status tells for now from for good;
all others, of which every system has its own, by flufl.bounce. Whom they are about is not looked at: the address that
they came to says it, and nobody can forge that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from email import message_from_bytes, message_from_string
from email.message import Message
from typing import Final, Literal

from flufl.bounce import all_failures

from domain.mail_outcome import Bounce, MailFailure
from infrastructure.bounces.complaints import Complaint, complaint_in

Notice = Bounce | Complaint | Literal["delayed"] | None
"""`"delayed"`: the mail is still being tried; None: what came is no notification (an automatic reply, say)."""

REPORTED_BY: Final = "dsn"

_REPORT: Final = "message/delivery-status"
_REPORT_IN_UTF8: Final = "message/global-delivery-status"
"""RFC 6533. The standard library takes it for a mail: the first group for its headers, the others for its text."""
_STATUS: Final = re.compile(r"\s*([245])\.(\d{1,3})\.(\d{1,3})(?!\d)", re.ASCII)
_FAILED: Final = ("failed", "failure", "error")  # RFC 3464 knows the first; the others were seen

_STUMBLES: Final = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What the standard library and flufl.bounce both do over some malformed mails."""

MOST_READ: Final = 64 * 1024
"""Bytes of a notification in which flufl.bounce looks; the longest of its own files has 58 KiB."""
LONGEST_LINE: Final = 1000
"""Bytes of a line with its end (RFC 5321, 4.5.3.1.6)."""

_MAILBOX_UNKNOWN: Final = frozenset({"1.0", "1.1", "1.2", "1.3", "1.6", "1.10", "2.1"})
"""Details of a status (RFC 3463) that say that there is no such mailbox, or that it is closed."""
_FULL: Final = "2.2"
"""A mailbox that is full now may have room later, whatever the first digit says."""


def read_notice(content: bytes) -> Notice:
    """Read a mail; whatever it is, without an error."""
    try:
        message = message_from_bytes(content)
        if (complaint := complaint_in(message)) is not None:
            return complaint
        told = [_told(fields) for part in message.walk() for fields in _recipients(part)]
        found = [one for one in told if one is not None]
        if found:
            return _most_final(found)
        temporary, permanent = all_failures(message_from_bytes(bounded(content)))
    except _STUMBLES:
        return None
    if permanent:
        return bounce_of(None)
    return "delayed" if temporary else None


def read_complaint(content: bytes) -> Complaint | None:
    """Only whether it is a feedback report; whatever it is, without an error."""
    try:
        return complaint_in(message_from_bytes(content))
    except _STUMBLES:
        return None


def bounded(content: bytes) -> bytes:
    """What flufl.bounce is given: what notifications have, and no more. Its expressions take time with the square of a
    line's length, and hold up the whole process meanwhile."""
    lines = content[:MOST_READ].splitlines(keepends=True)
    return b"".join(line if len(line) <= LONGEST_LINE else line[: LONGEST_LINE - 2] + b"\r\n" for line in lines)


def bounce_of(status: str | None, *, permanent: bool = True, reported_by: str = REPORTED_BY) -> Bounce:
    """What a status that begins a text says; None: nothing is known but that the mail came back.

    Args:
        permanent: where no status says.
    """
    found = _STATUS.match(status or "")
    if found is None:
        return Bounce("permanent" if permanent else "temporary", permanent, None, reported_by)
    detail = f"{int(found[2])}.{int(found[3])}"
    permanent = found[1] == "5" and detail != _FULL
    return Bounce(_failure(detail, permanent=permanent), permanent, f"{found[1]}.{detail}", reported_by)


def _failure(detail: str, *, permanent: bool) -> MailFailure:
    if not permanent:
        return "temporary"
    if detail in _MAILBOX_UNKNOWN:
        return "mailbox-unknown"
    if detail.startswith("6."):
        return "content"
    return "refused" if detail.startswith("7.") else "permanent"


def _recipients(part: Message) -> Iterator[Message]:
    """The fields of each recipient in a delivery status; its first group is about the message as a whole."""
    kind, groups = part.get_content_type(), part.get_payload()
    if not isinstance(groups, list):
        return
    found = [one for one in groups if isinstance(one, Message) and kind in {_REPORT, _REPORT_IN_UTF8}]
    if kind == _REPORT_IN_UTF8:
        text = "".join(str(one.get_payload()) for one in found).replace("\r", "")
        found = [message_from_string(one) for one in text.split("\n\n")]
    yield from (one for one in found if "action" in one)


def _told(fields: Message) -> Bounce | Literal["delayed"] | None:
    action = str(fields["action"]).strip().lower()
    if action.startswith("delayed"):
        return "delayed"
    return bounce_of(fields["status"] and str(fields["status"])) if action.startswith(_FAILED) else None


def _most_final(found: list[Bounce | Literal["delayed"]]) -> Notice:
    """Of several recipients, into which a mailbox was expanded: what is for good counts more, what is late least."""
    bounces = [one for one in found if isinstance(one, Bounce)]
    if not bounces:
        return "delayed"
    return next((one for one in bounces if one.permanent), bounces[0])
