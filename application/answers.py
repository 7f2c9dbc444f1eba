"""The result of a command, and the type of what wraps every command."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from uuid import UUID

from application.commands import Command
from application.ports import Context
from domain.recorded import Position
from domain.registration import Status


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a command.

    Attributes:
        subject_id: the registration, or the stray message, that the command was about.
        status: the registration's status after the command; None if it was about something else, or loaded no
            registration.
        position: a read model at this position shows the effect.
        recorded: whether events were recorded; False if the effect held already.
        replayed: whether it is the answer to an earlier request with the same Idempotency-Key.
        details: what else was told, as the one who asks has written it (`KeepAnswer`).
    """

    subject_id: UUID
    status: Status | None
    position: Position
    recorded: bool
    replayed: bool = False
    details: tuple[str, ...] = ()


Handle = Callable[[Command, Context], Awaitable[Answer]]
"""Runs a command: `Handlers.handle`, or the rest of the chain inside an `Around`."""

Around = Callable[[Handle, Command, Context], Awaitable[Answer]]
"""Middleware for commands: calls the next one once. The place for what concerns every command (spans, metrics, limits).

It sees the command before it is decided and its result or error afterwards, and may raise an error of its own instead.
A version conflict is retried further inside.
"""
