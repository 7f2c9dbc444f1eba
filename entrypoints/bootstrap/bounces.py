"""What is told of mails that came back: the listener for notifications, and the providers' webhooks."""

# ruff: noqa: PLC0415 - as in `cli.main`: only who listens loads what reads them
from __future__ import annotations

import errno
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

from application.bounce_reports import BounceReports
from entrypoints.bootstrap import CannotStart
from entrypoints.bootstrap.core import Core
from infrastructure.bounces.addresses import BounceAddresses
from infrastructure.settings.bounces import bounce_webhooks
from infrastructure.settings.settings import Settings
from infrastructure.settings.values import Listen

if TYPE_CHECKING:
    from infrastructure.bounces.certificate import Certificate
    from infrastructure.bounces.listener import BounceListener
    from infrastructure.bounces.webhooks import BounceWebhooks

DEFAULT: Final = Listen("127.0.0.1", 2525)
"""Where `registrar bounces` listens unless `BOUNCE_LISTEN` says otherwise."""


def webhooks_of(core: Core, settings: Settings) -> BounceWebhooks | None:
    """What mail providers report to; None if none may.

    Raises:
        CannotStart: there is no bounce address.
    """
    if settings.bounce_webhooks is None:
        return None
    from infrastructure.bounces.webhooks import BounceWebhooks

    if settings.bounce_address is None:
        raise CannotStart(
            "REGISTRAR_BOUNCE_WEBHOOKS is set, and REGISTRAR_BOUNCE_ADDRESS is not: no mail is named; set it, too."
        )
    provided = bounce_webhooks(settings.bounce_webhooks.get_secret_value())
    return BounceWebhooks(provided, core.keyring, _reports(core))


def _reports(core: Core) -> BounceReports:
    core.metrics.takes_bounces()
    return BounceReports(core.handlers, on_report=core.metrics.bounce)


def _certificate(settings: Settings) -> Certificate | None:
    chain, key = settings.bounce_certificate, settings.bounce_certificate_key
    if chain is None and key is None:
        return None
    from infrastructure.bounces.certificate import BadCertificate, Certificate

    if chain is None or key is None:
        raise CannotStart("Of REGISTRAR_BOUNCE_CERTIFICATE and REGISTRAR_BOUNCE_CERTIFICATE_KEY one is set; set both.")
    try:
        return Certificate(chain, key)
    except BadCertificate as error:
        raise CannotStart(f"REGISTRAR_BOUNCE_CERTIFICATE: {error}.") from None


async def open_listener(core: Core, settings: Settings, stack: AsyncExitStack) -> BounceListener:
    """Listen for notifications; taken down with the stack.

    Raises:
        CannotStart: there is no bounce address, its certificate cannot be used, or something else listens there.
    """
    from infrastructure.bounces.listener import BounceListener

    if settings.bounce_address is None:
        raise CannotStart("REGISTRAR_BOUNCE_ADDRESS is not set: no mail is named in its envelope; set it.")
    where = settings.bounce_listen or DEFAULT
    listener = BounceListener(
        BounceAddresses(settings.bounce_address, core.keyring),
        _reports(core),
        host=where.host,
        port=where.port,
        certificate=_certificate(settings),
    )
    try:
        await listener.start()
    except OSError as error:
        reason = "another program uses it" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
        raise CannotStart(
            f"Cannot listen on {where.host}:{where.port}: {reason}; choose another with REGISTRAR_BOUNCE_LISTEN."
        ) from None
    stack.push_async_callback(listener.stop)
    return listener
