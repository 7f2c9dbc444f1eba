"""KeptAnswer: what a request with an Idempotency-Key was answered, for those who ask again."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from eventsourcing.domain import Aggregate
from eventsourcing.utils import register_topic

from domain.streams import begin


class KeptAnswer(Aggregate, created_event_name="AnswerKept"):
    """One such answer, in the commit of what the request did. Its id follows from the key: of two requests with one key
    the store lets one through."""

    class AnswerKept(Aggregate.Created):
        """The request `request` was answered so.

        `registration_id`: whom or what the answer is about; None: several. `fingerprint`: keyed hash of what was asked;
        "" for a right code, of which nothing is stored: that of issue `serial`. `status`: as the answer had it.
        `attempts_left`: only after a wrong code. `details`: what else was told, as the one who asks writes it.
        """

        TOPIC = "kept_answer.kept"
        request: str
        registration_id: str | None
        fingerprint: str
        serial: int | None
        status: str | None
        attempts_left: int | None
        details: list[str]

    def __init__(
        self,
        request: str,
        registration_id: str | None,
        fingerprint: str,
        serial: int | None,
        status: str | None,
        attempts_left: int | None,
        details: list[str],
    ) -> None:
        self.request = request
        self.subject_id = None if registration_id is None else UUID(registration_id)
        self.fingerprint = fingerprint
        self.serial = serial
        self.status = status
        self.attempts_left = attempts_left
        self.details = tuple(details)

    @classmethod
    def keep(
        cls,
        *,
        answer_id: UUID,
        request: str,
        subject_id: UUID | None,
        fingerprint: str,
        serial: int | None = None,
        status: str | None = None,
        attempts_left: int | None = None,
        details: Sequence[str] = (),
        now: datetime,
    ) -> KeptAnswer:
        """Keep it; no other answer has this id."""
        return begin(
            cls,
            cls.AnswerKept,
            name="kept_answer",
            stream_id=answer_id,
            now=now,
            request=request,
            registration_id=None if subject_id is None else str(subject_id),
            fingerprint=fingerprint,
            serial=serial,
            status=status,
            attempts_left=attempts_left,
            details=list(details),
        )


register_topic("kept_answer", KeptAnswer)
