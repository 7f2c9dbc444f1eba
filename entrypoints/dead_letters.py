"""The dead-letter desk: an operator's acts on mails and stray messages, for the command line and the API."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from uuid import UUID

from application.answers import Answer
from application.commands import AllowMailbox, DiscardMail, DiscardStrayMessage, RetryMail
from application.handlers import Handlers
from application.ports import Context
from domain.errors import UnknownRegistration

Act = Callable[[Handlers, UUID, Context], Awaitable[Answer]]
"""`retry`, `discard` or `allow`."""


async def retry(handlers: Handlers, registration_id: UUID, context: Context) -> Answer:
    """Try the mail of a pending registration again now.

    Raises:
        UnknownRegistration, NotPending: it is not to be.
        Conflict, Unavailable: worth a repeat.
    """
    return await handlers.handle(RetryMail(registration_id=registration_id), context)


async def discard(handlers: Handlers, wanted_id: UUID, context: Context) -> Answer:
    """Give the mail of a registration up, or take a stray message from the list: whichever has this id.

    Raises:
        UnknownRegistration: nothing has it.
        NotPending: the registration is an account.
        Conflict, Unavailable: worth a repeat.
    """
    try:
        return await handlers.handle(DiscardMail(registration_id=wanted_id), context)
    except UnknownRegistration:
        return await handlers.handle(DiscardStrayMessage(message_id=wanted_id), context)


async def allow(handlers: Handlers, registration_id: UUID, context: Context) -> Answer:
    """Have this registration's mailbox sent mails again; without effect where it is.

    Raises:
        UnknownRegistration: there is none with this id.
        Conflict, Unavailable: worth a repeat.
    """
    return await handlers.handle(AllowMailbox(registration_id=registration_id), context)
