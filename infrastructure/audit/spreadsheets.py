"""Cells for spreadsheets, which run what looks like a formula."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Final

# OWASP, "CSV Injection": at the beginning of a cell =, +, -, @, tab, carriage return, line feed, and the first four in
# full width. A program may take another separator for the separator, and quotes in a cell for its end: so
# the same behind each of these, and behind spaces, which some programs drop.
_FORMULA: Final = re.compile("(^|[,;|\t\r\n\"'])( *)(?=[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20])")


def defused(cell: str) -> str:
    """The text with an apostrophe before everything that a spreadsheet would run; it then shows the text as it is."""
    return _FORMULA.sub(r"\1'\2", cell)


def csv_lines(rows: Iterable[Sequence[object]]) -> bytes:
    """Rows of a CSV file (RFC 4180), every cell in quotes and defused; None is an empty cell."""
    lines = io.StringIO(newline="")
    writer = csv.writer(lines, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writerows(["" if cell is None else defused(str(cell)) for cell in row] for row in rows)
    return lines.getvalue().encode()
