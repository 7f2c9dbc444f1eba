"""The mails that were sent to the embedded mailbox: for a try-out, where no mail server is set."""

from __future__ import annotations

import secrets
from typing import Annotated

from fastapi import FastAPI, Query
from starlette.responses import HTMLResponse, Response

from entrypoints.api.openapi import problems
from entrypoints.api.pages.rendering import mailbox_page, mailbox_policy
from entrypoints.api.responses import MailboxMessages, answer
from entrypoints.api.strict_values import Instant
from infrastructure.mail.mailbox import Mailbox

Since = Annotated[Instant | None, Query(description="`received_at` of the newest mail that is known already")]


_COUNT = {"Registrar-Mails": {"description": "how many there are in all", "schema": {"type": "integer"}}}


def add_mailbox_routes(app: FastAPI, mailbox: Mailbox, *, logo_url: str | None = None) -> None:
    """A page that shows them, and the routes that it calls.

    Args:
        logo_url: the image in the mails, which the page may load.
    """

    async def show() -> Response:
        nonce = secrets.token_urlsafe(16)
        return HTMLResponse(mailbox_page(nonce), headers={"Content-Security-Policy": mailbox_policy(nonce, logo_url)})

    async def messages(to: Annotated[str | None, Query(max_length=254)] = None, after: Since = None) -> Response:
        """Mails, newest first: with `to`, those to that address; with `after`, those that arrived later."""
        return answer(mailbox.messages(to, after=after), headers={"Registrar-Mails": str(mailbox.count)})

    async def clear() -> Response:
        """Delete all mails."""
        mailbox.clear()
        return Response(status_code=204)

    app.add_api_route("/mailbox", show, methods=["GET"], include_in_schema=False)
    app.add_api_route(
        "/mailbox/messages",
        messages,
        methods=["GET"],
        tags=["mailbox"],
        summary="Mails in the mailbox",
        responses={200: {"model": list[MailboxMessages], "headers": _COUNT}, **problems("invalid-request")},
    )
    app.add_api_route(
        "/mailbox/messages", clear, methods=["DELETE"], status_code=204, tags=["mailbox"], summary="Empty the mailbox"
    )
