"""The short way: nearly every history is repeated to the letter, and that is soon seen."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from application.mail_saga import SOURCES, DeadlineReached, react
from application.what_if.effects import is_effect_of
from application.what_if.history import History, Mark
from domain.mail_saga import MailSaga
from domain.policy import Policy
from domain.recorded import Actor, AnyEvent, Position

_SOURCES = frozenset(SOURCES)


def is_repeated(history: History, policy: Policy) -> bool:
    """Is every decision made again with the same words and effects, in the order in which all this is recorded?

    If not, that says nothing yet: `differences` looks closely.
    """
    try:
        return _Repetition(history, policy).succeeds()
    except Exception:  # noqa: BLE001 - a decision that fails is looked at closely, too
        return False


class _Repetition:
    def __init__(self, history: History, policy: Policy) -> None:
        self._history = history
        self._policy = policy
        self._notes = history.saga
        self._deadline = DeadlineReached(history.registration[0].event.originator_id)
        self._next = 0  # the first note that has not been repeated
        self._saga: MailSaga | None = None
        self._effects: dict[Position | None, list[Mark]] = {}
        streams: tuple[Sequence[Mark], Sequence[Mark]] = (history.registration, history.claim)
        for stream in streams:
            for mark in stream:
                if mark.actor == Actor.MAIL_SAGA:
                    self._effects.setdefault(mark.causation_position, []).append(mark)

    def succeeds(self) -> bool:
        for happened in self._history.registration:
            if happened.topic not in _SOURCES:
                continue
            if not self._repeats_deadlines(before=happened.position):
                return False
            note = self._notes[self._next] if self._next < len(self._notes) else None
            told = note is not None and note.causation_position == happened.position
            now = note.event.timestamp if told and note is not None else happened.event.timestamp
            if not self._repeats(happened.event, happened.position, now):
                return False
        return self._repeats_deadlines(before=None) and not self._effects

    def _repeats_deadlines(self, *, before: Position | None) -> bool:
        while self._next < len(self._notes):
            note = self._notes[self._next]
            if before is not None and note.position > before:
                return True
            if note.causation_position not in {earlier.position for earlier in self._notes[: self._next]}:
                return False
            if not self._repeats(self._deadline, note.causation_position, note.event.timestamp):
                return False
        return True

    def _repeats(self, happened: AnyEvent | DeadlineReached, cause: Position | None, now: datetime) -> bool:
        begin = self._next
        self._saga, commands = react(self._saga, happened, now, self._policy)
        for note in () if self._saga is None else self._saga.collect_events():
            if self._next == len(self._notes):
                return False
            then = self._notes[self._next]
            if then.causation_position != cause or vars(then.event) != vars(note) or type(then.event) is not type(note):
                return False
            self._next += 1
        if isinstance(happened, DeadlineReached) and self._next == begin:
            return False
        effects = self._effects.pop(cause, ())
        return len(commands) == len(effects) and all(map(is_effect_of, effects, commands))
