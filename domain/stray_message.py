"""StrayMessage: a foreign message among the dead letters, recorded for inspection."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID, uuid5

from eventsourcing.domain import Aggregate, event
from eventsourcing.utils import register_topic

from domain.streams import begin

_NAMESPACE = UUID("2f1c7f3e-56b0-5d0a-8a3c-737472617973")


class StrayMessage(Aggregate, created_event_name="StrayMessageKept"):
    """What is known of a message that the service cannot process. The log contains nothing that its sender wrote: the
    message is identified by its digest and described in terms of our own."""

    class Event(Aggregate.Event):
        """What happens to a stray message; not named here, the library would make each class a second time."""

    class StrayMessageKept(Aggregate.Created):
        """A foreign message was taken from the dead letters.

        `reason` says why it is foreign, `died_of` why it became a dead letter; `fields` are those fields of a mail
        request that it has, separated by commas, `other_fields` counts its other top-level fields; `size` is in bytes.
        """

        TOPIC = "stray_message.kept"
        digest: str
        reason: str
        died_of: str
        size: int
        content_type: str | None
        fields: str
        other_fields: int

    class StrayMessageDiscarded(Event):
        """An operator has seen it and does not need it any more."""

        TOPIC = "stray_message.discarded"

    def __init__(
        self,
        digest: str,
        reason: str,
        died_of: str,
        size: int,
        content_type: str | None,
        fields: str,
        other_fields: int,
    ) -> None:
        self.digest = digest
        self.reason = reason
        self.died_of = died_of
        self.size = size
        self.content_type = content_type
        self.fields = fields
        self.other_fields = other_fields
        self.discarded = False

    @staticmethod
    def stream_id(digest: str) -> UUID:
        """The stream of every message with these bytes: it is recorded once, however often it arrives."""
        return uuid5(_NAMESPACE, digest)

    @classmethod
    def keep(
        cls,
        *,
        digest: str,
        reason: str,
        died_of: str,
        size: int,
        content_type: str | None,
        fields: str,
        other_fields: int,
        now: datetime,
    ) -> StrayMessage:
        """Record a message that was not seen before."""
        return begin(
            cls,
            cls.StrayMessageKept,
            name="stray_message",
            stream_id=cls.stream_id(digest),
            now=now,
            digest=digest,
            reason=reason,
            died_of=died_of,
            size=size,
            content_type=content_type,
            fields=fields,
            other_fields=other_fields,
        )

    def discard(self, *, now: datetime) -> None:
        """Remove it from the list; what was recorded stays."""
        if not self.discarded:
            self.trigger_event(StrayMessage.StrayMessageDiscarded, timestamp=now)

    @event(StrayMessageDiscarded)
    def _discarded(self) -> None:
        self.discarded = True


register_topic("stray_message", StrayMessage)
