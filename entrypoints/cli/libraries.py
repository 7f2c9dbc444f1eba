"""Libraries, loaded without what they load for others than us.

Together it was a tenth of the CPU of what `serve` imports, and 5 MiB (our measurement, 2026-11-29).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import BaseModel


def load_structlog() -> None:
    """Load structlog without rich, which it has for tracebacks with the values of variables: those we never log.

    It is made to do without.
    """
    if "structlog" not in sys.modules:
        with _missing("rich"):
            importlib.import_module("structlog")


def load_fastapi() -> None:
    """Load FastAPI, and have it build the models of OpenAPI documents when there is a document to make."""
    with _models_are_built_when_used():
        importlib.import_module("fastapi")


def load_faststream() -> None:
    """Load FastStream without uvicorn, which it would run applications of its own with (1 MiB)."""
    with _missing("uvicorn"):
        importlib.import_module("faststream.rabbit")


@contextmanager
def without_pydantic_v1() -> Iterator[None]:
    """For an application that is made in the block: FastAPI loads all of it, to refuse its models (2 MiB, 12 ms)."""
    with _missing("pydantic.v1"):
        yield


@contextmanager
def _missing(name: str) -> Iterator[None]:
    """An import of this module, unless it is there already, is an ImportError."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


@contextmanager
def _models_are_built_when_used() -> Iterator[None]:
    """Subclasses of `BaseModel` inherit its configuration as it is while they are made."""
    BaseModel.model_config["defer_build"] = True
    try:
        yield
    finally:
        del BaseModel.model_config["defer_build"]
