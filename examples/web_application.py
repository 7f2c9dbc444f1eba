"""A small web application that has its sign-up done by Registrar: form, code, webhook, login. docs/integrating.md.

    REGISTRAR=http://127.0.0.1:8000 TOKEN=… SECRET=whsec_… python examples/web_application.py 3000

Its own pages and one table; everything about addresses, codes, mails and passwords is Registrar's. It needs nothing but
Python, and `login.py` and `webhook.py` beside it. In earnest there are TLS, sessions and your framework around this.
"""

from __future__ import annotations

import html
import json
import os
import sqlite3
import sys
import threading
import urllib.parse
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from login import NotNow, ask, log_in
from webhook import verify

SECRET = os.environ["SECRET"]

customers = sqlite3.connect(os.environ.get("DATABASE", ":memory:"), check_same_thread=False)
customers.executescript("""
    CREATE TABLE IF NOT EXISTS customers (id TEXT PRIMARY KEY, since TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS seen (webhook_id TEXT PRIMARY KEY);
""")

one_at_a_time = threading.Lock()

SIGN_UP = """<form method=post action=/sign-up><input type=hidden name=key value={key}>
<label>Address <input name=email type=email autocomplete=email required></label>
<label>Name <input name=name autocomplete=name required></label>
<label>Password <input name=password type=password autocomplete=new-password required></label><button>Sign up</button></form>
<form method=post action=/log-in><label>Address <input name=email type=email autocomplete=username required></label>
<label>Password <input name=password type=password autocomplete=current-password required></label>
<button>Log in</button></form>"""

CODE = """<p>We have sent you a mail with a code.<form method=post action=/code>
<input type=hidden name=id value={id}>
<label>Code <input name=code autocomplete=one-time-code inputmode=numeric required></label><button>Confirm</button></form>"""


def hear(webhook_id: str, event: dict[str, Any]) -> None:
    """Do what an event leads to, once: its id is noted in the same transaction."""
    with one_at_a_time, customers:  # a transaction, rolled back if anything fails: the event comes again then
        if customers.execute("INSERT OR IGNORE INTO seen VALUES (?)", (webhook_id,)).rowcount == 0:
            return
        if event["type"] == "registrar.registration.activated.v1":
            customers.execute("INSERT OR IGNORE INTO customers VALUES (?, ?)", (event["subject"], event["time"]))
        elif event["type"] == "registrar.registration.erased.v1":
            customers.execute("DELETE FROM customers WHERE id = ?", (event["subject"],))


class Application(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.page(SIGN_UP.format(key=uuid.uuid4()))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/registrar":
            self.webhook(body)
            return
        # A form of another site must not sign anybody up, or in.
        if self.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
            self.page("<p>Not from here.", 403)
            return
        given = dict(urllib.parse.parse_qsl(body.decode()))
        {"/sign-up": self.sign_up, "/code": self.code, "/log-in": self.greet}[self.path](given)

    def sign_up(self, given: dict[str, str]) -> None:
        key = given.pop("key")  # of this form: sent twice, it is one registration
        status, answer = ask("POST", "/v1/registrations", given, {"Idempotency-Key": key})
        if status == 202:
            self.page(CODE.format(id=answer["registration_id"]))
        else:
            self.refuse(status, answer)

    def code(self, given: dict[str, str]) -> None:
        path = f"/v1/registrations/{uuid.UUID(given['id'])}/verification"
        status, answer = ask("POST", path, {"code": given["code"].strip()})
        if status == 200:
            self.page("<p>Welcome! Your address is confirmed.")
        else:
            self.refuse(status, answer)

    def greet(self, given: dict[str, str]) -> None:
        try:
            account = log_in(given["email"], given["password"])
        except NotNow as reason:
            self.page(f"<p>{html.escape(str(reason))}", 503)
            return
        known = customers.execute("SELECT since FROM customers WHERE id = ?", (account,)).fetchone()
        if known:
            self.page(f"<p>Good to see you again, customer since {html.escape(known[0])}.")
        else:
            self.page("<p>Address or password is wrong.", 401)

    def refuse(self, status: int, problem: dict[str, Any]) -> None:
        why = "; ".join(f"{one['field']}: {one['message']}" for one in problem.get("errors", [])) or problem["title"]
        self.page(f"<p>{html.escape(why)}", status)

    def webhook(self, body: bytes) -> None:
        name = {part: self.headers.get(f"webhook-{part}", "") for part in ("id", "timestamp", "signature")}
        if not verify([SECRET], name["id"], name["timestamp"], name["signature"], body):
            self.page("", 401)
            return
        hear(name["id"], json.loads(body))
        self.page("")

    def page(self, content: str, status: int = 200) -> None:
        text = f"<!doctype html><meta charset=utf-8><title>Acme</title><h1>Acme</h1>{content}".encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Application)
    print("listening", server.server_port, flush=True)
    server.serve_forever()
