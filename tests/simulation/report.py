"""Running many seeds: what failed, how to replay it, and what is known to fail."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable

from tests.simulation.world import simulate

KNOWN: frozenset[int] = frozenset()
"""Seeds that show a bug that is reported and not mended yet. Strict: one that holds again fails the suite."""


def replay(seed: int) -> str:
    return f"replay: .venv/bin/python -m tests.simulation --seed {seed} --trace"


def run_all(seeds: Iterable[int], *, trace: bool, stop_after: int) -> int:
    """Run seeds and print what came of it; answers how many failed."""
    started = time.perf_counter()
    failed = done = events = steps = copies = 0
    faults: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    for seed in seeds:
        run = simulate(seed, trace=trace)
        done, events, steps, copies = done + 1, events + run.events, steps + run.steps, max(copies, run.copies)
        faults.update(run.faults)
        ends.update(run.ends)
        for line in run.trace:
            print(line)
        if run.violation is not None:
            failed += 1
            print(f"seed {seed}: {run.violation}\n    {replay(seed)}", flush=True)
            if failed >= stop_after:
                break
    for what, counted in (("faults", faults), ("ends", ends)):
        print(f"{what}: " + ", ".join(f"{name} {number}" for name, number in sorted(counted.items())))
    seconds = time.perf_counter() - started
    print(
        f"{done} seeds, {failed} failed; {events} events, {steps} steps, at most {copies} copies of a mail;"
        f" {seconds:.1f} s, {1000 * seconds / max(1, done):.1f} ms a seed"
    )
    return failed
