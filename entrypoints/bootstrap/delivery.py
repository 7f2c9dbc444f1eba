"""The sending of mails, the same behind the in-process relay and behind the broker's queue."""

# ruff: noqa: PLC0415 - as in `cli.main`: the mailbox is loaded only where there is one
from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import psycopg
import structlog

from application.mail_delivery import MailDelivery
from application.ports import MailRequest, Unavailable
from entrypoints.bootstrap import CannotStart
from entrypoints.bootstrap.core import Core, Timing
from entrypoints.bootstrap.letters import letters_for
from infrastructure.bounces.addresses import BounceAddresses
from infrastructure.circuits import CLOSED, OPENED, OnTransition, StateName
from infrastructure.embedded.data_directory import DataDirectory
from infrastructure.mail.send_claims import StoredSendClaims
from infrastructure.mail.smtp.pool import Limits
from infrastructure.mail.smtp.servers import SmtpServers
from infrastructure.postgres.connection import Connection, ReconnectingConnection
from infrastructure.postgres.notifications import LOOK_ANYWAY
from infrastructure.settings.bounces import BOUNCE_HEADERS
from infrastructure.settings.settings import Settings
from infrastructure.settings.values import MailServer
from infrastructure.synthetic.sink import Sink

if TYPE_CHECKING:
    from infrastructure.mail.mailbox import Mailbox

log = structlog.get_logger(__name__)

SEND_MARGIN = timedelta(seconds=15)
"""What a mail's claim outlasts its three tries by: the waits between them, and the recording of the outcome."""

RECORDING = timedelta(seconds=3)
"""What of that is for the recording: sending is given up so long before the claim ends."""

WORKERS_PACE = timedelta(milliseconds=5)
"""Least time between two batches of what a worker asks the database. A mail that comes alone waits for nothing; of
many, batches have 18, and 13 with 3 ms and 64 mails in hand (2026-11-29)."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """Made by `open_delivery`."""

    servers: SmtpServers
    claims: StoredSendClaims
    connection: ReconnectingConnection
    deliver: Callable[[MailRequest], Awaitable[None]]

    async def until_database_ready(self) -> None:
        """Return when the database responds (again)."""

        async def ask(connection: Connection) -> None:
            await connection.execute("SELECT 1")

        while True:
            await asyncio.sleep(LOOK_ANYWAY.total_seconds())
            with suppress(Unavailable, psycopg.Error):
                await self.connection.execute_idempotent(ask)
                return

    async def give_back_claims(self) -> None:
        """Let others have the mails that are not sent here."""
        with suppress(Unavailable, psycopg.Error):  # then the leases end by themselves
            await self.claims.close()


async def open_mailbox(settings: Settings, stack: AsyncExitStack) -> Mailbox | None:
    """The embedded mailbox, for want of a mail server; None if one is set. Taken down with the stack."""
    if settings.mail_servers:
        return None
    from infrastructure.mail.mailbox import Mailbox

    mailbox = Mailbox(settings.data_dir / "mailbox")
    await mailbox.start()
    stack.push_async_callback(mailbox.stop)
    return mailbox


async def open_delivery(
    core: Core, settings: Settings, stack: AsyncExitStack, timing: Timing, mailbox: Mailbox | None = None
) -> Delivery:
    """Everything that sending a mail needs; taken down with the stack.

    Raises:
        CannotStart: there is no mail server, or a template is faulty.
    """
    letters = await letters_for(settings)
    servers = _servers(core, settings, timing, _mail_servers(settings, mailbox))
    stack.push_async_callback(servers.close)
    lease = 3 * settings.send_timeout + SEND_MARGIN
    pace = timedelta(0) if settings.broker_url is None else WORKERS_PACE
    claims = StoredSendClaims(core.mail_line, lease=lease, pace=pace)
    address = settings.bounce_address
    sending = MailDelivery(
        handlers=core.handlers,
        secrets=core.keyring,
        claims=claims,
        servers=servers,
        letters=letters,
        clock=core.clock,
        policy=core.policy,
        retry_claimed_after=timedelta(seconds=5),
        give_up_after=lease - RECORDING,
        sleep=timing.sleep,
        return_path=None if address is None else BounceAddresses(address, core.keyring).of,
        on_first_mail=core.metrics.time_to_inbox,
        synthetic=Sink(servers, core.mail_line, sender=settings.mail_from, to=settings.synthetic_to),
    )
    delivery = Delivery(servers, claims, core.mail_line, sending.deliver)
    stack.push_async_callback(delivery.give_back_claims)
    if settings.database_url is None and stack.enter_context(DataDirectory(settings.data_dir).following()):
        await claims.forget_the_dead()
    return delivery


def _servers(core: Core, settings: Settings, timing: Timing, mail_servers: tuple[MailServer, ...]) -> SmtpServers:
    return SmtpServers(
        mail_servers,
        sender=settings.mail_from,
        reply_to=settings.reply_to,
        bounce_address=settings.bounce_address,
        names=[BOUNCE_HEADERS[one] for one in sorted(settings.bounce_providers) if one in BOUNCE_HEADERS],
        circuits=timing.circuits(on_transition=_telling(core)),
        may_probe=core.shared_circuits.may_probe,
        beliefs=core.shared_circuits,
        on_standing=core.shared_circuits.standing_changed,
        on_opened=core.shared_circuits.share,
        limits=Limits(timeout=settings.send_timeout, content_timeout=settings.accept_timeout),
        on_attempt=core.metrics.mail,
        tracing=core.tracing,
        on_concurrency=core.metrics.mail_concurrency,
        sleep=timing.sleep,
    )


def _mail_servers(settings: Settings, mailbox: Mailbox | None) -> tuple[MailServer, ...]:
    if settings.mail_servers:
        return settings.mail_servers
    if mailbox is None:
        raise CannotStart(
            "REGISTRAR_SMTP_URLS is not set, and the embedded mailbox is part of `registrar up` only; set it."
        )
    return (
        MailServer(scheme="smtp", host="127.0.0.1", port=mailbox.port, username=None, password=None, starttls="never"),
    )


def _telling(core: Core) -> OnTransition:
    """Count a circuit's change, log it, and pass it on to the other workers."""

    def announce(name: str, old: StateName, new: StateName) -> None:
        core.metrics.circuit(name, old, new)
        core.shared_circuits.changed(name, old, new)
        if new == OPENED:
            log.warning(
                "mail.circuit_opened", provider=name, hint="mails wait, or go to the next server; look at this one"
            )
        elif new == CLOSED:
            log.info("mail.circuit_closed", provider=name)

    return announce
