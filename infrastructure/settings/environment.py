"""Reads settings from the environment, and says in one line what is wrong with them.

Independent of any single setting: a field `x_file` names a file with the value of the field `x`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

PREFIX = "REGISTRAR_"

FILE: Final = "_file"
"""Ends the name of a field that names a file with another field's value."""

LARGEST: Final = 64 * 1024
"""Bytes of such a file. None of our values is that long; the wrong file, a log or a device, may be endless."""

_ADDRESS: Final = re.compile(r"(tcp|udp|sctp)://\S+")
_LINK: Final = re.compile(
    rf"{PREFIX}(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_\d+_(?:TCP|UDP|SCTP)(?:_\w+)?|ENV_\w+)"
)
_LINKED_NAME: Final = re.compile(r"/[\w.-]+/[\w.-]+")

Model = TypeVar("Model", bound=BaseModel)


class BadSettings(Exception):
    """The settings cannot be used; the message is one line that names the variables and what to do about them.

    It never contains a value, which could be a secret, only names.

    Attributes:
        faults: the same, a sentence or two for each setting that is wrong.
    """

    def __init__(self, *faults: str) -> None:
        super().__init__(" ".join(faults))
        self.faults = faults


def is_link(name: str, value: str) -> bool:
    """Is it a variable by which Kubernetes or Docker announces a service or container whose name begins with ours?

    `REGISTRAR_SERVICE_HOST`, `REGISTRAR_PORT=tcp://…` and the like, which nobody set for us; also
    `REGISTRAR_SMTP_SERVICE_HOST` of a service `registrar-smtp`, and Docker's `REGISTRAR_NAME` and `REGISTRAR_ENV_…`.
    """
    if re.fullmatch(rf"{PREFIX}(?:\w+_)?PORT", name) and _ADDRESS.fullmatch(value):
        return True
    if re.fullmatch(rf"{PREFIX}(?:\w+_)?NAME", name) and _LINKED_NAME.fullmatch(value):
        return True
    return _LINK.fullmatch(name) is not None


def links_in(environ: Mapping[str, str]) -> list[str]:
    """The names of such variables in `environ`, sorted. They are no settings."""
    return sorted(name for name, value in environ.items() if name.startswith(PREFIX) and is_link(name, value.strip()))


@dataclass(frozen=True, slots=True)
class Given:
    """What the environment and the command line say, unparsed.

    Attributes:
        values: by field name.
        options: names of the fields that come from the command line.
        files: names of the fields whose values come from files.
        faults: what is wrong already.
    """

    values: dict[str, object]
    options: frozenset[str]
    files: frozenset[str]
    faults: tuple[str, ...]

    def settings(self, model: type[Model], *, missing: str | None) -> Model:
        """
        Args:
            missing: one more fault, that of a setting that is not there.

        Raises:
            BadSettings: with everything that is wrong.
        """
        faults = list(self.faults)
        try:
            settings = model.model_validate(self.values)
        except ValidationError as error:
            # Not chained: the cause contains the values.
            faults += self._explanations(error, model)
        faults += [missing] if missing else []
        if faults:
            raise BadSettings(*faults) from None
        return settings

    def _explanations(self, error: ValidationError, model: type[BaseModel]) -> Iterator[str]:
        explained = set()
        for one in error.errors(include_url=False, include_input=False):
            # A default that is made of other fields is not to blame for them.
            name = str(one["loc"][0])
            if one["type"] != "default_factory_not_called" and name not in explained:
                explained.add(name)
                reason = one.get("ctx", {}).get("error")
                yield self._explanation(name, model.model_fields[name], reason, one["msg"])

    def _explanation(self, name: str, info: FieldInfo, reason: object, message: str) -> str:
        shown, without = f"{PREFIX}{name.upper()}", "unset it"
        if name in self.options:
            shown, without = f"--{name.replace('_', '-')}", "leave it out"
        ours = isinstance(reason, Exception)  # the library's own errors have a text here
        what = str(reason) if ours else f"is refused: {message[:1].lower()}{message[1:]}"
        example = _example(info)
        if name in self.files:
            what = f"contains something that cannot be used: it {what}"
            example = f"a file with {example}" if example else None
            shown += FILE.upper()
        return f"{shown} {what}. {f'Set it to something like {example},' if example else 'Correct it'} or {without}."


def given(model: type[BaseModel], environ: Mapping[str, str], *, options: Mapping[str, object]) -> Given:
    """Collect the `REGISTRAR_` variables of `environ`, and `options` (by field name), which win, for a `model`.

    An empty variable counts as unset. Files that variables name are read.
    """
    faults: list[str] = []
    values: dict[str, object] = {}
    known = [PREFIX + name.upper() for name in model.model_fields]
    for name, value in sorted(environ.items()):
        if not name.startswith(PREFIX) or is_link(name, value.strip()):
            continue
        if name in known:
            values |= {name.removeprefix(PREFIX).lower(): value.strip()} if value.strip() else {}
        else:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
            faults.append(f"{ascii(name)[1:-1]} is not a setting; did you mean {nearest}? Rename or unset it.")
    values |= options
    files = {name.removesuffix(FILE) for name in values if name.endswith(FILE)} & model.model_fields.keys()
    for name in sorted(files):
        variable = f"{PREFIX}{name.upper()}"
        if name in values:
            faults.append(f"{variable} and {variable}{FILE.upper()} are both set; unset one of them.")
            continue
        try:
            values[name] = _read(Path(str(values[name + FILE])))
        except _CannotBeRead as reason:
            faults.append(
                f"{variable}{FILE.upper()} names a file that cannot be read ({reason}); "
                "make it readable for the service, or unset it."
            )
    return Given(values, frozenset(options), frozenset(files), tuple(faults))


class _CannotBeRead(Exception):
    """The message is the reason, without anything of the file."""


def _read(path: Path) -> str:
    """The content of a file, without the white space around it."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        text = content.decode("utf-8-sig").strip()
    except OSError as error:
        raise _CannotBeRead(error.strerror) from None
    except ValueError:  # also a path with a zero byte in it
        raise _CannotBeRead("it is not text") from None
    if len(content) > LARGEST:
        raise _CannotBeRead("it is too long")
    if not text:
        raise _CannotBeRead("it is empty")
    return text


def _example(info: FieldInfo) -> str | None:
    """A value as an operator writes it; None where neither an example nor a default gives one."""
    if info.examples:
        return str(info.examples[0])
    default = info.get_default(call_default_factory=False)
    if isinstance(default, timedelta):
        return f"{default.total_seconds():g}"
    return str(default) if isinstance(default, int | float | str) and not isinstance(default, bool) else None
