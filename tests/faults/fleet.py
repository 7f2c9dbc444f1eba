"""Real processes around a real database and mail server: started, killed, paused and started again.

    async with Fleet(dsn, sink.port, directory=tmp_path, reached=reached_directory) as fleet:
        api = await fleet.serve()
        worker = await fleet.process(armed="worker.after_claim")
        ...
        await worker.dies()            # at its crash point: exit status -9, or the test fails
        await worker.start()           # again, unarmed
        assert await api.stop() == 0   # SIGTERM

Nodes that still run at the end of the block are asked to stop (SIGTERM) and must exit with 0.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self
from urllib.parse import urlsplit

import httpx
import psutil  # type: ignore[import-untyped]
import psycopg

from entrypoints.queries.followers import followers_with
from infrastructure.settings.settings import Settings
from tests.faults.evidence import MASTER_KEY, HealthSample, Moment, ResourceSample
from tests.faults.journal import Faults
from tests.faults.noted_spans import NOTED_IN
from tests.support.facts import eventually
from tests.support.http import ANY_NUMBER, NO_TLS
from tests.support.log import by_way_of, proxy_to, query
from tests.support.preforked import Forked, fork
from tests.support.tcp_proxy import TcpProxy

ROOT = Path(__file__).parents[2]
TOKEN = "t0ken-of-the-fleet-for-its-operators"
REGISTRAR = Path(sys.executable).with_name("registrar")
STARTS_WITHIN = 60.0

FOLLOWS = "name NOT LIKE '%\\_\\_%'"
"""Of a follower; copies of read models stand still beside them."""

_UNSETTLED = """
    SELECT count(*)
    FROM read_registrations.progress AS p
    LEFT JOIN read_mail.mails AS m ON m.registration_id = p.registration_id AND m.serial = p.serial
    WHERE p.status = 'VERIFIED'
       OR (p.status = 'PENDING' AND (m.state IS NULL OR m.state NOT IN ('SENT', 'WITHHELD')))
"""

_IS_UP = {
    "serve": re.compile(r"^API +(http\S+)$", re.MULTILINE),
    "process": re.compile(r"^(Following) the log", re.MULTILINE),
    "work": re.compile(r"^(Taking) mails", re.MULTILINE),
}

NodeKind = Literal["serve", "process", "work"]

AT_ONCE: Final = "0.01"
"""`stop_delay` where no load balancer is to hear of a stop: a second less for each test."""


class Node:
    """One `registrar` process of a fleet, and those that take its place after it.

    Attributes:
        log: everything that it wrote, over all its lives.
        url: where the API answers; the port stays the same over all lives.
        exits: exit status of each life that is over.
        killed: when each process was killed, in seconds since 1970, by its id.
    """

    def __init__(
        self,
        name: str,
        kind: NodeKind,
        environment: Mapping[str, str],
        directory: Path,
        reached: Path,
        command: Sequence[str | Path] | None,
        faults: Faults,
    ) -> None:
        self.name = name
        self.kind = kind
        self.environment = dict(environment)
        self.log = directory / f"{name}.log"
        self.exits: list[int] = []
        self.killed: dict[int, float] = {}
        self._reached = reached
        self._command = command
        self._faults = faults
        self._port = 0
        self._popen: subprocess.Popen[bytes] | Forked | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        assert self.is_running, f"{self.name} does not run"
        assert self._popen is not None
        return self._popen.pid

    @property
    def is_running(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    @property
    def written(self) -> str:
        """Its log so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    async def start(self, *, armed: str | None = None, wait: bool = True) -> Self:
        """Begin a life.

        Args:
            armed: crash point at which it dies, `"worker.after_claim"` or `"worker.after_claim:3"`.
            wait: until it is up; False where it may die before.
        """
        assert not self.is_running, f"{self.name} runs already"
        if armed is not None:
            self._fails("dies")
        before = len(self.written)
        self._popen = self._begun(armed)
        if wait:
            await self.until_up(since=before)
            if armed is None:
                self._faults.end_if_begun(f"{self.name} dies")
        return self

    def _begun(self, armed: str | None) -> subprocess.Popen[bytes] | Forked:
        """Blocks for the milliseconds of a fork; asyncio's own processes would need its loop to be waited for."""
        words = [self.kind, *(["--port", str(self._port)] if self.kind == "serve" else [])]
        with self.log.open("ab") as log:
            if self._command is None:
                death = None if armed is None else (armed, self._reached)
                return fork(*words, environment=self.environment, stdout=log, stderr=log, armed=death)
            assert armed is None, "what runs with a command of its own cannot be armed"
            return subprocess.Popen([*self._command, *words], cwd=ROOT, env=self.environment, stdout=log, stderr=log)

    async def revive(self, *, within: float = STARTS_WITHIN) -> Self:
        """Begin a life as a supervisor has it: again and again, while what the process needs to start is away."""
        assert not self.is_running, f"{self.name} runs already"
        since = 0

        async def up() -> re.Match[str] | None:
            nonlocal since
            if not self.is_running:
                if self._popen is not None:
                    await self.ends()
                since = self.log.stat().st_size
                await self.start(wait=False)
            return _IS_UP[self.kind].search(self._written_since(since))

        await eventually(up, within=within)
        self._faults.end_if_begun(f"{self.name} dies")
        return self

    def _written_since(self, offset: int) -> str:
        with self.log.open("rb") as log:
            log.seek(offset)
            return log.read().decode(errors="replace")

    async def until_up(self, *, since: int = 0) -> None:
        def up() -> re.Match[str] | None:
            written = self.written[since:]
            assert self.is_running, f"{self.name} ended at its start:\n{written}"
            return _IS_UP[self.kind].search(written)

        found = await eventually(up, within=STARTS_WITHIN)
        if self.kind == "serve":
            self._port = urlsplit(found[1]).port or 0

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def pause(self) -> None:
        """SIGSTOP."""
        self._fails("pauses")
        self.signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        self.signal(signal.SIGCONT)
        self._faults.end_if_begun(f"{self.name} pauses")

    async def kill(self) -> None:
        """SIGKILL, and certain that it was that."""
        self._fails("dies")
        self.killed[self.pid] = time.time()
        self.signal(signal.SIGKILL)
        await self.dies()

    async def dies(self, *, within: float = 60) -> None:
        """Wait until it was killed: by us, or by itself at its crash point."""
        assert await self.ends(within=within) == -signal.SIGKILL, self.written[-2000:]

    async def stop(self) -> int:
        """SIGTERM; answers the exit status, which is 0 for an orderly end."""
        self._fails("dies")
        self.signal(signal.SIGTERM)
        return await self.ends()

    def _fails(self, how: str) -> None:
        self._faults.begin(f"{self.name} {how}", "api" if self.kind == "serve" else "process", node=self.name)

    async def ends(self, *, within: float = 60) -> int:
        """Wait for its end; answers the exit status."""
        popen = self._popen
        assert popen is not None

        def over() -> bool:
            return popen.poll() is not None

        await eventually(over, within=within)
        self._popen = None
        self.exits.append(popen.wait())
        return self.exits[-1]

    def end_at_once(self) -> None:
        """Whatever state it is in."""
        if self._popen is not None and self._popen.poll() is None:
            self._popen.kill()
            self._popen.wait()

    def resources(self, moment: Moment) -> ResourceSample:
        """What it takes now."""
        process = psutil.Process(self.pid)
        with process.oneshot():
            return ResourceSample(
                at=datetime.now(UTC),
                node=self.name,
                kind=self.kind,
                moment=moment,
                rss=process.memory_info().rss,
                fds=process.num_fds(),
                threads=process.num_threads(),
            )


class Fleet:
    """Nodes that share a database and a mail server.

    What it does to its nodes is noted in `faults`, from before it happens until the node is up again.

    Args:
        dsn: URL of the database; tables are made by the first node.
        smtp_port: of the mail server on 127.0.0.1.
        directory: for logs.
        reached: where crash points are noted (fixture `reached_directory`).
        spans: where nodes note their spans (`tests.faults.noted_spans`); None: they do not.
        settings: of every node, lower-case and without prefix: `send_timeout="2"`.
    """

    def __init__(
        self,
        dsn: str,
        smtp_port: int,
        *,
        directory: Path,
        reached: Path,
        spans: Path | None = None,
        **settings: str,
    ) -> None:
        self.dsn = dsn
        self.nodes: list[Node] = []
        self.health: list[HealthSample] = []
        self.resources: list[ResourceSample] = []
        self.faults = Faults()
        self._smtp_port = smtp_port
        self._directory = directory
        self._reached = reached
        self.spans = spans
        self._settings = {"send_timeout": "2", "log_format": "json", "admin_token": TOKEN} | settings

    async def serve(self, **options: Any) -> Node:
        """Start a `registrar serve` on a free port; see `add` for the options."""
        return await self.add("serve", **options)

    async def process(self, **options: Any) -> Node:
        """Start a `registrar process`; see `add` for the options."""
        return await self.add("process", **options)

    async def work(self, **options: Any) -> Node:
        """Start a `registrar work`, which needs the fleet's setting `broker_url`; see `add` for the options."""
        return await self.add("work", **options)

    async def add(
        self,
        kind: NodeKind,
        *,
        armed: str | None = None,
        wait: bool = True,
        dsn: str | None = None,
        smtp_port: int | None = None,
        prefix: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        **settings: str,
    ) -> Node:
        """Start one more node.

        Args:
            armed, wait: see `Node.start`.
            dsn, smtp_port: of this node alone: by way of a proxy (`database_through`, `TcpProxy.port`).
            prefix: program that runs it: `("prlimit", "--nofile=64")`.
            environment: further variables, such as `LD_PRELOAD`.
            settings: of this node alone, on top of the fleet's.
        """
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("REGISTRAR_")}
        chosen = self.settings(dsn=dsn, smtp_port=smtp_port, **settings)
        name = f"{kind}-{sum(node.kind == kind for node in self.nodes) + 1}"
        node = Node(
            name,
            kind,
            inherited | chosen | self._noting | dict(environment or {}),
            self._directory,
            self._reached,
            # Forked where it is the same from its first line on as what would be started.
            [*prefix, REGISTRAR] if prefix or environment else None,
            self.faults,
        )
        self.nodes.append(node)
        return await node.start(armed=armed, wait=wait)

    @property
    def _noting(self) -> dict[str, str]:
        return {} if self.spans is None else {NOTED_IN: str(self.spans)}

    def settings(self, *, dsn: str | None = None, smtp_port: int | None = None, **settings: str) -> dict[str, str]:
        """Environment variables of a node; arguments as of `add`."""
        chosen = (
            self._settings
            | {
                "database_url": dsn or self.dsn,
                "smtp_urls": f"smtp://127.0.0.1:{smtp_port or self._smtp_port}?starttls=never",
                "master_key": MASTER_KEY,
                "data_dir": str(self._directory / "data"),
                "limits": f"{ANY_NUMBER}, mails=off",  # who gets no answer asks again and again
            }
            | settings
        )
        return {f"REGISTRAR_{name.upper()}": value for name, value in chosen.items()}

    @property
    def senders(self) -> NodeKind:
        """Kind of the nodes that send mails."""
        return "work" if "broker_url" in self._settings else "process"

    async def until_it_leads(self) -> None:
        """Wait until every follower has a leader."""
        followers = self._followers()

        async def led() -> bool:
            rows = await query(
                self.dsn,
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND classid = hashtext('registrar follower')::oid"
                " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            )
            return bool(rows[0][0] >= len(followers))

        await eventually(led, within=60)

    async def until_caught_up(self, *, within: float = 120) -> None:
        """Wait until every follower has seen the whole log, and nothing more comes of that.

        What a process of another release has put aside must have been tried again, which takes a leader a minute.
        """
        followers = self._followers()

        async def caught_up() -> bool:
            rows = await query(
                self.dsn,
                "SELECT (SELECT position FROM head), count(*), min(position),"
                f" EXISTS (SELECT FROM parked_events AS parked (name) WHERE {FOLLOWS} AND tried_at IS NULL)"
                f" FROM followers WHERE {FOLLOWS}",
            )
            head, count, least, untried = rows[0]
            return bool(count >= len(followers) and least == head and not untried)

        await eventually(caught_up, within=within)

    def _followers(self) -> Sequence[str]:
        return followers_with(Settings.from_environment(self.settings()))

    async def end_leases(self) -> int:
        """Let the time of every send claim be over, instead of waiting for that; answers how many there were."""
        rows = await query(
            self.dsn,
            "UPDATE send_claims SET lease_until = clock_timestamp() - interval '1 second'"
            " WHERE lease_until > clock_timestamp() RETURNING 1",
        )
        return len(rows)

    async def look(self, node: Node) -> None:
        """Ask an API how it is, for I16."""
        async with httpx.AsyncClient(base_url=node.url, timeout=5, verify=NO_TLS) as http:
            for probe in ("live", "ready"):
                at = datetime.now(UTC)
                status, state = None, None
                with suppress(httpx.TransportError):
                    answer = await http.get(f"/health/{probe}")
                    status, state = answer.status_code, answer.json()["status"]
                self.health.append(HealthSample(at, node.name, probe, status, state, datetime.now(UTC) - at))

    async def stop(self) -> None:
        """Ask the nodes that run to stop (SIGTERM); all of them have to exit with 0."""
        running = [node for node in self.nodes if node.is_running]
        for node in running:
            node.signal(signal.SIGTERM)
        assert {node.name: await node.ends() for node in running} == {node.name: 0 for node in running}

    def measure(self, moment: Moment) -> None:
        """Note what every running node takes, for I11: "before" any fault, "during", and "after" healing."""
        for node in self.nodes:
            if node.is_running:
                with suppress(psutil.NoSuchProcess):  # it dies at this very moment
                    self.resources.append(node.resources(moment))

    async def texts(self) -> dict[str, str]:
        """Everything that the nodes wrote and show to whoever watches, for I10."""
        texts = {f"log of {node.name}": node.written for node in self.nodes}
        async with httpx.AsyncClient(timeout=5, verify=NO_TLS) as http:
            for node in self.nodes:
                if node.kind == "serve" and node.is_running:
                    answer = await http.get(f"{node.url}/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
                    texts[f"metrics of {node.name}"] = answer.text
        return texts

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                await self.stop()
        finally:
            for node in self.nodes:
                node.end_at_once()


async def unsettled(dsn: str) -> int:
    """How many registrations wait for their mail to go out or to be withheld, or to become an account."""
    rows = await query(dsn, _UNSETTLED)
    return int(rows[0][0])


@asynccontextmanager
async def database_through(dsn: str) -> AsyncIterator[tuple[TcpProxy, str]]:
    """A proxy in front of the database, and the URL of the database by way of it."""
    async with proxy_to(dsn) as proxy:
        yield proxy, by_way_of(proxy, dsn)


def kill_postmaster(pid: int) -> None:
    """SIGKILL the server's first process, and return when all of its processes are gone; start it again yourself."""
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    processes[0].send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive, f"{len(alive)} processes of the server outlive their postmaster"


def backends_of(dsn: str) -> list[int]:
    """Process ids of the server's sessions in this database, ours left out."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        rows = connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND backend_type = 'client backend'"
        ).fetchall()
    return [row[0] for row in rows]
