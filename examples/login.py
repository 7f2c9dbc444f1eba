"""Log somebody in by the account that was registered, as a login service does. docs/accounts.md.

    echo 'correct horse battery' | REGISTRAR=http://127.0.0.1:8000 TOKEN=… python examples/login.py ada@example.com

Two requests are all there is to it, in whatever language. Whoever looks at the answers, or at the time that they take,
does not learn which addresses have accounts: where there is none, as much is asked for and hashed.
"""

from __future__ import annotations

import hmac
import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
import uuid
from typing import Any

REGISTRAR = os.environ["REGISTRAR"]
TOKEN = os.environ["TOKEN"]


class NotNow(Exception):
    """Too many tries, or Registrar cannot say: nobody is let in, and the password may be right."""


def ask(
    method: str, path: str, body: dict[str, str] | None = None, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, Any]]:
    """Registrar's status and answer, refusals included; 503 where it cannot be reached."""
    text = None if body is None else json.dumps(body).encode()
    sent = {"Content-Type": "application/json"} | (headers or {})
    request = urllib.request.Request(REGISTRAR + path, text, sent, method=method)  # noqa: S310 - our own service
    try:
        with urllib.request.urlopen(request, timeout=35) as answer:  # noqa: S310 - a little more than REQUEST_TIMEOUT
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refusal:
        return refusal.code, json.load(refusal)
    except OSError:  # no connection, or no answer in time
        return 503, {"title": "Registrar cannot be reached; try again in a moment."}


def log_in(email: str, password: str) -> str | None:
    """The account's id, where the password is its own.

    Raises:
        NotNow: see there.
    """
    operator = {"Authorization": f"Bearer {TOKEN}"}
    status, found = ask("GET", f"/v1/admin/accounts?email={urllib.parse.quote(email)}", headers=operator)
    if status not in {200, 422}:  # 422: no address, so nobody's
        raise NotNow(found["title"])
    # An id that nobody has, the same each time: the limit of tries counts alike.
    nobody = uuid.UUID(bytes=hmac.digest(TOKEN.encode(), email.casefold().encode(), "sha256")[:16], version=5)
    account = found["items"][0]["registration_id"] if found.get("items") else str(nobody)
    status, checked = ask("POST", f"/v1/admin/accounts/{account}/password-check", {"password": password}, operator)
    if status not in {200, 422}:  # 422: nothing that could be a password
        raise NotNow(checked["title"])
    return account if checked.get("matches") else None


def main(email: str, password: str) -> int:
    try:
        account = log_in(email, password)
    except NotNow as reason:
        print(reason)
        return 2
    print(account or "wrong address or password")
    return 0 if account else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.stdin.readline().rstrip("\n")))
