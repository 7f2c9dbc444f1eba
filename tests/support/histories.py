"""A long log as the service would have written it, for tests and measurements: at random, but the same every time."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from uuid import UUID, uuid5

from eventsourcing.domain import Aggregate

from application.commands import (
    ActivateAccount,
    CancelRegistration,
    Command,
    ReleaseEmail,
    ReplaceStaleCode,
    RevokeOtp,
)
from application.mail_saga import DeadlineReached, react
from application.ports import Context
from domain.email_claim import ClaimId, EmailClaim
from domain.errors import NotHandedOver, Refused
from domain.kept_answer import KeptAnswer
from domain.mail_outcome import Bounce, CancelReason, DispatchFailure, HandOver, MailFailure
from domain.mail_saga import MailSaga
from domain.mailbox import Mailbox, MailboxId
from domain.operator_act import OperatorAct
from domain.parked_retry import ParkedRetry
from domain.password_checks import PasswordChecks
from domain.policy import Policy
from domain.rebuild import Rebuild
from domain.recorded import AnyEvent, Position
from domain.registration import Registration
from domain.sign_up import KnownAddress, import_user, invite, prove, renew_code, reopen, sign_up
from domain.stray_message import StrayMessage
from domain.user_import import Counts, UserImport
from tests.support.facts import CLAIM, MAILBOX, T0

_LIKELIHOODS = {
    "send": 30,
    "fail for now": 8,
    "fail for good": 3,
    "verify": 20,
    "guess": 6,
    "renew": 6,
    "retry": 4,
    "discard": 2,
    "cancel": 2,
    "erase": 3,
    "wait": 12,
}


class History:
    """Registrants, mail servers, operators and the saga, played with the real aggregates and the saga's real rules.

    Attributes:
        events: in order, each with its context.
    """

    def __init__(self, *, seed: int, registrations: int) -> None:
        self.events: list[tuple[AnyEvent, Context]] = []
        self._random = random.Random(seed)  # noqa: S311 - repeatable
        self._addresses = max(1, registrations // 2)  # so that many are tried twice
        self._now = T0
        self._policy = Policy()
        self._registrations: dict[UUID, Registration] = {}
        self._claims: dict[UUID, EmailClaim] = {}
        self._mailboxes: dict[UUID, Mailbox] = {}
        self._sagas: dict[UUID, MailSaga] = {}
        self._latest: dict[UUID, Position] = {}
        self._strays: list[StrayMessage] = []
        self._undone: list[Registration] = []
        for number in range(registrations):
            if number % 10 == 0:
                self._find_a_stray()
            self._act("client", self._register)
            for _ in range(11):
                self._now += timedelta(seconds=self._random.expovariate(1 / 20))
                self._live(self._random.choice(list(self._registrations.values())))
        self._rebuild("mail", "swapped")
        self._rebuild("audit", "aborted")
        self._act("operator", lambda: [self._dropped_version(), self._parked_retry()])
        self._act("operator", self._looked_at)
        self._act("operator", self._another_password)
        self._act("bounce-report", self._came_back)
        self._act("bounce-report", self._complained)
        self._act("operator", self._take_over)
        self._act("operator", self._invite)
        self._act("operator", self._take_over_an_applicant)
        self._act("client", lambda: self._prove(self._claimants()[0]))

    def _act(self, actor: str, act: Callable[[], Sequence[Aggregate]]) -> None:
        """Somebody acts, if the rules allow it, and the saga does what follows."""
        with suppress(Refused):
            self._settle(self._record(Context(actor, self._any_id()), *act()))

    def _settle(self, unseen: list[tuple[AnyEvent, Position]]) -> None:
        while unseen:
            event, position = unseen.pop(0)
            saga, commands = react(self._sagas.get(event.originator_id), event, self._now, self._policy)
            if saga is not None:
                self._sagas[event.originator_id] = saga
                unseen += self._follow(saga, commands, because_of=position)

    def _follow(
        self, saga: MailSaga, commands: Sequence[Command], *, because_of: Position
    ) -> list[tuple[AnyEvent, Position]]:
        context = Context("mail-saga", self._any_id(), causation_position=because_of, trace="00-trace-span-01")
        return self._record(context, *[self._run(command) for command in commands], saga)

    def _record(self, context: Context, *aggregates: Aggregate) -> list[tuple[AnyEvent, Position]]:
        """Answers what the saga has to see of it, with its positions."""
        events = [event for aggregate in aggregates for event in aggregate.collect_events()]
        placed = list(enumerate(events, start=len(self.events) + 1))
        self.events += [(event, context) for event in events]
        self._latest |= {event.originator_id: position for position, event in placed}
        return [(event, position) for position, event in placed if event.originator_id in self._registrations]

    def _run(self, command: Command) -> Aggregate:
        if isinstance(command, ReleaseEmail):
            claim = self._claims.get(command.claim_id)
            if claim is None:
                return self._registrations[command.registration_id]
            claim.release(registration_id=command.registration_id, now=self._now)
            return claim
        assert isinstance(command, ActivateAccount | RevokeOtp | CancelRegistration | ReplaceStaleCode)
        registration = self._registrations[command.registration_id]
        match command:
            case ActivateAccount():
                registration.activate(now=self._now)
            case RevokeOtp():
                registration.revoke_code(now=self._now)
            case CancelRegistration(reason=reason):
                with suppress(Refused):
                    registration.cancel(reason=reason, now=self._now)
                    self._undone.append(registration)
            case ReplaceStaleCode(serial=serial):
                registration.replace_stale_code(serial=serial, now=self._now)
        return registration

    # --- What can happen ----------------------------------------------------------------------

    def _register(self, address: str | None = None) -> Sequence[Aggregate]:
        address = address or f"address {self._random.randrange(self._addresses)}"
        claim_id, mailbox_id = ClaimId(uuid5(CLAIM, address)), MailboxId(uuid5(MAILBOX, address))
        outcome = sign_up(
            address=self._known_address(claim_id),
            mailbox_id=mailbox_id,
            mailbox=self._mailboxes.get(mailbox_id),
            earlier=None,
            registration_id=self._any_id(),
            fingerprint=str(self._any_id()),
            personal_data=f"sealed {address}",
            locale=self._random.choice(["en", "de"]),
            network=self._any_network(),
            now=self._now,
            policy=self._policy,
        )
        registration = outcome.registration
        self._registrations[registration.id] = registration
        if outcome.changed and claim_id not in self._claims and self._random.random() < 0.5:
            # As release 0.1.0 did it, which claimed an address as soon as it was registered.
            claim = EmailClaim.begin(claim_id=claim_id, registration_id=registration.id, now=self._now)
            return self._kept([*outcome.changed, claim])
        return self._kept(outcome.changed)

    def _kept(self, changed: Sequence[Aggregate]) -> Sequence[Aggregate]:
        self._claims |= {one.id: one for one in changed if isinstance(one, EmailClaim)}
        self._mailboxes |= {one.id: one for one in changed if isinstance(one, Mailbox)}
        return changed

    def _known_address(self, claim_id: ClaimId) -> KnownAddress:
        claim = self._claims.get(claim_id)
        holder = None if claim is None or claim.holder is None else self._registrations[claim.holder]
        applicants = [one for one in self._registrations.values() if one.claim_id == claim_id and one is not holder]
        return KnownAddress(claim_id, claim, holder, tuple(applicants))

    def _prove(self, registration: Registration) -> Sequence[Aggregate]:
        address = self._known_address(registration.claim_id)
        proof = prove(registration, address, offered="1", expected="1", now=self._now, policy=self._policy)
        return self._kept(proof.changed)

    def _renew(self, registration: Registration) -> Sequence[Aggregate]:
        mailbox = None if registration.mailbox_id is None else self._mailboxes[registration.mailbox_id]
        network = self._any_network()
        return self._kept(renew_code(registration, mailbox, network=network, now=self._now, policy=self._policy))

    def _any_network(self) -> str:
        return self._random.choice(["0badcafe", "deadbeef"])

    def _live(self, registration: Registration) -> None:
        """One thing happens to a registration."""
        now, policy = self._now, self._policy

        def by(actor: str, act: Callable[[], object]) -> None:
            def change() -> Sequence[Aggregate]:
                act()
                return [registration]

            self._act(actor, change)

        match self._random.choices(list(_LIKELIHOODS), list(_LIKELIHOODS.values()))[0]:
            case "send":
                self._act("mail-worker", lambda: self._send(registration))
            case "fail for now":
                failure: MailFailure = self._random.choice(["greylisted", "timeout", "connection"])
                by("mail-worker", lambda: self._fail(registration, failure, permanent=False))
            case "fail for good":
                by("mail-worker", lambda: self._fail(registration, "mailbox-unknown", permanent=True))
            case "verify":
                self._act("client", lambda: self._prove(registration))
            case "guess":
                for _ in range(self._random.choice([1, 2, 6])):
                    by("client", lambda: registration.verify(offered="0", expected="1", now=now, policy=policy))
            case "renew":
                self._act("client", lambda: self._renew(registration))
            case "retry":
                self._act("operator", lambda: self._retry(registration))
            case "discard":
                by("operator", lambda: registration.discard_mail(now=now))
            case "cancel":
                by("operator", lambda: registration.cancel(reason=CancelReason.OPERATOR, now=now))
            case "erase":
                by("operator", lambda: registration.erase(now=now))
            case "wait":
                self._look_again(self._sagas[registration.id])

    def _send(self, registration: Registration) -> Sequence[Aggregate]:
        # Sometimes the outcome of an earlier issue arrives late, or after the end.
        serial = max(1, registration.serial - self._random.choice([0, 0, 0, 0, 1]))
        owner = None if registration.duplicate_of is None else self._registrations[registration.duplicate_of]
        of_owner = owner is not None and not owner.may_notify_owner(self._now, self._policy)
        if of_owner or registration.withholds_mail(serial):
            registration.withhold_mail(serial=serial, now=self._now)
            return [registration]
        before = registration.version
        registration.record_dispatched(
            serial=serial,
            hand_over=HandOver(
                provider=self._random.choice(["a.example:25", "b.example:25"]),
                attempts=self._random.randint(1, 3),
                reply_code=250,
            ),
            now=self._now,
        )
        if owner is not None and registration.version > before:
            owner.record_owner_notified(duplicate_id=registration.id, now=self._now)
        return [registration, *([owner] if owner is not None else [])]

    def _retry(self, registration: Registration) -> Sequence[Aggregate]:
        """An operator has this one's mail retried, or that of the latest one that was undone."""
        if self._undone and self._random.random() < 0.5:
            registration = self._undone.pop()
        if registration.may_be_reopened:
            reopen(registration, self._known_address(registration.claim_id), now=self._now)
        else:
            registration.retry_mail(now=self._now)
        return [registration]

    def _fail(self, registration: Registration, failure: MailFailure, *, permanent: bool) -> None:
        registration.record_dispatch_failed(
            serial=registration.serial,
            failure=DispatchFailure(
                failure,
                permanent=permanent,
                provider="a.example:25",
                attempts=1 if permanent else 3,
                reply_code=550 if permanent else None,
                reply_status="5.1.1" if permanent else None,
                outcome_unknown=failure == "connection",
            ),
            now=self._now,
        )

    def _find_a_stray(self) -> None:
        """A foreign message is among the dead letters; some day an operator has seen the one before."""
        if self._strays and self._random.random() < 0.5:
            self._act("operator", lambda: self._discarded(self._strays.pop()))
        self._strays.append(
            StrayMessage.keep(
                digest=f"{self._random.getrandbits(256):064x}",
                reason=self._random.choice(["not-a-mail-request", "too-long", "unknown-registration"]),
                died_of=self._random.choice(["rejected", "unknown"]),
                size=self._random.randrange(10_000),
                content_type=self._random.choice([None, "application/json"]),
                fields=self._random.choice(["", "kind,serial"]),
                other_fields=self._random.randrange(3),
                now=self._now,
            )
        )
        self._act("dead-letter-consumer", lambda: self._strays[-1:])

    def _discarded(self, stray: StrayMessage) -> Sequence[Aggregate]:
        stray.discard(now=self._now)
        return [stray]

    def _rebuild(self, read_model: str, end: str) -> None:
        """An operator rebuilds a read model, and then goes back; or gives up."""
        rebuild = Rebuild.begin(rebuild_id=self._any_id(), read_model=read_model, now=self._now)
        if end == "swapped":
            rebuild.swap(position=len(self.events), differences=0, decision="equal", now=self._now)
            rebuild.roll_back(position=len(self.events), now=self._now)
        else:
            rebuild.abort(now=self._now)
        self._act("operator", lambda: [rebuild])

    def _dropped_version(self) -> Rebuild:
        position = len(self.events)
        return Rebuild.drop_version(rebuild_id=self._any_id(), read_model="mail", position=position, now=self._now)

    def _looked_at(self) -> Sequence[Aggregate]:
        """The last person, and then did something about them."""
        registration = list(self._registrations.values())[-1]
        read = OperatorAct.read(
            read_id=uuid5(CLAIM, "read"),
            act="show-registration",
            registration_id=registration.id,
            reason=None,
            now=self._now,
        )
        registration.record_owner_notified(duplicate_id=registration.id, now=self._now)
        acted = OperatorAct.acted(
            act="retry-mail",
            registration_id=registration.id,
            reason="ticket 4711",
            effects=registration.pending_events[-1:],
        )
        kept = KeptAnswer.keep(
            answer_id=uuid5(CLAIM, "kept"),
            request="retry-mail",
            subject_id=registration.id,
            fingerprint="5f" * 32,
            status=registration.status,
            now=self._now,
        )
        return read, acted, registration, kept

    def _another_password(self) -> Sequence[Aggregate]:
        """Somebody guesses at an account's password, which is then set anew."""
        account = next((one for one in self._registrations.values() if one.is_proven), None)
        if account is None:  # hardly anybody has registered
            return []
        guessed = PasswordChecks.tell(
            checks_id=uuid5(CLAIM, "checks"),
            registration_id=account.id,
            failed=3,
            since=self._now - timedelta(minutes=1),
            now=self._now,
        )
        account.set_password(personal_data="another", now=self._now)
        account.rehash_password(personal_data="stronger", now=self._now)
        return guessed, account

    def _came_back(self) -> Sequence[Aggregate]:
        """A mail that somebody waits for, where there is one."""
        waiting = (one for one in self._registrations.values() if one.is_pending and not one.is_being_undone)
        registration = next((one for one in waiting if one.serial in one.handed_over_at), None)
        if registration is None:
            raise NotHandedOver
        bounce = Bounce("mailbox-unknown", permanent=True, reply_status="5.1.1", reported_by="dsn")
        registration.record_bounced(serial=registration.serial, bounce=bounce, now=self._now)
        return [registration]

    def _complained(self) -> Sequence[Aggregate]:
        registration = next(iter(self._registrations.values()))
        registration.record_complained(serial=1, reported_by="ses", now=self._now)
        return [registration]

    def _take_over(self) -> Sequence[Aggregate]:
        """An operator imports two users, of whom one is verified."""
        run = UserImport.begin(import_id=self._any_id(), now=self._now)
        run.end(counts=Counts(accounts=1, waiting=1), skipped=0, now=self._now)
        return [run, *self._taken_over("imported True", verified=True), *self._taken_over("imported False")]

    def _taken_over(self, address: str, *, verified: bool = False) -> Sequence[Aggregate]:
        changed = import_user(
            self._known_address(ClaimId(uuid5(CLAIM, address))),
            registration_id=self._any_id(),
            personal_data="sealed",
            locale="en",
            verified=verified,
            now=self._now,
        )
        self._registrations |= {one.id: one for one in changed if isinstance(one, Registration)}
        return self._kept(changed)

    def _take_over_an_applicant(self) -> Sequence[Aggregate]:
        """A user waits who has signed up by themselves just before."""
        return [*self._register("imported and signed up"), *self._taken_over("imported and signed up")]

    def _claimants(self) -> list[Registration]:
        claim_id = uuid5(CLAIM, "imported and signed up")
        return [one for one in self._registrations.values() if one.claim_id == claim_id]

    def _invite(self) -> Sequence[Aggregate]:
        waiting = next(one for one in self._registrations.values() if one.awaits_invitation)
        mailbox_id = MailboxId(uuid5(MAILBOX, "imported"))
        address = self._known_address(waiting.claim_id)
        return self._kept(
            invite(waiting, address, mailbox_id, None, network="0badcafe", now=self._now, policy=self._policy)
        )

    def _parked_retry(self) -> ParkedRetry:
        return ParkedRetry.ask(retry_id=self._any_id(), follower="mail", parked_stream=self._any_id(), now=self._now)

    def _look_again(self, saga: MailSaga) -> None:
        """The saga's deadline comes, for this registration alone: the others' time stands still."""
        at: datetime | None = saga.look_again_at
        if at is not None:
            due = DeadlineReached(saga.registration_id)
            _, commands = react(saga, due, max(self._now, at), self._policy)
            self._settle(self._follow(saga, commands, because_of=self._latest[saga.id]))

    def _any_id(self) -> UUID:
        return UUID(int=self._random.getrandbits(128))
