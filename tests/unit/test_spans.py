"""Which spans are exported, what they may carry, and what becomes of those that a collector does not take."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from datetime import timedelta

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from application.ports import Conflict
from infrastructure.telemetry import export as export_module
from infrastructure.telemetry.encoding import ALLOWED, encoded, resource_of, scope_of
from infrastructure.telemetry.export import CAPACITY, NotTaken, Post, SpanExport
from infrastructure.telemetry.trace_context import headers_of_trace, parse_traceparent
from infrastructure.telemetry.tracing import Kind, Span, Tracing
from tests.support.facts import eventually

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = f"{TRACE[:-1]}0"
PERSONAL = ("ada@example.com", "Ada Lovelace", "123456 is your code", "t0ken", "https://example.com/?email=ada")


@pytest.fixture
def kept() -> list[Span]:
    return []


def names(spans: list[Span]) -> list[str]:
    return [span.name for span in spans]


# --- Which --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("parent", "expected"), [(TRACE, ["a"]), (UNSAMPLED, [])])
def test_a_trace_that_was_begun_elsewhere_is_sampled_as_it_was_there(
    kept: list[Span], parent: str, expected: list[str]
) -> None:
    for ratio in (0.0, 1.0):
        kept.clear()
        with Tracing(kept.append, ratio=ratio).span("a", parent=parent) as span:
            assert span.trace == f"{parent[:36]}{span.span_id}{parent[52:]}"
        assert names(kept) == expected


@pytest.mark.parametrize("context", ["", "x", TRACE[:-1], f"{TRACE}x", f"00-{'0' * 32}-b7ad6b7169203331-01"])
def test_what_is_no_trace_context_is_no_parent_and_no_link(kept: list[Span], context: str) -> None:
    tracing = Tracing(kept.append)
    with tracing.span("a", parent=context, links=(context, TRACE)) as span:
        assert tracing.kept(context) == context
    with tracing.span_after(context, "b", attributes={}):
        pass

    assert (span.parent_id, span.links) == ("", [TRACE])
    assert names(kept) == ["a", "b"]
    assert len(encoded(kept)) == 2
    assert headers_of_trace(context) == {}


def test_of_the_traces_that_begin_here_the_ratio_is_sampled_with_all_that_follows(kept: list[Span]) -> None:
    tracing = Tracing(kept.append, ratio=0.25)
    for _ in range(4000):
        with tracing.span("root", parent=None) as root, tracing.span("child", parent=root.trace):
            pass
    counts = Counter(names(kept))
    assert counts["root"] == counts["child"]
    assert 850 < counts["root"] < 1150  # five standard deviations
    assert {span.trace_id for span in kept if span.name == "root"} == {
        span.trace_id for span in kept if span.name == "child"
    }


def test_an_error_is_kept_with_what_is_around_it_and_what_follows(kept: list[Span]) -> None:
    tracing = Tracing(kept.append, ratio=0)
    with tracing.span("around", parent=UNSAMPLED) as around:
        with tracing.span("before", parent=around.trace):
            pass
        with suppress(OSError), tracing.span("fails", parent=around.trace):
            raise OSError
        assert tracing.kept(UNSAMPLED) == TRACE
    with tracing.span("after", parent=around.trace) as after:
        assert after.trace.endswith("-01")
    with tracing.span("another", parent=None):
        pass
    assert names(kept) == ["fails", "around", "after"]
    assert kept[0].error == "OSError"


@pytest.mark.parametrize("error", [asyncio.CancelledError, Conflict])
def test_who_goes_away_or_is_slower_than_another_has_not_failed(kept: list[Span], error: type[BaseException]) -> None:
    with pytest.raises(error), Tracing(kept.append, ratio=0).span("a", parent=None):
        raise error
    assert kept == []


def test_as_many_failed_traces_are_remembered_as_there_is_room_for(
    kept: list[Span], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infrastructure.telemetry.tracing.MOST_KEPT", 2)
    tracing = Tracing(kept.append)
    for trace_id in ("a", "b", "c"):
        tracing.keep(trace_id)
    assert [tracing.is_kept(trace_id) for trace_id in ("a", "b", "c")] == [False, True, True]


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (b"ot=th:8", " ot=th:8"),
        (b"vendor=ada@example.com, ot=rv:0123456789abcd;th:c ,x=y", " ot=rv:0123456789abcd;th:c"),
        (b"ot=th:8;name:ada", ""),
        (b"ot=ada", ""),
        (b"x=ot=th:8", ""),
        (b"\xff", ""),
        (b"", ""),
        (None, ""),
    ],
)
def test_of_a_tracestate_only_what_sampling_needs_is_kept(state: bytes | None, expected: str) -> None:
    trace = parse_traceparent(TRACE.encode(), state)
    assert trace == TRACE + expected
    assert headers_of_trace(trace) == {"traceparent": TRACE} | ({"tracestate": expected.strip()} if expected else {})


# --- What they carry ------------------------------------------------------------------------------


@pytest.mark.parametrize("text", PERSONAL)
def test_no_attribute_name_or_error_says_what_a_person_might_have_typed(kept: list[Span], text: str) -> None:
    names: list[str] = [*ALLOWED, "email", "registrar.name"]
    attributes: dict[str, str | int] = {}
    attributes.update(dict.fromkeys(names, text))
    del attributes["server.address"]  # which looks like many a word, and comes from a setting
    span = Tracing(kept.append).span(text, parent=TRACE, attributes=attributes)
    span.fail(text)
    span.end()
    (message,) = encoded(kept)
    assert [attribute.key for attribute in message.attributes] == []
    assert text.encode() not in message.SerializeToString()


def test_what_is_on_the_list_is_exported(kept: list[Span]) -> None:
    attributes: dict[str, str | int] = {"http.route": "/v1/registrations/{registration_id}", "smtp.reply_code": 250}
    with Tracing(kept.append).span(
        "POST /v1/registrations/{registration_id}", parent=TRACE, kind=Kind.SERVER, attributes=attributes
    ) as span:
        span.fail("500")
    (message,) = encoded(kept)
    assert message.name == "POST /v1/registrations/{registration_id}"
    assert message.trace_id.hex() == TRACE[3:35]
    assert message.parent_span_id.hex() == TRACE[36:52]
    assert message.kind == 2
    assert message.status.code == 2
    assert message.start_time_unix_nano <= message.end_time_unix_nano
    values = {one.key: one.value.string_value or one.value.int_value for one in message.attributes}
    assert values == attributes | {"error.type": "500"}


# --- Whether they arrive ----------------------------------------------------------------------------


class Lost(Counter[str]):
    """Spans that nobody gets, by reason; `taken`: how many were exported."""

    taken = 0

    def exported(self, spans: int) -> None:
        self.taken += spans

    def lost(self, why: str, spans: int) -> None:
        self[why] += spans


def exporting(post: Post, lost: Lost) -> SpanExport:
    return SpanExport(
        post,
        resource=resource_of("registrar", version="1", instance="a"),
        scope=scope_of("1"),
        on_exported=lost.exported,
        on_lost=lost.lost,
        interval=timedelta(0),
    )


def some(export: SpanExport, number: int) -> None:
    tracing = Tracing(export.put)
    for _ in range(number):
        tracing.span("some", parent=None).end()


async def test_spans_that_were_taken_are_counted_and_go_out_in_batches() -> None:
    calls: list[int] = []

    async def post(body: bytes) -> bytes:
        [resource] = ExportTraceServiceRequest.FromString(body).resource_spans
        calls.append(len(resource.scope_spans[0].spans))
        return b""

    lost = Lost()
    export = exporting(post, lost)
    some(export, 1300)
    running = asyncio.create_task(export.run())
    await eventually(lambda: lost.taken == 1300)
    running.cancel()
    assert calls == [512, 512, 276]
    assert not lost


async def test_what_a_collector_rejects_of_a_call_that_it_takes_is_lost() -> None:
    async def post(_: bytes) -> bytes:
        partial = ExportTracePartialSuccess(rejected_spans=3, error_message="ada@example.com")
        return bytes(ExportTraceServiceResponse(partial_success=partial).SerializeToString())

    lost = Lost()
    export = exporting(post, lost)
    some(export, 10)
    await export.close()
    assert (lost, lost.taken) == ({"refused": 3}, 7)


async def test_a_response_that_is_none_counts_as_taken() -> None:
    async def post(_: bytes) -> bytes:
        return b"<html>"

    lost = Lost()
    export = exporting(post, lost)
    some(export, 10)
    await export.close()
    assert (lost, lost.taken) == ({}, 10)


async def test_past_its_capacity_spans_are_lost_and_counted_and_nobody_waits() -> None:
    async def post(_: bytes) -> bytes:
        raise AssertionError("not called")

    lost = Lost()
    some(exporting(post, lost), CAPACITY + 5)
    assert lost == {"overflow": 5}


async def test_a_call_that_fails_is_made_again_and_a_refused_one_is_not() -> None:
    outcomes = [
        NotTaken("no connection", may_pass=True),
        NotTaken("status 503", may_pass=True),
        None,
        NotTaken("status 400", may_pass=False),
    ]

    async def post(_: bytes) -> bytes:
        outcome = outcomes.pop(0)
        if outcome is not None:
            raise outcome
        return b""

    lost = Lost()
    export = exporting(post, lost)
    running = asyncio.create_task(export.run())
    some(export, 7)
    await eventually(lambda: lost.taken == 7)
    some(export, 2)
    await eventually(lambda: lost["refused"] == 2)
    running.cancel()
    assert outcomes == []


async def test_a_collector_that_is_away_for_long_costs_the_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module, "RETRIED_FOR", timedelta(seconds=-1))

    async def post(_: bytes) -> bytes:
        raise NotTaken("no connection", may_pass=True)

    lost = Lost()
    export = exporting(post, lost)
    running = asyncio.create_task(export.run())
    some(export, 7)
    await eventually(lambda: lost["away"] == 7)
    running.cancel()


async def test_a_stop_does_not_wait_for_a_collector_that_hangs() -> None:
    hangs = asyncio.Event()

    async def post(_: bytes) -> bytes:
        hangs.set()
        await asyncio.Event().wait()
        return b""

    lost = Lost()
    export = exporting(post, lost)
    some(export, 600)
    running = asyncio.create_task(export.run())
    await hangs.wait()
    running.cancel()
    await export.close(timedelta(milliseconds=1))
    assert lost == {"stop": 600}


async def test_a_fault_of_ours_in_the_export_costs_spans_only() -> None:
    async def post(_: bytes) -> bytes:
        raise ZeroDivisionError

    lost = Lost()
    export = exporting(post, lost)
    running = asyncio.create_task(export.run())
    some(export, 7)
    await eventually(lambda: lost["refused"] == 7)
    assert not running.done()
    running.cancel()


async def test_a_fault_of_ours_costs_no_stop() -> None:
    async def post(_: bytes) -> bytes:
        raise ZeroDivisionError

    lost = Lost()
    export = exporting(post, lost)
    some(export, 7)
    await export.close()
    assert lost == {"stop": 7}
