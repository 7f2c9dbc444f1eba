"""Accounts for the login service of an application: found by address, their passwords checked and set."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator
from starlette.requests import Request
from starlette.responses import Response

from application.account_passwords import AccountPasswords, UnfitPassword
from application.passwords import MAX_BYTES
from application.unfit import Unfit
from domain.errors import NotAnAccount
from domain.registration import Status
from entrypoints.api.guard import body_of
from entrypoints.api.idempotency import headers_of
from entrypoints.api.limits import RequestLimits
from entrypoints.api.openapi import BODY_PROBLEMS, body_described
from entrypoints.api.reasons import operator_of
from entrypoints.api.request_body import malformed, parse
from entrypoints.api.responses import Done, Id, Time, answer
from entrypoints.api.strict_values import Address, Filters
from entrypoints.queries.accounts import AccountQueries, FoundAccount

_EXAMPLE: Final = {"password": "correct horse battery"}


@dataclass(frozen=True, slots=True)
class AccountState:
    """An active account, without anything personal.

    Attributes:
        has_password: false where the person registered without one.
    """

    registration_id: Id
    locale: Annotated[str, Field(examples=["en"])]
    activated_at: Time
    has_password: bool


@dataclass(frozen=True, slots=True)
class AccountList:
    """The active account of an address; none where it has none."""

    items: list[AccountState]


@dataclass(frozen=True, slots=True)
class PasswordChecked:
    """Whether it is the account's password."""

    matches: bool


def account_list(found: FoundAccount | None) -> AccountList:
    return AccountList([] if found is None else [AccountState(**asdict(found))])


class AccountsQuery(Filters):
    email: Annotated[Address, Field(description="the whole address")]


class TypedPassword(BaseModel):
    """A password as somebody has typed it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    password: Annotated[SecretStr, Field(min_length=1, max_length=MAX_BYTES)]

    @field_validator("password")
    @classmethod
    def _is_text(cls, typed: SecretStr) -> SecretStr:
        try:
            size = len(typed.get_secret_value().encode())
        except UnicodeEncodeError:
            raise Unfit("invalid-characters", "contains an unpaired surrogate") from None
        if size > MAX_BYTES:
            raise Unfit("too-long", f"too long: at most {MAX_BYTES} bytes in UTF-8")
        return typed


def add_account_routes(
    add: Callable[..., None], accounts: AccountQueries, passwords: AccountPasswords, limits: RequestLimits
) -> Endpoint:
    """Below `/v1/admin/accounts`; returns the endpoint that checks passwords."""

    async def find(query: Annotated[AccountsQuery, Query()]) -> Response:
        """The active account of an address: one, or none. Nothing personal is shown, so it is not recorded."""
        found = await accounts.by_address(query.email)
        return answer(account_list(found))

    add("GET", "/accounts", find, "Find an account", AccountList)
    described: dict[str, Any] = {"openapi_extra": body_described(TypedPassword, _EXAMPLE)}
    of_one = "/accounts/{registration_id}"
    check = _checking(passwords, limits)
    add(
        *("POST", f"{of_one}/password-check", check, "Check a password", PasswordChecked),
        *BODY_PROBLEMS,
        keyed=False,
        **described,
    )
    add(
        *("POST", f"{of_one}/password", _setting(passwords), "Set a password", Done, *BODY_PROBLEMS),
        *("unknown-registration", NotAnAccount.code),
        **described,
    )
    return check


Endpoint = Callable[[UUID, Request], Coroutine[Any, Any, Response]]


def _checking(passwords: AccountPasswords, limits: RequestLimits) -> Endpoint:
    async def check(registration_id: UUID, request: Request) -> Response:
        """Is this the account's password?

        It takes as long, and gives the same response, where there is no such account or it has no password. Every third
        wrong password in a row is recorded, and then ever fewer; the password never is.
        """
        await limits.password_check(registration_id)
        typed = parse(TypedPassword, body_of(request)).password.get_secret_value()
        # Whatever key it comes with: nothing is kept of it by which the password could be guessed.
        context = replace(operator_of(request), once=None)
        return answer(PasswordChecked(await passwords.check(registration_id, typed, context)))

    return check


def _setting(passwords: AccountPasswords) -> Endpoint:
    async def set_password(registration_id: UUID, request: Request) -> Response:
        """Give an account another password, by the rules of a registration's; the former does not match any more."""
        typed = parse(TypedPassword, body_of(request)).password.get_secret_value()
        context = operator_of(request)
        if context.once is not None:
            context = replace(context, once=replace(context.once, asked=request.scope["path"]))
        try:
            done = await passwords.set(registration_id, typed, context)
        except UnfitPassword as reason:
            raise malformed("password", str(reason), reason.code) from None
        return answer(Done(done.subject_id, (done.status or Status.ACTIVE).value), headers=headers_of(done))

    return set_password
