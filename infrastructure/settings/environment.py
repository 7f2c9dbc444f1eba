"""Collects settings from the command line, the environment and a file, and says in one line what is wrong with them.

Independent of any single setting: a field `x_file` names a file with the value of the field `x`, and the field `config`
a file of settings.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final, Literal, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from application.unfit import fault
from infrastructure.settings.config_file import CONFIG, CannotBeRead, as_toml, read_config, read_text
from infrastructure.settings.nearest import nearest_of

PREFIX = "REGISTRAR_"

FILE: Final = "_file"
"""Ends the name of a field that names a file with another field's value."""

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


Source = Literal["option", "environment", "file"]
"""Where a setting may come from; the earlier one wins."""


@dataclass(frozen=True, slots=True)
class Given:
    """What the command line, the environment and the file of settings say, unparsed.

    Attributes:
        values: by field name.
        sources: where each of them comes from.
        files: names of the fields whose values come from files of their own.
        faults: what is wrong already.
    """

    values: dict[str, object]
    sources: Mapping[str, Source]
    files: frozenset[str]
    faults: tuple[str, ...]

    def called(self, name: str, beside: str) -> str:
        """What an operator calls a setting: as it is written where it comes from.

        Args:
            name: of its field.
            beside: of the field of another setting: what is not set is written where that one is.
        """
        for one in (name, name + FILE):
            if one in self.sources:
                return _shown(one, self.sources[one], self.values.get(CONFIG))[0]
        source = self.sources.get(beside) or self.sources.get(beside + FILE, "environment")
        return _shown(name, source, self.values.get(CONFIG))[0]

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
                message = fault(one).message
                ours = isinstance(
                    one.get("ctx", {}).get("error"), ValueError
                )  # it goes on from the name of the setting
                yield self._explanation(name, model.model_fields[name], message if ours else f"is refused: {message}")

    def _explanation(self, name: str, info: FieldInfo, what: str) -> str:
        written = name + FILE if name in self.files else name
        source = self.sources[written]
        example = _example(info)
        if name in self.files:
            what = f"contains something that cannot be used: {'' if what.startswith('entry ') else 'it '}{what}"
            example = f"a file with {example}" if example else None
        elif example and source == "file":
            example = as_toml(info, example)
        shown, without = _shown(written, source, self.values.get(CONFIG))
        return f"{shown} {what}. {f'Set it to something like {example},' if example else 'Correct it'} or {without}."


def _shown(name: str, source: Source, config: object) -> tuple[str, str]:
    """What an operator calls a setting that comes from there, and what he does to be without it."""
    match source:
        case "option":
            return f"--{name.replace('_', '-')}", "leave it out"
        case "environment":
            return f"{PREFIX}{name.upper()}", "unset it"
        case "file":
            return f"{name} in {config}", "remove it"


def given(model: type[BaseModel], environ: Mapping[str, str], *, options: Mapping[str, object]) -> Given:
    """Collect the settings of a `model`: `options` (by field name), then the `REGISTRAR_` variables of `environ`, then
    the file that one of these names as `config`. What comes first wins.

    An empty variable counts as unset. Files that settings name are read.
    """
    found, faults = _variables(environ, model.model_fields)
    layers: list[tuple[Source, Mapping[str, object]]] = [("option", options), ("environment", found)]
    named = next(((source, layer[CONFIG]) for source, layer in layers if CONFIG in layer), None)
    if named is not None:
        try:
            written, wrong = read_config(Path(str(named[1])), model.model_fields)
            layers.append(("file", written))
            faults += wrong
        except CannotBeRead as reason:
            shown, without = _shown(CONFIG, named[0], None)
            where = Path(str(named[1])).absolute()
            faults.append(f"{shown} names a file that cannot be read, {where} ({reason}); correct it, or {without}.")
    values: dict[str, object] = {}
    sources: dict[str, Source] = {}
    for source, layer in layers:
        # A value beats the file that a later source names for it, and the other way round.
        taken = {_without_file(name) for name in values if _pairs(name, model.model_fields)}
        for name, value in layer.items():
            if name not in values and not (_pairs(name, model.model_fields) and _without_file(name) in taken):
                values[name], sources[name] = value, source
    files, wrong = _read_files(values, sources, model.model_fields)
    return Given(values, sources, frozenset(files), (*faults, *wrong))


def _variables(environ: Mapping[str, str], fields: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """The settings of the environment by the names of their fields, and what is wrong with the names."""
    values: dict[str, str] = {}
    faults = []
    known = [PREFIX + name.upper() for name in fields]
    for name, value in sorted(environ.items()):
        if not name.startswith(PREFIX) or is_link(name, value.strip()):
            continue
        if name in known:
            values |= {name.removeprefix(PREFIX).lower(): value.strip()} if value.strip() else {}
        else:
            nearest = nearest_of(name, known)
            faults.append(f"{ascii(name)[1:-1]} is not a setting; did you mean {nearest}? Rename or unset it.")
    return values, faults


def _without_file(name: str) -> str:
    return name.removesuffix(FILE)


def _pairs(name: str, fields: Collection[str]) -> bool:
    """Is it a secret that may be in a file, or the name of that file?"""
    return name + FILE in fields or (name.endswith(FILE) and _without_file(name) in fields)


def _read_files(
    values: dict[str, object], sources: Mapping[str, Source], fields: Collection[str]
) -> tuple[set[str], list[str]]:
    """Add what is in the files that `values` name; returns the names of these fields, and what is wrong."""
    read: set[str] = set()
    faults = []
    for name in sorted(field for field in fields if field + FILE in values):
        shown, without = _shown(name + FILE, sources[name + FILE], values.get(CONFIG))
        if name in values:
            value, _ = _shown(name, sources[name], values.get(CONFIG))
            faults.append(f"{value} and {shown} are both set; {without.removesuffix('it')}one of them.")
            continue
        try:
            values[name] = read_text(Path(str(values[name + FILE])))
            read.add(name)
        except CannotBeRead as reason:
            faults.append(
                f"{shown} names a file that cannot be read ({reason}); make it readable for the service, or {without}."
            )
    return read, faults


def _example(info: FieldInfo) -> str | None:
    """A value as an operator writes it; None where neither an example nor a default gives one."""
    if info.examples:
        return str(info.examples[0])
    default = info.get_default(call_default_factory=False)
    if isinstance(default, timedelta):
        return f"{default.total_seconds():g}"
    return str(default) if isinstance(default, int | float | str) and not isinstance(default, bool) else None
