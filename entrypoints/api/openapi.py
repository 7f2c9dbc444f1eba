"""The API's description of itself, `/openapi.json`: what FastAPI cannot find out by itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter

from application.commands import Command, RegisterUser, VerifyEmail
from entrypoints.api.problems import MEDIA_TYPE, PREFIX, STATUS_OF, TITLES, Problem
from entrypoints.api.responses import CodeRequested, Registered, RegisteredWithHint, RegistrationState, Verification

TAGS: Final = [
    {
        "name": "registrations",
        "description": "What a registrant does: sign up, enter the code, look at what became of it.",
    },
    {
        "name": "admin",
        "description": "What an operator does, with `Authorization: Bearer` and the admin token. Every act is an event with "
        "its actor and, from `X-Reason`, its reason; so is every look at a person in clear.",
    },
    {
        "name": "health",
        "description": "For orchestrators, load balancers and Prometheus: `live` for restarts, `ready` for traffic, the rest "
        "for people.",
    },
    {
        "name": "mailbox",
        "description": "The mails of the embedded mailbox, which only a service without `SMTP_URLS` has.",
    },
]

_OPERATIONS: Final = {
    "POST /v1/registrations": "register",
    "GET /v1/registrations/{registration_id}": "getRegistration",
    "POST /v1/registrations/{registration_id}/verification": "verifyEmail",
    "POST /v1/registrations/{registration_id}/otp": "requestCode",
    "GET /mailbox/messages": "listMailboxMessages",
    "DELETE /mailbox/messages": "clearMailbox",
    "GET /metrics": "getMetrics",
    "GET /v1/admin/registrations": "searchRegistrations",
    "GET /v1/admin/registrations/{registration_id}": "inspectRegistration",
    "POST /v1/admin/registrations/{registration_id}/cancel": "cancelRegistration",
    "POST /v1/admin/registrations/{registration_id}/erase": "eraseRegistration",
    "GET /v1/admin/accounts": "findAccount",
    "POST /v1/admin/accounts/{registration_id}/password-check": "checkPassword",
    "POST /v1/admin/accounts/{registration_id}/password": "setPassword",
    "GET /v1/admin/audit": "searchAudit",
    "GET /v1/admin/funnel": "getFunnel",
    "GET /v1/admin/mail": "listMails",
    "POST /v1/admin/mail/retry": "retryMailsByCause",
    "GET /v1/admin/mail/suppressions": "listSuppressions",
    "POST /v1/admin/mail/{registration_id}/allow": "allowMailbox",
    "POST /v1/admin/mail/{registration_id}/retry": "retryMail",
    "POST /v1/admin/mail/{registration_id}/discard": "discardMail",
    "GET /v1/admin/projections": "listProjections",
    "GET /v1/admin/projections/parked": "listParkedStreams",
    "GET /v1/admin/projections/parked/{stream_id}": "getParkedStream",
    "POST /v1/admin/projections/parked/{stream_id}/retry": "retryParkedStream",
    "GET /v1/admin/projections/{name}/rebuild": "getRebuild",
    "POST /v1/admin/projections/{name}/rebuild": "rebuildProjection",
    "POST /v1/admin/projections/{name}/rollback": "rollBackProjection",
    "POST /v1/admin/projections/{name}/abort": "abortRebuild",
    "GET /v1/admin/projections/{name}/verification": "getVerification",
    "POST /v1/admin/projections/{name}/verify": "verifyProjection",
    "POST /v1/admin/projections/{name}/as-of": "buildProjectionAsOf",
    "POST /v1/admin/projections/{name}/diff": "diffProjection",
    "POST /v1/admin/what-if": "whatIf",
    "GET /v1/admin/jobs/{job_id}": "getJob",
    "GET /v1/admin/events/export": "exportEvents",
}


def operation_id(route: APIRoute) -> str:
    """The name of an operation, by which generated clients call it: it stays. At most 30 characters.

    Raises:
        KeyError: a route has none; give it one in the table above.
    """
    if not route.include_in_schema:
        return route.name
    (method,) = sorted(route.methods or [])
    if health := re.fullmatch(r"/health/([a-z]+)", route.path_format):
        return f"{health[1]}Health"
    return _OPERATIONS[f"{method} {route.path_format}"]


_RATE_LIMIT: Final = {
    "RateLimit-Policy": {
        "description": "the limits that were exceeded (draft-ietf-httpapi-ratelimit-headers-10)",
        "schema": {"type": "string", "examples": ['"registrations";q=5;w=3600']},
    },
    "RateLimit": {
        "description": "when each of them lets the next request pass, in seconds",
        "schema": {"type": "string", "examples": ['"registrations";r=0;t=720']},
    },
}


def problems(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The part `responses` of a route: its error codes, each with an example."""
    responses: dict[int | str, dict[str, Any]] = {}
    for code in (*codes, "unavailable", "overloaded", "timeout"):
        status = STATUS_OF[code]
        response = responses.setdefault(
            status,
            {
                "description": "",
                "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}},
            },
        )
        response["description"] = f"{response['description']} `{code}`: {TITLES[code]}".strip()
        if status in {429, 503, 504}:
            response["headers"] = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}
        if status == 429:
            response["headers"] |= _RATE_LIMIT
        example: dict[str, Any] = {"type": PREFIX + code, "title": TITLES[code], "status": status}
        if code == "wrong-code":
            example["attempts_left"] = 4
        if code == "invalid-request":
            example["errors"] = [{"field": "email", "message": "not a valid mail address"}]
        response["content"][MEDIA_TYPE]["examples"][code] = {"value": example}
    return responses


def describe_problems(document: dict[str, Any]) -> dict[str, Any]:
    """Add what `problems` refers to, and give every body's schema its name. Repeatable."""
    schema = TypeAdapter(Problem).json_schema(ref_template=_SCHEMA.format("{model}"))
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(schema.pop("$defs", {}))
    schemas["Problem"] = schema
    for path in document["paths"].values():
        for operation in path.values():
            for content in operation.get("requestBody", {}).get("content", {}).values():
                content["schema"] = _named(content["schema"], schemas)
    return document


_SCHEMA: Final = "#/components/schemas/{}"


def _named(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """A body's schema by its name, which is what a generated client calls its type."""
    name = schema.get("title")
    if name is None:
        return schema
    schemas[name] = schema
    return {"$ref": _SCHEMA.format(name)}


BODY_PROBLEMS: Final = ("request-timeout", "payload-too-large", "unsupported-media-type")
"""Why a body can be refused before it is read."""


def body_described(kind: type[BaseModel], example: Mapping[str, Any]) -> dict[str, Any]:
    """The part `openapi_extra` of a route whose body is read by hand (`entrypoints.api.request_body`).

    Where no field is required, none is the same as an empty object.
    """
    described = _extra(schema=kind.model_json_schema(), example=dict(example))
    described["requestBody"]["required"] = any(field.is_required() for field in kind.model_fields.values())
    return described


# --- The registrants' routes, whose parameters and bodies are read by hand ------------------------


def _parameter(
    name: str, place: str, schema: dict[str, Any], description: str, *, required: bool = False
) -> dict[str, Any]:
    return {"name": name, "in": place, "required": required, "schema": schema, "description": description}


def _extra(*parameters: dict[str, Any], schema: dict[str, Any] | None = None, example: Any = None) -> dict[str, Any]:
    """The part `openapi_extra`."""
    extra: dict[str, Any] = {"parameters": list(parameters)} if parameters else {}
    if schema is not None:
        body = {"schema": schema, "example": example}
        extra["requestBody"] = {"required": True, "content": {"application/json": body}}
    return extra


def _without(kind: type[Command], *names: str) -> dict[str, Any]:
    """The command's JSON schema without the fields that are not in the body."""
    schema = kind.model_json_schema()
    for name in names:
        del schema["properties"][name]
    schema["required"] = [one for one in schema["required"] if one not in names]
    return schema


_ID: Final = _parameter("registration_id", "path", {"type": "string", "format": "uuid"}, "", required=True)
_KEY: Final = _parameter(
    "Idempotency-Key",
    "header",
    {
        "type": "string",
        "pattern": '^("?)[A-Za-z0-9_-]{16,64}\\1$',
        "examples": ["0b6f7c1e-5f0c-4a7e-9a39-b1de4cf2c0de"],
    },
    "A request that comes again with its key has no further effect, and gets the response of the first one, with "
    "`Idempotent-Replayed: true`: for as long as the registration exists, also while the first one is in progress. So "
    "this version never returns 409 `idempotency-key-in-use`, which stays reserved; a client that receives it repeats "
    "the request. A response that recorded nothing is not kept: 4xx (but `wrong-code`) and 5xx are decided afresh. "
    "In double quotes it is the same key.",
)
REPLAYED_HEADER: Final = {
    "Idempotent-Replayed": {
        "description": "`true`: this is the response to an earlier request with the same `Idempotency-Key`",
        "schema": {"type": "string", "enum": ["true"]},
    }
}


def with_key(response: dict[str, Any], route: dict[str, Any]) -> dict[str, Any]:
    """The description of a route, and of its response, which is changed, where it takes an `Idempotency-Key`."""
    response["headers"] = REPLAYED_HEADER
    return route | {"openapi_extra": route.get("openapi_extra", {}) | {"parameters": [_KEY]}}


KEY_PROBLEMS: Final = ("idempotency-key-reused", "idempotency-key-in-use")
_POSITION: Final = {
    "Registrar-Position": {
        "description": "use it as `min_position` in a read that has to show the effect",
        "schema": {"type": "integer"},
    }
}
_BODY: Final = ("invalid-request", *BODY_PROBLEMS)

REGISTER: Final[dict[str, Any]] = {
    "status_code": 202,
    "responses": {
        202: {
            "model": RegisteredWithHint | Registered,  # a generated client may take the first that fits
            "description": "Accepted; a code is sent by mail",
            "headers": _POSITION | {"Location": {"schema": {"type": "string"}}} | REPLAYED_HEADER,
        },
        **problems(*_BODY, "too-many-requests", *KEY_PROBLEMS, "address-taken"),
    },
    "openapi_extra": _extra(
        _KEY,
        schema=_without(RegisterUser, "idempotency_key", "network"),
        example={
            "email": "ada@example.com",
            "name": "Ada Lovelace",
            "password": "correct horse battery",
            "locale": "en",
        },
    ),
}

VERIFY: Final[dict[str, Any]] = {
    "responses": {
        200: {"model": Verification, "headers": _POSITION | REPLAYED_HEADER},
        **problems(
            *_BODY,
            "too-many-requests",
            "wrong-code",
            "unknown-registration",
            "not-pending",
            "code-expired",
            "code-locked",
            *KEY_PROBLEMS,
        ),
    },
    "openapi_extra": _extra(
        *(_ID, _KEY), schema=_without(VerifyEmail, "registration_id", "idempotency_key"), example={"code": "123456"}
    ),
}

REQUEST_CODE: Final[dict[str, Any]] = {
    "status_code": 202,
    "responses": {
        202: {"model": CodeRequested, "headers": _POSITION | REPLAYED_HEADER},
        **problems("invalid-request", "unknown-registration", "not-pending", "too-many-requests", *KEY_PROBLEMS),
    },
    "openapi_extra": _extra(_ID, _KEY),
}


def show_described(longest_wait: int) -> dict[str, Any]:
    """The description of the read; `longest_wait` is in milliseconds."""
    return {
        "responses": {
            200: {"model": RegistrationState},
            **problems("invalid-request", "unknown-registration"),
        },
        "openapi_extra": _extra(
            _ID,
            _parameter(
                "min_position",
                "query",
                {"type": "integer", "minimum": 0, "maximum": 2**63 - 1},
                "Respond only once the read model includes the log up to this position.",
            ),
            _parameter(
                "wait",
                "query",
                {"type": "integer", "minimum": 0, "maximum": longest_wait, "default": 2000},
                "Maximum time to wait for `min_position`, in milliseconds.",
            ),
        ),
    }
