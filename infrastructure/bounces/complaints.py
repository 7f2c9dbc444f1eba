"""Feedback reports (ARF, RFC 5965): a mail by which a reader's provider says that a mail was marked as unwanted.

Such a report comes to the address that was told to the provider, not to the one in the mail's envelope. So the mail is
known by the copy of it, or of its headers, that is in the report.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from typing import Final

from infrastructure.bounces.addresses import TOKEN

REPORTED_BY: Final = "arf"

_REPORT: Final = "message/feedback-report"
_UNWANTED: Final = frozenset({"abuse", "fraud"})
"""Types of RFC 5965 that say so; "not-spam" (RFC 6430) is the opposite, and the others say something else."""

_NAMED: Final = re.compile(rf"[^\s<>@+]{{1,15}}[+][A-Za-z2-7]{{{TOKEN}}}@[A-Za-z0-9.-]{{1,255}}")
MOST_NAMED: Final = 20
"""Addresses of a report that are looked at: ours is there once or twice."""


@dataclass(frozen=True, slots=True)
class Complaint:
    """A mail was marked as unwanted.

    Attributes:
        named: what in the report looks like an address that names a mail; whether it does, is for others to say.
    """

    named: tuple[str, ...]


def complaint_in(message: Message) -> Complaint | None:
    """What a feedback report says; None: it is none, or says that a mail was no such thing."""
    kinds = [str(fields.get("feedback-type", "")).strip().lower() for fields in _reports(message)]
    if not _UNWANTED.intersection(kinds):
        return None
    found = (address for text in _texts(message) for address in _NAMED.findall(text))
    return Complaint(tuple(dict.fromkeys(found))[:MOST_NAMED])


def _reports(message: Message) -> Iterator[Message]:
    for part in message.walk():
        fields = part.get_payload()
        if part.get_content_type() == _REPORT and isinstance(fields, list):
            yield from (one for one in fields if isinstance(one, Message))


def _texts(message: Message) -> Iterator[str]:
    """Headers and texts of all parts, as they were before they were encoded for the way."""
    for part in message.walk():
        yield from (str(value) for value in part.values())
        if not part.is_multipart():
            content = part.get_payload(decode=True)
            if isinstance(content, bytes):
                yield content.decode("ascii", "replace")
