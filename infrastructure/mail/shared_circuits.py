"""What the workers know of the mail servers, shared through the database: one opens a circuit for all, one probes for
all.

Each worker counts calls for itself; it only publishes to the others that a circuit has opened, or closed again. They
read that when it is announced, and so do the relay, which leaves mails in the log while no server can be called, and
the health checks.

They also share what each server did with our mails: so that of a row of refusals at most one undoes a registration,
whichever worker gets it (`smtp.evidence`), and health checks and alerts know of a server that takes nothing.
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

from application.ports import Unavailable
from infrastructure.circuits import CLOSED, OPENED, Circuit, StateName
from infrastructure.mail.smtp.evidence import ONLY_DEFERRED, Evidence, Standing
from infrastructure.postgres.connection import Connection, ReconnectingConnection

log = structlog.get_logger(__name__)

CHANNEL: Final = "registrar_circuits"
"""Announces that a circuit has changed."""

POLL_INTERVAL: Final = timedelta(seconds=1)

AT_REST: Final = timedelta(seconds=5)
"""The same, while nothing is wrong with any server: a change is announced, and the listening session looks anyway."""

FORGOTTEN_AFTER: Final = timedelta(minutes=1)
"""A server that no worker has named for that long is no longer in use, or its workers are gone."""

NAMING_INTERVAL: Final = timedelta(seconds=20)

MAX_PROBE_PERMITS: Final = 64
"""While every circuit is open, the maximum number of mails that go to the workers between two polls, for a probe with
one of them: as many as two workers hold."""

REFUSING: Final = "refusing"
DEFERRING: Final = "deferring"

TROUBLE: Final = f"""
    CASE WHEN refused_since > coalesce(taken_at, '-infinity') AND (failure <> 'refused' OR refusals > 1)
         THEN '{REFUSING}'
         WHEN deferred_since > coalesce(taken_at, '-infinity')
              AND deferred_since <= clock_timestamp() - %(only_deferred)s
         THEN '{DEFERRING}'
    END
"""
"""SQL: what is wrong with a server whose circuit may be closed; NULL if nothing is. One mailbox that it does not know,
and does not say so, is nothing yet."""

_POLL = f"""
    SELECT name, state, greatest(0, extract(epoch FROM open_until - clock_timestamp()))::double precision,
           coalesce(probed_until > clock_timestamp(), false), extract(epoch FROM changed_at)::double precision,
           {TROUBLE}, extract(epoch FROM believed_at)::double precision,
           extract(epoch FROM clock_timestamp() - taken_at)::double precision
    FROM circuits LEFT JOIN mail_standings USING (name)
    WHERE named_at > clock_timestamp() - %(forgotten_after)s ORDER BY name
"""  # noqa: S608 - a constant

# Of two workers' rows of refusals the older one counts, as long as nobody has had a mail taken since.
_NAME = """
    WITH named AS (
        INSERT INTO circuits (name) SELECT unnest(%(names)s::text[])
        ON CONFLICT (name) DO UPDATE SET named_at = clock_timestamp()
    )
    INSERT INTO mail_standings AS s
        (name, taken_at, refused_since, deferred_since, refusals, failure, reply_code, reply_status)
    SELECT w.name, clock_timestamp() - w.taken, clock_timestamp() - w.refused, clock_timestamp() - w.deferred,
           w.refusals, w.failure, w.reply_code, w.reply_status
    FROM unnest(%(names)s::text[], %(taken)s::interval[], %(refused)s::interval[], %(deferred)s::interval[],
                %(refusals)s::integer[], %(failures)s::text[], %(codes)s::integer[], %(statuses)s::text[])
        AS w (name, taken, refused, deferred, refusals, failure, reply_code, reply_status)
    ON CONFLICT (name) DO UPDATE SET
        taken_at = greatest(s.taken_at, excluded.taken_at),
        refused_since = CASE WHEN s.refused_since > coalesce(greatest(s.taken_at, excluded.taken_at), '-infinity')
            THEN least(s.refused_since, excluded.refused_since) ELSE excluded.refused_since END,
        refusals = CASE WHEN s.refused_since > coalesce(greatest(s.taken_at, excluded.taken_at), '-infinity')
            THEN greatest(s.refusals, excluded.refusals) ELSE excluded.refusals END,
        deferred_since = CASE WHEN s.deferred_since > coalesce(greatest(s.taken_at, excluded.taken_at), '-infinity')
            THEN least(s.deferred_since, excluded.deferred_since) ELSE excluded.deferred_since END,
        failure = coalesce(excluded.failure, s.failure),
        reply_code = CASE WHEN excluded.failure IS NULL THEN s.reply_code ELSE excluded.reply_code END,
        reply_status = CASE WHEN excluded.failure IS NULL THEN s.reply_status ELSE excluded.reply_status END
"""

_BELIEVE = """
    UPDATE mail_standings SET believed_at = clock_timestamp()
    WHERE name = %(name)s
      AND extract(epoch FROM believed_at)::double precision IS NOT DISTINCT FROM %(known)s
      AND coalesce(refused_since <= taken_at, true)
    RETURNING extract(epoch FROM believed_at)::double precision
"""

_PUBLISH = """
    INSERT INTO circuits AS c (name, state, open_until) VALUES (%s, %s, clock_timestamp() + %s)
    ON CONFLICT (name) DO UPDATE SET state = excluded.state, open_until = excluded.open_until, probed_until = NULL,
        changed_at = clock_timestamp(), named_at = clock_timestamp()
    RETURNING extract(epoch FROM c.changed_at)::double precision, pg_notify('registrar_circuits', '')
"""

_MAY_PROBE = """
    UPDATE circuits SET probed_until = clock_timestamp() + %s
    WHERE name = %s AND state = 'opened' AND extract(epoch FROM changed_at)::double precision = %s
      AND coalesce(probed_until <= clock_timestamp(), true)
"""


_IN_USE = f"""
    SELECT name, CASE WHEN state = '{OPENED}' AND probed_until > clock_timestamp() THEN 'half-opened' ELSE state END
    FROM public.circuits WHERE named_at > clock_timestamp() - %s ORDER BY name
"""  # noqa: S608 - a constant


@dataclass(frozen=True, slots=True)
class SharedCircuit:
    """What the workers have published about a mail server's circuit.

    Attributes:
        name: the server's `host:port`.
        open_for: seconds until it may be probed; zero if it is closed, or due.
        probed: a worker is probing it.
        changed_at: by the database's clock, in seconds since 1970; only used to tell changes apart.
        trouble: `REFUSING` or `DEFERRING` if the server takes none of our mails though it may be called.
        believed_at: when a refusal was last taken to be about one mail; only used to tell them apart.
        taken_ago: seconds since it last took a mail of any worker's.
    """

    name: str
    state: str
    open_for: float
    probed: bool
    changed_at: float
    trouble: str | None = None
    believed_at: float | None = None
    taken_ago: float | None = None

    @property
    def shown(self) -> str:
        """The state, by purgatory's names."""
        return "half-opened" if self.state == OPENED and self.probed else self.state


async def in_use(connection: Connection) -> dict[str, str]:
    """Each circuit in use, by name: "closed", "half-opened" or "opened"."""
    cursor = await connection.execute(_IN_USE, (FORGOTTEN_AFTER,))
    return dict(await cursor.fetchall())


class SharedCircuits:
    """Publishes and reads the state of the circuits.

    Args:
        probe_lasts: a probe without an outcome for that long counts as abandoned: its worker has died.
        only_deferred: see `infrastructure.mail.smtp.evidence.ONLY_DEFERRED`.
    """

    def __init__(
        self,
        connection: ReconnectingConnection,
        *,
        probe_lasts: timedelta,
        only_deferred: timedelta = ONLY_DEFERRED,
    ) -> None:
        self._connection = connection
        self._probe_lasts = probe_lasts
        self._only_deferred = only_deferred
        self._own: Sequence[Circuit] = ()
        self._evidence: Sequence[Evidence] = ()
        self._believed: dict[str, float] = {}
        self._name_at = 0.0
        self._applied: dict[str, float] = {}
        self._applying = False
        self._to_publish: dict[str, tuple[str, timedelta]] = {}
        self._wake = asyncio.Event()
        self._seen: Sequence[SharedCircuit] = ()
        self._looked = asyncio.Condition()
        self._permits = 0
        self._permits_left = 0

    # --- For processes that send mails ----------------------------------------------------------

    def share(self, circuits: Sequence[Circuit], evidence: Sequence[Evidence] = ()) -> None:
        """Publish the changes of these circuits, and apply to them what others publish; publish the evidence."""
        self._own, self._evidence = circuits, evidence

    def standing_changed(self) -> None:
        """Publish the evidence at once."""
        self._name_at = 0.0
        self._wake.set()

    def latest(self, provider: str) -> float | None:
        """See `infrastructure.mail.smtp.evidence.Beliefs`."""
        return self._believed.get(provider)

    async def may_believe(self, provider: str, known: float | None) -> bool:
        """See `infrastructure.mail.smtp.evidence.Beliefs`. Not while the database is away."""

        async def ask(connection: Connection) -> float | None:
            cursor = await connection.execute(_BELIEVE, {"name": provider, "known": known})
            row = await cursor.fetchone()
            return None if row is None else float(row[0])

        try:
            await self._name()  # so that others' refusals are compared with the mail that it took from us
            believed_at = await self._connection.execute(ask)
        except (Unavailable, psycopg.Error):
            return False
        if believed_at is None:
            return False
        self._believed[provider] = believed_at
        return True

    def changed(self, name: str, _old: StateName, new: StateName) -> None:
        """A circuit of ours has changed: publish it (see `infrastructure.circuits.OnTransition`)."""
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
    def troubles(self) -> dict[str, str]:
        """Servers that take none of our mails though they may be called, by name: `REFUSING` or `DEFERRING`."""
        return {one.name: one.trouble for one in self._seen if one.trouble is not None}

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

    async def told(self, _: Connection) -> None:
        """A circuit may have changed: look (see `infrastructure.postgres.notifications.Watch`)."""
        self._wake.set()

    async def looked(self) -> None:
        """Return after the next poll."""
        async with self._looked:
            await self._looked.wait()

    # --- The work -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Read and publish until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                await self._publish()
                if self._own and loop.time() >= self._name_at:
                    self._name_at = loop.time() + NAMING_INTERVAL.total_seconds()
                    await self._name()
                await self._poll()
            except (Unavailable, psycopg.Error):
                pass  # without the database nobody sends either; the known states stay
            for evidence in self._evidence:
                evidence.tell_if_it_only_defers()
            async with self._looked:
                self._looked.notify_all()
            self._wake.clear()
            if not self._to_publish:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._until_next_poll().total_seconds()):
                        await self._wake.wait()
            else:
                await asyncio.sleep(POLL_INTERVAL.total_seconds())  # it could not be published

    def _until_next_poll(self) -> timedelta:
        all_well = all(one.state == CLOSED and one.trouble is None for one in self._seen)
        return AT_REST if all_well else POLL_INTERVAL

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
        now = asyncio.get_running_loop().time()
        standings = {one.provider: one.standing for one in self._evidence}
        rows = [_published(circuit.name, standings.get(circuit.name, Standing()), now) for circuit in self._own]
        columns = {name: [row[name] for row in rows] for name in _published("", Standing(), now)}

        async def write(connection: Connection) -> None:
            await connection.execute(_NAME, columns)

        await self._connection.execute_idempotent(write)

    async def _poll(self) -> None:
        async def read(connection: Connection) -> Sequence[SharedCircuit]:
            when = {"only_deferred": self._only_deferred, "forgotten_after": FORGOTTEN_AFTER}
            cursor = await connection.execute(_POLL, when)
            return [SharedCircuit(*row) for row in await cursor.fetchall()]

        self._seen = await self._connection.execute_idempotent(read)
        self._believed |= {one.name: one.believed_at for one in self._seen if one.believed_at is not None}
        awaits_probe = self.all_open and any(one.open_for <= 0 and not one.probed for one in self._seen)
        self._permits = min(max(1, 2 * self._permits), MAX_PROBE_PERMITS) if awaits_probe else 0
        self._permits_left = self._permits
        published = {one.name: one for one in self._seen}
        for evidence in self._evidence:
            if (one := published.get(evidence.provider)) is not None and one.taken_ago is not None:
                evidence.taken_from_another(one.taken_ago)
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


def _published(name: str, standing: Standing, now: float) -> dict[str, object]:
    """A server's row, with how long ago everything was: the clocks of two machines differ."""

    def ago(at: float | None) -> timedelta | None:
        return None if at is None else timedelta(seconds=now - at)

    latest = standing.latest
    return {
        "names": name,
        "taken": ago(standing.taken_at),
        "refused": ago(standing.refused_since),
        "deferred": ago(standing.deferred_since),
        "refusals": standing.refusals,
        "failures": None if latest is None else latest.failure,
        "codes": None if latest is None else latest.reply_code,
        "statuses": None if latest is None else latest.reply_status,
    }
