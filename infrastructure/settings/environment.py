"""Reads settings from the environment, and says in one line what is wrong with them.

Independent of any single setting except the master key, which may come from a file.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from infrastructure.settings.values import NotSupported

PREFIX = "REGISTRAR_"

Model = TypeVar("Model", bound=BaseModel)


class BadSettings(Exception):
    """The settings cannot be used; the message is one line that names the variable and what to do about it.

    It never contains a value, which could be a secret, only names.
    """


def read(model: type[Model], environ: Mapping[str, str], *, options: Mapping[str, object]) -> Model:
    """Create a `model` from the `REGISTRAR_` variables of `environ`, and from `options` (by field name), which win.

    An empty variable counts as unset.

    Raises:
        BadSettings: an unknown name, or the first value that cannot be used.
    """
    given = _variables(model, environ)
    values = {**given, **options}
    if "master_key_file" in values:
        if "master_key" in values:
            raise BadSettings(f"{PREFIX}MASTER_KEY and {PREFIX}MASTER_KEY_FILE are both set; unset one of them.")
        values["master_key"] = _read_key_file(Path(str(values["master_key_file"])))
    try:
        return model.model_validate(values)
    except ValidationError as error:
        # Not chained: the cause contains the values.
        raise BadSettings(_explanation(error, model, given=values, options=options)) from None


def _variables(model: type[BaseModel], environ: Mapping[str, str]) -> dict[str, object]:
    """The variables that are set, by field name."""
    found = {name: value.strip() for name, value in environ.items() if name.startswith(PREFIX)}
    known = [PREFIX + field.upper() for field in model.model_fields]
    for name in sorted(found.keys() - set(known)):
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
        raise BadSettings(f"{ascii(name)[1:-1]} is not a setting; did you mean {nearest}? Rename or unset it.")
    return {name.removeprefix(PREFIX).lower(): value for name, value in found.items() if value}


def _explanation(
    error: ValidationError, model: type[BaseModel], *, given: Mapping[str, object], options: Mapping[str, object]
) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    field = str(first["loc"][0])
    name = f"--{field.replace('_', '-')}" if field in options else PREFIX + field.upper()
    without = "leave it out" if field in options else "unset it"
    if field == "master_key" and "master_key_file" in given:
        name, what = f"{PREFIX}MASTER_KEY_FILE", "contains something that is not 32 bytes as hex or base64"
    else:
        reason = first.get("ctx", {}).get("error")
        ours = isinstance(reason, Exception)  # the library's own errors have a text here
        what = str(reason) if ours else f"is refused: {first['msg'][:1].lower()}{first['msg'][1:]}"
        if isinstance(reason, NotSupported):
            return f"{name} {what}; {without}."
    example = _example(model.model_fields[field])
    return f"{name} {what}. {f'Set it to something like {example},' if example else 'Correct it'} or {without}."


def _example(field: FieldInfo) -> str | None:
    """A value as an operator writes it; None where neither an example nor a default gives one."""
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
