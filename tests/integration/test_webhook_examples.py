"""The receivers in `examples/` take what we sign, and nothing else."""

from __future__ import annotations

import asyncio
import shutil
import sys
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import time

import pytest

from infrastructure.settings.webhooks import WebhookEndpoint
from infrastructure.webhooks.calls import Calls, NotDelivered
from infrastructure.webhooks.signing import public_keys
from tests.integration.test_webhook_calls import reachable
from tests.support.endpoint_stub import SECRET, endpoint

EXAMPLES = Path(__file__).parents[2] / "examples"
PRIVATE = f"whsk_{b64encode(bytes(range(32))).decode()}"
OTHER = f"whsec_{b64encode(bytes(32)).decode()}"
OTHER_PRIVATE = f"whsk_{b64encode(bytes(32)).decode()}"
BODY = b'{"type": "registrar.registration.verified.v1", "subject": "s-1"}'
PROGRAMS = {"webhook.py": sys.executable, "webhook.mjs": shutil.which("node")}


@asynccontextmanager
async def receiver(program: str, *keys: str) -> AsyncIterator[tuple[int, asyncio.StreamReader]]:
    """It runs until the end of the block: its port, and what it prints."""
    interpreter = PROGRAMS[program]
    if interpreter is None:
        pytest.skip("there is no Node here")
    process = await asyncio.create_subprocess_exec(
        interpreter, EXAMPLES / program, "0", *keys, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            yield int((await process.stdout.readline()).split()[1]), process.stdout
    finally:
        process.terminate()
        await process.communicate()


def signing(port: int, *secrets: str) -> WebhookEndpoint:
    return endpoint(f"http://127.0.0.1:{port}/", " ".join(secrets))


@pytest.mark.parametrize("program", PROGRAMS)
async def test_a_receiver_takes_what_is_signed_with_its_key_once(program: str) -> None:
    [public] = public_keys(signing(1, PRIVATE))
    async with receiver(program, SECRET, public) as (port, printed):
        for secrets in ((SECRET,), (OTHER, SECRET), (PRIVATE,), (OTHER_PRIVATE, PRIVATE)):
            calls = Calls(signing(port, *secrets), reachable())
            await calls.post(f"m-{secrets}".replace(" ", ""), BODY)
            await calls.post(f"m-{secrets}".replace(" ", ""), BODY)
            calls.drop()
            assert await printed.readline() == b"registrar.registration.verified.v1 s-1\n"

        long_ago: Callable[[], float] = lambda: 1_700_000_000.0  # noqa: E731
        for secret, now in ((OTHER, time), (OTHER_PRIVATE, time), (SECRET, long_ago), (PRIVATE, long_ago)):
            calls = Calls(signing(port, secret), reachable(), now=now)
            with pytest.raises(NotDelivered, match="status 401"):
                await calls.post("m-forged", BODY)
