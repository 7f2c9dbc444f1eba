#!/usr/bin/env bash
# tenacity 9.2.1. Needs Python 3.11 or later.
#
# An AsyncRetrying looks like a policy (when to stop, how long to wait) that is made once and used by every call. It also
# holds the state of the call at hand: with an asynchronous `retry=`, the second of two calls that are under way at once
# takes over from the first, which then returns None: whether its function succeeded or failed for good.
# No error, and nothing in the documentation of AsyncRetrying says that it is for one call at a time.
#
# Expected: the first call returns its function's result, or raises its error.
# Seen:
#   alone: 'the result of the first', PermissionError()
#   beside another: None, None
set -euo pipefail
source "$(dirname "$0")/support/common.sh"
install tenacity==9.2.1
python <<'PYTHON'
import asyncio

from tenacity import AsyncRetrying, stop_after_attempt


async def is_transient(state):
    await asyncio.sleep(0)
    return state.outcome.failed and isinstance(state.outcome.exception(), ConnectionError)


def policy():
    return AsyncRetrying(stop=stop_after_attempt(3), retry=is_transient, reraise=True)


async def first():
    return "the result of the first"


async def failing():
    raise PermissionError


async def second():
    return "the result of the second"


async def beside(call):
    shared = policy()
    return (await asyncio.gather(shared(call), shared(second), return_exceptions=True))[0]


async def alone(call):
    return (await asyncio.gather(policy()(call), return_exceptions=True))[0]


for name, tried in (("alone", alone), ("beside another", beside)):
    results = asyncio.run(tried(first)), asyncio.run(tried(failing))
    print(f"{name}: {results[0]!r}, {results[1]!r}")
    if tried is alone:
        assert results[0] == "the result of the first"
        assert isinstance(results[1], PermissionError)
    else:
        assert results == (None, None)
PYTHON
echo "still so"
