"""OperatorAct: what an operator did or looked at, and why."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID, uuid5

from eventsourcing.domain import Aggregate
from eventsourcing.utils import register_topic

from domain.recorded import AnyEvent
from domain.streams import begin

_NAMESPACE = UUID("8f3c6a52-4b1d-5e77-9c20-6f70657261ac")


class OperatorAct(Aggregate, created_event_name="OperatorActed"):
    """One act of an operator that had an effect, or one look at a person's data in clear; a stream of its own."""

    class OperatorActed(Aggregate.Created):
        """An operator's command had an effect: the events that follow in the same commit, or none of them where the
        effect is outside of the log (a backup).

        `act` names the command, `registration_id` the registration that it is about, if it is about one; `reason` is
        what the operator said, without personal data.
        """

        TOPIC = "operator.acted"
        act: str
        registration_id: str | None
        reason: str | None

    class PersonalDataRead(Aggregate.Created):
        """An operator was shown the address and name of this registration in clear; `act` says where."""

        TOPIC = "operator.personal_data_read"
        act: str
        registration_id: str
        reason: str | None

    def __init__(self, act: str, registration_id: str | None, reason: str | None) -> None:
        self.act = act
        self.registration_id = registration_id
        self.reason = reason

    @classmethod
    def acted(
        cls, *, act: str, registration_id: UUID | None, reason: str | None, effects: Sequence[AnyEvent]
    ) -> OperatorAct:
        """Record the act that has these effects, of which there is at least one.

        The stream's id comes from the first of them, which is recorded once: so is the act.
        """
        first = effects[0]
        act_id = uuid5(_NAMESPACE, f"{first.originator_id} {first.originator_version}")
        return cls._begun(cls.OperatorActed, act_id, first.timestamp, act, registration_id, reason)

    @classmethod
    def outside(cls, *, act_id: UUID, act: str, reason: str | None, now: datetime) -> OperatorAct:
        """Record an act without an effect in the log; no other has this id."""
        return cls._begun(cls.OperatorActed, act_id, now, act, None, reason)

    @staticmethod
    def stream_id_of_read(read_id: UUID, registration_id: UUID) -> UUID:
        """The stream of what one look with this id showed of one registration."""
        return uuid5(read_id, registration_id.bytes.hex())

    @classmethod
    def read(cls, *, read_id: UUID, act: str, registration_id: UUID, reason: str | None, now: datetime) -> OperatorAct:
        """Record that the person behind this registration was shown in clear."""
        stream_id = cls.stream_id_of_read(read_id, registration_id)
        return cls._begun(cls.PersonalDataRead, stream_id, now, act, registration_id, reason)

    @classmethod
    def _begun(
        cls,
        event: type[OperatorActed | PersonalDataRead],
        stream_id: UUID,
        now: datetime,
        act: str,
        registration_id: UUID | None,
        reason: str | None,
    ) -> OperatorAct:
        about = None if registration_id is None else str(registration_id)
        return begin(
            cls, event, name="operator_act", stream_id=stream_id, now=now, act=act, registration_id=about, reason=reason
        )


register_topic("operator_act", OperatorAct)
