"""Settings as operators read them: in words of the file of settings, and without what is secret in them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Final, NamedTuple

from pydantic.fields import FieldInfo

from infrastructure.settings.config_file import CONFIG, CannotBeRead, as_toml, read_config, several
from infrastructure.settings.environment import FILE, Given
from infrastructure.settings.settings import Settings

HIDDEN: Final = "****"

_LOGIN: Final = re.compile(r"(?<=://)(?P<user>[^:@/?#]*):[^@/?#]*@")
_WEB_LOGIN: Final = re.compile(r"(?<=://)[^@/?#]*@")
_BEHIND_HOST: Final = re.compile(r"(?P<host>https?://[^/?#]*)(?=[/?#]).+", re.IGNORECASE | re.DOTALL)
_ENDPOINT: Final = re.compile(r"(?P<host>https?://)(?P<login>[^@/?#,\s]*@)?(?P<at>[^/?#,\s]*)(?P<rest>[^,\s]*)", re.I)
_SECRET_PARAMETER: Final = ("pass", "pwd", "secret", "token", "key")
"""What stands in the name of a parameter whose value is hidden."""
_UNITS: Final = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1))


class Shown(NamedTuple):
    """One setting that is in force.

    Attributes:
        value: as one writes it, with secrets hidden; None: there is none.
        source: "default", "file", "environment" or "option".
    """

    name: str
    value: str | None
    source: str


def shown(settings: Settings, found: Given) -> Iterator[Shown]:
    """Every setting with its value, and where it comes from."""
    for name, info in type(settings).model_fields.items():
        source = found.sources.get(name) or found.sources.get(name + FILE)
        text = str(found.values[name]) if name in found.values else written(getattr(settings, name))
        yield Shown(name, None if text is None else without_secrets(name, info, text), source or "default")


def written(value: object) -> str | None:
    """A value in force as the environment would have it; None for one that is not there."""
    match value:
        case None:
            return None
        case bool():
            return "true" if value else "false"
        case timedelta():
            return _duration(value)
        case tuple():
            return ", ".join(str(one) for one in value) or None
        case float():
            return f"{value:g}"
    return str(value)


def _duration(value: timedelta) -> str:
    left = value // timedelta(milliseconds=1)
    unit, size = next(one for one in _UNITS if left and left % one[1] == 0) if left else ("s", 1)
    return f"{left // size}{unit}"


def without_secrets(name: str, info: FieldInfo, text: str) -> str:
    """The value with every password, key and token in it hidden; of a webhook's URL also what follows the host."""
    secret = "Secret" in str(info.annotation)
    if name == "webhooks":
        return _ENDPOINT.sub(_without_path, text)
    if secret and not name.endswith(("_url", "_urls")):
        return HIDDEN
    if re.match("https?://", text, re.IGNORECASE):
        text = _WEB_LOGIN.sub(f"{HIDDEN}@", text)
        return _BEHIND_HOST.sub(rf"\g<host>/{HIDDEN}", text) if secret else _without_parameters(text)
    return _without_parameters(_LOGIN.sub(rf"\g<user>:{HIDDEN}@", text))


def _without_path(url: re.Match[str]) -> str:
    login, rest = (f"{HIDDEN}@" if url["login"] else ""), f"/{HIDDEN}" if url["rest"].strip("/") else url["rest"]
    return f"{url['host']}{login}{url['at']}{rest}"


def _without_parameters(url: str) -> str:
    head, mark, query = url.partition("?")
    parts = [part.partition("=") for part in query.split("&")]
    shown = [
        f"{name}={HIDDEN}" if any(word in name.lower() for word in _SECRET_PARAMETER) else f"{name}{equals}{value}"
        for name, equals, value in parts
    ]
    return head + mark + "&".join(shown)


def secrets_in(path: Path, fields: Mapping[str, FieldInfo]) -> list[str]:
    """The settings in a file of settings that hold something secret."""
    try:
        values, _ = read_config(path, fields)
    except CannotBeRead:
        return []
    return [name for name, text in values.items() if without_secrets(name, fields[name], text) != text]


def example_file() -> Iterator[str]:
    """The lines of a file that has every setting with its default, or with an example, none of them in force."""
    yield "# Settings of Registrar, all of them: remove the # from those that are to differ."
    yield "# `registrar --config FILE COMMAND` or REGISTRAR_CONFIG names this file; variables of the environment"
    yield "# (REGISTRAR_OTP_TTL for otp_ttl) beat what is here. `registrar config check` says what is wrong with it,"
    yield "# `registrar config show` what is in force. Each line has the default, or an example where there is none."
    yield "# What stands in braces may also be a table, [limits], at the end of the file. Paths that do not begin with"
    yield "# a slash are relative to this file."
    for name, info in Settings.model_fields.items():
        if name == CONFIG:
            continue
        yield ""
        yield f"# {(info.description or '').replace('None: ', 'unset: ')}"
        default = written(info.get_default(call_default_factory=False))
        if name.endswith(FILE):
            yield f'# {name} = "/run/secrets/{name.removesuffix(FILE)}"  # an example'
        elif default is None or info.default_factory or several(info):
            yield f"# {name} = {as_toml(info, str((info.examples or [''])[0]))}  # an example"
        else:
            yield f"# {name} = {as_toml(info, default)}"
