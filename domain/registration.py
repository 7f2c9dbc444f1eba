"""Registration: one person's sign-up, from the first request until it is active or undone.

Over 400 lines, because the rules of one aggregate are best read together: first the events, a third of the file and
never changed once written, then the queries, the commands, and last how each event changes the state.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timedelta
from enum import StrEnum
from hmac import compare_digest
from typing import Any
from uuid import UUID

from eventsourcing.domain import Aggregate, event
from eventsourcing.utils import register_topic

from domain.email_claim import ClaimId
from domain.errors import (
    CodeExpired,
    CodeLocked,
    NotAnAccount,
    NotHandedOver,
    NotPending,
    Refused,
    TooManyRequests,
    WrongCode,
)
from domain.mail_outcome import Bounce, CancelReason, DispatchFailure, HandOver, IssueReason, MailKind
from domain.mailbox import MailboxId
from domain.policy import Policy
from domain.streams import begin, record
from domain.uuids import uuid_of_text

BEGUN = 2
"""Version of a registration that was just begun."""

PERSONAL_FIELDS = frozenset({"personal_data", "fingerprint"})
"""Fields of events that are about the person, sealed or hashed: never shown outside the log."""


class Status(StrEnum):
    PENDING = "PENDING"
    VERIFIED = "VERIFIED"
    ACTIVE = "ACTIVE"
    CANCELLED = "CANCELLED"


class Registration(Aggregate, created_event_name="UserRegistered"):
    """One person's sign-up, until it is active or undone.

    PENDING → VERIFIED → ACTIVE, or CANCELLED, from where an operator may reopen it; an imported user whose address was
    verified elsewhere is ACTIVE at once. A public method is a command: it
    checks, then records. One whose effect already holds records nothing.

    Several registrations for one address may be pending side by side, each with its own code; who proves the address
    first has it, and the others are superseded. A registration for an address that an account already holds is a
    `duplicate`. Seen from outside, both behave like any other, but no code ever matches; a duplicate's mail is a notice
    to the owner of the account, and a superseded one's is withheld.
    """

    class Event(Aggregate.Event):
        """What happens to a registration; not named here, the library would make each class a second time."""

    class UserRegistered(Aggregate.Created):
        """Somebody asked for an account.

        `personal_data` is sealed with the person's own key. `claim_id` is the stream of the address's claim (a keyed
        hash), `fingerprint` a keyed hash of the whole request, `duplicate_of` the id of the account that holds the
        address.
        """

        TOPIC = "registration.user_registered"
        claim_id: str
        fingerprint: str
        personal_data: str
        locale: str
        duplicate_of: str | None

    class UserImported(Aggregate.Created):
        """An operator brought this user from another system.

        `verified`: that system has verified the address, so this is an account from here on. Otherwise it waits,
        without a code, until its user is invited. The other fields are those of `UserRegistered`.
        """

        TOPIC = "registration.user_imported"
        claim_id: str
        personal_data: str
        locale: str
        verified: bool

        def apply(self, aggregate: Any) -> None:
            if self.verified:
                aggregate.status = Status.ACTIVE
                aggregate.proven_version = self.originator_version

    class UserInvited(Event):
        """An operator has an imported user asked by mail to verify the address: here, the registration begins.

        It repeats what `UserImported` said, for the mail saga, which begins here, too.
        """

        TOPIC = "registration.user_invited"
        claim_id: str

    class OtpIssued(Event):
        """A code was issued; the previous one is no longer valid. `reason`: an `IssueReason`.

        `withheld`: its mail is past the silent budget of the mailbox `mailbox_id`, and will not be sent. Release 0.1.0,
        which kept no budget, recorded neither (None); of what it began, `mailbox_id` stays unknown ("").
        """

        TOPIC = "registration.otp_issued"
        class_version = 2
        serial: int
        reason: str
        withheld: bool | None
        mailbox_id: str | None

        @staticmethod
        def upcast_v1_v2(state: dict[str, Any]) -> None:
            state["withheld"] = None
            state["mailbox_id"] = None

        # Not by `@event`, which takes five times as long: every stream has one.
        def apply(self, aggregate: Any) -> None:
            aggregate.serial = self.serial
            if self.mailbox_id:  # a code that release 0.1.0 issued tells none
                aggregate.mailbox_id = MailboxId(uuid_of_text(self.mailbox_id))
            if self.withheld:
                aggregate.withheld.add(self.serial)
            aggregate.issued_at = self.timestamp
            if self.reason == IssueReason.REQUESTED:
                aggregate.requested_at.append(self.timestamp)
            aggregate.rejections = 0
            aggregate.locked = False

    class EmailDispatched(Event):
        """A mail server accepted the mail of this issue: a `HandOver`. `kind`: a `MailKind`."""

        TOPIC = "registration.email_dispatched"
        serial: int
        kind: str
        provider: str
        attempts: int
        reply_code: int

    class EmailWithheld(Event):
        """The mail of this issue is not sent. Seen from outside, it counts as handed over.

        Because it is past the mailbox's silent budget (`OtpIssued.withheld`); or nobody could use its code, because
        another registration has proven the address (`RegistrationSuperseded`); or it would have been a notice, and the
        owner of the address already got one within the last day.
        """

        TOPIC = "registration.email_withheld"
        serial: int

    class EmailDispatchFailed(Event):
        """No mail server accepted the mail of this issue: a `DispatchFailure`. `kind`: a `MailKind`.

        `request_position`: the position in the log of a request that became a dead letter in the broker; None if a mail
        server was called.
        """

        TOPIC = "registration.email_dispatch_failed"
        class_version = 3
        serial: int
        kind: str
        permanent: bool
        failure: str
        provider: str
        attempts: int
        reply_code: int | None
        reply_status: str | None
        outcome_unknown: bool
        circuit: str | None
        request_position: int | None

        @staticmethod
        def upcast_v1_v2(state: dict[str, Any]) -> None:
            state["request_position"] = None

        @staticmethod
        def upcast_v2_v3(state: dict[str, Any]) -> None:
            state["circuit"] = None

    class EmailBounced(Event):
        """The mail of this issue came back after a mail server had accepted it: a `Bounce`. `kind`: a `MailKind`.

        It counts as not handed over again, and may be sent once more.
        """

        TOPIC = "registration.email_bounced"
        serial: int
        kind: str
        failure: str
        permanent: bool
        reply_status: str | None
        reported_by: str

    class EmailComplained(Event):
        """Whoever got the mail of this issue has marked it as unwanted. `kind`: a `MailKind`.

        `reported_by`: see `Bounce`. The mailbox is sent no more, which its stream has, in this commit (`Mailbox`); what
        becomes of the registration, only its code and its time decide.
        """

        TOPIC = "registration.email_complained"
        serial: int
        kind: str
        reported_by: str

    class EmailRetryRequested(Event):
        """An operator asked to retry the mail now."""

        TOPIC = "registration.email_retry_requested"
        serial: int

    class EmailDiscarded(Event):
        """An operator gave up on the mail: the registration is to be undone."""

        TOPIC = "registration.email_discarded"
        serial: int

    class OwnerNotified(Event):
        """The owner of this account was notified by mail that somebody tried to register the address again."""

        TOPIC = "registration.owner_notified"
        duplicate_id: str

    class CodeRejected(Event):
        """A wrong code was submitted; `attempt` counts from 1 within the issue."""

        TOPIC = "registration.code_rejected"
        serial: int
        attempt: int

    class CodeLocked(Event):
        """No tries are left for the code of this issue."""

        TOPIC = "registration.code_locked"
        serial: int

    class EmailVerified(Event):
        """The registrant proved that they can read mail sent to the address."""

        TOPIC = "registration.email_verified"
        serial: int

    class AccountActivated(Event):
        """The account may be used."""

        TOPIC = "registration.account_activated"

    class OtpRevoked(Event):
        """Compensation of `OtpIssued`."""

        TOPIC = "registration.otp_revoked"
        serial: int

    class RegistrationCancelled(Event):
        """Compensation of `UserRegistered`. `reason`: a `CancelReason`."""

        TOPIC = "registration.registration_cancelled"
        reason: str

    class RegistrationSuperseded(Event):
        """Another registration, `by`, has proven the address, in this commit: no code of this one matches any more.

        Seen from outside it stays pending until its ordinary end, or its status would tell whoever began it that the
        address was proven just then. One that nobody was invited to is cancelled in this commit; where it was imported
        just when the other one was proven, in that of its invitation.
        """

        TOPIC = "registration.registration_superseded"
        by: str

    class RegistrationReopened(Event):
        """An operator has revived a registration that was undone although its registrant never got a mail.

        It repeats what `UserRegistered` said, for those who forgot it when the registration was cancelled.
        """

        TOPIC = "registration.registration_reopened"
        claim_id: str
        personal_data: str
        locale: str
        duplicate_of: str | None

    class PasswordSet(Event):
        """The account has another password from here on.

        `personal_data`: what `UserRegistered` said, with the new password's hash; sealed with the person's same key.
        """

        TOPIC = "registration.password_set"
        personal_data: str

    class PasswordRehashed(Event):
        """The account's password is the same, and its hash a stronger one. `personal_data`: as of `PasswordSet`."""

        TOPIC = "registration.password_rehashed"
        personal_data: str

    class PersonalDataErased(Event):
        """The person's key was destroyed in this commit; what was sealed with it cannot be read any more."""

        TOPIC = "registration.personal_data_erased"

    def __init__(
        self,
        claim_id: str,
        personal_data: str,
        locale: str,
        fingerprint: str = "",  # nobody asks for what is imported, and so nobody asks again
        duplicate_of: str | None = None,
    ) -> None:
        self.status = Status.PENDING
        self.claim_id = ClaimId(uuid_of_text(claim_id))
        self.fingerprint = fingerprint
        self.personal_data = personal_data
        self.locale = locale
        self.duplicate_of = UUID(duplicate_of) if duplicate_of else None
        self.serial = 0
        self.issued_at: datetime | None = None
        self.requested_at: list[datetime] = []
        self.handed_over_at: dict[int, datetime] = {}
        self.bounced: dict[int, bool] = {}
        self.complained: set[int] = set()
        self.dead_requests: set[int] = set()
        self.failed_version = 0
        self.rejections = 0
        self.locked = False
        self.locks = 0
        self.discarded = False
        self.revoked = False
        self.cancel_reason: str | None = None
        self.owner_notified_at: datetime | None = None
        self.erased = False
        self.mailbox_id: MailboxId | None = None
        self.withheld: set[int] = set()
        self.superseded_by: UUID | None = None
        self.proven_version = 0

    @classmethod
    def register(
        cls,
        *,
        registration_id: UUID,
        claim_id: ClaimId,
        fingerprint: str,
        personal_data: str,
        locale: str,
        duplicate_of: UUID | None,
        mailbox_id: MailboxId,
        withheld: bool,
        now: datetime,
    ) -> Registration:
        """Start a registration and issue its first code, whose mail is `withheld` or not."""
        registration = begin(
            cls,
            cls.UserRegistered,
            name="registration",
            stream_id=registration_id,
            now=now,
            claim_id=str(claim_id),
            fingerprint=fingerprint,
            personal_data=personal_data,
            locale=locale,
            duplicate_of=str(duplicate_of) if duplicate_of else None,
        )
        registration.mailbox_id = mailbox_id
        registration._issue(IssueReason.REGISTERED, withheld=withheld, now=now)
        return registration

    @classmethod
    def import_user(
        cls, *, registration_id: UUID, claim_id: ClaimId, personal_data: str, locale: str, verified: bool, now: datetime
    ) -> Registration:
        """Begin with somebody from another system: as an account if the address was `verified` there."""
        return begin(
            cls,
            cls.UserImported,
            name="registration",
            stream_id=registration_id,
            now=now,
            claim_id=str(claim_id),
            personal_data=personal_data,
            locale=locale,
            verified=verified,
        )

    def invite(self, *, mailbox_id: MailboxId, now: datetime) -> None:
        """Have an imported user sent a first code; only once."""
        if self.awaits_invitation:
            self.mailbox_id = mailbox_id
            record(self, Registration.UserInvited, now=now, claim_id=str(self.claim_id))
            self._issue(IssueReason.INVITED, withheld=False, now=now)

    # --- Queries ------------------------------------------------------------------------------

    @property
    def is_pending(self) -> bool:
        return self.status is Status.PENDING

    @property
    def awaits_invitation(self) -> bool:
        """Was it imported, and has it never had a code? Then no code matches, and there is no mail to be sent."""
        return self.is_pending and not self.serial and self.superseded_by is None

    @property
    def is_being_undone(self) -> bool:
        """It is to be undone, even if its cancellation is not recorded yet: its mails are not sent any more."""
        return self.discarded or self.revoked

    @property
    def is_proven(self) -> bool:
        """An account holds the address for good."""
        return self.status in {Status.VERIFIED, Status.ACTIVE}

    @property
    def can_be_proven(self) -> bool:
        """Does the right code verify it? Never that of a duplicate or a superseded one."""
        return self.duplicate_of is None and self.superseded_by is None

    @property
    def mail_kind(self) -> MailKind:
        """Whether its mails are codes or notices."""
        return MailKind.CODE if self.duplicate_of is None else MailKind.NOTICE

    @property
    def may_be_reopened(self) -> bool:
        """Was it undone because no mail could be sent, for whatever reason?"""
        undone = self.cancel_reason in {CancelReason.UNDELIVERABLE, CancelReason.EXPIRED}
        given_up = self.erased or self.superseded_by is not None
        return undone and not given_up and self.serial not in self.handed_over_at

    def lacks_mail(self, serial: int) -> bool:
        """Is this the current issue of a pending registration, and its mail not handed over yet?"""
        current = self.is_pending and not self.is_being_undone and serial == self.serial > 0
        return current and serial not in self.handed_over_at

    def wants_mail(self, serial: int) -> bool:
        """Is the mail of this issue still to be sent? Not if its code is locked: then a new code is due."""
        return self.lacks_mail(serial) and not self.locked

    def withholds_mail(self, serial: int) -> bool:
        """Is the mail of this issue not to be sent, though it is seen to be?"""
        return serial in self.withheld or self.superseded_by is not None

    @property
    def latest_try_failed(self) -> bool:
        """Is the last that happened to it a try of its mail that failed? When the next one is made is up to the
        saga."""
        return self.failed_version == self.version

    def may_notify_owner(self, now: datetime, policy: Policy) -> bool:
        """May the owner of this account be notified of a duplicate? Not again within `notice_interval`."""
        if not self.is_proven or self.erased:
            return False
        return self.owner_notified_at is None or now >= self.owner_notified_at + policy.notice_interval

    # --- Codes --------------------------------------------------------------------------------

    def may_be_verified(self, *, offered: str, expected: str, now: datetime, policy: Policy) -> bool:
        """Would `verify` verify it with this code, if nobody else has proven the address?"""
        # Compared even where no code ever matches, so that it takes the same time.
        matches = compare_digest(offered.encode(), expected.encode())
        # A code that nobody is sent can only be guessed, and of those there may be any number for one address.
        matches = matches and self.serial not in self.withheld
        awaited = self.is_pending and self.serial > 0
        return matches and awaited and self.can_be_proven and self._code_refused(now, policy) is None

    def verify(self, *, offered: str, expected: str, now: datetime, policy: Policy) -> Refused | None:
        """Verify the address with the code from the mail.

        Returns the refusal that the caller has to raise after the append: a wrong try is an event, and would be lost if
        it were raised here. None: the address is verified, now or since earlier.

        A code's lifetime starts with its hand-over to a mail server; a code not recorded as handed over cannot expire.
        """
        if self.is_proven:
            return None
        if not self.is_pending or not self.serial:  # or it has never had a code, and gets none by asking
            return NotPending()
        refused = self._code_refused(now, policy)
        if refused is not None:
            return refused
        if self.may_be_verified(offered=offered, expected=expected, now=now, policy=policy):
            self.trigger_event(Registration.EmailVerified, serial=self.serial, timestamp=now)
            return None
        self.trigger_event(Registration.CodeRejected, serial=self.serial, attempt=self.rejections + 1, timestamp=now)
        if self.rejections >= policy.otp_max_attempts:
            self.trigger_event(Registration.CodeLocked, serial=self.serial, timestamp=now)
            if self.locks >= policy.codes_locked:
                self.revoke_code(now=now)
                self.cancel(reason=CancelReason.GUESSED, now=now)
        return WrongCode(attempts_left=max(0, policy.otp_max_attempts - self.rejections))

    def _code_refused(self, now: datetime, policy: Policy) -> Refused | None:
        """Why no code can be tried at the moment, whatever it is."""
        if self.locked:
            return CodeLocked()
        handed_over_at = self.handed_over_at.get(self.serial)
        if self.revoked or (handed_over_at is not None and now >= handed_over_at + policy.otp_ttl):
            return CodeExpired()
        return None

    def check_new_code(self, *, now: datetime, policy: Policy) -> None:
        """Check that the registrant may have the code replaced.

        Raises:
            NotPending: there is nothing left to prove; or nobody has invited the user yet.
            TooManyRequests: within the cooldown of the last issue, or too many within the hour.
        """
        if not self.is_pending or self.is_being_undone or not self.serial:
            raise NotPending
        waits = [timedelta(0)]
        if self.issued_at is not None:
            waits.append(self.issued_at + policy.resend_cooldown - now)
        within_the_hour = [at for at in self.requested_at if at > now - timedelta(hours=1)]
        if len(within_the_hour) >= policy.resends_per_hour:
            waits.append(within_the_hour[-policy.resends_per_hour] + timedelta(hours=1) - now)
        if max(waits) > timedelta(0):
            raise TooManyRequests(retry_after=max(waits))

    def request_new_code(self, *, now: datetime, policy: Policy, withheld: bool = False) -> None:
        """Replace the code because the registrant asks for it; the mail of the new one is `withheld` or not.

        Raises:
            NotPending, TooManyRequests: see `check_new_code`.
        """
        self.check_new_code(now=now, policy=policy)
        self._issue(IssueReason.REQUESTED, withheld=withheld, now=now)

    def replace_stale_code(self, *, serial: int, now: datetime) -> None:
        """Replace the code of issue `serial`, which would be useless by the time its mail arrives.

        The mail of the new one takes the place of one that was never handed over, so it is not counted again.
        """
        if self.lacks_mail(serial):
            self._issue(IssueReason.STALE, withheld=serial in self.withheld, now=now)

    def _issue(self, reason: IssueReason, *, withheld: bool, now: datetime) -> None:
        record(
            self,
            Registration.OtpIssued,
            now=now,
            serial=self.serial + 1,
            reason=reason,
            withheld=withheld,
            mailbox_id=str(self.mailbox_id or ""),
        )

    # --- Mail ---------------------------------------------------------------------------------

    def record_dispatched(self, *, serial: int, hand_over: HandOver, now: datetime) -> None:
        """Record that a mail server accepted the mail of issue `serial`: a fact, whatever the registration's status."""
        if serial not in self.handed_over_at:
            self.trigger_event(
                Registration.EmailDispatched,
                serial=serial,
                kind=self.mail_kind,
                provider=hand_over.provider,  # not `asdict`, which nearly doubles the time of this method
                attempts=hand_over.attempts,
                reply_code=hand_over.reply_code,
                timestamp=now,
            )

    def withhold_mail(self, *, serial: int, now: datetime) -> None:
        """Do not send the mail of issue `serial`; the reasons are those of `EmailWithheld`."""
        if self.lacks_mail(serial):
            self.trigger_event(Registration.EmailWithheld, serial=serial, timestamp=now)

    def record_dispatch_failed(
        self, *, serial: int, failure: DispatchFailure, now: datetime, request_position: int | None = None
    ) -> None:
        """Record that the mail of issue `serial` could not be handed over; ignored once the mail is no longer wanted.

        A request that became a dead letter fails once, however many copies of it the broker has: the saga has seen the
        first. Two failed SMTP sessions are two failures.
        """
        if self.lacks_mail(serial) and request_position not in self.dead_requests:
            self.trigger_event(
                Registration.EmailDispatchFailed,
                serial=serial,
                kind=self.mail_kind,
                **asdict(failure),
                request_position=request_position,
                timestamp=now,
            )

    def record_bounced(self, *, serial: int, bounce: Bounce, now: datetime) -> None:
        """Record that the mail of issue `serial` came back; ignored once it makes no difference any more.

        One hand-over bounces once; only that it is permanent after all is news.

        Raises:
            NotHandedOver: that of the current mail is not recorded yet, and may be any moment.
        """
        if not self.is_pending or self.is_being_undone:
            return
        turned_permanent = bounce.permanent and self.bounced.get(serial) is False
        if serial in self.handed_over_at or turned_permanent:
            self.trigger_event(
                Registration.EmailBounced, serial=serial, kind=self.mail_kind, **asdict(bounce), timestamp=now
            )
        elif self.lacks_mail(serial) and serial not in self.bounced:
            raise NotHandedOver

    def record_complained(self, *, serial: int, reported_by: str, now: datetime) -> None:
        """Record that the mail of issue `serial` was marked as unwanted, whatever the registration's status."""
        if serial <= self.serial and serial not in self.complained:
            self.trigger_event(
                Registration.EmailComplained,
                serial=serial,
                kind=self.mail_kind,
                reported_by=reported_by,
                timestamp=now,
            )

    def record_owner_notified(self, *, duplicate_id: UUID, now: datetime) -> None:
        """Record that the owner was notified of the registration `duplicate_id`."""
        self.trigger_event(Registration.OwnerNotified, duplicate_id=str(duplicate_id), timestamp=now)

    def retry_mail(self, *, now: datetime) -> None:
        """Retry the current mail at an operator's request; records nothing if it was handed over already.

        Raises:
            NotPending: the registration has ended.
        """
        if not self.is_pending:
            raise NotPending
        if self.lacks_mail(self.serial):
            self.trigger_event(Registration.EmailRetryRequested, serial=self.serial, timestamp=now)

    def discard_mail(self, *, now: datetime) -> None:
        """Give up on the current mail at an operator's request; the saga undoes the registration.

        Records nothing if the mail was handed over already: the registrant may be about to enter its code.

        Raises:
            NotPending: the account is verified or active.
        """
        if self.is_proven:
            raise NotPending
        if self.lacks_mail(self.serial):
            self.trigger_event(Registration.EmailDiscarded, serial=self.serial, timestamp=now)

    # --- Password -----------------------------------------------------------------------------

    def set_password(self, *, personal_data: str, now: datetime) -> None:
        """Give the account another password, whose hash is in the sealed `personal_data`.

        Raises:
            NotAnAccount: its address is not verified, or it has ended.
        """
        if self._replaces(personal_data):
            self.trigger_event(Registration.PasswordSet, personal_data=personal_data, timestamp=now)

    def rehash_password(self, *, personal_data: str, now: datetime) -> None:
        """Keep a stronger hash of the same password.

        Raises:
            NotAnAccount: see `set_password`.
        """
        if self._replaces(personal_data):
            self.trigger_event(Registration.PasswordRehashed, personal_data=personal_data, timestamp=now)

    def _replaces(self, personal_data: str) -> bool:
        if not self.is_proven:
            raise NotAnAccount
        return personal_data != self.personal_data

    # --- Ends ---------------------------------------------------------------------------------

    def activate(self, *, now: datetime) -> None:
        """Activate the account once the address is verified."""
        if self.status is Status.VERIFIED:
            self.trigger_event(Registration.AccountActivated, timestamp=now)

    def revoke_code(self, *, now: datetime) -> None:
        """Revoke the code: it verifies nothing any more, and its mail is not sent."""
        if self.is_pending and self.serial and not self.revoked:
            self.trigger_event(Registration.OtpRevoked, serial=self.serial, timestamp=now)

    def cancel(self, *, reason: CancelReason, now: datetime) -> None:
        """Cancel the registration; its code is no longer valid. One that expires because it was superseded says so.

        Raises:
            NotPending: the account is verified or active.
        """
        if self.is_proven:
            raise NotPending
        if self.superseded_by is not None and reason is CancelReason.EXPIRED:
            reason = CancelReason.SUPERSEDED
        if self.is_pending:
            self.trigger_event(Registration.RegistrationCancelled, reason=reason, timestamp=now)

    def reopen(self, *, now: datetime) -> None:
        """Undo its cancellation at an operator's request: it is pending again, with a new code.

        Raises:
            NotPending: see `may_be_reopened`.
        """
        if not self.may_be_reopened:
            raise NotPending
        self.trigger_event(
            Registration.RegistrationReopened,
            claim_id=str(self.claim_id),
            personal_data=self.personal_data,
            locale=self.locale,
            duplicate_of=str(self.duplicate_of) if self.duplicate_of else None,
            timestamp=now,
        )
        self._issue(IssueReason.REOPENED, withheld=self.serial in self.withheld, now=now)

    def give_way(self, *, by: UUID, now: datetime) -> None:
        """Give way to the registration `by`, which has proven the address: no code of this one matches any more.

        A user who waits for an invitation ends with that: nobody else would end it, and nobody has its id, to learn
        from its status that the address was proven.
        """
        uninvited = self.awaits_invitation
        if self.is_pending and self.can_be_proven:
            self.trigger_event(Registration.RegistrationSuperseded, by=str(by), timestamp=now)
        if uninvited:
            self.cancel(reason=CancelReason.SUPERSEDED, now=now)

    def erase(self, *, now: datetime) -> None:
        """End the registration, whatever its status, and record that its personal data is destroyed."""
        self.revoke_code(now=now)
        if self.status is not Status.CANCELLED:
            self.trigger_event(Registration.RegistrationCancelled, reason=CancelReason.ERASED, timestamp=now)
        if not self.erased:
            self.trigger_event(Registration.PersonalDataErased, timestamp=now)

    # --- State changes: they run again on every replay, so they check nothing. They name the fields they use. ---

    @event(EmailDispatched)
    def _email_dispatched(self, serial: int, timestamp: datetime) -> None:
        self.handed_over_at[serial] = timestamp
        self.bounced.pop(serial, None)

    @event(EmailBounced)
    def _email_bounced(self, serial: int, permanent: bool, originator_version: int) -> None:
        self.handed_over_at.pop(serial, None)
        self.bounced[serial] = permanent
        if serial == self.serial:  # that an earlier one came back says nothing of the current one
            self.failed_version = originator_version

    @event(EmailComplained)
    def _email_complained(self, serial: int) -> None:
        self.complained.add(serial)

    @event(EmailWithheld)
    def _email_withheld(self, serial: int, timestamp: datetime) -> None:
        self.handed_over_at[serial] = timestamp

    @event(EmailDispatchFailed)
    def _email_dispatch_failed(self, request_position: int | None, originator_version: int) -> None:
        if request_position is not None:
            self.dead_requests.add(request_position)
        else:
            self.failed_version = originator_version

    @event(EmailDiscarded)
    def _email_discarded(self) -> None:
        self.discarded = True

    @event(OwnerNotified)
    def _owner_notified(self, timestamp: datetime) -> None:
        self.owner_notified_at = timestamp

    @event(CodeRejected)
    def _code_rejected(self, attempt: int) -> None:
        self.rejections = attempt

    @event(CodeLocked)
    def _code_locked(self) -> None:
        self.locked = True
        self.locks += 1

    @event(EmailVerified)
    def _email_verified(self, originator_version: int) -> None:
        self.status = Status.VERIFIED
        self.proven_version = originator_version

    @event(AccountActivated)
    def _account_activated(self) -> None:
        self.status = Status.ACTIVE

    @event(OtpRevoked)
    def _otp_revoked(self) -> None:
        self.revoked = True

    @event(RegistrationCancelled)
    def _registration_cancelled(self, reason: str) -> None:
        self.status = Status.CANCELLED
        self.cancel_reason = reason

    @event(RegistrationSuperseded)
    def _registration_superseded(self, by: str) -> None:
        self.superseded_by = UUID(by)

    @event(RegistrationReopened)
    def _registration_reopened(self) -> None:
        self.status = Status.PENDING
        self.cancel_reason = None
        self.revoked = False
        self.discarded = False

    @event(PasswordSet)
    def _password_set(self, personal_data: str) -> None:
        self.personal_data = personal_data

    @event(PasswordRehashed)
    def _password_rehashed(self, personal_data: str) -> None:
        self.personal_data = personal_data

    @event(PersonalDataErased)
    def _personal_data_erased(self) -> None:
        self.erased = True


BEGINNINGS = (Registration.UserRegistered, Registration.UserImported)
"""With what a registration's stream may begin."""

# A stable name instead of the class's path, which would become data in every first event.
register_topic("registration", Registration)
