"""What an operator can set: every `REGISTRAR_` variable, read once, checked, frozen.

`Settings.from_environment(os.environ)` is the only way in for a process; nothing else reads the environment.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import email_validator
import psycopg
from psycopg.conninfo import conninfo_to_dict
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretBytes,
    SecretStr,
    ValidationError,
)
from pydantic.fields import FieldInfo

PREFIX = "REGISTRAR_"


class BadSettings(Exception):
    """The settings cannot be used; the message is one line that names the variable and what to do about it.

    It never holds a value, which could be a secret, only names.
    """


class Listen(NamedTuple):
    """Where to listen: `host` without brackets, `port` 0 for any free one."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class MailServer:
    """One SMTP server, as an entry of `REGISTRAR_SMTP_URLS` describes it.

    Attributes:
        scheme: "smtps" speaks TLS from the first byte, "smtp" starts in clear.
        starttls: "required": no mail without it; "never": do not ask for it ("smtps" has TLS already).
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
        """Read `smtps://user:password@host:port` or `smtp://…[?starttls=never|required]`.

        User and password may be percent-encoded, and must be where they contain one of `@ : / ? # % ,`.

        Raises:
            ValueError: it is none; the message does not repeat it.
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
    """`url` in its parts, and its port. The ValueErrors of the library are replaced: they repeat what they read."""
    if not url.isprintable() or " " in url:
        raise ValueError("contains a space or a control character")
    try:
        parts = urlsplit(url)
        return parts, parts.port
    except ValueError:
        raise ValueError("is not a URL with a valid host and port") from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _sensible(longest: timedelta) -> AfterValidator:
    def check(value: timedelta) -> timedelta:
        if not timedelta(milliseconds=1) <= value <= longest:
            raise ValueError(f"is not between 0.001 and {longest.total_seconds():.0f} seconds")
        return value

    return AfterValidator(check)


def _seconds(value: object) -> object:
    if not isinstance(value, str):
        return value
    if not re.fullmatch(r"\d{1,12}(\.\d{1,6})?", value, re.ASCII):
        raise ValueError("is not a number of seconds")
    return timedelta(seconds=float(value))


def _key(value: object) -> object:
    """32 bytes from their hex or base64 form, with either alphabet, padded or not."""
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
        try:
            conninfo_to_dict(value)
        except psycopg.Error:
            raise ValueError("is not a connection URL PostgreSQL understands") from None
    return value


def _smtp_urls(value: object) -> object:
    if isinstance(value, str):
        _mail_servers(value)
    return value


def _mail_servers(urls: str) -> tuple[MailServer, ...]:
    servers = []
    for number, url in enumerate(urls.split(","), start=1):
        try:
            servers.append(MailServer.parse(url.strip()))
        except ValueError as error:
            raise ValueError(f"entry {number} {error}") from None
    return tuple(servers)


def _broker_url(value: object) -> object:
    if isinstance(value, str):
        parts, port = _split(value)
        if parts.scheme not in {"amqp", "amqps"} or not parts.hostname or parts.query or parts.fragment or port == 0:
            raise ValueError("is not of the form amqp://user:password@host:port/virtual-host, or amqps://…")
    return value


class _NoValueWillDo(ValueError):
    """About a setting that must not be set: no example of a better value helps."""


def _unsupported(value: object) -> object:
    if value is not None:
        raise _NoValueWillDo("is not supported by this version yet")
    return value


def _web_url(value: object) -> object:
    if isinstance(value, str):
        parts, _ = _split(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("is not an address of the form https://host[:port][/path]")
        return value.rstrip("/")
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


def _mailbox(value: object) -> object:
    if isinstance(value, str):
        try:
            # What matters is that it fits a header; `registrar.localhost` and the like are fine for a try-out, and refused
            # by the library whatever it is told.
            email_validator.validate_email(
                re.sub(r"\.localhost(?=>?$)", ".example", value),
                allow_display_name=True,
                allow_smtputf8=False,
                check_deliverability=False,
                globally_deliverable=False,
            )
        except email_validator.EmailNotValidError:
            raise ValueError("is not a mail address, with or without a name before it") from None
    return value


def _networks(value: object) -> object:
    if not isinstance(value, str):
        return value
    networks = []
    for number, text in enumerate(value.split(","), start=1):
        try:
            network = ipaddress.ip_network(text.strip())
        except ValueError:
            network = None
        if text.strip() == "*" or (network is not None and network.prefixlen == 0):
            raise ValueError(
                "would trust everyone, so that anyone could pretend any address; list the proxies' networks"
            )
        if network is None:
            raise ValueError(f"entry {number} is not a network like 10.0.0.0/8 (no bits set beyond the prefix)")
        networks.append(network)
    return tuple(networks)


Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Duration = Annotated[timedelta, BeforeValidator(_seconds), _sensible(timedelta(days=366))]
# PostgreSQL and RabbitMQ count these in 32 bits of milliseconds.
ShortDuration = Annotated[timedelta, BeforeValidator(_seconds), _sensible(timedelta(days=24))]


def _public_url(settings: dict[str, Any]) -> str:
    # A link to a wildcard address leads nowhere.
    host = {"0.0.0.0": "localhost", "::": "localhost"}.get(settings["host"], settings["host"])  # noqa: S104 - compared, not bound
    return f"http://{f'[{host}]' if ':' in host else host}:{settings['port']}"


class Settings(BaseModel):
    """Every setting, with its default. In the environment a name has the prefix `REGISTRAR_` and capitals.

    Durations are `timedelta`s here and seconds, whole or with a fraction, in the environment.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    database_url: Annotated[SecretStr | None, BeforeValidator(_database_url)] = Field(
        default=None,
        description="PostgreSQL to use, as a URL; None: the embedded one in `data_dir`",
        examples=["postgresql://user:password@host:5432/registrar"],
    )
    broker_url: Annotated[SecretStr | None, BeforeValidator(_broker_url)] = Field(
        default=None,
        description="RabbitMQ to use, as a URL; None: mail is handed over inside the process",
        examples=["amqp://user:password@host:5672/"],
    )
    smtp_urls: Annotated[SecretStr | None, BeforeValidator(_smtp_urls)] = Field(
        default=None,
        description="mail servers in order of preference, URLs separated by commas; None: the embedded mailbox",
        examples=["smtps://user:password@mail.example.org:465"],
    )
    rate_limit_url: Annotated[SecretStr | None, BeforeValidator(_unsupported)] = Field(
        default=None, description="Redis to count in, as a URL; None: counted inside the process"
    )
    master_key: Annotated[SecretBytes | None, BeforeValidator(_key)] = Field(
        default=None,
        min_length=32,
        max_length=32,
        description="key that wraps every other key, 32 bytes; None: made once in `data_dir` (embedded database only)",
        examples=["what `openssl rand -hex 32` prints"],
    )
    master_key_file: Path | None = Field(
        default=None,
        description="file `master_key` was read from; None: none",
        examples=["a file with what `openssl rand -hex 32` prints"],
    )
    admin_token: Annotated[SecretStr | None, BeforeValidator(_token)] = Field(
        default=None,
        description="bearer token of the admin routes; None: made once in `data_dir` (embedded database only)",
        examples=["what `openssl rand -hex 32` prints"],
    )
    admin_listen: Annotated[Listen | None, BeforeValidator(_listen)] = Field(
        default=None,
        description="host:port of the admin routes, docs and metrics; None: the main listener",
        examples=["127.0.0.1:8001"],
    )
    otlp_endpoint: Annotated[str | None, BeforeValidator(_web_url)] = Field(
        default=None,
        description="base URL of an OTLP/HTTP collector; None: tracing is off",
        examples=["http://localhost:4318"],
    )
    alert_url: Annotated[SecretStr | None, BeforeValidator(_alert_url)] = Field(
        default=None,
        description="webhook that is told of dead letters and of mail servers' circuits; None: nobody is",
        examples=["https://alerts.example.org/hook?token=secret"],
    )
    alert_dead_letters: int = Field(
        default=10, ge=1, le=1_000_000_000, description="dead letters that `alert_url` is told of", examples=["10"]
    )

    host: str = Field(
        default="127.0.0.1",
        pattern=r"^[0-9A-Za-z.:_-]+$",
        description="address the API listens on",
        examples=["127.0.0.1"],
    )
    port: int = Field(
        default=8000, ge=0, le=65535, description="TCP port the API listens on; 0: any free one", examples=["8000"]
    )
    public_url: Annotated[str, BeforeValidator(_web_url)] = Field(
        default_factory=_public_url,
        description="address people reach the service at, without a slash at its end; by default http://host:port",
        examples=["https://accounts.example.org"],
    )
    data_dir: Path = Field(
        default=Path(".registrar"), description="directory of the embedded services", examples=[".registrar"]
    )
    trusted_proxies: Annotated[tuple[Network, ...], BeforeValidator(_networks)] = Field(
        default=(),
        description="networks whose X-Forwarded-For is believed, CIDR, separated by commas",
        examples=["10.0.0.0/8,192.168.7.1/32"],
    )
    mail_from: Annotated[str, BeforeValidator(_mailbox)] = Field(
        default="Registrar <no-reply@registrar.localhost>",
        description="sender of every mail, with or without a name",
        examples=["Registrar <no-reply@example.org>"],
    )

    otp_ttl: Duration = Field(
        default=timedelta(seconds=600), description="seconds a code holds after its hand-over to the mail server"
    )
    otp_max_attempts: int = Field(default=5, ge=1, le=10, description="tries per code", examples=["5"])
    registration_ttl: Duration = Field(
        default=timedelta(seconds=86400), description="seconds until an unverified registration is cancelled"
    )
    resend_cooldown: Duration = Field(
        default=timedelta(seconds=60), description="seconds between two codes for one registration"
    )
    request_timeout: Duration = Field(
        default=timedelta(seconds=30), description="seconds after which an HTTP request is answered 504"
    )
    statement_timeout: ShortDuration = Field(
        default=timedelta(seconds=10), description="seconds after which PostgreSQL gives up a statement"
    )
    message_ttl: ShortDuration = Field(
        default=timedelta(seconds=60), description="seconds a mail message may wait in the broker"
    )
    queue_ttl: ShortDuration = Field(
        default=timedelta(seconds=300), description="seconds any message may wait in the mail queue"
    )
    send_timeout: Duration = Field(
        default=timedelta(seconds=10), description="seconds one attempt to hand over a mail may take"
    )
    stop_delay: Duration = Field(
        default=timedelta(seconds=1),
        description="seconds for which a process that was told to stop says that it is not ready, before it stops listening",
    )

    reveal_duplicates: bool = Field(
        default=False, description="tell who registers that the address is taken", examples=["false"]
    )
    log_format: Literal["console", "json"] | None = Field(
        default=None, description="None: console on a terminal, else json", examples=["json"]
    )

    @property
    def mail_servers(self) -> tuple[MailServer, ...]:
        """`smtp_urls`, parsed; empty means the embedded mailbox."""
        return _mail_servers(self.smtp_urls.get_secret_value()) if self.smtp_urls else ()

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], **overrides: object) -> Self:
        """Read and check the `REGISTRAR_` variables of `environ`; everything else in it is ignored.

        An empty variable counts as unset. `overrides` are options of the command line, by field name; they win,
        and None means that the option was not given.

        Raises:
            BadSettings: an unknown name, or the first value that cannot be used.
        """
        found = {name: value.strip() for name, value in environ.items() if name.startswith(PREFIX)}
        known = [PREFIX + field.upper() for field in cls.model_fields]
        for name in sorted(found.keys() - set(known)):
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
            raise BadSettings(f"{ascii(name)[1:-1]} is not a setting; did you mean {nearest}? Rename or unset it.")

        given: dict[str, object] = {name.removeprefix(PREFIX).lower(): value for name, value in found.items() if value}
        options = {field: value for field, value in overrides.items() if value is not None}
        values = given | options
        if "master_key_file" in values:
            if "master_key" in values:
                raise BadSettings(f"{PREFIX}MASTER_KEY and {PREFIX}MASTER_KEY_FILE are both set; unset one of them.")
            values["master_key"] = _read_key_file(Path(str(values["master_key_file"])))
        try:
            settings = cls.model_validate(values)
        except ValidationError as error:
            # Not chained: the cause holds the values.
            raise BadSettings(cls._explain(error, given=values, options=options)) from None
        if settings.database_url and not settings.master_key:
            raise BadSettings(
                f"{PREFIX}MASTER_KEY (or {PREFIX}MASTER_KEY_FILE) is missing, and {PREFIX}DATABASE_URL needs it; "
                "set it to what `openssl rand -hex 32` prints, and keep it as safe as the database."
            )
        return settings

    @classmethod
    def _explain(cls, error: ValidationError, *, given: Mapping[str, object], options: Mapping[str, object]) -> str:
        first = error.errors(include_url=False, include_input=False)[0]
        field = str(first["loc"][0])
        name = f"--{field.replace('_', '-')}" if field in options else PREFIX + field.upper()
        without = "leave it out" if field in options else "unset it"
        if field == "master_key" and "master_key_file" in given:
            name, what = f"{PREFIX}MASTER_KEY_FILE", "contains something that is not 32 bytes as hex or base64"
        else:
            reason = first.get("ctx", {}).get("error")
            ours = isinstance(reason, Exception)  # of a library's own errors it is a text
            what = str(reason) if ours else f"is refused: {first['msg'][:1].lower()}{first['msg'][1:]}"
            if isinstance(reason, _NoValueWillDo):
                return f"{name} {what}; {without}."
        example = _example(cls.model_fields[field])
        return f"{name} {what}. {f'Set it to something like {example},' if example else 'Correct it'} or {without}."


def _example(field: FieldInfo) -> str | None:
    """A value as an operator writes it, None where neither an example nor a default gives one."""
    if field.examples:
        return str(field.examples[0])
    default = field.get_default(call_default_factory=False)
    if isinstance(default, timedelta):
        return f"{default.total_seconds():g}"
    return str(default) if isinstance(default, int | float | str) and not isinstance(default, bool) else None


def _read_key_file(path: Path) -> str:
    try:
        with path.open(encoding="ascii") as file:
            return file.read(4096).strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise BadSettings(
            f"{PREFIX}MASTER_KEY_FILE names a file that cannot be read ({reason}); "
            "make it readable for the service, or unset it."
        ) from None
