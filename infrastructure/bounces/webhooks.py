"""The webhooks that providers call, as the API knows them."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.error import URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

import structlog

from application.ports import Secrets
from infrastructure.bounces.listener import Reports
from infrastructure.bounces.providers import Call, Said, is_signed, read_events

log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_SUBSCRIBE: Final = re.compile(r"https://sns\.[a-z0-9-]+\.amazonaws\.com(\.cn)?/\?[!-~]+")
_PATIENCE: Final = 5.0
"""Seconds for the confirmation of a subscription."""

AT_ONCE: Final = 16
"""Events of one call that are under way together: fewer than may be in all, or the end of a long call would be refused
each time that it comes."""


class BounceWebhooks:
    """Takes calls.

    Args:
        provided: each provider that may call, and its secret.
        now: seconds since the epoch.
        confirm: calls an address of SNS, by which a subscription is confirmed.
    """

    def __init__(
        self,
        provided: Mapping[str, str],
        secrets: Secrets,
        reports: Reports,
        *,
        now: Callable[[], float] = time.time,
        confirm: Callable[[str], None] | None = None,
    ) -> None:
        self._provided = provided
        self._secrets = secrets
        self._reports = reports
        self._now = now
        self._confirm = confirm or _call

    def knows(self, provider: str) -> bool:
        """May it call at all?"""
        return provider in self._provided

    def trusts(self, provider: str, headers: Mapping[str, str], body: bytes) -> bool:
        """Is it the provider who calls?"""
        trusted = is_signed(provider, Call(headers, body), self._provided[provider], self._now())
        if not trusted:
            self._reports.unknown()
        return trusted

    async def take(self, provider: str, body: bytes) -> None:
        """Record what a trusted call says.

        Raises:
            ValueError: it is not what the provider sends.
            Unavailable: some of it cannot be recorded now, or is early: the provider has to call again. The rest is
                recorded, and will be a repeat.
        """
        if provider == "ses":
            await self._confirm_subscription(body)
        # Together: what is early waits for its hand-over, and holds up nothing else.
        few = asyncio.Semaphore(AT_ONCE)

        async def report(tokens: list[str], said: Said) -> None:
            async with few:
                await self._report(provider, tokens, said)

        done = await asyncio.gather(
            *(report(tokens, said) for tokens, said in read_events(provider, body)), return_exceptions=True
        )
        for failed in filter(None, done):
            raise failed

    async def _report(self, provider: str, tokens: list[str], said: Said) -> None:
        mail = next(filter(None, map(self._secrets.mail_of_bounce_token, tokens)), None)
        if mail is None:
            self._reports.unknown()
        elif said == "complained":
            await self._reports.complained(*mail, reported_by=provider)
        elif said is not None:
            await self._reports.bounced(*mail, said)

    async def _confirm_subscription(self, body: bytes) -> None:
        try:
            asked = json.loads(body)
            is_one = asked.get("Type") == "SubscriptionConfirmation"
            url = asked["SubscribeURL"] if is_one else None
        except (ValueError, KeyError, AttributeError, RecursionError):
            return
        if not isinstance(url, str):
            return
        if not _SUBSCRIBE.fullmatch(url):
            log.warning("bounces.subscription_refused", hint="SNS is to be called at an address that is not its own")
            return
        try:
            await asyncio.to_thread(self._confirm, url)
        except (OSError, URLError) as error:
            hint = "ask for another confirmation in the console of SNS; this process has to reach its address"
            log.warning("bounces.subscription_not_confirmed", error=type(error).__name__, hint=hint)
        else:
            log.info("bounces.subscription_confirmed", provider="ses")


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def _call(url: str) -> None:
    with build_opener(_NoRedirect).open(Request(url), timeout=_PATIENCE) as response:  # noqa: S310 - https, see above
        response.read(1024)
