"""Databases as earlier releases left them, and the code that did."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import psycopg
from psycopg import sql

_HERE = Path(__file__).parents[2]

FORMER = "620e81d"
"""The commit of release 0.1.0, whose scripts had no numbers."""

FORMER_SCRIPTS = {path.stem: path.read_text() for path in sorted(_HERE.glob("tests/releases/0.1.0/*.sql"))}
"""What release 0.1.0 ran on every database, by the names that it recorded."""


def make_as_former(connection: psycopg.Connection) -> None:
    """Everything that release 0.1.0 makes in an empty database, as it did it."""
    connection.execute("CREATE TABLE schema_scripts (name text PRIMARY KEY, digest text NOT NULL)")
    for name, script in FORMER_SCRIPTS.items():
        with connection.transaction():
            if name.startswith("read_"):
                connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
                connection.execute(sql.SQL("SET LOCAL search_path = {}, public").format(sql.Identifier(name)))
            connection.execute(script.encode())
            digest = sha256(script.encode()).hexdigest()
            connection.execute("INSERT INTO public.schema_scripts VALUES (%s, %s)", (name, digest))


def former_code(directory: Path) -> Path | None:
    """The code of release 0.1.0, taken from the history into a directory; None where there is no history."""
    archive = subprocess.run(["git", "archive", FORMER], cwd=_HERE, capture_output=True, check=False)
    if archive.returncode != 0:
        return None
    subprocess.run(["tar", "--extract"], input=archive.stdout, cwd=directory, check=True)
    return directory


def run_from(code: Path, *, unknown: Sequence[str] = ()) -> tuple[str, ...]:
    """What runs the command after it with other code of ours: `(*run_from(code), "registrar", "serve")`.

    Args:
        unknown: variables that this code would refuse as no settings, which are not passed on to it.
    """
    program = (
        f"import os, sys; [os.environ.pop(name, None) for name in {[*unknown]!r}]; "
        f"sys.path.insert(0, {str(code)!r}); del sys.argv[0]; from entrypoints.cli import main; main()"
    )
    return (sys.executable, "-c", program)
