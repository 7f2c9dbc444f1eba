"""A whole log is replayed by every command, with mail server and broker attached: nothing arrives there."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import uuid4

from application.commands import RegisterUser
from application.ports import Context
from infrastructure.rabbitmq.topology import EVENTS_EXCHANGE
from tests.support.broker import spy_on
from tests.support.commands import clean_environment, ran
from tests.support.facts import eventually
from tests.support.http import MASTER_KEY, settings
from tests.support.log import query
from tests.support.service import Service, open_service
from tests.support.smtp_stub import SmtpStub

PEOPLE = 5


async def register(service: Service, name: str) -> None:
    command = RegisterUser.model_validate({"email": f"{name}@example.com", "name": "Ada Lovelace"})
    await service.handlers.handle(command, Context("client", uuid4()))


async def is_settled(dsn: str) -> bool:
    """Has everybody's mail been sent, and has every follower seen that?"""
    return await query(
        dsn,
        "SELECT (SELECT count(*) FROM events WHERE topic = 'mail_saga.end_awaited'),"
        " (SELECT min(position) FROM followers) = (SELECT position FROM head)",
    ) == [(PEOPLE, True)]


async def run(*words: str, **environment: str) -> tuple[int, str]:
    """The exit code of a command with all the settings of a service, and what it printed."""
    done = await asyncio.to_thread(ran, *words, environment=clean_environment(**environment))
    return done.code, done.out + done.err


async def test_nothing_arrives_while_a_whole_log_is_replayed(dsn: str, broker_url: str, tmp_path: Path) -> None:
    async with SmtpStub() as stub:
        environment = {"broker_url": broker_url, "smtp_urls": f"smtp://127.0.0.1:{stub.port}?starttls=never"}
        async with open_service(settings(dsn, str(tmp_path), **environment), follows=True, works=True) as service:
            for number in range(PEOPLE):
                await register(service, f"ada{number}")
            await eventually(lambda: is_settled(dsn), within=60)
            assert len(stub.mails) == PEOPLE
        [(head,)] = await query(dsn, "SELECT position FROM head")
        sessions = len(stub.sessions)

        upper = {name.upper(): value for name, value in environment.items()}
        given = upper | {"DATABASE_URL": dsn, "MASTER_KEY": MASTER_KEY, "DATA_DIR": str(tmp_path)}
        async with spy_on(broker_url) as mails, spy_on(broker_url, EVENTS_EXCHANGE, "#") as events:
            for words, expected in (
                (("projections", "rebuild", "--all"), 0),
                (("projections", "verify"), 0),
                (("projections", "rebuild", "mail", "--rollback"), 0),
                (("projections", "as-of", "mail", str(head)), 0),
                (("projections", "diff", "mail", "0", str(head)), 1),
                (("events", "replay", "--dry-run"), 0),
                (("events", "replay", "--dry-run", "--set", "REGISTRATION_TTL=1h"), 1),
            ):
                code, printed = await run(*words, **given)
                assert code == expected, printed
            assert len(stub.sessions) == sessions
            recorded = await query(dsn, f"SELECT DISTINCT topic FROM events WHERE notification_id > {head}")
            assert {topic.partition(".")[0] for (topic,) in recorded} == {"operator", "rebuild"}

            # What was late would have come before what comes now.
            async with open_service(settings(dsn, str(tmp_path), **environment), follows=True, works=True) as service:
                await register(service, "grace")
                await eventually(lambda: len(stub.mails) > PEOPLE, within=60)
                await eventually(lambda: len(events) > 0, within=60)
            assert (len(stub.mails), len(mails), len(events)) == (PEOPLE + 1, 1, 1)
