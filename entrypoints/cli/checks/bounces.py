"""What comes back: whether it finds its way, and encrypted."""

# ruff: noqa: PLC0415 - as in `cli.main`: what asks for records, and reads certificates, is loaded only where it is needed
from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from entrypoints.cli.checks.finding import PATIENCE, Finding
from infrastructure.settings.settings import Settings

if TYPE_CHECKING:
    from dns.asyncresolver import Resolver

SOON: Final = timedelta(days=14)
"""A certificate that ends within that should have been renewed: those who issue them for 90 days say at 30."""


async def look_at_bounces(settings: Settings, resolver: Resolver | None = None) -> AsyncIterator[Finding]:
    """Ask for the records of the bounce address's domain, and read the listener's certificate.

    Args:
        resolver: None: that of the machine.
    """
    if settings.bounce_address is None:
        yield Finding("bounces", "ok", "not noticed: REGISTRAR_BOUNCE_ADDRESS is not set")
        return
    domain = settings.bounce_address.rpartition("@")[2]
    by_provider = settings.bounce_webhooks is not None
    yield await _look_for(domain, "MX", resolver, by_provider=by_provider)
    yield await _look_for(domain, "TXT", resolver, by_provider=by_provider)
    if settings.bounce_certificate is not None:
        yield _look_at_certificate(settings)


async def _look_for(domain: str, kind: str, resolver: Resolver | None, *, by_provider: bool) -> Finding:
    from dns.asyncresolver import resolve
    from dns.exception import DNSException
    from dns.resolver import NXDOMAIN, NoAnswer

    ask = resolve if resolver is None else resolver.resolve
    try:
        found = [record.to_text() for record in await ask(domain, kind, lifetime=PATIENCE.total_seconds())]
    except (NXDOMAIN, NoAnswer):
        found = []
    except (DNSException, OSError) as error:
        advice = f"Look by hand: `dig {kind} {domain}`."
        return Finding("bounces", "warn", f"the {kind} records of {domain}: no answer ({type(error).__name__})", advice)
    return _judge_mx(domain, found, by_provider=by_provider) if kind == "MX" else _judge_spf(domain, found)


def _judge_mx(domain: str, found: list[str], *, by_provider: bool) -> Finding:
    if found:
        return Finding("bounces", "ok", f"what comes back goes to {', '.join(one.split()[-1] for one in found)}")
    says = f"{domain} has no MX record"
    if by_provider:
        return Finding("bounces", "ok", f"{says}; a provider tells by webhook")
    return Finding("bounces", "warn", says, "What comes back gets lost: make one, that leads to `registrar bounces`.")


def _judge_spf(domain: str, found: list[str]) -> Finding:
    # A record of more than 255 octets is several texts, which are one without anything between them (RFC 7208, 3.3).
    texts = [one.replace('" "', "").strip('"') for one in found]
    policies = [one for one in texts if one.partition(" ")[0] == "v=spf1"]
    match policies:
        case [policy]:
            return Finding("bounces", "ok", f"SPF of {domain}: {policy}")
        case []:
            advice = "Say in a TXT record which servers may send for it: `v=spf1 include:… -all`."
            return Finding("bounces", "warn", f"{domain} has no SPF record", advice)
    return Finding("bounces", "warn", f"{domain} has {len(policies)} SPF records", "One may be there: join them.")


def _look_at_certificate(settings: Settings) -> Finding:
    from cryptography.x509 import load_pem_x509_certificate

    from infrastructure.bounces.certificate import BadCertificate, Certificate

    chain, key = settings.bounce_certificate, settings.bounce_certificate_key
    if chain is None or key is None:
        return Finding("bounces", "fail", "the certificate has no key", "Set REGISTRAR_BOUNCE_CERTIFICATE_KEY, too.")
    try:
        Certificate(chain, key)
        ends = load_pem_x509_certificate(chain.read_bytes()).not_valid_after_utc
    except (BadCertificate, OSError, ValueError) as error:
        return Finding(
            "bounces", "fail", f"the certificate: {error}", "Correct it: `registrar bounces` does not start."
        )
    left = ends - datetime.now(UTC)
    says = f"the certificate holds until {ends:%Y-%m-%d}"
    if left < SOON:
        return Finding("bounces", "warn", says, "Renew it; the listener takes it without a restart.")
    return Finding("bounces", "ok", says)
