"""StrayMessage: a message among the dead letters that is none of ours, kept for inspection."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID, uuid5

from eventsourcing.domain import Aggregate, event
from eventsourcing.utils import register_topic

from domain.streams import begin

_NAMESPACE = UUID("2f1c7f3e-56b0-5d0a-8a3c-737472617973")


class StrayMessage(Aggregate, created_event_name="StrayMessageKept"):
    """What is known of a message that nobody can act on. The log holds nothing that a stranger wrote: a message is
    known by its digest, and described in words of ours."""

    class StrayMessageKept(Aggregate.Created):
        """A message that is none of ours was taken from the dead letters.

        `reason` says what it lacks, `died_of` how it came among them; `fields` are those of a mail request that it has,
        separated by commas, `other_fields` how many more it has at its top; `size` is in bytes.
        """

        TOPIC = "stray_message.kept"
        digest: str
        reason: str
        died_of: str
        size: int
        content_type: str | None
        fields: str
        other_fields: int

    class StrayMessageDiscarded(Aggregate.Event):
        """An operator has looked at it, and needs it no more."""

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
        """The stream of every message with these bytes: however often it comes, it is kept once."""
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
        """Keep a message that was not seen before."""
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
        """Take it from the list; what was recorded stays."""
        if not self.discarded:
            self.trigger_event(StrayMessage.StrayMessageDiscarded, timestamp=now)

    @event(StrayMessageDiscarded)
    def _discarded(self) -> None:
        self.discarded = True


register_topic("stray_message", StrayMessage)
