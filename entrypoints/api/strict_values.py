"""Values in queries and bodies, as strict as the API's description of them."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from application.addresses import MAX_LENGTH, parse_address
from application.typed_text import trimmed

_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ]")


def _written_out(value: object) -> object:
    """The library would take a number for seconds since 1970: the year `2026` for half an hour after it began."""
    if not isinstance(value, str) or not _DATE.match(value):
        raise ValueError("not a time such as 2026-03-01T12:00:00Z (RFC 3339)")
    return value


def _whole(value: object) -> object:
    """JSON knows no integers: 3.0 is one (RFC 8259, 6; JSON Schema, 6.1.1)."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Instant = Annotated[AwareDatetime, BeforeValidator(_written_out)]
"""A time with its offset from UTC (RFC 3339)."""

WHOLE: Final = BeforeValidator(_whole)
"""For an integer: however JSON writes it."""

Address = Annotated[str, BeforeValidator(trimmed), Field(max_length=MAX_LENGTH), AfterValidator(parse_address)]
"""A mail address, as `application.addresses` reads it."""


class Filters(BaseModel):
    """A query. An unknown name is refused: a mistyped filter would show everything, or nothing."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)
