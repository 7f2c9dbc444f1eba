"""Dataclasses whose methods are compiled when they are called do what dataclasses do."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from entrypoints.cli.dataclass_methods import compile_when_called

pytestmark = pytest.mark.skipif(sys.version_info >= (3, 13), reason="this Python compiles a class at once")


@pytest.fixture
def lazily() -> Iterator[None]:
    create = vars(dataclasses)["_create_fn"]
    compile_when_called()
    yield
    vars(dataclasses)["_create_fn"] = create


def pair(*, slots: bool) -> tuple[type[Any], type[Any]]:
    """A frozen dataclass and one derived from it."""
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = [
        ("number", int),
        ("text", str, dataclasses.field(default="", repr=False)),
    ]
    base = dataclasses.make_dataclass("Base", fields, frozen=True, slots=slots)
    derived = dataclasses.make_dataclass("Derived", [("more", tuple, ())], bases=(base,), frozen=True, slots=slots)
    return base, derived


@pytest.mark.parametrize("slots", [False, True])
@pytest.mark.usefixtures("lazily")
def test_they_are_printed_compared_and_hashed_as_ever(slots: bool) -> None:
    base, derived = pair(slots=slots)
    for _ in range(2):  # the first call compiles
        assert repr(base(1, "a")) == "Base(number=1)"
        assert repr(derived(1, "a", (2,))) == "Derived(number=1, more=(2,))"
        assert base(1) == base(1) != base(2)
        assert base(1) != derived(1)
        assert hash(derived(1)) == hash(derived(1)) != hash(derived(2))


@pytest.mark.parametrize("slots", [False, True])
@pytest.mark.usefixtures("lazily")
def test_they_cannot_be_changed(slots: bool) -> None:
    for kind in pair(slots=slots):
        one = kind(1)
        for _ in range(2):
            with pytest.raises(dataclasses.FrozenInstanceError):
                one.number = 2
            with pytest.raises(dataclasses.FrozenInstanceError):
                del one.number
        assert one.number == 1


@pytest.mark.usefixtures("lazily")
def test_a_method_is_compiled_once_and_then_is_the_class_s_own() -> None:
    base, _ = pair(slots=False)
    before = base.__eq__
    assert base(1) == base(1)
    assert base.__eq__ is not before
    assert base.__eq__.__qualname__ == "Base.__eq__"
    assert base.__eq__.__code__.co_filename == "<string>"  # as `dataclasses` makes them
