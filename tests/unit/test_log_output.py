"""Log lines whose reader has stopped, gone or no room: they are lost and counted, and hold nobody up."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from infrastructure.telemetry.log_output import WAITING_BYTES, LogOutput
from infrastructure.telemetry.logs import configure_logging, lines_lost

NOTICE = b"%d lost\n"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            continue  # the test has closed it


def output_to(descriptor: int) -> LogOutput:
    return LogOutput(descriptor, lambda lost: NOTICE % lost)


def read_in_background(descriptor: int) -> tuple[threading.Thread, list[bytes]]:
    """Reads until the other end is closed."""
    pieces: list[bytes] = []

    def read() -> None:
        while piece := os.read(descriptor, 65536):
            pieces.append(piece)

    thread = threading.Thread(target=read)
    thread.start()
    return thread, pieces


def numbered(count: int, length: int = 200) -> list[bytes]:
    return [f"{number:0{length}}\n".encode() for number in range(count)]


@pytest.mark.fault("H4")
def test_a_reader_that_has_stopped_costs_the_lines_past_the_bound_and_then_learns_how_many(
    pipe: tuple[int, int],
) -> None:
    reading, writing = pipe
    output = output_to(writing)
    lines = numbered(2 * WAITING_BYTES // 200)

    for line in lines:
        output.write(line)  # would wait for ever once the pipe is full

    lost = output.lost
    assert 0 < lost < len(lines)
    thread, pieces = read_in_background(reading)
    output.flush(60)
    output.write(b"last\n")
    os.close(writing)
    thread.join()
    read = b"".join(pieces).splitlines(keepends=True)
    told = [int(line.split()[0]) for line in read if line.endswith(b" lost\n")]
    sent = set(lines)
    written = [line for line in read if line in sent]
    assert written == sorted(set(written))
    assert len(written) == len(lines) - lost
    assert sum(told) == lost  # twice, if the thread first had a core when lines were lost already
    assert len(read) == len(written) + len(told) + 1
    assert read[-1] == b"last\n"


def test_lines_longer_than_a_pipe_takes_at_once_arrive_whole_and_in_order(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    output = output_to(writing)
    lines = [line for length in (100, 100_000, 10, 5_000) for line in numbered(2, length)]
    thread, pieces = read_in_background(reading)

    for line in lines:
        output.write(line)

    output.flush(60)
    os.close(writing)
    thread.join()
    assert b"".join(pieces) == b"".join(lines)
    assert output.lost == 0


def test_a_line_is_written_before_anything_else_happens_while_there_is_room(pipe: tuple[int, int]) -> None:
    reading, writing = pipe

    output_to(writing).write(b"the last words\n")

    os.set_blocking(reading, False)
    assert os.read(reading, 100) == b"the last words\n"


def test_a_closed_pipe_costs_lines_only(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    output = output_to(writing)
    os.close(reading)

    for line in numbered(10):
        output.write(line)

    assert output.lost == 10


def test_a_full_disk_costs_lines_only(tmp_path: Path) -> None:
    with Path("/dev/full").open("wb", buffering=0) as full, (tmp_path / "log").open("wb", buffering=0) as disk:
        output = output_to(full.fileno())
        for line in numbered(10):
            output.write(line)
        assert output.lost == 10

        os.dup2(disk.fileno(), full.fileno())  # there is room again
        output.write(b"first\n")
        output.write(b"second\n")

    assert (tmp_path / "log").read_bytes() == NOTICE % 10 + b"first\nsecond\n"
    assert output.lost == 10


def test_what_comes_after_half_a_line_begins_a_line(pipe: tuple[int, int], tmp_path: Path) -> None:
    reading, writing = pipe
    output = output_to(writing)
    long = b"x" * 200_000 + b"\n"  # more than the pipe has room for

    output.write(long)
    os.read(reading, 1000)
    os.close(reading)
    output.flush(60)
    with (tmp_path / "log").open("wb", buffering=0) as disk:
        os.dup2(disk.fileno(), writing)
        output.write(b"next\n")

    assert (tmp_path / "log").read_bytes() == b"\n" + NOTICE % 1 + b"next\n"


def test_the_service_log_counts_what_it_loses_and_says_so_in_a_line_of_its_own(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full, (tmp_path / "log").open("w") as disk:
        configure_logging("json", stream=full)
        log = structlog.get_logger("infrastructure.test")
        log.warning("x")
        log.warning("y")
        assert lines_lost() == 2
        configure_logging("json", stream=full)  # as a service does once it is up: a counter must not go back
        assert lines_lost() == 2
        log.warning("w")
        os.dup2(disk.fileno(), full.fileno())
        log.warning("z")

    notice, line = map(json.loads, (tmp_path / "log").read_text().splitlines())
    assert without_time(notice) == {"level": "warning", "event": "log lines were lost", "lines": 1}
    assert line["event"] == "z"


def without_time(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key != "timestamp"}
