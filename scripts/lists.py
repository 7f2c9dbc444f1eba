"""Makes the lists in `application/lists/` anew, from the newest releases of the packages that keep them.

Run with `make lists`. The packages' code is never run: their wheels are unpacked, and the data is read from them.
"""

from __future__ import annotations

import ast
import gzip
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from application.passwords import MIN_CHARACTERS, folded  # noqa: E402 - the path is set above

LISTS = ROOT / "application" / "lists"
DJANGO = "django/contrib/auth/common-passwords.txt.gz"

HEADER = """\
What the lists in this folder are made of, by scripts/lists.py; one entry a line, sorted, compressed with gzip.

common-passwords.txt.gz: {passwords:,} passwords of eight characters and more, in NFKC and case-folded, from
  Django {django}: 20,000 common passwords, collected by Royce Williams (BSD-3-Clause, below)
  zxcvbn {zxcvbn}: 30,000 common passwords, collected by Dropbox (MIT, below)
disposable-domains.txt.gz: {domains:,} domains, from
  disposable-email-domains {disposable}: github.com/disposable-email-domains (list: CC0-1.0; package: MIT, below)
"""


def main() -> None:
    """Writes the lists and `SOURCES.txt`."""
    with tempfile.TemporaryDirectory() as folder:
        wheels = {name: _wheel(name, Path(folder)) for name in ("django", "zxcvbn", "disposable-email-domains")}
        django, zxcvbn, disposable = wheels.values()
        common = gzip.decompress(django.read(DJANGO)).decode().split()
        frequent = _joined(zxcvbn.read("zxcvbn/frequency_lists.py"), "passwords").split(",")
        passwords = _write(
            "common-passwords", (word for word in map(folded, common + frequent) if len(word) >= MIN_CHARACTERS)
        )
        domains = _write(
            "disposable-domains", ast.literal_eval(_assigned(disposable.read("disposable_email_domains/__init__.py")))
        )
        versions = {name: str(wheel.filename).split("-")[-4] for name, wheel in wheels.items()}
        header = HEADER.format(
            passwords=passwords,
            domains=domains,
            django=versions["django"],
            zxcvbn=versions["zxcvbn"],
            disposable=versions["disposable-email-domains"],
        )
        licences = [f"{'-' * 80}\n{name}\n\n{_licence(wheel)}" for name, wheel in wheels.items()]
        (LISTS / "SOURCES.txt").write_text("\n".join([header, *licences]), encoding="utf-8")


def _wheel(name: str, folder: Path) -> ZipFile:
    """The newest release of a package, which may be for another Python: it is not installed."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        f"--dest={folder}",
    ]
    subprocess.run([*command, name], check=True)  # noqa: S603 - the names above
    return ZipFile(next(folder.glob(f"{name.replace('-', '_')}-*.whl")))


def _assigned(source: bytes) -> ast.expr:
    """What a module that is nothing but data assigns to its first name."""
    return next(node.value for node in ast.parse(source).body if isinstance(node, ast.Assign))


def _joined(source: bytes, name: str) -> str:
    """One entry of `{"name": "one,two,three".split(",")}`, before it is split."""
    found = _assigned(source)
    assert isinstance(found, ast.Dict)  # noqa: S101 - or the package has changed
    entry = next(value for key, value in zip(found.keys, found.values, strict=True) if ast.literal_eval(key) == name)
    return max((node.value for node in ast.walk(entry) if isinstance(node, ast.Constant)), key=len)


def _licence(wheel: ZipFile) -> str:
    names = sorted(name for name in wheel.namelist() if Path(name).name in {"LICENSE", "LICENSE.txt"})
    return wheel.read(names[0]).decode().strip() + "\n"


def _write(name: str, entries: Iterable[str]) -> int:
    """Write them, and say how many; the same entries always give the same bytes."""
    lines = sorted(set(entries))
    (LISTS / f"{name}.txt.gz").write_bytes(gzip.compress("\n".join(lines).encode(), 9, mtime=0))
    return len(lines)


if __name__ == "__main__":
    main()
