"""What a mail can be, as operators see it."""

from __future__ import annotations

from typing import Final, Literal, get_args

MailState = Literal["QUEUED", "RETRYING", "SENT", "WITHHELD", "FAILED", "DISCARDED", "DROPPED"]
"""
- QUEUED: to be sent, no try has failed.
- RETRYING: every try so far failed, another follows.
- SENT: with a mail server.
- WITHHELD: the address's owner had a notice within the day, so this one is not sent.
- FAILED: a dead letter: refused for good, or not delivered by the registration's end. It waits for an operator until it
  is settled.
- DISCARDED: given up by an operator.
- DROPPED: not wanted any more: a later issue took its place, or its registration went on or ended without it.
"""

Waiting = Literal["WAITING"]
"""In place of a mail's state: FAILED and not settled, so that an operator can still do something about it."""

Stray = Literal["STRAY"]
"""In place of a mail's state: the dead letters that are none of ours, and so no mails."""

ListedAs = Literal[Waiting, MailState, Stray]
"""What a list of mails can be asked for."""

STATES: Final[tuple[MailState, ...]] = get_args(MailState)
WAITING: Final[Waiting] = "WAITING"
STRAY: Final[Stray] = "STRAY"

UNSENT: Final = frozenset[MailState]({"QUEUED", "RETRYING"})
