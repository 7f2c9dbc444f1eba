"""A decision of today, how it compares with the recorded one, and both in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import Final
from uuid import UUID

from application.commands import Command
from application.mail_saga import DeadlineReached
from application.what_if.effects import EFFECTS
from application.what_if.history import Mark
from domain.mail_saga import MailSaga
from domain.recorded import AnyEvent, Position

_DATES: Final = ("look_again_at", "ends_at")
_NO_ACT: Final = frozenset(
    {"originator_id", "originator_version", "originator_topic", "timestamp", "registration_id", "claim_id", *_DATES}
)
_NAMES: Final = {topic: command.__name__ for command, topic in EFFECTS.items()}


@dataclass(frozen=True, slots=True)
class Difference:
    """A decision that would be another one today.

    Attributes:
        position: of the saga's first note of that decision; where it noted nothing, of the event that it was about.
        on: what the decision was about: the name of an event, or "DeadlineReached".
        kind: what differs, without numbers and times, to count by.
    """

    registration_id: UUID
    position: Position
    on: str
    then: str
    now: str
    kind: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What the saga decides today: the saga after it, its notes and commands; or the error that it raises."""

    saga: MailSaga | None = None
    notes: Sequence[AnyEvent] = ()
    commands: Sequence[Command] = ()
    error: str | None = None

    @property
    def is_nothing(self) -> bool:
        return not self.notes and not self.commands and self.error is None


@dataclass(frozen=True, slots=True)
class Cause:
    """What a decision is about.

    Attributes:
        index: of the event among those that the saga sees; None for a deadline.
        position: of the event, or of the note that set the date.
    """

    happened: AnyEvent | DeadlineReached
    index: int | None
    position: Position


class Alike(Enum):
    """How today's notes compare with the recorded ones."""

    SAME = auto()
    OTHER_DATES = auto()
    OTHER = auto()


@dataclass(frozen=True, slots=True)
class Dates:
    """The dates of a saga before a decision: one that only repeats them is no date of its own."""

    look_again_at: datetime | None
    ends_at: datetime | None


def dates_of(saga: MailSaga | None) -> Dates:
    return Dates(None, None) if saga is None else Dates(saga.look_again_at, saga.ends_at)


def compare(now: Decision, before: Dates, then: Sequence[AnyEvent], before_then: Dates) -> Alike:
    """
    Args:
        before, before_then: today's dates and the recorded ones.
    """
    if len(now.notes) != len(then):
        return Alike.OTHER
    alike = Alike.SAME
    for note, recorded in zip(now.notes, then, strict=True):
        if type(note) is not type(recorded):
            return Alike.OTHER
        if vars(note) == vars(recorded):
            continue
        if _act(note) != _act(recorded):
            return Alike.OTHER
        if _dates(note, before) != _dates(recorded, before_then):
            alike = Alike.OTHER_DATES
    return alike


def _act(note: AnyEvent) -> dict[str, object]:
    return {name: value for name, value in vars(note).items() if name not in _NO_ACT}


def _dates(note: AnyEvent, before: Dates) -> list[timedelta | str]:
    """How far off the note's dates are, or which one they repeat."""
    return [
        "the end" if date == before.ends_at else "as before" if date == before.look_again_at else date - note.timestamp
        for name in _DATES
        if (date := vars(note).get(name)) is not None
    ]


# --- Words ------------------------------------------------------------------------------------


def difference(
    registration_id: UUID,
    position: Position,
    cause: Cause,
    then: tuple[Sequence[AnyEvent], Sequence[Mark]],
    now: Decision,
    *,
    dates_only: bool,
    at: datetime | None = None,
) -> Difference:
    """
    Args:
        then: the recorded notes, and what the commands recorded.
        dates_only: the same is done, at other times.
        at: when it would be decided, if that is the difference.
    """
    on = type(cause.happened).__name__
    notes, effects = then
    did = [_NAMES.get(effect.topic, effect.topic) for effect in effects]
    does = [_show_command(command) for command in now.commands]
    failed = [f"fails with {now.error}"] if now.error else []
    kinds_then = [*(type(note).__name__ for note in notes), *did]
    kinds_now = [*(type(note).__name__ for note in now.notes), *(type(one).__name__ for one in now.commands), *failed]
    if dates_only:
        sooner = _total(now.notes) < _total(notes)
        kinds_now = ["sooner" if sooner else "later"]
    return Difference(
        registration_id,
        position,
        on,
        _join([*map(_show, notes), *did]),
        _join([*map(_show, now.notes), *does, *failed]) + (f" at {at.isoformat(timespec='seconds')}" if at else ""),
        f"on {on}: then {_join(kinds_then)}, now {_join(kinds_now)}",
    )


def _join(words: Sequence[str]) -> str:
    return " + ".join(words) or "nothing"


def _show(note: AnyEvent) -> str:
    fields = [f"{name}={value}" for name, value in _act(note).items() if not isinstance(value, datetime)]
    fields += [
        f"{name.removesuffix('_at').replace('_', ' ')} in {(vars(note)[name] - note.timestamp).total_seconds():g} s"
        for name in _DATES
        if name in vars(note)
    ]
    return f"{type(note).__name__}({', '.join(fields)})"


def _show_command(command: Command) -> str:
    fields = command.model_dump(include={"serial", "reason"})
    return f"{type(command).__name__}({', '.join(f'{name}={value}' for name, value in fields.items())})"


def _total(notes: Sequence[AnyEvent]) -> timedelta:
    away = [vars(note)[name] - note.timestamp for note in notes for name in _DATES if name in vars(note)]
    return sum(away, timedelta(0))
