"""The mail servers' circuits, shared by all workers through the database: one opens it for all, one probes for all.

Each worker counts calls for itself; it only publishes to the others that a circuit has opened, or closed again. They
read that every second, and so do the relay, which leaves mails in the log while no server can be called, and the health
checks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import psycopg
import structlog
from purgatory.domain.model import CLOSED, OPENED
from purgatory.typing import StateName

from application.ports import Unavailable
from infrastructure.mail.circuits import Circuit
from infrastructure.postgres.connection import Connection, ReconnectingConnection

log = structlog.get_logger(__name__)

POLL_INTERVAL: Final = timedelta(seconds=1)

FORGOTTEN_AFTER: Final = timedelta(minutes=1)
"""A server that no worker has named for that long is no longer in use, or its workers are gone."""

NAMING_INTERVAL: Final = timedelta(seconds=20)

MAX_PROBE_PERMITS: Final = 64
"""While every circuit is open, the maximum number of mails that go to the workers between two polls, for a probe with
one of them: as many as two workers hold."""

_POLL = """
    SELECT name, state, greatest(0, extract(epoch FROM open_until - clock_timestamp()))::double precision,
           coalesce(probed_until > clock_timestamp(), false), extract(epoch FROM changed_at)::double precision
    FROM circuits WHERE named_at > clock_timestamp() - %s ORDER BY name
"""

_NAME = """
    INSERT INTO circuits (name) SELECT unnest(%s::text[])
    ON CONFLICT (name) DO UPDATE SET named_at = clock_timestamp()
"""

_PUBLISH = """
    INSERT INTO circuits AS c (name, state, open_until) VALUES (%s, %s, clock_timestamp() + %s)
    ON CONFLICT (name) DO UPDATE SET state = excluded.state, open_until = excluded.open_until, probed_until = NULL,
        changed_at = clock_timestamp(), named_at = clock_timestamp()
    RETURNING extract(epoch FROM c.changed_at)::double precision
"""

_MAY_PROBE = """
    UPDATE circuits SET probed_until = clock_timestamp() + %s
    WHERE name = %s AND state = 'opened' AND extract(epoch FROM changed_at)::double precision = %s
      AND coalesce(probed_until <= clock_timestamp(), true)
"""


@dataclass(frozen=True, slots=True)
class SharedCircuit:
    """What the workers have published about a mail server's circuit.

    Attributes:
        name: the server's `host:port`.
        open_for: seconds until it may be probed; zero if it is closed, or due.
        probed: a worker is probing it.
        changed_at: by the database's clock, in seconds since 1970; only used to tell changes apart.
    """

    name: str
    state: str
    open_for: float
    probed: bool
    changed_at: float

    @property
    def shown(self) -> str:
        """The state, by purgatory's names."""
        return "half-opened" if self.state == OPENED and self.probed else self.state


class SharedCircuits:
    """Publishes and reads the state of the circuits.

    Args:
        probe_lasts: a probe without an outcome for that long counts as abandoned: its worker has died.
    """

    def __init__(self, connection: ReconnectingConnection, *, probe_lasts: timedelta) -> None:
        self._connection = connection
        self._probe_lasts = probe_lasts
        self._own: Sequence[Circuit] = ()
        self._applied: dict[str, float] = {}
        self._applying = False
        self._to_publish: dict[str, tuple[str, timedelta]] = {}
        self._wake = asyncio.Event()
        self._seen: Sequence[SharedCircuit] = ()
        self._looked = asyncio.Condition()
        self._permits = 0
        self._permits_left = 0

    # --- For processes that send mails ----------------------------------------------------------

    def share(self, circuits: Sequence[Circuit]) -> None:
        """Publish the changes of these circuits, and apply to them what others publish."""
        self._own = circuits

    def changed(self, name: str, _old: StateName, new: StateName) -> None:
        """A circuit of ours has changed: publish it (see `infrastructure.mail.circuits.OnTransition`)."""
        if self._applying or new not in {CLOSED, OPENED}:
            return
        circuit = next((one for one in self._own if one.name == name), None)
        self._to_publish[name] = new, timedelta(seconds=circuit.ready_in() if circuit is not None else 0)
        self._wake.set()

    async def may_probe(self, name: str) -> bool:
        """May we probe a server whose circuit has been open for long enough?

        Not if another worker is probing it, or has published a change of it that we have not read yet.

        Raises:
            Unavailable: the database is away.
        """
        await self._publish()  # in case we have opened it ourselves
        if not all(circuit.is_due for circuit in self._own if circuit.name == name):
            return False  # a probe of ours has failed meanwhile
        known = self._applied.get(name)

        async def ask(connection: Connection) -> bool:
            return (await connection.execute(_MAY_PROBE, (self._probe_lasts, name, known))).rowcount == 1

        return await self._connection.execute_idempotent(ask)

    # --- For all processes ----------------------------------------------------------------------

    @property
    def states(self) -> dict[str, str]:
        """Each circuit in use, by name: "closed", "half-opened" or "opened"."""
        return {one.name: one.shown for one in self._seen}

    @property
    def all_open(self) -> bool:
        """Can no mail be sent? False while nothing is known."""
        return bool(self._seen) and all(one.state == OPENED for one in self._seen)

    def take_probe_permit(self) -> bool:
        """May a mail be given to the workers? Any mail while a server can be called, otherwise a few for a probe.

        The number of permits doubles at each poll that finds no probe under way: after a long outage the first mails
        are for codes that have been replaced, which are no longer sent, so they cannot serve as a probe.
        """
        if not self.all_open:
            return True
        self._permits_left -= 1
        return self._permits_left >= 0

    async def looked(self) -> None:
        """Return after the next poll."""
        async with self._looked:
            await self._looked.wait()

    # --- The work -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Read and publish until cancelled."""
        loop = asyncio.get_running_loop()
        name_at = loop.time()
        while True:
            try:
                await self._publish()
                if self._own and loop.time() >= name_at:
                    await self._name()
                    name_at = loop.time() + NAMING_INTERVAL.total_seconds()
                await self._poll()
            except (Unavailable, psycopg.Error):
                pass  # without the database nobody sends either; the known states stay
            async with self._looked:
                self._looked.notify_all()
            self._wake.clear()
            if not self._to_publish:
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_INTERVAL.total_seconds()):
                        await self._wake.wait()
            else:
                await asyncio.sleep(POLL_INTERVAL.total_seconds())  # it could not be published

    async def _publish(self) -> None:
        while self._to_publish:
            name, (state, seconds) = next(iter(self._to_publish.items()))

            async def write(
                connection: Connection, change: tuple[str, str, timedelta] = (name, state, seconds)
            ) -> float:
                row = await (await connection.execute(_PUBLISH, change)).fetchone()
                return float(row[0]) if row is not None else 0.0

            self._applied[name] = await self._connection.execute_idempotent(write)
            if self._to_publish.get(name) == (state, seconds):
                del self._to_publish[name]

    async def _name(self) -> None:
        names = [circuit.name for circuit in self._own]

        async def write(connection: Connection) -> None:
            await connection.execute(_NAME, (names,))

        await self._connection.execute_idempotent(write)

    async def _poll(self) -> None:
        async def read(connection: Connection) -> Sequence[SharedCircuit]:
            cursor = await connection.execute(_POLL, (FORGOTTEN_AFTER,))
            return [SharedCircuit(*row) for row in await cursor.fetchall()]

        self._seen = await self._connection.execute_idempotent(read)
        awaits_probe = self.all_open and any(one.open_for <= 0 and not one.probed for one in self._seen)
        self._permits = min(max(1, 2 * self._permits), MAX_PROBE_PERMITS) if awaits_probe else 0
        self._permits_left = self._permits
        published = {one.name: one for one in self._seen}
        self._applying = True
        try:
            for circuit in self._own:
                if (one := published.get(circuit.name)) is not None and circuit.name not in self._to_publish:
                    self._apply(circuit, one)
        finally:
            self._applying = False

    def _apply(self, circuit: Circuit, published: SharedCircuit) -> None:
        """Apply to a circuit of ours what another worker has published, once."""
        if self._applied.get(circuit.name) == published.changed_at:
            return
        first, self._applied[circuit.name] = circuit.name not in self._applied, published.changed_at
        if published.state == OPENED:
            circuit.open(published.open_for)
        elif not first:
            circuit.close()
