"""A file of users from another system: JSON, one object a line; read with bounded memory, and checked line by line.

Nothing that is said about a line repeats what is in it.
"""

from __future__ import annotations

import hmac
import os
import sqlite3
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any, Final, NamedTuple

from pydantic import ValidationError

from application.commands import ImportedUser
from application.strict_json import decoded
from application.unfit import fault
from infrastructure.crypto.password_hashes import UnknownHash, parse_hash

MAX_LINE_BYTES: Final = 16 << 10
"""As many as a request to register may have."""

_BOM: Final = b"\xef\xbb\xbf"
_CHUNK: Final = 1 << 20
_PAGES: Final = -32_768
"""KiB of addresses' digests that are in memory; the others are in a temporary file."""


class Problem(NamedTuple):
    """Why a line cannot be taken over; `field` is empty where it is about the whole line."""

    line: int
    field: str
    reason: str

    def __str__(self) -> str:
        where = f"line {self.line}: {self.field}" if self.field else f"line {self.line}"
        return f"{where}: {self.reason}"


class UserLine(NamedTuple):
    line: int
    user: ImportedUser


class Changed(Exception):
    """The file is not as it was when it was checked; one line, fit to show."""


def users_in(file: IO[bytes]) -> Iterator[UserLine | list[Problem]]:
    """Every line that is not blank: whom it is about, or what is wrong with it."""
    for number, line in _lines(file):
        if line is None:
            yield [Problem(number, "", f"longer than {MAX_LINE_BYTES} bytes")]
        elif text := line.strip():
            yield _read(number, text)


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """The lines with their numbers; None stands for one that is too long."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if line.endswith(b"\n") or len(line) <= MAX_LINE_BYTES:
            yield number, line.removeprefix(_BOM) if number == 1 else line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(_CHUNK)
        yield number, None


def _read(number: int, text: bytes) -> UserLine | list[Problem]:
    try:
        user = ImportedUser.model_validate(decoded(text))
    except ValidationError as errors:
        return [Problem(number, *_said(one)) for one in errors.errors(include_input=False, include_url=False)]
    except ValueError:
        return [Problem(number, "", "not JSON in UTF-8, or a key comes twice")]
    if user.password_hash is not None:
        try:
            parse_hash(user.password_hash)
        except UnknownHash as error:
            return [Problem(number, "password_hash", str(error))]
    return UserLine(number, user)


def _said(error: Mapping[str, Any]) -> tuple[str, str]:
    """The field and the reason; the name of a field that is not ours may be somebody's."""
    place = error["loc"]
    if error["type"] == "extra_forbidden":
        return "", "has a field that is not known"
    if not place or place[0] not in ImportedUser.model_fields:
        return "", "not a JSON object"
    return str(place[0]), fault(error).message


# --- The whole file ---------------------------------------------------------------------------


@dataclass(slots=True)
class Checked:
    """A file of which every line was looked at.

    Attributes:
        sound: how many lines can be taken over, each of another address.
        skipped: how many cannot.
    """

    _numbers: IO[bytes]
    sound: int = 0
    skipped: int = 0

    def leave_out(self, line: int) -> None:
        self.skipped += 1
        self._numbers.write(array("Q", [line]).tobytes())

    def left_out(self) -> Iterator[int]:
        """The numbers of the lines that cannot be taken over, in order."""
        self._numbers.seek(0)
        while chunk := self._numbers.read(1 << 13):
            yield from array("Q", chunk)

    def portions(self, file: IO[bytes], size: int) -> Iterator[tuple[ImportedUser, ...]]:
        """The users of all other lines, so many at a time.

        Raises:
            Changed: the file is another one by now.
        """
        file.seek(0)
        users = self._users(file)
        while portion := tuple(islice(users, size)):
            yield portion

    def _users(self, file: IO[bytes]) -> Iterator[ImportedUser]:
        left_out = self.left_out()
        skip = next(left_out, 0)
        for found in users_in(file):
            line = found.line if isinstance(found, UserLine) else found[0].line
            if line == skip:
                skip = next(left_out, 0)
            elif isinstance(found, UserLine):
                yield found.user
            else:
                raise Changed(f"line {line} is not as it was when it was checked")


def check(
    file: IO[bytes],
    numbers: IO[bytes],
    *,
    same: Callable[[ImportedUser], str],
    on_problems: Callable[[Iterable[Problem]], None],
    on_line: Callable[[int], None],
) -> Checked:
    """Look at every line.

    Args:
        numbers: an empty file, for the numbers of lines that are left out.
        same: the form by which addresses are compared.
        on_problems: called with what is wrong with a line.
        on_line: called with the number of each line that is not blank.
    """
    checked = Checked(numbers)
    with closing(_Seen()) as seen:
        for found in users_in(file):
            if isinstance(found, UserLine):
                line = found.line
                earlier = seen.earlier(same(found.user), line)
                problems = [Problem(line, "email", f"the same as in line {earlier}")] if earlier else []
            else:
                line, problems = found[0].line, found
            if problems:
                checked.leave_out(line)
                on_problems(problems)
            else:
                checked.sound += 1
            on_line(line)
    return checked


class _Seen:
    """In which line each address came first: keyed digests of 64 bits, in memory as far as they fit in some pages."""

    def __init__(self) -> None:
        self._key = os.urandom(32)
        # A database without a name is a temporary file that is gone when it is closed; the thread changes, one at a
        # time.
        self._database: Any = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for setting in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = {_PAGES}"):
            self._database.execute(f"PRAGMA {setting}")
        self._database.execute("CREATE TABLE seen (address INTEGER PRIMARY KEY, line INTEGER NOT NULL)")
        self._database.execute("BEGIN")

    def earlier(self, address: str, line: int) -> int | None:
        """The line before this one that had the address; None: this is the first."""
        digest = hmac.digest(self._key, address.encode(), "sha256")
        number = int.from_bytes(digest[:8], "big", signed=True)
        added = self._database.execute("INSERT INTO seen VALUES (?, ?) ON CONFLICT DO NOTHING", (number, line))
        if added.rowcount:
            return None
        found = self._database.execute("SELECT line FROM seen WHERE address = ?", (number,)).fetchone()
        return int(found[0])

    def close(self) -> None:
        self._database.close()
