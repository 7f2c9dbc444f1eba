"""Tokens that are easy to guess."""

from __future__ import annotations

import random
from base64 import urlsafe_b64encode
from collections.abc import Callable

import pytest

from infrastructure.settings.cautions import cautions, is_easy_to_guess
from infrastructure.settings.settings import Settings


@pytest.mark.parametrize(
    "token",
    [
        *(
            "a",
            "hunter2",
            "changeme",
            "change-me-please-change-me-now",
            "123456789012345678901234",
        ),
        *("a" * 64, "0123456789abcdef" * 4, "abcdefghijklmnopqrstuvwxyz0123456789", "supersecretsupersecret42XY!"),
        *("admin-token-for-production-2026", "your-admin-token-here-0f8c2d", "deadbeefdeadbeefdeadbeefdeadbeef"),
    ],
)
def test_what_people_make_up_is_easy_to_guess(token: str) -> None:
    assert is_easy_to_guess(token)


@pytest.mark.parametrize(
    "token",
    [lambda drawn: drawn.hex(), lambda drawn: urlsafe_b64encode(drawn).decode(), lambda drawn: drawn[:16].hex()],
)
def test_what_is_random_is_not(token: Callable[[bytes], str]) -> None:
    draw = random.Random(7)  # noqa: S311 - repeatable
    guessable = sum(is_easy_to_guess(token(draw.randbytes(32))) for _ in range(1000))
    assert guessable <= 3  # a word may stand in it by chance, or a digit too often


def test_a_warning_does_not_repeat_the_token() -> None:
    (one,) = cautions(Settings.from_environment({"REGISTRAR_ADMIN_TOKEN": "hunter2"}))
    assert "hunter2" not in repr(one)
    assert "openssl rand" in one.advice


def test_a_probe_of_a_service_of_several_processes_needs_to_know_where_to_register() -> None:
    given = {"REGISTRAR_DATABASE_URL": "postgresql://db/registrar", "REGISTRAR_MASTER_KEY": "7" * 64}
    probing = {**given, "REGISTRAR_SYNTHETIC": "1/min"}

    (one,) = cautions(Settings.from_environment(probing))
    assert "REGISTRAR_SYNTHETIC_URL" in one.says
    for said in ({"REGISTRAR_PUBLIC_URL": "https://here.example"}, {"REGISTRAR_SYNTHETIC_URL": "http://proxy:8080"}):
        assert not [*cautions(Settings.from_environment(probing | said))]
    assert not [*cautions(Settings.from_environment(given))]
