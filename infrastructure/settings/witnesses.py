"""What an operator may write as `REGISTRAR_CHECKPOINT_WITNESSES`."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Final, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator

from infrastructure.settings.entries import each

_COSIGNATURE: Final = 4
"""The type of an Ed25519 key that cosigns (https://c2sp.org/tlog-cosignature)."""


@dataclass(frozen=True, slots=True)
class WitnessAddress:
    """A witness: where it is, and the key that it cosigns with.

    Attributes:
        url: the submission prefix of https://c2sp.org/tlog-witness, without a slash at its end.
        key_id: the four bytes that its signatures begin with.
        public_key: Ed25519.
    """

    url: str
    name: str
    key_id: bytes
    public_key: bytes

    @classmethod
    def parse(cls, entry: str) -> Self:
        """Parse `https://host[:port][/path]#name+id+base64`: behind the `#` stands the witness's key, as it gives it.

        Raises:
            ValueError: `entry` is not of this form.
        """
        url, _, key = entry.partition("#")
        try:
            parts = urlsplit(url)
            usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable or parts.query or parts.username is not None or not re.fullmatch(r"[!-~]+", url):
            raise ValueError("is not of the form https://host[:port][/path]#name+id+key")
        return cls(url.rstrip("/"), *_key(key))


def _key(text: str) -> tuple[str, bytes, bytes]:
    found = re.fullmatch(r"([^\s+]+)\+([0-9a-f]{8})\+([A-Za-z0-9+/]{44})", text)
    if found is None:
        raise ValueError("has behind its # no key of the form name+id+key")
    name, key_id, public = found[1], bytes.fromhex(found[2]), base64.b64decode(found[3])
    if sha256(name.encode() + b"\n" + public).digest()[:4] != key_id:
        raise ValueError("has a key that was not copied whole: its id does not fit")
    if public[0] != _COSIGNATURE:
        raise ValueError("has a key that is none of a witness (an Ed25519 key that cosigns)")
    return name, key_id, public[1:]


def _witnesses(value: object) -> object:
    if not isinstance(value, str):
        return value
    return tuple(each((entry.strip() for entry in value.split(",")), WitnessAddress.parse))


Witnesses = Annotated[tuple[WitnessAddress, ...], BeforeValidator(_witnesses)]
