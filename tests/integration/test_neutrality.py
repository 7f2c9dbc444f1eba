"""S2: nobody learns from the time of an answer whether an address is known.

What is measured is the CPU time that a request costs the API and its two sessions in PostgreSQL, taken from the kernel:
unlike a duration, it hardly depends on what else the machine does. `make bench ARGS="--only neutrality"` measures the
duration itself. A difference counts once the whole interval of its median lies beyond `ALARM`, which is five times what
the benchmark allows: that leaves room for a machine on which everything takes longer.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from tests.support.commands import clean_environment, started
from tests.support.neutrality import (
    NO_LIMITS,
    Address,
    Asker,
    against_new,
    backends_of_the_service,
    email,
    prepare,
    registering,
)
from tests.support.paired import MedianInterval

PAIRS = 600
STATES = ("pending", "active", "cancelled", "erased", "limited")
MASTER_KEY = "7" * 64
LEAK, ALARM = 200, 100
"""Microseconds."""

CONFIDENCE = 1 - 1e-6

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the kernel tells no CPU time by nanoseconds"),
]


@contextmanager
def asking(dsn: str, leak: int) -> Iterator[Asker]:
    """An API that works so many microseconds longer for a known address, and is warm."""
    environment = clean_environment(DATABASE_URL=dsn, MASTER_KEY=MASTER_KEY) | NO_LIMITS
    command = (sys.executable, "-m", "tests.support.planted_leak", str(leak), "--", "serve", "--port", "0")
    with started(*command, until="http://", environment=environment) as (process, printed):
        [url] = [word for word in printed[-1].split() if word.startswith("http://")]
        port = urlsplit(url).port
        assert port is not None
        warming = Asker(port)
        for request in registering(email(f"{leak:04}w", number) for number in range(200)):
            warming.ask(request)
        warming.close()
        asker = Asker(port, cpu_of=[process.pid, *backends_of_the_service(dsn)])
        yield asker
        asker.close()


def longer_than_new(asker: Asker, known: Mapping[str, Sequence[Address]], tag: str) -> dict[str, MedianInterval]:
    new = registering(email(tag, number) for number in range(PAIRS))
    others = {state: registering(one.email for one in those) for state, those in known.items()}
    return against_new(asker.blocks({"new": new} | others), CONFIDENCE)


def is_told(difference: MedianInterval) -> bool:
    return difference.low > ALARM or difference.high < -ALARM


def test_no_state_of_an_address_shows_in_the_work_of_a_registration_and_a_leak_would(dsn: str) -> None:
    """600 pairs for each state, and as many with a planted leak of 200 µs.

    A false alarm needs a true median beyond 100 µs, or an interval that misses it: one in two million for each of five
    states (`CONFIDENCE`), if pairs are independent. To miss the leak, the interval would have to reach more than the
    100 µs to its side by which the leak is beyond the alarm; with 400 pairs on a busy machine it reached 20 to 50.
    """
    addresses = prepare(dsn, MASTER_KEY, dict.fromkeys(STATES, PAIRS) | {"pending again": PAIRS})
    leaky = {"pending again": addresses.pop("pending again")}
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("ANALYZE events")  # as autovacuum would have, which is off here

    with asking(dsn, 0) as asker:
        as_it_is = longer_than_new(asker, addresses, "new")
    with asking(dsn, LEAK) as asker:
        planted = longer_than_new(asker, leaky, "others")

    assert not {state: difference for state, difference in as_it_is.items() if is_told(difference)}
    assert is_told(planted["pending again"])
