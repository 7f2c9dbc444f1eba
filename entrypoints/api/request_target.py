"""The target of a request in the form in which the application knows it: a path, and perhaps a query."""

from __future__ import annotations

import re
from typing import Final

# The authority of an absolute form, without a user, and what follows it.
_ABSOLUTE: Final = re.compile(rb"https?://(?:[^/?#@]*@)?([^/?#@]+)([^#]*)", re.IGNORECASE)
_SLASH: Final = re.compile(rb"%2f", re.IGNORECASE)


def is_plain(target: bytes) -> bool:
    """Is there nothing that `origin_form` would change? So it is in nearly every request."""
    return target[:1] == b"/" and b"%" not in target


def origin_form(target: bytes, method: bytes, headers: list[tuple[bytes, bytes]]) -> bytes:
    """The target as path and query; what is of no form that we know comes back as it is.

    The host that a target names takes the place of `Host` in `headers` (RFC 9112, 3.2.2). A slash that is
    percent-encoded stays so: it separates nothing (RFC 3986, 2.2), and a proxy that lets paths through by their
    beginning does not take it for one either.
    """
    if target[:1] != b"/":
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is None:
            return target
        headers[:] = [*(header for header in headers if header[0] != b"host"), (b"host", absolute[1])]
        target = absolute[2]
        if not target and method == b"OPTIONS":
            return b"*"  # as the last proxy should have written it (RFC 9112, 3.2.4)
        target = target if target[:1] == b"/" else b"/" + target
    path, query, rest = target.partition(b"?")
    return _SLASH.sub(b"%252F", path) + query + rest
