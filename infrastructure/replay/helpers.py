"""Reviews windows of the log in processes beside this one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from datetime import timedelta
from functools import partial

from application.what_if import Difference
from domain.policy import Policy
from infrastructure.postgres.connection import ReconnectingConnection
from infrastructure.postgres.helpers import HelperEnded, done_by_helpers
from infrastructure.replay.histories import Window
from infrastructure.replay.judging import Judge, Scope
from infrastructure.replay.swap import CannotReplay


async def reviewed_by_helpers(
    windows: Iterable[Window], dsn: str, statement_timeout: timedelta, policy: Policy, scope: Scope
) -> AsyncGenerator[tuple[Window, int, list[Difference]]]:
    """Each window, in order, with the number of its registrations and what would be different about them.

    Raises:
        CannotReplay: a helper was ended.
        Unavailable: the database is away.
    """
    make = partial(_reviewer, dsn, statement_timeout, policy, scope)
    try:
        async with aclosing(done_by_helpers(windows, make)) as done:
            async for window, found in done:
                yield (window, *found)
    except HelperEnded as error:
        raise CannotReplay(str(error)) from None


def _reviewer(
    dsn: str, statement_timeout: timedelta, policy: Policy, scope: Scope
) -> Callable[[Window], tuple[int, list[Difference]]]:
    """In a helper: an event loop of its own, on which one window after the other is reviewed."""
    runner = asyncio.Runner()
    connection = ReconnectingConnection(dsn, name="what-if", statement_timeout=statement_timeout, read_only=True)
    judge = Judge(policy, scope)
    return lambda window: runner.run(judge.review(connection, window))
