"""What is wrong with a value: a code that stays, for programs, and a sentence for whoever typed it.

The sentence goes on from the name of the field, and never repeats the value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple


class Unfit(ValueError):
    """A value of ours that cannot be used.

    Attributes:
        code: one of `CODES`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


CODES: Final[Mapping[str, str]] = {
    "missing": "it is needed, and not there",
    "unknown-field": "there is no such field here",
    "wrong-type": "a text where a number belongs, or the like",
    "too-short": "it has too few characters",
    "too-long": "it has too many characters, or bytes",
    "too-common": "a password among the first ones that an attacker tries",
    "too-easy": "a password that is easy to guess: repeats, sequences, the address, the name of the service",
    "invalid-address": "no mail address that can be sent to",
    "invalid-characters": "control characters, or none that can be seen",
    "invalid-code": "not six digits",
    "invalid-locale": "no language tag (BCP 47)",
    "invalid-key": "an Idempotency-Key of another form",
    "misspelt-domain": "a domain one slip away from a much used one (`MISSPELT_DOMAINS=refuse`)",
    "disposable-domain": "a domain that gives addresses for minutes (`DISPOSABLE_DOMAINS=refuse`)",
    "out-of-range": "a number, or a time, that is too small or too large",
    "unknown-value": "none of those that may be chosen from",
    "not-json": "the body is not JSON, or no object",
    "invalid-value": "anything else",
}
"""What may be wrong with a field of a request."""

OTHERWISE: Final = "invalid-value"


class Fault(NamedTuple):
    """See the module's docstring."""

    code: str
    message: str


_PLAIN: Final[Mapping[str, tuple[str, str]]] = {
    "missing": ("missing", "is missing"),
    "extra_forbidden": ("unknown-field", "is no field here"),
    "string_too_short": ("too-short", "too short: at least {min_length} characters"),
    "string_too_long": ("too-long", "too long: at most {max_length} characters"),
    "too_short": ("too-short", "too short: at least {min_length}"),
    "too_long": ("too-long", "too long: at most {max_length}"),
    "bytes_too_short": ("too-short", "too short: at least {min_length} bytes"),
    "bytes_too_long": ("too-long", "too long: at most {max_length} bytes"),
    "greater_than": ("out-of-range", "has to be more than {gt}"),
    "greater_than_equal": ("out-of-range", "has to be {ge} or more"),
    "less_than": ("out-of-range", "has to be less than {lt}"),
    "less_than_equal": ("out-of-range", "has to be {le} or less"),
    "literal_error": ("unknown-value", "has to be {expected}"),
    "enum": ("unknown-value", "has to be {expected}"),
    "string_type": ("wrong-type", "has to be a text"),
    "bool_type": ("wrong-type", "has to be true or false"),
    "bool_parsing": ("wrong-type", "has to be true or false"),
    "int_type": ("wrong-type", "has to be a whole number"),
    "int_parsing": ("wrong-type", "has to be a whole number"),
    "int_from_float": ("wrong-type", "has to be a whole number"),
    "int_parsing_size": ("out-of-range", "has to be a smaller number"),
    "float_type": ("wrong-type", "has to be a number"),
    "float_parsing": ("wrong-type", "has to be a number"),
    "finite_number": ("out-of-range", "has to be a finite number"),
    "list_type": ("wrong-type", "has to be a list"),
    "dict_type": ("wrong-type", "has to be an object"),
    "model_type": ("wrong-type", "has to be an object"),
    "model_attributes_type": ("wrong-type", "has to be an object"),
    "uuid_type": ("wrong-type", "has to be a UUID"),
    "uuid_parsing": ("invalid-value", "not a UUID"),
    "datetime_type": ("wrong-type", "has to be a time"),
    "datetime_parsing": ("invalid-value", "not a time"),
    "datetime_from_date_parsing": ("invalid-value", "not a time"),
    "timezone_aware": ("invalid-value", "has to be a time with its offset from UTC"),
    "string_pattern_mismatch": ("invalid-value", "not of the form that it has to have"),
    "string_unicode": ("invalid-characters", "has characters that are none"),
    "json_invalid": ("not-json", "not valid JSON"),
}
"""The library's kinds of errors (pydantic-core), with what it knows of each in braces."""


def fault(error: Mapping[str, Any]) -> Fault:
    """What one of the library's errors says, in words of ours; its own may quote what was typed."""
    about = error.get("ctx", {})
    ours = about.get("error")
    if isinstance(ours, ValueError):
        return Fault(getattr(ours, "code", OTHERWISE), str(ours))
    code, message = _PLAIN.get(str(error["type"]), (OTHERWISE, "cannot be used"))
    return Fault(code, message.format_map(about))
