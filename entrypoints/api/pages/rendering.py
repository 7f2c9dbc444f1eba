"""Pages as text, and the policies that they are to be served with."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from starlette.responses import HTMLResponse, Response

_HERE: Final = Path(__file__).parent


@cache
def _read(name: str) -> str:
    return (_HERE / name).read_text("utf-8")


def mailbox_page(nonce: str) -> str:
    """The page `GET /mailbox`, to be served with `mailbox_policy` of the same nonce: random, new for each response."""
    return _read("mailbox.html").replace("{{ look }}", _read("look.css")).replace("{{ nonce }}", nonce)


def mailbox_policy(nonce: str, logo_url: str | None = None) -> str:
    """Its `Content-Security-Policy`. Styles are inline because a mail's are, and its frame inherits the policy.

    Args:
        logo_url: what mails load: the images of its host are let in, as it may lead to another one there.
    """
    logo = f" https://{urlsplit(logo_url).netloc}" if logo_url else ""
    return (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'unsafe-inline'; img-src 'self' data:{logo}; "
        "connect-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def door_response(
    main: str,
    *,
    title: str,
    prefix: str,
    back: bool = True,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A page of the front door. It has no script, and none could run in it.

    Args:
        main: HTML, whose texts are escaped.
        title: plain text.
        prefix: of the paths that browsers see.
        back: whether it leads to the first page.
    """
    values = {
        "title": escape(title),
        "prefix": escape(prefix),
        "style": _style(),
        "back": f'<a class="back" href="{escape(prefix)}/">Back to the start</a>' if back else "",
    }
    page = _read("door.html")
    for name, value in values.items():
        page = page.replace(f"{{{{ {name} }}}}", value)
    # Last, so that nothing that somebody typed is taken for a name.
    return HTMLResponse(
        page.replace("{{ main }}", main), status, {**(headers or {}), "Content-Security-Policy": _door_policy()}
    )


@cache
def _style() -> str:
    return _read("look.css") + _read("door.css")


@cache
def _door_policy() -> str:
    style = base64.b64encode(sha256(_style().encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{style}'; img-src 'self'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    )
