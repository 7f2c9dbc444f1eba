"""ParkedRetry: an operator has a follower try a parked stream again now."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from eventsourcing.domain import Aggregate
from eventsourcing.utils import register_topic

from domain.streams import begin


class ParkedRetry(Aggregate, created_event_name="ParkedRetryAsked"):
    """One such act. The follower reads of it in the log, whichever process it runs in."""

    class ParkedRetryAsked(Aggregate.Created):
        """`follower` is to try the events of `parked_stream` again, which it has put aside."""

        TOPIC = "parked_retry.asked"
        follower: str
        parked_stream: str

    def __init__(self, follower: str, parked_stream: str) -> None:
        self.follower = follower
        self.parked_stream = UUID(parked_stream)

    @classmethod
    def ask(cls, *, retry_id: UUID, follower: str, parked_stream: UUID, now: datetime) -> ParkedRetry:
        """Ask with an id that no other retry has."""
        return begin(
            cls,
            cls.ParkedRetryAsked,
            name="parked_retry",
            stream_id=retry_id,
            now=now,
            follower=follower,
            parked_stream=str(parked_stream),
        )


register_topic("parked_retry", ParkedRetry)
