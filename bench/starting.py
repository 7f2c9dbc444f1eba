"""How soon a process that starts is ready, and the memory it takes; beside an earlier build where there is one."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import psutil  # type: ignore[import-untyped]

from bench.cluster import Cluster
from bench.processes import Process, cpu_seconds, load, of_build, sink
from bench.report import Row
from bench.through_rabbitmq import virtual_host
from tests.support.rabbitmq import free_ports, node

_RATE, _SECONDS = 10.0, 1.0
"""Registrations before memory is looked at: what is loaded at the first use is there by then."""

_PATIENCE = 30.0
_MIB = 2**20

Found = dict[str, float]
"""What was measured by its name: seconds, or bytes."""

_tags = (f"start{number}" for number in count())


@dataclass(frozen=True, slots=True)
class _Home:
    """A build with a database, a virtual host and a data directory of its own: each has its own tables and caches.

    Attributes:
        tree: the build's checkout; None for this one.
    """

    tree: Path | None
    settings: dict[str, str]
    mail: Process
    directory: Path


def run(cluster: Cluster, *, before: Path | None, repetitions: int) -> list[Row]:
    """Rows of seconds and of memory. The builds take turns, and each has started once before: that one is cold."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with ExitStack() as stack:
        rabbit = stack.enter_context(node(prefix="registrar-bench-"))
        builds = {"ours": None} if before is None else {"ours": None, "before": before.resolve()}
        homes = {}
        for side, tree in builds.items():
            mail = stack.enter_context(sink())
            settings = {
                "REGISTRAR_BROKER_URL": stack.enter_context(virtual_host(rabbit)),
                "REGISTRAR_SMTP_URLS": f"smtp://127.0.0.1:{mail.port}?starttls=never",
                "REGISTRAR_DATABASE_URL": stack.enter_context(cluster.fresh(schema=False)),
            }
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="registrar-bench-")))
            homes[side] = _Home(tree, settings, mail, directory)
        for number in range(1 + repetitions):
            for side, home in homes.items():
                for what, figure in (_apart(home) | _together(home)).items():
                    if number:
                        found[what][side].append(figure)
    return [_row(what, sides) for what, sides in found.items()]


def _row(what: str, sides: dict[str, list[float]]) -> Row:
    middle = {side: statistics.median(figures) for side, figures in sides.items()}
    is_memory = what.startswith("memory")
    told = {side: f"{figure / _MIB:.1f} MiB" if is_memory else f"{figure:.2f} s" for side, figure in middle.items()}
    compared = "before" in middle
    return Row(
        what,
        "the earlier build" if compared else "",
        told["ours"],
        told.get("before", ""),
        middle["ours"] / middle["before"] if compared else middle["ours"] / (_MIB if is_memory else 1),
        "x" if compared else "MiB" if is_memory else "s",
        (0.85 if is_memory else 0.6) if compared and "CPU" not in what else None,
        at_least=False,
        details={"every repetition": dict(sides)},
    )


# --- Each command in a process of its own ---------------------------------------------------------


def _apart(home: _Home) -> Found:
    with ExitStack() as stack:
        begun = time.perf_counter()
        serve = stack.enter_context(of_build(home.tree, "serve", "--port", "0", ready="API", settings=home.settings))
        found = _readiness("serve", serve, begun)
        process = stack.enter_context(of_build(home.tree, "process", ready="Following", settings=home.settings))
        work = stack.enter_context(of_build(home.tree, "work", ready="Taking", settings=home.settings))
        already = home.mail.ask("count")
        sent = _register(serve)
        _until(lambda: home.mail.ask("count") >= already + sent)
        processes = {"serve": serve, "process": process, "work": work}
        return found | {f"memory of `{name}` (PSS)": _memory(one.pid) for name, one in processes.items()}


# --- Everything in one process --------------------------------------------------------------------


def _together(home: _Home) -> Found:
    (port,) = free_ports(1)
    words = ("up", "--port", str(port), "--data-dir", str(home.directory))
    begun = time.perf_counter()
    with of_build(home.tree, *words, ready="Registrar", settings={}) as up:
        up.port = port
        found = _readiness("up", up, begun)
        sent = _register(up)
        _until(lambda: len(_answer(up, "/mailbox/messages")[1]) >= sent)
        urllib.request.urlopen(
            urllib.request.Request(f"http://127.0.0.1:{up.port}/mailbox/messages", method="DELETE")
        ).close()
        postgres = int((home.directory / "postgres" / "postmaster.pid").read_text().split()[0])
        alone = _memory(up.pid)
        return found | {
            "memory of `up` (PSS)": alone,
            "memory of `up` with PostgreSQL (PSS)": alone + _memory(postgres, with_children=True),
        }


# --- What is looked at ----------------------------------------------------------------------------


def _readiness(name: str, process: Process, begun: float) -> Found:
    _until(lambda: _answer(process, "/health/ready")[0] == 200, pause=0.002)
    return {
        f"start to ready of `{name}`, warm": time.perf_counter() - begun,
        f"CPU of the start of `{name}`": cpu_seconds(process.pid),
    }


def _register(process: Process) -> int:
    """A few registrations; answers how many."""
    outcome = load(process, what="register", tag=next(_tags), rate=_RATE, seconds=_SECONDS)
    assert set(outcome["statuses"]) == {"202"}, outcome["statuses"]
    return len(outcome["moments"])


def _memory(pid: int, *, with_children: bool = False) -> float:
    process = psutil.Process(pid)
    everyone = [process, *(process.children(recursive=True) if with_children else ())]
    return float(sum(one.memory_full_info().pss for one in everyone))


def _answer(process: Process, path: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{process.port}{path}") as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, None


def _until(condition: Callable[[], bool], *, pause: float = 0.05) -> None:
    deadline = time.perf_counter() + _PATIENCE
    while not condition():
        if time.perf_counter() > deadline:
            raise RuntimeError("it does not get there")
        time.sleep(pause)
