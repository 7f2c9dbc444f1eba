"""What registrants may ask of the API.

Commands go to the handlers, questions to the read models. Nothing on these routes differs for an address that is
taken: a duplicate takes the same way through the same code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any, Final, NamedTuple, Self
from uuid import UUID

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from application.addresses import canonical_address
from application.answers import Answer
from application.commands import RegisterUser, RequestNewCode, VerifyEmail
from application.handlers import Handlers
from application.keyed_requests import Admit
from application.ports import Context
from domain.errors import UnknownRegistration
from domain.languages import language_of
from domain.recorded import Actor
from domain.registration import Status
from entrypoints.api.client_address import UNKNOWN, Requester, network_of
from entrypoints.api.guard import body_of, context_of
from entrypoints.api.idempotency import headers_of, idempotency_key_of
from entrypoints.api.limits import ASKING_FOR_A_CODE, REGISTERING, VERIFYING, RequestLimits
from entrypoints.api.openapi import REGISTER, REQUEST_CODE, VERIFY, show_described
from entrypoints.api.problems import to_problem
from entrypoints.api.request_body import malformed, parse
from entrypoints.api.responses import (
    CodeRequested,
    Hint,
    Registered,
    RegisteredWithHint,
    Verification,
    answer,
    registration_state,
)
from entrypoints.api.sign_up_rules import SignUpRules
from entrypoints.queries.registrations import RegistrationQueries
from infrastructure.telemetry.metrics import Metrics

DEFAULT_WAIT: Final = timedelta(seconds=2)
"""How long a read with `min_position` waits unless it says otherwise (contract)."""

LAST_POSITION: Final = 2**63 - 1

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_NUMBER = re.compile(r"[0-9]{1,19}")

ON_ITS_WAY: Final = "If this address can be registered, a code is on its way to it."
NEW_CODE: Final = "A new code is on its way; the one before does not work any more."


Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]
IsSyntheticKey = Callable[..., bool]


class ByHand(APIRoute):
    """A route whose endpoint reads its parameters itself: FastAPI's way costs as much as the rest of the request."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return endpoint


class Endpoints(NamedTuple):
    """What each route does, for whoever asks for it in another way."""

    register: Endpoint
    show: Endpoint
    verify: Endpoint
    request_code: Endpoint


def add_registration_routes(
    app: FastAPI,
    handlers: Handlers,
    registrations: RegistrationQueries,
    *,
    limits: RequestLimits,
    rules: SignUpRules,
    metrics: Metrics,
    request_timeout: timedelta,
    is_synthetic_key: IsSyntheticKey,
    prefix: str = "",
    described: bool = True,
) -> Endpoints:
    """What registrants do.

    Args:
        described: with models of the responses, which only the document needs.
        is_synthetic_key: see `infrastructure.crypto.keyring.Keyring.is_synthetic_key`.
        prefix: of the paths that clients are told.
    """
    longest_wait = request_timeout // timedelta(milliseconds=1)

    def add(method: str, path: str, endpoint: Callable[..., Any], summary: str, **description: Any) -> None:
        app.router.add_api_route(
            f"/v1/registrations{path}",
            endpoint,
            methods=[method],
            tags=["registrations"],
            summary=summary,
            route_class_override=ByHand,
            **(description if described else description | {"responses": None}),
        )

    register = _registering(handlers, limits, rules, metrics, is_synthetic_key, prefix)
    verify, request_code = _proving(handlers, limits, metrics, is_synthetic_key)
    show = _look(registrations, longest_wait)
    add("POST", "", register, "Register", **REGISTER)
    add("GET", "/{registration_id}", show, "Look at a registration", **show_described(longest_wait))
    add("POST", "/{registration_id}/verification", verify, "Verify the address", **VERIFY)
    add("POST", "/{registration_id}/otp", request_code, "Ask for a new code", **REQUEST_CODE)
    return Endpoints(register, show, verify, request_code)


def _is_of_probe(is_synthetic_key: IsSyntheticKey, request: Request, key: str | None) -> bool:
    """Whoever shares its network, behind a proxy that is not trusted say, uses up nothing of it."""
    if key is None:
        return False
    command = parse(RegisterUser, body_of(request), idempotency_key=key, network=UNKNOWN)
    return is_synthetic_key(key, "register", canonical_address(command.email))


def _registering(
    handlers: Handlers,
    limits: RequestLimits,
    rules: SignUpRules,
    metrics: Metrics,
    is_synthetic_key: IsSyntheticKey,
    prefix: str,
) -> Endpoint:
    async def register(request: Request) -> Response:
        """Start a registration. The response is the same whether or not the address is taken."""
        with _Counted(metrics.registration) as counted:
            key = idempotency_key_of(request)
            probes = partial(_is_of_probe, is_synthetic_key, request, key)
            requester = limits.requester(request.scope, REGISTERING, keyed=key is not None, spared=probes)
            command = parse(RegisterUser, body_of(request), idempotency_key=key, network=requester.network)
            context = context_of(request, Actor.CLIENT)
            if key is None:
                await limits.registration(requester, command.email)
                hint = rules.check(command)
                begun = await handlers.handle(command, context)
            elif is_synthetic_key(key, "register", canonical_address(command.email)):
                counted.forget()
                begun, hint = await handlers.handle(command, replace(context, actor=Actor.PROBE)), None
            else:
                begun, hint = await with_key(requester, command, context)
        told = (begun.subject_id, command.email, Status.PENDING, ON_ITS_WAY, language_of(command.locale))
        return answer(
            Registered(*told) if hint is None else RegisteredWithHint(*told, hint),
            202,
            {"Location": f"{prefix}/v1/registrations/{begun.subject_id}", **headers_of(begun)},
        )

    async def with_key(requester: Requester, command: RegisterUser, context: Context) -> tuple[Answer, Hint | None]:
        hint = None

        async def count() -> None:
            nonlocal hint
            await limits.registration(requester, command.email)
            hint = rules.check(command)

        admit = await limits.let_in(requester, count, keyed=True)
        begun = await handlers.handle(command, context, admit=admit)
        return begun, rules.hint(command) if begun.replayed and hint is None else hint

    return register


def _proving(
    handlers: Handlers, limits: RequestLimits, metrics: Metrics, is_synthetic_key: IsSyntheticKey
) -> tuple[Endpoint, Endpoint]:
    async def let_in(request: Request, key: str | None, names: Sequence[str]) -> Admit | None:
        """What lets a request in once its key has been looked for; None: it has been let in."""
        requester = limits.requester(request.scope, names, keyed=key is not None)
        return await limits.let_in(requester, partial(limits.count, requester, names), keyed=key is not None)

    async def verify(request: Request) -> Response:
        """Prove the address with the code from the mail. Once it is proved, any code gets the same response."""
        with _Counted(metrics.verification) as counted:
            key = idempotency_key_of(request)
            if key is not None and is_synthetic_key(key, "verify", str(_id_of(request))):
                counted.forget()
                admit, actor = None, Actor.PROBE
            else:
                admit, actor = await let_in(request, key, VERIFYING), Actor.CLIENT
            command = parse(VerifyEmail, body_of(request), registration_id=_id_of(request), idempotency_key=key)
            verified = await handlers.handle(command, context_of(request, actor), admit=admit)
        return answer(
            Verification("ACTIVE" if verified.status is Status.ACTIVE else "VERIFIED"), headers=headers_of(verified)
        )

    async def request_code(request: Request) -> Response:
        """Replace the code by a new one, at most once a minute and five times an hour."""
        key = idempotency_key_of(request)
        admit = await let_in(request, key, ASKING_FOR_A_CODE)
        command = RequestNewCode(
            registration_id=_id_of(request), network=network_of(request.scope), idempotency_key=key
        )
        renewed = await handlers.handle(command, context_of(request, Actor.CLIENT), admit=admit)
        return answer(CodeRequested(renewed.subject_id, NEW_CODE), 202, headers_of(renewed))

    return verify, request_code


def _look(registrations: RegistrationQueries, longest_wait: int) -> Endpoint:
    async def show(request: Request) -> Response:
        """The registration's state. With `min_position` of an earlier response, at least as new as that response."""
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

    return show


class _Counted:
    """Counts what becomes of a request: "accepted", or its error code."""

    __slots__ = ("_count",)

    def __init__(self, count: Callable[[str], None]) -> None:
        self._count = count

    def forget(self) -> None:
        """It was none of a person: it does not count."""
        self._count = _nothing

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is None:
            self._count("accepted")
        elif isinstance(error, Exception):
            self._count(to_problem(error).code)


def _nothing(_: str) -> None:
    pass


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
