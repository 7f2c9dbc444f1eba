"""The checker: invariants I1 to I16 of the fault matrix, each a function over what was recorded of a run.

    assert check(evidence) == []
    assert check(evidence, only=("I1", "I3")) == []

Safety is judged always, liveness only where the evidence says that everything is healed. It knows nothing of the code
that it judges: it folds the events by itself. `test_invariants.py` proves that each of them can fail.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID

from domain.email_claim import EmailClaim
from domain.mail_saga import MailSaga
from domain.recorded import Position, Recorded
from domain.registration import BEGINNINGS, Registration
from tests.faults.canaries import occurs, shown
from tests.faults.evidence import Copy, Evidence, ResourceSample
from tests.faults.journal import FaultWindow, Operation

MOST_COPIES = 6
"""A_max: however many attempts were ambiguous."""
MOST_GUESSES = 5
LATE_ANSWER = 1.5
"""Seconds that an answer may come after its timeout: the way back, on a busy machine."""
LATE_LOOK = timedelta(seconds=60)
"""How long after its date a saga counts as forgotten."""
CLOCKS_AGREE = timedelta(seconds=5)
"""Between a decision and its recording: the wait for the batch, on a busy machine."""
UNREADY_WITHIN = timedelta(seconds=2)
READY_WITHIN = timedelta(seconds=5)
MAY_GROW = 0.10
SLACK = {"rss": 24 * 2**20, "fds": 8, "threads": 4}
"""What ten percent of little would not allow: caches that fill, connections of pools, threads of executors."""


@dataclass(frozen=True, slots=True, order=True)
class Violation:
    """Something that must always hold does not. The sentence names ids, never an address, a code or a key."""

    invariant: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.sentence}"


Invariant = Callable[[Evidence], Iterable[str]]
INVARIANTS: dict[str, Invariant] = {}


def check(evidence: Evidence, *, only: Collection[str] = ()) -> list[Violation]:
    """Every violation of every invariant (or of those named): none, if all is well."""
    assert set(only) <= INVARIANTS.keys(), f"unknown: {set(only) - INVARIANTS.keys()}"
    return [
        Violation(name, sentence)
        for name, violations in INVARIANTS.items()
        if not only or name in only
        for sentence in violations(evidence)
    ]


def _invariant(name: str) -> Callable[[Invariant], Invariant]:
    def register(function: Invariant) -> Invariant:
        INVARIANTS[name] = function
        return function

    return register


# --- What the log says ----------------------------------------------------------------------------


@dataclass(slots=True)
class _Seen:
    """A registration, folded from its events."""

    registration_id: UUID
    claim_id: UUID
    duplicate_of: str | None
    begun_at: Position
    status: str = "PENDING"
    serial: int = 0
    issued_at: dict[int, datetime] = field(default_factory=dict)
    handed_over: set[int] = field(default_factory=set)
    withheld: set[int] = field(default_factory=set)
    failed_for_good: bool = False
    unknown_outcomes: Counter[int] = field(default_factory=Counter)
    rejected: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    verified: list[int] = field(default_factory=list)
    erased: bool = False


def _fold(log: Sequence[Recorded]) -> dict[UUID, _Seen]:
    seen: dict[UUID, _Seen] = {}
    for recorded in log:
        event = recorded.event
        if isinstance(event, Registration.UserRegistered):
            seen[event.originator_id] = _Seen(
                event.originator_id, UUID(event.claim_id), event.duplicate_of, recorded.position
            )
        elif event.originator_id in seen:
            _apply(seen[event.originator_id], recorded)
    return seen


def _apply(one: _Seen, recorded: Recorded) -> None:
    match recorded.event:
        case Registration.OtpIssued(serial=serial):
            one.serial = serial
            one.issued_at[serial] = recorded.recorded_at
        case Registration.EmailDispatched(serial=serial):
            one.handed_over.add(serial)
        case Registration.EmailWithheld(serial=serial):
            one.withheld.add(serial)
        case Registration.EmailDispatchFailed(serial=serial, permanent=permanent, outcome_unknown=unknown):
            one.failed_for_good |= permanent
            one.unknown_outcomes[serial] += unknown
        case Registration.CodeRejected(serial=serial, attempt=attempt):
            one.rejected[serial].append(attempt)
        case Registration.EmailVerified(serial=serial):
            one.status = "VERIFIED"
            one.verified.append(serial)
        case Registration.AccountActivated():
            one.status = "ACTIVE"
        case Registration.RegistrationCancelled():
            one.status = "CANCELLED"
        case Registration.RegistrationReopened():
            one.status, one.failed_for_good = "PENDING", False
        case Registration.PersonalDataErased():
            one.erased = True


def _copies(evidence: Evidence) -> dict[tuple[UUID, int], list[Copy]]:
    """The copies of each issue's mail, in the order of their arrival."""
    issue_of = {issue.message_id: key for key, issue in evidence.issues.items()}
    copies: dict[tuple[UUID, int], list[Copy]] = defaultdict(list)
    for copy in sorted(evidence.mails, key=lambda copy: copy.at):
        if copy.message_id in issue_of:
            copies[issue_of[copy.message_id]].append(copy)
    return copies


def _by_request(evidence: Evidence) -> dict[UUID, list[Any]]:
    found: dict[UUID, list[Any]] = defaultdict(list)
    for recorded in evidence.log:
        if recorded.actor == "client":
            found[recorded.correlation_id].append(recorded.event)
    return found


def _hit(windows: Iterable[FaultWindow], what: str) -> list[FaultWindow]:
    return [window for window in windows if what in window.hits]


def _overlap(windows: Iterable[FaultWindow], begin: datetime, end: datetime) -> list[FaultWindow]:
    return [window for window in windows if window.begin <= end and window.end >= begin]


# --- What was answered ----------------------------------------------------------------------------


@_invariant("I1")
def durable_acknowledgement(evidence: Evidence) -> Iterator[str]:
    """What was answered with 2xx is in the log."""
    seen = _fold(evidence.log)
    by_request = _by_request(evidence)
    for one in evidence.journal:
        if one.outcome != "ok":
            continue
        found = seen.get(one.registration_id) if one.registration_id is not None else None
        if found is None:
            yield f"{one.kind} {one.request_id} was answered {one.status}, and registration {one.registration_id} is not in the log"
        elif one.kind == "verify" and not found.verified:
            yield f"registration {one.registration_id} was answered as verified, and that is not in the log"
        elif one.kind == "new code" and not any(
            isinstance(event, Registration.OtpIssued) for event in by_request[one.request_id]
        ):
            yield f"request {one.request_id} was promised a new code for {one.registration_id}, which is not in the log"
        if one.position is not None and one.position > evidence.head:
            yield f"request {one.request_id} was told position {one.position}, beyond the log's end {evidence.head}"


@_invariant("I2")
def no_ghost(evidence: Evidence) -> Iterator[str]:
    """What was definitely refused left nothing behind (but the count of a wrong guess)."""
    counted = (
        Registration.CodeRejected,
        Registration.CodeLocked,
        Registration.OtpRevoked,
        Registration.RegistrationCancelled,
    )
    by_request = _by_request(evidence)
    for one in evidence.journal:
        if one.outcome != "fail":
            continue
        for event in by_request[one.request_id]:
            if not (one.kind == "verify" and isinstance(event, counted)):
                yield f"{one.kind} {one.request_id} was refused ({one.status}), and led to {event.TOPIC} of {event.originator_id}"


# --- The log itself -------------------------------------------------------------------------------


@_invariant("I3")
def unique(evidence: Evidence) -> Iterator[str]:
    """At every prefix of the log an address has at most one registration that has proven it, and that one holds it."""
    claim_of: dict[UUID, UUID] = {}
    proven: dict[UUID, set[UUID]] = defaultdict(set)
    holder: dict[UUID, UUID | None] = {}
    for recorded in evidence.log:
        event = recorded.event
        stream = event.originator_id
        if isinstance(event, BEGINNINGS):
            claim_of[stream] = UUID(event.claim_id)
        match event:
            case Registration.RegistrationCancelled() | Registration.PersonalDataErased() if stream in claim_of:
                proven[claim_of[stream]].discard(stream)
            case Registration.EmailVerified() | Registration.UserImported(verified=True) if stream in claim_of:
                claim = claim_of[stream]
                proven[claim].add(stream)
                if len(proven[claim]) > 1:
                    yield f"at position {recorded.position} claim {claim} is proven by {_listed(proven[claim])}"
            case EmailClaim.EmailClaimed(registration_id=registration_id):
                if holder.get(stream) not in {None, UUID(registration_id)}:
                    yield f"at position {recorded.position} claim {stream} is taken by {registration_id}, and held by {holder[stream]}"
                holder[stream] = UUID(registration_id)
            case EmailClaim.EmailReleased():
                holder[stream] = None
    for claim, registrations in proven.items():
        for one in registrations:
            if holder.get(claim) != one:
                yield f"registration {one} has proven its address, and its claim {claim} is held by {holder.get(claim)}"
    yield from _one_claim_per_address(evidence, claim_of)


def _one_claim_per_address(evidence: Evidence, claim_of: dict[UUID, UUID]) -> Iterator[str]:
    duplicates = {
        recorded.event.originator_id
        for recorded in evidence.log
        if isinstance(recorded.event, Registration.UserRegistered) and recorded.event.duplicate_of is not None
    }
    claims: dict[str, set[UUID]] = defaultdict(set)
    for one in evidence.journal:
        known = one.kind == "register" and one.outcome == "ok" and one.registration_id in claim_of
        if known and one.address is not None and one.registration_id not in duplicates:
            claims[one.address].add(claim_of[one.registration_id])  # type: ignore[index]
    for found in claims.values():
        if len(found) > 1:
            yield f"one address has claims {_listed(found)}"


def _listed(ids: Iterable[UUID]) -> str:
    return ", ".join(sorted(map(str, ids)))


@_invariant("chain")
def hash_chain(evidence: Evidence) -> Iterator[str]:
    """The log's hash chain verifies."""
    for position in evidence.broken_blocks:
        yield (
            f"the block that ends at {position} has not the hash of its rows"
            if position >= 0
            else "the head has not the hash of the log"
        )


# --- Mail -----------------------------------------------------------------------------------------


@_invariant("I4")
def never_silently_stuck(evidence: Evidence) -> Iterator[str]:
    """After healing each registration is delivered with its current code, or a dead letter, or ended, and no dead
    letter waits for an operator who can do nothing about it."""
    if not evidence.healed:
        return
    copies = _copies(evidence)
    reasons = {(dead.registration_id, dead.serial): dead.failure for dead in evidence.dead_letters}
    registrations = _fold(evidence.log)
    for dead in evidence.dead_letters:
        of = registrations.get(dead.registration_id)
        if dead.waits and (of is None or (of.status, of.serial) != ("PENDING", dead.serial)):
            yield f"mail {dead.serial} of registration {dead.registration_id} waits for an operator, and is settled"
    for one in registrations.values():
        key = (one.registration_id, one.serial)
        if one.status == "VERIFIED":
            yield f"registration {one.registration_id} is verified, and never became an account"
        if one.status != "PENDING":
            continue
        if key in reasons:
            if not reasons[key]:
                yield f"registration {one.registration_id} has a dead letter without a reason"
        elif one.serial not in one.withheld and not copies[key]:
            yield f"registration {one.registration_id} waits for the mail of issue {one.serial}, which is in no mailbox"
    yield from _forgotten_sagas(evidence)


def _forgotten_sagas(evidence: Evidence) -> Iterator[str]:
    looks: dict[str, datetime] = {}
    for recorded in evidence.log:
        event: Any = recorded.event
        if isinstance(event, MailSaga.MailSagaEnded):
            looks.pop(event.registration_id, None)
        elif isinstance(event, MailSaga.MailSagaStarted):
            looks[event.registration_id] = event.ends_at
        elif hasattr(event, "look_again_at"):
            looks[event.registration_id] = event.look_again_at
    for registration_id, look_again_at in looks.items():
        if evidence.collected_at > look_again_at + LATE_LOOK:
            yield f"the saga of {registration_id} should have looked again at {look_again_at:%H:%M:%S}"


@_invariant("I5")
def bounded_duplicates(evidence: Evidence) -> Iterator[str]:
    """One mail per issue; one more for each attempt whose outcome nobody could know; six at most."""
    copies = _copies(evidence)
    ambiguous = [window for window in evidence.faults if _may_hide_an_outcome(window, evidence.senders)]
    for one in _fold(evidence.log).values():
        for serial, issued_at in one.issued_at.items():
            found = copies[one.registration_id, serial]
            what = f"issue {serial} of {one.registration_id}"
            if not found:
                if serial in one.handed_over:
                    yield f"{what} is recorded as handed over, and is in no mailbox"
                continue
            faults = _overlap(ambiguous, issued_at, found[-1].at)
            allowed = 1 + one.unknown_outcomes[serial] + len(faults)
            if len(found) > MOST_COPIES:
                yield f"{what} was sent {len(found)} times, more than {MOST_COPIES}"
            elif len(found) > allowed:
                yield f"{what} was sent {len(found)} times, with {allowed - 1} attempts of unknown outcome"


def _may_hide_an_outcome(window: FaultWindow, senders: str) -> bool:
    """Can it keep a mail's sender from learning or recording what became of it? A broker loses wake-ups, no
    outcomes."""
    if window.node:
        return window.node.startswith(f"{senders}-")
    return not window.hits <= {"api", "broker"}


@_invariant("I6")
def same_code(evidence: Evidence) -> Iterator[str]:
    """Every copy of an issue carries that issue's code, to its own registrant; only the current code ever verifies."""
    known = {issue.message_id for issue in evidence.issues.values()}
    strange = sum(copy.message_id not in known for copy in evidence.mails)
    if strange:
        yield f"{strange} mails have a Message-ID of no issue"
    seen = _fold(evidence.log)
    address_of = {
        one.registration_id: one.address for one in evidence.journal if one.kind == "register" and one.outcome == "ok"
    }
    for (registration_id, serial), copies in _copies(evidence).items():
        one = seen[registration_id]
        expected = evidence.issues[registration_id, serial].code if one.duplicate_of is None else None
        if any(copy.code != expected for copy in copies):
            yield f"a mail of issue {serial} of {registration_id} carries another code than its own"
        address = address_of.get(registration_id)
        if address is not None and any(copy.to != address for copy in copies):
            yield f"a mail of issue {serial} of {registration_id} went to somebody else"
    yield from _superseded_codes(evidence)


def _superseded_codes(evidence: Evidence) -> Iterator[str]:
    serials: dict[UUID, int] = {}
    offered = {one.request_id: one.code for one in evidence.journal if one.kind == "verify"}
    for recorded in evidence.log:
        event = recorded.event
        if isinstance(event, Registration.OtpIssued):
            serials[event.originator_id] = event.serial
        elif isinstance(event, Registration.EmailVerified):
            current = serials.get(event.originator_id)
            if event.serial != current:
                yield f"{event.originator_id} was verified by the code of issue {event.serial} while issue {current} was in force"
            issue = evidence.issues.get((event.originator_id, event.serial))
            code = offered.get(recorded.correlation_id)
            if issue is not None and code is not None and code != issue.code:
                yield f"{event.originator_id} was verified by something else than the code of issue {event.serial}"


@_invariant("I7")
def single_verification(evidence: Evidence) -> Iterator[str]:
    """One proof per registration; every guess counted, at most five per code, none once it is locked."""
    wrong_answers = Counter(
        one.registration_id for one in evidence.journal if one.kind == "verify" and one.problem == "wrong-code"
    )
    for one in _fold(evidence.log).values():
        if len(one.verified) > 1:
            yield f"registration {one.registration_id} was verified {len(one.verified)} times"
        for serial, attempts in one.rejected.items():
            if attempts != list(range(1, len(attempts) + 1)):
                yield f"guesses at issue {serial} of {one.registration_id} are counted {attempts}"
            if len(attempts) > MOST_GUESSES:
                yield f"{len(attempts)} guesses at issue {serial} of {one.registration_id} were compared"
        counted = sum(map(len, one.rejected.values()))
        if wrong_answers[one.registration_id] > counted:
            yield f"{wrong_answers[one.registration_id]} guesses at {one.registration_id} were answered, {counted} are counted"
    locked: set[tuple[UUID, int]] = set()
    for recorded in evidence.log:
        match recorded.event:
            case Registration.CodeLocked(serial=serial):
                locked.add((recorded.event.originator_id, serial))
            case Registration.CodeRejected(serial=serial) | Registration.EmailVerified(serial=serial):
                if (recorded.event.originator_id, serial) in locked:
                    yield f"position {recorded.position}: issue {serial} of {recorded.event.originator_id} was compared after its lock"


# --- Followers and read models ----------------------------------------------------------------------


@_invariant("I8")
def deterministic_replay(evidence: Evidence) -> Iterator[str]:
    """A read model is what any fold of the log makes of it."""
    for name, hashes in evidence.read_models.items():
        live = hashes["live"]
        for way, found in hashes.items():
            if found != live:
                yield f"the read model {name} is not what it becomes {way}"


@_invariant("I9")
def no_gap(evidence: Evidence) -> Iterator[str]:
    """Positions are 1, 2, 3, …; versions too, in each stream; each follower has handled each position, once."""
    positions = sorted([*(recorded.position for recorded in evidence.log), *evidence.undecodable])
    expected = list(range(1, evidence.head + 1))
    if positions != expected:
        yield f"positions missing: {_first(set(expected) - set(positions))}; beyond the head or twice: {_first(_surplus(positions, expected))}"
    versions: dict[UUID, int] = defaultdict(int)
    for recorded in evidence.log:
        event = recorded.event
        if not evidence.undecodable and event.originator_version != versions[event.originator_id] + 1:
            yield f"position {recorded.position}: version {event.originator_version} of {event.originator_id} follows version {versions[event.originator_id]}"
        versions[event.originator_id] = event.originator_version
    for name, position in evidence.followers.items():
        if position > evidence.head:
            yield f"the follower {name} is at {position}, beyond the log's end {evidence.head}"
        elif evidence.healed and position < evidence.head:
            yield f"the follower {name} is at {position}, and the log goes on to {evidence.head}"
    for name, handled in evidence.handled.items():
        due = {position for position in positions if position <= evidence.followers.get(name, 0)}
        if set(handled) != due or len(handled) != len(due):
            yield f"{name} has left out {_first(due - set(handled))}; too much: {_first(_surplus(handled, due))}"
    sagas = {
        UUID(recorded.event.registration_id)
        for recorded in evidence.log
        if isinstance(recorded.event, MailSaga.MailSagaStarted)
    }
    saga_at = evidence.followers.get("mail-saga", 0)
    for one in _fold(evidence.log).values():
        if one.begun_at <= saga_at and one.registration_id not in sagas:
            yield f"the saga is at {saga_at}, and has not begun for {one.registration_id} of position {one.begun_at}"


def _surplus(found: Iterable[Position], expected: Iterable[Position]) -> list[Position]:
    return sorted((Counter(found) - Counter(expected)).elements())


def _first(positions: Iterable[Position]) -> str:
    some = sorted(positions)
    return ", ".join(map(str, some[:5])) + (" …" if len(some) > 5 else "") if some else "none"


@_invariant("I14")
def everything_understood(evidence: Evidence) -> Iterator[str]:
    """No follower has put anything aside, and every event can be read."""
    for position in evidence.undecodable:
        yield f"the event at position {position} cannot be decoded"
    for follower, stream, error in sorted(set(evidence.parked)):
        yield f"{follower} has parked stream {stream}: {error}"


# --- Silence ----------------------------------------------------------------------------------------


@_invariant("I10")
def silence(evidence: Evidence) -> Iterator[str]:
    """No address, name, password, key or code stands in a log, a metric or the database."""
    words = [canary for canary in evidence.canaries if canary.kind != "code"]
    # A log of 100,000 events has positions of six digits, too.
    positions = {str(number) for number in range(100_000, evidence.head + 1)}
    codes = {canary.value for canary in evidence.canaries if canary.kind == "code"} - positions
    for place, text in evidence.texts.items():
        found = set(occurs(text, {canary.value for canary in words}))
        for kind, count in Counter(canary.kind for canary in words if canary.value in found).items():
            yield f"{count} of kind {kind} in {place}"
        if shown_codes := shown(codes, text):
            yield f"{len(set(shown_codes))} of kind code in {place}"


# --- Limits -----------------------------------------------------------------------------------------


@_invariant("I11")
def bounded(evidence: Evidence) -> Iterator[str]:
    """After healing no node takes more than one of its kind did before, within ten percent and a little.

    Of its kind, because who stood by at first may lead afterwards, with a leader's connections.
    """
    if not evidence.healed:
        return
    before: dict[str, list[ResourceSample]] = defaultdict(list)
    for sample in evidence.resources:
        if sample.moment == "before":
            before[sample.kind].append(sample)
    latest = {sample.node: sample for sample in evidence.resources if sample.moment == "after"}
    for node, last in latest.items():
        if not before[last.kind]:
            yield f"nothing of the kind {last.kind} was measured before"
            continue
        for what, slack in SLACK.items():
            most = max(getattr(sample, what) for sample in before[last.kind]) * (1 + MAY_GROW) + slack
            if getattr(last, what) > most:
                yield f"{node} has {what} {getattr(last, what)} after healing, and {most:.0f} would be as before"
    # All together, as well: one may have grown to what another had.
    for kind, samples in before.items():
        first = {sample.node: sample for sample in reversed(samples) if sample.node in latest}
        if {node for node, last in latest.items() if last.kind == kind} != first.keys():
            continue
        for what, slack in SLACK.items():
            most = sum(getattr(sample, what) for sample in first.values()) * (1 + MAY_GROW) + len(first) * slack
            now = sum(getattr(latest[node], what) for node in first)
            if now > most:
                yield f"all {kind} have {what} {now} after healing, and {most:.0f} would be as before"


@_invariant("I12")
def answered(evidence: Evidence) -> Iterator[str]:
    """Every request ends within its timeout, with an answer that says what to do."""
    silent = _hit(evidence.faults, "api")
    for one in evidence.journal:
        what = f"{one.kind} {one.request_id}"
        # One that has just come up finds everybody waiting at its door.
        excused = _overlap(silent, one.began - READY_WITHIN, one.ended or evidence.collected_at)
        if one.outcome == "invoked":
            yield f"{what} never ended"
        elif one.took > one.timeout + LATE_ANSWER and not excused:
            yield f"{what} took {one.took:.1f} s, with a timeout of {one.timeout:g} s"
        elif one.status is None and not excused:
            yield f"{what} got no answer ({one.problem}), while nothing kept the API from giving one"
        if one.status in {429, 503, 504} and one.retry_after is None:
            yield f"{what} was answered {one.status} without Retry-After"
        if one.status is not None and one.status >= 500 and one.status not in {503, 504}:
            yield f"{what} was answered {one.status}"


@_invariant("I13")
def clock_proof(evidence: Evidence) -> Iterator[str]:
    """Decisions go by the database's clock, whatever the machine's own says; order goes by positions."""
    for recorded in evidence.log:
        decided_at: datetime = recorded.event.timestamp
        late = recorded.recorded_at - decided_at
        near = _overlap(evidence.faults, recorded.recorded_at - CLOCKS_AGREE, recorded.recorded_at)
        allowed = CLOCKS_AGREE + sum((window.lasted for window in near), timedelta(0))
        if not -CLOCKS_AGREE <= late <= allowed:
            yield f"position {recorded.position} was decided {late.total_seconds():+.1f} s before it was recorded"
        if recorded.causation_position is not None and recorded.causation_position >= recorded.position:
            yield f"position {recorded.position} was caused by a later one, {recorded.causation_position}"
    for earlier, later in pairwise(evidence.log):
        if later.recorded_at < earlier.recorded_at:
            yield f"position {later.position} was recorded before position {earlier.position}"


# --- Clients ----------------------------------------------------------------------------------------


@_invariant("I15")
def idempotent(evidence: Evidence) -> Iterator[str]:
    """One key and one body: one answer. Another body: refused. Another address: independent."""
    by_key: dict[str, list[Operation]] = defaultdict(list)
    for one in evidence.journal:
        if one.kind == "register" and one.key is not None:
            by_key[one.key].append(one)
    for operations in by_key.values():
        by_address: dict[str | None, list[Operation]] = defaultdict(list)
        for one in operations:
            by_address[one.address].append(one)
        owners: dict[UUID, str | None] = {}
        for address, same in by_address.items():
            yield from _same_answers(same)
            for one in same:
                id_ = one.registration_id if one.outcome == "ok" else None
                if id_ is not None and owners.setdefault(id_, address) != address:
                    yield f"registration {id_} was answered for two addresses"


def _same_answers(operations: Sequence[Operation]) -> Iterator[str]:
    """Of one address and key."""
    accepted = [one for one in operations if one.outcome == "ok"]
    if len({one.body for one in accepted}) > 1:
        yield f"one key was accepted with different bodies: {_listed(one.request_id for one in accepted)}"
        return
    if len({repr(sorted(_of_every_release(one.answer or {}).items())) for one in accepted}) > 1:
        yield f"one key and one body got different answers: {_listed(one.registration_id or UUID(int=0) for one in accepted)}"
    for one in operations:
        earlier = [other for other in accepted if other.ended is not None and other.ended <= one.began]
        if not earlier:
            continue
        if one.body == earlier[0].body and one.outcome == "fail":
            yield f"request {one.request_id} repeats an accepted one, and was refused ({one.status})"
        if one.body != earlier[0].body and one.outcome == "fail" and one.status not in {409, 422}:
            yield f"request {one.request_id} reuses a key with another body, and was answered {one.status}"


def _of_every_release(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Without what release 0.1.0 does not answer: during an upgrade both releases do."""
    return {name: value for name, value in answer.items() if name != "mail_language"}


@_invariant("I16")
def honest_health(evidence: Evidence) -> Iterator[str]:
    """Live depends on nothing; ready says no while nothing can be appended, and yes otherwise."""
    for sample in evidence.health:
        own = [window for window in evidence.faults if window.node in {"", sample.node}]
        answered_at = sample.at + sample.took
        if _overlap(_hit(own, "api"), sample.at - READY_WITHIN, answered_at + UNREADY_WITHIN):
            continue
        what = f"{sample.node} said {sample.probe}: {sample.status} {sample.state} at {sample.at:%H:%M:%S}"
        if sample.probe == "live":
            if sample.status != 200:
                yield f"{what}, though it depends on nothing"
            continue
        if sample.status not in {200, 503}:
            yield f"{what}, which is no answer"
        blocked, slow = _hit(own, "database"), _hit(own, "slow database")
        sure = any(window.begin + UNREADY_WITHIN <= sample.at and answered_at < window.end for window in blocked)
        maybe = _overlap([*blocked, *slow], sample.at - READY_WITHIN, answered_at)
        if sure and sample.status == 200:
            yield f"{what}, while nothing could be appended"
        if not maybe and sample.status == 503:
            yield f"{what}, though everything could be appended"
