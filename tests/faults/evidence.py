"""What the checker judges: everything that was recorded of a run, read back after it.

evidence = await collect(fleet.dsn, journal=journal, mails=sink.mails, faults=faults.windows, …)
assert check(evidence) == []
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from typing import Any, Literal, cast
from urllib.parse import urlsplit
from uuid import UUID

import psycopg
from eventsourcing.persistence import MapperDeserialisationError
from eventsourcing.utils import TopicError
from psycopg import sql

from application.addresses import canonical_address
from domain.mail_state import WAITING
from domain.recorded import Position, Recorded
from domain.registration import Registration
from entrypoints.bootstrap.database import create_schema
from infrastructure.crypto.keyring import Keyring, open_root_secret
from infrastructure.event_store.batch import Stretch
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.reader import RecordedRow, decoded
from infrastructure.event_store.store import EventStore
from infrastructure.followers.leadership import LeaderSession, NotLeader
from infrastructure.followers.projector import Projection, Projector
from infrastructure.postgres.clock import DatabaseClock
from infrastructure.postgres.connection import Connection, connect
from infrastructure.postgres.notifications import Notifications
from projections import PROJECTIONS
from projections.mail import Mails
from tests.faults.journal import NAME, FaultWindow, Journal, Operation
from tests.support.log import broken_blocks
from tests.support.smtp_stub import Mail

MASTER_KEY = "5" * 64
"""Of every node of a fleet, as hex."""

Moment = Literal["before", "during", "after"]
_PATIENCE = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class Copy:
    """A mail that the mail server took over.

    Attributes:
        to: the recipient's canonical address.
        message_id: the part before the @.
        code: None in a notice.
    """

    to: str = field(repr=False)
    message_id: str
    code: str | None = field(repr=False)
    at: datetime


@dataclass(frozen=True, slots=True)
class Issue:
    """What the mail of an issue must carry."""

    code: str = field(repr=False)
    message_id: str


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A mail that the read model `mail` shows as failed for good; `waits`: for an operator."""

    registration_id: UUID
    serial: int
    failure: str | None
    waits: bool = False


@dataclass(frozen=True, slots=True)
class HealthSample:
    """What a node said of itself; status None: it did not answer.

    Attributes:
        at: when it was asked; `took`: until its answer was here.
    """

    at: datetime
    node: str
    probe: Literal["live", "ready"]
    status: int | None
    state: str | None
    took: timedelta = timedelta(0)


@dataclass(frozen=True, slots=True)
class ResourceSample:
    """What a node took: before any fault, during, or after healing. `kind`: "serve", "process" or "work"."""

    at: datetime
    node: str
    kind: str
    moment: Moment
    rss: int
    fds: int
    threads: int


@dataclass(frozen=True, slots=True)
class Canary:
    """Something that must not be found anywhere. `kind` is what a violation says in its place."""

    kind: Literal["address", "password", "name", "code", "idempotency key"]
    value: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Evidence:
    """A run, as far as it can be known afterwards.

    Attributes:
        log: every event that could be decoded, in the order of positions; `undecodable`: the others' positions.
        head: position of the log's end as the log itself says.
        broken_blocks: last positions of blocks whose hash is not that of their rows; -1: the head's.
        issues: what each issue's mail must carry, by registration and serial.
        followers: how far each one is, but for copies of read models.
        handled: positions whose handling can be seen, by follower.
        parked: follower and stream of everything put aside, and why.
        read_models: hashes of each read model's tables, by way of making it: "live", "from zero", "in two halves",
            "told twice".
        texts: where personal data and secrets must not be, by name of the place.
        senders: kind of the nodes that send the mails: "work" where they go over a broker.
        healed: the last fault is over and everybody has had time: liveness is due (I4, I9, I11).
        collected_at: when all of this was read.
    """

    journal: Sequence[Operation] = ()
    log: Sequence[Recorded] = ()
    undecodable: Sequence[Position] = ()
    head: Position = 0
    broken_blocks: Sequence[Position] = ()
    issues: Mapping[tuple[UUID, int], Issue] = field(default_factory=dict)
    mails: Sequence[Copy] = ()
    dead_letters: Sequence[DeadLetter] = ()
    parked: Sequence[tuple[str, UUID, str]] = ()
    followers: Mapping[str, Position] = field(default_factory=dict)
    handled: Mapping[str, Sequence[Position]] = field(default_factory=dict)
    read_models: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict, repr=False)
    canaries: Sequence[Canary] = ()
    health: Sequence[HealthSample] = ()
    resources: Sequence[ResourceSample] = ()
    faults: Sequence[FaultWindow] = ()
    senders: str = "process"
    healed: bool = True
    collected_at: datetime = field(default_factory=lambda: datetime.now(UTC))


async def collect(
    dsn: str,
    *,
    journal: Journal,
    mails: Iterable[Mail],
    faults: Sequence[FaultWindow] = (),
    health: Sequence[HealthSample] = (),
    resources: Sequence[ResourceSample] = (),
    texts: Mapping[str, str] | None = None,
    passwords: Iterable[str] = (),
    senders: str = "process",
    healed: bool = True,
    refold: bool = True,
) -> Evidence:
    """Read everything back. Wait for `Fleet.until_caught_up` first where liveness is due.

    Args:
        texts: see `Fleet.texts`; a dump of the database is added.
        passwords: that were registered, to be looked for.
        refold: fold every read model three times anew, in databases beside (some seconds).
    """
    async with await connect(dsn, name="evidence", statement_timeout=_PATIENCE) as connection:
        await connection.execute("SET idle_in_transaction_session_timeout = 0")
        await connection.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
        async with connection.transaction():  # so all of it is of one moment
            rows = await _rows(connection)
            log, undecodable = _decoded(dsn, rows)
            issues = _issues(log, await keyring_of(connection))
            failed = await _all(
                connection, "SELECT registration_id, serial, failure FROM read_mail.mails WHERE state = 'FAILED'"
            )
            waits = await Mails().search(connection, state=WAITING, limit=1_000_000)
            waiting = {(mail.registration_id, mail.serial) for mail in waits.items}
            entries = await _all(connection, "SELECT position FROM read_audit.entries ORDER BY 1")
            live = {projection.name: await _hash(connection, projection()) for projection in PROJECTIONS}
            evidence = Evidence(
                journal=list(journal),
                log=log,
                undecodable=undecodable,
                head=(await _all(connection, "SELECT position FROM head"))[0][0],
                broken_blocks=await broken_blocks(connection),
                issues=issues,
                mails=[copy_of(mail) for mail in mails],
                dead_letters=[
                    DeadLetter(id_, serial, failure, (id_, serial) in waiting) for id_, serial, failure in failed
                ],
                parked=await _all(
                    connection, "SELECT follower, stream_id, concat_ws(' at ', error, code) FROM parked_events"
                ),
                followers=dict(
                    await _all(connection, "SELECT name, position FROM followers WHERE name NOT LIKE '%\\_\\_%'")
                ),
                handled={"audit": [row[0] for row in entries]},
                texts={**(texts or {}), "the database": await _dump(connection)},
                canaries=_canaries(journal, issues, passwords),
                health=list(health),
                resources=list(resources),
                faults=list(faults),
                senders=senders,
                healed=healed,
            )
    if not refold:
        return evidence
    return replace(evidence, read_models=await _read_models(dsn, rows, live, evidence.followers))


async def keyring_of(connection: Connection) -> Keyring:
    """The keys of a fleet's database."""
    root_secret = await open_root_secret(connection, bytes.fromhex(MASTER_KEY))
    return Keyring(master_key=bytes.fromhex(MASTER_KEY), root_secret=root_secret)


def copy_of(mail: Mail) -> Copy:
    """What a mail in the sink says."""
    message = message_from_bytes(mail.data.replace(b"\r\n..", b"\r\n."), policy=policy.default)
    text = message.get_body(("plain",))
    assert text is not None
    code = re.search(r"^\s*(\d{6})\s*$", text.get_content(), re.MULTILINE)
    [to] = mail.recipients
    return Copy(
        to=canonical_address(to.decode()),
        message_id=str(message["Message-ID"]).strip("<>").partition("@")[0],
        code=code[1] if code else None,
        at=mail.at,
    )


def latest_code(mails: Sequence[Mail], address: str) -> str | None:
    """The code in the newest mail to an address; None if there is none yet."""
    to = canonical_address(address)
    # Only theirs are parsed: that takes milliseconds each, and tests look every ten.
    theirs = (mail for mail in reversed(mails) if [canonical_address(one.decode()) for one in mail.recipients] == [to])
    return next((code for mail in theirs if (code := copy_of(mail).code)), None)


async def _all(connection: Connection, statement: str) -> list[tuple[Any, ...]]:
    return await (await connection.execute(statement.encode())).fetchall()


async def _rows(connection: Connection) -> list[RecordedRow]:
    cursor = connection.cursor(binary=True)
    await cursor.execute(
        "SELECT originator_id, originator_version, topic, state, notification_id, recorded_at, correlation_id,"
        " causation_position, actor, trace_context FROM events ORDER BY notification_id"
    )
    return [RecordedRow(*row) for row in await cursor.fetchall()]


def _decoded(dsn: str, rows: Sequence[RecordedRow]) -> tuple[list[Recorded], list[Position]]:
    store = EventStore(dsn, codec=EventCodec(), clock=DatabaseClock())  # not opened: it only decodes
    log, undecodable = [], []
    for row in rows:
        try:
            log.append(store.decode(row))
        except (TopicError, MapperDeserialisationError):
            undecodable.append(row.position)
    return log, undecodable


def _issues(log: Sequence[Recorded], keyring: Keyring) -> dict[tuple[UUID, int], Issue]:
    issued = [recorded.event for recorded in log if isinstance(recorded.event, Registration.OtpIssued)]
    return {
        (event.originator_id, event.serial): Issue(
            keyring.code(event.originator_id, event.serial), keyring.message_id(event.originator_id, event.serial)
        )
        for event in issued
    }


def _canaries(journal: Journal, issues: Mapping[tuple[UUID, int], Issue], passwords: Iterable[str]) -> list[Canary]:
    return [
        Canary("name", NAME),
        *(Canary("address", address) for address in sorted({one.address for one in journal if one.address})),
        *(Canary("idempotency key", key) for key in sorted({one.key for one in journal if one.key})),
        *(Canary("password", password) for password in passwords),
        *(Canary("code", issue.code) for issue in issues.values()),
    ]


async def _dump(connection: Connection) -> str:
    """Every row of every table as text."""
    tables = await _all(
        connection,
        "SELECT schemaname, tablename FROM pg_tables WHERE schemaname = 'public' OR schemaname LIKE 'read\\_%'",
    )
    lines: list[str] = []
    for schema, table in tables:
        with suppress(psycopg.errors.UndefinedTable):  # of a verification that has ended since
            async with connection.transaction():
                lines += [
                    str(row[0]) for row in await _all(connection, f'SELECT t::text FROM "{schema}"."{table}" AS t')
                ]
    # What stands in events is bytes to the database, which shows them as digits.
    states = await _all(connection, "SELECT convert_from(state, 'UTF8') FROM events")
    return "\n".join([*lines, *(str(row[0]) for row in states)])


# --- Read models, folded anew -------------------------------------------------------------------


async def _hash(connection: Connection, projection: Projection) -> str:
    """Of every row of every table of a read model, whatever their order on the disk."""
    schema = projection.schema
    tables = await _all(connection, f"SELECT tablename FROM pg_tables WHERE schemaname = '{schema}' ORDER BY tablename")
    assert tables, f"the read model {projection.name} has no tables"
    parts = []
    for (table,) in tables:
        query = (
            "SELECT count(*) || ':' || coalesce(md5(string_agg(t::text, chr(10) ORDER BY t::text COLLATE \"C\")), '')"
            f' FROM "{schema}"."{table}" AS t'
        )
        parts.append(f"{table}={(await _all(connection, query))[0][0]}")
    return " ".join(parts)


class _Told(Exception):
    """A follower has seen the whole log."""


class _FromMemory:
    """The log for a projector: at most `limit` events at a time, up to `end`; then `_Told`."""

    def __init__(self, rows: Sequence[RecordedRow], store: EventStore, *, limit: int, end: Position) -> None:
        self._rows = [row for row in rows if row.position <= end]
        self._store = store
        self._limit = limit

    async def read(
        self, after: Position, limit: int, topics: Sequence[str] | None = None
    ) -> tuple[list[RecordedRow], Position]:
        await asyncio.sleep(0)  # lets another projector go first
        rows = [row for row in self._rows if row.position > after][: min(limit, self._limit)]
        if not rows:
            raise _Told
        return [row for row in rows if topics is None or row.topic in topics], rows[-1].position

    def decode(self, row: RecordedRow) -> Recorded:
        return self._store.decode(row)

    async def stretch(
        self, after: Position, limit: int, topics: Sequence[str] | None = None, *, metadata: bool = True
    ) -> Stretch:
        rows, seen = await self.read(after, limit, topics)
        return Stretch(after, seen, lambda: decoded(rows, after, seen, self.decode))


class _AlwaysNews:
    """Announces again and again, whether or not there is anything new."""

    patience = timedelta(seconds=1)

    async def wait_past(self, who: str, position: Position, *, within: timedelta = timedelta(0)) -> bool:
        await asyncio.sleep(0)
        return True

    def note_position(self, who: str, position: Position) -> None:
        pass


async def _read_models(
    dsn: str, rows: Sequence[RecordedRow], live: Mapping[str, str], followers: Mapping[str, Position]
) -> dict[str, dict[str, str]]:
    """The live hashes beside those of three folds of the same log, each from nothing to where the live one is."""
    hashes = defaultdict(dict, {name: {"live": found} for name, found in live.items()})
    few = max(7, len(rows) // 100)  # a batch; they fight for each
    for way, steps in {
        "from zero": [[(1000, 1.0)]],
        "in two halves": [[(1000, 0.5)], [(1000, 1.0)]],
        # Two that lead by accident, each told of every batch: the one that comes second must change nothing.
        "told twice": [[(few, 1.0), (few, 1.0)]],
    }.items():
        async with _scratch_database(dsn) as scratch:
            for step in steps:
                for projection in PROJECTIONS:
                    end = followers.get(projection.name, 0)
                    await asyncio.gather(
                        *(_fold(scratch, projection(), rows, limit=limit, end=int(end * part)) for limit, part in step)
                    )
            async with await connect(scratch, name="hash", statement_timeout=_PATIENCE) as connection:
                assert await _all(connection, "SELECT * FROM parked_events") == []
                for projection in PROJECTIONS:
                    hashes[projection.name][way] = await _hash(connection, projection())
    return dict(hashes)


async def _fold(dsn: str, projection: Any, rows: Sequence[RecordedRow], *, limit: int, end: Position) -> None:
    store = EventStore(dsn, codec=EventCodec(), clock=DatabaseClock())
    log = _FromMemory(rows, store, limit=limit, end=end)
    while True:
        projector = Projector(projection, store=log, notifications=cast("Notifications", _AlwaysNews()))
        async with await connect(dsn, name="fold", statement_timeout=_PATIENCE) as connection:
            try:
                await projector.work(LeaderSession(connection))
            except _Told:
                return
            except (NotLeader, psycopg.errors.DeadlockDetected, psycopg.errors.LockNotAvailable):
                continue  # the other one went first


@asynccontextmanager
async def _scratch_database(dsn: str) -> AsyncIterator[str]:
    """A database with all tables and nothing in them, beside the one of `dsn`."""
    name = f"scratch_{secrets.token_hex(8)}"
    scratch = urlsplit(dsn)._replace(path=f"/{name}").geturl()
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as administration:
        await administration.execute(sql.SQL("CREATE DATABASE {} STRATEGY file_copy").format(sql.Identifier(name)))
        try:
            async with await connect(scratch, name="setup", statement_timeout=_PATIENCE) as connection:
                await create_schema(connection)
            yield scratch
        finally:
            await administration.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
