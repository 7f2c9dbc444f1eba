"""JSON that can be understood in one way only."""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from typing import Any


def decoded(text: bytes) -> Any:
    """What a JSON text says, which may begin with a byte order mark (RFC 8259, 8.1).

    Raises:
        ValueError: not JSON in UTF-8, nested too deeply, or a key comes twice, which readers understand differently.
    """
    try:
        return _json.decode(text.removeprefix(BOM_UTF8).decode())
    except RecursionError:
        raise ValueError from None


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError
    return fields


def _refuse(_: str) -> None:
    raise ValueError  # NaN and Infinity are not JSON


_json = json.JSONDecoder(object_pairs_hook=_unambiguous, parse_constant=_refuse)
