"""What an operator can set of the mails: whose they are, how they look, and where their button leads.

All of it stands in mails as it is, in headers, text and HTML: each type lets through only what does no harm there.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, BeforeValidator, Field

from infrastructure.settings.entries import refuse
from infrastructure.settings.values import Mailbox, Sender, ShownUrl

LONGEST_NAME: Final = 60
"""Characters: the subject with it still fits the list of a mail program."""

_HOST: Final = r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*"
# RFC 3986, without the quotes, which need no escape there but in HTML.
_PATH: Final = r"(/[A-Za-z0-9._~!$&()*+,;=:@%/-]*)?"
_QUERY: Final = r"(\?[A-Za-z0-9._~!$&()*+,;=:@%/?-]*)?"
_FRAGMENT: Final = r"#[A-Za-z0-9._~!$&()*+,;=:@%/?{}-]*"
_LOGO: Final = re.compile(rf"https://{_HOST}(:\d{{1,5}})?{_PATH}{_QUERY}", re.ASCII)
_VERIFY: Final = re.compile(
    rf"(https://{_HOST}|http://(localhost|127\.0\.0\.1|\[::1\]))(:\d{{1,5}})?{_PATH}{_QUERY}{_FRAGMENT}", re.ASCII
)


def _product_name(value: object) -> object:
    if isinstance(value, str):
        if not value.isprintable() or "=?" in value:
            raise ValueError("contains a control character, an invisible one, or =?")
        if len(value) > LONGEST_NAME:
            raise ValueError(f"is longer than {LONGEST_NAME} characters")
    return value


def _logo_url(value: object) -> object:
    if isinstance(value, str) and not _LOGO.fullmatch(value):
        raise ValueError("is not the address of an image, https://host/path, in ASCII and without user and quotes")
    return value


def _accent_color(value: object) -> object:
    if isinstance(value, str):
        if not re.fullmatch(r"#[0-9A-Fa-f]{6}", value):
            raise ValueError("is not a colour of the form #1a56c4")
        return value.lower()
    return value


def _verify_url(value: object) -> object:
    if not isinstance(value, str):
        return value
    filled = value.replace("{language}", "en")
    refuse(
        f"has {{{name}}} in it, which stands for nothing: there are {{id}}, {{code}} and {{language}}"
        for name in re.findall(r"\{(\w{1,20})\}", filled, re.ASCII)
        if name not in {"id", "code"}
    )
    if re.search("[{}]", filled.replace("{id}", "").replace("{code}", "")):
        raise ValueError("has a brace that is of none of {id}, {code} and {language}")
    before, _, fragment = filled.partition("#")
    if "{" in before:
        raise ValueError(
            "has {id} or {code} before its #: what is there is sent to servers, and stands in their logs; put both behind it"
        )
    if fragment.count("{id}") != 1 or fragment.count("{code}") != 1:
        raise ValueError("does not have {id} and {code} behind a #, once each")
    if not _VERIFY.fullmatch(filled):
        raise ValueError("is not of the form https://host/path#id={id}&code={code} (http:// for localhost only)")
    return value


ProductName = Annotated[str, BeforeValidator(_product_name)]
LogoUrl = Annotated[str, BeforeValidator(_logo_url)]
Color = Annotated[str, BeforeValidator(_accent_color)]
VerifyUrl = Annotated[str, BeforeValidator(_verify_url)]


class LetterSettings(BaseModel):
    """The part of `Settings` that is about the content of mails."""

    product_name: ProductName | None = Field(
        default=None, description="name of your product, which mails say; None: they say none", examples=["Acme"]
    )
    site_url: ShownUrl | None = Field(
        default=None,
        description="address of your site, which mails name and link to; None: `public_url`",
        examples=["https://www.example.org"],
    )
    logo_url: LogoUrl | None = Field(
        default=None,
        description="image that mails show above their text, 40 pixels high; None: the name",
        examples=["https://www.example.org/logo.png"],
    )
    accent_color: Color = Field(
        default="#1a56c4",
        description="colour of links and buttons in mails, where it cannot be read as a darker or lighter one",
        examples=["#1a56c4"],
    )
    support_address: Mailbox | None = Field(
        default=None,
        description="address that mails name for questions; None: none",
        examples=["support@example.org"],
    )
    reply_to: Sender | None = Field(
        default=None,
        description="where replies to mails go, with or without a name; None: to their sender",
        examples=["Acme Support <support@example.org>"],
    )
    verify_url: VerifyUrl | None = Field(
        default=None,
        description="page of yours that the button of a mail with a code leads to, with {id} and {code} behind a #; "
        "None: there is no button",
        examples=["https://app.example.org/verify#id={id}&code={code}"],
    )
    templates: Path | None = Field(
        default=None,
        description="directory with templates that replace those of the mails; None: none",
        examples=["/etc/registrar/templates"],
    )
