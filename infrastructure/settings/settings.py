"""What an operator can set: every `REGISTRAR_` variable with its type, its default and its meaning.

A process gets them from `Settings.from_environment(os.environ)`, which also reads the file of settings that a variable
may name; nothing else reads the environment.

Over 400 lines, because each setting takes five, and an operator looks for all of them in one place.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field

from infrastructure.settings.addresses import Reachable
from infrastructure.settings.bounces import BounceAddress, BounceSecrets, bounce_webhooks
from infrastructure.settings.environment import FILE, BadSettings, Given, given
from infrastructure.settings.letters import LetterSettings
from infrastructure.settings.limits import DEFAULTS, Limits
from infrastructure.settings.origins import Origins
from infrastructure.settings.rates import Rate
from infrastructure.settings.sender import split_sender
from infrastructure.settings.values import (
    ANY_HOST,
    AlertUrl,
    BrokerUrl,
    DatabaseUrl,
    DomainPolicy,
    Duration,
    DurationOrNone,
    HostNames,
    ListenAddress,
    Mailbox,
    MailServer,
    MasterKey,
    Networks,
    PrivateNetworks,
    RedisUrl,
    Sender,
    ShortDuration,
    ShownUrl,
    SmtpUrls,
    Token,
    WebUrl,
    host_name,
    mail_servers,
)
from infrastructure.settings.webhooks import (
    WebhookEndpoint,
    WebhookSecrets,
    WebhookUrls,
    webhook_endpoints,
    webhook_faults,
)
from infrastructure.settings.witnesses import Witnesses


def _public_url(settings: dict[str, Any]) -> str:
    # A link to a wildcard address leads nowhere.
    host = {"0.0.0.0": "localhost", "::": "localhost"}.get(settings["host"], settings["host"])  # noqa: S104 - compared, not bound
    return f"http://{f'[{host}]' if ':' in host else host}:{settings['port']}"


def _file(of: str) -> Any:
    """For a secret that should not stand in the environment, which other programs of its user can read."""
    return Field(default=None, description=f"file `{of}` is read from; None: none", examples=["/run/secrets/registrar"])


class Settings(LetterSettings):
    """Every setting, with its default. In the environment a name has the prefix `REGISTRAR_` and capitals.

    Durations are `timedelta`s here; how they are written in the environment: `infrastructure.settings.values.duration`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    config: Path | None = Field(
        default=None,
        description="file of settings, TOML, which the environment beats; None: none",
        examples=["/etc/registrar/registrar.toml"],
    )
    database_url: DatabaseUrl | None = Field(
        default=None,
        description="PostgreSQL to use, as a URL; None: the embedded one in `data_dir`",
        examples=["postgresql://user:password@host:5432/registrar"],
    )
    database_url_file: Path | None = _file("database_url")
    broker_url: BrokerUrl | None = Field(
        default=None,
        description="RabbitMQ to use, as a URL; None: mail is handed over inside the process",
        examples=["amqp://user:password@host:5672/"],
    )
    broker_url_file: Path | None = _file("broker_url")
    smtp_urls: SmtpUrls | None = Field(
        default=None,
        description="mail servers in order of preference, as URLs; None: the embedded mailbox",
        examples=["smtps://user:password@mail.example.org:465"],
        json_schema_extra={"several": "list"},
    )
    smtp_urls_file: Path | None = _file("smtp_urls")
    rate_limit_url: RedisUrl | None = Field(
        default=None,
        description="Redis to count requests in, as a URL; None: each process counts for itself",
        examples=["redis://user:password@host:6379/0"],
    )
    rate_limit_url_file: Path | None = _file("rate_limit_url")
    master_key: MasterKey | None = Field(
        default=None,
        description="key that wraps every other key, 32 bytes; None: made once in `data_dir` (embedded database only)",
        examples=["what `openssl rand -hex 32` prints"],
    )
    master_key_file: Path | None = Field(
        default=None,
        description="file `master_key` was read from; None: none",
        examples=["a file with what `openssl rand -hex 32` prints"],
    )
    next_master_key: MasterKey | None = Field(
        default=None,
        description="key that `registrar keys rotate` changes `master_key` for; both open what they wrapped; None: none",
        examples=["what `openssl rand -hex 32` prints"],
    )
    next_master_key_file: Path | None = _file("next_master_key")
    admin_token: Token | None = Field(
        default=None,
        description="bearer token of the admin routes; None: made once in `data_dir` (embedded database only)",
        examples=["what `openssl rand -hex 32` prints"],
    )
    admin_token_file: Path | None = _file("admin_token")
    next_admin_token: Token | None = Field(
        default=None,
        description="token that is to replace `admin_token`, and opens the admin routes, too; None: none",
        examples=["what `openssl rand -hex 32` prints"],
    )
    next_admin_token_file: Path | None = _file("next_admin_token")
    admin_listen: ListenAddress | None = Field(
        default=None,
        description="host:port of the admin routes, docs and metrics; None: the main listener",
        examples=["127.0.0.1:8001"],
    )
    otlp_endpoint: WebUrl | None = Field(
        default=None,
        description="base URL of an OTLP/HTTP collector; None: tracing is off",
        examples=["http://localhost:4318"],
    )
    trace_ratio: float = Field(
        default=1.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="share of the traces beginning here that is exported; those with an error always are",
        examples=["0.05"],
    )
    alert_url: AlertUrl | None = Field(
        default=None,
        description="webhook to call about dead letters and mail servers' circuits; None: no alerts",
        examples=["https://alerts.example.org/hook?token=secret"],
    )
    alert_url_file: Path | None = _file("alert_url")
    alert_dead_letters: int = Field(
        default=10, ge=1, le=1_000_000_000, description="dead letters at which `alert_url` is called", examples=["10"]
    )
    webhooks: WebhookUrls | None = Field(
        default=None,
        description="endpoints that integration events are sent to, each name=URL; None: none",
        examples=["app=https://app.example.org/registrar"],
        json_schema_extra={"several": "table"},
    )
    webhooks_file: Path | None = _file("webhooks")
    webhook_secrets: WebhookSecrets | None = Field(
        default=None,
        description="what calls of `webhooks` are signed with, each name=whsec_… or name=whsk_…; several of one name all "
        "sign; None: none",
        examples=["app=whsec_ with what `openssl rand -base64 32` prints"],
        json_schema_extra={"several": "table"},
    )
    webhook_secrets_file: Path | None = _file("webhook_secrets")
    webhook_networks: PrivateNetworks = Field(
        default=(),
        description="networks that are not public, in which `webhooks` may be called all the same, CIDR",
        examples=["127.0.0.0/8,10.1.2.0/24"],
        json_schema_extra={"several": "list"},
    )
    checkpoint_dir: Path | None = Field(
        default=None,
        description="directory of the checkpoints and the journal of erasures, outside of the database; None: in "
        "`data_dir` (embedded database only)",
        examples=["/var/lib/registrar/checkpoints"],
    )
    checkpoint_url: AlertUrl | None = Field(
        default=None,
        description="URL that each checkpoint and erasure is posted to; None: none",
        examples=["https://audit.example.org/registrar"],
    )
    checkpoint_url_file: Path | None = _file("checkpoint_url")
    checkpoint_key: MasterKey | None = Field(
        default=None,
        description="key that signs checkpoints, 32 bytes; None: made once in `data_dir` (embedded database only)",
        examples=["what `openssl rand -hex 32` prints"],
    )
    checkpoint_key_file: Path | None = _file("checkpoint_key")
    next_checkpoint_key: MasterKey | None = Field(
        default=None,
        description="key that `registrar audit checkpoints rotate-key` changes `checkpoint_key` for; None: none",
        examples=["what `openssl rand -hex 32` prints"],
    )
    next_checkpoint_key_file: Path | None = _file("next_checkpoint_key")
    checkpoint_witnesses: Witnesses = Field(
        default=(),
        description="witnesses that cosign checkpoints: each its URL, #, and its key",
        examples=[
            "https://witness.example.org#witness.example.org+8e43029b+BGTbmG8Ci9F7XiHiZtve8bh03HTs4IOUOsozgoVKVngA"
        ],
        json_schema_extra={"several": "list"},
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
    public_url: ShownUrl = Field(
        default_factory=_public_url,
        description="address people reach the service at, without a slash at its end; by default http://host:port",
        examples=["https://accounts.example.org"],
    )
    data_dir: Path = Field(
        default=Path(".registrar"), description="directory of the embedded services", examples=[".registrar"]
    )
    limits: Limits = Field(
        default=DEFAULTS,
        description="rate limits that differ from the defaults",
        examples=["network=20/1m burst 40, domain=on, new-codes=off"],
        json_schema_extra={"several": "table"},
    )
    trusted_proxies: Networks = Field(
        default=(),
        description="networks whose X-Forwarded-For is believed, CIDR",
        examples=["10.0.0.0/8,192.168.7.1/32"],
        json_schema_extra={"several": "list"},
    )
    allowed_hosts: HostNames = Field(
        default=(),
        description="names that requests may call the service by, beside that of `public_url`, localhost and IP "
        "addresses; *: any; by default any unless `public_url` is set",
        examples=["accounts.example.org,registrar.internal"],
        json_schema_extra={"several": "list"},
    )
    cors_origins: Origins = Field(
        default=(),
        description="origins whose pages may call the registrants' routes from a browser; by default none",
        examples=["https://app.example.org,https://www.example.org"],
        json_schema_extra={"several": "list"},
    )
    mail_from: Sender = Field(
        default="Registrar <no-reply@registrar.localhost>",
        description="sender of every mail, with or without a name",
        examples=["Registrar <no-reply@example.org>"],
    )
    bounce_address: BounceAddress | None = Field(
        default=None,
        description="address of the envelope's sender, in which each mail is named; None: that of `mail_from`",
        examples=["bounces@mail.example.org"],
    )
    bounce_webhooks: BounceSecrets | None = Field(
        default=None,
        description="mail providers that may report bounces and complaints, each with the secret by which it is known, "
        "separated by commas; None: none may",
        examples=["postmark=SECRET, mailgun=SIGNING_KEY"],
        json_schema_extra={"several": "table"},
    )
    bounce_webhooks_file: Path | None = _file("bounce_webhooks")
    bounce_listen: ListenAddress | None = Field(
        default=None,
        description="host:port that notifications of mails that came back are taken at, by `registrar bounces`, or by "
        "`registrar up` if it is set; None: 127.0.0.1:2525, and not by `up`",
        examples=["0.0.0.0:2525"],
    )
    bounce_certificate: Path | None = Field(
        default=None,
        description="file with the certificate, and those behind it, with which STARTTLS is offered there; None: it is "
        "not",
        examples=["/run/tls/tls.crt"],
    )
    bounce_certificate_key: Path | None = Field(
        default=None, description="file with its private key, not encrypted; None: none", examples=["/run/tls/tls.key"]
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
        default=timedelta(seconds=10),
        description="seconds one attempt to hand over a mail may take until the server has all of it",
    )
    accept_timeout: Duration = Field(
        default=timedelta(minutes=10), description="seconds a mail server may then take to accept it"
    )
    verify_interval: DurationOrNone = Field(
        default=timedelta(days=1),
        description="seconds from one verification of a read model, or of the signed log, in the background to the next; 0: none",
    )
    stop_delay: Duration = Field(
        default=timedelta(seconds=1),
        description="seconds for which a stopping process reports that it is not ready, before it stops listening",
    )

    synthetic: Rate | None = Field(
        default=None,
        description="how often a synthetic registration is made; None: none is",
        examples=["1/min"],
    )
    synthetic_url: WebUrl | None = Field(
        default=None,
        description="address that synthetic registrations are made at; None: `public_url`",
        examples=["https://accounts.example.org"],
    )
    synthetic_to: Mailbox | None = Field(
        default=None,
        description="address of yours that takes the mails of synthetic registrations through the mail servers; None: "
        "they are sent to nobody",
        examples=["synthetic@example.org"],
    )

    disposable_domains: DomainPolicy = Field(
        default="log",
        description="what becomes of addresses at domains that give everybody one for minutes: off, log, hint, refuse",
    )
    misspelt_domains: DomainPolicy = Field(
        default="log",
        description="what becomes of addresses at a domain one slip away from a much used one: off, log, hint, refuse",
    )
    front_door: bool | None = Field(
        default=None,
        description="a first page at / with a sign-up to try out; None: only where the embedded mailbox is",
        examples=["false"],
    )
    reveal_duplicates: bool = Field(
        default=False, description="tell registrants that the address is taken", examples=["false"]
    )
    log_format: Literal["console", "json"] | None = Field(
        default=None, description="None: console on a terminal, else json", examples=["json"]
    )
    access_log: bool = Field(default=False, description="write a log line for each request", examples=["false"])

    @property
    def webhook_endpoints(self) -> tuple[WebhookEndpoint, ...]:
        """`webhooks` with their `webhook_secrets`, parsed.

        Raises:
            ValueError: one has no secret, or a secret is of none; not where `from_environment` has made the settings.
        """
        return webhook_endpoints(*self._webhooks)

    @property
    def _webhooks(self) -> tuple[str, str]:
        urls, secrets = self.webhooks, self.webhook_secrets
        return urls.get_secret_value() if urls else "", secrets.get_secret_value() if secrets else ""

    @property
    def has_checkpoints(self) -> bool:
        """Is there a place, outside of the database, that checkpoints go to? Beside an embedded one there always is."""
        return self.database_url is None or self.checkpoint_dir is not None or self.checkpoint_url is not None

    @property
    def host_names(self) -> frozenset[str] | None:
        """Every name that requests may call the service by, beside IP addresses; None: any."""
        names = set(self.allowed_hosts)
        if "public_url" in self.model_fields_set:
            host = urlsplit(self.public_url).hostname or ""
            names.add(host if ":" in host else host_name(host))
        return frozenset(names | {"localhost"}) if names and ANY_HOST not in names else None

    @property
    def service_names(self) -> tuple[str, ...]:
        """What people call the service: by its sender, its product, or the host of `public_url` or `site_url`."""
        hosts = [urlsplit(url or "").hostname for url in (self.public_url, self.site_url)]
        names = [split_sender(self.mail_from)[0], self.product_name, *hosts]
        return tuple(dict.fromkeys(filter(None, names)))

    @property
    def bounce_providers(self) -> frozenset[str]:
        """Those that may report bounces."""
        return frozenset(bounce_webhooks(self.bounce_webhooks.get_secret_value()) if self.bounce_webhooks else ())

    @property
    def mail_servers(self) -> tuple[MailServer, ...]:
        """`smtp_urls`, parsed; empty means the embedded mailbox."""
        return mail_servers(self.smtp_urls.get_secret_value()) if self.smtp_urls else ()

    @classmethod
    def given(cls, environ: Mapping[str, str], **overrides: object) -> Given:
        """What `from_environment` checks, with where it comes from."""
        return given(cls, environ, options={name: value for name, value in overrides.items() if value is not None})

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], *, with_secrets: bool = True, **overrides: object) -> Self:
        """Read and check the `REGISTRAR_` variables of `environ`, and the file that `config` names, which they beat.

        An empty variable counts as unset. `overrides` are command line options, by field name; they win, and None
        means that the option was not given.

        Args:
            with_secrets: False for a process that only reads the database, and does not need the master key.

        Raises:
            BadSettings: unknown names, and values that cannot be used; all of them.
        """
        found = cls.given(environ, **overrides)
        keys, databases = ({name, name + FILE} & found.values.keys() for name in ("master_key", "database_url"))
        key, key_file, database = (
            found.called(name, "database_url") for name in ("master_key", "master_key_file", "database_url")
        )
        missing = (
            f"{key} (or {key_file}) is missing, and {database} needs it; "
            "set it to what `openssl rand -hex 32` prints, and keep it as safe as the database."
        )
        settings = found.settings(cls, missing=missing if with_secrets and databases and not keys else None)
        if faults := [*webhook_faults(*settings._webhooks, Reachable(settings.webhook_networks), found.called)]:
            raise BadSettings(*faults)
        return settings
