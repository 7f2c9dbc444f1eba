"""The certificate of the listener for notifications, read again when its files have changed."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

import structlog

log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_WORDS: Final = {
    "KEY_VALUES_MISMATCH": "the private key is not that of the certificate",
    None: "one of them has no PEM in it, or not what it should have",
}


class BadCertificate(Exception):
    """It cannot be used; the message completes a line and names files."""


class Certificate:
    """What STARTTLS is done with: TLS 1.2 or newer, and no question for the client's certificate.

    Whoever renews it replaces two files, one after the other: until both fit, the former is used.

    Args:
        chain: PEM, the listener's own certificate first.
        key: PEM, not encrypted.

    Raises:
        BadCertificate: it cannot be used.
    """

    def __init__(self, chain: Path, key: Path) -> None:
        self._chain = chain
        self._key = key
        self._seen = self._look()
        self._context = self._read()

    def context(self) -> ssl.SSLContext:
        """That of the files as they are now; of the last ones that could be used where these cannot."""
        seen = self._look()
        if seen != self._seen:
            self._seen = seen
            try:
                self._context = self._read()
            except BadCertificate as error:
                hint = "the former one is used until both files fit; correct them if that does not follow"
                log.warning("bounces.bad_certificate", error=str(error), hint=hint)
            else:
                log.info("bounces.certificate_renewed")
        return self._context

    def _look(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(map(_state, (self._chain, self._key)))

    def _read(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            for path in (self._chain, self._key):
                path.open("rb").close()  # OpenSSL does not say which file is missing
            context.load_cert_chain(self._chain, self._key, password=_encrypted)
        except ssl.SSLError as error:
            what = _WORDS.get(error.reason or None, error.reason)
            raise BadCertificate(f"{self._chain} and {self._key} cannot be used: {what}") from None
        except OSError as error:
            raise BadCertificate(f"{error.filename} cannot be read: {error.strerror}") from None
        return context


def _encrypted() -> str:
    """Instead of OpenSSL, which would ask at the terminal."""
    raise BadCertificate("the private key is encrypted; the service needs it as it is")


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
