"""What an operator may write as the value of a setting: one type for each kind of value, which parses and checks it.

A ValueError completes the sentence "REGISTRAR_… <message>", and never repeats the value, which could be a secret.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Final, Literal, NamedTuple, Self
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import idna
import psycopg
from psycopg.conninfo import conninfo_to_dict
from pydantic import AfterValidator, BeforeValidator, Field, SecretBytes, SecretStr

from infrastructure.settings.entries import each
from infrastructure.settings.nearest import nearest_of
from infrastructure.settings.sender import mailbox, split_sender


class Listen(NamedTuple):
    """Where to listen: `host` without brackets, `port` 0 for any free one."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class MailServer:
    """One SMTP server, as an entry of `REGISTRAR_SMTP_URLS` describes it.

    Attributes:
        scheme: "smtps" speaks TLS from the first byte, "smtp" starts in clear.
        starttls: "required": no mail is sent without it; "never": it is not asked for ("smtps" has TLS already).
        username: None means no login; then there is no password either.
    """

    scheme: Literal["smtp", "smtps"]
    host: str
    port: int
    username: str | None = None
    password: SecretStr | None = None
    starttls: Literal["required", "never"] = "required"

    @classmethod
    def parse(cls, url: str) -> Self:
        """Parse `smtps://user:password@host:port` or `smtp://…[?starttls=never|required]`.

        User and password may be percent-encoded, and must be where they contain one of `@ : / ? # % ,`.

        Raises:
            ValueError: `url` is not of this form; the message does not repeat it.
        """
        parts, port = _split(url)
        scheme, host, options = parts.scheme, parts.hostname, dict(parse_qsl(parts.query, keep_blank_values=True))
        if scheme not in {"smtp", "smtps"} or not host or parts.path not in {"", "/"} or parts.fragment:
            raise ValueError(
                "is not of the form smtps://user:password@host:port or smtp://… "
                "(special characters in user and password must be percent-encoded)"
            )
        starttls = options.pop("starttls", "never" if scheme == "smtps" or _is_loopback(host) else "required")
        if options or starttls not in {"required", "never"} or (scheme == "smtps" and starttls == "required"):
            raise ValueError("has an option other than starttls=never or starttls=required (for smtp:// only)")
        if bool(parts.username) != bool(parts.password):
            raise ValueError("has a user without a password, or a password without a user")
        if port == 0:
            raise ValueError("has port 0")
        return cls(
            scheme="smtps" if scheme == "smtps" else "smtp",
            host=host,
            port=port or (465 if scheme == "smtps" else 587),
            username=unquote(parts.username) if parts.username else None,
            password=SecretStr(unquote(parts.password)) if parts.password else None,
            starttls="never" if starttls == "never" else "required",
        )


def _split(url: str) -> tuple[SplitResult, int | None]:
    """Split `url` into its parts and its port. The library's ValueErrors are replaced: they repeat what they read."""
    if not url.isprintable() or " " in url:
        raise ValueError("contains a space or a control character")
    _check_login(url)
    try:
        parts = urlsplit(url)
        return parts, parts.port
    except ValueError:
        raise ValueError(f"is not a URL with a valid host and port{_hint(url)}") from None


_ENCODE: Final = "percent-encode @ / ? # [ ] % in its user and password (as %40 %2F %3F %23 %5B %5D %25)"


def _hint(url: str) -> str:
    return f"; {_ENCODE}" if "@" in url else ""


def _check_login(url: str) -> None:
    """Refuse a URL whose user or password is cut in two by a character that should have been percent-encoded.

    Programs read such a URL in different ways, and most take a part of the password for the host, which they then
    look up and show. What is left of a password that is cut at a slash may be a valid host and port
    (`amqp://user:1234/5@host`), so an "@" behind the host counts as well.
    """
    scheme, _, rest = url.partition("://")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    login, at, _ = authority.rpartition("@")
    behind = rest[len(authority) :]
    # `?user=name@tenant` is legal, `https://host/@name` usual.
    if at or (scheme in {"postgresql", "postgres"} and behind.startswith("/")):
        behind = behind.partition("?")[0]
    cut = "@" in behind and (at or scheme not in {"http", "https"})
    if "@" in login or cut or re.search(r"%(?![0-9A-Fa-f]{2})", login):
        raise ValueError(f"is cut in two by an unescaped character; {_ENCODE}")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _at_most(longest: timedelta, *, or_none: bool = False) -> AfterValidator:
    """
    Args:
        or_none: whether 0 has a meaning.
    """

    def check(value: timedelta) -> timedelta:
        if not timedelta(milliseconds=1) <= value <= longest and not (or_none and value == timedelta(0)):
            raise ValueError(
                f"is not {'0, nor ' if or_none else ''}between 0.001 and {longest.total_seconds():.0f} seconds"
            )
        return value

    return AfterValidator(check)


_UNITS: Final = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
"""In seconds; a duration names them in this order."""

_DURATION: Final = re.compile(
    "".join(rf"(?:(?P<{unit}>\d{{1,8}}(?:\.\d{{1,6}})?){unit})?" for unit in _UNITS), re.ASCII
)


def duration(value: object) -> object:
    """Parse a duration: a number of seconds (`600`, `0.25`), or numbers with units, the largest first, each once.

    The units are `d`, `h`, `m`, `s` and `ms`, as in `600s`, `10m`, `1h30m`, `1d`, `500ms`, `1.5h`: small letters,
    without spaces.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, str):
        return value
    if re.fullmatch(r"\d{1,12}(\.\d{1,6})?", value, re.ASCII):
        return timedelta(seconds=float(value))
    found = _DURATION.fullmatch(value)
    if not value or found is None:
        raise ValueError("is not a duration: seconds (600), or with the units d, h, m, s, ms (10m, 1h30m, 500ms)")
    return timedelta(seconds=sum(float(found[unit] or 0) * seconds for unit, seconds in _UNITS.items()))


def _key(value: object) -> object:
    """Decode 32 bytes from hex, or from base64 with either alphabet, padded or not."""
    if not isinstance(value, str):
        return value
    try:
        if re.fullmatch(r"[0-9A-Fa-f]{64}", value):
            return bytes.fromhex(value)
        if re.fullmatch(r"[A-Za-z0-9+/_-]{43}=?", value):
            standard = value.rstrip("=").translate(str.maketrans("-_", "+/")) + "="
            return base64.b64decode(standard, validate=True)
    except binascii.Error:
        pass
    raise ValueError("is not 32 bytes written as 64 hex digits or as base64")


def _token(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(r"[!-~]+", value):
        raise ValueError("contains a space or a character outside ASCII, which an HTTP header cannot carry")
    return value


def _database_url(value: object) -> object:
    if isinstance(value, str):
        if not value.startswith(("postgresql://", "postgres://")):
            raise ValueError("does not start with postgresql://")
        _check_login(value)
        try:
            conninfo_to_dict(value)
        except psycopg.Error:
            raise ValueError(f"is not a connection URL PostgreSQL understands{_hint(value)}") from None
    return value


def _smtp_urls(value: object) -> object:
    if isinstance(value, str):
        mail_servers(value)
    return value


def mail_servers(urls: str) -> tuple[MailServer, ...]:
    """Parse the entries of `REGISTRAR_SMTP_URLS`, in their order.

    Raises:
        ValueError: entries are not URLs of mail servers; the message has their numbers, not their texts.
    """
    return tuple(each((url.strip() for url in urls.split(",")), MailServer.parse))


def _broker_url(value: object) -> object:
    if isinstance(value, str):
        parts, port = _split(value)
        if parts.scheme not in {"amqp", "amqps"} or not parts.hostname or parts.query or parts.fragment or port == 0:
            raise ValueError("is not of the form amqp://user:password@host:port/virtual-host, or amqps://…")
    return value


def _redis_url(value: object) -> object:
    if isinstance(value, str):
        parts, port = _split(value)
        database = parts.path.removeprefix("/")
        if (
            parts.scheme not in {"redis", "rediss"}
            or not parts.hostname
            or parts.query
            or parts.fragment
            or port == 0
            or not re.fullmatch(r"[0-9]{0,5}", database)
        ):
            raise ValueError("is not of the form redis://user:password@host:port/database, or rediss://…")
    return value


def _web_url(value: object) -> object:
    if isinstance(value, str):
        parts, _ = _split(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("is not an address of the form https://host[:port][/path]")
        if ":" not in parts.hostname:
            host_name(parts.hostname)
        return value.rstrip("/")
    return value


def _shown_url(value: object) -> object:
    value = _web_url(value)
    if isinstance(value, str) and urlsplit(value).username is not None:
        raise ValueError("is shown to everybody, and must be without user and password")
    return value


def _alert_url(value: object) -> object:
    if isinstance(value, str):
        parts, port = _split(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.fragment or port == 0:
            raise ValueError("is not an address of the form https://host[:port][/path][?query]")
        if not value.isascii():
            raise ValueError("contains a character outside ASCII, which a URL must percent-encode")
    return value


def _listen(value: object) -> object:
    if isinstance(value, str):
        parts, port = _split(f"//{value}")
        if not parts.hostname or port is None or value != parts.netloc or parts.username is not None:
            raise ValueError("is not of the form host:port")
        return Listen(parts.hostname, port)
    return value


def _sender(value: object) -> object:
    if isinstance(value, str):
        split_sender(value)
    return value


def _mailbox(value: object) -> object:
    if isinstance(value, str):
        try:
            return mailbox(value)
        except ValueError:
            raise ValueError("is not a mail address without a name") from None
    return value


def _networks(everything: str) -> BeforeValidator:
    """
    Args:
        everything: what is wrong with a network of all addresses.
    """

    def parse(value: object) -> object:
        if not isinstance(value, str):
            return value
        networks = each((text.strip() for text in value.split(",")), _network)
        if any(network.prefixlen == 0 for network in networks):
            raise ValueError(everything)
        return tuple(networks)

    return BeforeValidator(parse)


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network("0.0.0.0/0" if text == "*" else text)
    except ValueError:
        raise ValueError("is not a network like 10.0.0.0/8 (no bits set beyond the prefix)") from None


ANY_HOST: Final = "*"
"""In place of a name: whatever the service is called by."""


_HOST_NAME: Final = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", re.IGNORECASE | re.ASCII)


def host_name(text: str) -> str:
    """A host's name as it stands in requests: in lower case, in ASCII by IDNA, without the dot of the root.

    Raises:
        ValueError: it is not the name of a host.
    """
    name = text.removesuffix(".")
    try:
        name = name if name.isascii() else idna.encode(name, uts46=True).decode("ascii")
    except idna.IDNAError:
        name = ""
    if not _HOST_NAME.fullmatch(name):
        raise ValueError("names no host that there can be")
    return name.lower()


def _host_names(value: object) -> object:
    if not isinstance(value, str):
        return value
    return tuple(each((text.strip() for text in value.split(",")), _host_name_or_any))


def _host_name_or_any(text: str) -> str:
    try:
        return text if text == ANY_HOST else host_name(text)
    except ValueError:
        raise ValueError("is neither a name without scheme and port nor *") from None


def _domain_policy(value: object) -> object:
    if isinstance(value, str) and value not in DOMAIN_POLICIES:
        nearest = nearest_of(value.lower(), DOMAIN_POLICIES)
        raise ValueError(f"is not one of {', '.join(DOMAIN_POLICIES)}; the nearest is {nearest}")
    return value


DOMAIN_POLICIES: Final = ("off", "log", "hint", "refuse")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Networks = Annotated[
    tuple[Network, ...],
    _networks("would trust everyone, so that anyone could forge any address; list the proxies' networks"),
]
PrivateNetworks = Annotated[
    tuple[Network, ...], _networks("would have every address called, this machine's own among them; list the networks")
]
HostNames = Annotated[tuple[str, ...], BeforeValidator(_host_names)]
Duration = Annotated[timedelta, BeforeValidator(duration), _at_most(timedelta(days=366))]
DurationOrNone = Annotated[timedelta, BeforeValidator(duration), _at_most(timedelta(days=366), or_none=True)]
# PostgreSQL and RabbitMQ count these in 32 bits of milliseconds.
ShortDuration = Annotated[timedelta, BeforeValidator(duration), _at_most(timedelta(days=24))]
MasterKey = Annotated[SecretBytes, BeforeValidator(_key), Field(min_length=32, max_length=32)]
Token = Annotated[SecretStr, BeforeValidator(_token)]
DatabaseUrl = Annotated[SecretStr, BeforeValidator(_database_url)]
BrokerUrl = Annotated[SecretStr, BeforeValidator(_broker_url)]
SmtpUrls = Annotated[SecretStr, BeforeValidator(_smtp_urls)]
AlertUrl = Annotated[SecretStr, BeforeValidator(_alert_url)]
WebUrl = Annotated[str, BeforeValidator(_web_url)]
ShownUrl = Annotated[str, BeforeValidator(_shown_url)]
ListenAddress = Annotated[Listen, BeforeValidator(_listen)]
Mailbox = Annotated[str, BeforeValidator(_mailbox)]
Sender = Annotated[str, BeforeValidator(_sender)]
RedisUrl = Annotated[SecretStr, BeforeValidator(_redis_url)]
DomainPolicy = Annotated[Literal["off", "log", "hint", "refuse"], BeforeValidator(_domain_policy)]
