"""What limits would have stopped of that which the log says was asked, by the code that decides in the running service.

Each limit is tried by itself, as if it had been on and the others as they were. The memory is bounded, however long the
log is: what a limiter forgets is forgotten here as well.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple, Protocol, TypeVar
from uuid import UUID

from domain.mail_saga import MailSaga
from domain.mailbox import DAY, NEVER_OVER, Grant, Mailbox, grant
from domain.policy import Policy
from domain.recorded import AnyEvent
from domain.registration import Registration
from domain.synthetic import is_synthetic
from infrastructure.limits.gcra import Check, LocalLimiter
from infrastructure.limits.pace import Pace
from infrastructure.settings.limits import Limit

K = TypeVar("K")
V = TypeVar("V")

MOST_COUNTED: Final = 200_000
"""Requesters, and mailboxes, that are told apart; more are "at least" so many."""

MOST_REMEMBERED: Final = 100_000
"""Registrations that would not have been, and mailboxes whose mails would have been others, that are remembered."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

SEEN_IN_METRICS: Final = "set it to shadow and watch registrar_limit_total"

_NO_NETWORK: Final = f"the log has each network only as a mark that differs from mailbox to mailbox; {SEEN_IN_METRICS}"

UNANSWERED: Final = {
    "network": _NO_NETWORK,
    "network-day": _NO_NETWORK,
    "larger-network": _NO_NETWORK,
    "new-codes": _NO_NETWORK,
    "domain": f"the log has addresses only sealed; {SEEN_IN_METRICS}",
    "verifications": f"the log does not have who offers a code; {SEEN_IN_METRICS}",
    "repeats": f"a repeat records nothing; {SEEN_IN_METRICS}",
    "admin-login": f"the log does not have wrong tokens; {SEEN_IN_METRICS}",
    "password-checks": f"the log has few of the checks of passwords; {SEEN_IN_METRICS}",
    "all-password-checks": f"the log has few of the checks of passwords; {SEEN_IN_METRICS}",
}
"""The limits that the log cannot tell of, and why: it was made so that nobody can be followed by it."""


class Asked(NamedTuple):
    """A mail that somebody asked for.

    Attributes:
        address: its mailbox and its claim, with a registration; None: for a new code.
        network: a mark of the requester's, for this mailbox; "" if the log does not have it.
        withheld: what was decided then.
        granted: the mails that the mailbox was granted within the day before.
        nobody: an operator has had the mailbox sent mails again, and nobody has asked for one.
    """

    at: datetime
    registration_id: str
    mailbox_id: UUID
    address: str | None
    network: str
    withheld: bool
    granted: list[Grant]
    nobody: bool

    @classmethod
    def of(cls, event: AnyEvent) -> Asked:
        """A new code whose mail was withheld has no network in its event: that is taken from where the registration was
        begun."""
        assert isinstance(event, Mailbox.MailDecided)  # noqa: S101 - of the trials' topic
        granted, applicant = event.grants(), event.applicant()
        address = f"{event.originator_id} {applicant.claim}" if applicant is not None and event.serial == 1 else None
        network = "" if applicant is None else applicant.network
        if not event.withheld:
            network = granted.pop().network
        return cls(
            *(event.timestamp, event.registration_id, event.originator_id, address, network, event.withheld, granted),
            nobody=event.lifts,
        )


@dataclass(slots=True)
class Distinct:
    """How many different ones there were; `at_least` so many, if it says so."""

    at_least: bool = False
    _hashes: set[int] = field(default_factory=set)

    def add(self, one: object) -> None:
        if len(self._hashes) < MOST_COUNTED:
            self._hashes.add(hash(one))
        elif hash(one) not in self._hashes:
            self.at_least = True

    def __len__(self) -> int:
        return len(self._hashes)


@dataclass(slots=True)
class Tally:
    """What a limit would have done.

    Attributes:
        asked: requests that the limit counts: registrations, or mails.
        stopped: of these, what it would have let pass no further.
        mails: that were sent and would not have been.
        more_mails: that were withheld and would have been sent.
        requesters: of what was stopped, a network once for each mailbox.
        worst: the most that it would have stopped in a stretch as long as the limit counts over, and when that began.
        longest: of those that are not stopped but wait, how long one would have waited.
    """

    asked: int = 0
    stopped: int = 0
    mails: int = 0
    more_mails: int = 0
    requesters: Distinct = field(default_factory=Distinct)
    mailboxes: Distinct = field(default_factory=Distinct)
    worst: tuple[int, datetime | None] = (0, None)
    longest: timedelta = timedelta(0)
    _stretch: tuple[datetime, int] = (_EPOCH, 0)

    def stop(self, asked: Asked, per: timedelta) -> None:
        self.requesters.add((asked.mailbox_id, asked.network))
        self.mailboxes.add(asked.mailbox_id)
        self.stop_at(asked.at, per)

    def stop_at(self, at: datetime, per: timedelta) -> None:
        self.stopped += 1
        begun, count = self._stretch
        if at - begun >= per:
            begun, count = at, 0
        self._stretch = begun, count + 1
        self.worst = max(self.worst, (count + 1, begun), key=lambda one: one[0])


class Trial(Protocol):
    """One limit, tried on what was asked."""

    @property
    def limit(self) -> Limit: ...

    @property
    def tally(self) -> Tally: ...

    @property
    def remembers(self) -> timedelta:
        """How far back what was asked matters."""
        ...

    @property
    def kinds(self) -> tuple[type[AnyEvent], ...]:
        """Of the events that tell of what it counts."""
        ...

    def tell(self, event: AnyEvent, *, counts: bool) -> None:
        """Decide; what is asked next was asked later, or hardly earlier.

        Args:
            counts: whether it is part of the tally.
        """
        ...


class RegistrationsTrial:
    """The limit of registrations of one address by one network, as `LocalLimiter` counts them."""

    kinds: tuple[type[AnyEvent], ...] = (Mailbox.MailDecided,)

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.tally = Tally()
        self._now = 0.0
        self._limiter = LocalLimiter(clock=lambda: self._now)
        self._stopped: dict[str, None] = {}

    @property
    def remembers(self) -> timedelta:
        return _remembered(self.limit)

    def tell(self, event: AnyEvent, *, counts: bool) -> None:
        asked = Asked.of(event)
        if asked.nobody or is_synthetic(UUID(asked.registration_id)):
            return  # counted in no limit
        if asked.address is None:
            stops = asked.registration_id in self._stopped  # a new code for what would not have been
        else:
            self._now = _seconds(asked.at)
            check = Check(f"{asked.address} {asked.network}", self.limit.interval, self.limit.burst)
            stops = any(self._limiter.decide_now((check,)))
            self.tally.asked += counts
            if stops:
                _remember(self._stopped, asked.registration_id, None)
                if counts:
                    self.tally.stop(asked, self.limit.per)
        if stops and counts and not asked.withheld:
            self.tally.mails += 1


class MailboxTrial:
    """A part of the silent budget of mailboxes, with the other parts as they are set."""

    kinds: tuple[type[AnyEvent], ...] = (Mailbox.MailDecided,)
    remembers = DAY

    _FIELDS: Final = {
        "mailbox": "mailbox_mails_per_hour",
        "mailbox-day": "mailbox_mails_per_day",
        "mailbox-network": "network_mails_per_hour",
        "mailbox-network-day": "network_mails_per_day",
    }

    def __init__(self, limit: Limit, policy: Policy) -> None:
        self.limit = limit
        self.tally = Tally()
        changed: dict[str, int] = {self._FIELDS[limit.name]: limit.count}
        self._policy = replace(policy, **changed)  # type: ignore[arg-type]
        # A mailbox that would have been granted what it was granted is in its next event: it need not be remembered.
        self._others: dict[UUID, list[Grant]] = {}

    def tell(self, event: AnyEvent, *, counts: bool) -> None:
        asked = Asked.of(event)
        if asked.nobody:
            self._others.pop(asked.mailbox_id, None)
            return
        granted = self._others.pop(asked.mailbox_id, asked.granted)
        granted, withheld = grant(granted, asked.network, now=asked.at, policy=self._policy)
        then = asked.granted if asked.withheld else [*asked.granted, Grant(asked.at, asked.network)]
        if granted != then:
            _remember(self._others, asked.mailbox_id, granted)
        if not counts:
            return
        if any(one.at == NEVER_OVER for one in asked.granted):
            return  # whatever the limit is
        self.tally.asked += 1
        if withheld:
            self.tally.stop(asked, self.limit.per)
        self.tally.mails += withheld and not asked.withheld
        self.tally.more_mails += asked.withheld and not withheld


class MailsTrial:
    """The limit of mails that the whole service sends, past which they wait: `stopped` are those that wait. Those that
    are withheld do not count."""

    kinds: tuple[type[AnyEvent], ...] = (Registration.OtpIssued, MailSaga.MailRequested)

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.tally = Tally()
        self._pace = Pace(limit)
        self._withheld: dict[tuple[str, int], None] = {}

    @property
    def remembers(self) -> timedelta:
        return _remembered(self.limit)

    def tell(self, event: AnyEvent, *, counts: bool) -> None:
        if isinstance(event, Registration.OtpIssued):
            if event.withheld:
                _remember(self._withheld, (str(event.originator_id), event.serial), None)
            return
        assert isinstance(event, MailSaga.MailRequested)  # noqa: S101 - it is told of these two
        if (event.registration_id, event.serial) in self._withheld:
            return
        wait = timedelta(seconds=self._pace.turn(_seconds(event.timestamp)))
        if counts:
            self.tally.asked += 1
            self.tally.longest = max(self.tally.longest, wait)
        if counts and wait:
            self.tally.stop_at(event.timestamp, self.limit.per)


def trials_of(limits: Collection[Limit], policy: Policy) -> list[Trial]:
    """Of those limits that the log can tell of."""
    tried: list[Trial] = []
    for limit in limits:
        if limit.name == "registrations":
            tried.append(RegistrationsTrial(limit))
        elif limit.name == "mails":
            tried.append(MailsTrial(limit))
        elif limit.name not in UNANSWERED:
            tried.append(MailboxTrial(limit, policy))
    return tried


def tell_all(trials: Collection[Trial], event: AnyEvent, since: datetime, until: datetime) -> None:
    """Try the limits on what an event tells of."""
    if event.timestamp < until:
        for trial in trials:
            if isinstance(event, trial.kinds):
                trial.tell(event, counts=event.timestamp >= since)


def _remembered(limit: Limit) -> timedelta:
    """How long it takes until nothing is left of what has passed."""
    return timedelta(microseconds=limit.interval * limit.burst)


def _seconds(at: datetime) -> float:
    return (at - _EPOCH).total_seconds()


def _remember(memory: dict[K, V], key: K, value: V) -> None:
    memory[key] = value
    if len(memory) > MOST_REMEMBERED:
        del memory[next(iter(memory))]
