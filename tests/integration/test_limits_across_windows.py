"""A limit across the edges of its windows: two `registrar serve`, one Redis, and every decision by Redis' own time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import NamedTuple

from redis.asyncio import Redis
from redis.asyncio.client import Monitor

from tests.faults.programs import serve
from tests.support.redis import PrivateRedis

AT_ONCE = 50
INTERVAL = 20_000
WINDOW = AT_ONCE * INTERVAL
"""Microseconds; `network=50/1s`."""

REQUESTS = 2000
CONNECTIONS = 40


class Decision(NamedTuple):
    """What Redis decided, between which two of its microseconds."""

    earliest: int
    latest: int
    passed: bool


async def test_across_the_edges_of_windows_exactly_those_pass_that_redis_time_allows(
    dsn: str, redis: PrivateRedis
) -> None:
    settings = {
        "rate_limit_url": redis.url,
        "limits": f"registrations=off, network-day=off, larger-network=off, network={AT_ONCE}/1s",
        "trusted_proxies": "127.0.0.0/8",
    }
    async with Redis(port=redis.port) as client, client.monitor() as monitor:
        async with serve(dsn, how=None, **settings) as one, serve(dsn, how=None, **settings) as other:
            statuses = await _asked_across_windows([one.port, other.port], redis)
        redis.ask("ECHO", "the end")
        decisions = [one async for one in _decisions(monitor)]

    passes = [one for one in decisions if one.passed]
    assert len(statuses) >= REQUESTS
    assert statuses.count(202) == len(passes)
    assert statuses.count(429) == len(statuses) - len(passes)  # most without Redis: whom it refused is remembered
    assert decisions[-1].earliest - decisions[0].latest >= 2 * WINDOW
    _must_be_within_the_limit(passes)
    _must_be_what_the_limit_says(decisions)


async def _asked_across_windows(ports: list[int], redis: PrivateRedis) -> list[int]:
    """The statuses of registrations by one network through both, on many connections, until there were enough and, by
    Redis' clock, three windows are over."""
    statuses: list[int] = []
    begun = _time_of(redis)

    def is_over() -> bool:
        return len(statuses) >= REQUESTS and _time_of(redis) >= begun + 3 * WINDOW

    async def ask(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", ports[number % 2])
        while not is_over():
            body = json.dumps({"email": f"{len(statuses)}of{number}@example.com", "name": "Ada Lovelace"})
            head = ["POST /v1/registrations HTTP/1.1", "Host: localhost", "X-Forwarded-For: 192.0.2.7"]
            head += ["Content-Type: application/json", f"Content-Length: {len(body)}", "", ""]
            writer.write(("\r\n".join(head) + body).encode())
            told = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            await reader.readexactly(int(told.partition("content-length:")[2].split()[0]))
            statuses.append(int(told.split()[1]))
        writer.close()

    async with asyncio.TaskGroup() as group:
        for number in range(CONNECTIONS):
            group.create_task(ask(number))
    return statuses


def _time_of(redis: PrivateRedis) -> int:
    """Microseconds."""
    seconds, microseconds = redis.ask("TIME")
    return int(seconds) * 1_000_000 + int(microseconds)


async def _decisions(monitor: Monitor) -> AsyncIterator[Decision]:
    """From what Redis tells of each command and when it came: a script looks at the time between the command before it
    and its first GET; a GET that a SET follows is of a request that passes."""
    before = at = began = 0
    asked: tuple[int, int] | None = None
    async for told in monitor.listen():
        before, at = at, round(told["time"] * 1_000_000)
        word, *others = told["command"].split(" ")
        if told["command"] == "ECHO the end":
            break
        if told["client_type"] != "lua":
            began = before
        elif word == "TIME":
            looked = None
        elif ":network:" in others[0]:
            if word == "GET":
                if asked is not None:
                    yield Decision(*asked, passed=False)
                looked = looked or at
                asked = began, looked
            elif word == "SET":
                assert asked is not None
                yield Decision(*asked, passed=True)
                asked = None
    if asked is not None:
        yield Decision(*asked, passed=False)


def _must_be_within_the_limit(passes: list[Decision]) -> None:
    """From any pass to any later one no more than come at once, and one for each interval between them. So in a window,
    wherever it begins, at most those and as many again."""
    for first, one in enumerate(passes):
        for count, other in enumerate(passes[first:], start=1):
            assert count <= AT_ONCE + (other.latest - one.earliest) // INTERVAL


def _must_be_what_the_limit_says(decisions: list[Decision]) -> None:
    """Each request passes if the bucket has room for it, and only then: it holds so many, and one leaks in each
    interval. Between the two microseconds of a decision it may be either."""
    least = most = 0  # the time at which the bucket is empty
    for one in decisions:
        room = (AT_ONCE - 1) * INTERVAL
        if one.passed:
            assert least <= one.latest + room
            least, most = max(least, one.earliest) + INTERVAL, max(most, one.latest) + INTERVAL
        else:
            assert most > one.earliest + room
