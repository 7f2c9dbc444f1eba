"""Looking for what must not be there: a secret or a person in a text, however it is written."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from urllib.parse import quote


def forms(secret: str) -> set[str]:
    """A secret as it may hide: plain, hexadecimal, base64 at each offset, percent-encoded, in JSON, UTF-16."""
    data = secret.encode()
    wide = secret.encode("utf-16-le")
    found = {
        secret,
        data.hex(),
        quote(secret),
        quote(secret, safe=""),
        json.dumps(secret)[1:-1],
        wide.hex(),
        wide.decode("latin-1"),
    }
    for offset in range(3):
        # Without the first and last character, which depend on the neighbours.
        found.add(base64.b64encode(b"\0" * offset + data).decode().rstrip("=")[4 if offset else 0 : -2])
    return found


def occurs(text: str, secrets: Iterable[str]) -> list[str]:
    """The secrets that stand in a text, in whatever form."""
    lowered = text.lower()
    return [secret for secret in secrets if any(form.lower() in lowered for form in forms(secret))]


def shown(codes: Iterable[str], text: str) -> list[str]:
    """The codes that stand in a text by themselves; six digits also stand in times, ids and sums, which do not
    count."""
    text = re.sub(r"\d\d:\d\d:\d\d\.\d+", "", text)
    numbers = set(re.findall(r"(?<![\w.-])\d{6}(?![\w.-])", text))
    return [code for code in codes if code in numbers]
