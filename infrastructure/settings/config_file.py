"""The file of settings: TOML, with the names of the settings in small letters.

A value becomes the text that the environment would have, so that it is checked and refused in the same way.
"""

# ruff: noqa: PLC0415 - the TOML reader is loaded where there is a file
from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Final, Literal, get_args

from pydantic.fields import FieldInfo

from infrastructure.settings.nearest import nearest_of

CONFIG: Final = "config"
"""Name of the field with this file's path."""

LARGEST: Final = 64 * 1024
"""Bytes of a file that a setting names. Ours are shorter; the wrong file, a log or a device, may be endless."""

_PREFIX: Final = "registrar_"

Several = Literal["list", "table"]
"""How a setting of several values may be written: as a list of texts; also as a table of names and values."""


class CannotBeRead(Exception):
    """The message is the reason, without anything of the file."""


def several(info: FieldInfo) -> Several | None:
    """What the field's `json_schema_extra` says of it: has it one value, or several?"""
    extra = info.json_schema_extra
    found = extra.get("several") if isinstance(extra, dict) else None
    return "table" if found == "table" else "list" if found == "list" else None


def read_text(path: Path, *, may_be_empty: bool = False) -> str:
    """The content of a file, without the white space around it.

    Raises:
        CannotBeRead: it cannot be opened, is no text, too long, or empty.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        text = content.decode("utf-8-sig").strip()
    except OSError as error:
        raise CannotBeRead(error.strerror) from None
    except ValueError:  # also a path with a zero byte in it
        raise CannotBeRead("it is not text") from None
    if len(content) > LARGEST:
        raise CannotBeRead("it is too long")
    if not text and not may_be_empty:
        raise CannotBeRead("it is empty")
    return text


def read_config(path: Path, fields: Mapping[str, FieldInfo]) -> tuple[dict[str, str], list[str]]:
    """The settings that stand in the file, each as the environment would have it, and what is wrong with them.

    Raises:
        CannotBeRead: it cannot be opened, or is not TOML.
    """
    import tomllib

    try:
        found = tomllib.loads(read_text(path, may_be_empty=True))
    except (ValueError, RecursionError) as error:  # beside those of TOML that of an endless number
        where = re.search(r"line \d+, column \d+|end of document", str(error))
        twice = re.search("overwrite|twice|already", str(error))
        cause = "a name or a table stands there for the second time" if twice else 'a text needs quotes, name = "text"'
        raise CannotBeRead(
            f"it is not TOML: look at {where[0] if where else 'the values'}, where maybe {cause}"
        ) from None
    values: dict[str, str] = {}
    faults = []
    for name, value in found.items():
        if name not in fields or name == CONFIG:
            faults.append(_unknown(name, path, fields))
            continue
        try:
            text = _text(value, several(fields[name])).strip()
        except ValueError as reason:
            faults.append(f"{name} in {path} {reason}. Correct it or remove it.")
        else:
            values |= {name: _beside(path, text) if _is_path(fields[name]) else text} if text else {}
    return values, faults


def _is_path(info: FieldInfo) -> bool:
    return Path in (info.annotation, *get_args(info.annotation))


def _beside(config: Path, text: str) -> str:
    """A path that is relative to the file that it stands in, wherever the command is typed."""
    return str(config.absolute().parent / text)


def _unknown(name: str, path: Path, fields: Mapping[str, FieldInfo]) -> str:
    shown = f"{ascii(name)[1:-1]} in {path}"
    if name == CONFIG:
        return f"{shown} is one file too many: a file of settings names no other. Remove it."
    meant = name.lower().removeprefix(_PREFIX)
    if meant in fields and meant != CONFIG:
        return f"{shown} is written {meant} in a file: in small letters and without a prefix. Rename it."
    known = [field for field in fields if field != CONFIG]
    nearest = nearest_of(meant, known)
    return f"{shown} is not a setting; did you mean {nearest}? Rename or remove it."


def _text(value: object, form: Several | None) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float() | str():
            return str(value)
        case list() if form is not None:
            return ",".join(_entry(f"entry {number}", one) for number, one in enumerate(value, start=1))
        case dict() if form == "table":
            return ",".join(
                f"{name}={_entry(ascii(name), one)}"
                for name, values in value.items()
                for one in (values if isinstance(values, list) else [values])
            )
        case list():
            kind = "a list"
        case dict():
            kind = "a table"
        case _:
            kind = "a date or a time"
    raise ValueError(f"is {kind}, which it cannot be; it may be {_MAY_BE[form]}")


_MAY_BE: Final[Mapping[Several | None, str]] = {
    None: "a text, a number, or true or false",
    "list": "a list of texts, or one text with commas between the values",
    "table": "a table of names and texts, a list of texts as in name=value, or one text with commas between these",
}


def _entry(which: str, value: object) -> str:
    if not isinstance(value, str | int | float):
        raise ValueError(f"has something other than a text in {which}")  # noqa: TRY004 - as of every wrong value
    text = _text(value, None)
    if "," in text:
        raise ValueError(f"has a comma in {which}; each value of a list is a text of its own")
    return text


def as_toml(info: FieldInfo, text: str) -> str:
    """What the environment has, as a line of the file has it."""
    form = several(info)
    if form is None:
        return _scalar(info, text)
    entries = [entry.strip() for entry in text.split(",")]
    if form == "table" and all("=" in entry for entry in entries):
        pairs = (entry.partition("=") for entry in entries)
        return f"{{ {', '.join(f'{name} = {json.dumps(value, ensure_ascii=False)}' for name, _, value in pairs)} }}"
    return json.dumps(entries, ensure_ascii=False)


_BARE: Final = re.compile(r"true|false|-?\d{1,18}(\.\d{1,18})?")
"""What needs no quotes in TOML."""

_SCALARS: Final = (int, float, bool, timedelta)
"""Types of settings that are written so, if they can be."""


def _scalar(info: FieldInfo, text: str) -> str:
    kinds = (info.annotation, *get_args(info.annotation))
    bare = any(kind in _SCALARS for kind in kinds) and _BARE.fullmatch(text)
    return text if bare else json.dumps(text, ensure_ascii=False)
