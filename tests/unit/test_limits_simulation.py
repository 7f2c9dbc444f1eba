"""What limits would have stopped: the trials on recorded decisions against the decisions themselves."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid5

import pytest

from domain.email_claim import ClaimId
from domain.mail_saga import MailSaga
from domain.mailbox import Asked, Mailbox, MailboxId, allow, decide_mail, silence
from domain.policy import Policy
from domain.synthetic import marked
from infrastructure.limits import simulation
from infrastructure.limits.gcra import Check, LocalLimiter
from infrastructure.limits.simulation import Distinct, Trial, tell_all, trials_of
from infrastructure.settings.limits import DEFAULTS, MAILBOX_DEFAULTS, Limit, parse_limit
from tests.support.facts import CLAIM, MAILBOX, REGISTRATION, T0, mail_requested, saga_started, stream

EVER = datetime(9999, 1, 1, tzinfo=UTC)

Request = tuple[datetime, str, str, UUID, int]
"""When, to which mailbox, from which network, for which registration, and which of its mails."""


def requests(seed: int, *, to_mailboxes: int = 3) -> list[Request]:
    """Of some days: registrations of a few addresses by a few networks, and new codes for them."""
    chance, now, found = random.Random(seed), T0, list[Request]()  # noqa: S311 - repeatable
    begun: list[tuple[str, str, UUID, int]] = []
    for number in range(400):
        now += timedelta(seconds=chance.expovariate(1 / 900))
        if begun and chance.random() < 0.4:
            at = chance.randrange(len(begun))
            mailbox, network, registration, serial = begun[at]
            begun[at] = (mailbox, network, registration, serial + 1)
            found.append((now, mailbox, network, registration, serial + 1))
        else:
            mailbox, network = str(chance.randrange(to_mailboxes)), "abcd"[chance.randrange(4)]
            registration = uuid5(REGISTRATION, str(number))
            begun = [*begun[-5:], (mailbox, network, registration, 1)]
            found.append((now, mailbox, network, registration, 1))
    return found


def decided(asked: list[Request], policy: Policy) -> list[Mailbox.MailDecided]:
    """What a service with these figures records of them."""
    mailboxes: dict[str, Mailbox] = {}
    events = []
    for at, mailbox, network, registration, serial in asked:
        claim = ClaimId(uuid5(CLAIM, mailbox)) if serial == 1 else None
        mailboxes[mailbox] = decide_mail(
            mailboxes.get(mailbox),
            MailboxId(uuid5(MAILBOX, mailbox)),
            Asked(registration, serial, claim, network),
            now=at,
            policy=policy,
        )
        [event] = mailboxes[mailbox].collect_events()
        assert isinstance(event, Mailbox.MailDecided)
        events.append(event)
    return events


def trial_of(entry: str, policy: Policy | None = None) -> Trial:
    [trial] = trials_of([parse_limit(entry, (*DEFAULTS, *MAILBOX_DEFAULTS))], policy or Policy())
    return trial


def tried(entry: str, events: list[Mailbox.MailDecided], *, since: datetime = T0, until: datetime = EVER) -> Trial:
    trial = trial_of(entry)
    for event in events:
        tell_all([trial], event, since, until)
    return trial


@pytest.mark.parametrize("entry", ["mailbox=3/1h", "mailbox-network-day=3/1d", "registrations=5/1h"])
def test_that_an_operator_has_a_mailbox_sent_mails_again_is_no_request(entry: str) -> None:
    mailbox = decide_mail(None, MAILBOX, Asked(REGISTRATION, 1, ClaimId(CLAIM), "a"), now=T0, policy=Policy())
    silenced = silence(mailbox, MAILBOX, REGISTRATION, 2, T0)
    allowed = allow(silenced, REGISTRATION, T0)
    assert allowed is not None
    events = [event for one in (mailbox, allowed) for event in one.collect_events()]

    found = tried(entry, events).tally  # type: ignore[arg-type]

    assert found.asked == 1


@pytest.mark.parametrize("limit", MAILBOX_DEFAULTS, ids=lambda limit: limit.name)
@pytest.mark.parametrize("seed", range(5))
def test_a_mailboxes_budget_as_it_was_withholds_what_was_withheld(seed: int, limit: Limit) -> None:
    events = decided(requests(seed), Policy())

    found = tried(f"{limit.name}={limit.count}/{limit.written_per}", events).tally

    assert found.asked == len(events)
    assert found.stopped == sum(event.withheld for event in events) > 50
    assert (found.mails, found.more_mails) == (0, 0)


@pytest.mark.parametrize(
    ("entry", "policy"),
    [
        ("mailbox=2/1h", Policy(mailbox_mails_per_hour=2)),
        ("mailbox-day=3/1d", Policy(mailbox_mails_per_day=3)),
        ("mailbox-day=50/1d", Policy(mailbox_mails_per_day=50)),
    ],
)
@pytest.mark.parametrize("seed", range(5))
def test_another_budget_of_a_mailbox_withholds_what_it_withholds_when_it_is_on(
    seed: int, entry: str, policy: Policy
) -> None:
    asked = requests(seed)
    then, on = decided(asked, Policy()), decided(asked, policy)

    found = tried(entry, then).tally

    assert found.stopped == sum(event.withheld for event in on)
    assert found.mails == sum(new.withheld and not old.withheld for old, new in zip(then, on, strict=True))
    assert found.more_mails == sum(old.withheld and not new.withheld for old, new in zip(then, on, strict=True))
    assert found.mails + found.more_mails > 0


@pytest.mark.parametrize("entry", ["registrations=3/1d", "registrations=2/12h burst 1", "registrations=1/1d"])
def test_registrations_are_stopped_as_the_limiter_of_the_service_stops_them(entry: str) -> None:
    asked = requests(7)
    limit, now = parse_limit(entry), 0.0
    limiter = LocalLimiter(clock=lambda: now)
    stopped: list[Request] = []
    for one in asked:
        now, (_, mailbox, network, _, serial) = one[0].timestamp(), one
        if serial == 1 and any(limiter.decide_now((Check(f"{mailbox} {network}", limit.interval, limit.burst),))):
            stopped.append(one)

    found = tried(entry, events := decided(asked, Policy())).tally

    ids = {str(one[3]) for one in stopped}
    assert found.asked == sum(one[4] == 1 for one in asked)
    assert found.stopped == len(stopped) > 0
    assert found.mails == sum(event.registration_id in ids and not event.withheld for event in events)
    assert len(found.requesters) == len({(one[1], one[2]) for one in stopped})
    assert len(found.mailboxes) == len({one[1] for one in stopped})


def test_of_all_mails_it_is_told_how_many_wait_and_how_long() -> None:
    at = [T0 + timedelta(seconds=seconds) for seconds in (0, 0, 0, 0, 1, 60)]
    requested = [mail_requested(request=number, at=one) for number, one in enumerate(at, start=1)]
    trial = trial_of("mails=1/1s burst 2")
    for event in stream(MailSaga.stream_id(REGISTRATION), saga_started(), *requested):
        tell_all([trial], event, T0, EVER)

    assert (trial.tally.asked, trial.tally.stopped) == (6, 3)
    assert trial.tally.longest == timedelta(seconds=2)
    assert trial.remembers == timedelta(seconds=2)


def test_what_came_before_counts_and_is_not_told() -> None:
    of_a_minute = [(T0 + n * timedelta(seconds=1), "0", "a", uuid5(REGISTRATION, str(n)), 1) for n in range(5)]
    events = decided(of_a_minute, Policy())

    found = tried("registrations=3/1h", events, since=of_a_minute[3][0], until=of_a_minute[4][0]).tally

    assert (found.asked, found.stopped) == (1, 1)
    assert trial_of("registrations=3/1h burst 6").remembers == timedelta(hours=2)


def test_the_worst_stretch_is_the_one_in_which_most_is_stopped() -> None:
    at = [timedelta(hours=hours, minutes=n) for hours, count in ((0, 3), (5, 6), (9, 4)) for n in range(count)]
    events = decided([(T0 + one, "0", "a", uuid5(REGISTRATION, str(one)), 1) for one in at], Policy())

    found = tried("registrations=2/1h", events).tally

    assert found.worst == (4, T0 + timedelta(hours=5, minutes=2))


def test_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "MOST_COUNTED", 10)
    monkeypatch.setattr(simulation, "MOST_REMEMBERED", 10)
    events = decided(requests(3, to_mailboxes=200), Policy())
    trials = [trial_of("registrations=1/31d"), trial_of("mailbox=1/1h")]
    for event in events:
        tell_all(trials, event, T0, EVER)

    assert len(vars(trials[0])["_stopped"]) <= 10
    assert len(vars(trials[1])["_others"]) <= 10
    assert len(trials[1].tally.mailboxes) == 10
    assert trials[1].tally.mailboxes.at_least


def test_who_is_known_is_not_counted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "MOST_COUNTED", 1)
    distinct = Distinct()
    for _ in range(3):
        distinct.add("somebody")

    assert (len(distinct), distinct.at_least) == (1, False)


def test_synthetic_registrations_are_not_counted_as_the_limits_do_not_count_them() -> None:
    of_people = requests(3, to_mailboxes=1)
    synthetic = [(at, mailbox, network, marked(one), serial) for at, mailbox, network, one, serial in of_people]

    asked = tried("registrations=1/1d", decided(of_people, Policy())).tally
    none = tried("registrations=1/1d", decided(synthetic, Policy())).tally

    assert asked.asked > asked.stopped > 0
    assert (none.asked, none.stopped) == (0, 0)
