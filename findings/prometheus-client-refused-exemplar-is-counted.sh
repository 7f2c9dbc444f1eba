#!/usr/bin/env bash
# prometheus-client 0.26.0. Needs Python 3.11 or later.
#
# An exemplar ties a count to the trace that caused it; OpenMetrics allows its labels 128 characters. A longer one is
# refused with a ValueError, as it should be, but only after the counter has been counted up, or the histogram's sum:
# the caller is told that nothing was recorded, and whoever tries again without the exemplar counts twice. A histogram
# is left with a sum that no count goes with, so that its mean is wrong from there on.
#
# Expected: a call that raises ValueError changes nothing.
# Seen:
#   counter after a refused inc(): 1.0
#   histogram after a refused observe(2.0): sum 2.0, count 1.0
set -euo pipefail
source "$(dirname "$0")/support/common.sh"
install prometheus-client==0.26.0
python <<'PYTHON'
from prometheus_client import CollectorRegistry, Counter, Histogram

TOO_LONG = {"trace_state": "v" * 128}
registry = CollectorRegistry()
counter = Counter("requests", "Requests.", registry=registry)
histogram = Histogram("seconds", "Time.", buckets=(1.0, 5.0), registry=registry)


def refused(call):
    try:
        call()
    except ValueError as error:
        print("refused:", error)
        return True
    return False


assert refused(lambda: counter.inc(exemplar=TOO_LONG))
counted = registry.get_sample_value("requests_total")
print("counter after a refused inc():", counted)
assert refused(lambda: histogram.observe(2.0, exemplar=TOO_LONG))
total, count = registry.get_sample_value("seconds_sum"), registry.get_sample_value("seconds_count")
print(f"histogram after a refused observe(2.0): sum {total}, count {count}")
assert counted == 1.0
assert total == 2.0
PYTHON
echo "still so"
