"""The dead-letter desk: what became of the mails, and an operator's retry or discard, each a recorded event."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID, uuid4

from application.commands import DiscardMail, RetryMail
from application.ports import Conflict, Context, Unavailable
from domain.errors import Refused
from domain.registration import Status
from entrypoints.bootstrap import Service
from entrypoints.cli_output import note, print_json, print_table
from entrypoints.reading import ReadModels
from projections.mail import Mails
from projections.registrations import Registrations

_PAGE = 500


@dataclass(frozen=True, slots=True)
class Report:
    """What became of one command.

    Attributes:
        outcome: "done", "nothing to do", "refused" or "failed".
        reason: the code of the refusal, or what is away.
    """

    registration_id: UUID
    outcome: str
    reason: str | None = None


async def list_mails(service: Service, *, state: str | None, limit: int, as_json: bool) -> int:
    """Print mails as the read model has them, the latest first."""
    async with service.pool.connection() as connection:
        found = await Mails.search(connection, state=state.upper() if state else None, limit=limit)
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
    if found.next_cursor is not None:
        note(f"There are more than {limit}; --limit shows more.")
    behind = [one.lag_events for one in (await ReadModels(service).followers()).items if one.name == Mails.name]
    if any(behind):
        note(f"This list is behind the log by {behind[0]}; does `registrar up` or `registrar process` run?")
    return 0


async def retry(service: Service, registration_ids: Sequence[UUID] | None, *, as_json: bool) -> int:
    """Have mails tried again now; None: all that have failed and whose registration still waits for one."""
    if registration_ids is None:
        registration_ids = await _worth_a_retry(service)
    return await _each(service, [RetryMail(registration_id=one) for one in registration_ids], as_json=as_json)


async def discard(service: Service, registration_ids: Sequence[UUID], *, as_json: bool) -> int:
    """Give mails up; the saga undoes their registrations."""
    return await _each(service, [DiscardMail(registration_id=one) for one in registration_ids], as_json=as_json)


async def _each(service: Service, commands: Sequence[RetryMail | DiscardMail], *, as_json: bool) -> int:
    """Run commands one by one and report; 1 if any did not have its effect."""
    correlation_id = uuid4()
    reports = [await _run(service, command, correlation_id) for command in commands]
    if as_json:
        print_json(reports)
    elif reports:
        print_table(
            ("registration", "outcome", "reason"), ((one.registration_id, one.outcome, one.reason) for one in reports)
        )
    else:
        note("There is nothing to do.")
    return 1 if any(one.outcome in {"refused", "failed"} for one in reports) else 0


async def _run(service: Service, command: RetryMail | DiscardMail, correlation_id: UUID) -> Report:
    registration_id = command.registration_id
    try:
        before = (await service.store.load(registration_id)).position(registration_id)
        answer = await service.handlers.handle(command, Context(actor="operator", correlation_id=correlation_id))
    except Refused as refusal:
        return Report(registration_id, "refused", refusal.code)
    except Conflict:
        return Report(registration_id, "failed", "somebody else changed it at the same time")
    except Unavailable as error:
        return Report(registration_id, "failed", str(error))
    return Report(registration_id, "done" if answer.position > before else "nothing to do")


async def _worth_a_retry(service: Service) -> list[UUID]:
    """Registrations that are pending and whose mail has failed, for now or for good; the one that waits longest first."""
    waiting: list[UUID] = []
    async with service.pool.connection() as connection:
        for state in ("FAILED", "RETRYING"):
            cursor: str | None = None
            while True:
                found = await Mails.search(connection, state=state, cursor=cursor, limit=_PAGE)
                ids = [one.registration_id for one in found.items]
                views, _ = await Registrations.find(connection, ids)
                waiting += [one for one in ids if one in views and views[one].status == Status.PENDING]
                cursor = found.next_cursor
                if cursor is None:
                    break
    return list(dict.fromkeys(reversed(waiting)))
