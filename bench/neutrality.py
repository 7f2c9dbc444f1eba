"""Does it take longer to register an address that is known, in whatever state, than a new one? And to try a code?

Wall clock time of whole requests over one kept connection, each address asked about once, the kinds in random order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

import psycopg

from bench.cluster import Cluster
from bench.processes import MASTER_KEY, cpu_seconds, registrar_serve
from bench.report import Row
from tests.support.load import post
from tests.support.neutrality import NO_LIMITS, Address, Asker, against_new, email, prepare, registering

STATES = ("pending", "active", "cancelled", "erased", "limited")
CROWDED = "crowded"
"""Remembers as many registrations as it can: it takes four networks and sixteen requests to make one."""

CODELESS = ("duplicate", "superseded")
"""Registrations that no code opens, which their registrants must not know."""

WITHIN = 20.0
"""Microseconds."""

_WARM_UP = 500
_PASSWORD = "correct horse battery"  # noqa: S105 - nobody's

Emails = dict[str, list[str]]


def run(cluster: Cluster, *, blocks: int, hashed: int, others: int) -> list[Row]:
    """
    Args:
        blocks: of one registration of each kind.
        hashed: the same with a password, which takes twenty times as long.
        others: pairs for a crowded mailbox, and for wrong codes and new codes.
    """
    counts = dict.fromkeys(STATES, blocks + hashed) | dict.fromkeys((CROWDED, "pending again", *CODELESS), others)
    with cluster.fresh() as dsn:
        addresses = prepare(dsn, MASTER_KEY, counts)
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")
        cluster.settle()
        emails = {state: [one.email for one in those] for state, those in addresses.items()}
        plain = {state: emails[state][:blocks] for state in STATES}
        with_password = {state: emails[state][blocks:] for state in STATES}
        with registrar_serve(dsn, NO_LIMITS) as serve:
            asker = Asker(serve.port)
            for request in registering(email("warm", number) for number in range(_WARM_UP)):
                asker.ask(request)
            return [
                *_registering(asker, serve.pid, "registering", plain, WITHIN),
                *_registering(asker, serve.pid, "registering", {CROWDED: emails[CROWDED]}, None),
                *_registering(asker, serve.pid, "with a password", with_password, None, _PASSWORD),
                *_trying(serve.port, addresses),
            ]


def _registering(
    asker: Asker, pid: int, what: str, known: Emails, within: float | None, password: str | None = None
) -> list[Row]:
    new = [email(f"new {what[0]}{len(known)}", number) for number in range(len(next(iter(known.values()))))]
    cpu = cpu_seconds(pid)
    found = asker.blocks({"new": registering(new, password)} | {s: registering(e, password) for s, e in known.items()})
    each = (cpu_seconds(pid) - cpu) / sum(map(len, found.values())) * 1e6
    return _rows(what, found, within, {"CPU of the API for each, us": each})


def _trying(port: int, addresses: Mapping[str, list[Address]]) -> Iterator[Row]:
    for what, path, body, status in (
        ("a new code", "otp", b"", 202),
        ("a wrong code", "verification", b'{"code": "000000"}', 422),
    ):
        asker = Asker(port, status=status)
        requests = {
            kind: [post(f"/v1/registrations/{one.registrations[-1]}/{path}", body) for one in addresses[kind]]
            for kind in ("pending again", *CODELESS)
        }
        yield from _rows(what, asker.blocks(requests), None, {})
        asker.close()


def _rows(what: str, found: dict[str, list[float]], within: float | None, details: dict[str, Any]) -> list[Row]:
    first, taken = next(iter(found.items()))

    def row(kind: str, low: float, middle: float, high: float) -> Row:
        return Row(
            f"{what}: {kind}, median of {len(taken):,} paired differences",
            first,
            f"{middle:+.1f} µs [{low:+.1f}, {high:+.1f}]",
            f"{median(taken):,.0f} µs",
            max(-low, high),
            "µs",
            within,
            False,
            details,
        )

    return [row(kind, one.low, one.median, one.high) for kind, one in against_new(found).items()]
