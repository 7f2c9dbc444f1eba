"""Rebuild: what operators did to a read model, and why."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from eventsourcing.domain import Aggregate, event
from eventsourcing.utils import register_topic

from domain.streams import begin


class Rebuild(Aggregate, created_event_name="RebuildBegun"):
    """One rebuild of a read model. It is recorded after it was done, so a repeat finds it done and records nothing."""

    class Event(Aggregate.Event):
        """What happens to a rebuild; not named here, the library would make each class a second time."""

    class RebuildBegun(Aggregate.Created):
        """A copy of the read model is being folded from the log."""

        TOPIC = "rebuild.begun"
        read_model: str

    class RebuildSwapped(Event):
        """The copy serves in the place of the former one since both were at `position`.

        `differences`: how many values differed; `decision`: "equal", "accepted", "repaired" or "built"
        (of a version that had not served before, compared with the one that had).
        """

        TOPIC = "rebuild.swapped"
        read_model: str
        position: int
        differences: int
        decision: str

    class RebuildRolledBack(Event):
        """The former one serves again since both were at `position`."""

        TOPIC = "rebuild.rolled_back"
        read_model: str
        position: int

    class RebuildAborted(Event):
        """The copy was dropped before it served."""

        TOPIC = "rebuild.aborted"
        read_model: str

    class VersionDropped(Aggregate.Created):
        """A version of a read model that a later one has superseded was dropped, which was at `position`."""

        TOPIC = "rebuild.version_dropped"
        read_model: str
        position: int

    def __init__(self, read_model: str) -> None:
        self.read_model = read_model
        self.swapped = False
        self.rolled_back = False
        self.aborted = False

    @classmethod
    def begin(cls, *, rebuild_id: UUID, read_model: str, now: datetime) -> Rebuild:
        """Begin one with an id that no other has."""
        return begin(cls, cls.RebuildBegun, name="rebuild", stream_id=rebuild_id, now=now, read_model=read_model)

    @classmethod
    def drop_version(cls, *, rebuild_id: UUID, read_model: str, position: int, now: datetime) -> Rebuild:
        """Drop a superseded version, in a stream of its own: whichever way its successor was built, it has none."""
        return begin(
            cls,
            cls.VersionDropped,
            name="rebuild",
            stream_id=rebuild_id,
            now=now,
            read_model=read_model,
            position=position,
        )

    def swap(self, *, position: int, differences: int, decision: str, now: datetime) -> None:
        """The copy serves."""
        if not self.swapped:
            self.trigger_event(
                Rebuild.RebuildSwapped,
                timestamp=now,
                read_model=self.read_model,
                position=position,
                differences=differences,
                decision=decision,
            )

    def roll_back(self, *, position: int, now: datetime) -> None:
        """The former one serves again."""
        if not self.rolled_back:
            self.trigger_event(Rebuild.RebuildRolledBack, timestamp=now, read_model=self.read_model, position=position)

    def abort(self, *, now: datetime) -> None:
        """The copy is dropped."""
        if not self.aborted:
            self.trigger_event(Rebuild.RebuildAborted, timestamp=now, read_model=self.read_model)

    @event(RebuildSwapped)
    def _swapped(self) -> None:
        self.swapped = True

    @event(RebuildRolledBack)
    def _rolled_back(self) -> None:
        self.rolled_back = True

    @event(RebuildAborted)
    def _aborted(self) -> None:
        self.aborted = True


register_topic("rebuild", Rebuild)
