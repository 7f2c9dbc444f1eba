"""One pass over everything recorded about one registration: each decision of its saga, then and today."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from application.commands import Command
from application.mail_saga import SOURCES, DeadlineReached, react
from application.what_if.decision import Alike, Cause, Dates, Decision, Difference, compare, dates_of, difference
from application.what_if.effects import Outcome, is_effect_of, outcome_at
from application.what_if.history import End, History, Mark
from application.what_if.repetition import is_repeated
from domain.mail_saga import MailSaga
from domain.policy import Policy
from domain.recorded import Actor, AnyEvent, Position, Recorded


def differences(history: History, policy: Policy, end: End) -> list[Difference]:
    """The decisions about one registration that would be others today, in the order in which they were made."""
    return [] if is_repeated(history, policy) else _Review(history, policy, end).run()


class _Review:
    def __init__(self, history: History, policy: Policy, end: End) -> None:
        self._history = history
        self._policy = policy
        self._end = end
        self._notes = history.saga
        self._positions = [note.position for note in history.saga]
        self._registration_id = history.registration[0].event.originator_id
        self._happened = [one for one in history.registration if one.topic in SOURCES]
        self._index_of = {one.position: index for index, one in enumerate(self._happened)}
        self._effects: dict[Position, list[Mark]] = {}
        for stream in (history.registration, history.claim):
            for mark in stream:
                if mark.causation_position is not None and mark.actor == Actor.MAIL_SAGA:
                    self._effects.setdefault(mark.causation_position, []).append(mark)
        self._next = 0  # the first event whose decision has not been met
        self._today: MailSaga | None = None
        self._apart = False  # are dates of `_today` others than the recorded ones?
        self._dates_then = Dates(None, None)  # the recorded ones
        self._found: list[Difference] = []

    def run(self) -> list[Difference]:
        for begin, end in self._decisions():
            self._review(begin, end)
        self._finish()
        return self._found

    def _decisions(self) -> Iterator[tuple[int, int]]:
        """The notes of each decision: those of one cause and one time."""
        begin, notes = 0, self._notes
        for index in range(1, len(notes) + 1):
            if index < len(notes):
                first, note = notes[begin], notes[index]
                same_cause = first.causation_position == note.causation_position is not None
                if same_cause and first.event.timestamp == note.event.timestamp:
                    continue
            yield begin, index
            begin = index

    # --- Decisions that were noted ------------------------------------------------------------

    def _review(self, begin: int, end: int) -> None:
        then = [note.event for note in self._notes[begin:end]]
        first, now = self._notes[begin], then[0].timestamp
        cause, decision, alike = self._read(first, then)
        if cause.index is not None:
            if cause.index > self._next:
                self._review_silent(cause.index, begin, first.position)
            self._next = max(self._next, cause.index + 1)
            if self._apart and self._overtaken(begin, now):
                decision = self._decide(self._today, cause.happened, now)
                alike = compare(decision, dates_of(self._today), then, self._dates_then)
        effects = self._effects.pop(cause.position, [])
        if first.causation_position is not None and first.causation_position != cause.position:
            effects += self._effects.pop(first.causation_position, [])
        agreed = self._agree(decision.commands, effects, cause, first.position, now)
        if alike is not Alike.SAME or not agreed:
            dates_only = alike is Alike.OTHER_DATES and agreed
            self._report(first.position, cause, (then, effects), decision, dates_only=dates_only)
        if alike is Alike.OTHER:
            self._today, self._apart = self._recorded(end), False
        else:
            self._today = decision.saga
            self._apart = self._apart or alike is Alike.OTHER_DATES
        for note in then:
            ends_at = vars(note).get("ends_at", self._dates_then.ends_at)
            self._dates_then = Dates(vars(note).get("look_again_at", ends_at), ends_at)

    def _read(self, first: Recorded, then: Sequence[AnyEvent]) -> tuple[Cause, Decision, Alike]:
        """What these notes were about, and what is decided about it today.

        The log says it. One that does not, or not rightly (made by hand, or by a tool), is read as what makes sense.
        """
        best: tuple[Cause, Decision, Alike] | None = None
        for cause in self._readings(first):
            now = then[0].timestamp
            if cause.index is None and self._apart and self._today is not None:
                # A later look is one difference, told where its date was set: here it is that look that counts.
                now = max(now, self._today.look_again_at or now)
            decision = self._decide(self._today, cause.happened, now)
            alike = compare(decision, dates_of(self._today), then, self._dates_then)
            if alike is Alike.SAME:
                return cause, decision, alike
            if best is None or (alike is Alike.OTHER_DATES and best[2] is Alike.OTHER):
                best = cause, decision, alike
        assert best is not None  # noqa: S101 - a deadline is always a reading
        return best

    def _readings(self, note: Recorded) -> Iterator[Cause]:
        """As the log says; then each event that waits for a decision; then a deadline."""
        told = note.causation_position or 0
        index_told = self._index_of.get(told)
        deadline = Cause(DeadlineReached(self._registration_id), None, told)
        if index_told is not None:
            yield self._cause(index_told)
        elif told in self._positions:
            yield deadline
        for index in range(self._next, len(self._happened)):
            if self._happened[index].position >= note.position:
                break
            if index != index_told:
                yield self._cause(index)
        if index_told is not None or told not in self._positions:
            yield deadline

    def _cause(self, index: int) -> Cause:
        return Cause(self._happened[index].event, index, self._happened[index].position)

    def _overtaken(self, begin: int, now: datetime) -> bool:
        """Would the saga have looked again before now, at a date of today, and done something that it did not do?"""
        today, date_then = self._today, self._dates_then.look_again_at
        if today is None or today.look_again_at is None or date_then is None:
            return False
        if not today.look_again_at < now < date_then:
            return False
        cause = Cause(DeadlineReached(self._registration_id), None, self._positions[begin - 1])
        decision = self._decide(today, cause.happened, today.look_again_at)
        if decision.is_nothing:
            return False
        self._report(cause.position, cause, ((), ()), decision, at=today.look_again_at)
        self._today, self._apart = self._recorded(begin), False
        return True

    # --- Decisions that were not noted --------------------------------------------------------

    def _review_silent(self, upto: int, count: int, before: Position) -> None:
        """Events after which the saga noted nothing: it saw each of them some time after the notes before it, and
        before the note number `count`."""
        for index in range(self._next, upto):
            cause, now = self._cause(index), self._happened[index].event.timestamp
            effects = self._effects.pop(cause.position, [])
            refuted: Decision | None = None
            for known in range(min(bisect_left(self._positions, cause.position), count), count + 1):
                state = self._today if known == count else self._recorded(known)
                decision = self._decide(state, cause.happened, now)
                is_silent = not decision.notes and decision.error is None
                if is_silent and self._agree(decision.commands, effects, cause, before, now):
                    break
                refuted = refuted or decision
            else:
                assert refuted is not None  # noqa: S101 - there is at least one state
                self._report(cause.position, cause, ((), effects), refuted)

    def _finish(self) -> None:
        """What was decided without a note since the last one, and done for a decision that was never noted."""
        handled = bisect_right([one.position for one in self._happened], self._end.handled)
        if handled > self._next:
            last = max(stream[-1].position for stream in (self._history.registration, self._history.claim) if stream)
            self._review_silent(handled, len(self._notes), last + 1)
        if self._apart:
            self._overtaken(len(self._notes), self._end.at)
        for position, effects in self._effects.items():
            if position in self._positions:
                cause = Cause(DeadlineReached(self._registration_id), None, position)
                for effect in effects:
                    if not self._attempted(effect, effects, cause):
                        self._report(effect.position, cause, ((), [effect]), Decision())

    # --- Commands -----------------------------------------------------------------------------

    def _agree(
        self, commands: Sequence[Command], effects: Sequence[Mark], cause: Cause, before: Position, now: datetime
    ) -> bool:
        """Do these commands account for these effects, and for none that should be there and is not?"""
        for effect in effects:
            led_to = self._leads_to(commands, effect, effects, cause, now)
            if not led_to and not self._attempted(effect, effects, cause):
                return False
        for command in commands:
            if any(is_effect_of(effect, command) for effect in effects):
                continue
            outcomes = self._outcomes(command, cause.position, before, now)
            if all(outcome is Outcome.SOMETHING for outcome in outcomes):
                return False
            if command is not commands[-1] and Outcome.REFUSED in self._outcomes(command, cause.position, before, now):
                return True  # those after it were not run
        return True

    def _leads_to(
        self, commands: Sequence[Command], effect: Mark, effects: Sequence[Mark], cause: Cause, now: datetime
    ) -> bool:
        """Is it the effect of one of these, run after the ones before it?"""
        for index, command in enumerate(commands):
            if is_effect_of(effect, command):
                return all(
                    any(is_effect_of(other, earlier) and other.position < effect.position for other in effects)
                    or Outcome.NOTHING in self._outcomes(earlier, cause.position, effect.position, now)
                    for earlier in commands[:index]
                )
        return False

    def _attempted(self, effect: Mark, effects: Sequence[Mark], cause: Cause) -> bool:
        """Does any state that a leader may have seen lead to it? Its decision was then not noted, or made twice."""
        now = effect.event.timestamp if isinstance(effect, Recorded) else effect.recorded_at
        first, last = bisect_right(self._positions, cause.position), bisect_left(self._positions, effect.position)
        for count in range(first, last + 1):
            saga, moment = self._recorded(count), now
            if cause.index is None and saga is not None:
                moment = max(now, saga.look_again_at or now)  # the date had come, by whatever clock
            commands = self._decide(saga, cause.happened, moment).commands
            if self._leads_to(commands, effect, effects, cause, now):
                return True
        return False

    def _outcomes(self, command: Command, after: Position, before: Position, now: datetime) -> Iterator[Outcome]:
        """What it would have done at each moment after one position and before another, the latest first."""
        history = self._history
        marks = (*history.registration, *history.claim)
        for cut in sorted({after, *(one.position for one in marks if after < one.position < before)}, reverse=True):
            yield outcome_at(command, history, cut, now)

    # --- The saga, then and today -------------------------------------------------------------

    def _decide(self, saga: MailSaga | None, happened: AnyEvent | DeadlineReached, now: datetime) -> Decision:
        """What the saga decides today; the one that is given stays as it is."""
        try:
            after, commands = react(None if saga is None else _copy(saga), happened, now, self._policy)
        except Exception as error:  # noqa: BLE001 - that it fails is the answer
            return Decision(error=type(error).__name__)
        return Decision(after, () if after is None else after.collect_events(), commands)

    def _recorded(self, count: int) -> MailSaga | None:
        """The saga after its first notes, as recorded."""
        saga: Any = None
        for note in self._notes[:count]:
            saga = note.event.mutate(saga)
        recorded: MailSaga | None = saga
        return recorded

    def _report(
        self,
        position: Position,
        cause: Cause,
        then: tuple[Sequence[AnyEvent], Sequence[Mark]],
        now: Decision,
        *,
        dates_only: bool = False,
        at: datetime | None = None,
    ) -> None:
        self._found.append(difference(self._registration_id, position, cause, then, now, dates_only=dates_only, at=at))


def _copy(saga: MailSaga) -> MailSaga:
    """One that can go on by itself: every attribute is immutable, but for what is pending."""
    copy = object.__new__(MailSaga)
    vars(copy).update(vars(saga))
    vars(copy)["_pending_events"] = []
    return copy
