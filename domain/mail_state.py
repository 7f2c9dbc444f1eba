"""The states of a mail, as operators see them."""

from __future__ import annotations

from typing import Final, Literal, get_args

MailState = Literal["QUEUED", "RETRYING", "SENT", "WITHHELD", "BOUNCED", "FAILED", "DISCARDED", "DROPPED"]
"""
- QUEUED: to be sent; no try has failed yet.
- RETRYING: every try so far has failed, or the mail came back for now; another one follows.
- SENT: accepted by a mail server.
- WITHHELD: not sent, because the owner of the address got a notice within the last day.
- BOUNCED: accepted by a mail server, and came back; it is not sent again.
- FAILED: a dead letter: refused permanently, or not handed over when the registration ended. It waits for an operator
  until it is settled.
- DISCARDED: an operator gave up on it.
- DROPPED: no longer wanted: a later issue replaced it, or its registration was verified or ended without it.
"""

Waiting = Literal["WAITING"]
"""In place of a mail's state: FAILED and not settled, so an operator can still act on it."""

Stray = Literal["STRAY"]
"""In place of a mail's state: foreign messages among the dead letters, which are no mails."""

ListedAs = Literal[Waiting, MailState, Stray]
"""By what a list of mails can be filtered."""

STATES: Final[tuple[MailState, ...]] = get_args(MailState)
WAITING: Final[Waiting] = "WAITING"
STRAY: Final[Stray] = "STRAY"

UNSENT: Final = frozenset[MailState]({"QUEUED", "RETRYING"})
