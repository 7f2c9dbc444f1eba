#!/usr/bin/env bash
# structlog 26.1.0, CPython 3.11 to 3.13. Needs Python 3.11 or later.
#
# The standard library's way to log without blocking is a QueueHandler in front and a QueueListener with the real handler
# behind it. structlog's way to render lines of both is ProcessorFormatter at the real handler. Together they lose every
# line of structlog's: QueueHandler makes the record's message a text before it queues it, and ProcessorFormatter
# expects the dict that wrap_for_formatter left there. Each line becomes "--- Logging error ---" on standard error, from
# the listener's thread and with the values that were logged, and the program goes on. Lines of the standard library's
# own loggers arrive, so the log is not empty.
#
# Expected: both lines arrive.
# Seen:
#   arrived: ['from logging']
set -euo pipefail
source "$(dirname "$0")/support/common.sh"
install structlog==26.1.0
python <<'PYTHON'
import contextlib
import io
import logging
import logging.handlers
import queue

import structlog

structlog.configure(
    processors=[structlog.stdlib.add_log_level, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
    logger_factory=structlog.stdlib.LoggerFactory(),
    wrapper_class=structlog.stdlib.BoundLogger,
)


class Lines(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        try:
            self.lines.append(self.format(record))
        except Exception:
            self.handleError(record)


arriving = Lines()
arriving.setFormatter(structlog.stdlib.ProcessorFormatter(processors=[
    structlog.stdlib.ProcessorFormatter.remove_processors_meta,
    structlog.processors.KeyValueRenderer(key_order=["event"]),
]))
waiting = queue.SimpleQueue()
root = logging.getLogger()
root.setLevel(logging.INFO)
root.addHandler(logging.handlers.QueueHandler(waiting))
listener = logging.handlers.QueueListener(waiting, arriving)
with contextlib.redirect_stderr(io.StringIO()) as errors:
    listener.start()
    structlog.get_logger("a").info("from structlog")
    logging.getLogger("b").info("from logging")
    listener.stop()
print("arrived:", arriving.lines)
assert len(arriving.lines) == 1
assert "from logging" in arriving.lines[0]
assert "from structlog" not in arriving.lines[0]
assert "'str' object has no attribute 'copy'" in errors.getvalue()
PYTHON
echo "still so"
