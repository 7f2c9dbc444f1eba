"""The judge of traces can fail: a whole history passes, what a SIGKILL takes is excused, and each forgery is found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest

from domain.recorded import Recorded
from tests.faults.history import History
from tests.faults.journal import FaultWindow
from tests.faults.noted_spans import Noted
from tests.faults.traces import DEADLINE, DECISION, GOES_OUT_WITHIN, Killed, Traces, judge
from tests.support.facts import REGISTRATION, email_dispatched, email_retry_requested, registered

FIRST, RETRY = "a" * 32, "b" * 32
SERVE, PROCESS, WORK = 1, 2, 3
ENDED = 1_700_000_000


def span(name: str, parent: str = "", trace: str = FIRST, process: int = SERVE, **more: object) -> Noted:
    """Its id is its name, so far as that goes."""
    made = Noted(
        process, trace, ident(name), ident(parent) if parent else "", name.partition("/")[0], ended=ENDED * 10**9
    )
    return replace(made, **more)  # type: ignore[arg-type]


def ident(name: str) -> str:
    return name.encode().hex()[-16:].rjust(16, "0")


def context(name: str, trace: str = FIRST) -> str:
    return f"00-{trace}-{ident(name)}-01"


def spans_of_a_retry() -> list[Noted]:
    """The first mail was put off; the next one, at a deadline, went out."""
    return [
        span("POST"),
        span(f"{DECISION}/1", "POST", process=PROCESS),
        span("publish", f"{DECISION}/1", process=PROCESS),
        span("consume", "publish", process=WORK),
        span(f"{DECISION}/2", "consume", process=PROCESS),
        span(DEADLINE, f"{DECISION}/2", process=PROCESS, links=((RETRY, ident(f"{DECISION}/3")),)),
        span(f"{DECISION}/3", trace=RETRY, process=PROCESS, links=((FIRST, ident(f"{DECISION}/2")),)),
        span("publish/2", f"{DECISION}/3", RETRY, PROCESS),
        span("consume/2", "publish/2", RETRY, WORK),
    ]


def log_of_a_retry() -> list[Recorded]:
    log = History().add(REGISTRATION, registered(), email_dispatched()).log
    return [log[0]._replace(trace=context("POST")), log[1]._replace(trace=context("consume/2", RETRY))]


@dataclass
class Run:
    """What is judged; whole as it is."""

    spans: list[Noted] = field(default_factory=spans_of_a_retry)
    lost: set[str] = field(default_factory=set)
    log: list[Recorded] = field(default_factory=log_of_a_retry)
    killed: Mapping[int, Killed] = field(default_factory=dict)
    faults: list[FaultWindow] = field(default_factory=list)
    invented: set[str] = field(default_factory=set)

    def judged(self) -> Traces:
        exported = {one.span_id for one in self.spans if one.ended} - {ident(name) for name in self.lost}
        exported |= self.invented
        return judge(self.spans, exported, self.log, self.killed, self.faults)

    def change(self, name: str, **more: object) -> None:
        self.spans = [replace(one, **more) if one.span_id == ident(name) else one for one in self.spans]  # type: ignore[arg-type]


def killed(process: int, after: float = 0.5) -> dict[int, Killed]:
    return {process: Killed("work-1", ENDED + after)}


def test_a_whole_history_has_a_whole_tree() -> None:
    traces = Run().judged()

    assert traces.violations == []
    assert (traces.trees, traces.mailed, traces.whole) == (1, 1, 1)
    assert (traces.spans, traces.lost, traces.traces, traces.linked) == (9, 0, 2, 1)


@pytest.mark.parametrize("ended", [0, ENDED * 10**9], ids=["open", "ended"])
def test_what_was_killed_with_its_process_is_excused_and_counted(ended: int) -> None:
    run = Run(lost={"consume/2"}, killed=killed(WORK))
    run.change("consume/2", ended=ended)
    run.spans.append(span(f"{DECISION}/4", "consume/2", RETRY, PROCESS))
    traces = run.judged()

    assert traces.violations == []
    assert (traces.trees, traces.whole, traces.lost) == (1, 0, 1)


def test_the_time_in_which_a_process_was_stopped_does_not_count() -> None:
    at = datetime.fromtimestamp(ENDED, UTC)
    pause = FaultWindow("work-1 pauses", at, at + timedelta(seconds=60), frozenset())
    run = Run(lost={"consume/2"}, killed=killed(WORK, after=61))

    assert "had not gone out when its process was killed 61.0 s later" in told(run)
    run.faults.append(pause)
    assert run.judged().violations == []


def test_what_was_given_up_and_led_to_nothing_is_no_gap() -> None:
    run = Run()
    run.spans.append(span(f"{DECISION}/4", "consume/2", RETRY, PROCESS, ended=0))

    assert run.judged().violations == []


def test_an_operator_begins_a_trace() -> None:
    asked = History().add(REGISTRATION, registered(), email_retry_requested(), actor="operator").log[1]
    run = Run()
    run.log.append(asked)
    run.spans.append(span(f"{DECISION}/4", trace="c" * 32, event=asked.topic))

    assert run.judged().violations == []


def told(run: Run) -> str:
    return "\n".join(map(str, run.judged().violations))


FORGERIES: dict[str, Callable[[Run], None]] = {}
"""By what has to be said of each."""


def forged(said: str) -> Callable[[Callable[[Run], None]], Callable[[Run], None]]:
    def note(forge: Callable[[Run], None]) -> Callable[[Run], None]:
        FORGERIES[said] = forge
        return forge

    return note


@forged("did not go out, though its process was not killed")
def never_exported(run: Run) -> None:
    run.lost.add("consume")
    run.killed = killed(SERVE)


@forged("had not gone out when its process was killed")
def waited_too_long(run: Run) -> None:
    run.lost.add("consume")
    run.killed = killed(WORK, after=GOES_OUT_WITHIN + 1)


@forged("which is no span of its trace")
def another_trace(run: Run) -> None:
    run.change("consume", trace_id="c" * 32)


@forged("`consume` 00636f6e73756d65 of trace aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa (process 3) begins a trace")
def cut_at_the_broker(run: Run) -> None:
    run.change("consume", parent_id="")


@forged("begins a trace")
def no_link_back(run: Run) -> None:
    run.change(f"{DECISION}/3", links=())


@forged("has no link to it in the trace before")
def no_link_on(run: Run) -> None:
    run.change(DEADLINE, links=())


@forged("which is no span\n")
def linked_to_nothing(run: Run) -> None:
    run.change(f"{DECISION}/3", links=((FIRST, "f" * 16),))


@forged("the collector has a span that nobody made")
def invented(run: Run) -> None:
    run.invented.add("f" * 16)


@forged("is in no trace")
def event_without_one(run: Run) -> None:
    run.log[1] = run.log[1]._replace(trace=None)


@forged("continues no span")
def event_of_nothing(run: Run) -> None:
    run.log[0] = run.log[0]._replace(trace=context("elsewhere"))


@forged("continues a span that did not go out")
def event_of_what_was_given_up(run: Run) -> None:
    run.spans.append(span(f"{DECISION}/4", "POST", process=PROCESS, ended=0))
    run.log[0] = run.log[0]._replace(trace=context(f"{DECISION}/4"))


@forged("leads back to nobody")
def mail_of_nobody(run: Run) -> None:
    run.change(f"{DECISION}/3", links=())


@pytest.mark.parametrize("said", FORGERIES)
def test_every_forgery_is_found(said: str) -> None:
    run = Run()
    FORGERIES[said](run)

    assert said in f"{told(run)}\n"
