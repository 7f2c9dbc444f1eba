"""What is exported runs nowhere as a formula (OWASP, CSV injection)."""

from __future__ import annotations

import csv
import io

import pytest

from infrastructure.audit.spreadsheets import csv_lines, defused


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("ticket 4711", "ticket 4711"),
        ("2026-03-01T12:00:00+00:00", "2026-03-01T12:00:00+00:00"),
        ("a - b = c", "a - b = c"),
        ('{"serial":1,"kind":"code"}', '{"serial":1,"kind":"code"}'),
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t'=1"),
        ("\r=1", "'\r'=1"),
        ("\n=1", "'\n'=1"),
        (" =1", "' =1"),
        ("\uff1d1", "'\uff1d1"),
        ("\uff0b1", "'\uff0b1"),
        ("\uff0d1", "'\uff0d1"),
        ("\uff20A", "'\uff20A"),
        ('x";=cmd|"/c calc"!A1', 'x";\'=cmd|"/c calc"!A1'),
        ("x,=1", "x,'=1"),
        ("x; =1", "x;' =1"),
        ("x|-1", "x|'-1"),
        ("it's '=1'", "it's ''=1'"),
        ('{"reason":"=1"}', '{"reason":"\'=1"}'),
        ("", ""),
    ],
)
def test_what_a_spreadsheet_would_run_it_shows(text: str, cell: str) -> None:
    assert defused(text) == cell


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_no_cell_begins_with_a_formula_whatever_program_reads_it(separator: str) -> None:
    bad = ['=HYPERLINK("http://x")', 'a";=1', "a,=1", "a\t=1", "a\n=1", 'a","=1', "a;@x", '"=1']
    text = csv_lines([bad]).decode()

    for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator):
        for cell in row:
            assert not cell.lstrip(' "').startswith(("=", "+", "-", "@", "\t", "\r", "\n"))


def test_a_row_is_read_again_as_it_was_but_for_the_apostrophes() -> None:
    text = csv_lines([["a", 'b "c", d', None, 7, "line\nbreak"]]).decode()

    assert [*csv.reader(io.StringIO(text, newline=""))] == [["a", 'b "c", d', "", "7", "line\nbreak"]]
