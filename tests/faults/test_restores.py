"""A database that is restored to an earlier moment, among brokers, mail servers and people that have gone on."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest

from domain.stray_message import StrayMessage
from entrypoints.api.app import create_app
from entrypoints.bootstrap.backups import back_up, restore
from entrypoints.bootstrap.replay import READ_MODELS, verifier
from infrastructure.embedded.data_directory import DataDirectory
from infrastructure.embedded.postgres import EmbeddedPostgres
from infrastructure.postgres.connection import connect
from infrastructure.replay.progress import nobody_watches
from infrastructure.settings.settings import Settings
from tests.faults.evidence import latest_code
from tests.support.broker import put, spy_on, until_up, waiting
from tests.support.facts import eventually
from tests.support.http import Api, client_of
from tests.support.log import broken_blocks, query
from tests.support.mail import message_id_of
from tests.support.postgres import SURVIVES_KILLS, in_memory
from tests.support.service import open_service
from tests.support.smtp_stub import SmtpStub

KEPT = StrayMessage.StrayMessageKept.TOPIC


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="registrar-tests-", dir=in_memory()) as directory:
        yield Path(directory)


@asynccontextmanager
async def running(data: Path, **more: str) -> AsyncIterator[Api]:
    """The whole service on the embedded database of a data directory, over RabbitMQ."""
    DataDirectory(data).master_key()
    server = EmbeddedPostgres(data, SURVIVES_KILLS)
    await asyncio.to_thread(server.start)
    try:
        async with open_service(settings_of(data, **more), follows=True, works=True) as service:
            await until_up(service)
            app = create_app(service.api)
            async with client_of(app) as http:
                yield Api(service, app, http)
    finally:
        await asyncio.to_thread(server.stop)


def settings_of(data: Path, **more: str) -> Settings:
    named = {f"REGISTRAR_{name.upper()}": value for name, value in more.items()}
    return Settings.from_environment({"REGISTRAR_DATA_DIR": str(data), **named})


async def stray_reasons(dsn: str) -> list[str]:
    return [
        json.loads(state)["reason"] for (state,) in await query(dsn, "SELECT state FROM events WHERE topic = %s", KEPT)
    ]


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.fault("B23", "X5")
async def test_after_a_restore_to_the_past_each_code_is_mailed_once_more_at_most_and_the_future_is_kept_as_unknown(
    home: Path, broker_url: str
) -> None:
    data, past, backups = home / "data", home / "past", home / "backups"
    async with SmtpStub() as sink:
        more = {"broker_url": broker_url, "smtp_urls": f"smtp://127.0.0.1:{sink.port}?starttls=never"}

        async with running(data, **more) as api:
            dsn = api.service.dsn
            # given: one mail that is out; one that is asked for, and out only after the moment that is gone back to
            early = await api.registered("early@example.com")
            await back_up(settings_of(data), backups, keep=None, progress=lambda *_: None)
            sink.at("mail", "450 4.2.0 later")
            between = UUID((await api.register("between@example.com")).json()["registration_id"])
            await eventually(lambda: sink.faults["mail"] > 0)
            [(moment,)] = await query(dsn, "SELECT clock_timestamp()")
            await eventually(lambda: later_than(dsn, moment))
            sink.heal()
            await api.becomes(str(between), mail="SENT")
            async with spy_on(broker_url) as requests:
                late = UUID(await api.registered("late@example.com"))
            code = latest_code(sink.mails, "early@example.com")
            assert code is not None
            assert (await api.verify(early, code)).status_code == 200
            await api.becomes(early, status="ACTIVE")
            [(head,)] = await query(dsn, "SELECT position FROM head")
        assert copies(sink) == {b"early@example.com": 1, b"between@example.com": 1, b"late@example.com": 1}

        # when: back to that moment, with the broker as it is, and a request of the future in it
        (past).mkdir()
        (past / "master.key").write_bytes((data / "master.key").read_bytes())
        (past / "master.key").chmod(0o600)
        arrived = await restore(settings_of(past), backups, to=moment, checkpoints=None, progress=lambda *_: None)
        assert 0 < arrived.log.position < head
        await put(broker_url, requests[-1].body, headers=requests[-1].headers)

        async with running(past, **more) as api:
            dsn = api.service.dsn
            await eventually(lambda: has_kept(dsn), within=60)
            # If the relay had passed the request on, the saga asks again when it looks again, after two minutes.
            await api.becomes(str(between), mail="SENT", within=200)
            await eventually(lambda: emptied(broker_url), within=60)

            # then: sent once more, the same mail; whoever had it before, nothing
            assert copies(sink) == {b"early@example.com": 1, b"between@example.com": 2, b"late@example.com": 1}
            again = [mail for mail in sink.mails if mail.recipients == [b"between@example.com"]]
            assert len({message_id_of(mail) for mail in again}) == 1
            assert await stray_reasons(dsn) == ["unknown-registration"]
            assert (await api.look(str(late))).status_code == 404

            # The codes that people have work, and what was undone can be done again.
            for address, registration_id in (("early@example.com", early), ("between@example.com", str(between))):
                known = latest_code(sink.mails, address)
                assert known is not None
                assert (await api.verify(registration_id, known)).status_code == 200
                await api.becomes(registration_id, status="ACTIVE")
            once_more = await api.registered("late@example.com")
            assert UUID(once_more) != late
            async with await connect(dsn, name="test", statement_timeout=timedelta(seconds=10)) as connection:
                assert await broken_blocks(connection) == []
            async with verifier(settings_of(past)) as parts:
                found = await parts.verify_all(list(READ_MODELS), nobody_watches)
            assert [one.count for one in found] == [0] * len(READ_MODELS)


def copies(sink: SmtpStub) -> Counter[bytes]:
    return Counter(mail.recipients[0] for mail in sink.mails)


async def later_than(dsn: str, moment: object) -> bool:
    [(is_later,)] = await query(dsn, "SELECT clock_timestamp() > %s", moment)
    return bool(is_later)


async def has_kept(dsn: str) -> bool:
    return bool(await stray_reasons(dsn))


async def emptied(url: str) -> bool:
    return await waiting(url) == 0
