"""What the code says about the tables of the read models is what their scripts make."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from datetime import timedelta
from types import ModuleType
from typing import Any

import pytest

import projections
from infrastructure.event_store.codec import event_classes
from infrastructure.postgres.connection import connect
from projections import PROJECTIONS
from projections.audit import Audit
from projections.mail import Mails
from projections.table import Table

MODELS: dict[str, type[Any]] = {model.__module__: model for model in PROJECTIONS} | {"projections.strays": Mails}
MODULES = [importlib.import_module(f"projections.{found.name}") for found in pkgutil.iter_modules(projections.__path__)]
OF_MODELS = [module for module in MODULES if module.__name__ in MODELS]


def tables_of(module: ModuleType) -> list[Table]:
    """The tables that stand in this module itself."""
    assigned = {
        target.id
        for node in ast.parse(inspect.getsource(module)).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return [table for name, table in vars(module).items() if name in assigned and isinstance(table, Table)]


async def test_every_table_has_the_columns_that_its_scripts_make_in_their_order_and_of_their_types(dsn: str) -> None:
    said = {
        (MODELS[module.__name__]().schema, table.name): list(table.columns.items())
        for module in OF_MODELS
        for table in tables_of(module)
    }

    made: dict[tuple[str, str], list[tuple[str, str]]] = {}
    async with await connect(dsn, name="test", statement_timeout=timedelta(seconds=10)) as connection:
        catalog = await connection.execute(
            "SELECT n.nspname::text, c.relname::text, a.attname::text, format_type(a.atttypid, a.atttypmod)"
            " FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace"
            " WHERE n.nspname LIKE 'read\\_%' AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"
        )
        for schema, table, column, kind in await catalog.fetchall():
            short = "timestamptz" if kind == "timestamp with time zone" else kind
            made.setdefault((schema, table), []).append((column, short))
    assert said == made


@pytest.mark.parametrize("module", OF_MODELS, ids=lambda module: module.__name__)
def test_a_read_model_is_given_every_event_that_it_names(module: ModuleType) -> None:
    classes = {cls.__qualname__: topic for topic, cls in event_classes().items()}
    named = {
        classes[f"{node.value.id}.{node.attr}"]
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and f"{node.value.id}.{node.attr}" in classes
    }
    assert named

    topics = MODELS[module.__name__].topics
    assert named <= set(classes.values() if topics is None else topics)
    assert (topics is None) == (MODELS[module.__name__] is Audit)
