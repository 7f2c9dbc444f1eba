"""How the service writes its log: one line per event on standard error, and no personal data in it.

How to log::

    log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

    log.info("mail handed over", registration_id=id, server="mail.example.org", attempt=2)
    log.exception("follower stopped, it starts again in 1 s", follower="mail-saga")  # inside an except block

The event is a fixed text; what varies goes into fields. Fields hold ids, numbers, times and short texts of ours;
anything else (models, bytes, unknown objects) is shown by its type only. A field whose name suggests a person or a
secret (`email`, `name`, `code`, `token`, …) shows "[redacted]": call a follower's name `follower` and a refusal's code
`reason`. Of an exception only the class and the places in the code are written: its text may quote what a person typed.
Lines of a task that works on a request, a message or a decision carry its correlation id, and the trace's
(`infrastructure.telemetry.trace_context.DOING`).
"""

from __future__ import annotations

import ipaddress
import json
import logging
import math
import os
import re
import sys
import threading
import traceback
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Literal, TextIO
from uuid import UUID

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from infrastructure.telemetry.log_output import LogOutput
from infrastructure.telemetry.trace_context import DOING, is_context, trace_id_of

MAX_FIELD_LENGTH = 256
"""Characters of a text that are written; docs/security.md, S17."""

REDACTED = "[redacted]"

_OURS = ("application", "domain", "entrypoints", "infrastructure", "projections")
_LIBRARIES = {
    "uvicorn.access": logging.CRITICAL,  # its lines hold paths with query strings; requests are counted in metrics
    "mail.log": logging.ERROR,  # aiosmtpd: below that it logs who writes to whom
    "aiosmtpd": logging.ERROR,
    "aio_pika": logging.CRITICAL,  # `infrastructure.rabbitmq.connection` logs what matters about a connection
    "aiormq": logging.CRITICAL,
    # `eventsourcing.postgres` lowers the level of these two when it is imported. The driver warns of errors that it
    # ignores for the sake of the one that it raises, and quotes what the server says.
    "psycopg": logging.ERROR,
    "psycopg.pool": logging.WARNING,
}

# As one word of a field's name (so not "hostname"), and anywhere in it.
_PERSONAL_WORD = re.compile(
    r"(?:^|[^a-z])(?:address|name|surname|forename|firstname|lastname|fullname|username|code|otp|pin|key|cookie|dsn)"
    r"(?:e?s)?(?:$|[^a-z])"
)
_PERSONAL_PART = re.compile(r"e_?mail|password|passwd|secret|token|authorization|credential")
_HARMLESS = frozenset({"exit_code", "status_code", "error_code"})
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_ADDRESS = re.compile(r"[^\s@<>\"'(),;:]{1,64}@[^\s@<>\"'(),;:]{1,255}")
_PROJECT = Path(__file__).resolve().parents[2]


def configure_logging(
    log_format: Literal["console", "json"] | None = None,
    *,
    messages_of: tuple[type[BaseException], ...] = (),
    stream: TextIO | None = None,
) -> None:
    """Send every log line of the process, structlog's and the standard library's, through one handler. Idempotent.

    Our own packages log from INFO on, libraries from WARNING on. uvicorn needs `log_config=None`, or it installs
    handlers of its own. An exception that ends a thread or the process is logged too, not printed with its values.
    A line never waits for whoever reads it: see `LogOutput`.

    Args:
        log_format: None means console on a terminal, else json.
        messages_of: our own exceptions whose text is known to be harmless, and is written too (subclasses as well).
        stream: standard error unless a test says otherwise.
    """
    stream = stream or sys.stderr
    if log_format is None:
        log_format = "console" if stream.isatty() else "json"
    renderer: Processor = _render_json
    if log_format == "console":
        renderer = structlog.dev.ConsoleRenderer(colors=stream.isatty() and "NO_COLOR" not in os.environ)

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _add_ids,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _Exceptions(messages_of),
        _clean,
    ]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,  # a second call must reach the loggers that exist
    )
    handler = _Handler(stream, lost_before=lines_lost())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[_first_line, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.captureWarnings(capture=True)
    for name in _OURS:
        logging.getLogger(name).setLevel(logging.INFO)
    for name, level in _LIBRARIES.items():
        logging.getLogger(name).setLevel(level)
    sys.excepthook = _log_unhandled
    threading.excepthook = lambda end: _log_unhandled(end.exc_type, end.exc_value, end.exc_traceback)


def lines_lost() -> int:
    """Lines that could not be written, since logging was first configured."""
    return sum(handler.lost for handler in logging.getLogger().handlers if isinstance(handler, _Handler))


class _Handler(logging.StreamHandler[TextIO]):
    def __init__(self, stream: TextIO, *, lost_before: int) -> None:
        super().__init__(stream)
        self._lost_before = lost_before
        try:
            self._output: LogOutput | None = LogOutput(stream.fileno(), _lost)
        except (OSError, ValueError):  # a text in memory, which makes nobody wait
            self._output = None

    @property
    def lost(self) -> int:
        return self._lost_before + (self._output.lost if self._output else 0)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - whoever logs is not harmed by it
            # Without its values, which the standard library would print.
            line = json.dumps({"level": "error", "event": "a log line was lost", "logger": record.name})
        if self._output is not None:
            self._output.write(f"{line}\n".encode(errors="backslashreplace"))
        elif not self.stream.closed:
            self.stream.write(f"{line}\n")

    def flush(self) -> None:
        if self._output is not None:
            self._output.flush()


def _lost(lines: int) -> bytes:
    notice = {"timestamp": datetime.now(UTC).isoformat(), "level": "warning", "event": "log lines were lost"}
    return f"{json.dumps(notice | {'lines': lines})}\n".encode()


def _log_unhandled(kind: type[BaseException], end: BaseException | None, trace: TracebackType | None) -> None:
    if end is None or issubclass(kind, KeyboardInterrupt | SystemExit):
        return
    structlog.get_logger("infrastructure.telemetry.logs").critical(
        "nobody handled an error", exc_info=(kind, end, trace)
    )


def _add_ids(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Say by which request it came to this, and in which trace."""
    doing = DOING.get()
    if doing is not None:
        event.setdefault("correlation_id", str(doing.correlation_id))
        if doing.trace is not None and is_context(doing.trace):
            event.setdefault("trace_id", trace_id_of(doing.trace))
    return event


class _Exceptions:
    """Turns `exc_info` into the field `raised`: classes and places, with the text of allowed classes only."""

    def __init__(self, messages_of: tuple[type[BaseException], ...]) -> None:
        self._messages_of = messages_of

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        info = event.pop("exc_info", None)
        event.pop("stack_info", None)
        error = info if isinstance(info, BaseException) else info[1] if isinstance(info, tuple) else None
        if info and error is None and not isinstance(info, tuple):
            error = sys.exc_info()[1]
        for key, value in event.items():
            if isinstance(value, BaseException):
                event[key] = self._title(value)
        if error is not None:
            event["raised"] = _Trusted(self._chain(error))
        return event

    def _chain(self, error: BaseException, depth: int = 0) -> str:
        text = f"{self._title(error)} {_places(error)}".rstrip()
        if isinstance(error, BaseExceptionGroup) and depth < 3:
            inner = "; ".join(self._chain(one, depth + 1) for one in error.exceptions[:3])
            text += f" [of {len(error.exceptions)}: {inner}]"
        before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if before is not None and depth < 3:
            text += f", after {self._chain(before, depth + 1)}"
        return text

    def _title(self, error: BaseException) -> str:
        kind = type(error)
        title = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        return f"{title}: {_text(str(error))}" if isinstance(error, self._messages_of) else title


class _Trusted(str):
    """A text composed here, of parts that are already clean and bounded."""

    __slots__ = ()


def _places(error: BaseException) -> str:
    """Where it was raised and through which calls it came, innermost first: `(file:line function < …)`."""
    frames = traceback.StackSummary.extract(traceback.walk_tb(error.__traceback__), lookup_lines=False)
    places = [f"{_short(frame.filename)}:{frame.lineno} {frame.name}" for frame in reversed(frames[-10:])]
    return f"({' < '.join(places)})" if places else ""


def _short(filename: str) -> str:
    path = Path(filename)
    if "site-packages" in path.parts:
        return "/".join(path.parts[path.parts.index("site-packages") + 1 :])
    return str(path.relative_to(_PROJECT)) if path.is_relative_to(_PROJECT) else path.name


def _first_line(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    # asyncio, for example, puts the exception's repr on the second line of its messages.
    event["event"] = str(event["event"]).split("\n", 1)[0]
    return event


def _clean(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    first = {key: event.pop(key, None) for key in ("timestamp", "level", "logger", "event")}
    first["event"] = _text(str(first["event"]))
    # ProcessorFormatter passes the record along in the event, under keys of its own.
    rest = {key: value if key.startswith("_") else _field(key, value) for key, value in event.items()}
    return first | {key if key.startswith("_") else _text(key): value for key, value in rest.items()}


def _field(key: str, value: object, depth: int = 0) -> object:
    if _is_personal(key):
        return REDACTED
    return _value(value, depth)


def _is_personal(key: str) -> bool:
    name = _CAMEL.sub("_", key).lower()
    return name not in _HARMLESS and bool(_PERSONAL_PART.search(name) or _PERSONAL_WORD.search(name))


def _value(value: object, depth: int) -> object:
    match value:
        case None | bool() | int() | _Trusted():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case str():
            return _text(value)
        case Enum():
            return _value(value.value, depth)
        case datetime() | date():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case UUID() | Path() | ipaddress.IPv4Address() | ipaddress.IPv6Address():
            return _text(str(value))
        case type():
            return _text(value.__qualname__)
        case Mapping() if depth < 3:
            return {_text(str(key)): _field(str(key), one, depth + 1) for key, one in list(value.items())[:20]}
        case list() | tuple() | set() | frozenset() if depth < 3:
            return [_value(one, depth + 1) for one in list(value)[:20]]
        case _:
            return f"<{type(value).__qualname__}>"


def _text(text: str) -> str:
    """One printable line of at most 256 characters, without mail addresses."""
    text = text[: 4 * MAX_FIELD_LENGTH]
    if "@" in text:
        text = _ADDRESS.sub(REDACTED, text)
    if not text.isprintable():
        text = "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)
    return text if len(text) <= MAX_FIELD_LENGTH else f"{text[: MAX_FIELD_LENGTH - 1]}…"


def _render_json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    return json.dumps(event)
