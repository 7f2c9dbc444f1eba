"""The file of settings: the same names and checks as the environment, which beats it; and `registrar config`."""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path

import pytest

from entrypoints.bootstrap.jobs import environment_of
from entrypoints.cli.main import run
from infrastructure.settings.cautions import cautions
from infrastructure.settings.config_file import LARGEST, read_config, several
from infrastructure.settings.environment import BadSettings
from infrastructure.settings.settings import Settings
from infrastructure.settings.written import example_file, without_secrets

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "deploy" / "registrar.toml"
KEY = "07" * 32
CANARY = "hunter2-canary"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "registrar.toml").touch(mode=0o600)
    return tmp_path / "registrar.toml"


def read(file: Path, text: str, **environ: str) -> Settings:
    file.write_text(text, encoding="utf-8")
    variables = {f"REGISTRAR_{name}": value for name, value in environ.items()}
    return Settings.from_environment({"REGISTRAR_CONFIG": str(file)} | variables)


def refusal(file: Path, text: str, **environ: str) -> tuple[str, ...]:
    with pytest.raises(BadSettings) as refused:
        read(file, text, **environ)
    assert refused.value.__cause__ is None
    return refused.value.faults


def test_a_file_says_what_the_environment_would(file: Path) -> None:
    written = read(
        file,
        """
        port = 8001
        otp_ttl = "15m"
        resend_cooldown = 0.5
        reveal_duplicates = true
        smtp_urls = ["smtps://a:b@one.example", "smtp://two.example:25?starttls=never"]
        trusted_proxies = ["10.0.0.0/8"]
        allowed_hosts = []
        mail_from = "Müller & Co. <no-reply@example.org>"
        log_format = ""

        [limits]
        network = "20/1m burst 40"
        new-codes = "off"
        """,
    )

    same = {
        "PORT": "8001",
        "OTP_TTL": "15m",
        "RESEND_COOLDOWN": "0.5",
        "REVEAL_DUPLICATES": "true",
        "SMTP_URLS": "smtps://a:b@one.example,smtp://two.example:25?starttls=never",
        "TRUSTED_PROXIES": "10.0.0.0/8",
        "MAIL_FROM": "Müller & Co. <no-reply@example.org>",
        "LIMITS": "network=20/1m burst 40, new-codes=off",
        "CONFIG": str(file),
    }
    assert written == Settings.from_environment({f"REGISTRAR_{name}": value for name, value in same.items()})


@pytest.mark.parametrize("text", ['limits = ["network=20/1m burst 40"]', 'limits = "network=20/1m burst 40"'])
def test_limits_may_be_a_list_or_a_text_too(file: Path, text: str) -> None:
    assert read(file, text).limits == read(file, '[limits]\nnetwork = "20/1m burst 40"').limits


def test_the_command_line_beats_the_environment_which_beats_the_file(file: Path) -> None:
    file.write_text('port = 1\nhost = "::1"\ndata_dir = "here"')

    environ = {"REGISTRAR_CONFIG": "/nowhere", "REGISTRAR_HOST": "::2", "REGISTRAR_PORT": "2", "REGISTRAR_DATA_DIR": ""}
    settings = Settings.from_environment(environ, config=file, port=3)

    assert (settings.port, settings.host, settings.data_dir) == (3, "::2", file.parent / "here")


def test_paths_are_relative_to_the_file_that_they_stand_in(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file.parent / "key").write_text(KEY)
    (file.parent / "below").mkdir()
    monkeypatch.chdir(file.parent / "below")
    text = 'master_key_file = "key"\ntemplates = "words"\ncheckpoint_dir = "/notes"\ndata_dir = "data"'
    file.write_text(text)
    for named in (str(file), f"../{file.name}"):
        found = Settings.from_environment({"REGISTRAR_CONFIG": named})
        assert found.master_key is not None
        assert found.templates is not None
        assert found.templates.resolve() == file.parent.resolve() / "words"
        assert (found.checkpoint_dir, found.data_dir.resolve()) == (Path("/notes"), file.parent.resolve() / "data")
    assert Settings.from_environment({"REGISTRAR_DATA_DIR": "data"}).data_dir == Path("data"), "of the environment"
    assert str(file.parent / "below" / "none") in _faults_of(REGISTRAR_CONFIG="none")


def _faults_of(**environ: str) -> str:
    with pytest.raises(BadSettings) as refused:
        Settings.from_environment(environ)
    return str(refused.value)


def test_secrets_of_webhooks_are_a_table_in_which_one_name_may_have_several(file: Path) -> None:
    one, other = f"whsec_{'A' * 43}=", f"whsec_{'B' * 43}="
    found = read(
        file,
        f"""
        [webhooks]
        app = "https://app.example/"
        books = "https://books.example/"

        [webhook_secrets]
        app = ["{one}", "{other}"]
        books = "{one}"
        """,
    )
    assert [(endpoint.name, len(endpoint.secrets)) for endpoint in found.webhook_endpoints] == [
        ("app", 2),
        ("books", 1),
    ]


def test_a_fault_of_form_says_which_form_it_may_have_and_where(file: Path) -> None:
    (number,) = refusal(file, "[webhook_networks]\na = 1")
    (text,) = refusal(file, "[mail_from]\na = 1")
    (table,) = refusal(file, "limits = 1979-05-27")
    (no_quotes,) = refusal(file, "port = 1\nmail_from = no-reply@example.org")
    (twice,) = refusal(file, "port = 1\nport = 2")

    assert "it may be a list of texts, or one text" in number
    assert "it may be a text, a number, or true or false" in text
    assert "it may be a table of names and texts" in table
    assert f"{file} (it is not TOML: look at line 2, column 13, where maybe a text needs quotes" in no_quotes
    assert "for the second time" in twice


def test_a_secret_of_the_environment_beats_a_file_with_it_that_the_file_names_and_the_other_way_round(
    file: Path, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text(KEY)

    beaten = read(file, 'master_key_file = "/nowhere"', MASTER_KEY="08" * 32).master_key
    other = read(file, f'master_key = "{"08" * 32}"', MASTER_KEY_FILE=str(tmp_path / "key")).master_key

    assert beaten is not None
    assert beaten.get_secret_value() == bytes([8] * 32)
    assert other is not None
    assert other.get_secret_value() == bytes([7] * 32)


def test_everything_that_is_wrong_in_the_file_is_said_at_once_as_of_the_environment(file: Path) -> None:
    faults = refusal(
        file,
        """
        DATABASE_URL = "postgresql://host/db"
        registrar_port = 1
        opt_ttl = 3
        config = "other.toml"
        otp_ttl = "never"
        host = 1979-05-27
        message_ttl = ["1m"]
        trusted_proxies = ["10.0.0.0/8,10.0.0.1/32"]
        allowed_hosts = [["a"]]
        admin_token_file = "/nowhere"
        master_key_file = "/nowhere"
        master_key = "x"
        port = 70000
        """,
        HOST="a b",
    )

    assert [fault.split()[0] for fault in faults] == [
        *("DATABASE_URL", "registrar_port", "opt_ttl", "config", "host", "message_ttl", "trusted_proxies"),
        *("allowed_hosts", "admin_token_file", "master_key", "master_key", "REGISTRAR_HOST", "port", "otp_ttl"),
    ]
    said = "\n".join(faults)
    assert f"DATABASE_URL in {file} is written database_url in a file" in said
    assert f"opt_ttl in {file} is not a setting; did you mean otp_ttl?" in said
    assert f"message_ttl in {file} is a list, which it cannot be" in said
    assert "has a comma in entry 1" in said


def test_what_does_not_fit_together_in_a_file_is_named_as_it_is_written_there(file: Path) -> None:
    (missing,) = refusal(file, 'database_url = "postgresql://host/db"')
    (no_secret,) = refusal(file, 'webhooks = "app=https://host/"')
    (not_public,) = refusal(file, f'webhooks = "app=http://[::1]/"\nwebhook_secrets = "app=whsec_{"A" * 43}="')
    (elsewhere,) = refusal(file, 'webhooks = "app=https://host/"', WEBHOOK_SECRETS=f"b=whsec_{'A' * 43}=")

    assert missing.startswith(
        f"master_key in {file} (or master_key_file in {file}) is missing, and database_url in {file} needs it"
    )
    assert no_secret.startswith(f"webhook_secrets in {file} has no secret for the endpoint app")
    assert not_public.startswith(f"webhooks in {file} has an address with http://")
    assert f"that webhook_networks in {file} names" in not_public
    assert elsewhere.startswith("REGISTRAR_WEBHOOK_SECRETS has a secret for b, which is the name of no endpoint")


def test_a_value_is_refused_in_the_words_of_the_environment(file: Path) -> None:
    (of_file,) = refusal(file, 'otp_ttl = "never"')
    (of_environment,) = refusal(file, "", OTP_TTL="never")

    assert of_environment.startswith("REGISTRAR_OTP_TTL is not a duration: ")
    assert of_environment.endswith(" Set it to something like 600, or unset it.")
    words = of_environment.removeprefix("REGISTRAR_OTP_TTL ").partition(" Set it")[0]
    assert of_file == f"otp_ttl in {file} {words} Set it to something like 600, or remove it."


@pytest.mark.parametrize("content", [b"port = 1\nport = 2", b"port 8000", b"\xff", b"#" * (LARGEST + 1), None])
def test_a_file_that_cannot_be_read_is_one_line_and_shows_nothing_of_it(file: Path, content: bytes | None) -> None:
    file.unlink() if content is None else file.write_bytes(content)

    with pytest.raises(BadSettings) as by_variable:
        Settings.from_environment({"REGISTRAR_CONFIG": str(file)})
    with pytest.raises(BadSettings, match=r"^--config names a file that cannot be read") as by_option:
        Settings.from_environment({}, config=file)

    assert str(by_variable.value).startswith("REGISTRAR_CONFIG names a file that cannot be read")
    assert len(by_option.value.faults) == 1


@pytest.mark.parametrize(
    "text",
    [
        f'smtp_urls = ["smtp://u:{CANARY}@host:x"]',
        f'admin_token = "{CANARY} x"',
        f'admin_token = "{CANARY}',
        f'admin_token = {CANARY}"',
        f'[limits]\nnetwork = "{CANARY}"',
    ],
)
def test_a_refusal_never_repeats_a_value(file: Path, text: str) -> None:
    assert CANARY not in " ".join(refusal(file, text))


def test_an_empty_file_changes_nothing(file: Path) -> None:
    assert read(file, "") == Settings.from_environment({"REGISTRAR_CONFIG": str(file)})
    assert read(file, "# port = 1\n").port == 8000


def test_a_file_with_secrets_that_others_may_read_is_warned_about(file: Path) -> None:
    open_to_all = f'broker_url = "amqp://u:{CANARY}@host/"\ndatabase_url = "postgresql://host/db"\nport = 1'
    file.chmod(0o644)

    (caution,) = cautions(read(file, open_to_all, MASTER_KEY=KEY))
    assert "holds broker_url" in caution.says
    assert "database_url" not in caution.says
    assert not [*cautions(read(file, 'broker_url = "amqp://host/"\nport = 1'))]
    file.chmod(0o600)
    assert not [*cautions(read(file, open_to_all, MASTER_KEY=KEY))]


def test_commands_that_a_process_starts_get_what_its_file_says(file: Path) -> None:
    settings = read(file, f'database_url = "postgresql://host/db"\nmaster_key = "{KEY}"\notp_ttl = "7m"')

    again = Settings.from_environment(environment_of(settings))

    for name in ("database_url", "master_key", "otp_ttl"):
        assert getattr(again, name) == getattr(settings, name)


# --- registrar config -------------------------------------------------------------------------


@pytest.fixture
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("REGISTRAR_")]:
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("_unset")
def test_every_setting_is_shown_with_its_source_and_without_its_secret(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text(KEY)
    file.write_text(
        f"""
        smtp_urls = ["smtps://user:{CANARY}@one.example", "smtps://two.example"]
        broker_url = "amqp://user:{CANARY}@mq.example:5672/"
        rate_limit_url = "redis://:{CANARY}@redis.example:6379/0"
        alert_url = "https://hooks.example:8443/{CANARY}?token={CANARY}"
        checkpoint_url = "https://audit.example:8443"
        otlp_endpoint = "https://{CANARY}@collector.example/otlp"
        master_key_file = "{tmp_path / "key"}"
        admin_token = "{CANARY}"
        otp_ttl = "7m"
        """
    )
    monkeypatch.setenv("REGISTRAR_PORT", "8001")
    monkeypatch.setenv("REGISTRAR_DATABASE_URL", f"postgresql://u:{CANARY}@a,b:5433/db?password={CANARY}&user=x")

    assert run(["config", "show", "--config", str(file), "--data-dir", "there", "--json"]) == 0

    printed = capsys.readouterr().out
    assert CANARY not in printed
    assert KEY not in printed
    shown = {one["name"]: (one["value"], one["from"]) for one in json.loads(printed)["settings"]}
    assert set(shown) == set(Settings.model_fields)
    assert shown["smtp_urls"] == ("smtps://user:****@one.example,smtps://two.example", "file")
    assert shown["broker_url"] == ("amqp://user:****@mq.example:5672/", "file")
    assert shown["rate_limit_url"] == ("redis://:****@redis.example:6379/0", "file")
    assert shown["alert_url"] == ("https://hooks.example:8443/****", "file")
    assert shown["checkpoint_url"] == ("https://audit.example:8443", "file")
    assert shown["otlp_endpoint"] == ("https://****@collector.example/otlp", "file")
    assert shown["database_url"] == ("postgresql://u:****@a,b:5433/db?password=****&user=x", "environment")
    assert shown["master_key"] == ("****", "file")
    assert shown["admin_token"] == ("****", "file")
    assert (shown["port"], shown["data_dir"]) == (("8001", "environment"), ("there", "option"))
    assert (shown["otp_ttl"], shown["resend_cooldown"]) == (("7m", "file"), ("1m", "default"))


@pytest.mark.parametrize(
    "written",
    [
        'bounce_webhooks = ["postmark=correct-horse-battery", "mailgun=staple-correct-horse"]',
        '[bounce_webhooks]\npostmark = "correct-horse-battery"\nmailgun = "staple-correct-horse"',
        'bounce_webhooks = "postmark=correct-horse-battery, mailgun=staple-correct-horse"',
    ],
)
def test_providers_and_their_secrets_are_a_list_a_table_or_a_text(file: Path, written: str) -> None:
    assert read(file, written).bounce_providers == {"postmark", "mailgun"}


@pytest.mark.parametrize(
    "text",
    [
        'webhooks = "app=https://u:p@a.example:1/canary?x=canary,b=http://127.0.0.1:3000"',
        'webhooks = ["app=https://u:p@a.example:1/canary?x=canary", "b=http://127.0.0.1:3000"]',
        '[webhooks]\napp = "https://u:p@a.example:1/canary?x=canary"\nb = "http://127.0.0.1:3000"',
    ],
)
def test_of_webhooks_names_and_hosts_are_shown(file: Path, text: str) -> None:
    file.write_text(text)
    values, _ = read_config(file, Settings.model_fields)
    shown = without_secrets("webhooks", Settings.model_fields["webhooks"], values["webhooks"])
    assert shown == "app=https://****@a.example:1/****,b=http://127.0.0.1:3000"


def test_a_secret_of_webhooks_in_hex_is_warned_about(file: Path) -> None:
    for secret, warned in (("ab" * 32, True), ("Z" * 43 + "=", False)):
        found = read(file, f'[webhooks]\napp = "https://a.example/"\n[webhook_secrets]\napp = "whsec_{secret}"')
        file.chmod(0o600)
        assert any("in hex" in one.says for one in cautions(found)) == warned


@pytest.mark.usefixtures("_unset")
def test_a_check_names_every_fault_and_exits_with_1(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text('port = 70000\nopt_ttl = 3\ndatabase_url = "postgresql://host/db"')

    assert run(["--config", str(file), "config", "check"]) == 1
    told = capsys.readouterr().out.splitlines()
    assert run(["config", "check", "--json", "--config", str(file)]) == 1
    found = json.loads(capsys.readouterr().out)
    file.write_text("port = 7000")
    assert run(["config", "check", "--config", str(file)]) == 0

    assert [line.split()[0] for line in told] == ["opt_ttl", "port", "master_key"]
    assert found == {"usable": False, "faults": told, "warnings": []}


@pytest.mark.usefixtures("_unset")
def test_other_commands_cannot_run_with_a_bad_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("prot = 1")
    assert run(["limits", "show", "--config", str(file)]) == 2
    assert "did you mean port?" in capsys.readouterr().err


def test_the_example_is_the_one_that_is_printed() -> None:
    printed = "\n".join(example_file()) + "\n"
    if os.environ.get("APPROVE"):
        EXAMPLE.write_text(printed, encoding="utf-8")
    assert EXAMPLE.read_text(encoding="utf-8") == printed, "APPROVE=1 writes it anew"


def test_the_example_has_every_setting_and_its_defaults_are_the_defaults(file: Path) -> None:
    lines = [line.removeprefix("# ") for line in example_file() if " = " in line]
    values = tomllib.loads("\n".join(lines))
    defaults = [line for line in lines if not line.endswith("# an example")]

    assert set(values) == set(Settings.model_fields) - {"config"}
    assert len(defaults) > 20
    found = read(file, "\n".join(defaults))
    assert found.data_dir == file.parent / ".registrar"
    same = {"config", "data_dir"}
    assert found.model_dump(exclude=same) == Settings.from_environment({}).model_dump(exclude=same)


def test_a_setting_of_several_values_says_so() -> None:
    """By the types that hold several, so that a new one is not forgotten."""
    plural = {name for name, info in Settings.model_fields.items() if "tuple" in str(info.annotation)} | {
        "smtp_urls",
        "webhooks",
        "webhook_secrets",
        "bounce_webhooks",
    }
    assert {name for name, info in Settings.model_fields.items() if several(info)} == plural


def test_the_document_names_the_settings_of_several_values() -> None:
    document = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    told = re.search(r"are lists of texts: (.+?)\. Those .+ may also be tables: (.+?)\. ", document)
    assert told is not None
    lists, tables = (re.findall(r"`(\w+)`", names) for names in told.groups())
    forms = {name: form for name, info in Settings.model_fields.items() if (form := several(info))}
    assert lists == list(forms)
    assert tables == [name for name, form in forms.items() if form == "table"]
