"""The HTTP API: the application with its routes, for one listener."""

# ruff: noqa: PLC0415 - as in `cli.main`: mailbox, front door and bounces are loaded only where there are such
from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from entrypoints.api.admin import add_admin_routes
from entrypoints.api.admission import ACCOUNTS, CHECK
from entrypoints.api.cors import Cors, RefusedOrigins
from entrypoints.api.guard import DIRECTLY, Endpoint, Guard
from entrypoints.api.health import add_health_routes, add_metrics_route
from entrypoints.api.hosts import Hosts
from entrypoints.api.openapi import TAGS, describe_problems, operation_id
from entrypoints.api.pages.docs import add_docs_routes
from entrypoints.api.pages.icon import add_icon_route
from entrypoints.api.parts import Parts
from entrypoints.api.problems import Shown, as_problem, to_problem
from entrypoints.api.registrations import ByHand, add_registration_routes
from entrypoints.api.sign_up_rules import SignUpRules

if TYPE_CHECKING:
    from entrypoints.api.pages.door import Places


def create_app(parts: Parts, *, public: bool = True, admin: bool = True) -> Api:
    """The application on one listener.

    Args:
        public: the registrants' routes, and the mailbox if there is one.
        admin: the operators' routes, the documentation and the metrics.
    """
    guard: dict[str, Any] = {
        "metrics": parts.metrics,
        "request_timeout": parts.request_timeout,
        # Operators' own listener is called by what names orchestrators and Prometheus have for it, and nothing is there
        # that a browser is let in to by itself.
        "hosts": Hosts(parts.host_names if public else None),
        "tracing": parts.tracing,
        "access_log": parts.access_log,
        "cors": Cors(parts.cors_origins) if public and parts.cors_origins else None,
        "takes_reports": public and parts.bounces is not None,
        "shown": _as_pages(parts, admin=admin) if public and parts.front_door else as_problem,
    }
    app = Api(
        **_ABOUT,
        openapi_url="/openapi.json" if admin else None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={HTTPException: _problem, 405: _other_method, RequestValidationError: _problem},
        telemetry={"tracing": False, "metrics": False, "logs": False},  # the guard's, which knows what is personal
        middleware=[Middleware(Guard, **guard)],
    )
    check = _add_routes(app, parts, public=public, admin=admin)
    app.prefix = parts.prefix
    app.shown = guard["shown"]
    app.refused_origins = RefusedOrigins()
    app.shortcut = Shortcut(app, Guard(app, **guard), check)
    if admin:
        add_docs_routes(app)
        app.openapi = cache(lambda: _document(parts))  # type: ignore[method-assign]
    return app


_ABOUT: Final[dict[str, Any]] = {
    "title": "Registrar",
    "version": version("registrar"),
    "description": "Takes sign-ups and makes sure that each one reaches its end. Errors are RFC 9457 problems.",
}


def _add_routes(app: FastAPI, parts: Parts, *, public: bool, admin: bool) -> Endpoint | None:
    """Returns what `add_admin_routes` does, None where there are no such routes."""
    if public:
        endpoints = add_registration_routes(
            app,
            parts.handlers,
            parts.queries.registrations,
            limits=parts.limits,
            rules=SignUpRules(parts.sign_up_policy, parts.metrics),
            metrics=parts.metrics,
            request_timeout=parts.request_timeout,
            is_synthetic_key=parts.is_synthetic_key,
            prefix=parts.prefix,
            described=not isinstance(app, Api),
        )
        if parts.bounces is not None:
            from entrypoints.api.bounces import add_bounce_routes

            add_bounce_routes(app, parts.bounces)
        if parts.mailbox is not None:
            from entrypoints.api.mailbox import add_mailbox_routes

            add_mailbox_routes(app, parts.mailbox, logo_url=parts.logo_url)
        if parts.front_door:
            from entrypoints.api.front_door import add_front_door

            add_front_door(app, endpoints, _places(parts, admin=admin), parts.metrics)
    if admin or parts.mailbox is not None or parts.front_door:
        add_icon_route(app)
    add_health_routes(app, parts.checks)
    if not admin:
        return None
    check = add_admin_routes(app, parts)
    add_metrics_route(app, parts.metrics, parts.checks)
    return check


def _places(parts: Parts, *, admin: bool) -> Places:
    from entrypoints.api.pages.door import Places

    return Places(parts.prefix, parts.mailbox is not None, admin)


def _as_pages(parts: Parts, *, admin: bool) -> Shown:
    from entrypoints.api.front_door import as_page

    return partial(as_page, _places(parts, admin=admin))


def _document(parts: Parts) -> dict[str, Any]:
    """The OpenAPI document of all routes, whichever listener they are on."""
    everything = FastAPI(
        **_ABOUT,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        servers=[{"url": parts.prefix or "/", "description": "the service that this document comes from"}],
        openapi_tags=TAGS,
        generate_unique_id_function=operation_id,
    )
    _add_routes(everything, parts, public=True, admin=True)
    return describe_problems(everything.openapi())


async def _problem(request: Request, error: Exception) -> Response:
    if request.method == "OPTIONS" and request.scope["path"] == "*":
        return Response(status_code=204)  # about the server as such: it is there (RFC 9110, 9.3.7)
    shown: Shown = request.app.shown
    return shown(request.scope, to_problem(error))


async def _other_method(request: Request, error: Exception) -> Response:
    """The refusal of a method that the path's routes do not have, or what OPTIONS asks: which ones they have."""
    methods = {"OPTIONS"}
    for route in request.app.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            methods |= route.methods
    if "GET" in methods:
        methods.add("HEAD")
    allow = {"Allow": ", ".join(sorted(methods))}
    if request.method == "OPTIONS":
        request.app.refused_origins.note(request.scope, request.headers.get("origin", "").encode() or None)
        return Response(status_code=204, headers=allow)
    problem = to_problem(error)
    shown: Shown = request.app.shown
    return shown(request.scope, replace(problem, headers={**problem.headers, **allow}))


class Shortcut:
    """Leads to the routes that nearly every request is for, by a look at the path.

    The framework's own way, through its middleware and along its routes, costs a fifth of a registration (our
    measurement). What comes out is the same: the guard is another of the same kind, the routes are `ByHand`, and
    errors are the guard's to explain.
    """

    _PATH = "/v1/registrations"
    _CHECK = re.compile(rf"{ACCOUNTS}/([0-9A-Fa-f]{{8}}(?:-[0-9A-Fa-f]{{4}}){{3}}-[0-9A-Fa-f]{{12}}){CHECK}")

    def __init__(self, app: FastAPI, guard: Guard, check: Endpoint | None) -> None:
        """
        Args:
            check: checks passwords; None: nobody does on this listener.
        """
        self.guard = guard
        self._register: APIRoute | None = None
        self._show: APIRoute | None = None
        self._checks: APIRoute | None = None
        self._check = check
        for route in app.routes:
            if isinstance(route, APIRoute) and route.path == f"{ACCOUNTS}/{{registration_id}}{CHECK}":
                self._checks = route
            if isinstance(route, ByHand):
                if route.path == self._PATH and route.methods == {"POST"}:
                    self._register = route
                elif route.path == f"{self._PATH}/{{registration_id}}" and route.methods == {"GET"}:
                    self._show = route

    def found(self, scope: Scope) -> bool:
        """Is it one of them? Then the scope says where the guard is to pass it."""
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
        elif method == "POST" and self._checks is not None and (found := self._CHECK.fullmatch(path)):
            scope["path_params"] = {"registration_id": found[1]}
            route = self._checks
        if route is None:
            return False
        scope["route"] = route
        scope[DIRECTLY] = self._check if route is self._checks else route.endpoint
        return True


class Api(FastAPI):
    """The application, with a shortcut to its most used routes.

    Attributes:
        prefix: of paths, where `PUBLIC_URL` has one. A proxy may take it off or pass it on: both are understood.
        refused_origins: what the log says of pages of other origins.
        shown: what an error's response is.
    """

    prefix = ""
    shortcut: Shortcut | None = None
    refused_origins: RefusedOrigins
    shown: Shown = staticmethod(as_problem)

    def add_api_route(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        """Adds it without the descriptions of its responses, which only the document needs, made of an application of
        its own: to prepare their models took half of what an application takes (our measurement)."""
        super().add_api_route(path, endpoint, **options | {"responses": None})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.prefix and scope["type"] == "http" and scope["path"].startswith(f"{self.prefix}/"):
            scope["path"] = scope["path"][len(self.prefix) :]
        if scope["type"] == "http" and scope["method"] == "HEAD":
            # Answered as GET is (RFC 9110, 9.3.2); the server, which knows better, leaves the body out.
            scope = {**scope, "method": "GET"}
        if self.shortcut is not None and self.shortcut.found(scope):
            await self.shortcut.guard(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)
