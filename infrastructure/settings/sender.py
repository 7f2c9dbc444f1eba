"""Addresses as they go on the wire, and the sender of the mails as operators write it: `no-reply@example.org`,
`Müller & Co. <…>`, `"Acme, Inc." <…>`."""

from __future__ import annotations

import re
from email.errors import MessageError
from email.header import decode_header, make_header

import idna

ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
"""RFC 5322, 3.2.3, as an expression."""
_MAILBOX = re.compile(rf"(?=.{{3,254}}\Z){ATOM}(\.{ATOM})*@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*\Z")


def split_sender(sender: str) -> tuple[str, str]:
    """The name, which may be empty, and the address with its domain in ASCII.

    A name needs no quotes for its dots, commas and letters outside ASCII; in quotes, `\\` escapes.

    Raises:
        ValueError: it is not one address, with or without a name before it. The message completes "MAIL_FROM …".
    """
    text = sender.strip()
    if not text.isprintable():
        raise ValueError("contains a control character or an invisible one")
    head, opening, tail = text.rpartition("<")
    if not (opening and tail.endswith(">")):
        return "", _checked(text)
    return _name(head.strip()), _checked(tail.removesuffix(">").strip())


def _name(typed: str) -> str:
    quoted = re.fullmatch(r'"((?:[^"\\]|\\.)*)"', typed)
    if quoted:
        return re.sub(r"\\(.)", r"\1", quoted[1])
    if re.search("[<>@]", typed):
        raise ValueError("has a < > or @ in its name, which needs quotes around it; or it is more than one address")
    if "=?" in typed:
        try:
            decoded = str(make_header(decode_header(typed)))
        except (MessageError, ValueError, LookupError):
            decoded = "\0"
        if not decoded.isprintable():
            raise ValueError("has a name in an encoding that cannot be read; write it in UTF-8 as it is")
        return decoded
    return typed


def _checked(typed: str) -> str:
    try:
        return mailbox(typed)
    except ValueError:
        raise ValueError("is not a mail address, with or without a name before it") from None


def mailbox(address: str) -> str:
    """The address as it goes on the wire: a dot-string at a domain in ASCII (RFC 5321, 4.1.2), nothing else.

    Checked again here, at the last moment: aiosmtplib turns `v@x.test\\r\\nRCPT TO:<e@x>` into `v@x.test` and sends it.

    Raises:
        ValueError: it is not such an address; the message does not repeat it.
    """
    local, at, domain = address.rpartition("@")
    if not domain.isascii():
        try:
            domain = idna.encode(domain, uts46=True).decode("ascii")
        except idna.IDNAError:
            raise ValueError("not a domain name") from None
    wire = f"{local}{at}{domain}"
    # An encoded word (RFC 2047) is not allowed in an address, but a program that decodes it would show another one.
    if not _MAILBOX.match(wire) or len(local) > 64 or "=?" in wire:
        raise ValueError("not a mailbox")
    return wire
