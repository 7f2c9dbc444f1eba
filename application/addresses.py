"""Mail addresses: which ones are accepted, and the canonical form by which they are compared."""

import re
from functools import lru_cache

from email_validator import EmailNotValidError, validate_email

from application.unfit import Unfit

MAX_LENGTH = 254
"""RFC 5321 4.5.3.1.3 (a path of 256 octets, less the angle brackets); checked before parsing."""

MAX_LOCAL = 64
"""RFC 5321 4.5.3.1.1."""

_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_DOT_STRING = re.compile(rf"{_ATOM}(?:\.{_ATOM})*")
"""RFC 5321 4.1.2; each character can be matched in one way only, so it takes linear time."""


def parse_address(typed: str) -> str:
    """The address to send to: local part as typed, domain in lower-case ASCII (IDNA 2008).

    Raises:
        Unfit: not an address that can be sent to. Non-ASCII local parts are refused: they need SMTPUTF8 on
            every server on the way, and look-alike letters in them are an old trick.
    """
    if len(typed) > MAX_LENGTH:
        raise Unfit("too-long", "too long: an address has at most 254 characters")
    local, _, domain = typed.rpartition("@")
    if "=?" in local:  # an encoded word (RFC 2047), which some readers would show as another address
        raise Unfit("invalid-address", "not a valid mail address")
    if _DOT_STRING.fullmatch(local):
        # Such a local part needs no further check, and most people share a few domains.
        address = f"{local}@{_ascii_domain(domain)}"
    else:
        local, address = _validated(typed)
    if len(local) > MAX_LOCAL or len(address) > MAX_LENGTH:
        raise Unfit("too-long", "too long: an address has at most 254 characters, 64 of them before the @")
    return address


@lru_cache(maxsize=4096)
def _ascii_domain(domain: str) -> str:
    return _validated(f"a@{domain}")[1].removeprefix("a@")


def forget_domains() -> None:
    """Forget the domains of addresses that were parsed: one of them may be a single person's."""
    _ascii_domain.cache_clear()


def _validated(typed: str) -> tuple[str, str]:
    """Local part and address in ASCII, from the library."""
    try:
        address = validate_email(typed, check_deliverability=False, allow_smtputf8=False)
    except EmailNotValidError:
        # The library's messages quote the address.
        raise Unfit("invalid-address", "not a valid mail address") from None
    if address.ascii_email is None:
        raise Unfit("invalid-address", "not a valid mail address")
    return address.local_part, address.ascii_email


def canonical_address(address: str) -> str:
    """The form under which an address is claimed: that of `parse_address` (ASCII only), all in lower case.

    Tags and dots stay: only the mail server of the domain knows whether `a.b+c@` is `ab@`.
    """
    return address.lower()


def mailbox_guess(canonical: str) -> str:
    """The mailbox that a canonical address may lead to: without tag (RFC 5233) and without dots in its local part.

    Only to count mails by: where the guess is wrong, two people share a budget, and nobody gets another's account.
    """
    local, _, domain = canonical.rpartition("@")
    base = local.partition("+")[0].replace(".", "") or local
    return f"{base}@{domain}"


def masked_address(address: str) -> str:
    """The address so that its owner recognises it and others learn little: `a•••@example.com`."""
    local, _, domain = address.rpartition("@")
    return f"{local[:1]}•••@{domain}"
