"""RabbitMQ, Redis, the mail servers, the webhook that alerts go to, and the endpoints of webhooks."""

# ruff: noqa: PLC0415 - as in `cli.main`: the client of Redis is loaded only where one is set
from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator

from aio_pika.exceptions import AMQPError, ChannelNotFoundEntity, ProbableAuthenticationError
from aiosmtplib import SMTPException, SMTPResponseException, SMTPServerDisconnected

from entrypoints.cli.checks.causes import cause_of
from entrypoints.cli.checks.finding import PATIENCE, Finding, State
from infrastructure.alerts.webhook import NotTaken, Webhook
from infrastructure.mail.composing import parse_sender
from infrastructure.mail.smtp.connection import Connection, Progress
from infrastructure.mail.smtp.replies import judge_error
from infrastructure.rabbitmq.inspection import compare, counts_of
from infrastructure.rabbitmq.session import REFUSAL_HINT, REFUSALS, VirtualHostRefused
from infrastructure.rabbitmq.topology import Topology, TopologyMismatch
from infrastructure.reach import reach
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
    except VirtualHostRefused:
        says = "it refuses the virtual host: there is none of that name, or it is closed to the user"
        yield Finding("rabbitmq", "fail", says, "Correct it in REGISTRAR_BROKER_URL, or make it (docs/operating.md).")
    except ProbableAuthenticationError:
        yield Finding("rabbitmq", "fail", "it refuses user or password", "Correct them in REGISTRAR_BROKER_URL.")
    except REFUSALS:
        yield Finding("rabbitmq", "fail", "it refuses us", f"{REFUSAL_HINT[:1].upper()}{REFUSAL_HINT[1:]}.")
    except (AMQPError, OSError, TimeoutError) as error:
        says = cause_of(error) or f"no answer ({type(error).__name__})"
        yield Finding("rabbitmq", "fail", says, "Check REGISTRAR_BROKER_URL and the broker.")


def _queues(counts: dict[str, dict[str, int]]) -> Finding:
    says = ", ".join(
        f"{name}: {count['messages']} waiting, {count['consumers']} consumers" for name, count in counts.items()
    )
    if not all(count["consumers"] for count in counts.values()):
        return Finding("rabbitmq", "warn", says, "Nobody takes the mails: run `registrar work`.")
    return Finding("rabbitmq", "ok", says)


# --- Redis --------------------------------------------------------------------------------------


async def look_at_limiter(settings: Settings) -> Finding:
    """Decide there once, as a request would; it uses up nobody's limit."""
    if settings.rate_limit_url is None:
        return Finding("rate limits", "ok", "counted by each process for itself")
    from infrastructure.limits.shared import AWAY, explain, try_out

    try:
        async with asyncio.timeout(PATIENCE.total_seconds()):
            await try_out(settings.rate_limit_url.get_secret_value())
    except AWAY as error:
        says, hint = explain(error)
        return Finding("rate limits", "fail", f"Redis does not count: {says}", f"{hint[:1].upper()}{hint[1:]}.")
    return Finding("rate limits", "ok", "counted in Redis, by all processes together")


# --- Mail -------------------------------------------------------------------------------------


async def look_at_mail_servers(settings: Settings) -> AsyncIterator[Finding]:
    servers = settings.mail_servers
    if not servers:
        embedded = settings.database_url is None
        advice = None if embedded else "`registrar process` needs REGISTRAR_SMTP_URLS."
        yield Finding("mail", "ok" if embedded else "warn", "the embedded mailbox of `registrar up`", advice)
        return
    failures = await asyncio.gather(*(_log_in(server, _domain(settings.mail_from)) for server in servers))
    for server, failure in zip(servers, failures, strict=True):
        where = f"{server.host}:{server.port}"
        if failure is None:
            yield Finding("mail", "ok", f"{where} {_welcome(server)}")
        else:
            # One that works is enough to deliver.
            state: State = "fail" if all(failures) else "warn"
            yield Finding(
                "mail", state, f"{where}: {failure}", "Check REGISTRAR_SMTP_URLS, and the way to that server."
            )


def _welcome(server: MailServer) -> str:
    encrypts = server.scheme == "smtps" or server.starttls == "required"
    does = "greets us" if server.username is None else "lets us in"
    return f"{does}, {'encrypted' if encrypts else 'in clear text'}"


def _domain(sender: str) -> str:
    """What we call ourselves there, as when we send."""
    return parse_sender(sender).rpartition("@")[2]


async def _log_in(server: MailServer, greeting: str) -> str | None:
    """Connect, encrypt as the setting demands, and log in; returns what went wrong."""
    progress = Progress(started=asyncio.get_running_loop().time())
    try:
        async with asyncio.timeout(PATIENCE.total_seconds()):
            line = await reach(server.host, server.port)
            connection = await Connection.open(line, server, greeting, ssl.create_default_context(), progress)
    except (OSError, SMTPException) as error:
        if progress.stage == "login" and isinstance(error, SMTPResponseException):
            return f"it refuses user or password ({error.code})"
        if progress.stage == "login" and not isinstance(error, OSError | SMTPServerDisconnected):
            return "it offers no login"
        return cause_of(error) or {"tls": "no encryption"}.get(
            progress.stage, f"{judge_error(progress.stage, error).failure} failed"
        )
    connection.abort()
    return None


# --- Webhooks ---------------------------------------------------------------------------------


async def look_at_endpoints(settings: Settings) -> AsyncIterator[Finding]:
    """Can each endpoint be reached? It is not called."""
    from infrastructure.settings.addresses import Reachable
    from infrastructure.webhooks.calls import Calls, NotDelivered

    for endpoint in settings.webhook_endpoints:
        calls = Calls(endpoint, Reachable(settings.webhook_networks), deadline=PATIENCE)
        try:
            await calls.reach()
        except NotDelivered as failed:
            advice = (
                f"{failed.advice or 'Check REGISTRAR_WEBHOOKS.'} `registrar webhooks test {endpoint.name}` calls it."
            )
            yield Finding("webhooks", "fail", f"{endpoint.name}, {calls.where}: {failed.failure}", advice)
        else:
            yield Finding("webhooks", "ok", f"{endpoint.name}, {calls.where} can be reached")


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
