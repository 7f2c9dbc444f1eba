"""Spans as OTLP has them, with nothing but what is on a list: the last look before they leave the process."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span as EncodedSpan
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from opentelemetry.sdk import resources
from opentelemetry.semconv.schemas import Schemas

from infrastructure.telemetry.tracing import Span, Value

CONVENTIONS: Final = Schemas.V1_44_0.value
"""The conventions that names and attributes follow: the latest that the locked release knows."""

_ID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_NUMBER = r"\d{1,19}"
_DESTINATION = r"registrar[a-z.:]{0,100}"
_ROUTE = r"(/[A-Za-z0-9_.{}-]*){1,12}"

ALLOWED: Final = {
    "db.collection.name": re.compile("events"),
    "db.operation.name": re.compile("append"),
    "db.system.name": re.compile("postgresql"),
    "error.type": re.compile(r"[A-Za-z][A-Za-z-]{0,60}|[45]\d\d"),
    "http.request.method": re.compile(r"[A-Z]{3,7}|_OTHER"),
    "http.response.status_code": re.compile(r"\d{1,3}"),
    "http.route": re.compile(_ROUTE),
    "messaging.destination.name": re.compile(_DESTINATION),
    "messaging.message.conversation_id": re.compile(_ID),
    "messaging.message.id": re.compile(rf"{_ID}\.{_NUMBER}\.{_NUMBER}|{_NUMBER}"),
    "messaging.operation.name": re.compile("publish|consume"),
    "messaging.operation.type": re.compile("send|process"),
    "messaging.rabbitmq.destination.routing_key": re.compile(r"[a-z.]{1,60}"),
    "messaging.system": re.compile("rabbitmq"),
    "network.protocol.name": re.compile("smtp"),
    "registrar.correlation_id": re.compile(_ID),
    "registrar.event": re.compile(r"[a-z_]{1,40}\.[a-z_]{1,40}"),
    "registrar.position": re.compile(_NUMBER),
    "registrar.registration_id": re.compile(_ID),
    "server.address": re.compile(r"[0-9A-Za-z.:_-]{1,253}"),
    "server.port": re.compile(r"\d{1,5}"),
    "smtp.reply_code": re.compile(r"\d{3}"),
}
"""What a span may carry (docs/security.md, S9), and how each value looks. Anything else is left out."""

_NAME: Final = re.compile(
    rf"([A-Z]{{3,7}}|_OTHER)( {_ROUTE})?|append events|mail-saga (decide|deadline)|deliver mail|smtp"
    rf"|(publish|consume) {_DESTINATION}"
)
"""How a span is called; any other name is left out."""


def resource_of(service: str, *, version: str, instance: str) -> Resource:
    """Who makes the spans, with what stands in `OTEL_RESOURCE_ATTRIBUTES`."""
    found = resources.Resource.create(
        {
            "service.namespace": "registrar",
            "service.name": service,
            "service.version": version,
            "service.instance.id": instance,
        }
    )
    return Resource(attributes=[_key_value(key, str(value)) for key, value in found.attributes.items()])


def scope_of(version: str) -> InstrumentationScope:
    """What makes the spans."""
    return InstrumentationScope(name="registrar", version=version)


def encoded(spans: Iterable[Span]) -> list[EncodedSpan]:
    """Spans for an `ExportTraceServiceRequest`."""
    return [_encoded(span) for span in spans]


def _encoded(span: Span) -> EncodedSpan:
    return EncodedSpan(
        name=span.name if _NAME.fullmatch(span.name) else "unnamed",
        trace_id=bytes.fromhex(span.trace_id),
        span_id=bytes.fromhex(span.span_id),
        parent_span_id=bytes.fromhex(span.parent_id),
        flags=int(span.sampled),
        kind=int(span.kind),  # type: ignore[arg-type]  # its numbers are those of `Kind`
        start_time_unix_nano=span.began,
        end_time_unix_nano=span.ended,
        attributes=_allowed(span.attributes if span.error is None else {**span.attributes, "error.type": span.error}),
        links=[_link(one) for one in span.links],
        status=None if span.error is None else Status(code=Status.STATUS_CODE_ERROR),
    )


def _allowed(attributes: Mapping[str, Value]) -> list[KeyValue]:
    return [
        _key_value(key, value)
        for key, value in attributes.items()
        if (allowed := ALLOWED.get(key)) is not None and allowed.fullmatch(str(value))
    ]


def _key_value(key: str, value: Value) -> KeyValue:
    return KeyValue(
        key=key, value=AnyValue(string_value=value) if isinstance(value, str) else AnyValue(int_value=value)
    )


def _link(trace: str) -> EncodedSpan.Link:
    return EncodedSpan.Link(trace_id=bytes.fromhex(trace[3:35]), span_id=bytes.fromhex(trace[36:52]))
