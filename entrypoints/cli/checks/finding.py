"""What a check finds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

PATIENCE = timedelta(seconds=5)
"""For a statement, one mail server's greeting, or a connection to the webhook."""

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        advice: what to do, None where all is well.
    """

    check: str
    state: State
    says: str
    advice: str | None = None
