"""The HTTP API: the application with its routes, and what registrants may ask of it.

Commands go to the handlers, questions to the read models. Nothing on these routes differs for an address that is
taken: a duplicate takes the same way through the same code.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import timedelta
from importlib.metadata import version
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import FastAPI, Query
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.types import Receive, Scope, Send

from application.commands import RegisterUser, RequestNewCode, VerifyEmail
from domain.errors import UnknownRegistration
from domain.recorded import Actor
from domain.registration import Status
from entrypoints.api.admin import add_admin_routes
from entrypoints.api.guard import DIRECTLY, Guard, body_of, context_of
from entrypoints.api.health import HealthChecks, add_health_routes, add_metrics_route
from entrypoints.api.openapi import (
    REGISTER,
    REQUEST_CODE,
    VERIFY,
    add_docs_routes,
    describe_problems,
    problems,
    show_described,
)
from entrypoints.api.problems import explain
from entrypoints.api.request_body import malformed, parse
from entrypoints.api.responses import (
    CodeRequested,
    MailboxMessages,
    Registered,
    Verification,
    answer,
    registration_state,
)
from entrypoints.queries.queries import Queries
from entrypoints.queries.registrations import RegistrationQueries
from entrypoints.service import Service
from infrastructure.mail.mailbox import Mailbox, page, page_policy

DEFAULT_WAIT: Final = timedelta(seconds=2)
"""How long a read with `min_position` waits unless it says otherwise (contract)."""

LAST_POSITION: Final = 2**63 - 1

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_NUMBER = re.compile(r"[0-9]{1,19}")
_IDEMPOTENCY_KEY = re.compile(r"[A-Za-z0-9_-]{16,64}")

ON_ITS_WAY: Final = "If this address can be registered, a code is on its way to it."
NEW_CODE: Final = "A new code is on its way; the one before does not work any more."


def create_app(service: Service, *, public: bool = True, admin: bool = True) -> Api:
    """The application on one listener.

    Args:
        public: the registrants' routes, and the mailbox if there is one.
        admin: the operators' routes, the documentation and the metrics.
    """
    queries = service.queries
    checks = HealthChecks(service, queries)
    tracing = service.tracing

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await checks.close()

    guard: dict[str, Any] = {
        "metrics": service.metrics,
        "request_timeout": service.settings.request_timeout,
        "tracer": tracing.get_tracer("registrar") if tracing is not None else None,
    }
    app = Api(
        **_ABOUT,
        openapi_url="/openapi.json" if admin else None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        exception_handlers={HTTPException: _problem, RequestValidationError: _problem},
        telemetry={"tracing": False, "metrics": False, "logs": False},  # the guard's, which knows what is personal
        middleware=[Middleware(Guard, **guard)],
    )
    app.state.checks = checks
    _add_routes(app, service, queries, checks, public=public, admin=admin)
    app.shortcut = Shortcut(app, Guard(app, **guard))
    if admin:
        add_docs_routes(app)
        app.openapi = lambda: _document(service, queries, checks)  # type: ignore[method-assign]
    return app


_ABOUT: Final[dict[str, Any]] = {
    "title": "Registrar",
    "version": version("registrar"),
    "description": "Takes sign-ups and makes sure that each one reaches its end. Errors are RFC 9457 problems.",
}


def _add_routes(
    app: FastAPI, service: Service, queries: Queries, checks: HealthChecks, *, public: bool, admin: bool
) -> None:
    if public:
        add_registration_routes(app, service, queries.registrations)
        if service.mailbox is not None:
            add_mailbox_routes(app, service.mailbox)
    add_health_routes(app, checks)
    if admin:
        add_admin_routes(app, service, queries)
        add_metrics_route(app, service, checks)


def _document(service: Service, queries: Queries, checks: HealthChecks) -> dict[str, Any]:
    """The OpenAPI document of all routes, whichever listener they are on."""
    everything = FastAPI(**_ABOUT)
    _add_routes(everything, service, queries, checks, public=True, admin=True)
    return describe_problems(everything.openapi())


async def _problem(_: Request, error: Exception) -> Response:
    return explain(error).response()


class _Counted:
    """Counts what becomes of a request: "accepted", or its error code."""

    __slots__ = ("_count",)

    def __init__(self, count: Callable[[str], None]) -> None:
        self._count = count

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is None:
            self._count("accepted")
        elif isinstance(error, Exception):
            self._count(explain(error).code)


# --- Registrations ------------------------------------------------------------------------------


class _ByHand(APIRoute):
    """A route whose endpoint reads its parameters itself: FastAPI's way costs as much as the rest of the request."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return endpoint


class Shortcut:
    """Leads to the routes that nearly every request is for, by a look at the path.

    The framework's own way, through its middleware and along its routes, costs a fifth of a registration (our
    measurement). What comes out is the same: the guard is another of the same kind, the routes are `_ByHand`, and
    errors are the guard's to explain.
    """

    _PATH = "/v1/registrations"

    def __init__(self, app: FastAPI, guard: Guard) -> None:
        self.guard = guard
        self._register: APIRoute | None = None
        self._show: APIRoute | None = None
        for route in app.routes:
            if isinstance(route, _ByHand):
                if route.path == self._PATH and route.methods == {"POST"}:
                    self._register = route
                elif route.path == f"{self._PATH}/{{registration_id}}" and route.methods == {"GET"}:
                    self._show = route

    def found(self, scope: Scope) -> bool:
        """Is it one of them? Then the scope tells the guard where to go."""
        if scope["type"] != "http":
            return False
        path, method = scope["path"], scope["method"]
        route = None
        if method == "POST" and path == self._PATH:
            route = self._register
        elif method == "GET" and path.startswith(self._PATH + "/"):
            registration_id = path[len(self._PATH) + 1 :]
            if registration_id and "/" not in registration_id:
                scope["path_params"] = {"registration_id": registration_id}
                route = self._show
        if route is None:
            return False
        scope["route"] = route
        scope[DIRECTLY] = route.endpoint
        return True


class Api(FastAPI):
    """The application, with a shortcut to its most used routes."""

    shortcut: Shortcut | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.shortcut is not None and self.shortcut.found(scope):
            await self.shortcut.guard(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def _id_of(request: Request) -> UUID:
    text = request.path_params["registration_id"]
    if not _ID.fullmatch(text):
        raise malformed("registration_id", "not a UUID")
    return UUID(text)


def _number_of(request: Request, name: str, most: int) -> int | None:
    """A whole number from the query, None if it is not there."""
    values = request.query_params.getlist(name) if request.scope["query_string"] else []
    if not values:
        return None
    if len(values) > 1 or not _NUMBER.fullmatch(values[0]) or int(values[0]) > most:
        raise malformed(name, f"not one whole number from 0 to {most}")
    return int(values[0])


def _idempotency_key_of(request: Request) -> str | None:
    values = request.headers.getlist("idempotency-key")
    if not values:
        return None
    if len(values) > 1 or not _IDEMPOTENCY_KEY.fullmatch(values[0]):
        raise malformed("idempotency-key", "not one key of 16 to 64 letters, digits, '-' and '_'")
    return values[0]


def add_registration_routes(app: FastAPI, service: Service, registrations: RegistrationQueries) -> None:
    """What registrants do."""
    handlers, metrics = service.handlers, service.metrics
    longest_wait = service.settings.request_timeout // timedelta(milliseconds=1)

    async def register(request: Request) -> Response:
        """Begin a registration. The answer is the same whether or not the address is taken."""
        with _Counted(metrics.registration):
            key = _idempotency_key_of(request)
            command = parse(RegisterUser, body_of(request), idempotency_key=key)
            begun = await handlers.handle(command, context_of(request, Actor.CLIENT))
        return answer(
            Registered(begun.subject_id, command.email, Status.PENDING, ON_ITS_WAY),
            202,
            {
                "Location": f"/v1/registrations/{begun.subject_id}",
                "Registrar-Position": str(begun.position),
            },
        )

    async def show(request: Request) -> Response:
        """The registration's state. With `min_position` of an earlier answer, at least as new as that answer."""
        registration_id = _id_of(request)
        min_position = _number_of(request, "min_position", LAST_POSITION)
        wait = _number_of(request, "wait", longest_wait)
        if min_position:
            patience = DEFAULT_WAIT if wait is None else timedelta(milliseconds=wait)
            found = await registrations.by_id_at(registration_id, min_position, patience)
        else:
            found = await registrations.by_id(registration_id)
        if found is None:
            raise UnknownRegistration
        return answer(registration_state(found))

    async def verify(request: Request) -> Response:
        """Prove the address with the code from the mail. Once it is proved, any code gets the same answer."""
        with _Counted(metrics.verification):
            command = parse(VerifyEmail, body_of(request), registration_id=_id_of(request))
            verified = await handlers.handle(command, context_of(request, Actor.CLIENT))
        return answer(
            Verification("ACTIVE" if verified.status is Status.ACTIVE else "VERIFIED"),
            headers={"Registrar-Position": str(verified.position)},
        )

    async def request_code(request: Request) -> Response:
        """Replace the code by a new one, at most once a minute and five times an hour."""
        command = RequestNewCode(registration_id=_id_of(request))
        renewed = await handlers.handle(command, context_of(request, Actor.CLIENT))
        return answer(CodeRequested(renewed.subject_id, NEW_CODE), 202, {"Registrar-Position": str(renewed.position)})

    def add(method: str, path: str, endpoint: Callable[..., Any], summary: str, **description: Any) -> None:
        app.router.add_api_route(
            f"/v1/registrations{path}",
            endpoint,
            methods=[method],
            tags=["registrations"],
            summary=summary,
            route_class_override=_ByHand,
            **description,
        )

    add("POST", "", register, "Register", **REGISTER)
    add("GET", "/{registration_id}", show, "Look at a registration", **show_described(longest_wait))
    add("POST", "/{registration_id}/verification", verify, "Verify the address", **VERIFY)
    add("POST", "/{registration_id}/otp", request_code, "Ask for a new code", **REQUEST_CODE)


# --- The embedded mailbox -----------------------------------------------------------------------


def add_mailbox_routes(app: FastAPI, mailbox: Mailbox) -> None:
    """The mails that were sent to the embedded mailbox: for a try-out, where no mail server is set."""

    async def show() -> Response:
        nonce = secrets.token_urlsafe(16)
        return HTMLResponse(page(nonce), headers={"Content-Security-Policy": page_policy(nonce)})

    async def messages(to: Annotated[str | None, Query(max_length=254)] = None) -> Response:
        """Mails, newest first; with `to`, those to that address."""
        return answer(mailbox.messages(to))

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
        responses={200: {"model": list[MailboxMessages]}, **problems("invalid-request")},
    )
    app.add_api_route(
        "/mailbox/messages", clear, methods=["DELETE"], status_code=204, tags=["mailbox"], summary="Empty the mailbox"
    )
