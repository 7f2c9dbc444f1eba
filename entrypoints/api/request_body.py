"""JSON bodies, read strictly: what can be understood in two ways is refused."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel

from application.strict_json import decoded
from application.unfit import OTHERWISE
from entrypoints.api.problems import FieldError, HttpProblem

M = TypeVar("M", bound=BaseModel)


def parse(kind: type[M], body: bytes, **known: object) -> M:
    """The command, or whatever else is asked for, in a JSON body.

    Args:
        known: fields that come from elsewhere, and therefore may not be in the body.

    Raises:
        HttpProblem, pydantic.ValidationError: it is malformed.
    """
    try:
        fields = decoded(body)
    except ValueError:
        raise malformed("(body)", "not valid JSON, or a key comes twice", "not-json") from None
    if not isinstance(fields, dict):
        raise malformed("(body)", "not a JSON object", "not-json")
    for name in fields.keys() & known.keys():
        raise malformed(name, "does not belong into the body", "unknown-field")
    return kind.model_validate(fields | known)


def malformed(field: str, message: str, code: str = OTHERWISE) -> HttpProblem:
    """The refusal of a request with a field that is not what it should be."""
    return HttpProblem("invalid-request", errors=[FieldError(field, code, message)])
