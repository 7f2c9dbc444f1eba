#!/usr/bin/env bash
# opentelemetry-sdk 1.45.2. Needs Python 3.11 or later.
#
# AlwaysRecordSampler is for those who look at every span, whatever is sampled: to count them, or to keep each that
# failed. It promises its root's result, with DROP turned into RECORD_ONLY. But the SDK's other samplers answer DROP
# without attributes, and a span's attributes are those of the answer. So a span that the ratio leaves out is recorded
# without all that it was started with: no route, no queue, no id; just what was set later is there. The spans that are
# sampled have them, so nothing is missed until the one that failed is looked at.
#
# Expected: every recorded span has the attributes that it was started with.
# Seen:
#   sampled: {'http.route': '/v1/registrations', 'http.response.status_code': 500}
#   recorded only: {'http.response.status_code': 500}
set -euo pipefail
source "$(dirname "$0")/support/common.sh"
install opentelemetry-api==1.45.2 opentelemetry-sdk==1.45.2
python <<'PYTHON'
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import AlwaysRecordSampler, ParentBasedTraceIdRatio

ROUTE, STATUS = {"http.route": "/v1/registrations"}, {"http.response.status_code": 500}


class Looking(SpanProcessor):
    """Gets every recorded span, sampled or not."""

    def __init__(self):
        self.seen = []

    def on_end(self, span):
        self.seen.append((span.context.trace_flags.sampled, dict(span.attributes)))


def recorded(ratio):
    looking = Looking()
    tracing = TracerProvider(sampler=AlwaysRecordSampler(ParentBasedTraceIdRatio(ratio)), shutdown_on_exit=False)
    tracing.add_span_processor(looking)
    with tracing.get_tracer("finding").start_as_current_span("POST", attributes=ROUTE) as span:
        span.set_attributes(STATUS)
    ((sampled, attributes),) = looking.seen
    print(f"{'sampled' if sampled else 'recorded only'}: {attributes}")
    return sampled, attributes


assert recorded(1.0) == (True, ROUTE | STATUS)
assert recorded(0.0) == (False, STATUS)
PYTHON
echo "still so"
