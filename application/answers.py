"""What a command leads to, and what can be put around running one."""

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
    """What a command led to.

    Attributes:
        subject_id: the registration, or the stray message, that it was about.
        status: the registration's status now; None if the command was about something else, or read none.
        position: a read model at this position shows the effect.
        recorded: did it have an effect? False if that held already.
    """

    subject_id: UUID
    status: Status | None
    position: Position
    recorded: bool


Handle = Callable[[Command, Context], Awaitable[Answer]]
"""Runs a command: `Handlers.handle`, or what is left of it inside of an `Around`."""

Around = Callable[[Handle, Command, Context], Awaitable[Answer]]
"""Runs a command by way of the next one, once: the place of whatever is to see all commands (spans, counts, limits).

It sees a command before it is decided and its answer or error after that, and may raise an error of its own instead; a
lost race is decided again inside.
"""
