"""Where mail providers report what became of mails: `POST /v1/bounces/{provider}`.

It is not for registrants, and not described in the document of the API; docs/bounces.md says what to set there.
"""

from __future__ import annotations

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from entrypoints.api.guard import body_of
from entrypoints.api.problems import HttpProblem
from entrypoints.api.request_body import malformed
from infrastructure.bounces.webhooks import BounceWebhooks


def add_bounce_routes(app: FastAPI, webhooks: BounceWebhooks) -> None:
    """One route; a provider whose secret is not set is not there."""

    async def report(provider: str, request: Request) -> Response:
        if not webhooks.knows(provider):
            raise HttpProblem("not-found")
        body = body_of(request)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers.raw}
        if not webhooks.trusts(provider, headers, body):
            raise HttpProblem("unauthorized", headers={"WWW-Authenticate": 'Basic realm="bounces"'})
        try:
            await webhooks.take(provider, body)
        except ValueError:
            raise malformed("(body)", "not what this provider sends") from None
        return Response(status_code=204)

    app.add_api_route("/v1/bounces/{provider}", report, methods=["POST"], include_in_schema=False)
