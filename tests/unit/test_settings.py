"""Settings: what an operator may write, and what he is told when it cannot be used."""

from __future__ import annotations

import base64
import re
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, SecretStr, ValidationError

from infrastructure.settings.environment import BadSettings, links_in
from infrastructure.settings.settings import Settings
from infrastructure.settings.values import Listen, MailServer

KEY = bytes(range(32))
CANARY = "hunter2-canary"


def read(**environ: str) -> Settings:
    return Settings.from_environment({f"REGISTRAR_{name}": value for name, value in environ.items()})


def refusal(**environ: str) -> str:
    with pytest.raises(BadSettings) as refused:
        read(**environ)
    message = str(refused.value)
    assert "\n" not in message
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__ or refused.value.__context__ is None
    return message


def test_an_empty_environment_means_everything_embedded_on_loopback() -> None:
    settings = Settings.from_environment({})

    assert (settings.host, settings.port, settings.data_dir) == ("127.0.0.1", 8000, Path(".registrar"))
    assert settings.public_url == "http://127.0.0.1:8000"
    assert (settings.database_url, settings.master_key, settings.admin_token) == (None, None, None)
    assert settings.mail_servers == ()
    assert settings.otp_ttl == timedelta(minutes=10)
    assert settings.registration_ttl == timedelta(days=1)


def test_every_setting_has_a_description_and_every_duration_says_its_unit() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        if isinstance(field.default, timedelta):
            assert "seconds" in field.description, name


def test_an_empty_value_counts_as_unset() -> None:
    assert read(PORT="", DATABASE_URL="", BROKER_URL=" ", SMTP_URLS="", OTP_TTL="") == Settings.from_environment({})


LINKS = {
    "SERVICE_HOST": "10.0.0.1",
    "SERVICE_PORT": "8000",
    "SERVICE_PORT_HTTP": "8000",
    "PORT": "tcp://10.0.0.1:8000",
    "PORT_8000_TCP": "tcp://10.0.0.1:8000",
    "PORT_8000_TCP_PROTO": "tcp",
    "PORT_8000_TCP_PORT": "8000",
    "PORT_8000_TCP_ADDR": "10.0.0.1",
    "PORT_53_UDP": "udp://[fd00::1]:53",
    "SMTP_SERVICE_HOST": "10.0.0.2",
    "SMTP_SERVICE_PORT_SUBMISSION": "587",
    "SMTP_PORT": "tcp://10.0.0.2:587",
    "SMTP_PORT_587_TCP_ADDR": "10.0.0.2",
    "NAME": "/api/registrar",
    "ENV_POSTGRES_PASSWORD": "hunter2-canary",
    "PORT_5432_TCP_START": "tcp://172.17.0.2:5432",
}
"""What Kubernetes sets for Services `registrar` and `registrar-smtp`, and Docker for a container linked as
`registrar`."""


def test_what_an_orchestrator_says_about_services_of_our_name_is_no_setting() -> None:
    environ = {f"REGISTRAR_{name}": value for name, value in LINKS.items()}

    assert Settings.from_environment(environ) == Settings.from_environment({})
    assert links_in(environ | {"REGISTRAR_HOST": "::1", "OTHER_SERVICE_HOST": "x"}) == sorted(environ)
    assert read(PORT="8001").port == 8001


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("SERVICE_HSOT", "10.0.0.1"),
        ("PORT", "http://10.0.0.1:8000"),
        ("SMTP_PORT", "587"),
        ("NAME", "registrar"),
        ("PORT_TCP", "x"),
        ("DATABSE_URL", "tcp://10.0.0.1:5432"),
    ],
)
def test_what_only_looks_like_it_is_refused(name: str, text: str) -> None:
    assert f"REGISTRAR_{name} " in refusal(**{name: text})


def test_everything_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(BadSettings) as refused:
        Settings.from_environment(
            {
                "REGISTRAR_DATABSE_URL": "x",
                "REGISTRAR_DATABASE_URL": "postgresql://host/db",
                "REGISTRAR_HOST": "a b",
                "REGISTRAR_OTP_TTL": "never",
                "REGISTRAR_ADMIN_TOKEN_FILE": "/nowhere",
            },
            port=70000,
        )

    faults = [fault.split()[0] for fault in refused.value.faults]
    assert faults == [
        *("REGISTRAR_DATABSE_URL", "REGISTRAR_ADMIN_TOKEN_FILE", "REGISTRAR_HOST", "--port"),
        *("REGISTRAR_OTP_TTL", "REGISTRAR_MASTER_KEY"),
    ]
    assert str(refused.value) == " ".join(refused.value.faults)


def test_other_peoples_variables_are_ignored() -> None:
    assert Settings.from_environment({"PATH": "/bin", "NOT_REGISTRAR_X": "1"}) == Settings.from_environment({})


def test_only_a_verification_can_be_set_to_never() -> None:
    assert Settings.from_environment({"REGISTRAR_VERIFY_INTERVAL": "0"}).verify_interval == timedelta(0)
    for name in ("STOP_DELAY", "OTP_TTL"):
        with pytest.raises(BadSettings, match=f"REGISTRAR_{name} is not between"):
            Settings.from_environment({f"REGISTRAR_{name}": "0"})
    with pytest.raises(BadSettings, match="REGISTRAR_VERIFY_INTERVAL is not 0, nor between"):
        Settings.from_environment({"REGISTRAR_VERIFY_INTERVAL": "0.0001"})


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValidationError):
        read().port = 1  # type: ignore[misc]


def test_an_unknown_name_is_refused_with_the_nearest_known_one() -> None:
    assert "REGISTRAR_DATABASE_URL" in refusal(DATABSE_URL="x")
    assert "did you mean REGISTRAR_OTP_TTL" in refusal(OPT_TTL="x")
    assert "REGISTRAR_" in refusal(ZZZZZZ="x")


@pytest.mark.parametrize(
    ("text", "every"), [("1/min", 60), ("6/h", 600), ("1/s", 1), ("1/30s", 30), ("2/1m", 30), ("1/d", 86400)]
)
def test_a_rate_is_written_as_so_many_in_so_long(text: str, every: float) -> None:
    assert read(SYNTHETIC=text).synthetic == timedelta(seconds=every)


@pytest.mark.parametrize(("text", "meaning"), [("1", 1.0), ("0.25", 0.25), (" 90 ", 90.0), ("86400.5", 86400.5)])
def test_a_duration_is_written_in_seconds_whole_or_fractional(text: str, meaning: float) -> None:
    assert read(OTP_TTL=text).otp_ttl == timedelta(seconds=meaning)


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("600s", {"minutes": 10}),
        ("10m", {"minutes": 10}),
        ("1h30m", {"hours": 1, "minutes": 30}),
        ("1.5h", {"minutes": 90}),
        ("500ms", {"milliseconds": 500}),
        ("1s500ms", {"milliseconds": 1500}),
        ("1d", {"days": 1}),
        ("1d2h3m4s5ms", {"days": 1, "hours": 2, "minutes": 3, "seconds": 4, "milliseconds": 5}),
    ],
)
def test_a_duration_may_have_units(text: str, meaning: dict[str, int]) -> None:
    assert read(OTP_TTL=text).otp_ttl == timedelta(**meaning)


@pytest.mark.parametrize(
    "text",
    [
        "-1",
        "0",
        "0s",
        "nan",
        "inf",
        "1e3",
        "1_0",
        "PT10S",
        "99999999999",
        "٣",
        "10M",
        "10 m",
        "m",
        "30m1h",
        "10m10m",
        "10min",
        "1h30",
        "-10m",
        "5w",
        "99999d",
        "999999999999d",
    ],
)
def test_a_duration_that_makes_no_sense_is_refused(text: str) -> None:
    assert "REGISTRAR_OTP_TTL" in refusal(OTP_TTL=text)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("SYNTHETIC", "1"),
        ("SYNTHETIC", "0/min"),
        ("SYNTHETIC", "2/s"),
        ("SYNTHETIC", "1/2d"),
        ("SYNTHETIC", "1/fortnight"),
        ("SYNTHETIC_TO", "Probe <probe@example.org>"),
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("PORT", "http"),
        ("OTP_MAX_ATTEMPTS", "0"),
        ("OTP_MAX_ATTEMPTS", "11"),
        ("STATEMENT_TIMEOUT", "9999999"),
        ("PUBLIC_URL", "ftp://example.org"),
        ("PUBLIC_URL", "https://"),
        ("PUBLIC_URL", "https://example.org?x=1"),
        ("PUBLIC_URL", "https://a..example.org"),
        ("PUBLIC_URL", "https://user:hunter2@example.org"),
        ("SITE_URL", "https://user:hunter2@example.org"),
        ("ALLOWED_HOSTS", "https://example.org"),
        ("ALLOWED_HOSTS", "example.org:443"),
        ("ALLOWED_HOSTS", "example.org,,"),
        ("ALLOWED_HOSTS", "*.example.org"),
        ("MAIL_FROM", "nobody"),
        ("MAIL_FROM", "a@example.org, b@example.org"),
        ("MAIL_FROM", "Registrar <a@example.org>\r\nBcc: b@example.org"),
        ("REPLY_TO", "a@example.org, b@example.org"),
        ("REPLY_TO", "Registrar <a@example.org>\r\nBcc: b@example.org"),
        ("SUPPORT_ADDRESS", "Help <help@example.org>"),
        ("SUPPORT_ADDRESS", '"><script>@example.org'),
        ("PRODUCT_NAME", "Acme\r\nBcc: b@example.org"),
        ("PRODUCT_NAME", "Acme\u202egpj"),
        ("PRODUCT_NAME", "=?utf-8?q?Acme?="),
        ("PRODUCT_NAME", "A" * 61),
        ("ACCENT_COLOR", "red"),
        ("ACCENT_COLOR", "#12345"),
        ("ACCENT_COLOR", "#123456;background:url(https://example.org)"),
        ("LOGO_URL", "http://example.org/logo.png"),
        ("LOGO_URL", "data:image/png;base64,AAAA"),
        ("LOGO_URL", "javascript:alert(1)"),
        ("LOGO_URL", 'https://example.org/"onerror="x'),
        ("LOGO_URL", "https://user:password@example.org/logo.png"),
        ("SITE_URL", "https://example.org?x=1"),
        ("VERIFY_URL", "https://example.org/verify"),
        ("VERIFY_URL", "https://example.org/verify?id={id}&code={code}"),
        ("VERIFY_URL", "https://example.org/{id}#code={code}"),
        ("VERIFY_URL", "https://example.org/verify?{code}#id={id}&code={code}"),
        ("VERIFY_URL", "https://example.org/verify#id={id}"),
        ("VERIFY_URL", "https://example.org/verify#code={code}"),
        ("VERIFY_URL", "https://example.org/verify#id={id}&code={code}&again={code}"),
        ("VERIFY_URL", "https://example.org/verify#id={id}&code={code}&who={email}"),
        ("VERIFY_URL", "http://example.org/verify#id={id}&code={code}"),
        ("VERIFY_URL", "javascript:alert(1)#id={id}&code={code}"),
        ("VERIFY_URL", 'https://example.org/"#id={id}&code={code}'),
        ("VERIFY_URL", "https://user:password@example.org/verify#id={id}&code={code}"),
        ("ADMIN_LISTEN", "8001"),
        ("ADMIN_LISTEN", "localhost"),
        ("ADMIN_LISTEN", "localhost:99999"),
        ("ADMIN_LISTEN", "http://localhost:8001"),
        ("ADMIN_TOKEN", "two words"),
        ("OTLP_ENDPOINT", "localhost:4318"),
        ("DATABASE_URL", "mysql://localhost/x"),
        ("DATABASE_URL", "postgresql://localhost/x?nonsense=1"),
        ("REVEAL_DUPLICATES", "perhaps"),
        ("LOG_FORMAT", "xml"),
        ("TRUSTED_PROXIES", "10.0.0.1/8"),
        ("TRUSTED_PROXIES", "10.0.0.0/8,,"),
        ("TRUSTED_PROXIES", "proxy.example.org"),
        ("MASTER_KEY", "secret"),
        ("MASTER_KEY", "0" * 63),
        ("MASTER_KEY_FILE", "/nonexistent/key"),
    ],
)
def test_a_malformed_value_is_one_line_that_names_the_variable_and_what_to_do(name: str, text: str) -> None:
    message = refusal(**{name: text})

    assert message.startswith(f"REGISTRAR_{name} ")
    assert "unset it" in message


def test_an_option_of_the_command_line_beats_the_environment_and_none_does_not() -> None:
    settings = Settings.from_environment({"REGISTRAR_PORT": "1", "REGISTRAR_HOST": "::1"}, port=2, host=None)

    assert (settings.host, settings.port, settings.public_url) == ("::1", 2, "http://[::1]:2")


def test_a_bad_option_is_named_as_the_operator_wrote_it() -> None:
    with pytest.raises(BadSettings, match=r"^--port is refused"):
        Settings.from_environment({}, port=70000)


def test_the_public_url_of_a_wildcard_address_can_be_followed() -> None:
    assert read(HOST="0.0.0.0", PORT="80").public_url == "http://localhost:80"  # noqa: S104 - not bound


def test_a_public_url_loses_its_last_slash() -> None:
    assert read(PUBLIC_URL="https://example.org/accounts/").public_url == "https://example.org/accounts"


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({}, None),
        ({"HOST": "registrar.internal"}, None),
        ({"ALLOWED_HOSTS": "*"}, None),
        ({"PUBLIC_URL": "https://example.org", "ALLOWED_HOSTS": "api-1, *"}, None),
        ({"PUBLIC_URL": "https://Accounts.Example.org:8443/x"}, {"accounts.example.org", "localhost"}),
        ({"PUBLIC_URL": "https://bücher.example"}, {"xn--bcher-kva.example", "localhost"}),
        ({"PUBLIC_URL": "http://[::1]:8000"}, {"::1", "localhost"}),
        (
            {"ALLOWED_HOSTS": "API_1, Bücher.example., 10.0.0.1"},
            {"api_1", "xn--bcher-kva.example", "10.0.0.1", "localhost"},
        ),
        ({"PUBLIC_URL": "https://example.org", "ALLOWED_HOSTS": "api"}, {"example.org", "api", "localhost"}),
    ],
)
def test_any_name_will_do_until_one_is_given(given: dict[str, str], names: set[str] | None) -> None:
    assert read(**given).host_names == names


def test_two_kinds_of_address_can_listen_for_operators() -> None:
    assert read(ADMIN_LISTEN="127.0.0.1:9000").admin_listen == Listen("127.0.0.1", 9000)
    assert read(ADMIN_LISTEN="[::1]:0").admin_listen == Listen("::1", 0)


DEFAULT_SENDER = Settings.model_fields["mail_from"].default


@pytest.mark.parametrize(
    "text",
    [
        "Registrar <no-reply@example.org>",
        "no-reply@example.org",
        '"A, B" <x@example.org>',
        "Müller <no-reply@example.org>",
        "Acme Inc. <no-reply@example.org>",
        "Bücher <post@bücher.example>",
        "Registrar <no-reply@mail.local>",
        "no-reply@registrar.test",
        DEFAULT_SENDER,
    ],
)
def test_a_sender_may_have_a_name(text: str) -> None:
    assert read(MAIL_FROM=text).mail_from == text


@pytest.mark.parametrize(
    "text",
    [
        KEY.hex(),
        KEY.hex().upper(),
        base64.b64encode(KEY).decode(),
        base64.urlsafe_b64encode(bytes([0xFB] * 32)).decode(),
        base64.b64encode(KEY).decode().rstrip("="),
    ],
)
def test_a_master_key_is_32_bytes_as_hex_or_base64(text: str) -> None:
    key = read(MASTER_KEY=text).master_key

    assert key is not None
    assert key.get_secret_value() in {KEY, bytes([0xFB] * 32)}


SECRETS = {
    "DATABASE_URL": "postgresql://u:hunter2-canary@host/db",
    "BROKER_URL": "amqp://u:hunter2-canary@host/",
    "RATE_LIMIT_URL": "redis://u:hunter2-canary@host/0",
    "SMTP_URLS": "smtps://u:hunter2-canary@host",
    "MASTER_KEY": KEY.hex(),
    "NEXT_MASTER_KEY": KEY.hex(),
    "ADMIN_TOKEN": "hunter2-canary",
    "NEXT_ADMIN_TOKEN": "hunter2-canary",
    "BOUNCE_WEBHOOKS": "postmark=hunter2-canary-hunter2-canary",
    "ALERT_URL": "https://host/hunter2-canary",
    "WEBHOOKS": "app=https://host/hunter2-canary",
    "WEBHOOK_SECRETS": f"app=whsec_{KEY.hex()}",
    "CHECKPOINT_URL": "https://host/hunter2-canary",
    "CHECKPOINT_KEY": KEY.hex(),
    "NEXT_CHECKPOINT_KEY": KEY.hex(),
}


def test_every_secret_can_come_from_a_file(tmp_path: Path) -> None:
    secret = {name for name, info in Settings.model_fields.items() if "Secret" in str(info.annotation)}
    assert secret == {name.lower() for name in SECRETS}
    for name, value in SECRETS.items():
        (tmp_path / name).write_text(f"\ufeff{value}\r\n", encoding="utf-8")

    found = read(**{f"{name}_FILE": str(tmp_path / name) for name in SECRETS})

    for name in SECRETS:
        assert getattr(found, name.lower()) == getattr(read(**SECRETS), name.lower())
        assert getattr(found, f"{name.lower()}_file") == tmp_path / name


def test_webhooks_are_named_urls_and_may_have_several_secrets_each() -> None:
    secrets = f"app=whsec_{KEY.hex()}\nbooks=whsk_{KEY.hex()[:43]}, app=whsk_{KEY.hex()[:43]}="
    app, books = read(WEBHOOKS="app=https://a/x, books=https://b", WEBHOOK_SECRETS=secrets).webhook_endpoints

    assert (app.name, app.url, len(app.secrets), len(app.private_keys)) == ("app", "https://a/x", 1, 1)
    assert (books.name, books.url, len(books.secrets), len(books.private_keys)) == ("books", "https://b", 0, 1)


@pytest.mark.parametrize(
    ("url", "networks", "usable"),
    [
        ("http://127.0.0.1:3000/hook", "", False),
        ("http://localhost:3000/hook", "", False),
        ("http://app.example.org/hook", "", False),
        ("https://127.0.0.1/hook", "", False),
        ("https://localhost/hook", "10.0.0.0/8", False),
        ("https://[::1]/hook", "", False),
        ("https://169.254.169.254/", "10.0.0.0/8", False),
        ("http://10.1.2.3/", "127.0.0.0/8", False),
        ("http://127.0.0.1:3000/hook", "127.0.0.0/8", True),
        ("http://localhost:3000/hook", "127.0.0.0/8", True),
        ("http://app:3000/hook", "172.16.0.0/12", True),  # a name; what it means is looked up
        ("https://8.8.8.8/", "", True),
        ("https://app.example.org/hook", "", True),
    ],
)
def test_an_endpoint_that_would_never_be_called_is_refused_at_once(url: str, networks: str, *, usable: bool) -> None:
    given = {"WEBHOOKS": f"app={url}", "WEBHOOK_SECRETS": f"app=whsec_{KEY.hex()}", "WEBHOOK_NETWORKS": networks}
    if usable:
        assert read(**given).webhook_endpoints
    else:
        assert re.fullmatch(
            r"REGISTRAR_WEBHOOKS has an address .* at app: it is called only in a network that"
            r" REGISTRAR_WEBHOOK_NETWORKS names \(127\.0\.0\.0/8 is this machine\)\.",
            refusal(**given),
        )


@pytest.mark.parametrize(
    ("name", "says"), [("other", "has a secret for other"), ("app", ""), ("", "has no secret for the endpoint app")]
)
def test_each_endpoint_has_a_secret_and_each_secret_an_endpoint(name: str, says: str) -> None:
    given = {"WEBHOOKS": "app=https://a"} | ({"WEBHOOK_SECRETS": f"{name}=whsec_{KEY.hex()}"} if name else {})
    if says:
        assert f"REGISTRAR_WEBHOOK_SECRETS {says}" in refusal(**given)
    else:
        assert read(**given).webhook_endpoints


def test_whatever_is_wrong_with_the_entries_of_a_setting_is_said_at_once() -> None:
    message = refusal(
        WEBHOOK_SECRETS="a=whsec_x B=1",
        BOUNCE_WEBHOOKS="postmark=short, other=x",
        SMTP_URLS="smtp://a:0, http://b",
        TRUSTED_PROXIES="10.0.0.1/8, x",
    )
    assert len(re.findall(r"REGISTRAR_[A-Z_]+ entry 1 (?:is|has) [^.]*, and entry 2 (?:is|has) ", message)) == 3
    assert re.search(r"REGISTRAR_TRUSTED_PROXIES entry 1 is not .*, and entry 2 is not a network", message)
    bare = refusal(WEBHOOKS="a=https://a b=https://b", WEBHOOK_SECRETS=f"c=whsec_{KEY.hex()}")
    assert "c, which is the name of no endpoint, and has no secret for the endpoint a, and has no secret" in bare


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_and_a_file_with_it_are_one_too_many(name: str) -> None:
    message = refusal(**{"MASTER_KEY": KEY.hex(), name: SECRETS[name], f"{name}_FILE": "/nowhere"})
    assert message == f"REGISTRAR_{name} and REGISTRAR_{name}_FILE are both set; unset one of them."


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("content", [b"", b" \n", b"\xff\xfe", b"hunter2 canary", b"a" * 70_000, None])
def test_a_file_that_holds_no_such_value_is_refused_by_the_name_of_its_variable(
    name: str, content: bytes | None, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)

    message = refusal(**{"MASTER_KEY": KEY.hex() if name != "MASTER_KEY" else "", f"{name}_FILE": str(file)})

    assert message.startswith(f"REGISTRAR_{name}_FILE ")
    assert message.count("REGISTRAR_") == 1
    assert "unset it" in message
    assert "hunter2" not in message


def test_a_master_key_can_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY.hex() + "\n")

    key = read(MASTER_KEY_FILE=str(tmp_path / "key")).master_key

    assert key is not None
    assert key.get_secret_value() == KEY


def test_a_file_without_a_key_is_refused_by_the_name_of_its_variable(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(CANARY)
    (tmp_path / "binary").write_bytes(bytes([200] * 32))

    message = refusal(MASTER_KEY_FILE=str(tmp_path / "key"))

    assert message.startswith("REGISTRAR_MASTER_KEY_FILE contains")
    assert CANARY not in message
    assert "not text" in refusal(MASTER_KEY_FILE=str(tmp_path / "binary"))


def test_two_master_keys_are_one_too_many() -> None:
    assert "both set" in refusal(MASTER_KEY=KEY.hex(), MASTER_KEY_FILE="/x")


def test_a_database_of_ones_own_needs_a_master_key_of_ones_own() -> None:
    assert "REGISTRAR_MASTER_KEY" in refusal(DATABASE_URL="postgresql://localhost/x")
    assert read(DATABASE_URL="postgresql://localhost/x", MASTER_KEY=KEY.hex()).database_url is not None


@pytest.mark.parametrize(
    "url", ["redis://localhost", "rediss://:p%40@redis.example.org:6380/1", "redis://u:p@[::1]:6379/", "redis://h/0"]
)
def test_a_redis_is_named_by_its_url(url: str) -> None:
    redis = read(RATE_LIMIT_URL=url).rate_limit_url
    assert redis is not None
    assert redis.get_secret_value() == url


@pytest.mark.parametrize(
    "url",
    ["localhost", "http://h", "redis://", "redis://h:0", "redis://h:x", "redis://h/x", "rediss://h?ssl_cert_reqs=none"],
)
def test_what_names_no_redis_is_refused(url: str) -> None:
    assert "REGISTRAR_RATE_LIMIT_URL" in refusal(RATE_LIMIT_URL=url)


@pytest.mark.parametrize("url", ["amqp://localhost", "amqps://u:p%40@mq.example.org:5671/registrar", "amqp://[::1]/"])
def test_a_broker_is_named_by_its_url(url: str) -> None:
    broker = read(BROKER_URL=url).broker_url
    assert broker is not None
    assert broker.get_secret_value() == url


@pytest.mark.parametrize(
    "url", ["localhost", "http://localhost", "amqp://", "amqp://h:0", "amqp://h:x", "amqp://h/?x=1"]
)
def test_what_names_no_broker_is_refused(url: str) -> None:
    assert "REGISTRAR_BROKER_URL" in refusal(BROKER_URL=url)


@pytest.mark.parametrize("text", ["*", "10.0.0.0/8, *", "0.0.0.0/0", "::/0"])
def test_trusting_every_proxy_is_refused(text: str) -> None:
    assert "would trust everyone" in refusal(TRUSTED_PROXIES=text)


def test_proxies_are_networks_or_single_addresses() -> None:
    assert read(TRUSTED_PROXIES="10.0.0.0/8, 192.168.0.1,fd00::/8").trusted_proxies == (
        ip_network("10.0.0.0/8"),
        ip_network("192.168.0.1/32"),
        ip_network("fd00::/8"),
    )


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("smtps://mail.example.org", MailServer("smtps", "mail.example.org", 465, starttls="never")),
        ("smtp://mail.example.org/", MailServer("smtp", "mail.example.org", 587, starttls="required")),
        ("smtp://mail.example.org:25?starttls=never", MailServer("smtp", "mail.example.org", 25, starttls="never")),
        ("smtp://localhost:1025", MailServer("smtp", "localhost", 1025, starttls="never")),
        ("smtp://127.0.0.9:1025", MailServer("smtp", "127.0.0.9", 1025, starttls="never")),
        ("smtp://[::1]:1025", MailServer("smtp", "::1", 1025, starttls="never")),
        ("smtp://localhost:1025?starttls=required", MailServer("smtp", "localhost", 1025, starttls="required")),
        (
            "smtps://me%40example.org:p%40%2Fss%2C%25@mail.example.org:4650",
            MailServer("smtps", "mail.example.org", 4650, "me@example.org", SecretStr("p@/ss,%"), "never"),
        ),
    ],
)
def test_a_mail_server_is_a_url(url: str, server: MailServer) -> None:
    assert read(SMTP_URLS=url).mail_servers == (server,)


def test_mail_servers_keep_their_order() -> None:
    settings = read(SMTP_URLS="smtps://b.example.org, smtp://a.example.org")

    assert [server.host for server in settings.mail_servers] == ["b.example.org", "a.example.org"]


@pytest.mark.parametrize(
    "url",
    [
        f"mail.example.org:{CANARY}",
        f"https://u:{CANARY}@mail.example.org",
        f"smtp://u:{CANARY}@",
        f"smtp://u:{CANARY}@mail.example.org:x{CANARY}",
        f"smtp://u:{CANARY}/x@mail.example.org",
        f"smtp://u:{CANARY}#@mail.example.org",
        f"smtp://u:{CANARY}@mail.example.org:0",
        f"smtp://u:{CANARY}@[mail.example.org",
        f"smtp://u:{CANARY}@mail.example.org?starttls={CANARY}",
        f"smtp://u:{CANARY}@mail.example.org?tls={CANARY}",
        f"smtps://u:{CANARY}@mail.example.org?starttls=required",
        f"smtp://:{CANARY}@mail.example.org",
        f"smtp://u:{CANARY} @mail.example.org",
        f"smtp://mail.example.org,smtp://u:a,{CANARY}@mail.example.org",
    ],
)
def test_a_bad_mail_server_is_refused_without_repeating_its_password(url: str) -> None:
    message = refusal(SMTP_URLS=url)

    assert message.startswith("REGISTRAR_SMTP_URLS entry ")
    assert CANARY not in message


SCHEMES = {"DATABASE_URL": "postgresql", "BROKER_URL": "amqp", "SMTP_URLS": "smtp", "ALERT_URL": "https"}


@pytest.mark.parametrize("password", ["hunter@2", "hunter/2", "hunter#2", "hunter?2", "hunter%2", "hu@n/ter2", "1%zz"])
@pytest.mark.parametrize("name", SCHEMES)
def test_an_unescaped_character_in_a_password_is_told_and_nothing_of_it_shown(name: str, password: str) -> None:
    message = refusal(MASTER_KEY=KEY.hex(), **{name: f"{SCHEMES[name]}://ada:{password}@host.example.org/"})

    assert message.startswith(f"REGISTRAR_{name} ")
    assert "percent-encode" in message
    assert not any(part in message for part in ("hunter", "hu@", "ter2", "zz", "ada"))


@pytest.mark.parametrize("password", ["1234/5", "1234#5", "1234?5"])
@pytest.mark.parametrize("name", ["DATABASE_URL", "BROKER_URL", "SMTP_URLS"])
def test_what_is_left_of_a_password_is_not_taken_for_a_port(name: str, password: str) -> None:
    assert "percent-encode" in refusal(MASTER_KEY=KEY.hex(), **{name: f"{SCHEMES[name]}://ada:{password}@host"})


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("DATABASE_URL", "postgresql://u:a%40b:c@h1,h2:5433/db?user=ada@tenant"),
        ("DATABASE_URL", "postgresql:///db?host=/tmp&application_name=a@b"),
        ("DATABASE_URL", "postgresql://u:p@[::1]:5432/db"),
        ("BROKER_URL", "amqp://u:a:b%2F@host:5672/%2F"),
        ("ALERT_URL", "https://host:8443/@name?mail=a@b"),
    ],
)
def test_a_url_that_means_one_thing_is_taken(name: str, url: str) -> None:
    assert getattr(read(MASTER_KEY=KEY.hex(), **{name: url}), name.lower()).get_secret_value() == url


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("DATABASE_URL", f"postgresql://u:{CANARY}@host:port:x/y"),
        ("DATABASE_URL", f"host=x password={CANARY}"),
        ("MASTER_KEY", CANARY),
        ("ADMIN_TOKEN", f"{CANARY} {CANARY}"),
        ("BROKER_URL", f"amqp://u:{CANARY}@host:x"),
        ("BROKER_URL", f"http://u:{CANARY}@host"),
        ("RATE_LIMIT_URL", f"redis://u:{CANARY}@host:x"),
        ("RATE_LIMIT_URL", f"redis://u:{CANARY}@host/{CANARY}"),
        ("ALERT_URL", f"https://u:{CANARY}@host:x/{CANARY}"),
        ("ALERT_URL", f"ftp://u:{CANARY}@host/{CANARY}"),
        ("ALERT_URL", f"https://host/{CANARY}#{CANARY}"),
        ("ALERT_URL", f"https://höst/{CANARY}"),
        ("WEBHOOKS", f"app=ftp://host/{CANARY}"),
        ("WEBHOOKS", f"app=https://u:{CANARY}@host:x/"),
        ("WEBHOOKS", f"app=https://u:{CANARY}@{CANARY}@host/"),
        ("WEBHOOKS", f"https://host/{CANARY}"),
        ("WEBHOOKS", f"app=https://host/{CANARY},app=https://host/{CANARY}"),
        ("WEBHOOKS", f"app=https://host/{CANARY}"),  # and there is no secret
        ("WEBHOOK_SECRETS", f"app=whsec_{CANARY}"),
        ("WEBHOOK_SECRETS", f"app=whsk_{CANARY}"),
        ("WEBHOOK_SECRETS", f"app={CANARY}"),
        ("WEBHOOK_SECRETS", f"app=whsec_{KEY.hex()}{CANARY * 9}"),
    ],
)
def test_a_refusal_never_repeats_a_secret(name: str, text: str) -> None:
    assert CANARY not in refusal(**{name: text})


def test_secrets_do_not_show_when_settings_are_printed() -> None:
    settings = read(
        DATABASE_URL=f"postgresql://u:{CANARY}@host/db",
        SMTP_URLS=f"smtps://u:{CANARY}@host",
        ADMIN_TOKEN=CANARY,
        ALERT_URL=f"https://u:{CANARY}@host/{CANARY}?token={CANARY}",
        WEBHOOKS=f"app=https://u:{CANARY}@host/{CANARY}?token={CANARY}",
        WEBHOOK_SECRETS=f"app=whsec_{KEY.hex()}",
        MASTER_KEY=KEY.hex(),
    )

    shown = f"{settings!r} {settings} {settings.mail_servers} {settings.webhook_endpoints} {settings.model_dump_json()}"
    assert CANARY not in shown
    assert KEY.hex() not in shown
    assert repr(KEY)[2:-1] not in shown


class Further(Settings):
    """What a later version may bring: settings without an example."""

    retries: int = Field(default=3, ge=1)
    nickname: str | None = Field(default=None, max_length=3)
    mode: Literal["a", "b"] | None = None
    patience: timedelta | None = None


@pytest.mark.parametrize(
    ("field", "text", "advice"),
    [
        ("retries", "0", "Set it to something like 3, or unset it."),
        ("retries", "many", "Set it to something like 3, or unset it."),
        ("nickname", "unset it", "Correct it or unset it."),
        ("mode", "unset it", "Correct it or unset it."),
        ("patience", "long", "Correct it or unset it."),
        ("otp_ttl", "x", "Set it to something like 600, or unset it."),
    ],
)
def test_a_setting_without_an_example_is_refused_in_one_line_too(field: str, text: str, advice: str) -> None:
    with pytest.raises(BadSettings) as refused:
        Further.from_environment({f"REGISTRAR_{field.upper()}": text})

    message = str(refused.value)
    assert message.startswith(f"REGISTRAR_{field.upper()} is ")
    assert message.endswith(f". {advice}")


def test_a_bad_option_without_an_example_is_left_out_rather_than_unset() -> None:
    with pytest.raises(BadSettings, match=r"^--nickname is .*[.] Correct it or leave it out[.]$"):
        Further.from_environment({}, nickname="long")


@pytest.mark.parametrize("name", ["DISPOSABLE_DOMAINS", "MISSPELT_DOMAINS"])
def test_a_policy_for_domains_is_one_of_four_words_and_another_names_the_nearest(name: str) -> None:
    for policy in ("off", "log", "hint", "refuse"):
        assert getattr(read(**{name: policy}), name.lower()) == policy
    assert getattr(read(), name.lower()) == "log"

    message = refusal(**{name: "refused"})

    assert message.startswith(f"REGISTRAR_{name} is not one of off, log, hint, refuse; the nearest is refuse.")
    assert "refused" not in message


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("PRODUCT_NAME", "Müller & Söhne <GmbH>"),
        ("LOGO_URL", "https://www.example.org:8443/a/logo.png?v=2&w=40"),
        ("SITE_URL", "https://www.example.org/app"),
        ("SUPPORT_ADDRESS", "o'neill+help@example.org"),
        ("REPLY_TO", "Acme Support <support@example.org>"),
        ("VERIFY_URL", "https://app.example.org/verify#id={id}&code={code}"),
        ("VERIFY_URL", "https://app.example.org:8443/a/b?tab=1#/verify/{code}/{id}"),
        ("VERIFY_URL", "http://localhost:3000/verify#id={id}&code={code}"),
        ("VERIFY_URL", "https://app.example.org/{language}/verify#id={id}&code={code}&in={language}"),
        ("VERIFY_URL", "http://[::1]:3000/#id={id}&code={code}"),
    ],
)
def test_what_mails_show_is_taken_as_it_is(name: str, text: str) -> None:
    assert getattr(read(**{name: text}), name.lower()) == text


def test_a_code_that_link_scanners_would_see_is_refused_with_the_reason() -> None:
    message = refusal(VERIFY_URL="https://app.example.org/verify?id={id}&code={code}")

    assert "before its #" in message
    assert "https://app.example.org/verify#id={id}&code={code}" in message
    assert "has {lang} in it, which stands for nothing: there are {id}, {code} and {language}." in refusal(
        VERIFY_URL="https://app.example.org/{lang}/verify#id={id}&code={code}"
    )


def test_the_service_is_called_by_its_senders_name_its_product_and_its_hosts() -> None:
    named = read(MAIL_FROM="Müller & Co. <no-reply@example.org>", PUBLIC_URL="https://accounts.example.org/up")
    assert named.service_names == ("Müller & Co.", "accounts.example.org")
    of_a_product = read(PRODUCT_NAME="Acme Cloud", SITE_URL="https://www.acme.example/app")
    assert of_a_product.service_names == ("Registrar", "Acme Cloud", "127.0.0.1", "www.acme.example")
    assert read(MAIL_FROM="no-reply@example.org").service_names == ("127.0.0.1",)
