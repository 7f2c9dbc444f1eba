"""Why a server could not be reached, in words: without its text, and without anything of the URL."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator
from typing import Final

from aiosmtplib import SMTPTimeoutError

from entrypoints.cli.checks.finding import PATIENCE

_CERTIFICATE: Final = {
    9: "its certificate is not valid yet",
    10: "its certificate has expired",
    18: "its certificate is signed by itself, and not trusted here",
    19: "its certificate is signed by somebody who is not trusted here",
    20: "its certificate is signed by somebody who is not trusted here",
    21: "its certificate is signed by somebody who is not trusted here",
    62: "its certificate is for another host name",
    64: "its certificate is for another host name",
}
"""By OpenSSL's X509_V_ERR_… numbers."""


def cause_of(error: BaseException) -> str | None:
    """The cause that an operator can do something about, deepest first; None if there is none that we know."""
    for one in reversed(list(_chain(error))):
        if (cause := _cause(one)) is not None:
            return cause
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _cause(error: BaseException) -> str | None:
    match error:
        case ssl.SSLCertVerificationError():
            return _CERTIFICATE.get(error.verify_code, "its certificate is not trusted here")
        case ssl.SSLError():
            return "it does not speak TLS as we do, or not on this port"
        case socket.gaierror():
            return "its name cannot be looked up (DNS)"
        case TimeoutError() | SMTPTimeoutError():
            return f"no answer within {PATIENCE.total_seconds():g} s"
        case OSError() if error.errno == errno.ECONNREFUSED or f"[Errno {errno.ECONNREFUSED}]" in str(error):
            return "connection refused: nothing listens there"
        case OSError() if error.errno in {errno.EHOSTUNREACH, errno.ENETUNREACH}:
            return "no route to it"
        case ConnectionResetError():
            return "it closes the connection"
        case _:
            return None
