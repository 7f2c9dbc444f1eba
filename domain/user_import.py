"""UserImport: that an operator took users over from another system, and how many."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from uuid import UUID

from eventsourcing.domain import Aggregate, event
from eventsourcing.utils import register_topic

from domain.streams import begin


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of the users that were read.

    Attributes:
        accounts: taken over as accounts, because their addresses were verified.
        waiting: taken over without a verified address; they wait until they are invited.
        already_there: were here before, or an account has their address.
        invited: of those who wait, sent a mail.
    """

    accounts: int = 0
    waiting: int = 0
    already_there: int = 0
    invited: int = 0


class UserImport(Aggregate, created_event_name="ImportBegun"):
    """One run of an import that has an effect. What it records has the run's correlation id, whichever stream it is in.

    A run that was interrupted has no end; the next one goes on, and is one of its own.
    """

    class Event(Aggregate.Event):
        """What happens to an import; not named here, the library would make each class a second time."""

    class ImportBegun(Aggregate.Created):
        """Users are being taken over."""

        TOPIC = "user_import.begun"

    class ImportEnded(Event):
        """All of them are, or were before. The fields are those of `Counts`; `skipped`: lines that were left out."""

        TOPIC = "user_import.ended"
        accounts: int
        waiting: int
        already_there: int
        invited: int
        skipped: int

    def __init__(self) -> None:
        self.ended = False

    @classmethod
    def begin(cls, *, import_id: UUID, now: datetime) -> UserImport:
        return begin(cls, cls.ImportBegun, name="user_import", stream_id=import_id, now=now)

    def end(self, *, counts: Counts, skipped: int, now: datetime) -> None:
        """Record what came of it, once."""
        if not self.ended:
            self.trigger_event(UserImport.ImportEnded, **asdict(counts), skipped=skipped, timestamp=now)

    @event(ImportEnded)
    def _import_ended(self) -> None:
        self.ended = True


register_topic("user_import", UserImport)
