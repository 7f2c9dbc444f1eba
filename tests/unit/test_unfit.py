"""What is wrong with a field: a code that stays and a sentence of ours, whatever library found it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_core.core_schema import ErrorType

from application.commands import RegisterUser
from application.unfit import _PLAIN, CODES, fault

ROOT = Path(__file__).parents[2]
ADA = {"email": "ada@example.com", "name": "Ada Lovelace"}
CANARY = "hunter2-canary"


def errors_of(**fields: Any) -> list[ErrorDetails]:
    with pytest.raises(ValidationError) as refused:
        RegisterUser.model_validate(ADA | fields)
    return refused.value.errors(include_url=False, include_input=False)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"email": f"{CANARY}@"}, "invalid-address"),
        ({"email": f"{CANARY}@{'a' * 250}.example"}, "too-long"),
        ({"email": 7}, "wrong-type"),
        ({"name": "\x00"}, "invalid-characters"),
        ({"name": "a" * 201}, "too-long"),
        ({"password": "hunter2"}, "too-short"),
        ({"password": "a" * 129}, "too-long"),
        ({"password": "aaaaaaaaaaaa"}, "too-easy"),
        ({"password": "password1"}, "too-common"),
        ({"locale": "not a locale"}, "invalid-locale"),
        ({CANARY: CANARY}, "unknown-field"),
    ],
)
def test_each_fault_of_a_registration_has_its_code_and_a_sentence_of_ours(fields: dict[str, Any], code: str) -> None:
    [error] = errors_of(**fields)
    found = fault(error)
    assert found.code == code
    assert CANARY not in found.message
    assert not re.search("[Ii]nput|[Ff]ield required|[Ss]tring|parse|permitted", found.message)


def test_what_is_missing_is_said_to_be() -> None:
    with pytest.raises(ValidationError) as refused:
        RegisterUser.model_validate({"email": "ada@example.com"})
    assert fault(refused.value.errors()[0]) == ("missing", "is missing")


def test_every_kind_of_the_library_that_is_named_exists_and_has_a_code_that_is_listed() -> None:
    assert set(_PLAIN) <= set(get_args(ErrorType))
    assert {code for code, _ in _PLAIN.values()} <= set(CODES)
    assert fault({"type": "some_new_kind", "ctx": {"given": CANARY}}) == ("invalid-value", "cannot be used")


def test_the_contract_lists_every_code() -> None:
    contract = (ROOT / "docs" / "contract.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `([a-z-]+)` \| (.+) \|$", contract.partition("### Codes of fields")[2], re.MULTILINE)
    assert dict(told[1 : len(CODES) + 1]) == dict(CODES)
