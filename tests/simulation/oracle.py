"""What must hold: docs/reliability.md, I3 to I7, and what follows from the saga's rules. Knows nothing of the code it
judges: it folds the events by itself and derives codes from the reference keyring."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Any
from uuid import UUID

from application.addresses import canonical_address, mailbox_guess
from application.ports import Context
from domain.email_claim import EmailClaim
from domain.mail_saga import MailSaga
from domain.mailbox import Mailbox
from domain.operator_act import OperatorAct
from domain.policy import Policy
from domain.recorded import AnyEvent, Position
from domain.registration import Registration
from infrastructure.event_store.codec import EventCodec
from tests.simulation.database import LEASE, Database, copy_of
from tests.simulation.mail import KEYRING, Attempt, Copy

MAX_GUESSES = 5
MAILS_PER_HOUR, MAILS_PER_DAY = 3, 5
"""The silent budget of a mailbox (docs/security.md, S13)."""
COPIES_CAP = 6
"""The bound of docs/reliability.md, I5."""


class Violation(Exception):
    """Something that must always hold does not; begins with the name of the invariant."""


@dataclass(slots=True)
class Seen:
    """What the log says about a registration."""

    number: int
    registration_id: UUID
    claim_id: UUID
    address: str
    duplicate_of: UUID | None
    began: datetime
    status: str = "PENDING"
    serial: int = 0
    discarded: bool = False
    revoked: bool = False
    handed_over: dict[int, datetime] = field(default_factory=dict)
    handed_over_at: dict[int, Position] = field(default_factory=dict)
    withheld: set[int] = field(default_factory=set)
    over_budget: set[int] = field(default_factory=set)
    superseded_at: Position | None = None
    failed_at: dict[int, Position] = field(default_factory=dict)
    bounces: dict[int, list[bool]] = field(default_factory=dict)
    dead_requests: set[Position | None] = field(default_factory=set)
    rejections: Counter[int] = field(default_factory=Counter)
    locked: set[int] = field(default_factory=set)
    verified: int = 0
    activated: int = 0
    ended_at: Position | None = None
    reason: str | None = None
    erased: bool = False
    imported: bool = False

    @property
    def awaits_invitation(self) -> bool:
        """Has nobody invited whoever was imported?"""
        return self.imported and self.status == "PENDING" and not self.serial

    @property
    def wants_mail(self) -> bool:
        """Of its current issue."""
        undone = self.discarded or self.revoked or self.status != "PENDING" or not self.serial
        return not undone and self.serial not in self.handed_over and self.serial not in self.locked


class Oracle:
    """Watches every commit and every mail, and looks at the whole when told that it should be quiet.

    Args:
        fail: told of a violation; the run ends there.
    """

    def __init__(self, database: Database, *, policy: Policy, fail: Callable[[Violation], None]) -> None:
        self._database = database
        self._policy = policy
        self._fail = fail
        self.seen: dict[UUID, Seen] = {}
        self.holders: dict[UUID, UUID | None] = {}
        self.copies: dict[tuple[UUID, int], list[Copy]] = {}
        self.attempts: list[Attempt] = []
        self.offered: dict[UUID, set[str]] = {}
        self.wrong_code_answers: Counter[UUID] = Counter()
        self._by_message_id: dict[str, tuple[UUID, int]] = {}
        self._proven: dict[UUID, UUID] = {}
        self._granted: dict[str, list[datetime]] = {}
        self._reported: set[tuple[UUID, int, str]] = set()
        self._silenced: set[UUID] = set()
        self._requests: list[tuple[Position, UUID, int]] = []
        self._requests_seen = 0

    def violated(self, invariant: str, what: str) -> None:
        self._fail(Violation(f"{invariant}: {what}"))

    def name(self, registration_id: UUID) -> str:
        seen = self.seen.get(registration_id)
        return "?" if seen is None else f"r{seen.number}"

    def _must(self, condition: object, invariant: str, what: str, seen: Seen | None = None) -> None:
        if not condition:
            self.violated(invariant, what if seen is None else f"r{seen.number}: {what}")

    # --- Every commit -------------------------------------------------------------------------

    def on_commit(self, events: Sequence[AnyEvent], contexts: Sequence[Context]) -> None:
        position = self._database.head - len(events)
        for event in events:
            position += 1
            if isinstance(event, MailSaga.Event | MailSaga.Created):
                self._saga(event, position)
            elif isinstance(event, EmailClaim.EmailClaimed | EmailClaim.EmailReleased):
                self._claim(event)
            elif isinstance(event, Registration.UserRegistered):
                self._registered(event)
            elif isinstance(event, Registration.UserImported):
                self._imported(event)
            elif isinstance(event, Mailbox.MailDecided) and event.lifts:
                acted = any(isinstance(one, OperatorAct.OperatorActed) for one in events)
                self._must(acted, "bounces", "a mailbox is sent mails again, though no operator said so")
                self._silenced.discard(event.originator_id)
            elif isinstance(event, Registration.Event):
                self._registration(self.seen[event.originator_id], event, position)
        for event in events:
            if isinstance(event, Registration.RegistrationSuperseded):
                seen = self.seen[event.originator_id]
                self._must(seen.serial or seen.ended_at, "I4", "gave way before it was invited, and goes on", seen)
            if isinstance(event, Registration.EmailVerified) or (
                isinstance(event, Registration.UserImported) and event.verified
            ):
                seen = self.seen[event.originator_id]
                holder = self.holders.get(seen.claim_id)
                self._must(holder == seen.registration_id, "I3", "is proven without holding its address", seen)

    def _registered(self, event: Registration.UserRegistered) -> None:
        address = canonical_address(event.personal_data.split("\n")[1])
        duplicate_of = UUID(event.duplicate_of) if event.duplicate_of else None
        claim_id = KEYRING.claim_id(address)
        seen = Seen(len(self.seen) + 1, event.originator_id, claim_id, address, duplicate_of, event.timestamp)
        self.seen[event.originator_id] = seen
        self._must(event.claim_id == str(claim_id), "I3", "claims another address", seen)
        if duplicate_of is not None:
            owner = self.seen[duplicate_of]
            self._must(owner.address == address, "I3", "duplicate of another address", seen)
        self.offered.setdefault(event.originator_id, set())

    def _imported(self, event: Registration.UserImported) -> None:
        address = canonical_address(event.personal_data.split("\n")[1])
        claim_id = KEYRING.claim_id(address)
        seen = Seen(len(self.seen) + 1, event.originator_id, claim_id, address, None, event.timestamp, imported=True)
        self._must(event.originator_id == KEYRING.imported_id(claim_id), "I3", "is imported under another id", seen)
        self._must(event.originator_id not in self.seen, "I3", "is imported twice", seen)
        self._must(event.claim_id == str(claim_id), "I3", "claims another address", seen)
        self._must(claim_id not in self._proven, "I3", "is imported though an account has the address", seen)
        self.seen[event.originator_id] = seen
        self.offered.setdefault(event.originator_id, set())
        if event.verified:
            seen.status, seen.verified = "ACTIVE", 1
            self._proven[claim_id] = event.originator_id

    def _claim(self, event: EmailClaim.EmailClaimed | EmailClaim.EmailReleased) -> None:
        registration_id = UUID(event.registration_id)
        holder, seen = self.holders.get(event.originator_id), self.seen[registration_id]
        if isinstance(event, EmailClaim.EmailReleased):
            self._must(holder == registration_id, "claims", "releases what it does not hold", seen)
            self._must(seen.status == "CANCELLED", "claims", "its address is released before its end", seen)
            self.holders[event.originator_id] = None
        else:
            self._must(holder is None, "I3", "takes an address from somebody", seen)
            self._must(seen.verified, "I3", "takes an address that it has not proven", seen)
            self.holders[event.originator_id] = registration_id

    def _registration(self, seen: Seen, event: Any, position: Position) -> None:
        must, pending = self._must, seen.status == "PENDING"
        match event:
            case Registration.UserInvited():
                must(seen.awaits_invitation, "I6", "is invited, and does not wait for that", seen)
            case Registration.OtpIssued():
                must(pending and event.serial == seen.serial + 1, "I6", f"issue {event.serial} out of turn", seen)
                seen.serial = event.serial
                self._issued(seen, event)
                for serial in (event.serial, event.serial + 1):
                    message_id = f"<{KEYRING.message_id(seen.registration_id, serial)}@sim.test>"
                    self._by_message_id[message_id] = (seen.registration_id, serial)
            case Registration.EmailDispatched():
                self._dispatched(seen, event, position)
            case Registration.EmailWithheld():
                self._withheld(seen, event)
            case Registration.EmailDispatchFailed():
                self._failed(seen, event, position)
            case Registration.EmailBounced():
                self._bounced(seen, event, position)
            case Registration.EmailComplained():
                self._complained(seen, event)
            case Registration.RegistrationSuperseded():
                self._superseded(seen, event, position)
            case Registration.EmailDiscarded():
                seen.discarded = True
            case Registration.CodeRejected():
                self._rejected(seen, event)
            case Registration.CodeLocked():
                must(seen.rejections[event.serial] == MAX_GUESSES, "I7", "locked without five guesses", seen)
                seen.locked.add(event.serial)
            case Registration.EmailVerified():
                self._verified(seen, event)
            case Registration.AccountActivated():
                must(seen.status == "VERIFIED", "I7", f"activated while {seen.status}", seen)
                seen.status = "ACTIVE"
            case Registration.OtpRevoked():
                must(pending, "I6", f"revoked while {seen.status}", seen)
                seen.revoked = True
            case Registration.RegistrationCancelled():
                may = pending or (event.reason == "erased" and seen.status != "CANCELLED")
                must(may, "I3", f"cancelled ({event.reason}) while {seen.status}", seen)
                seen.status, seen.ended_at, seen.reason = "CANCELLED", position, event.reason
                if self._proven.get(seen.claim_id) == seen.registration_id:
                    del self._proven[seen.claim_id]
            case Registration.RegistrationReopened():
                self._reopened(seen)
            case Registration.PersonalDataErased():
                must(seen.status == "CANCELLED", "claims", f"erased while {seen.status}", seen)
                seen.erased = True

    def _reopened(self, seen: Seen) -> None:
        without_mail = seen.reason in {"undeliverable", "expired"} and seen.serial not in seen.handed_over
        self._must(seen.status == "CANCELLED" and without_mail, "I3", f"reopened, {seen.status} {seen.reason}", seen)
        self._must(not seen.erased, "claims", "reopened after its erasure", seen)
        seen.status, seen.ended_at, seen.reason = "PENDING", None, None
        seen.revoked = seen.discarded = False

    def _dispatched(self, seen: Seen, event: Registration.EmailDispatched, position: Position) -> None:
        self._must(event.serial not in seen.handed_over, "I5", "a hand-over is recorded twice", seen)
        key = (seen.registration_id, event.serial)
        self._must(key in self.copies, "I4", "a hand-over is recorded, but no mail server has the mail", seen)
        seen.handed_over[event.serial] = event.timestamp
        seen.handed_over_at[event.serial] = position

    def _bounced(self, seen: Seen, event: Registration.EmailBounced, position: Position) -> None:
        serial, kind = event.serial, "hard" if event.permanent else "soft"
        told = (seen.registration_id, serial, kind) in self._reported
        before = seen.bounces.setdefault(serial, [])
        self._must(told, "bounces", f"a {kind} bounce of issue {serial} that nobody told", seen)
        turned = event.permanent and before and not before[-1]
        # A try of unknown outcome may have handed over what was withheld later.
        once = serial in seen.handed_over or turned
        self._must(once, "bounces", f"issue {serial} came back without a hand-over", seen)
        self._must(seen.status == "PENDING" and not seen.revoked, "bounces", f"came back while {seen.status}", seen)
        before.append(event.permanent)
        seen.handed_over.pop(serial, None)
        seen.handed_over_at.pop(serial, None)
        seen.failed_at[serial] = position

    def _rejected(self, seen: Seen, event: Registration.CodeRejected) -> None:
        must = self._must
        seen.rejections[event.serial] += 1
        alive = seen.status == "PENDING" and event.serial == seen.serial
        must(alive, "I7", "a guess at a dead code is evaluated", seen)
        must(event.serial not in seen.locked, "I7", "a guess at a locked code is evaluated", seen)
        must(event.attempt == seen.rejections[event.serial] <= MAX_GUESSES, "I7", "a sixth guess", seen)

    def _complained(self, seen: Seen, event: Registration.EmailComplained) -> None:
        told = (seen.registration_id, event.serial, "complaint") in self._reported
        self._must(told, "bounces", f"a complaint about issue {event.serial} that nobody made", seen)
        self._silenced.add(self._mailbox_of(seen))

    def _failed(self, seen: Seen, event: Registration.EmailDispatchFailed, position: Position) -> None:
        died = event.request_position
        once = died is None or died not in seen.dead_requests
        self._must(once, "I5", "a request's death is recorded twice", seen)
        seen.dead_requests.add(died)
        seen.failed_at[event.serial] = position

    @staticmethod
    def _mailbox_of(seen: Seen) -> UUID:
        return KEYRING.mailbox_id(mailbox_guess(seen.address))

    def _withheld(self, seen: Seen, event: Registration.EmailWithheld) -> None:
        may = seen.duplicate_of or seen.superseded_at or event.serial in seen.over_budget
        self._must(may, "I4", "a code's mail is withheld", seen)
        seen.handed_over[event.serial] = event.timestamp
        seen.withheld.add(event.serial)

    def _superseded(self, seen: Seen, event: Registration.RegistrationSuperseded, position: Position) -> None:
        winner = self._proven.get(seen.claim_id)
        gives_way = seen.status == "PENDING" and str(winner) == event.by != str(seen.registration_id)
        self._must(gives_way, "I3", "gives way to nobody", seen)
        seen.superseded_at = position

    def _issued(self, seen: Seen, event: Registration.OtpIssued) -> None:
        """Mails that somebody asks for are counted by mailbox; those in place of one that was never sent are not."""
        if event.withheld:
            seen.over_budget.add(event.serial)
        if event.withheld or event.reason not in {"registered", "requested", "invited"}:
            return
        silenced = self._mailbox_of(seen) in self._silenced
        self._must(not silenced, "bounces", f"issue {event.serial} is granted where somebody complained", seen)
        granted = self._granted.setdefault(mailbox_guess(seen.address), [])
        granted.append(event.timestamp)
        ages = [(event.timestamp - at).total_seconds() for at in granted]
        self._must(sum(age < 3600 for age in ages) <= MAILS_PER_HOUR, "I5", "a fourth mail within an hour", seen)
        self._must(sum(age < 86400 for age in ages) <= MAILS_PER_DAY, "I5", "a sixth mail within a day", seen)

    def _verified(self, seen: Seen, event: Registration.EmailVerified) -> None:
        must, serial = self._must, event.serial
        seen.verified += 1
        must(seen.verified == 1, "I7", "verified twice", seen)
        must(seen.claim_id not in self._proven, "I3", "two have proven one address", seen)
        must(seen.superseded_at is None, "I3", "is proven, though it was superseded", seen)
        self._proven[seen.claim_id] = seen.registration_id
        must(seen.status == "PENDING" and seen.duplicate_of is None, "I7", "verified what was not pending", seen)
        must(serial == seen.serial and not seen.revoked, "I6", "verified by a dead code", seen)
        must(serial not in seen.locked, "I7", "verified by a locked code", seen)
        right = KEYRING.code(seen.registration_id, serial)
        must(right in self.offered[seen.registration_id], "I6", "verified, but nobody offered its code", seen)
        handed_over = seen.handed_over.get(serial)
        must(handed_over is None or event.timestamp < handed_over + self._policy.otp_ttl, "I6", "expired code", seen)
        seen.status = "VERIFIED"

    def _saga(self, event: Any, position: Position) -> None:
        saga = self._database.states[event.originator_id]
        assert isinstance(saga, MailSaga)
        self._must(saga.ended or saga.look_again_at is not None, "I4", "waits without a date")
        if isinstance(event, MailSaga.MailRequested):
            self._requests.append((position, UUID(event.registration_id), event.serial))

    def on_moved(self, name: str, since: Position, to: Position) -> None:
        """A follower's position has moved. The in-process relay's must not pass what is not settled."""
        if name != "relay":
            return
        while self._requests_seen < len(self._requests) and self._requests[self._requests_seen][0] <= to:
            position, registration_id, serial = self._requests[self._requests_seen]
            self._requests_seen += 1
            seen = self.seen[registration_id]
            settled = serial != seen.serial or not seen.wants_mail or seen.failed_at.get(serial, 0) > position
            self._must(settled, "I9", "the relay passes a mail whose outcome is not recorded", seen)

    # --- Every mail ---------------------------------------------------------------------------

    def on_copy(self, copy: Copy) -> None:
        key = self._by_message_id.get(copy.letter.message_id)
        if key is None:
            self.violated("I6", "a mail with a Message-ID of no issue")
            return
        registration_id, serial = key
        seen, attempt = self.seen[registration_id], copy.attempt
        copies = self.copies.setdefault(key, [])
        copies.append(copy)
        if seen.duplicate_of is None:
            same = copy.letter.code == KEYRING.code(registration_id, serial)
            self._must(same, "I6", f"the mail of issue {serial} has another code", seen)
            self._must(canonical_address(copy.letter.to) == seen.address, "I6", "mail to somebody else", seen)
        else:
            owner = self.seen[seen.duplicate_of]
            self._must(copy.letter.rendered.subject == "notice", "I6", "a code for a duplicate", seen)
            self._must(canonical_address(copy.letter.to) == owner.address, "I6", "notice to somebody else", seen)
        late = seen.ended_at is not None and seen.ended_at <= attempt.began_at
        self._must(not late, "I4", "mail of a registration that had ended before", seen)
        self._must(serial not in seen.over_budget, "I5", f"issue {serial} is sent past the mailbox's budget", seen)
        dead = seen.superseded_at is not None and seen.superseded_at <= attempt.began_at
        self._must(not dead, "I6", "mail of a registration that had been superseded before", seen)
        known = seen.handed_over_at.get(serial, attempt.began_at + 1) <= attempt.began_at
        self._must(not known, "I5", f"issue {serial} is sent again after its hand-over was recorded", seen)

    def _duplicates(self) -> None:
        for (registration_id, serial), copies in self.copies.items():
            clear = [copy for copy in copies if not copy.attempt.ambiguous]
            seen = self.seen[registration_id]
            times = [round(copy.at, 3) for copy in copies]
            back = len(seen.bounces.get(serial, ()))
            self._must(len(copies) <= COPIES_CAP + back, "I5", f"issue {serial} sent {len(copies)} times", seen)
            self._must(
                len(clear) <= 1 + back, "I5", f"issue {serial} sent {len(copies)} times without need: {times}", seen
            )
        notices: dict[UUID, list[float]] = {}
        for (registration_id, _), copies in self.copies.items():
            owner = self.seen[registration_id].duplicate_of
            if owner is not None:
                notices.setdefault(owner, []).extend(copy.at for copy in copies if not copy.attempt.ambiguous)
        interval = self._policy.notice_interval.total_seconds()
        for owner, moments in notices.items():
            moments.sort()
            near = any(later - earlier < interval - 60 for earlier, later in pairwise(moments))
            self._must(not near, "I5", f"two notices within a day: {moments}", self.seen[owner])

    def ends(self) -> Counter[str]:
        """How the registrations ended."""
        return Counter(seen.reason or seen.status for seen in self.seen.values())

    def most_copies(self) -> int:
        return max(map(len, self.copies.values()), default=0)

    # --- Every answer -------------------------------------------------------------------------

    def on_wrong_code(self, registration_id: UUID) -> None:
        """A client was told `WrongCode`: that guess must be in the log."""
        self.wrong_code_answers[registration_id] += 1
        counted = sum(self.seen[registration_id].rejections.values())
        told = self.wrong_code_answers[registration_id] <= counted
        self._must(told, "I7", "a guess was answered and not counted", self.seen[registration_id])

    def on_proven(self, registration_id: UUID) -> None:
        """A client was told that its code was right."""
        seen = self.seen.get(registration_id)
        self._must(seen is not None and seen.verified, "I1", "an answer about what is not in the log", seen)

    def on_answer(self, registration_id: UUID) -> None:
        self._must(registration_id in self.seen, "I1", f"{registration_id} was answered and is not in the log")

    # --- Every report of a bounce -------------------------------------------------------------

    def on_report(self, registration_id: UUID, serial: int, kind: str) -> None:
        """It is going to be told: from now on it may be in the log."""
        self._reported.add((registration_id, serial, kind))

    def on_report_taken(self, registration_id: UUID, serial: int, kind: str) -> None:
        """Whoever told it was answered that it is recorded, or of no interest."""
        seen = self.seen[registration_id]
        ends = seen.status != "PENDING" or seen.revoked or seen.discarded or seen.superseded_at is not None
        matters = serial == seen.serial and serial not in seen.withheld | seen.locked and not ends
        lost = kind == "hard" and matters and True not in seen.bounces.get(serial, ())
        self._must(not lost, "bounces", f"that issue {serial} came back was taken, and is not recorded", seen)

    # --- When it should be quiet --------------------------------------------------------------

    def after_healing(self) -> None:
        """Long enough after the last fault for every retry: whoever still waits has a mail."""
        self._must(not self._database.parked, "I4", f"parked: {self._database.parked[:3]}")
        for seen in self.seen.values():
            if seen.awaits_invitation:
                continue
            if seen.status == "PENDING" and not seen.discarded and not seen.revoked:
                back = True in seen.bounces.get(seen.serial, ())
                self._must(not back, "bounces", f"issue {seen.serial} came back for good, and nothing followed", seen)
                handed = seen.serial in seen.handed_over
                self._must(handed, "I4", f"issue {seen.serial} is still not handed over", seen)
                sent = (seen.registration_id, seen.serial) in self.copies or seen.serial in seen.withheld
                self._must(sent, "I4", f"issue {seen.serial} is in no mailbox", seen)
        self._duplicates()

    def at_the_end(self, *, stored: bool) -> None:
        """A day later nothing is open any more.

        Args:
            stored: fold the events in stored form, too; that takes a tenth of the run.
        """
        database = self._database
        self._must(not database.parked, "I4", f"parked: {database.parked[:3]}")
        for seen in self.seen.values():
            over = seen.status in {"ACTIVE", "CANCELLED"} or seen.awaits_invitation
            self._must(over, "I4", f"is still {seen.status}", seen)
            saga = database.states.get(MailSaga.stream_id(seen.registration_id))
            assert saga is None or isinstance(saga, MailSaga)
            ended = saga is None if seen.imported and not seen.serial else saga is not None and saga.ended
            self._must(ended, "I4", "its saga has not ended", seen)
            holds = self.holders.get(seen.claim_id) == seen.registration_id
            self._must(holds == (seen.status == "ACTIVE"), "claims", f"{seen.status}, holds {holds}", seen)
            kept = seen.registration_id in database.keys
            self._must(kept != seen.erased, "claims", f"erased {seen.erased}, but its key is kept {kept}", seen)
        self._must(not database.looks(), "I4", "a deadline that nobody looks at is left")
        self._duplicates()
        self._folds(stored=stored)

    def _folds(self, *, stored: bool) -> None:
        codec = EventCodec()
        for stream_id, events in self._database.streams.items():
            state = self._database.states[stream_id]
            fold: Any = None
            for recorded in events:
                event = recorded
                if stored:
                    written = codec.encode(event)
                    event = codec.decode(stream_id, written.originator_version, written.topic, written.state)
                fold = event.mutate(fold)
            self._must(vars(fold) == vars(copy_of(state)), "I8", f"a fold of {stream_id} is not its state")


def note_end(attempt: Attempt, now: float, *, outcome_recorded: bool) -> None:
    """The worker is done with a request."""
    attempt.over = True
    if attempt.copies and not outcome_recorded and attempt.ambiguous is None:
        attempt.ambiguous = "recording failed"
    if now - attempt.began > LEASE and attempt.ambiguous is None:
        attempt.ambiguous = "lease over"
