"""`registrar doctor`: looks at everything the service depends on, and says what is wrong and what to do.

It only looks: nothing is made, started or changed, and no mail is sent.
"""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import ssl
import stat
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import psycopg
from aio_pika.exceptions import AMQPError, ChannelNotFoundEntity
from aiosmtplib import SMTP, SMTPException

from application.ports import WrongMasterKey
from entrypoints.bootstrap.database import SCHEMA
from entrypoints.cli.output import console, print_json
from entrypoints.cli.session import log_troubles, read_settings
from entrypoints.queries.followers import followers_with
from infrastructure.alerts.webhook import NotTaken, Webhook
from infrastructure.crypto.keyring import read_root_secret
from infrastructure.embedded.data_directory import BadDataDirectory, DataDirectory
from infrastructure.embedded.postgres import DatabaseDidNotStart, EmbeddedPostgres
from infrastructure.followers.progress import LAGGING, progress_of
from infrastructure.mail.smtp.replies import Stage, judge_error
from infrastructure.postgres.connection import Connection, connect
from infrastructure.postgres.schema import Outdated, WrongSchema, check, check_encoding
from infrastructure.rabbitmq.inspection import compare, counts_of
from infrastructure.rabbitmq.session import REFUSAL_HINT, REFUSALS
from infrastructure.rabbitmq.topology import Topology, TopologyMismatch
from infrastructure.settings.environment import BadSettings
from infrastructure.settings.settings import Settings
from infrastructure.settings.values import MailServer

PATIENCE = timedelta(seconds=5)
"""For one mail server's greeting, or a connection to the webhook."""

OLDEST_DATABASE = 140000
"""PostgreSQL 14, the first with CREATE OR REPLACE TRIGGER, which our schema uses."""

CLOCK_OFF = timedelta(seconds=2)
"""Deadlines go by the database's clock; a difference beyond this shows in logs and traces."""

LAG_OFF = timedelta(seconds=60)
"""A follower that has work and did not move for that long is led by nobody, or stuck."""

FULL = 200 * 2**20
NEARLY_FULL = 2 * 2**30
"""Bytes free: below the first PostgreSQL may stop within minutes, as it keeps up to 1 GiB of write-ahead log."""

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        advice: what to do, None where all is well.
    """

    check: str
    state: State
    says: str
    advice: str | None = None


async def doctor(data_dir: Path | None, *, as_json: bool) -> int:
    """Run every check and print what they found; 1 if any failed."""
    log_troubles()
    findings = [finding async for finding in examine(data_dir)]
    if as_json:
        print_json({"healthy": not _failed(findings), "checks": findings})
    else:
        colour = {"ok": "green", "warn": "yellow", "fail": "red"}
        for one in findings:
            console().print(f"{one.state:<6}", style=colour[one.state], end="")
            console().print(f"{one.check:<16}{one.says}", markup=False)
            if one.advice:
                console().print(f"{'':<22}→ {one.advice}", markup=False)
    return 1 if _failed(findings) else 0


def _failed(findings: list[Finding]) -> bool:
    return any(one.state == "fail" for one in findings)


async def examine(data_dir: Path | None) -> AsyncIterator[Finding]:
    """Every check, one after the other; one that cannot be made because an earlier one failed is left out."""
    yield _python()
    try:
        settings = read_settings(data_dir=data_dir)
    except BadSettings as error:
        yield Finding("settings", "fail", str(error))
        return
    for finding in (*_settings(settings), _data_directory(settings), _disk(settings)):
        yield finding
    async with AsyncExitStack() as stack:
        try:
            connection = await stack.enter_async_context(_database(settings))
        except _NoDatabase as reason:
            yield reason.finding
        else:
            async for finding in _in_database(connection, settings):
                yield finding
    async for finding in _broker(settings):
        yield finding
    async for finding in _mail(settings):
        yield finding
    if settings.alert_url is not None:
        yield await _alerts(settings.alert_url.get_secret_value())


# --- This machine -----------------------------------------------------------------------------


def _python() -> Finding:
    if sys.version_info < (3, 11):  # noqa: UP036 - whoever runs it with an older one should be told
        return Finding("python", "fail", platform.python_version(), "Install Python 3.11 or newer.")
    return Finding("python", "ok", platform.python_version())


def _settings(settings: Settings) -> Iterator[Finding]:
    """What is legal, and probably not meant."""
    odd = []
    if settings.database_url is not None and settings.admin_token is None:
        odd.append(("REGISTRAR_ADMIN_TOKEN is not set", "Without it the admin routes are off."))
    if settings.mail_servers and "mail_from" not in settings.model_fields_set:
        odd.append(("REGISTRAR_MAIL_FROM is not set", "Real mail servers refuse the default sender; set it."))
    if settings.host not in {"127.0.0.1", "::1", "localhost"} and "public_url" not in settings.model_fields_set:
        odd.append(("REGISTRAR_PUBLIC_URL is not set", "Mails name it as the service's address; set it."))
    if settings.reveal_duplicates:
        odd.append(("REGISTRAR_REVEAL_DUPLICATES is on", "Anyone can find out who has an account; unset it."))
    for says, advice in odd:
        yield Finding("settings", "warn", says, advice)
    if not odd:
        yield Finding("settings", "ok", f"{len(settings.model_fields_set)} set, the rest as by default")


def _data_directory(settings: Settings) -> Finding:
    path = settings.data_dir
    try:
        if not path.exists():
            return Finding("data directory", "ok", f"{path} is not there yet; `registrar up` makes it")
        if any(path.iterdir()):  # an empty one may be adjusted by the check, and that is for `up` to do
            DataDirectory(path)
        for secret in (path / "master.key", path / "admin.token"):
            if secret.exists() and _is_open(secret):
                return Finding("data directory", "fail", f"{secret} can be read by others", f"`chmod 600 {secret}`")
    except BadDataDirectory as error:
        return Finding("data directory", "fail", str(error))
    except OSError as error:
        return Finding("data directory", "fail", f"{path}: {error.strerror}", "Run as its owner, or name another.")
    return Finding("data directory", "ok", str(path.resolve()))


def _is_open(secret: Path) -> bool:
    return bool(stat.S_IMODE(secret.stat().st_mode) & 0o077)


def _disk(settings: Settings) -> Finding:
    path = settings.data_dir.absolute()
    while not os.access(path, os.F_OK):  # `exists` would raise where a directory above is closed to us
        path = path.parent
    free = shutil.disk_usage(path).free
    says = f"{free / 2**30:.1f} GiB free for {settings.data_dir}"
    if free < NEARLY_FULL:
        return Finding("disk", "fail" if free < FULL else "warn", says, "Make room: a full disk stops the database.")
    return Finding("disk", "ok", says)


# --- The database -----------------------------------------------------------------------------


class _NoDatabase(Exception):
    def __init__(self, state: State, says: str, advice: str | None) -> None:
        self.finding = Finding("database", state, says, advice)


@asynccontextmanager
async def _database(settings: Settings) -> AsyncIterator[Connection]:
    """A connection to the database that is set, or to the embedded one if it runs."""
    async with AsyncExitStack() as stack:
        if settings.database_url is not None:
            dsn, advice = settings.database_url.get_secret_value(), "Check REGISTRAR_DATABASE_URL and the server."
        else:
            dsn, advice = await _running_embedded(settings.data_dir, stack), "Look into postgres.log."
        try:
            connection = await connect(dsn, name="doctor", statement_timeout=PATIENCE, read_only=True)
        except (psycopg.Error, OSError, TimeoutError) as error:
            told = str(error).strip().partition("\n")[0]
            raise _NoDatabase("fail", told or "it does not answer", advice) from None
        yield await stack.enter_async_context(connection)


async def _running_embedded(directory: Path, stack: AsyncExitStack) -> str:
    if not (directory / "postgres").exists():
        raise _NoDatabase("ok", "embedded, not there yet; `registrar up` makes it", None)
    try:
        postgres = EmbeddedPostgres(directory)
        if postgres.pid is None:
            if DataDirectory(directory).is_locked:
                raise _NoDatabase("fail", "embedded, not running under a `registrar up`", "Look into postgres.log.")
            raise _NoDatabase("warn", "embedded, not running", "`registrar up` starts it.")
        await asyncio.to_thread(postgres.start)  # joins the one that runs
    except DatabaseDidNotStart as error:
        raise _NoDatabase("fail", str(error), None) from None
    stack.push_async_callback(asyncio.to_thread, postgres.stop)
    return postgres.dsn


async def _in_database(connection: Connection, settings: Settings) -> AsyncIterator[Finding]:
    try:
        yield await _server(connection)
        yield await _clock(connection)
        if await _value(connection, "SELECT to_regclass('public.events') IS NULL"):
            yield Finding("schema", "warn", "nothing there yet", "The first start of the service makes it.")
            return
        yield await _schema(connection)
        yield await _master_key(connection, settings)
        async for finding in _followers(connection, settings):
            yield finding
    except (psycopg.Error, OSError) as error:
        says = f"it failed to answer ({type(error).__name__})"
        yield Finding("database", "fail", says, "Check the server's log and the rights of the role.")


async def _schema(connection: Connection) -> Finding:
    try:
        await check(connection, SCHEMA)
    except WrongSchema as error:
        state: State = "warn" if isinstance(error, Outdated) else "fail"
        return Finding("schema", state, str(error), "docs/upgrading.md tells the order of an upgrade.")
    head = await _value(connection, "SELECT position FROM head")
    return Finding("schema", "ok", f"there, with {head} events")


async def _value(connection: Connection, query: str) -> object:
    row = await (await connection.execute(query.encode())).fetchone()
    return None if row is None else row[0]


async def _server(connection: Connection) -> Finding:
    version = f"PostgreSQL {await _value(connection, 'SHOW server_version')}"
    if connection.info.server_version < OLDEST_DATABASE:
        return Finding("database", "fail", version, "Use PostgreSQL 14 or newer.")
    if await _value(connection, "SELECT pg_is_in_recovery()"):
        return Finding(
            "database", "fail", f"{version}, a read-only standby", "Point REGISTRAR_DATABASE_URL at the primary."
        )
    try:
        check_encoding(connection)
    except WrongSchema as error:
        return Finding("database", "fail", f"{version}, in SQL_ASCII", str(error))
    for setting in ("fsync", "synchronous_commit", "full_page_writes"):
        if await _value(connection, f"SHOW {setting}") == "off":
            return Finding(
                "database", "fail", f"{version} with {setting} off", f"Turn {setting} on: a crash loses data."
            )
    return Finding("database", "ok", version)


async def _clock(connection: Connection) -> Finding:
    before = datetime.now(UTC)
    theirs = await _value(connection, "SELECT clock_timestamp()")
    after = datetime.now(UTC)
    assert isinstance(theirs, datetime)  # noqa: S101 - narrows
    difference = abs(theirs - (before + (after - before) / 2))
    says = f"{difference.total_seconds():.3f} s from the database's"
    if difference > CLOCK_OFF:
        return Finding("clock", "warn", says, "Synchronise both machines' clocks (NTP).")
    return Finding("clock", "ok", says)


async def _master_key(connection: Connection, settings: Settings) -> Finding:
    if await _value(connection, "SELECT count(*) FROM service_secrets WHERE name = 'root'") == 0:
        return Finding("master key", "ok", "not in use yet")
    key = settings.master_key
    if key is None and not (settings.data_dir / "master.key").exists():
        return Finding(
            "master key", "fail", "master.key is missing", "Put it back from a backup; never make a new one."
        )
    try:
        key = key or DataDirectory(settings.data_dir).master_key()
        await read_root_secret(connection, key.get_secret_value())
    except BadDataDirectory as error:
        return Finding("master key", "fail", str(error))
    except WrongMasterKey as error:
        return Finding("master key", "fail", str(error), "Put back the one this database was set up with.")
    return Finding("master key", "ok", "fits this database")


async def _followers(connection: Connection, settings: Settings) -> AsyncIterator[Finding]:
    found = (await progress_of(connection, followers_with(settings))).items
    behind = {one.name: one.lag_events for one in found if one.lag_seconds > LAGGING.total_seconds()}
    if behind:
        says = f"standing still behind the log: {_listed(behind)}"
        yield Finding("followers", "warn", says, "Run `registrar up` or `registrar process`, or look into its log.")
    elif all(one.updated_at is None for one in found):
        yield Finding("followers", "ok", "none has run yet")
    else:
        yield Finding("followers", "ok", f"{len(found)}, at most {max(one.lag_events for one in found)} behind")
    parked = {one.name: one.parked_streams for one in found if one.parked_streams}
    if parked:
        yield Finding("parked streams", "fail", _listed(parked), "Search the log of `process` for follower.parked.")
    else:
        yield Finding("parked streams", "ok", "none")


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in counts.items())


# --- RabbitMQ ---------------------------------------------------------------------------------


async def _broker(settings: Settings) -> AsyncIterator[Finding]:
    """Log in, and look at what is there: nothing is made."""
    if settings.broker_url is None:
        yield Finding("rabbitmq", "ok", "not used: mail is handed over inside the process")
        return
    url = settings.broker_url.get_secret_value()
    try:
        if not await compare(url, Topology.of(queue_ttl=settings.queue_ttl)):
            yield Finding(
                "rabbitmq rights",
                "warn",
                "may only look",
                "Enough for `serve`, not for `process` and `work`: what they need is in deploy/registrar@.service.",
            )
        yield _queues(await counts_of(url))
    except TopologyMismatch as error:
        yield Finding("rabbitmq", "fail", str(error))
    except ChannelNotFoundEntity:
        yield Finding(
            "rabbitmq",
            "warn",
            "our queues are not there",
            "`registrar broker declare` makes them, as `process` and `work` do.",
        )
    except REFUSALS:
        yield Finding("rabbitmq", "fail", "it refuses us", f"{REFUSAL_HINT[:1].upper()}{REFUSAL_HINT[1:]}.")
    except (AMQPError, OSError, TimeoutError) as error:
        yield Finding(
            "rabbitmq", "fail", f"no answer ({type(error).__name__})", "Check REGISTRAR_BROKER_URL and the broker."
        )


def _queues(counts: dict[str, dict[str, int]]) -> Finding:
    says = ", ".join(
        f"{name}: {count['messages']} waiting, {count['consumers']} consumers" for name, count in counts.items()
    )
    if not all(count["consumers"] for count in counts.values()):
        return Finding("rabbitmq", "warn", says, "Nobody takes the mails: run `registrar work`.")
    return Finding("rabbitmq", "ok", says)


# --- Mail -------------------------------------------------------------------------------------


async def _mail(settings: Settings) -> AsyncIterator[Finding]:
    servers = settings.mail_servers
    if not servers:
        embedded = settings.database_url is None
        advice = None if embedded else "`registrar process` needs REGISTRAR_SMTP_URLS."
        yield Finding("mail", "ok" if embedded else "warn", "the embedded mailbox of `registrar up`", advice)
        return
    failures = await asyncio.gather(*(_greet(server) for server in servers))
    for server, failure in zip(servers, failures, strict=True):
        where = f"{server.host}:{server.port}"
        if failure is None:
            yield Finding("mail", "ok", f"{where} greets us{', encrypted' if _encrypts(server) else ', in clear text'}")
        else:
            # One that works is enough to deliver.
            state: State = "fail" if all(failures) else "warn"
            yield Finding(
                "mail", state, f"{where}: {failure}", "Check REGISTRAR_SMTP_URLS, and the way to that server."
            )


def _encrypts(server: MailServer) -> bool:
    return server.scheme == "smtps" or server.starttls == "required"


async def _greet(server: MailServer) -> str | None:
    """Connect, say EHLO, and encrypt as the setting demands; answers what went wrong."""
    client = SMTP(
        hostname=server.host,
        port=server.port,
        use_tls=server.scheme == "smtps",
        start_tls=False,
        tls_context=ssl.create_default_context(),
        timeout=None,
    )
    stage: Stage = "connect"
    try:
        async with asyncio.timeout(PATIENCE.total_seconds()):
            await client.connect()
            await client.ehlo()
            if server.scheme == "smtp" and server.starttls == "required":
                stage = "tls"
                await client.starttls()
                await client.ehlo()
    except (OSError, SMTPException) as error:
        told = {"timeout": f"no answer within {PATIENCE.total_seconds():g} s", "tls": "no trustworthy encryption"}
        failure = judge_error(stage, error).failure
        return told.get(failure, f"{failure} failed" if failure == "connection" else failure)
    finally:
        client.close()
    return None


# --- Alerts -----------------------------------------------------------------------------------


async def _alerts(url: str) -> Finding:
    """Can the webhook be reached? It is not called: whoever listens there would take it for an alert."""
    webhook = Webhook(url, deadline=PATIENCE)
    try:
        await webhook.reach()
    except NotTaken as error:
        says = f"{webhook.where}: {error.failure}"
        return Finding("alerts", "fail", says, "Check REGISTRAR_ALERT_URL, and the way to that host.")
    return Finding("alerts", "ok", f"{webhook.where} can be reached{'' if webhook.encrypts else ', in clear text'}")
