"""What code and documents refer to is in the repository, and says what they refer to it for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("domain", "application", "projections", "infrastructure", "entrypoints", "tests", "bench", "findings")
OTHERS = ("docs", "examples", "deploy", "scripts", ".ci")
TEXT = {"", ".conf", ".html", ".md", ".py", ".service", ".sh", ".sql", ".toml", ".txt", ".yaml"}

DOCUMENT = re.compile(r'(?<![\w./:"-])((?:\.\./)*(?:[\w-]+/)*[\w-]+\.md|docs/[\w./-]*\w)\b')
ROWS = re.compile(r"(docs/\w+\.md), ((?:row )?[A-Z]\d+(?:(?:, | and | to )[A-Z]\d+)*)")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([\w-]+))?\)")
SOURCE = re.compile(r"`((?:[\w.-]+/)+(?:[\w@-]+\.(?:py|sql|yaml|conf|service))?)(?:::(\w+))?`")
PATH = re.compile(rf"(?<![\w./:-])((?:{'|'.join(FOLDERS)})/(?:[\w-]+/)*[\w-]+\.(?:py|sql))\b")
NAME_IN = re.compile(rf"`(\w+)` in {PATH.pattern}")
OF_EARLIER_RELEASES = ROOT / "tests" / "releases"


def texts() -> Iterator[tuple[Path, str]]:
    """Every file that people write, and what is in it."""
    files = [file for file in ROOT.iterdir() if file.is_file()]
    files += [file for folder in (*FOLDERS, *OTHERS) for file in (ROOT / folder).rglob("*") if file.is_file()]
    for file in files:
        if file.suffix in TEXT and "__pycache__" not in file.parts and file != Path(__file__):
            yield file, file.read_text(encoding="utf-8")


def documents() -> Iterator[tuple[Path, str]]:
    return ((file, text) for file, text in texts() if file.suffix == ".md")


def found(name: str, file: Path) -> Path | None:
    """What a name in this file refers to; tests may be named from their folder on."""
    places = (ROOT, file.parent, ROOT / "tests")
    return next((place / name for place in places if (place / name).exists()), None)


def test_every_document_that_is_named_is_in_the_repository() -> None:
    missing = {
        f"{file.relative_to(ROOT)}: {name}"
        for file, text in texts()
        for name in DOCUMENT.findall(text)
        if found(name, file) is None
    }
    assert missing == set()


def test_every_row_that_is_named_is_in_its_document() -> None:
    missing = {
        f"{file.relative_to(ROOT)}: {name}, {row}"
        for file, text in texts()
        for name, rows in ROWS.findall(text)
        for row in re.findall(r"[A-Z]\d+", rows)
        if f"| {row} |" not in (ROOT / name).read_text(encoding="utf-8")
    }
    assert missing == set()


def test_every_link_leads_to_a_file_and_a_heading() -> None:
    broken = set()
    for file, text in documents():
        for name, heading in LINK.findall(text):
            target = file.parent / name if name else file
            if not target.exists() or (heading and heading not in headings(target)):
                broken.add(f"{file.relative_to(ROOT)}: {name}#{heading}")
    assert broken == set()


def headings(file: Path) -> set[str]:
    """The anchors of a document's headings, as they are made on the web."""
    titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_source_and_test_that_a_document_names_exists() -> None:
    missing = set()
    for file, text in documents():
        for name, function in SOURCE.findall(text):
            if name.partition("/")[0] not in {*FOLDERS, *OTHERS} and not name.endswith(".py"):
                continue
            source = found(name, file)
            if source is None or (function and f"def {function}(" not in source.read_text(encoding="utf-8")):
                missing.add(f"{file.relative_to(ROOT)}: {name}::{function}")
    assert missing == set()


def test_every_source_that_code_names_exists_and_defines_what_it_is_named_for() -> None:
    missing = set()
    for file, text in texts():
        if file.suffix not in {".py", ".sql"} or OF_EARLIER_RELEASES in file.parents:
            continue
        missing |= {f"{file.relative_to(ROOT)}: {name}" for name in PATH.findall(text) if not (ROOT / name).exists()}
        for name, source in NAME_IN.findall(text):
            definition = re.compile(
                rf"\b(?:def|class|FUNCTION|TABLE) (?:public\.)?{name}\b|^{name}\b.* = ", re.MULTILINE
            )
            if not definition.search((ROOT / source).read_text(encoding="utf-8")):
                missing.add(f"{file.relative_to(ROOT)}: `{name}` in {source}")
    assert missing == set()


def test_every_line_of_help_fits_a_terminal() -> None:
    described = re.findall(r"^([a-z-]+):.*## (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {target for target, words in described if 14 + len(words) > 80} == set()
    assert len(described) > 10


def test_every_decision_is_in_the_table_of_its_document_once() -> None:
    text = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8")
    titles = [f"{day} {title}" for day, title in re.findall(r"^\*\*2026-11-(\d\d) · (.*?)\*\*", text, re.MULTILINE)]
    rows = re.findall(r"^\| [^|]+ \| (\d\d [^|]+) \|", text, re.MULTILINE)
    listed = [beginning for row in rows for beginning in row.strip().split(" · ")]
    assert [title for title in titles if sum(title.startswith(beginning) for beginning in listed) != 1] == []
    assert [one for one in listed if not any(title.startswith(one) for title in titles)] == []


@pytest.mark.parametrize("document", ["contract.md", "settings.md"])
def test_every_setting_is_in_the_documents(document: str) -> None:
    settings = json.loads((ROOT / "tests" / "golden" / "names" / "settings.json").read_text())
    text = (ROOT / "docs" / document).read_text(encoding="utf-8")
    names = [name.removeprefix("REGISTRAR_") for name in settings]
    assert names
    # The table of settings says once that a name with `_FILE` names a file.
    assert [name for name in names if f"`{name}`" not in text and f"`{name.removesuffix('_FILE')}`" not in text] == []


def test_of_the_schemas_of_an_answer_one_that_requires_more_comes_first() -> None:
    """A client for Python takes the first that fits: findings/openapi-python-client-takes-the-first-that-fits.sh."""
    document = json.loads((ROOT / "docs" / "openapi.json").read_text())
    alternatives = [
        content["schema"]["anyOf"]
        for path in document["paths"].values()
        for operation in path.values()
        for response in operation["responses"].values()
        for content in response.get("content", {}).values()
        if "anyOf" in content.get("schema", {})
    ]
    schemas = document["components"]["schemas"]
    required = [[set(schemas[one["$ref"].rpartition("/")[2]]["required"]) for one in found] for found in alternatives]

    assert required
    assert not [found for found in required for earlier, later in combinations(found, 2) if earlier < later]
