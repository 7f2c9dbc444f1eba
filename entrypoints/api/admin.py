"""The operators' routes: look at registrations, the audit log, mails and followers, and act on them."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from hashlib import sha256
from typing import Annotated, Any, Final, Literal
from uuid import UUID, uuid4

from fastapi import Depends, FastAPI, Query
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import AfterValidator, ConfigDict, Field, model_validator
from starlette.requests import Request
from starlette.responses import Response

from application.answers import Answer
from application.commands import CancelRegistration, Command, EraseRegistration, RecordPersonalDataRead
from application.handlers import Handlers
from application.operator_acts import SEARCH_REGISTRATIONS, SHOW_REGISTRATION
from domain.errors import Refused, UnknownRegistration
from domain.mail_outcome import CancelReason, MailFailure
from domain.mail_state import STRAY, ListedAs
from domain.registration import Status
from entrypoints import dead_letters, parked_streams
from entrypoints.api.accounts import add_account_routes
from entrypoints.api.guard import Endpoint, body_of
from entrypoints.api.idempotency import answered_once, headers_of, part_of
from entrypoints.api.jobs import PREFIX, BeginJob
from entrypoints.api.limits import LOGGING_IN, RequestLimits
from entrypoints.api.openapi import BODY_PROBLEMS, KEY_PROBLEMS, body_described, problems, with_key
from entrypoints.api.parts import Parts
from entrypoints.api.problems import HttpProblem
from entrypoints.api.reasons import REASON, operator_of, read_reason
from entrypoints.api.replay import add_replay_routes
from entrypoints.api.request_body import parse
from entrypoints.api.responses import (
    AdminRegistrationStory,
    AuditEntries,
    Done,
    Followers,
    FunnelBuckets,
    Mails,
    MailsRetried,
    ParkedEvents,
    ParkedRetried,
    ParkedStreams,
    Registrations,
    StatusName,
    StrayMessages,
    Suppressions,
    admin_story,
    answer,
    followers,
    funnel_buckets,
    registrations_page,
)
from entrypoints.api.strict_values import WHOLE, Address, Filters, Instant
from entrypoints.queries.audit import Filters as AuditFilters
from entrypoints.queries.mails import MailQueries
from entrypoints.queries.parked import ParkedQueries
from entrypoints.queries.queries import Queries
from entrypoints.queries.registrations import OpenedRegistration
from projections.paging import before

_bearer: Final = HTTPBearer(auto_error=False)


class Operator:
    """Lets in those who know one of the tokens; if there is none, nobody.

    Only who does not is counted, by the network; who has failed too often is not even compared with for a while, so
    that guesses are few.

    Compared in constant time, also in the length of what was sent: two hashes are always of the same length.
    """

    def __init__(self, limits: RequestLimits, *tokens: str | None) -> None:
        self._limits = limits
        # In place of a token that is not set the comparison is with one that nobody has.
        self._expected = [_digest(token or secrets.token_urlsafe(32)) for token in tokens]

    async def __call__(
        self,
        request: Request,
        credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    ) -> None:
        requester = self._limits.requester(request.scope, LOGGING_IN)
        offered = _digest("" if credentials is None else credentials.credentials)
        if not any(hmac.compare_digest(offered, one) for one in self._expected):
            await self._limits.count(requester, LOGGING_IN)
            raise HttpProblem("unauthorized", headers={"WWW-Authenticate": 'Bearer realm="registrar"'})


def _digest(token: str) -> bytes:
    return sha256(token.encode("utf-8", "surrogatepass")).digest()


def _cursor_of_ours(cursor: str | None) -> str | None:
    before(cursor)
    return cursor


class _Page(Filters):
    cursor: Annotated[
        str | None,
        Field(pattern="^[A-Za-z0-9_=-]{1,64}$", description="`next_cursor` of a page"),
        AfterValidator(_cursor_of_ours),
    ] = None
    limit: Annotated[int, Field(ge=1, le=200), WHOLE] = 50


class RegistrationsQuery(_Page):
    status: StatusName | None = None
    email: Annotated[Address | None, Field(description="the whole address; duplicates are found, too")] = None


class AuditQuery(_Page):
    """Filters in any combination."""

    registration_id: Annotated[
        UUID | None, Field(description="everything about this registration, whichever stream it stands in")
    ] = None
    email: Annotated[Address | None, Field(description="everything about this address")] = None
    actor: Annotated[
        str | None,
        Field(pattern="^[a-z][a-z0-9-]{0,31}$", examples=["client"], description="who did it: client, operator, …"),
    ] = None
    type: Annotated[
        str | None, Field(pattern="^[a-z_]{1,32}[.][a-z_]{1,64}$", examples=["registration.email_verified"])
    ] = None
    correlation_id: Annotated[UUID | None, Field(description="everything that followed from one request")] = None
    since: Annotated[Instant | None, Field(description="recorded at this time or later")] = None
    until: Annotated[Instant | None, Field(description="recorded before this time")] = None

    @model_validator(mode="after")
    def _something_lies_between(self) -> AuditQuery:
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise ValueError("since must be before until")
        return self


class MailQuery(_Page):
    state: Annotated[
        ListedAs | None,
        Field(
            description="WAITING: failed for good, and an operator can still do something about it; FAILED: also those"
            " whose registration has ended since; STRAY: foreign messages"
        ),
    ] = None


class RetryByCause(_Page):
    """Which mails are to be tried again, as many of them as one request looks at."""

    model_config = ConfigDict(strict=True)

    failure: Annotated[MailFailure, Field(examples=["expired"], description="`failure` of the mails to retry")]


class ParkedQuery(Filters):
    follower: Annotated[str | None, Field(max_length=100, description="only what this follower has parked")] = None


class FunnelQuery(Filters):
    since: Annotated[Instant | None, Field(description="by default a day ago, or 30 days for `day`")] = None
    bucket: Literal["hour", "day"] = "hour"


def add_admin_routes(app: FastAPI, parts: Parts) -> Endpoint:
    """Everything under `/v1/admin`; returns what does by hand all that the route of password checks does."""
    operator = Operator(parts.limits, parts.admin_token, parts.next_admin_token)
    handlers, queries = parts.handlers, parts.queries

    def add(
        method: str,
        path: str,
        endpoint: Callable[..., Any],
        summary: str,
        model: Any,
        *codes: str,
        status: int = 200,
        keyed: bool = True,
        **described: Any,
    ) -> None:
        """`model` is a media type where the response is no JSON; `keyed`: a POST takes an Idempotency-Key."""
        shape: dict[str, Any]
        shape = {"content": {model: {"schema": {"type": "string"}}}} if isinstance(model, str) else {"model": model}
        if method == "POST" and keyed:
            codes, described = (*codes, *KEY_PROBLEMS), with_key(shape, described)
        app.add_api_route(
            f"{PREFIX}{path}",
            endpoint,
            methods=[method],
            tags=["admin"],
            summary=summary,
            dependencies=[Depends(operator), Depends(read_reason)],
            status_code=status,
            responses={status: shape, **problems("invalid-request", "unauthorized", "too-many-requests", *codes)},
            **described,
        )

    _add_questions_about_registrations(add, handlers, queries)
    _add_questions_about_the_service(add, queries)
    check = add_account_routes(add, queries.accounts, parts.passwords, parts.limits)
    _add_acts_on_registrations(add, handlers)
    _add_acts_on_mails(add, handlers, queries.mails)
    _add_suppressions(add, handlers, queries.mails)
    _add_acts_on_followers(add, handlers, queries.parked)
    add_replay_routes(add, queries.replay, BeginJob(parts.jobs, handlers), parts.export, patience=parts.request_timeout)
    return _by_hand(check, operator)


def _by_hand(check: Callable[[UUID, Request], Awaitable[Response]], operator: Operator) -> Endpoint:
    """What checks a password, with all that the dependencies of its route do before."""

    async def check_by_hand(request: Request) -> Response:
        await operator(request, await _bearer(request))
        await read_reason(request, request.headers.get(REASON))
        return await check(UUID(request.path_params["registration_id"]), request)

    return check_by_hand


_UNKNOWN: Final = "unknown-registration"


def _add_questions_about_registrations(add: Callable[..., None], handlers: Handlers, queries: Queries) -> None:
    async def note_read(request: Request, act: str, shown: Sequence[OpenedRegistration]) -> None:
        """Before anybody is shown: what cannot be recorded is not shown."""
        persons = tuple(one.view.registration_id for one in shown if one.person is not None)
        if persons:
            read = RecordPersonalDataRead(read_id=uuid4(), act=act, registration_ids=persons)
            await handlers.handle(read, operator_of(request))

    async def search(query: Annotated[RegistrationsQuery, Query()], request: Request) -> Response:
        """Registrations, newest first, with address and name in clear; that they were read is recorded."""
        found = await queries.registrations.search(
            status=query.status, email=query.email, cursor=query.cursor, limit=query.limit
        )
        await note_read(request, SEARCH_REGISTRATIONS, found.items)
        return answer(registrations_page(found))

    async def show(registration_id: UUID, request: Request) -> Response:
        """One registration, whether it is a duplicate, and every mail of it; that it was read is recorded."""
        story = await queries.registrations.story(registration_id)
        if story is None:
            raise UnknownRegistration
        await note_read(request, SHOW_REGISTRATION, [story.registration])
        return answer(admin_story(story))

    async def audit(query: Annotated[AuditQuery, Query()]) -> Response:
        """Who did what, when, and because of what; newest first."""
        filters = AuditFilters(
            registration_id=query.registration_id,
            email=query.email,
            actor=query.actor,
            topic=query.type,
            correlation_id=query.correlation_id,
            since=query.since,
            until=query.until,
        )
        found = await queries.audit.search(filters, cursor=query.cursor, limit=query.limit)
        return answer(found)

    add("GET", "/registrations", search, "Search registrations", Registrations)
    add("GET", "/registrations/{registration_id}", show, "The full picture", AdminRegistrationStory, _UNKNOWN)
    add("GET", "/audit", audit, "Search the audit log", AuditEntries)


def _add_questions_about_the_service(add: Callable[..., None], queries: Queries) -> None:
    async def mails(query: Annotated[MailQuery, Query()]) -> Response:
        """Mails, the latest issue first; `state=WAITING` are the dead letters that wait for an operator."""
        if query.state == STRAY:
            return answer(await queries.mails.strays(cursor=query.cursor, limit=query.limit))
        return answer(await queries.mails.search(state=query.state, cursor=query.cursor, limit=query.limit))

    async def funnel(query: Annotated[FunnelQuery, Query()]) -> Response:
        """How many registrations reached each stage, and how long it took them."""
        return answer(funnel_buckets(await queries.funnel.buckets(since=query.since, bucket=query.bucket)))

    async def projections() -> Response:
        """Position, lag and parked streams of every follower of the log, and of other versions of read models."""
        return answer(followers(await queries.followers.listed()))

    async def parked(query: Annotated[ParkedQuery, Query()]) -> Response:
        """The streams that followers have put aside, with the error of each; at most 1,000."""
        return answer(ParkedStreams(await queries.parked.streams(follower=query.follower)))

    async def parked_stream(stream_id: UUID) -> Response:
        """Every parked event of a stream: the error, the event, and the place in the code that refused it."""
        return answer(ParkedEvents(await queries.parked.stream(stream_id)))

    add("GET", "/projections/parked", parked, "Parked streams", ParkedStreams)
    add("GET", "/projections/parked/{stream_id}", parked_stream, "A parked stream", ParkedEvents, _UNKNOWN)
    add("GET", "/mail", mails, "The mail desk", Mails | StrayMessages)
    add("GET", "/funnel", funnel, "The funnel", FunnelBuckets)
    add("GET", "/projections", projections, "Followers and read models", Followers)


_REFUSALS: Final = (_UNKNOWN, "not-pending")


def _done(done: Answer) -> Response:
    status = done.status or Status.CANCELLED  # a stray message has none of its own: it is discarded
    return answer(Done(done.subject_id, status.value), headers=headers_of(done))


def _add_acts_on_registrations(add: Callable[..., None], handlers: Handlers) -> None:
    async def do(command: Command, request: Request) -> Response:
        return _done(await handlers.handle(command, operator_of(request)))

    async def cancel(registration_id: UUID, request: Request) -> Response:
        """Undo a registration that is not verified; its address becomes free."""
        return await do(CancelRegistration(registration_id=registration_id, reason=CancelReason.OPERATOR), request)

    async def erase(registration_id: UUID, request: Request) -> Response:
        """End the registration or account and destroy the person's key: what it sealed cannot be read again."""
        return await do(EraseRegistration(registration_id=registration_id), request)

    add("POST", "/registrations/{registration_id}/cancel", cancel, "Cancel a registration", Done, *_REFUSALS)
    add("POST", "/registrations/{registration_id}/erase", erase, "Erase a person", Done, _UNKNOWN)


def _add_acts_on_mails(add: Callable[..., None], handlers: Handlers, mails: MailQueries) -> None:
    async def retry(registration_id: UUID, request: Request) -> Response:
        """Try the mail of a pending registration again now."""
        return _done(await dead_letters.retry(handlers, registration_id, operator_of(request)))

    async def retry_by_cause(request: Request) -> Response:
        """Try the mails again whose last failure is this one, the latest issue first.

        A request looks at `limit` mails; go on with `next_cursor` until it is null. Repeatable: a mail that goes out
        in the meantime is passed over.
        """
        wanted, context = parse(RetryByCause, body_of(request)), operator_of(request)

        async def retry_some() -> Sequence[str]:
            found = await mails.worth_a_retry(failures=[wanted.failure], cursor=wanted.cursor, limit=wanted.limit)
            requested = 0
            for registration_id in found.registration_ids:
                with suppress(Refused):  # verified or ended since
                    part = part_of(context, registration_id)
                    retried = await dead_letters.retry(handlers, registration_id, part)
                    requested += retried.recorded or retried.replayed
            passed_over = len(found.registration_ids) - requested + found.others
            return str(requested), str(passed_over), found.next_cursor or ""

        (requested, passed_over, cursor), headers = await answered_once(handlers, context, "retry-mails", retry_some)
        headers.pop("Registrar-Position", None)
        return answer(MailsRetried(int(requested), int(passed_over), cursor or None), headers=headers)

    async def discard(registration_id: UUID, request: Request) -> Response:
        """Give the mail up; the registration is undone. A stray message, by its id, is taken from the list."""
        return _done(await dead_letters.discard(handlers, registration_id, operator_of(request)))

    add("POST", "/mail/{registration_id}/retry", retry, "Retry a mail", Done, *_REFUSALS)
    add(
        *("POST", "/mail/retry", retry_by_cause, "Retry mails by cause", MailsRetried, *BODY_PROBLEMS),
        openapi_extra=body_described(RetryByCause, {"failure": "expired"}),
    )
    add("POST", "/mail/{registration_id}/discard", discard, "Discard a mail", Done, *_REFUSALS)


def _add_suppressions(add: Callable[..., None], handlers: Handlers, mails: MailQueries) -> None:
    async def suppressions(query: Annotated[_Page, Query()]) -> Response:
        """Mailboxes that are sent no more since a mail there was marked as unwanted, the latest first.

        Each by the registration whose mail that was; no address is told.
        """
        return answer(await mails.suppressions(cursor=query.cursor, limit=query.limit))

    async def allow(registration_id: UUID, request: Request) -> Response:
        """Send the mailbox of this registration mails again, where it is sent no more: the next code goes there."""
        return _done(await dead_letters.allow(handlers, registration_id, operator_of(request)))

    add("GET", "/mail/suppressions", suppressions, "Mailboxes that are sent no more", Suppressions)
    add("POST", "/mail/{registration_id}/allow", allow, "Send a mailbox mails again", Done, _UNKNOWN)


def _add_acts_on_followers(add: Callable[..., None], handlers: Handlers, parked: ParkedQueries) -> None:
    async def retry(stream_id: UUID, request: Request) -> Response:
        """Have every follower that has parked this stream try it again now; the others go on meanwhile."""
        context, position = operator_of(request), 0

        async def retry_all() -> Sequence[str]:
            nonlocal position
            followers = await parked.followers_of(stream_id)
            registration_id = await parked.registration_of(stream_id)
            done = await parked_streams.retry(handlers, stream_id, followers, context, registration_id=registration_id)
            position = done[-1].position
            return followers

        followers, headers = await answered_once(handlers, context, "retry-parked-stream", retry_all)
        return answer(ParkedRetried(stream_id, followers), headers={"Registrar-Position": str(position), **headers})

    add("POST", "/projections/parked/{stream_id}/retry", retry, "Retry a parked stream", ParkedRetried, _UNKNOWN)
