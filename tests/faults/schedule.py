"""What the nemesis does, and when: a pure function of a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from projections import PROJECTIONS

FaultKind = Literal[
    "node killed",
    "node paused",
    "backend killed",
    "postmaster killed",
    "connections reset",
    "connections refused",
    "connections held",
    "commits slowed",
    "head locked",
    "mail away",
    "mail refused",
    "mail hangs",
    "mail cut after the dot",
    "mail greylisted",
    "read model rebuilt",
    "read model verified",
    "broker killed",
    "broker paused",
    "broker connections reset",
    "broker connections held",
]
Kind = FaultKind | Literal["crash loop", "quiet"]

NODES: Final = ("serve-1", "serve-2", "process-1", "process-2")
WORKERS: Final = ("work-1", "work-2")
"""Beside the others where mail goes over a broker."""

BROKER: Final = "broker"
MAIL_PATH: Final = "relay, workers and broker"
"""Target of a crash loop that leaves the API and the database alone."""

WEIGHTS: Final[dict[FaultKind, int]] = {
    "node killed": 5,
    "node paused": 3,
    "backend killed": 1,
    "postmaster killed": 1,
    "connections reset": 2,
    "connections refused": 1,
    "connections held": 2,
    "commits slowed": 1,
    "head locked": 1,
    "mail away": 1,
    "mail refused": 1,
    "mail hangs": 1,
    "mail cut after the dot": 1,
    "mail greylisted": 1,
    "read model rebuilt": 3,
    "read model verified": 1,
}
"""How often each kind comes in one pack of cards; a pack begins with one of each."""

BROKER_WEIGHTS: Final[dict[FaultKind, int]] = {
    "broker killed": 2,
    "broker paused": 2,
    "broker connections reset": 2,
    "broker connections held": 2,
}
"""On top of those where mail goes over a broker."""

_LASTS: Final[dict[FaultKind, tuple[float, float]]] = {
    "node killed": (0.5, 3),
    "node paused": (1, 15),
    "backend killed": (0, 0),
    "postmaster killed": (0.5, 3),
    "connections reset": (0, 0),
    "connections refused": (1, 8),
    "connections held": (1, 10),
    "commits slowed": (2, 8),
    "head locked": (1, 8),
    "mail away": (2, 8),
    "mail refused": (1, 3),
    "mail hangs": (2, 8),
    "mail cut after the dot": (1, 4),
    "mail greylisted": (2, 8),
    "read model rebuilt": (1, 4),
    "read model verified": (0, 0),
    "broker killed": (0.5, 5),
    "broker paused": (1, 15),
    "broker connections reset": (0, 0),
    "broker connections held": (1, 15),
}
_DETAILS: Final[dict[FaultKind, tuple[str, ...]]] = {
    "connections held": ("to server", "to client"),
    "broker connections held": ("to server", "to client"),
    "commits slowed": ("0.1", "0.2", "0.4"),
    "mail hangs": ("banner", "mail", "rcpt", "data", "eod"),
    "read model rebuilt": ("", "SIGKILL", "SIGINT"),
}

QUIET: Final = 10.0
CRASH_LOOP: Final = 24.0
WHOLE: Final = 120.0
"""A run of at least so many seconds has quiet times and a crash loop of their whole length; in a shorter one they are
shorter in proportion, so that there is room for every kind of fault."""
_FAULTS_IN_A_ROW: Final = (9, 13)
_BETWEEN: Final = (0.7, 3.0)


@dataclass(frozen=True, slots=True)
class Planned:
    """One thing that the nemesis does.

    Attributes:
        after: seconds since the previous one began; since everything was healed, if that is a quiet time.
        target: a node, a read model, "postgres", "mail" or "broker"; of network faults the node whose connections they
            hit; of a crash loop what dies: everything, or `MAIL_PATH`.
        lasts: seconds; of a kill until the next start.
        detail: what else there is to choose: a direction, a stage, a figure, a signal.
    """

    after: float
    kind: Kind
    target: str = ""
    lasts: float = 0.0
    detail: str = ""


def schedule(seed: int, seconds: float, *, broker: bool = False) -> list[Planned]:
    """Rows of faults that may overlap, each followed by a quiet time; half way a crash loop (A17).

    The same arguments give the same schedule. It takes about `seconds`.

    Args:
        broker: mail goes over one, so there are workers, and faults of the broker.
    """
    chance = random.Random(seed)  # noqa: S311 - repeatable
    cards = _cards(chance, WEIGHTS | BROKER_WEIGHTS if broker else WEIGHTS)
    nodes = nodes_of(broker=broker)
    quiet, loop = (min(1.0, seconds / WHOLE) * lasts for lasts in (QUIET, CRASH_LOOP))
    planned: list[Planned] = []
    at, looped = 0.0, False
    while at < seconds:
        row = list(_row(chance, cards, nodes, most=seconds - at))
        began = [sum(one.after for one in row[: number + 1]) for number in range(len(row))]
        planned += [*row, Planned(0.0, "quiet", lasts=quiet)]
        at += max((begin + one.lasts for begin, one in zip(began, row, strict=True)), default=0.0) + quiet
        if not looped and seconds / 3 <= at < seconds:
            looped = True
            planned += [Planned(0.0, "crash loop", lasts=loop, detail=str(chance.getrandbits(32)))]
            planned += [Planned(0.0, "quiet", lasts=quiet)]
            at += loop + quiet
    return planned


def killings(seed: int, seconds: float) -> list[Planned]:
    """Relay, workers and broker die again and again for `seconds`, and then all is quiet."""
    chance = random.Random(seed)  # noqa: S311 - repeatable
    return [
        Planned(0.0, "crash loop", MAIL_PATH, seconds, str(chance.getrandbits(32))),
        Planned(0.0, "quiet", lasts=QUIET),
    ]


def nodes_of(*, broker: bool) -> tuple[str, ...]:
    """Names of the fleet's nodes."""
    return (*NODES, *WORKERS) if broker else NODES


def _row(chance: random.Random, cards: Iterator[FaultKind], nodes: Sequence[str], *, most: float) -> Iterator[Planned]:
    elapsed = 0.0
    for _ in range(chance.randint(*_FAULTS_IN_A_ROW)):
        after = round(chance.uniform(*_BETWEEN), 2)
        elapsed += after
        if elapsed > most:
            return
        kind = next(cards)
        lasts = round(chance.uniform(*_LASTS[kind]), 2)
        yield Planned(after, kind, _target(chance, kind, nodes), lasts, chance.choice(_DETAILS.get(kind, ("",))))


def _target(chance: random.Random, kind: FaultKind, nodes: Sequence[str]) -> str:
    node = chance.choice(nodes)
    if kind.startswith("mail"):
        return "mail"
    if kind.startswith("read model"):
        return chance.choice(PROJECTIONS).name
    if kind.startswith("broker"):
        return BROKER
    return "postgres" if kind in {"backend killed", "postmaster killed", "head locked"} else node


def _cards(chance: random.Random, weights: Mapping[FaultKind, int]) -> Iterator[FaultKind]:
    while True:
        first = list(weights)
        rest = [kind for kind, weight in weights.items() for _ in range(weight - 1)]
        chance.shuffle(first)
        chance.shuffle(rest)
        yield from (*first, *rest)
