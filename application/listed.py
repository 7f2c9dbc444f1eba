"""Lists that come with the program: the most used passwords, and the domains of disposable addresses.

`application/lists/SOURCES.txt` says where they come from and under which licences; `make lists` brings them up to date.
"""

from __future__ import annotations

import gzip
from functools import cache
from importlib.resources import files
from typing import Literal


@cache
def listed(name: Literal["common-passwords", "disposable-domains"]) -> frozenset[str]:
    """The entries of a list. Read when they are first asked for, within 2 ms; they take 1 to 2 MB (our measurement)."""
    packed = files("application").joinpath("lists", f"{name}.txt.gz").read_bytes()
    return frozenset(gzip.decompress(packed).decode().split("\n"))
