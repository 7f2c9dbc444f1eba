"""RabbitMQ, the mail servers, and the webhook that alerts go to."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator

from aio_pika.exceptions import AMQPError, ChannelNotFoundEntity
from aiosmtplib import SMTP, SMTPException

from entrypoints.cli.checks.finding import PATIENCE, Finding, State
from infrastructure.alerts.webhook import NotTaken, Webhook
from infrastructure.mail.smtp.replies import Stage, judge_error
from infrastructure.rabbitmq.inspection import compare, counts_of
from infrastructure.rabbitmq.session import REFUSAL_HINT, REFUSALS
from infrastructure.rabbitmq.topology import Topology, TopologyMismatch
from infrastructure.settings.settings import Settings
from infrastructure.settings.values import MailServer


async def look_at_broker(settings: Settings) -> AsyncIterator[Finding]:
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


async def look_at_mail_servers(settings: Settings) -> AsyncIterator[Finding]:
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
    """Connect, say EHLO, and encrypt as the setting demands; returns what went wrong."""
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
        shown = {"timeout": f"no answer within {PATIENCE.total_seconds():g} s", "tls": "no trustworthy encryption"}
        failure = judge_error(stage, error).failure
        return shown.get(failure, f"{failure} failed" if failure == "connection" else failure)
    finally:
        client.close()
    return None


# --- Alerts -----------------------------------------------------------------------------------


async def look_at_webhook(url: str) -> Finding:
    """Can the webhook be reached? It is not called: the receiver would take the call for an alert."""
    webhook = Webhook(url, deadline=PATIENCE)
    try:
        await webhook.reach()
    except NotTaken as error:
        says = f"{webhook.where}: {error.failure}"
        return Finding("alerts", "fail", says, "Check REGISTRAR_ALERT_URL, and the way to that host.")
    return Finding("alerts", "ok", f"{webhook.where} can be reached{'' if webhook.encrypts else ', in clear text'}")
