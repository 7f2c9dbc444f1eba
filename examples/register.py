"""Register somebody, and repeat until the answer is known.

    python examples/register.py http://127.0.0.1:8000 ada@example.com 'Ada Lovelace'

Every try carries the same Idempotency-Key, so all of them are one registration, whatever became of lost answers, and
all get the same response; `Idempotent-Replayed: true` says that an earlier try had been heard.
A client that may crash itself stores the key before the first try, and begins again with it.
"""

from __future__ import annotations

import random
import sys
import time
import uuid
from typing import Any

import httpx

TRY_AGAIN = {408, 429, 502, 503, 504}
"""The service, or a proxy in front of it, could not do it now. Any other 4xx is final: a repeat changes nothing."""


def register(http: httpx.Client, person: dict[str, str], *, key: str, give_up_after: float = 60.0) -> dict[str, Any]:
    """Register `person`, whatever happens on the way.

    Raises:
        httpx.HTTPStatusError: refused for good, or not done within `give_up_after` seconds.
        httpx.TransportError: no answer within that time; the outcome is unknown until it is repeated.
    """
    deadline = time.monotonic() + give_up_after
    pause = 0.5
    while True:
        wait = pause * random.uniform(0.5, 1.5)  # noqa: S311 - spreads clients, keeps no secret
        try:
            answer = http.post("/v1/registrations", json=person, headers={"Idempotency-Key": key})
            if answer.status_code not in TRY_AGAIN or time.monotonic() > deadline:
                accepted: dict[str, Any] = answer.raise_for_status().json()
                return accepted
            wait = max(wait, float(answer.headers.get("Retry-After", 0)))
        except httpx.TransportError:  # refused, cut off, or too late: it may have been recorded all the same
            if time.monotonic() > deadline:
                raise
        time.sleep(wait)
        pause = min(2 * pause, 10.0)


if __name__ == "__main__":
    url, email, name = sys.argv[1:]
    with httpx.Client(base_url=url, timeout=35) as client:  # a little more than the service's REQUEST_TIMEOUT
        print(register(client, {"email": email, "name": name}, key=str(uuid.uuid4()))["registration_id"])
