"""The envelope's sender of a mail: an address that names it, so that whatever comes back says which it was (VERP).

What a notification says of whom it is about is not believed: anybody can write one. Nobody else can write the address.
"""

from __future__ import annotations

import re
from typing import Final
from uuid import UUID

from application.ports import Secrets

TOKEN: Final = 48
"""Characters of a token (`application.ports.Secrets.bounce_token`)."""

_TAGGED: Final = re.compile(rf"(.*)[+]([A-Za-z2-7]{{{TOKEN}}})", re.DOTALL)


class BounceAddresses:
    """Makes them and reads them.

    Args:
        address: `BOUNCE_ADDRESS`, `bounces@mail.example.org`; what follows a plus sign is the token.
    """

    def __init__(self, address: str, secrets: Secrets) -> None:
        self.address = address
        self._local, _, self.domain = address.rpartition("@")
        self._secrets = secrets

    def of(self, registration_id: UUID, serial: int) -> str:
        """That of an issue's mail: always the same."""
        return f"{self._local}+{self._secrets.bounce_token(registration_id, serial)}@{self.domain}"

    def is_plain(self, address: str) -> bool:
        """Is it `BOUNCE_ADDRESS` itself, which names no mail?"""
        return address.lower() == self.address.lower()

    def mail_of(self, address: str) -> tuple[UUID, int] | None:
        """Registration and serial of the mail that has this address, in letters of either case; None: none has."""
        local, _, domain = address.rpartition("@")
        found = _TAGGED.fullmatch(local)
        if found is None or domain.lower() != self.domain.lower() or found[1].lower() != self._local.lower():
            return None
        return self._secrets.mail_of_bounce_token(found[2])
