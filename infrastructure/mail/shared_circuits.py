"""The mail servers' circuits, shared by all workers through the database: one opens it for all, one probes for all.

What each worker counts stays its own; only that a circuit is open, and that it is closed again, is told to the others.
They look every second, and so do the relay, which leaves mails in the log while no server can be called, and health.
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
from infrastructure.postgres.connection import Connection, Line

log = structlog.get_logger(__name__)

LOOK_EVERY: Final = timedelta(seconds=1)

FORGOTTEN_AFTER: Final = timedelta(minutes=1)
"""A server that no worker has named for so long is not in use any more, or its workers are gone."""

NAME_EVERY: Final = timedelta(seconds=20)

MOST_TO_PROBE_WITH: Final = 64
"""While every circuit is open, mails that go to the workers at a look at most, for them to probe with one of them: what
two workers have in hand."""

_LOOK = """
    SELECT name, state, greatest(0, extract(epoch FROM open_until - clock_timestamp()))::double precision,
           coalesce(probed_until > clock_timestamp(), false), extract(epoch FROM changed_at)::double precision
    FROM circuits WHERE named_at > clock_timestamp() - %s ORDER BY name
"""

_NAME = """
    INSERT INTO circuits (name) SELECT unnest(%s::text[])
    ON CONFLICT (name) DO UPDATE SET named_at = clock_timestamp()
"""

_TELL = """
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
    """What the workers have told of a mail server's circuit.

    Attributes:
        name: the server's `host:port`.
        open_for: seconds until it may be probed; zero if it is closed, or due.
        probed: somebody is at it.
        changed_at: by the database's clock, in seconds since 1970; it only tells changes apart.
    """

    name: str
    state: str
    open_for: float
    probed: bool
    changed_at: float

    @property
    def shown(self) -> str:
        """In purgatory's words."""
        return "half-opened" if self.state == OPENED and self.probed else self.state


class CircuitBoard:
    """Where the state of the circuits is told and read.

    Args:
        probe_lasts: a probe without an outcome for so long counts as given up: its worker has died.
    """

    def __init__(self, line: Line, *, probe_lasts: timedelta) -> None:
        self._line = line
        self._probe_lasts = probe_lasts
        self._own: Sequence[Circuit] = ()
        self._adopted: dict[str, float] = {}
        self._adopting = False
        self._to_tell: dict[str, tuple[str, timedelta]] = {}
        self._wake = asyncio.Event()
        self._seen: Sequence[SharedCircuit] = ()
        self._looked = asyncio.Condition()
        self._to_probe_with = 0
        self._left_to_probe_with = 0

    # --- For those who send ---------------------------------------------------------------------

    def share(self, circuits: Sequence[Circuit]) -> None:
        """Tell of these, and have them follow what others tell."""
        self._own = circuits

    def changed(self, name: str, _old: StateName, new: StateName) -> None:
        """A circuit of ours has changed: tell the others (see `infrastructure.mail.circuits.OnTransition`)."""
        if self._adopting or new not in {CLOSED, OPENED}:
            return
        circuit = next((one for one in self._own if one.name == name), None)
        self._to_tell[name] = new, timedelta(seconds=circuit.ready_in() if circuit is not None else 0)
        self._wake.set()

    async def may_probe(self, name: str) -> bool:
        """May we be the one who calls a server whose time of being open is over?

        Not if somebody else does it already, or has told something of it that we have not heard.

        Raises:
            Unavailable: the database is away.
        """
        await self._tell()  # should we have opened it ourselves
        if not all(circuit.is_due for circuit in self._own if circuit.name == name):
            return False  # a probe of ours has failed meanwhile
        known = self._adopted.get(name)

        async def ask(connection: Connection) -> bool:
            return (await connection.execute(_MAY_PROBE, (self._probe_lasts, name, known))).rowcount == 1

        return await self._line.ask(ask)

    # --- For those who only want to know --------------------------------------------------------

    @property
    def states(self) -> dict[str, str]:
        """Each circuit in use, by name: "closed", "half-opened" or "opened"."""
        return {one.name: one.shown for one in self._seen}

    @property
    def all_open(self) -> bool:
        """Can no mail be sent? False while nothing is known."""
        return bool(self._seen) and all(one.state == OPENED for one in self._seen)

    def may_hand_over(self) -> bool:
        """Is it of use to give the workers a mail? Of a few, while all that they could do is to probe.

        At each look that finds nobody probing they are twice as many: after a long outage the first ones are of codes
        that have been replaced, which are for nobody to send and so for nobody to probe with.
        """
        if not self.all_open:
            return True
        self._left_to_probe_with -= 1
        return self._left_to_probe_with >= 0

    async def looked(self) -> None:
        """Return after the next look."""
        async with self._looked:
            await self._looked.wait()

    # --- The work -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look and tell until cancelled."""
        loop = asyncio.get_running_loop()
        name_at = loop.time()
        while True:
            try:
                await self._tell()
                if self._own and loop.time() >= name_at:
                    await self._name()
                    name_at = loop.time() + NAME_EVERY.total_seconds()
                await self._look()
            except (Unavailable, psycopg.Error):
                pass  # nobody sends without the database either; what is known stays
            async with self._looked:
                self._looked.notify_all()
            self._wake.clear()
            if not self._to_tell:
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_EVERY.total_seconds()):
                        await self._wake.wait()
            else:
                await asyncio.sleep(LOOK_EVERY.total_seconds())  # it could not be told

    async def _tell(self) -> None:
        while self._to_tell:
            name, (state, seconds) = next(iter(self._to_tell.items()))

            async def write(connection: Connection, told: tuple[str, str, timedelta] = (name, state, seconds)) -> float:
                row = await (await connection.execute(_TELL, told)).fetchone()
                return float(row[0]) if row is not None else 0.0

            self._adopted[name] = await self._line.ask(write)
            if self._to_tell.get(name) == (state, seconds):
                del self._to_tell[name]

    async def _name(self) -> None:
        names = [circuit.name for circuit in self._own]

        async def write(connection: Connection) -> None:
            await connection.execute(_NAME, (names,))

        await self._line.ask(write)

    async def _look(self) -> None:
        async def read(connection: Connection) -> Sequence[SharedCircuit]:
            cursor = await connection.execute(_LOOK, (FORGOTTEN_AFTER,))
            return [SharedCircuit(*row) for row in await cursor.fetchall()]

        self._seen = await self._line.ask(read)
        awaits_probe = self.all_open and any(one.open_for <= 0 and not one.probed for one in self._seen)
        self._to_probe_with = min(max(1, 2 * self._to_probe_with), MOST_TO_PROBE_WITH) if awaits_probe else 0
        self._left_to_probe_with = self._to_probe_with
        told = {one.name: one for one in self._seen}
        self._adopting = True
        try:
            for circuit in self._own:
                if (one := told.get(circuit.name)) is not None and circuit.name not in self._to_tell:
                    self._adopt(circuit, one)
        finally:
            self._adopting = False

    def _adopt(self, circuit: Circuit, told: SharedCircuit) -> None:
        """Have a circuit of ours follow what somebody else has told, once."""
        if self._adopted.get(circuit.name) == told.changed_at:
            return
        first, self._adopted[circuit.name] = circuit.name not in self._adopted, told.changed_at
        if told.state == OPENED:
            circuit.open(told.open_for)
        elif not first:
            circuit.close()
