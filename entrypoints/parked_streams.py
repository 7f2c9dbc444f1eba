"""An operator's act on parked streams, for the command line and the API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID, uuid4

from application.answers import Answer
from application.commands import RetryParkedStream
from application.handlers import Handlers
from application.ports import Context


async def retry(
    handlers: Handlers, stream_id: UUID, followers: Sequence[str], context: Context, *, registration_id: UUID | None
) -> list[Answer]:
    """Have each of these followers try the stream again, within a second of hearing of it.

    Args:
        registration_id: whose stream it is, as far as that is known.

    Raises:
        Conflict, Unavailable: worth a repeat.
    """

    def again(follower: str) -> RetryParkedStream:
        once = context.once
        retry_id = uuid4() if once is None else handlers.keys.operators_id(f"{once.key} {stream_id} {follower}")
        return RetryParkedStream(
            retry_id=retry_id, follower=follower, stream_id=stream_id, registration_id=registration_id
        )

    one_of_them = replace(context, once=None)  # the answer to all is kept by the one who asks
    return [await handlers.handle(again(follower), one_of_them) for follower in followers]
