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
        """An operator's command had an effect: the events that follow in the same commit, or a change of keys.

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
        return begin(
            cls,
            cls.OperatorActed,
            name="operator_act",
            stream_id=uuid5(_NAMESPACE, f"{first.originator_id} {first.originator_version}"),
            now=first.timestamp,
            act=act,
            registration_id=str(registration_id) if registration_id else None,
            reason=reason,
        )

    @staticmethod
    def stream_id_of_key(key_id: str) -> UUID:
        """The stream of the change to a key, which is made once."""
        return uuid5(_NAMESPACE, f"key {key_id}")

    @classmethod
    def key_changed(cls, *, act: str, key_id: str, reason: str | None, now: datetime) -> OperatorAct:
        """Record that the service has begun to use another key. What that changes is not in the log."""
        return begin(
            cls,
            cls.OperatorActed,
            name="operator_act",
            stream_id=cls.stream_id_of_key(key_id),
            now=now,
            act=act,
            registration_id=None,
            reason=reason,
        )

    @staticmethod
    def stream_id_of_read(read_id: UUID, registration_id: UUID) -> UUID:
        """The stream of what one look with this id showed of one registration."""
        return uuid5(read_id, registration_id.bytes.hex())

    @classmethod
    def read(cls, *, read_id: UUID, act: str, registration_id: UUID, reason: str | None, now: datetime) -> OperatorAct:
        """Record that the person behind this registration was shown in clear."""
        return begin(
            cls,
            cls.PersonalDataRead,
            name="operator_act",
            stream_id=cls.stream_id_of_read(read_id, registration_id),
            now=now,
            act=act,
            registration_id=str(registration_id),
            reason=reason,
        )


register_topic("operator_act", OperatorAct)
