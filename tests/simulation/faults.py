"""What goes wrong, how long things take, and how rarely either is the same."""

from __future__ import annotations

import asyncio
from random import Random

from tests.simulation.virtual_time import Pause, VirtualLoop


class Faults:
    """How likely each fault is, until the world is healed. Each seed has a selection of its own."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._likelihood: dict[str, float] = {}
        self.healed = False
        self.happened: dict[str, int] = {}

    def allow(self, name: str, *likelihoods: float) -> None:
        """Choose how likely a fault is in this run; not at all in half of the runs."""
        self._likelihood[name] = self._rng.choice((0.0,) * len(likelihoods) + likelihoods)

    def hits(self, name: str) -> bool:
        likelihood = self._likelihood.get(name, 0.0)
        if likelihood == 0.0 or self.healed or self._rng.random() >= likelihood:
            return False
        self.count(name)
        return True

    def count(self, name: str) -> None:
        """It happened."""
        self.happened[name] = self.happened.get(name, 0) + 1


class Windows:
    """Times during which something is the case; none after the healing."""

    def __init__(self) -> None:
        self._windows: list[tuple[float, float]] = []

    def add(self, begin: float, end: float) -> None:
        self._windows.append((begin, end))

    def close(self) -> None:
        self._windows.clear()

    def __contains__(self, moment: float) -> bool:
        return any(begin <= moment < end for begin, end in self._windows)


class Network:
    """Delays."""

    def __init__(self, loop: VirtualLoop, rng: Random, faults: Faults) -> None:
        self.loop = loop
        self._random = rng.random
        self._faults = faults

    def travel(self) -> Pause:
        seconds = self._random() * 0.004
        if self._faults.hits("slow network"):
            seconds += self._random() * 2.0
        return Pause(self.loop, seconds)

    def pause(self, seconds: float) -> Pause:
        return Pause(self.loop, seconds)


def finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
