"""The front door: a first page with links, and a sign-up to try out, by forms and without script.

A form is another spelling of the JSON body: it is passed to the endpoint that takes that, through the same limits, the
same command and the same answer, so nothing here can tell more of an address than the API does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import msgspec
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import Scope

from entrypoints.api.body_reading import FORMS
from entrypoints.api.guard import body_of, explain, with_body
from entrypoints.api.pages.door import Places, Refusal, first_page, registration_page, trouble_page
from entrypoints.api.problems import TITLES, ProblemResponse
from entrypoints.api.registrations import Endpoint, Endpoints
from entrypoints.api.request_body import malformed
from infrastructure.telemetry.metrics import Metrics

MOST_FIELDS: Final = 10

_SENT: Final = "new-code"
"""Stands in the address of a registration's page that says that a new code was asked for."""


def add_front_door(app: FastAPI, endpoints: Endpoints, places: Places, metrics: Metrics) -> None:
    """`/`, and the sign-up behind it."""
    door = FrontDoor(endpoints, places, metrics)
    one = f"{FORMS}/{{registration_id}}"
    for method, path, endpoint in (
        ("GET", "/", door.enter),
        ("GET", FORMS, door.enter),  # where a reload by hand leads after a refusal
        ("POST", FORMS, door.sign_up),
        ("GET", one, door.show),
        ("GET", f"{one}/verification", door.back),
        ("POST", f"{one}/verification", door.verify),
        ("GET", f"{one}/otp", door.back),
        ("POST", f"{one}/otp", door.request_code),
    ):
        app.add_api_route(path, endpoint, methods=[method], include_in_schema=False)


class FrontDoor:
    """The endpoints of the pages, on top of those of the API."""

    def __init__(self, endpoints: Endpoints, places: Places, metrics: Metrics) -> None:
        self._endpoints = endpoints
        self._places = places
        self._metrics = metrics

    async def enter(self) -> Response:
        return first_page(self._places)

    async def sign_up(self, request: Request) -> Response:
        fields: dict[str, str] = {}
        try:
            fields = _form(request)
            begun = await self._endpoints.register(_spelt(request, fields))
        except Exception as error:  # noqa: BLE001 - the edge, as the guard's
            return first_page(self._places, fields, self._refused(error, request))
        return self._to(msgspec.json.decode(begun.body)["registration_id"])

    async def show(self, request: Request) -> Response:
        return await self._shown(request, sent=_SENT in request.query_params)

    async def back(self, request: Request) -> Response:
        return self._to(request.path_params["registration_id"])

    async def verify(self, request: Request) -> Response:
        return await self._act(request, self._endpoints.verify)

    async def request_code(self, request: Request) -> Response:
        return await self._act(request, self._endpoints.request_code, f"&{_SENT}=1")

    async def _act(self, request: Request, endpoint: Endpoint, then: str = "") -> Response:
        try:
            done = await endpoint(_spelt(request, _form(request)))
        except Exception as error:  # noqa: BLE001 - the edge, as the guard's
            return await self._shown(request, self._refused(error, request))
        position = done.headers["Registrar-Position"]
        return self._to(f"{request.path_params['registration_id']}?min_position={position}{then}")

    async def _shown(self, request: Request, refusal: Refusal | None = None, *, sent: bool = False) -> Response:
        """The page of the registration, where there is one, with what was refused."""
        if refusal is not None and not refusal.is_about_it:
            return trouble_page(self._places, refusal)
        try:
            state: dict[str, Any] = msgspec.json.decode((await self._endpoints.show(request)).body)
        except Exception as error:  # noqa: BLE001 - the edge, as the guard's
            return trouble_page(self._places, self._refused(error, request))
        return registration_page(self._places, state, refusal, sent=sent)

    def _refused(self, error: Exception, request: Request) -> Refusal:
        """What a page says of an error, whatever it is."""
        if isinstance(error, _FromElsewhere):
            return _FROM_ELSEWHERE
        return _refusal(explain(error, request.scope, self._metrics))

    def _to(self, where: str) -> Response:
        return RedirectResponse(f"{self._places.prefix}{FORMS}/{where}", status_code=303)


# --- What a page says of an error -------------------------------------------------------------------


def as_page(places: Places, scope: Scope, problem: ProblemResponse) -> Response:
    """Of a problem of which the endpoints here never hear: a page, if it is one of our pages that was asked for."""
    path: str = scope["path"]
    if path in {"/", FORMS} or path.startswith(f"{FORMS}/"):
        return trouble_page(places, _refusal(problem))
    return problem.response()


def _refusal(problem: ProblemResponse) -> Refusal:
    says = TITLES[problem.code]
    fields = {one.field: f"{one.message[:1].upper()}{one.message[1:]}." for one in problem.errors}
    if problem.code == "too-many-requests":
        says = f"That was too often. Try again in {problem.headers['Retry-After']} seconds."
    elif problem.code == "payload-too-large":
        says = "That was too long. Go back, and type less."
    elif problem.code == "wrong-code":
        fields = {"code": f"{says} Tries left: {problem.attempts_left}."}
    return Refusal(problem.code, problem.status, says, fields, problem.headers)


# --- What a form may be ---------------------------------------------------------------------------


class _FromElsewhere(Exception):
    """The form was sent by a page that is not ours."""


def _spelt(request: Request, fields: Mapping[str, str]) -> Request:
    """The request as the API takes it."""
    return with_body(request, msgspec.json.encode(fields))


def _form(request: Request) -> dict[str, str]:
    """The fields of the form that have something in them.

    Raises:
        _FromElsewhere: a page of somebody else has it sent, by the browser of somebody who can reach us.
        HttpProblem: it is malformed.
    """
    if not _is_of_our_page(request):
        raise _FromElsewhere
    try:
        body = body_of(request).decode("ascii")
        pairs = parse_qsl(body, keep_blank_values=True, errors="strict", max_num_fields=MOST_FIELDS)
    except ValueError:
        raise malformed("(body)", "not a form") from None
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise malformed("(body)", "a field comes twice")
    return {name: value for name, value in fields.items() if value}


def _is_of_our_page(request: Request) -> bool:
    """By what browsers say of it: `Sec-Fetch-Site`, where they trust the connection, else `Origin`. Every browser sends
    one of them with a form; what sends neither is a program, for which there is the API."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    try:
        origin = urlsplit(request.headers.get("origin", ""))
    except ValueError:
        return False
    return bool(origin.scheme) and origin.netloc.lower() == request.headers.get("host", "").lower()


_FROM_ELSEWHERE: Final = Refusal(
    "forbidden", 403, "This form was sent by a page of another site, or by a program. Open this page, and fill it in."
)
