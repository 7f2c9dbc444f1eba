"""Letters: their words in the reader's language, and their bytes for the mail server.

Nothing that a registrant typed is in a letter but the address it goes to: whoever registers somebody else's address
must not be able to send them a word (`docs/security.md`, S10 and S13). The subject does not carry the code, so that
a locked screen does not show it.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from email.message import EmailMessage
from email.policy import SMTP as SMTP_POLICY
from email.utils import format_datetime
from functools import lru_cache
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Final, Literal, NamedTuple

import idna
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from application.ports import Letter

Language = Literal["en", "de"]

# --- Words -----------------------------------------------------------------------------------------

_SUBJECTS: Final[dict[tuple[str, Language], str]] = {
    ("code", "en"): "Your confirmation code",
    ("code", "de"): "Ihr Bestätigungscode",
    ("notice", "en"): "You already have an account",
    ("notice", "de"): "Sie haben bereits ein Konto",
}
_UNITS: Final[dict[Language, tuple[tuple[int, str, str], ...]]] = {
    "en": ((3600, "hour", "hours"), (60, "minute", "minutes"), (1, "second", "seconds")),
    "de": ((3600, "Stunde", "Stunden"), (60, "Minute", "Minuten"), (1, "Sekunde", "Sekunden")),
}
_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=select_autoescape(["html"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    keep_trailing_newline=True,
    auto_reload=False,
)
_GAP: Final = "\x1a"
"""Where the code goes: SUBSTITUTE, which no template has, and no URL."""


class Rendered(NamedTuple):
    subject: str
    text: str
    html: str


def language_of(locale: str | None) -> Language:
    """The language that we write in to somebody who asked for `locale`, a BCP 47 tag; English if it is another."""
    return "de" if locale is not None and re.match(r"de(?![^-_])", locale, re.IGNORECASE) else "en"


def render_code(locale: str | None, code: str, ttl: timedelta, public_url: str) -> Rendered:
    """The mail with a code; in its text part the code stands alone on a line.

    Args:
        ttl: how long the code will hold from now.
        public_url: where the registrant came from.
    """
    language = language_of(locale)
    subject, text, html = _render("code", language, code=_GAP, ttl=_duration(ttl, language), public_url=public_url)
    return Rendered(subject, text.replace(_GAP, code), html.replace(_GAP, escape(code)))


def render_notice(locale: str | None, public_url: str) -> Rendered:
    """To the holder of an account, when somebody registers with their address: nothing has happened."""
    return _render("notice", language_of(locale), public_url=public_url)


class TemplateLetters:
    """Implements `application.mail_delivery.Letters`.

    Args:
        ttl: how long a code holds, counted from its hand-over to a mail server.
        public_url: where registrants come from.
        sender: `MAIL_FROM`; the Message-IDs are of its domain.
    """

    def __init__(self, *, ttl: timedelta, public_url: str, sender: str) -> None:
        self._ttl = ttl
        self._public_url = public_url
        self._domain = Composer(sender).sender.rpartition("@")[2]

    def code(self, *, to: str, locale: str, code: str, message_id: str) -> Letter:
        """`message_id` is the part before the @."""
        return self._letter(to, locale, message_id, render_code(locale, code, self._ttl, self._public_url), code)

    def notice(self, *, to: str, locale: str, message_id: str) -> Letter:
        """`message_id` is the part before the @."""
        return self._letter(to, locale, message_id, render_notice(locale, self._public_url))

    def _letter(self, to: str, locale: str, message_id: str, rendered: Rendered, code: str | None = None) -> Letter:
        return Letter(
            to=to,
            subject=rendered.subject,
            text=rendered.text,
            html=rendered.html,
            message_id=f"<{message_id}@{self._domain}>",
            locale=language_of(locale),
            code=code,
        )


@lru_cache(maxsize=64)
def _render(kind: str, language: Language, **values: str) -> Rendered:
    """Rendered once and kept: of all that is in a mail's words only the code differs from one to the next."""
    subject = _SUBJECTS[kind, language]
    text, html = (
        _TEMPLATES.get_template(f"{kind}.{language}.{suffix}").render(language=language, subject=subject, **values)
        for suffix in ("txt", "html")
    )
    return Rendered(subject, text, html)


def _duration(length: timedelta, language: Language) -> str:
    """In the largest unit that says it exactly: "10 minutes", "90 seconds"."""
    seconds = max(1, int(length.total_seconds()))
    for size, one, many in _UNITS[language]:
        if seconds % size == 0:
            count = seconds // size
            return f"{count} {one if count == 1 else many}"
    raise AssertionError("every length is a number of seconds")


# --- Bytes -----------------------------------------------------------------------------------------

_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_MAILBOX = re.compile(rf"(?=.{{3,254}}\Z){_ATOM}(\.{_ATOM})*@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*\Z")
_MESSAGE_ID = re.compile(rf"<{_ATOM}(\.{_ATOM})*@[A-Za-z0-9.-]+>\Z")
_CODE = re.compile(r"[A-Za-z0-9]{0,32}\Z")
_LANGUAGE_TAG = re.compile(r"[A-Za-z0-9-]{2,35}\Z")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
_UNFOLDED = SMTP_POLICY.clone(max_line_length=998)  # RFC 5322's limit; folding would encode a long Message-ID
_BOUNDARY: Final = "=_registrar"  # "=_" cannot occur in quoted-printable (RFC 2045, 6.7), so it is no part of a body


def mailbox(address: str) -> str:
    """The address as it goes on the wire: a dot-string at a domain in ASCII (RFC 5321, 4.1.2), nothing else.

    Checked here again, at the last moment: aiosmtplib makes `v@x.test` of `v@x.test\\r\\nRCPT TO:<e@x>` and sends it.

    Raises:
        ValueError: it is no such address; the message does not repeat it.
    """
    local, at, domain = address.rpartition("@")
    if not domain.isascii():
        try:
            domain = idna.encode(domain, uts46=True).decode("ascii")
        except idna.IDNAError:
            raise ValueError("not a domain name") from None
    wire = f"{local}{at}{domain}"
    # An encoded word (RFC 2047) has no business in an address, but a reader that decodes it there would see another.
    if not _MAILBOX.match(wire) or len(local) > 64 or "=?" in wire:
        raise ValueError("not a mailbox")
    return wire


class Composer:
    """Makes the bytes of a mail.

    Sender and subjects, of which there are few, go through `EmailMessage`, once each. The rest is put behind them by
    hand: with all of it in an `EmailMessage` a mail of 5 KiB took 1.7 ms to make, with the headers in one 0.4 ms. What
    letters of one kind have in common is kept: 58 µs became 14, a tenth of a mail worker's time.
    """

    def __init__(self, sender: str) -> None:
        head = EmailMessage(policy=_UNFOLDED)
        head["From"] = sender
        head["Auto-Submitted"] = "auto-generated"
        head["MIME-Version"] = "1.0"
        (author,) = head["From"].addresses
        self.sender = mailbox(author.addr_spec)
        self._static_headers = head.as_bytes().removesuffix(b"\r\n")

    def compose(self, letter: Letter, to: str, date: datetime) -> bytes:
        """Everything between the reply to DATA and the final dot, the dot included.

        Raises:
            ValueError: a header cannot carry what it was given, or the code is none.
        """
        code = letter.code or ""
        if (
            _CONTROL.search(letter.subject)
            or not _MESSAGE_ID.match(letter.message_id)
            or not _LANGUAGE_TAG.match(letter.locale)
            or not _CODE.match(code)
        ):
            raise ValueError("not fit for a mail")
        if mailbox(to) != to:
            raise ValueError("the header would name somebody else")
        # Each value has just been matched against the narrow form it may have, so none can bring a header of its own.
        headers = (
            f"To: {to}\r\nDate: {_date(date.replace(microsecond=0))}\r\nMessage-ID: {letter.message_id}\r\n"
            f"Content-Language: {letter.locale}\r\n"
        )
        text, html = letter.text, letter.html
        if code:
            text, html = text.replace(code, _GAP), html.replace(code, _GAP)
        rest = _rest(letter.subject, text, html)
        return b"".join((self._static_headers, headers.encode("ascii"), code.encode("ascii").join(rest)))


_date = lru_cache(maxsize=4)(format_datetime)


@lru_cache(maxsize=64)
def _rest(subject: str, text: str, html: str) -> Sequence[bytes]:
    """What comes after the headers of a mail's own, from the subject to the final dot, in pieces between its gaps."""
    head = EmailMessage(policy=_UNFOLDED)
    head["Subject"] = subject
    content_type = f'Content-Type: multipart/alternative; boundary="{_BOUNDARY}"\r\n\r\n'
    rest = b"".join(
        (
            head.as_bytes().removesuffix(b"\r\n"),
            content_type.encode(),
            _part("plain", text),
            _part("html", html),
            f"--{_BOUNDARY}--\r\n".encode(),
        )
    )
    # Every line ends in CR LF by now, and the first is a header. RFC 5321, 4.5.2
    return (rest.replace(b"\r\n.", b"\r\n..") + b".\r\n").split(_GAP.encode())


def _part(subtype: str, body: str) -> bytes:
    head = (
        f'--{_BOUNDARY}\r\nContent-Type: text/{subtype}; charset="utf-8"\r\n'
        "Content-Transfer-Encoding: quoted-printable\r\n\r\n"
    )
    quoted = [binascii.b2a_qp(words.encode()) for words in body.replace("\r\n", "\n").replace("\r", "\n").split(_GAP)]
    # A gap is alone on its line, by soft breaks (RFC 2045, 6.7): what fills it makes no other line too long.
    lines = quoted[0]
    for before, after in pairwise(quoted):
        lines += b"" if before.endswith(b"\n") or not before else b"=\n"
        lines += _GAP.encode()
        lines += after if after.startswith(b"\n") or not after else b"=\n" + after
    return head.encode() + lines.replace(b"\n", b"\r\n") + b"\r\n"
