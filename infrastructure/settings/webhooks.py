"""What an operator may write as `REGISTRAR_WEBHOOKS` and `REGISTRAR_WEBHOOK_SECRETS`, and whether it fits together."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import BeforeValidator, SecretStr

from infrastructure.settings.addresses import Reachable
from infrastructure.settings.entries import each, refuse

SHARED: Final = "whsec_"
"""Begins a secret for HMAC-SHA256, which both sides have."""

PRIVATE: Final = "whsk_"
"""Begins an Ed25519 key of ours, whose public half the other side has."""

MOST_ENDPOINTS: Final = 16
"""Each has up to 64 connections of its own."""

MOST_SECRETS: Final = 4
"""Of one endpoint: two are enough for a rotation, and each is a signature in every call."""

_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
_BETWEEN: Final = re.compile(r"[,\s]+")


@dataclass(frozen=True, slots=True)
class WebhookEndpoint:
    """Whom webhooks are sent to.

    Attributes:
        url: path, query, user and password may hold secrets.
        secrets: keys that every call is signed with; of HMAC-SHA256, as bytes.
        private_keys: the same of Ed25519, seeds of 32 bytes.
    """

    name: str
    url: str = field(repr=False)
    secrets: tuple[bytes, ...] = field(repr=False)
    private_keys: tuple[bytes, ...] = field(repr=False)


def webhook_endpoints(urls: str, secrets: str) -> tuple[WebhookEndpoint, ...]:
    """Put together what both settings say, once each has been found to be well-formed.

    Raises:
        ValueError: an endpoint has no secret, or a secret no endpoint.
    """
    addresses, found = dict(each(_entries(urls), _named)), _secrets_by_name(secrets)
    idle, bare = sorted(found.keys() - addresses.keys()), sorted(addresses.keys() - found.keys())
    refuse(
        [f"has a secret for {name}, which is the name of no endpoint" for name in idle]
        + [f"has no secret for the endpoint {name}" for name in bare]
    )
    return tuple(
        WebhookEndpoint(
            name,
            url,
            tuple(key for kind, key in found[name] if kind == SHARED),
            tuple(key for kind, key in found[name] if kind == PRIVATE),
        )
        for name, url in addresses.items()
    )


def webhook_faults(urls: str, secrets: str, reachable: Reachable, called: Callable[[str, str], str]) -> Iterator[str]:
    """What is wrong with settings that are well-formed each by itself.

    Args:
        called: what an operator calls a setting, by its field and that of another one beside which it is written.
    """
    names, keys, networks = (called(name, "webhooks") for name in ("webhooks", "webhook_secrets", "webhook_networks"))
    try:
        endpoints = webhook_endpoints(urls, secrets)
    except ValueError as error:
        yield f"{keys} {error}; each endpoint has at least one, as in app=whsec_… or app=whsk_…."
        return
    for one in endpoints:
        if why := _never_called(one.url, reachable):
            yield f"{names} has {why} at {one.name}: it is called only in a network that {networks} names (127.0.0.0/8 is this machine)."


def _never_called(url: str, reachable: Reachable) -> str | None:
    """Why no call will ever be made, as far as nothing has to be looked up for that."""
    parts = urlsplit(url)
    host, encrypted = parts.hostname or "", parts.scheme == "https"
    addresses = ("127.0.0.1", "::1") if host == "localhost" else (host,)
    try:
        allowed = any(reachable.allows(one, encrypted=encrypted) for one in addresses)
    except ValueError:  # a name
        allowed = encrypted or bool(reachable.networks)
    if allowed:
        return None
    return (
        "an address that is not public" if encrypted else "an address with http:// (or an address that is not public)"
    )


def _entries(text: str) -> list[str]:
    return [entry for entry in _BETWEEN.split(text.strip()) if entry]


def _named(entry: str) -> tuple[str, str]:
    """An entry `name=value`.

    Raises:
        ValueError: it is not of this form; the message does not repeat it.
    """
    name, equals, value = entry.partition("=")
    if not equals or not _NAME.fullmatch(name) or not value:
        raise ValueError("is not of the form name=value, with a name of a-z, 0-9 and -")
    return name, value


def _urls(value: object) -> object:
    if isinstance(value, str):
        names = each(_entries(value), _endpoint_name)
        refuse(f"has two endpoints of the name {name}" for name in names if names.count(name) > 1)
        if not 1 <= len(names) <= MOST_ENDPOINTS:
            raise ValueError(f"has not 1 to {MOST_ENDPOINTS} endpoints")
    return value


def _endpoint_name(entry: str) -> str:
    name, url = _named(entry)
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0 and not parts.fragment
    except ValueError:
        usable = False
    if not usable or not re.fullmatch(r"[!-~]+", url):
        raise ValueError("is not of the form name=https://host[:port][/path][?query]")
    if "@" in url.partition("@")[2].partition("/")[0]:
        raise ValueError("has an @ in its user or password that is not written as %40")
    return name


def looks_like_hex(secrets: str) -> bool:
    """Is one of the shared secrets written in hex? Read as base64, as it is by both sides, it is another one."""
    return any(re.fullmatch(rf"{SHARED}[0-9a-fA-F]{{40,}}", _named(entry)[1]) for entry in _entries(secrets))


def _secrets(value: object) -> object:
    if isinstance(value, str):
        _secrets_by_name(value)
    return value


def _secrets_by_name(text: str) -> dict[str, list[tuple[str, bytes]]]:
    found: dict[str, list[tuple[str, bytes]]] = {}
    for name, key in each(_entries(text), _signing_key):
        found.setdefault(name, []).append(key)
    refuse(
        f"has more than {MOST_SECRETS} secrets for {name}" for name, keys in found.items() if len(keys) > MOST_SECRETS
    )
    return found


def _signing_key(entry: str) -> tuple[str, tuple[str, bytes]]:
    name, secret = _named(entry)
    return name, _key(secret)


def _key(secret: str) -> tuple[str, bytes]:
    """A secret's kind and its bytes. An Ed25519 key may have its public half behind it, as libsodium writes them."""
    kind = next((kind for kind in (SHARED, PRIVATE) if secret.startswith(kind)), None)
    if kind is None:
        raise ValueError(f"is neither name={SHARED}… nor name={PRIVATE}…")
    written = secret.removeprefix(kind).rstrip("=")
    try:
        key = base64.b64decode(written + "=" * (-len(written) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"has something behind its {kind} that is not base64") from None
    if kind == SHARED and not 24 <= len(key) <= 64:  # the bounds of Standard Webhooks 1.0.0
        raise ValueError(f"has not 24 to 64 bytes in base64 behind its {kind} (`openssl rand -base64 32`)")
    if kind == PRIVATE and len(key) not in {32, 64}:
        raise ValueError(f"has not 32 bytes behind its {kind}")
    return kind, key if kind == SHARED else key[:32]


WebhookUrls = Annotated[SecretStr, BeforeValidator(_urls)]
WebhookSecrets = Annotated[SecretStr, BeforeValidator(_secrets)]
