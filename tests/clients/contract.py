"""What an application does with the generated client, from the sign-up to the account: the same steps as contract.ts.

`python contract.py URL TOKEN ADDRESS` prints one JSON object, from the name of a step to what came of it.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from typing import TypeVar
from uuid import UUID

from registrar_client import AuthenticatedClient, Client
from registrar_client.api.admin import search_registrations
from registrar_client.api.mailbox import list_mailbox_messages
from registrar_client.api.registrations import get_registration, register, verify_email
from registrar_client.models import Problem, Registered, RegisterUser, Registrations, RegistrationState, VerifyEmail
from registrar_client.types import Unset

Found = TypeVar("Found")
_, url, token, email = sys.argv
client = Client(base_url=url)
operator = AuthenticatedClient(base_url=url, token=token)
steps: dict[str, object] = {}


def problem(found: object) -> str | None:
    return found.type_.rpartition(":")[2] if isinstance(found, Problem) else None


def eventually(look: Callable[[], Found | None]) -> Found:
    deadline = time.monotonic() + 60
    while (found := look()) is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within a minute: {look}")
        time.sleep(0.05)
    return found


key = "python-contract-00000001"
body = RegisterUser(email=email, name="Ada Lovelace", password="correct horse battery", locale="en")

first = register.sync_detailed(client=client, body=body, idempotency_key=key)
assert isinstance(first.parsed, Registered)
steps["register"] = [first.status_code, first.parsed.status]
registration_id = first.parsed.registration_id

again = register.sync_detailed(client=client, body=body, idempotency_key=key)
steps["the same key again"] = [
    isinstance(again.parsed, Registered) and again.parsed.registration_id == registration_id,
    again.headers.get("Idempotent-Replayed"),
]

malformed = register.sync_detailed(client=client, body=RegisterUser(email="nobody", name="Ada Lovelace"))
errors = malformed.parsed.errors if isinstance(malformed.parsed, Problem) else []
field = errors[0].field if errors and not isinstance(errors, Unset) else None
steps["no address"] = [malformed.status_code, problem(malformed.parsed), field]

position = int(first.headers["Registrar-Position"])
pending = get_registration.sync(registration_id, client=client, min_position=position, wait=10_000)
assert isinstance(pending, RegistrationState)
steps["look"] = [pending.status, pending.attempts_left, pending.email != email]


def code_mailed() -> str | None:
    mails = list_mailbox_messages.sync(client=client, to=email)
    assert isinstance(mails, list)
    code = re.search(r"^\s*(\d{6})\s*$", mails[0].text, re.MULTILINE) if mails else None
    return code and code[1]


code = eventually(code_mailed)
other = VerifyEmail(code="000001" if code == "000000" else "000000")
wrong = verify_email.sync_detailed(registration_id, client=client, body=other)
left = wrong.parsed.attempts_left if isinstance(wrong.parsed, Problem) else None
steps["a wrong code"] = [wrong.status_code, problem(wrong.parsed), left]

right = verify_email.sync_detailed(registration_id, client=client, body=VerifyEmail(code=code))
status = getattr(right.parsed, "status", None)
steps["the code"] = [right.status_code, status in {"VERIFIED", "ACTIVE"}]


def active() -> list[object] | None:
    now = get_registration.sync(registration_id, client=client)
    assert isinstance(now, RegistrationState)
    return [now.status, now.verified_at is not None] if now.status == "ACTIVE" else None


steps["in the end"] = eventually(active)

unknown = get_registration.sync_detailed(UUID("00000000-0000-7000-8000-000000000000"), client=client)
steps["an unknown id"] = [unknown.status_code, problem(unknown.parsed)]

stranger = search_registrations.sync_detailed(client=AuthenticatedClient(base_url=url, token="none"), email=email)
steps["no operator"] = [stranger.status_code, problem(stranger.parsed)]

found = search_registrations.sync(client=operator, email=email)
assert isinstance(found, Registrations)
steps["an operator"] = [[one.registration_id == registration_id, one.name, one.status] for one in found.items]

print(json.dumps(steps))
