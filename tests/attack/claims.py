"""The claims: what no attack gets, each a function over what was recorded of it and what the attackers were told.

    assert judge(evidence, deeds, run) == []

They know nothing of the code that they judge; figures are those of docs/security.md and docs/limits.md. That each can
fail is shown by `test_claims.py`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from domain.registration import Registration
from tests.attack.deeds import COME_AGAIN, UNSENT, Deeds, Guesses, Run
from tests.attack.wire import Who, request_id_of
from tests.faults.evidence import Evidence
from tests.faults.invariants import Violation, check

HOUR: Final = timedelta(hours=1)
DAY: Final = timedelta(days=1)
BUDGET: Final = ((HOUR, 3), (DAY, 5))
"""Mails to one mailbox (docs/security.md, S13), beside one in each cooldown."""

OF_ONE_NETWORK: Final = ((HOUR, 2), (DAY, 3))

LIMITS: Final[Mapping[str, tuple[int, int, int]]] = {
    "registrations": (5, 3600, 5),
    "network": (10, 60, 20),
    "network-day": (100, 86400, 100),
    "larger-network": (60, 60, 60),
    "verifications": (60, 60, 120),
    "new-codes": (10, 60, 20),
}
"""How many pass in how many seconds, and how many at once (docs/limits.md)."""

TRIES: Final = 5
MOST_GUESSES: Final = 25

INVARIANTS: Final = ("I1", "I2", "I3", "chain", "I4", "I5", "I6", "I7", "I9", "I10", "I12", "I14", "I15")
"""Those of the fault matrix that hold for honest people under attack as well."""

Claim = Callable[[Evidence, Deeds, Run], Iterable[str]]
CLAIMS: dict[str, Claim] = {}


def judge(evidence: Evidence, deeds: Deeds, run: Run, *, only: Collection[str] = ()) -> list[Violation]:
    """Every violation of every claim (or of those named), and of the invariants: none, if all is well."""
    assert set(only) <= CLAIMS.keys(), f"unknown: {set(only) - CLAIMS.keys()}"
    found = [
        Violation(name, sentence)
        for name, claim in CLAIMS.items()
        if not only or name in only
        for sentence in claim(evidence, deeds, run)
    ]
    return found if only else [*found, *check(evidence, only=INVARIANTS)]


def _claim(name: str) -> Callable[[Claim], Claim]:
    def register(function: Claim) -> Claim:
        CLAIMS[name] = function
        return function

    return register


# --- Mails ------------------------------------------------------------------------------------------


def mailbox_of(address: str) -> str:
    """To which mailbox an address leads with most providers."""
    local, _, domain = address.lower().rpartition("@")
    return f"{local.partition('+')[0].replace('.', '')}@{domain}"


@_claim("budget")
def no_mail_over_budget(evidence: Evidence, deeds: Deeds, run: Run) -> Iterator[str]:
    """However many ask, in whatever form: a mailbox gets one mail in each cooldown, 3 an hour and 5 a day; of these one
    network can cause 2 an hour and 3 a day. A mail counts when its code was issued, not when it arrived."""
    asked = _asked_for(evidence)
    issue_of = {issue.message_id: key for key, issue in evidence.issues.items()}
    of: dict[str, list[tuple[datetime, int | None]]] = defaultdict(list)
    for copy in evidence.mails:
        key = issue_of.get(copy.message_id)
        if key is None:
            yield "a mail belongs to no code"
        else:
            of[mailbox_of(copy.to)].append(asked[key])
    for number, mails in enumerate(of.values()):
        times = sorted(at for at, _ in mails)
        for within, most in ((run.cooldown, 1), *BUDGET):
            if (found := _most_within(times, within)) > most:
                yield f"mailbox {number} got {found} mails within {within}"
        networks = {network for _, network in mails if network is not None}
        for network in networks:
            own = sorted(at for at, by in mails if by == network)
            for within, most in OF_ONE_NETWORK:
                if (found := _most_within(own, within)) > most:
                    yield f"network {network} had {found} mails sent to mailbox {number} within {within}"


def _asked_for(evidence: Evidence) -> dict[tuple[UUID, int], tuple[datetime, int | None]]:
    """When each code was asked for by a client, and from which of the attackers' networks.

    The saga replaces a code that was never sent by one for the same mail.
    """
    asked: dict[tuple[UUID, int], tuple[datetime, int | None]] = {}
    for recorded in evidence.log:
        event = recorded.event
        if isinstance(event, Registration.OtpIssued):
            before = asked.get((event.originator_id, event.serial - 1))
            attacker = request_id_of(recorded.correlation_id)
            new = (event.timestamp, attacker[1] if attacker else None)
            asked[event.originator_id, event.serial] = new if recorded.actor == "client" or before is None else before
    return asked


def _most_within(times: Sequence[datetime], within: timedelta) -> int:
    """The most that are closer to each other than that."""
    most = first = 0
    for last, time in enumerate(times):
        while time - times[first] >= within:
            first += 1
        most = max(most, last - first + 1)
    return most


@_claim("smuggled")
def nothing_smuggled(evidence: Evidence, deeds: Deeds, run: Run) -> Iterator[str]:
    """What stands within another request is never done: nobody whom only such a request names gets a mail."""
    for copy in evidence.mails:
        if copy.to in deeds.never_mailed:
            yield "somebody was registered by a request within another one"


# --- Answers ----------------------------------------------------------------------------------------


@_claim("alike")
def nobody_told_apart(evidence: Evidence, deeds: Deeds, run: Run) -> Iterator[str]:
    """Answers to the same question are equal byte by byte, whatever has become of the address."""
    for what, answers in deeds.alike.items():
        if len(answers) > 1:
            labels = "; ".join(", ".join(sorted(labels)) for labels in answers.values())
            yield f"{what} is answered in {len(answers)} ways: {labels}"


@_claim("side effects")
def as_much_recorded(evidence: Evidence, deeds: Deeds, run: Run) -> Iterator[str]:
    """Positions tell nothing either: each registration that compares leads to as many events."""
    by_request: Counter[UUID] = Counter()
    for recorded in evidence.log:
        if recorded.actor == "client":
            by_request[recorded.correlation_id] += 1
    counts = {state: {by_request[request] for request in requests} for state, requests in deeds.probes.items()}
    if len(set().union(*counts.values())) > 1:
        yield f"registrations lead to different numbers of events: {counts}"


@_claim("statuses")
def answered_as_expected(evidence: Evidence, deeds: Deeds, run: Run) -> Iterator[str]:
    """An attack is told what it may be told, or to come again; never that something broke."""
    for what, statuses in deeds.told.items():
        for status, number in statuses.items():
            if status not in deeds.allowed[what] | COME_AGAIN:
                yield f"{what} was answered {status} {number} times"
        if not statuses.keys() & deeds.allowed[what]:
            yield f"{what} was never answered but by a refusal: it was not tried"


# --- Limits -----------------------------------------------------------------------------------------


@_claim("limits")
def no_more_than_the_policy(evidence: Evidence, deeds: Deeds, run: Run) -> Iterator[str]:
    """However it denies which it is, a network gets no more through than its policy, both processes together.

    A call to Redis that failed was decided by a process alone, which lets half of a policy through besides.
    """
    for (name, whom), passed in run.ledger.passed.items():
        number, per, burst = LIMITS[name]
        bound = burst + int(run.seconds * number / per)
        if passed > bound * (2 if run.uncounted else 1):
            yield f"{passed} passed the limit {name} of {_shown(name, whom)} in {run.seconds:.0f} s, and may be {bound}"


@_claim("limits of others")
def nobody_refused_for_others(evidence: Evidence, deeds: Deeds, run: Run) -> Iterator[str]:
    """A limit refuses only whoever has used it up."""
    for (name, whom), refused in run.ledger.refused.items():
        burst = LIMITS[name][2]
        least = max(1, burst // run.processes) if run.uncounted else burst
        asked = run.ledger.asked[name, whom]
        if asked < least:
            yield f"{refused} were refused by {name} of {_shown(name, whom)}, which let {asked} through"


def _shown(name: str, whom: str) -> str:
    return whom.partition(" ")[0] if name == "registrations" else whom


# --- Codes ------------------------------------------------------------------------------------------


@_claim("guesses")
def five_guesses(evidence: Evidence, deeds: Deeds, run: Run) -> Iterator[str]:
    """Of a code five guesses are compared, however many come at once; then not even the right one is."""
    rejected: dict[UUID, Counter[int]] = defaultdict(Counter)
    for recorded in evidence.log:
        if isinstance(recorded.event, Registration.CodeRejected):
            rejected[recorded.event.originator_id][recorded.event.serial] += 1
    for registration_id, guesses in deeds.guesses.items():
        counted = rejected[registration_id]
        yield from _wrongly_counted(registration_id, guesses, counted)
        for serial, compared in counted.items():
            if compared > TRIES:
                yield f"{compared} guesses at code {serial} of {registration_id} were compared"
        if counted.total() > MOST_GUESSES:
            yield f"{counted.total()} guesses at {registration_id} were compared"


def _wrongly_counted(registration_id: UUID, guesses: Guesses, counted: Counter[int]) -> Iterator[str]:
    wrong = guesses.wrong[422]
    if not wrong <= counted.total() <= wrong + guesses.unanswered:
        yield f"{wrong} guesses at {registration_id} were told to be wrong, {counted.total()} are counted"
    offered = wrong + guesses.wrong[423]
    if guesses.is_first_code and not guesses.unanswered and counted.total() != min(TRIES, offered):
        yield f"of {offered} guesses at {registration_id} {counted.total()} were compared"
    if guesses.wrong[200]:
        yield f"a wrong code opened {registration_id}"
    if guesses.right[200] and counted.total() >= TRIES:
        yield f"the right code opened {registration_id} after {counted.total()} wrong ones"


@_claim("guessed")
def no_code_guessed(evidence: Evidence, deeds: Deeds, run: Run) -> Iterator[str]:
    """No attacker has ever verified anything."""
    for recorded in evidence.log:
        if isinstance(recorded.event, Registration.EmailVerified):
            attacker = request_id_of(recorded.correlation_id)
            if attacker is not None and attacker[0] is not Who.PREPARING:
                yield f"{recorded.event.originator_id} was verified by an attacker ({attacker[0].name})"


@_claim("hijacked")
def nobody_hijacked(evidence: Evidence, deeds: Deeds, run: Run) -> Iterator[str]:
    """Whoever reads the mail has the account, in whatever order they registered; the others' registrations never become
    anything."""
    became: dict[UUID, set[str]] = defaultdict(set)
    for recorded in evidence.log:
        if isinstance(recorded.event, Registration.EmailVerified | Registration.AccountActivated):
            became[recorded.event.originator_id].add(type(recorded.event).__name__)
    for hijack in deeds.hijacks:
        if "AccountActivated" not in became[hijack.victim]:
            yield f"the person of {hijack.victim} has no account (others registered {hijack.order})"
        for other in hijack.others:
            if other == hijack.victim:
                yield f"somebody else was told the id of {hijack.victim} (others registered {hijack.order})"
            elif became[other]:
                yield f"{other} took an address over (registered {hijack.order})"


# --- Keys -------------------------------------------------------------------------------------------


@_claim("keys")
def one_registration_for_a_key(evidence: Evidence, deeds: Deeds, run: Run) -> Iterator[str]:
    """A key and an address are one registration; a key with another address is another one."""
    owners: dict[UUID, str] = {}
    for what, ids in deeds.same.items():
        if len(ids) > 1:
            yield f"{what} was answered with {len(ids)} registrations"
        for one in ids:
            if owners.setdefault(one, what) != what:
                yield f"{what} was answered with the registration of {owners[one]}"


# --- Honest people ----------------------------------------------------------------------------------


@_claim("honest")
def honest_people_served(evidence: Evidence, deeds: Deeds, run: Run) -> Iterator[str]:
    """Every honest person gets an account, and none is refused for what attackers do. A code from a mail that somebody
    else had sent to them is wrong, and a new code within the cooldown too soon: that is their own doing."""
    for name, finished in deeds.finished.items():
        if not finished:
            yield f"{name} has no account"
    own = {("verify", "wrong-code"), ("new code", "too-many-requests")}
    for one in evidence.journal:
        if one.outcome == "fail" and (one.kind, one.problem) not in own:
            yield f"an honest request ({one.kind} {one.request_id}) was refused: {one.status} {one.problem}"


@_claim("slow")
def slow_clients_ended(evidence: Evidence, deeds: Deeds, run: Run) -> Iterator[str]:
    """No slow client holds its connection as long as it likes."""
    for what, number in deeds.ended.items():
        if not what.endswith(": ended"):
            yield f"{number} of those who hold connections were never ended: {what}"


# --- The attack itself ------------------------------------------------------------------------------


@_claim("tried")
def attack_took_effect(evidence: Evidence, deeds: Deeds, run: Run) -> Iterator[str]:
    """What was never tried proves nothing: mails were withheld, limits refused, right codes came too late, states of
    addresses were compared, and somebody was slow and somebody honest."""
    withheld = {
        recorded.correlation_id
        for recorded in evidence.log
        if isinstance(recorded.event, Registration.OtpIssued) and recorded.event.withheld
    }
    tried = {
        "a mail past the budget": withheld,
        "a comparison with an address past its budget": withheld & deeds.probes["limited"],
        "a network past its limit": [name for name, _ in run.ledger.refused if name == "network"],
        "the right code after five wrong ones": [one for one in deeds.guesses.values() if one.right[423]],
        "the right code of a mail that was withheld": deeds.told.get(UNSENT),
        "a guess at a code": [one for one in deeds.guesses.values() if one.wrong[422] >= TRIES],
        "somebody else's address": deeds.hijacks,
        "a key again": deeds.same,
        "a slow client": deeds.ended,
        "a request within another": deeds.never_mailed,
        "an honest person": deeds.finished,
    }
    for what, found in tried.items():
        if not found:
            yield f"{what} was never tried"
