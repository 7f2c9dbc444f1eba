"""What our sessions rest on: set and read back in one round trip, before anything else is asked of them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal

import psycopg

Use = Literal["look", "read", "write"]
"""What a session is for. "look": the server refuses to change anything, and may be a standby. "read": only of the
primary, as a standby is behind it. "write": where the server takes writes."""

ALWAYS: Final = {
    # Text is UTF8; with SQL_ASCII it would be `bytes`.
    "client_encoding": "UTF8",
    # Our tables are those in `public`, whatever the role's own path begins with.
    "search_path": "public",
    # The form in which values are sent to us as text. The driver reads times and intervals in no other one: it raises
    # `NotImplementedError`, which is no `psycopg.Error`.
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "bytea_output": "hex",
    # Floats have all their digits: a circuit's time is compared with what was read of it.
    "extra_float_digits": "1",
    # What statements and functions mean.
    "array_nulls": "on",
    "standard_conforming_strings": "on",
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    # A row that a policy hides is an error, not a row fewer: a follower would step over it.
    "row_security": "off",
    # A 2xx is on disk. Whoever can lose something sets less, for its own session.
    "synchronous_commit": "on",
    # An idle session is no fault: LISTEN waits, and a service may have nothing to do all night.
    "idle_session_timeout": "0",
    "idle_in_transaction_session_timeout": "5s",
}
"""Settings of every session, as the server shows them. A role, a database, the environment and the URL may ask for
others, and a pooler may drop what is asked for as a session begins; so none is sent there, and the URL's own `options`
stay."""

TRANSACTION_STATEMENTS: Final = 3
"""A transaction may take that many times a statement's timeout."""

_SETTLE: Final = """
    SELECT name, pg_catalog.set_config(name, CASE
        WHEN name = 'synchronous_commit' AND pg_catalog.current_setting(name) = 'remote_apply' THEN 'remote_apply'
        ELSE value END, false)
    FROM ROWS FROM (pg_catalog.unnest(%s::text[]), pg_catalog.unnest(%s::text[])) AS wanted (name, value)
    UNION ALL SELECT name, pg_catalog.current_setting(name)
    FROM pg_catalog.unnest('{session_replication_role,transaction_read_only}'::text[]) AS name
    UNION ALL SELECT 'is standby', pg_catalog.pg_is_in_recovery()::text
"""


class UnfitSession(psycopg.OperationalError):
    """A session cannot have what we rest on. The message is one line that says what to do.

    Attributes:
        says: what is wrong.
        advice: what to do.
        may_pass: it may be well the next time, with nobody doing anything.
    """

    def __init__(self, says: str, advice: str, *, may_pass: bool = False) -> None:
        super().__init__(f"{says}; {advice}")
        self.says = says
        self.advice = advice
        self.may_pass = may_pass


@dataclass(frozen=True, slots=True)
class Terms:
    """What a session is to have beside `ALWAYS`.

    Attributes:
        statement_timeout: enforced by the server.
        lock_timeout: how long a statement waits for a lock.
        plan_once: a statement keeps the plan that it was given, whatever its parameters. The server takes a plan that
            looks up ten of an array for dearer than a plan of one and its planning together, and so plans each time. It
            is a plan for a large table, also where the server takes it for a small one.
    """

    use: Use
    statement_timeout: timedelta
    lock_timeout: timedelta = timedelta(seconds=1)
    plan_once: bool = False

    def settings(self, server_version: int) -> dict[str, str]:
        """All settings, as this server shows them."""
        settings = ALWAYS | {
            "statement_timeout": shown(self.statement_timeout),
            "lock_timeout": shown(self.lock_timeout),
        }
        if self.use == "look":
            settings["default_transaction_read_only"] = "on"
        if self.plan_once:
            settings["plan_cache_mode"] = "force_generic_plan"
            # Of a log that had a few rows when it was analysed, the server would go on reading all.
            settings["enable_seqscan"] = "off"
        if server_version >= 170000:
            # To the server, a client that stops between two messages of a pipeline neither runs a statement nor is
            # idle: no other timeout ever ends such a session, with the locks that it holds (measured on 18.4).
            settings["transaction_timeout"] = shown(TRANSACTION_STATEMENTS * self.statement_timeout)
        return settings


async def settle(connection: psycopg.AsyncConnection[Any], terms: Terms) -> None:
    """Set what the session is to have, and read it back.

    Raises:
        UnfitSession: it cannot have it.
        psycopg.Error: the server is away.
    """
    wanted = terms.settings(connection.info.server_version)
    cursor = await connection.execute(_SETTLE, (list(wanted), list(wanted.values())))
    found: dict[str, str] = dict(await cursor.fetchall())
    for name, value in wanted.items():
        if found[name] != value and (name, found[name]) != ("synchronous_commit", "remote_apply"):
            raise UnfitSession(
                f"a session is not given {name} = {value}, but {found[name]}",
                "look at what lies between us and PostgreSQL",
            )
    if found["session_replication_role"] == "replica":
        raise UnfitSession(
            "session_replication_role is replica, so nothing guards what was recorded",
            "take it from the role (ALTER ROLE … RESET session_replication_role)",
        )
    if terms.use != "look" and found["is standby"] == "true":
        raise UnfitSession("it is a standby, which is read-only", "point REGISTRAR_DATABASE_URL at the primary")
    if terms.use == "write" and found["transaction_read_only"] == "on":
        raise UnfitSession(
            "it is read-only (default_transaction_read_only)",
            "take that from the server, the database and the role, or point REGISTRAR_DATABASE_URL at the primary",
        )


async def check_pooling(one: psycopg.AsyncConnection[Any], other: psycopg.AsyncConnection[Any]) -> None:
    """Refuse a pooler that hands a session from one client to the next between two transactions.

    Nothing that we hold in a session is safe there: settings, locks of leaders, LISTEN. Two clients then meet in one
    session, or a client changes its session, whichever way the pooler chooses.

    Raises:
        UnfitSession: it does.
    """
    ours = {await _backend_of(one) for _ in range(_LOOKS)}
    theirs = {await _backend_of(other) for _ in range(_LOOKS)}
    if len(ours) > 1 or len(theirs) > 1 or ours & theirs:
        raise UnfitSession(
            "a pooler in transaction mode lies between us and PostgreSQL, where no session is ours for longer than a "
            "transaction",
            "set pool_mode = session there, or point REGISTRAR_DATABASE_URL at PostgreSQL itself",
        )


_LOOKS: Final = 3
"""A pooler that takes the session used longest ago shows itself at the second look, any other one at the other
client."""


async def _backend_of(connection: psycopg.AsyncConnection[Any]) -> int:
    row = await (await connection.execute("SELECT pg_catalog.pg_backend_pid()")).fetchone()
    assert row is not None  # noqa: S101 - a SELECT without FROM has a row
    pid: int = row[0]
    return pid


def shown(duration: timedelta) -> str:
    """A timeout as the server shows it: in the largest unit that makes it a whole number."""
    milliseconds = duration // timedelta(milliseconds=1)
    for unit, factor in (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000)):
        if milliseconds and milliseconds % factor == 0:
            return f"{milliseconds // factor}{unit}"
    return f"{milliseconds}ms" if milliseconds else "0"
