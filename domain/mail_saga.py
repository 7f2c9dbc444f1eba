"""MailSaga: what the process manager decided about one registration's mail, and when it looks again."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID, uuid5

from eventsourcing.domain import Aggregate, event
from eventsourcing.utils import register_topic

from domain.email_claim import ClaimId
from domain.mail_outcome import CancelReason, MailKind
from domain.streams import begin

_NAMESPACE = UUID("6f0f9c5e-0b0e-5c55-9d0a-6d61696c7361")


class MailSaga(Aggregate, created_event_name="MailSagaStarted"):
    """The process manager's memory of one registration; its rules are in `application.mail_saga`.

    Until it has ended there is always a `look_again_at`: nothing waits without a date.
    """

    class Event(Aggregate.Event):
        """What happens to a saga; not named here, the library would make each class a second time."""

    class MailSagaStarted(Aggregate.Created):
        """A registration was made; if it is still unverified at `ends_at`, it is undone. `kind`: a `MailKind`."""

        TOPIC = "mail_saga.started"
        registration_id: str
        claim_id: str
        kind: str
        ends_at: datetime

    class MailRequested(Event):
        """The mail of this issue is to be sent: the relay passes the request on.

        `issued_at` is when the code was issued, `request` counts the requests of this issue from 1.
        """

        TOPIC = "mail_saga.mail_requested"
        registration_id: str
        kind: str
        serial: int
        issued_at: datetime
        request: int
        look_again_at: datetime

    class RetryScheduled(Event):
        """The mail failed temporarily, or came back, and will be retried; `failures` counts over the whole
        registration."""

        TOPIC = "mail_saga.retry_scheduled"
        registration_id: str
        serial: int
        failures: int
        look_again_at: datetime

    class CodeFoundDead(Event):
        """The code was locked before its hand-over was recorded: to send its mail would be useless."""

        TOPIC = "mail_saga.code_found_dead"
        registration_id: str
        serial: int
        look_again_at: datetime

    class FreshCodeAsked(Event):
        """The code would have been stale on arrival; a new one was requested instead."""

        TOPIC = "mail_saga.fresh_code_asked"
        registration_id: str
        serial: int
        look_again_at: datetime

    class EndAwaited(Event):
        """A mail server has accepted the mail; the rest is up to the registrant."""

        TOPIC = "mail_saga.end_awaited"
        registration_id: str
        serial: int
        look_again_at: datetime

    class UndoDecided(Event):
        """The registration is to be undone; once its cancellation is in the log, the address is released."""

        TOPIC = "mail_saga.undo_decided"
        registration_id: str
        reason: str
        look_again_at: datetime

    class MailSagaReopened(Event):
        """The registration was reopened after its end; if it is still unverified at `ends_at`, it is undone."""

        TOPIC = "mail_saga.reopened"
        registration_id: str
        ends_at: datetime

    class MailSagaEnded(Event):
        """Nothing is left to do. `outcome`: "active", or the reason why the registration was undone."""

        TOPIC = "mail_saga.ended"
        registration_id: str
        outcome: str

    def __init__(self, registration_id: str, claim_id: str, kind: str, ends_at: datetime) -> None:
        self.registration_id = UUID(registration_id)
        self.claim_id = ClaimId(UUID(claim_id))
        self.kind = MailKind(kind)
        self.ends_at = ends_at
        self.look_again_at: datetime | None = ends_at
        self.serial = 0
        self.issued_at: datetime | None = None
        self.requests = 0
        self.failures = 0
        self.retry_due = False
        self.code_dead = False
        self.awaits_outcome = False
        self.undoing: CancelReason | None = None
        self.ended = False

    @staticmethod
    def stream_id(registration_id: UUID) -> UUID:
        """The saga's stream of a registration."""
        return uuid5(_NAMESPACE, registration_id.bytes.hex())

    @classmethod
    def start(
        cls, *, registration_id: UUID, claim_id: ClaimId, kind: MailKind, ends_at: datetime, now: datetime
    ) -> MailSaga:
        """Start the saga of a registration."""
        return begin(
            cls,
            cls.MailSagaStarted,
            name="mail_saga",
            stream_id=cls.stream_id(registration_id),
            now=now,
            registration_id=str(registration_id),
            claim_id=str(claim_id),
            kind=kind,
            ends_at=ends_at,
        )

    def request_mail(self, *, serial: int, issued_at: datetime, look_again_at: datetime, now: datetime) -> None:
        """Request the mail of issue `serial`, again if it was requested before."""
        self._note(
            MailSaga.MailRequested,
            kind=self.kind,
            serial=serial,
            issued_at=issued_at,
            request=self.requests + 1 if serial == self.serial else 1,
            look_again_at=min(look_again_at, self.ends_at),
            now=now,
        )

    def schedule_retry(self, *, look_again_at: datetime, now: datetime, untried: bool = False) -> None:
        """Record a failure and when to retry; a request fails once, however often its failure is reported.

        Args:
            untried: no mail server was called, so the failure does not count.
        """
        if self.retry_due:
            return
        self._note(
            MailSaga.RetryScheduled,
            serial=self.serial,
            failures=self.failures + (not untried),
            look_again_at=min(look_again_at, self.ends_at),
            now=now,
        )

    def note_dead_code(self, *, now: datetime) -> None:
        """Record that the current code cannot be used any more."""
        self._note(
            MailSaga.CodeFoundDead,
            serial=self.serial,
            look_again_at=self.look_again_at or self.ends_at,
            now=now,
        )

    def ask_fresh_code(self, *, look_again_at: datetime, now: datetime) -> None:
        """Record that a new code was requested; its `OtpIssued` leads to the request for its mail."""
        self._note(
            MailSaga.FreshCodeAsked,
            serial=self.serial,
            look_again_at=min(look_again_at, self.ends_at),
            now=now,
        )

    def await_end(self, *, now: datetime) -> None:
        """The mail has been handed over: look again at `ends_at`."""
        self._note(MailSaga.EndAwaited, serial=self.serial, look_again_at=self.ends_at, now=now)

    def undo(self, *, reason: CancelReason, look_again_at: datetime, now: datetime) -> None:
        """Decide to undo the registration."""
        self._note(MailSaga.UndoDecided, reason=reason, look_again_at=look_again_at, now=now)

    def reopen(self, *, ends_at: datetime, now: datetime) -> None:
        """Begin again, after the end."""
        self._note(MailSaga.MailSagaReopened, ends_at=ends_at, now=now)

    def end(self, *, outcome: str, now: datetime) -> None:
        """End the saga: nothing is left to do."""
        if not self.ended:
            self._note(MailSaga.MailSagaEnded, outcome=outcome, now=now)

    def _note(self, note: type[Aggregate.Event], *, now: datetime, **fields: Any) -> None:
        self.trigger_event(note, registration_id=str(self.registration_id), **fields, timestamp=now)

    @event(MailRequested)
    def _mail_requested(self, serial: int, issued_at: datetime, request: int, look_again_at: datetime) -> None:
        if serial != self.serial:
            self.code_dead = False
        self.serial = serial
        self.issued_at = issued_at
        self.requests = request
        self.retry_due = False
        self.awaits_outcome = True
        self.look_again_at = look_again_at

    @event(RetryScheduled)
    def _retry_scheduled(self, failures: int, look_again_at: datetime) -> None:
        self.failures = failures
        self.retry_due = True
        self.awaits_outcome = True  # also if it was handed over, and came back
        self.look_again_at = look_again_at

    @event(CodeFoundDead)
    def _code_found_dead(self) -> None:
        self.code_dead = True

    @event(FreshCodeAsked)
    def _fresh_code_asked(self, look_again_at: datetime) -> None:
        self.look_again_at = look_again_at

    @event(EndAwaited)
    def _end_awaited(self, look_again_at: datetime) -> None:
        self.awaits_outcome = False
        self.retry_due = False  # it was handed over after all
        self.look_again_at = look_again_at

    @event(UndoDecided)
    def _undo_decided(self, reason: str, look_again_at: datetime) -> None:
        self.undoing = CancelReason(reason)
        self.awaits_outcome = False
        self.look_again_at = look_again_at

    @event(MailSagaReopened)
    def _reopened(self, ends_at: datetime) -> None:
        self.ends_at = self.look_again_at = ends_at
        self.failures = 0
        self.retry_due = False
        self.undoing = None
        self.ended = False

    @event(MailSagaEnded)
    def _ended(self) -> None:
        self.ended = True
        self.awaits_outcome = False
        self.look_again_at = None


register_topic("mail_saga", MailSaga)
