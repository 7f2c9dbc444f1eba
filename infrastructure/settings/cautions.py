"""What is legal in the settings, and should not be so: said at each start and by `registrar doctor`."""

from __future__ import annotations

import math
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from pydantic import SecretStr

from infrastructure.settings.environment import FILE, PREFIX
from infrastructure.settings.settings import Settings
from infrastructure.settings.webhooks import looks_like_hex
from infrastructure.settings.written import secrets_in

ENOUGH: Final = 64.0
"""Bits that a token should seem to have. 16 random bytes seem to have more in every usual notation."""

SHORTEST: Final = 20
"""Characters; 16 random bytes take 22 as base64."""

_MEANT_TO_BE_REPLACED: Final = re.compile(
    r"change-?_?me|password|secret|admin|example|token|registrar|qwert|letmein|default", re.IGNORECASE
)


class Caution(NamedTuple):
    """One of them. No value of a setting is in it, but for the path of the file of settings.

    Attributes:
        says: what is so.
        advice: what to do.
    """

    says: str
    advice: str


def cautions(settings: Settings) -> Iterator[Caution]:
    """Secrets that are easy to guess, or that others can read; and what is asked for and cannot be done."""
    for name in ("admin_token", "next_admin_token"):
        token: SecretStr | None = getattr(settings, name)
        if token is not None and is_easy_to_guess(token.get_secret_value()):
            yield Caution(
                f"{PREFIX}{name.upper()} is easy to guess",
                "Set it to what `openssl rand -hex 32` prints; it opens every account.",
            )
    for name in sorted(settings.model_fields_set):
        path = getattr(settings, name)
        if name.endswith(FILE) and isinstance(path, Path) and is_open_to_others(path):
            yield Caution(
                f"the file that {PREFIX}{name.upper()} names can be read by others",
                "Close it to all but the service's user (`chmod 600`).",
            )
    if settings.config is not None and is_open_to_others(settings.config):
        secret = secrets_in(settings.config, type(settings).model_fields)
        if secret:
            yield Caution(
                f"{settings.config} can be read by others, and holds {', '.join(secret)}",
                "Close it to all but the service's user (`chmod 600`), or have it name files with the secrets.",
            )
    if settings.webhook_secrets is not None and looks_like_hex(settings.webhook_secrets.get_secret_value()):
        yield Caution(
            f"a secret in {PREFIX}WEBHOOK_SECRETS is written in hex, and read as base64",
            "Use what `openssl rand -base64 32` prints, on both sides, as Standard Webhooks has it.",
        )
    said = settings.model_fields_set & {"public_url", "synthetic_url"}
    if settings.synthetic is not None and settings.database_url is not None and not said:
        yield Caution(
            f"{PREFIX}SYNTHETIC is set, and neither {PREFIX}PUBLIC_URL nor {PREFIX}SYNTHETIC_URL says where to register",
            "Set one of them to the address that people register at.",
        )


def is_easy_to_guess(token: str) -> bool:
    """Is it short, repeated, ordered, or made of words that stand in examples? An estimate, in doubt for the token."""
    if len(token) < SHORTEST or _MEANT_TO_BE_REPLACED.search(token):
        return True
    period = next(length for length in range(1, len(token) + 1) if (token[:length] * len(token))[: len(token)] == token)
    # Each step along the alphabet or the digits tells nothing new.
    told = [
        one
        for before, one in zip("\0" + token[: period - 1], token[:period], strict=True)
        if abs(ord(one) - ord(before)) > 1
    ]
    counts = Counter(told)
    bits = -sum(count * math.log2(count / len(told)) for count in counts.values())
    return bits < ENOUGH


def is_open_to_others(path: Path) -> bool:
    """May its group or everybody read it?

    A group's right is not held against a file of root's that somebody else was given to read in this way:
    that is what systemd's credentials and Kubernetes' `fsGroup` look like.
    """
    try:
        found = path.stat()
    except OSError:
        return False
    given = found.st_uid == 0 != os.geteuid()
    return bool(found.st_mode & (stat.S_IRWXO if given else stat.S_IRWXG | stat.S_IRWXO))
