"""The header `Idempotency-Key`, and what says that an answer was given before."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from uuid import UUID

from starlette.requests import Request

from application.answers import Answer
from application.commands import KeepAnswer
from application.handlers import Handlers
from application.ports import Context, Once
from entrypoints.api.guard import sent_key_of
from entrypoints.api.problems import REPLAYED
from entrypoints.api.request_body import malformed

_KEY = re.compile(rb'(?P<quote>"?)(?P<key>[A-Za-z0-9_-]{16,64})(?P=quote)')


def idempotency_key_of(request: Request) -> str | None:
    """The key, in quotes (draft-ietf-httpapi-idempotency-key-header makes it a string, RFC 9651) or bare: the same.

    Raises:
        HttpProblem: it is no key, or there are two.
    """
    sent = sent_key_of(request)
    if sent is None:
        return None
    found = _KEY.fullmatch(sent)
    if found is None:
        raise malformed("idempotency-key", "not one key of 16 to 64 letters, digits, '-' and '_'", "invalid-key")
    return found["key"].decode()


def headers_of(answered: Answer) -> dict[str, str]:
    """What goes with the answer to a command: from which position on its effect shows, and whether it is a repeat."""
    position = {"Registrar-Position": str(answered.position)}
    return {**position, **REPLAYED} if answered.replayed else position


def part_of(context: Context, registration_id: UUID) -> Context:
    """One of the acts that an operator's request is made of. Should that break off, a repeat goes on with it; an act
    without effect is simply looked at again."""
    once = context.once
    if once is None:
        return context
    return replace(context, once=Once(f"{once.key} {registration_id}", once.asked, always=False))


async def answered_once(
    handlers: Handlers, context: Context, request: str, do: Callable[[], Awaitable[Sequence[str]]]
) -> tuple[Sequence[str], dict[str, str]]:
    """What `do` tells of a request that takes several commands: with an Idempotency-Key it is kept, and told again.

    Returns:
        And the headers that go with a kept answer.
    """
    if context.once is None:
        return await do(), {}
    keyed = handlers.keys.of_operator(context.once, request)

    async def answer() -> Answer:
        told = await handlers.keys.told(keyed)
        if told is not None:
            return told
        details = tuple(await do())
        keep = KeepAnswer(answer_id=keyed.answer_id, request=request, fingerprint=keyed.fingerprint, details=details)
        return await handlers.handle(keep, replace(context, once=None))

    answered = await handlers.keys.in_turn(keyed, answer)
    return answered.details, headers_of(answered)
