"""Does it take longer to register an address that is known, in whatever state, than a new one? And to try a code?

Wall clock time of whole requests over one kept connection, each address asked about once, the kinds in random order.
With a password, 10 ms of hashing would hide what is looked for. It comes before anything is looked up, and is given
nothing but the password and a salt, so all the rest is measured: its time with the least hashing there is; and with the
real one, which drives everything else out of the processor's caches, its CPU time, in which hashing has no part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from statistics import median

import psycopg

from bench.cluster import Cluster
from bench.processes import MASTER_KEY, Process, registrar_serve, serve_hashing_least
from bench.report import Row
from tests.support.load import post
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

STATES = ("pending", "active", "cancelled", "erased", "limited")
CROWDED = "crowded"
"""Remembers as many registrations and mails as it can: it takes four networks and a day to make one."""

CODELESS = ("duplicate", "superseded")
"""Registrations that no code opens, which their registrants must not know."""

WITHIN = 20.0
"""Microseconds."""

_WARM_UP = 500
_PASSWORD = "correct horse battery"  # noqa: S105 - nobody's

Addresses = Mapping[str, list[Address]]


def run(cluster: Cluster, *, blocks: int, hashed: int) -> list[Row]:
    """
    Args:
        blocks: of one request of each kind.
        hashed: the same with the real hashing, which takes ten times as long.
    """
    counts = dict.fromkeys(STATES, 2 * blocks + hashed) | dict.fromkeys((CROWDED, "pending again", *CODELESS), blocks)
    with cluster.fresh() as dsn:
        addresses = prepare(dsn, MASTER_KEY, counts)
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")
        cluster.settle()
        return [*without_a_password(dsn, addresses, blocks), *with_a_password(dsn, addresses, blocks)]


def without_a_password(dsn: str, addresses: Addresses, blocks: int) -> Iterator[Row]:
    with registrar_serve(dsn, NO_LIMITS) as serve:
        _warm_up(serve, "warm")
        known = {state: addresses[state][:blocks] for state in (*STATES, CROWDED)}
        with closing(Asker(serve.port)) as asker:
            yield from _registering(asker, "registering", known)
        yield from _trying(serve.port, addresses)


def with_a_password(dsn: str, addresses: Addresses, blocks: int) -> Iterator[Row]:
    with serve_hashing_least(dsn, NO_LIMITS) as serve:
        _warm_up(serve, "warmer", _PASSWORD)
        known = {state: addresses[state][blocks : 2 * blocks] for state in STATES}
        with closing(Asker(serve.port)) as asker:
            yield from _registering(asker, "with a password, but for its hashing", known, _PASSWORD)
    with registrar_serve(dsn, NO_LIMITS) as serve:
        _warm_up(serve, "warmest")
        known = {state: addresses[state][2 * blocks :] for state in STATES}
        with closing(Asker(serve.port, cpu_of=[serve.pid, *backends_of_the_service(dsn)])) as asker:
            yield from _registering(asker, "after a password's hashing, CPU", known, _PASSWORD)


def _warm_up(serve: Process, tag: str, password: str | None = None) -> None:
    with closing(Asker(serve.port)) as asker:
        for request in registering((email(tag, number) for number in range(_WARM_UP)), password):
            asker.ask(request)


def _registering(asker: Asker, what: str, known: Addresses, password: str | None = None) -> list[Row]:
    new = [email(f"{len(known)}{what[-2:]}", number) for number in range(len(next(iter(known.values()))))]
    asked = {"new": new} | {state: [one.email for one in those] for state, those in known.items()}
    return _rows(what, asker.blocks({state: registering(emails, password) for state, emails in asked.items()}))


def _trying(port: int, addresses: Addresses) -> Iterator[Row]:
    for what, path, body, status in (
        ("a new code", "otp", b"", 202),
        ("a wrong code", "verification", b'{"code": "000000"}', 422),
    ):
        requests = {
            kind: [post(f"/v1/registrations/{one.registrations[-1]}/{path}", body) for one in addresses[kind]]
            for kind in ("pending again", *CODELESS)
        }
        with closing(Asker(port, status=status)) as asker:
            yield from _rows(what, asker.blocks(requests))


def _rows(what: str, found: Mapping[str, list[float]]) -> list[Row]:
    first, taken = next(iter(found.items()))

    def row(kind: str, low: float, middle: float, high: float) -> Row:
        return Row(
            f"{what}: {kind}, median of {len(taken):,} paired differences",
            first,
            f"{middle:+.1f} µs [{low:+.1f}, {high:+.1f}]",
            f"{median(taken):,.0f} µs",
            max(-low, high),
            "µs",
            WITHIN,
            False,
            {},
        )

    return [row(kind, one.low, one.median, one.high) for kind, one in against_new(found).items()]
