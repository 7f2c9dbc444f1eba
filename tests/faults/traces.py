"""Whether the traces of a run have a gap: of every span that was made (`noted_spans`) and every event.

A SIGKILL takes with it the spans that are open, and those that have ended but have not gone out yet. So a trace is
unbroken if

* each span continues another one of its trace, or begins a trace as it may: a request does, an operator's act, and a
  deadline, which is linked both ways to the trace of the decision that set its date;
* each event continues a span, and each mail that was accepted leads back to a request, or an operator's act;
* each span that has ended is at the collector, unless its process was killed within `GOES_OUT_WITHIN` of that. So is
  each span that another one continues, unless its process was killed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from domain.mail_saga import MailSaga
from domain.recorded import Actor, Recorded
from domain.registration import Registration
from infrastructure.telemetry.trace_context import trace_id_of
from tests.faults.invariants import Violation
from tests.faults.journal import FaultWindow
from tests.faults.noted_spans import Noted

GOES_OUT_WITHIN: Final = 5.0
"""Seconds: a span waits one for others to go with, and then for its turn and for the call."""

DECISION: Final = "mail-saga decide"
DEADLINE: Final = "mail-saga deadline"

_METHODS: Final = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "_OTHER"})
_MOST_HOPS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Killed:
    """A process that was: of which node, and when, in seconds since 1970."""

    node: str
    at: float


@dataclass(frozen=True, slots=True)
class Traces:
    """
    Attributes:
        trees: registrations.
        mailed: those of them whose mail was accepted.
        whole: those of them of which the collector has every span.
        spans: that were made, and ended or were killed.
        lost: those of them that were lost with their processes.
        traces: how many these are.
        linked: those of them that began at a deadline.
        waited: seconds for which the oldest one that was lost had waited.
    """

    trees: int
    mailed: int
    whole: int
    spans: int
    lost: int
    traces: int
    linked: int
    waited: float
    violations: Sequence[Violation]

    def __str__(self) -> str:
        return (
            f"{self.trees} registrations, {self.mailed} with an accepted mail, have {len(self.violations)} gaps in their "
            f"trees, {self.whole} of which are whole at the collector; of {self.spans} spans in {self.traces} traces, "
            f"{self.linked} of them of deadlines, {self.lost} were killed with their processes, after "
            f"{self.waited:.1f} s at most"
        )


def judge(
    noted: Iterable[Noted],
    exported: Collection[str],
    log: Sequence[Recorded],
    killed: Mapping[int, Killed],
    faults: Sequence[FaultWindow] = (),
) -> Traces:
    """
    Args:
        exported: the ids of the spans that a collector has got.
        killed: by the process's id.
        faults: those in which a node could not do anything are no part of its time.
    """
    return _Judge({span.span_id: span for span in noted}, frozenset(exported), log, killed, faults).judgement()


class _Judge:
    def __init__(
        self,
        spans: Mapping[str, Noted],
        exported: Collection[str],
        log: Sequence[Recorded],
        killed: Mapping[int, Killed],
        faults: Sequence[FaultWindow],
    ) -> None:
        self._spans = spans
        self._exported = exported
        self._log = log
        self._killed = killed
        self._faults = faults
        self._continued = {span.parent_id for span in spans.values()}
        self._deadlines = {link for span in spans.values() if span.name == DEADLINE for link in span.links}
        self._waited = 0.0

    def judgement(self) -> Traces:
        wrong = [*self._unknown(), *self._of_spans(), *self._of_events(), *self._of_mails()]
        lost = {one.span_id for one in self._spans.values() if self._is_lost(one)}
        trees = self._trees()
        gaps = {self._spans[one].trace_id for one in lost}
        return Traces(
            trees=len(trees),
            mailed=len({one.event.originator_id for one in self._accepted()}),
            whole=sum(not traces & gaps for traces in trees.values()),
            spans=sum(bool(one.ended) or one.span_id in lost for one in self._spans.values()),
            lost=len(lost),
            traces=len({one.trace_id for one in self._spans.values()}),
            linked=sum(self._begins_at_deadline(one) for one in self._spans.values()),
            waited=self._waited,
            violations=[Violation("traces", what) for what in wrong],
        )

    # --- Spans ----------------------------------------------------------------------------------

    def _unknown(self) -> Iterator[str]:
        for span_id in self._exported:
            if span_id not in self._spans:
                yield f"the collector has a span that nobody made, {span_id}"

    def _of_spans(self) -> Iterator[str]:
        for span in self._spans.values():
            yield from self._of_its_way_out(span)
            if span.parent_id:
                yield from self._of_its_parent(span)
            else:
                yield from self._of_its_beginning(span)

    def _of_its_way_out(self, span: Noted) -> Iterator[str]:
        """One that has no end and is continued by nobody was given up: nothing came of it."""
        if span.span_id in self._exported or not (span.ended or span.span_id in self._continued):
            return
        killed = self._killed.get(span.process)
        if killed is None:
            yield f"{_told(span)} did not go out, though its process was not killed"
        elif span.ended:
            waited = killed.at - span.ended / 1e9
            waited -= self._stood_still(killed.node, span.ended / 1e9, killed.at)
            self._waited = max(self._waited, waited)
            if waited > GOES_OUT_WITHIN:
                yield f"{_told(span)} had not gone out when its process was killed {waited:.1f} s later"

    def _of_its_parent(self, span: Noted) -> Iterator[str]:
        parent = self._spans.get(span.parent_id)
        if parent is None or parent.trace_id != span.trace_id:
            yield f"{_told(span)} continues {span.parent_id}, which is no span of its trace"

    def _of_its_beginning(self, span: Noted) -> Iterator[str]:
        if span.name in _METHODS or self._begins_at_operator(span):
            return
        if not self._begins_at_deadline(span):
            yield f"{_told(span)} begins a trace"
            return
        [(trace_id, span_id)] = span.links
        before = self._spans.get(span_id)
        if before is None or before.trace_id != trace_id:
            yield f"{_told(span)} is linked to {span_id}, which is no span"
        if span.ended and (span.trace_id, span.span_id) not in self._deadlines and span.process not in self._killed:
            yield f"{_told(span)} has no link to it in the trace before"

    def _begins_at_deadline(self, span: Noted) -> bool:
        return span.name == DECISION and not span.parent_id and len(span.links) == 1

    def _begins_at_operator(self, span: Noted) -> bool:
        return span.name == DECISION and span.event == Registration.EmailRetryRequested.TOPIC

    def _is_lost(self, span: Noted) -> bool:
        return span.span_id not in self._exported and span.process in self._killed

    def _stood_still(self, node: str, begin: float, end: float) -> float:
        """Seconds between these two in which the node was paused, or the machine had no turn for it."""
        return sum(
            max(0.0, min(end, one.end.timestamp()) - max(begin, one.begin.timestamp()))
            for one in self._faults
            if one.what in {f"{node} pauses", "the machine is too busy"}
        )

    # --- Events ---------------------------------------------------------------------------------

    def _of_events(self) -> Iterator[str]:
        for recorded in self._log:
            what = f"{recorded.topic} at position {recorded.position}"
            if recorded.trace is None:
                if recorded.actor != Actor.OPERATOR:
                    yield f"{what} is in no trace"
                continue
            span = self._spans.get(recorded.trace[36:52])
            if span is None or span.trace_id != trace_id_of(recorded.trace):
                yield f"{what} continues no span"
            elif span.span_id not in self._exported and span.process not in self._killed:
                yield f"{what} continues a span that did not go out, though its process was not killed"

    def _of_mails(self) -> Iterator[str]:
        for recorded in self._accepted():
            if recorded.trace is not None and not self._leads_back(recorded.trace[36:52]):
                yield f"the mail that was accepted at position {recorded.position} leads back to nobody"

    def _accepted(self) -> Iterator[Recorded]:
        return (one for one in self._log if isinstance(one.event, Registration.EmailDispatched))

    def _leads_back(self, span_id: str) -> bool:
        """To a request or an operator's act, up the tree and along the links of deadlines."""
        span = self._spans.get(span_id)
        for _ in range(_MOST_HOPS):
            if span is None:
                return False
            if span.name in _METHODS or self._begins_at_operator(span):
                return True
            before = span.parent_id or (span.links[0][1] if self._begins_at_deadline(span) else "")
            span = self._spans.get(before)
        return False

    def _trees(self) -> dict[UUID, set[str]]:
        """The traces of each registration, its saga's included."""
        begun = {one.event.originator_id for one in self._log if isinstance(one.event, Registration.UserRegistered)}
        streams = {stream: one for one in begun for stream in (one, MailSaga.stream_id(one))}
        traces: dict[UUID, set[str]] = {one: set() for one in begun}
        for recorded in self._log:
            registration = streams.get(recorded.event.originator_id)
            if recorded.trace is not None and registration is not None:
                traces[registration].add(trace_id_of(recorded.trace))
        return traces


def _told(span: Noted) -> str:
    return f"`{span.name}` {span.span_id} of trace {span.trace_id} (process {span.process})"
