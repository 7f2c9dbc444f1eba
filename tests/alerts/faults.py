"""Real faults, each with the alerts that it has to fire: these, and no other."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from resource import RLIMIT_FSIZE, prlimit
from typing import Final, get_args

from domain.registration import Registration
from domain.stray_message import StrayMessage
from entrypoints.cli.mail import discard
from infrastructure.backup.records import Kind, note
from infrastructure.postgres.connection import connect
from tests.alerts.world import PASSWORD, World
from tests.support.broker import put
from tests.support.endpoint_stub import LOOPBACK, SECRET
from tests.support.facts import eventually
from tests.support.log import query

Breaks = Callable[[World], AbstractAsyncContextManager[None]]
"""Breaks something, and mends it at the end."""


@dataclass(frozen=True)
class Fault:
    """
    Attributes:
        fires: exactly these, all at the same time.
        then: and these once it is mended.
        process: settings of `World.process`, on top of the usual ones.
    """

    breaks: Breaks
    fires: frozenset[str]
    then: frozenset[str]
    process: Mapping[str, str]


FAULTS: dict[str, Fault] = {}
"""By what happens."""


def fires(name: str, *alerts: str, then: Collection[str] = (), **process: str) -> Callable[[Breaks], Breaks]:
    def note_it(breaks: Breaks) -> Breaks:
        FAULTS[name] = Fault(breaks, _named(alerts), _named(then), process)
        return breaks

    return note_it


def _named(alerts: Collection[str]) -> frozenset[str]:
    return frozenset(f"Registrar{alert}" for alert in alerts)


# --- Processes ------------------------------------------------------------------------------------


@fires("the only `serve` is killed", "NotReady", "ProcessDown")
@asynccontextmanager
async def serve_killed(world: World) -> AsyncIterator[None]:
    await world.serve.kill()
    yield
    await world.serve.start()


@fires("the only `work` is killed", "ProcessDown", "NobodyConsumes", "MailWaits")
@asynccontextmanager
async def work_killed(world: World) -> AsyncIterator[None]:
    await world.work.kill()
    await world.register()
    yield
    await world.work.start()


@fires("the only `process` is killed", "ProcessDown", "FollowerLags", "ReadModelsBehind", "CheckpointGap")
@asynccontextmanager
async def process_killed(world: World) -> AsyncIterator[None]:
    address, registration = await world.register()
    code = await world.scene.code_of(address)
    await world.scene.fleet.until_caught_up()
    await world.process.kill()
    assert await world.verify(registration, code) == 200
    yield
    await world.process.start()


# --- What is around -------------------------------------------------------------------------------


@fires("Redis is killed", "LimiterDegraded")
@asynccontextmanager
async def redis_killed(world: World) -> AsyncIterator[None]:
    world.redis.kill()
    for _ in range(6):  # it is noticed by those who ask
        await world.register()
    yield
    world.redis.start()


@fires("RabbitMQ is killed", "BrokerDown", "FollowerLags", "MailWaits")
@asynccontextmanager
async def rabbit_killed(world: World) -> AsyncIterator[None]:
    world.rabbit.kill()
    await world.register()
    yield
    world.rabbit.start()


@fires("the mail server refuses all mails", "MailServerTakesNothing", "MailWaits")
@asynccontextmanager
async def mail_refused(world: World) -> AsyncIterator[None]:
    world.sink.at("rcpt", "550 5.7.1 relaying denied")
    await world.register()
    yield
    world.sink.heal()
    await world.join()


@fires("the mail server hangs", "CircuitOpen", "MailWaits", "WebhookFails", then=["MailsLate"])
@asynccontextmanager
async def mail_hangs(world: World) -> AsyncIterator[None]:
    """And the webhook that would tell of it does not take the alert."""
    world.webhook.then(*["500 Internal Server Error"] * 1000)
    world.sink.at("mail", "hang")
    for _ in range(12):
        await world.register()
    yield
    world.webhook.heal()
    world.sink.heal()


@fires(
    "an endpoint of webhooks is away",
    "EndpointFails",
    WEBHOOKS="app=http://127.0.0.1:9/",
    WEBHOOK_SECRETS=f"app={SECRET}",
    WEBHOOK_NETWORKS=LOOPBACK,
)
@asynccontextmanager
async def endpoint_away(world: World) -> AsyncIterator[None]:
    """It is taken from the list in the end: to be there again, it would have to be this test's."""
    await world.register()
    yield
    await query(
        world.dsn,
        "UPDATE webhooks SET disabled_at = now(), disabled_by = 'operator', term = term + 1 RETURNING name",
    )


async def holds(dsn: str, question: str, *parameters: object) -> bool:
    return bool((await query(dsn, question, *parameters))[0][0])


@fires("mails are accepted late", "MailsLate")
@asynccontextmanager
async def mails_late(world: World) -> AsyncIterator[None]:
    world.sink.at("eod", "wait")
    for _ in range(4):
        await world.register()
    waited = "SELECT max(recorded_at) < clock_timestamp() - interval '6 s' FROM events WHERE topic = %s"
    await eventually(lambda: holds(world.dsn, waited, Registration.UserRegistered.TOPIC))
    world.sink.heal()
    world.sink.go_on.set()
    yield


@fires("too many mails come back", "MailsComeBack")
@asynccontextmanager
async def mails_come_back(world: World) -> AsyncIterator[None]:
    """It is over once six hours, here two minutes, have passed."""
    for _ in range(8):
        address, _ = await world.register()
        await world.scene.code_of(address)
        [mail] = [one for one in world.sink.mails if address.encode() in one.recipients]
        [token] = re.findall(rb"[+]([a-z2-7]{48})@", mail.sender)
        event = {"RecordType": "Bounce", "Type": "HardBounce", "Metadata": {"registrar": token.decode()}}

        async def taken(event: object = event) -> bool:  # 503 until the hand-over is recorded
            told = await world.http.post("/v1/bounces/postmark", json=event, auth=("any", PASSWORD))
            return told.status_code == 204

        await eventually(taken)
    yield


@fires("foreign messages come to our queue", "DeadLetters")
@asynccontextmanager
async def foreign_messages(world: World) -> AsyncIterator[None]:
    await put(world.broker_url, *[f"not ours, {number}".encode() for number in range(10)])
    yield
    async with world.scene.within() as service:
        kept = "SELECT originator_id FROM events WHERE topic = %s"
        strays = [stream for (stream,) in await query(world.dsn, kept, StrayMessage.StrayMessageKept.TOPIC)]
        assert await discard(service.desk, strays, reason="a test", as_json=True) == 0


@fires("the database takes no connections", "NotReady", "CommandsFail", "ProcessDown")
@asynccontextmanager
async def database_away(world: World) -> AsyncIterator[None]:
    """`ProcessDown` is of this place: a scrape takes up to two seconds without the database, of which Prometheus waits
    for ten in earnest."""
    server, _, name = world.dsn.rpartition("/")
    name = name.partition("?")[0]
    elsewhere = world.dsn.replace(f"{server}/{name}", f"{server}/postgres")
    await query(elsewhere, f'ALTER DATABASE "{name}" WITH ALLOW_CONNECTIONS false')
    await query(elsewhere, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", name)
    for _ in range(4):
        body = {"email": "ada@example.com", "name": "Ada Lovelace"}
        assert (await world.http.post("/v1/registrations", json=body)).status_code == 503
    yield
    await query(elsewhere, f'ALTER DATABASE "{name}" WITH ALLOW_CONNECTIONS true')


@fires("the log's disk is full", "LogLinesLost")
@asynccontextmanager
async def no_room_for_lines(world: World) -> AsyncIterator[None]:
    _, most = prlimit(world.serve.pid, RLIMIT_FSIZE)
    prlimit(world.serve.pid, RLIMIT_FSIZE, (world.serve.log.stat().st_size, most))
    for number in range(3):  # each of them is a line of the log
        body = {"email": f"person-{number}@mailinator.com", "name": "Ada Lovelace"}
        assert (await world.http.post("/v1/registrations", json=body)).status_code == 202
    yield
    prlimit(world.serve.pid, RLIMIT_FSIZE, (most, most))


_WAITS_FOR_A_LOCK: Final = """
    SELECT EXISTS (
        SELECT FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock'
            AND query_start < clock_timestamp() - interval '0.7 s'
    )
"""


@fires("commits are slow", "RegistrationsSlow")
@asynccontextmanager
async def commits_slow(world: World) -> AsyncIterator[None]:
    for _ in range(4):
        async with await connect(world.dsn, name="fault", statement_timeout=timedelta(seconds=10)) as connection:
            async with connection.transaction():
                await connection.execute("LOCK TABLE head IN EXCLUSIVE MODE")
                registering = asyncio.create_task(world.register())
                await eventually(lambda: holds(world.dsn, _WAITS_FOR_A_LOCK))
            await registering
    yield
    for _ in range(20):
        await world.register()


@fires("the way to the public address is cut", "SyntheticFails", synthetic="1/5s")
@asynccontextmanager
async def public_address_away(world: World) -> AsyncIterator[None]:
    """Of what we have, only a synthetic registration comes that way."""
    world.front.refuse()
    yield
    assert "synthetic.failed" in world.process.written
    world.front.heal()


# --- What people do -------------------------------------------------------------------------------


@fires("somebody guesses codes", "WrongCodes")
@asynccontextmanager
async def guesses(world: World) -> AsyncIterator[None]:
    for _ in range(8):
        address, registration = await world.register()
        code = await world.scene.code_of(address)
        for guess in range(3):
            wrong = f"{(int(code) + 1 + guess) % 1_000_000:06d}"
            assert await world.verify(registration, wrong) == 422
    yield
    for _ in range(30):
        await world.join()


@fires("the site's form is broken", "FewSucceed")
@asynccontextmanager
async def form_broken(world: World) -> AsyncIterator[None]:
    async def try_to_register() -> None:
        assert (await world.http.post("/v1/registrations", json={"mail": "ada@example.com"})).status_code == 422

    trying = asyncio.create_task(_again_and_again(try_to_register, every=0.05))
    yield
    trying.cancel()
    with suppress(asyncio.CancelledError):
        await trying
    for _ in range(40):
        await world.register()


@fires("more read at the same time than may", "Overloaded")
@asynccontextmanager
async def flood_of_reads(world: World) -> AsyncIterator[None]:
    _, registration = await world.register()
    asked = f"GET /v1/registrations/{registration}?min_position=1 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()

    async def read() -> None:
        with suppress(ConnectionError):
            reader, writer = await asyncio.open_connection("127.0.0.1", world.http.base_url.port)
            writer.write(asked)
            await reader.readuntil(b"\r\n\r\n")
            writer.transport.abort()

    async def crowd() -> None:
        await asyncio.gather(*(read() for _ in range(620)))

    crowding = asyncio.create_task(_again_and_again(crowd, every=0.5))
    yield
    crowding.cancel()
    with suppress(asyncio.CancelledError):
        await crowding


async def _again_and_again(act: Callable[[], Awaitable[object]], every: float = 0.2) -> None:
    while True:
        await act()
        await asyncio.sleep(every)


# --- What is recorded, and what is made of it -----------------------------------------------------


@fires("a row of a read model is changed", "ReadModelDiffers")
@asynccontextmanager
async def row_changed(world: World) -> AsyncIterator[None]:
    await query(world.dsn, "UPDATE read_registrations.registrations SET locale = 'xx'")
    yield
    await query(world.dsn, "UPDATE read_registrations.registrations SET locale = 'en'")


@fires("an event is changed long after it was signed", "ChainBroken")
@asynccontextmanager
async def event_changed(world: World) -> AsyncIterator[None]:
    async def signed() -> bool:
        rows = await query(world.dsn, "SELECT (SELECT max(position) FROM checkpoints) = (SELECT position FROM head)")
        return bool(rows[0][0])

    await eventually(signed, within=60)
    altered = "UPDATE events SET actor = %s WHERE notification_id = 1"
    [(actor,)] = await query(world.dsn, "SELECT actor FROM events WHERE notification_id = 1")
    await query(world.dsn, "ALTER TABLE events DISABLE TRIGGER ALL")
    await query(world.dsn, altered, "nobody")
    yield
    await query(world.dsn, altered, actor)


@fires("the checkpoints' directory is away", "CheckpointGap")
@asynccontextmanager
async def directory_away(world: World) -> AsyncIterator[None]:
    aside = world.checkpoints.with_name("aside")
    world.checkpoints.rename(aside)
    world.checkpoints.write_text("a file")
    await world.register()
    yield
    world.checkpoints.unlink()
    aside.rename(world.checkpoints)


@fires("a read model refuses an event", "ParkedStreams")
@asynccontextmanager
async def event_refused(world: World) -> AsyncIterator[None]:
    await query(world.dsn, "ALTER TABLE read_accounts.accounts ADD CONSTRAINT nobody CHECK (false) NOT VALID")
    await world.join()
    yield
    await query(world.dsn, "ALTER TABLE read_accounts.accounts DROP CONSTRAINT nobody")


KINDS: Final[tuple[Kind, ...]] = get_args(Kind)


async def noted(world: World, kind: Kind) -> None:
    async with await connect(world.dsn, name="fault", statement_timeout=timedelta(seconds=10)) as connection:
        await note(connection, kind, Path("/backups"), 1)


@asynccontextmanager
async def only(world: World, kind: Kind) -> AsyncIterator[None]:
    """Of the two, only this is done as often as it should be; and in the end both."""

    for one in KINDS:
        await noted(world, one)
    going_on = asyncio.create_task(_again_and_again(lambda: noted(world, kind), every=3))
    yield
    going_on.cancel()
    with suppress(asyncio.CancelledError):
        await going_on
    for one in KINDS:
        await noted(world, one)


@fires("no backup is taken", "BackupOverdue")
@asynccontextmanager
async def no_backup(world: World) -> AsyncIterator[None]:
    async with only(world, "drill"):
        yield


@fires("no drill is done", "DrillOverdue")
@asynccontextmanager
async def no_drill(world: World) -> AsyncIterator[None]:
    async with only(world, "backup"):
        yield


@fires("a query of ours is broken", "Errors")
@asynccontextmanager
async def query_broken(world: World) -> AsyncIterator[None]:
    _, registration = await world.register()
    await world.scene.fleet.until_caught_up()
    retype = "ALTER TABLE read_registrations.progress ALTER rejections TYPE {0} USING rejections::{0}"
    await query(world.dsn, retype.format("text"))  # and we take it for a number
    assert (await world.http.get(f"/v1/registrations/{registration}")).status_code == 500
    await query(world.dsn, retype.format("integer"))
    yield


@fires(
    "a registration's next step is overdue",
    "ProcessDown",
    "StuckRegistrations",
    "MailWaits",
    "FollowerLags",
    "ReadModelsBehind",
    "CheckpointGap",
)
@asynccontextmanager
async def nobody_decides(world: World) -> AsyncIterator[None]:
    """The mail is put off, and who would ask for it again is dead."""
    world.sink.at("rcpt", "450 4.7.1 greylisted")
    await world.register()

    async def failed() -> bool:
        return await world.scene.recorded(Registration.EmailDispatchFailed.TOPIC) > 0

    await eventually(failed, within=60)
    await world.scene.fleet.until_caught_up()
    await world.process.kill()
    world.sink.heal()
    await world.register()
    yield
    await world.process.start()
