"""What attackers did and were told, as far as `claims` judges it; and what all of them have at hand.

Only what a claim needs is kept, counted where it can be, so that a million requests fit into memory.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final
from uuid import UUID

from infrastructure.crypto.keyring import Keyring
from tests.attack.wire import NETWORKS, Answer, Ledger, Network, Wire, masked
from tests.faults.journal import Journal
from tests.faults.people import Inbox

COME_AGAIN: Final = frozenset({429, 503, 504})
"""What anybody may be told at any time."""

UNSENT: Final = "the right code of a mail that was withheld"
"""What `Deeds.told` calls it."""

CODES: Final = range(1, 8)
"""Serials that a registration can come to within a run: its first code and five an hour."""


@dataclass(slots=True)
class Guesses:
    """At one registration.

    Attributes:
        wrong, right: answers to codes that were not and were its own, by status.
        unanswered: guesses that nobody knows to have been compared or not.
        is_first_code: no other code was asked for.
    """

    wrong: Counter[int] = field(default_factory=Counter)
    right: Counter[int] = field(default_factory=Counter)
    unanswered: int = 0
    is_first_code: bool = True

    def note(self, answer: Answer, *, right: bool = False) -> None:
        if answer.status in COME_AGAIN or not answer.status:
            self.unanswered += answer.status not in {429, 503}
        else:
            (self.right if right else self.wrong)[answer.status] += 1


@dataclass(frozen=True, slots=True)
class Hijack:
    """Of one address: the registration of the person who lives there, and those of others for it."""

    order: str
    victim: UUID
    others: Sequence[UUID]


@dataclass(slots=True)
class Deeds:
    """
    Attributes:
        alike: answers that must not differ by more than what `masked` takes away, by what they are about; each with
            what was asked for.
        told: statuses that an attack got; `allowed`: those that it may get.
        guesses: by registration.
        same: registrations that were answered for one Idempotency-Key and address.
        probes: ids of requests that compared states of addresses, by state.
        ended: slow clients, by what became of them.
        never_mailed: addresses that only stand in requests within requests.
        finished: honest people, and whether they are through.
        spared: guesses that were right by accident, and therefore not sent.
    """

    alike: dict[str, dict[bytes, set[str]]] = field(default_factory=lambda: defaultdict(dict))
    told: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    allowed: dict[str, frozenset[int]] = field(default_factory=dict)
    guesses: dict[UUID, Guesses] = field(default_factory=lambda: defaultdict(Guesses))
    same: dict[str, set[UUID]] = field(default_factory=lambda: defaultdict(set))
    hijacks: list[Hijack] = field(default_factory=list)
    probes: dict[str, set[UUID]] = field(default_factory=lambda: defaultdict(set))
    ended: Counter[str] = field(default_factory=Counter)
    never_mailed: set[str] = field(default_factory=set)
    finished: dict[str, bool] = field(default_factory=dict)
    spared: int = 0

    def compare(self, what: str, label: str, answer: Answer, *own: str) -> None:
        """One more answer that must be like all others of its kind."""
        self.alike[what].setdefault(masked(answer, *own), set()).add(label)

    def tell(self, what: str, answer: Answer, allowed: Collection[int]) -> None:
        """An answer whose status must be one of these, or that one should come again."""
        self.allowed[what] = frozenset(allowed)
        self.told[what][answer.status] += 1


@dataclass(frozen=True, slots=True)
class Run:
    """What was measured and set beside the deeds.

    Attributes:
        seconds: from the first request to the last, by Redis' clock, which limits go by.
        attacked_for: seconds in which the attackers made their requests.
        uncounted: calls to Redis that failed: for those a process decided by itself.
        processes: how many count.
        cooldown: `RESEND_COOLDOWN`.
    """

    ledger: Ledger
    seconds: float
    uncounted: int
    processes: int
    cooldown: timedelta
    attacked_for: float = 0.0


@dataclass(slots=True)
class Field:
    """What attackers have at hand.

    Attributes:
        journal: of what honest people do.
        begun: registrations that attackers began, and from where: they know the ids of these, and of no others.
        codes: what the right codes are. Attackers do not know them: they are here so that a guess which would be right
            by accident (one in a million) is not made, and the sixth try can be made with the right one.
        over: whether the attackers with a share of the requests have used it up.
    """

    wire: Wire
    journal: Journal
    inbox: Inbox
    codes: Keyring
    chance: random.Random
    cooldown: timedelta
    deeds: Deeds = field(default_factory=Deeds)
    begun: list[tuple[UUID, Network]] = field(default_factory=list)
    over: bool = False

    def a_wrong_code(self, registration_id: UUID, preferred: str) -> str:
        """The preferred one, unless it is right by accident."""
        right = {self.codes.code(registration_id, serial) for serial in CODES}
        if preferred not in right:
            return preferred
        self.deeds.spared += 1
        return next(code for code in map("{:06d}".format, range(10)) if code not in right)


@dataclass(frozen=True, slots=True)
class Range:
    """Some of the attackers' networks, by their numbers."""

    first: int
    beyond: int

    def at(self, turn: int) -> Network:
        """One after the other."""
        return NETWORKS[self.first + turn % (self.beyond - self.first)]
