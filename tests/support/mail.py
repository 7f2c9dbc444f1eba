"""The words of the tests that send mail: what is in one, what was recorded of it, and the saga's next look."""

from __future__ import annotations

import re
from collections import Counter
from email import message_from_bytes, policy
from uuid import UUID

import psycopg

from domain.mail_saga import MailSaga
from tests.support.facts import MovableClock, eventually
from tests.support.service import Service
from tests.support.smtp_stub import Mail


def code_in(mail: Mail) -> str:
    message = message_from_bytes(mail.data, policy=policy.default)
    body = message.get_body(("plain",))
    assert body is not None
    match = re.search(r"^\s*(\d{6})\s*$", body.get_content(), re.MULTILINE)
    assert match is not None
    return match[1]


def message_id_of(mail: Mail) -> str:
    return str(message_from_bytes(mail.data, policy=policy.default)["Message-ID"])


async def recorded(dsn: str) -> Counter[str]:
    """How many events of each topic the log has."""
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        cursor = await connection.execute("SELECT topic FROM events")
        return Counter(row[0] for row in await cursor.fetchall())


async def until_recorded(dsn: str, topic: str, count: int = 1) -> None:
    async def enough() -> bool:
        return (await recorded(dsn))[topic] >= count

    await eventually(enough, within=60)


async def move_to_next_look(service: Service, registration_id: UUID, clock: MovableClock) -> None:
    stream = MailSaga.stream_id(registration_id)
    saga = (await service.store.load(stream)).get(MailSaga, stream)
    assert saga is not None
    assert saga.look_again_at is not None
    clock.now = saga.look_again_at
