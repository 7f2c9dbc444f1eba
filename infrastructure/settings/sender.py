"""The sender of the mails, as operators write it: `no-reply@example.org`, `Müller & Co. <…>`, `"Acme, Inc." <…>`."""

from __future__ import annotations

import re
from email.errors import MessageError
from email.header import decode_header, make_header

import email_validator


def split_sender(sender: str) -> tuple[str, str]:
    """The name, which may be empty, and the address with its domain in ASCII.

    A name needs no quotes for its dots, commas and letters outside ASCII; in quotes, `\\` escapes.

    Raises:
        ValueError: it is not one address, with or without a name before it. The message completes "MAIL_FROM …".
    """
    text = sender.strip()
    if not text.isprintable():
        raise ValueError("contains a control character or an invisible one")
    head, _, tail = text.rpartition("<")
    if not tail.endswith(">"):
        return "", _address(text)
    return _name(head.strip()), _address(tail.removesuffix(">").strip())


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


def _address(typed: str) -> str:
    try:
        # What matters is that it fits a header. `registrar.localhost` and the like are fine for a first try, but no
        # option of the library accepts them.
        validated = email_validator.validate_email(
            re.sub(r"\.localhost$", ".example", typed),
            allow_smtputf8=False,
            check_deliverability=False,
            globally_deliverable=False,
        )
    except email_validator.EmailNotValidError:
        raise ValueError("is not a mail address, with or without a name before it") from None
    if "=?" in validated.local_part:
        raise ValueError("is not a mail address, with or without a name before it")
    return typed if typed.endswith(".localhost") else f"{validated.local_part}@{validated.ascii_domain}"
