"""The log: one line per event, and nothing in it that a person typed."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import threading
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import pytest
import structlog
from structlog.typing import FilteringBoundLogger

from infrastructure.telemetry.logs import configure_logging

CANARY = "canary-7f3a"


class Harmless(Exception):
    """Stands for an exception of ours whose text is fixed."""


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def log(stream: io.StringIO) -> FilteringBoundLogger:
    configure_logging("json", messages_of=(Harmless,), stream=stream)
    logger: FilteringBoundLogger = structlog.get_logger("infrastructure.test")
    return logger


def fail() -> None:
    raise ValueError(CANARY)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def line(stream: io.StringIO) -> dict[str, Any]:
    (only,) = lines(stream)
    return only


def test_an_event_is_one_line_of_json_in_utc(log: FilteringBoundLogger, stream: io.StringIO) -> None:
    log.info("mail handed over", attempt=2, took=timedelta(seconds=1.5), registration_id=UUID(int=1))

    written = line(stream)
    assert written.pop("timestamp").endswith("Z")
    assert written == {
        "level": "info",
        "logger": "infrastructure.test",
        "event": "mail handed over",
        "attempt": 2,
        "took": 1.5,
        "registration_id": "00000000-0000-0000-0000-000000000001",
    }


def test_the_format_is_json_where_nobody_watches_and_console_where_asked_for(stream: io.StringIO) -> None:
    configure_logging(None, stream=stream)
    structlog.get_logger("infrastructure.test").info("first")
    configure_logging("console", stream=stream)
    structlog.get_logger("infrastructure.test").info("second", attempt=2)

    first, second = stream.getvalue().splitlines()
    assert json.loads(first)["event"] == "first"
    assert "second" in second
    assert "attempt=2" in second


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_nobody_can_forge_a_second_line(stream: io.StringIO, log_format: Literal["console", "json"]) -> None:
    configure_logging(log_format, stream=stream)

    structlog.get_logger("infrastructure.test").info(
        'a\n{"level":"ERROR"}', agent='x\r\n{"level":"ERROR"}\x1b[2J\u2028\u202e\x85\udc80', **{"k\ney": 1}
    )

    written = stream.getvalue()
    assert written.count("\n") == 1
    assert written.rstrip("\n").isprintable()


def test_a_long_text_is_cut(log: FilteringBoundLogger, stream: io.StringIO) -> None:
    log.info("x" * 10_000, agent="y" * 1_000_000)

    written = line(stream)
    assert len(written["event"]) == len(written["agent"]) == 256


def test_fields_that_speak_of_a_person_or_a_secret_are_redacted(log: FilteringBoundLogger, stream: io.StringIO) -> None:
    personal = [
        "email", "Email", "user_email", "userEmail", "e_mail", "recipient_address", "address", "name", "display-name",
        "firstname", "username", "password", "passwordHash", "code", "otp_code", "codes", "token", "access_token",
        "authorization", "Authorization", "client_secret", "master_key", "cookie",
    ]  # fmt: skip
    log.info("x", **dict.fromkeys(personal, CANARY), nested={"deep": {"email": CANARY}})

    assert CANARY not in stream.getvalue()
    assert all(line(stream)[field] == "[redacted]" for field in personal)


def test_fields_that_only_sound_like_it_are_kept(log: FilteringBoundLogger, stream: io.StringIO) -> None:
    kept = ["status_code", "exit_code", "hostname", "filename", "encoding", "follower", "reason", "position"]
    log.info("x", **dict.fromkeys(kept, "kept"))

    assert all(line(stream)[field] == "kept" for field in kept)


def test_a_mail_address_is_redacted_wherever_it_stands(log: FilteringBoundLogger, stream: io.StringIO) -> None:
    log.info("gone to ann@example.org", reply="550 <ann@example.org> unknown", many=["ann@example.org"])

    assert "ann" not in stream.getvalue()
    assert line(stream)["reply"] == "550 <[redacted]> unknown"


def test_an_unknown_object_shows_its_type_only(log: FilteringBoundLogger, stream: io.StringIO) -> None:
    @dataclass
    class Person:
        nickname: str

    log.info("x", person=Person(CANARY), raw=CANARY.encode(), many=[Person(CANARY)], kind=Person)

    assert CANARY not in stream.getvalue()
    assert "Person>" in line(stream)["person"]


def test_numbers_that_json_does_not_know_stay_valid_json(log: FilteringBoundLogger, stream: io.StringIO) -> None:
    log.info("x", ratio=float("nan"))

    assert line(stream)["ratio"] == "nan"


def test_an_exception_shows_its_classes_and_places_but_not_what_it_says(
    log: FilteringBoundLogger, stream: io.StringIO
) -> None:
    def use(value: str) -> None:
        try:
            int(value)
        except ValueError as error:
            raise RuntimeError(f"cannot use {value}") from error

    try:
        use(CANARY)
    except RuntimeError as error:
        log.exception("follower stopped", cause=error)

    written = line(stream)
    assert CANARY not in stream.getvalue()
    assert written["raised"].startswith("RuntimeError (tests/unit/test_logs.py:")
    assert " use < " in written["raised"]
    assert ", after ValueError (tests/unit/test_logs.py:" in written["raised"]
    assert written["cause"] == "RuntimeError"


def test_a_group_of_exceptions_shows_what_is_in_it(log: FilteringBoundLogger, stream: io.StringIO) -> None:
    log.error("x", exc_info=ExceptionGroup(CANARY, [ValueError(CANARY), Harmless("database is away")]))

    assert CANARY not in stream.getvalue()
    assert "ValueError" in line(stream)["raised"]
    assert "Harmless: database is away" in line(stream)["raised"]


def test_an_exception_of_ours_may_say_why(log: FilteringBoundLogger, stream: io.StringIO) -> None:
    class Narrower(Harmless):
        pass

    try:
        raise Narrower("the database is away\nsince 10 s")
    except Harmless:
        log.exception("x")

    assert "Narrower: the database is away\\nsince 10 s (" in line(stream)["raised"]


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_an_exception_does_not_add_lines(stream: io.StringIO, log_format: Literal["console", "json"]) -> None:
    configure_logging(log_format, stream=stream)
    try:
        fail()
    except ValueError:
        structlog.get_logger("infrastructure.test").exception("x")

    assert stream.getvalue().count("\n") == 1


def test_libraries_log_through_the_same_door_from_warning_on(log: FilteringBoundLogger, stream: io.StringIO) -> None:
    logging.getLogger("psycopg.pool").info("quiet")
    logging.getLogger("psycopg.pool").warning("error connecting in %r: %s", "pool-1", "refused\ndetails")
    try:
        fail()
    except ValueError:
        logging.getLogger("uvicorn.error").exception("Exception in ASGI application\n")

    first, second = lines(stream)
    assert first["event"] == "error connecting in 'pool-1': refused"
    assert first["level"] == "warning"
    assert second["raised"].startswith("ValueError (")
    assert CANARY not in stream.getvalue()


def test_those_who_write_addresses_are_quiet(log: FilteringBoundLogger, stream: io.StringIO) -> None:
    logging.getLogger("mail.log").warning("%r sender: %s", "peer", CANARY)
    logging.getLogger("uvicorn.access").info("GET /v1/admin/registrations?email=%s", CANARY)
    logging.getLogger("psycopg").warning("error ignored terminating %r: %s", "<AsyncPipeline>", CANARY)

    assert stream.getvalue() == ""


async def test_a_task_nobody_waited_for_does_not_tell_what_it_failed_with(
    log: FilteringBoundLogger, stream: io.StringIO
) -> None:
    asyncio.get_running_loop().call_exception_handler(
        {"message": "Task exception was never retrieved", "exception": ValueError(CANARY), "future": ValueError(CANARY)}
    )

    assert line(stream)["event"] == "Task exception was never retrieved"
    assert line(stream)["raised"] == "ValueError"
    assert CANARY not in stream.getvalue()


def test_what_ends_a_thread_is_logged_without_its_values(log: FilteringBoundLogger, stream: io.StringIO) -> None:
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()

    assert line(stream)["level"] == "critical"
    assert line(stream)["raised"].startswith("ValueError (tests/unit/test_logs.py:")
    assert CANARY not in stream.getvalue()


def test_a_line_that_cannot_be_rendered_is_reported_without_its_values_and_harms_nobody(
    log: FilteringBoundLogger, stream: io.StringIO
) -> None:
    root = logging.getLogger()
    root.handlers[:] = [one for one in root.handlers if "pytest" not in type(one).__module__]  # they would raise

    logging.getLogger("library").warning("%d", CANARY)

    assert line(stream) == {"level": "error", "event": "a log line was lost", "logger": "library"}


def test_a_closed_stream_harms_nobody(log: FilteringBoundLogger, stream: io.StringIO) -> None:
    stream.close()

    log.info("x")


def test_what_is_bound_to_the_task_is_on_every_line(log: FilteringBoundLogger, stream: io.StringIO) -> None:
    with structlog.contextvars.bound_contextvars(correlation_id="c-1", email=CANARY):
        log.info("x")
        logging.getLogger("library").warning("y")

    assert [written["correlation_id"] for written in lines(stream)] == ["c-1", "c-1"]
    assert CANARY not in stream.getvalue()


def test_configuring_again_does_not_double_the_lines(log: FilteringBoundLogger, stream: io.StringIO) -> None:
    configure_logging("json", stream=stream)

    log.info("x", path=Path("/tmp"))  # noqa: S108 - nothing is written there

    assert line(stream)["path"] == "/tmp"  # noqa: S108
