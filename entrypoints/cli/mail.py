"""The dead-letter desk: what became of the mails, and an operator's retry or discard, each a recorded event."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID, uuid4

import click

from application.handlers import Handlers
from application.ports import Conflict, Context, Unavailable
from domain.errors import Refused
from domain.mail_outcome import MAIL_FAILURES
from domain.mail_state import WAITING
from domain.recorded import Actor
from entrypoints import dead_letters as mail_desk
from entrypoints.bootstrap.desk import Desk, Reader
from entrypoints.cli.output import note, print_json, print_table
from entrypoints.queries.mails import MailQueries
from projections.audit import Audit
from projections.mail import Mails

_PAGE = 500


@dataclass(frozen=True, slots=True)
class Report:
    """What became of one act.

    Attributes:
        registration_id: or the id of a stray message.
        outcome: "done", "nothing to do", "refused" or "failed".
        reason: the code of the refusal, or what is away.
    """

    registration_id: UUID
    outcome: str
    reason: str | None = None


def known_failures(failures: tuple[str, ...]) -> tuple[str, ...]:
    """The failures as given.

    Raises:
        click.BadParameter: a mail does not fail so.
    """
    for given in failures:
        if given not in MAIL_FAILURES:
            raise click.BadParameter(
                f"'{given}' is not how a mail fails; known are {', '.join(MAIL_FAILURES)}.",
                click.get_current_context(),
                param_hint="--failure",
            )
    return failures


async def list_mails(reader: Reader, *, state: str, limit: int, as_json: bool) -> int:
    """Print mails as the read model has them, the latest first."""
    found = await reader.mails.search(state=None if state == "all" else state.upper(), limit=limit)
    strays = await reader.mails.stray_messages() if state.upper() == WAITING else 0
    if as_json:
        print_json(found.items)
    else:
        columns = ("registration", "serial", "kind", "state", "failures", "failure", "provider", "reply")
        print_table(
            (*columns, "last attempt", "next try"),
            (
                (
                    *(one.registration_id, one.serial, one.kind, one.state, one.failures, one.failure, one.provider),
                    *(one.reply_status or one.reply_code, one.last_attempt_at, one.next_try_at),
                )
                for one in found.items
            ),
        )
    if strays:
        note(f"Foreign messages wait, too: {strays}; --state stray shows them.")
    await _note_what_is_missing(reader, limit, there_are_more=found.next_cursor is not None)
    return 0


async def list_strays(reader: Reader, *, limit: int, as_json: bool) -> int:
    """Print the foreign messages among the dead letters, the latest first."""
    found = await reader.mails.strays(limit=limit)
    if as_json:
        print_json(found.items)
    else:
        print_table(
            ("id", "reason", "died of", "bytes", "content type", "fields", "other fields", "kept at", "digest"),
            (
                (
                    *(one.id, one.reason, one.died_of, one.size, one.content_type, one.fields or None),
                    *(one.other_fields, one.kept_at, one.digest),
                )
                for one in found.items
            ),
        )
    await _note_what_is_missing(reader, limit, there_are_more=found.next_cursor is not None)
    return 0


async def _note_what_is_missing(
    reader: Reader, limit: int, *, there_are_more: bool, follower: str = Mails.name
) -> None:
    if there_are_more:
        note(f"There are more than {limit}; --limit shows more.")
    if behind := (await reader.followers.progress_of(follower)).lag_events:
        note(f"This list is behind the log by {behind}; does `registrar up` or `registrar process` run?")


async def retry(desk: Desk, registration_ids: Sequence[UUID], *, reason: str | None = None, as_json: bool) -> int:
    """Have mails tried again now."""
    return await _each(desk.handlers, mail_desk.retry, registration_ids, reason=reason, as_json=as_json)


async def retry_all(desk: Desk, failures: Sequence[str], *, reason: str | None = None, as_json: bool) -> int:
    """Have all mails tried again now that have failed and whose registration still waits for one.

    Args:
        failures: only those whose last failure is one of these, unless it is empty.
    """
    return await retry(desk, await _worth_a_retry(desk.mails, failures), reason=reason, as_json=as_json)


async def discard(desk: Desk, wanted_ids: Sequence[UUID], *, reason: str | None = None, as_json: bool) -> int:
    """Give mails up, whose registrations the saga undoes, and take stray messages from the list."""
    return await _each(desk.handlers, mail_desk.discard, wanted_ids, reason=reason, as_json=as_json)


async def list_suppressions(reader: Reader, *, limit: int, as_json: bool) -> int:
    """Print the mailboxes that are sent no more, the latest complaint first."""
    found = await reader.mails.suppressions(limit=limit)
    if as_json:
        print_json(found.items)
    else:
        print_table(
            ("registration", "complained at", "reported by"),
            ((one.registration_id, one.complained_at, one.reported_by) for one in found.items),
        )
    await _note_what_is_missing(reader, limit, there_are_more=found.next_cursor is not None, follower=Audit.name)
    return 0


async def allow(desk: Desk, who: UUID | str, *, reason: str | None = None, as_json: bool) -> int:
    """Have a mailbox sent mails again: that of a registration, or of an address."""
    registration_id = who if isinstance(who, UUID) else await desk.latest_of_mailbox(who)
    if registration_id is None:
        note("Nobody has registered with this address, or one of the same mailbox.")
        return 1
    return await _each(desk.handlers, mail_desk.allow, [registration_id], reason=reason, as_json=as_json)


async def _each(
    handlers: Handlers, act: mail_desk.Act, wanted_ids: Sequence[UUID], *, reason: str | None, as_json: bool
) -> int:
    """Act on one after the other and report; 1 if any did not have its effect."""
    context = Context(Actor.OPERATOR, correlation_id=uuid4(), reason=reason)
    reports = [await _report(handlers, act, wanted_id, context) for wanted_id in wanted_ids]
    if as_json:
        print_json(reports)
    elif reports:
        print_table(
            ("registration", "outcome", "reason"), ((one.registration_id, one.outcome, one.reason) for one in reports)
        )
    else:
        note("There is nothing to do.")
    return 1 if any(one.outcome in {"refused", "failed"} for one in reports) else 0


async def _report(handlers: Handlers, act: mail_desk.Act, wanted_id: UUID, context: Context) -> Report:
    try:
        answer = await act(handlers, wanted_id, context)
    except Refused as refusal:
        return Report(wanted_id, "refused", refusal.code)
    except Conflict:
        return Report(wanted_id, "failed", "somebody else changed it at the same time")
    except Unavailable as error:
        return Report(wanted_id, "failed", str(error))
    return Report(wanted_id, "done" if answer.recorded else "nothing to do")


async def _worth_a_retry(mails: MailQueries, failures: Sequence[str]) -> list[UUID]:
    """Registrations that are pending and whose mail has failed, for now or for good; the one that waits longest
    first."""
    waiting: list[UUID] = []
    cursor: str | None = None
    while True:
        found = await mails.worth_a_retry(failures=failures or None, cursor=cursor, limit=_PAGE)
        waiting += found.registration_ids
        cursor = found.next_cursor
        if cursor is None:
            return waiting[::-1]
