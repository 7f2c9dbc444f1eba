"""What a server or pooler says when it lets nobody in, and what we say is to be done."""

from __future__ import annotations

import psycopg
import pytest

from infrastructure.postgres.circumstances import AT_THE_DOOR, unreachable
from infrastructure.postgres.session import UnfitSession

AT = 'connection failed: connection to server at "127.0.0.1", port 5432 failed: '
SAID = [
    ("FATAL:  sorry, too many clients already", "other sessions go"),
    ('FATAL:  too many connections for database "registrar"', "other sessions go"),
    ("FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute", "max_connections"),
    ("FATAL:  no more connections allowed (max_client_conn)", "max_client_conn"),
    ('FATAL:  password authentication failed for user "database"', "correct user and password"),
    ("fe_sendauth: no password supplied", "put user and password"),
    ('FATAL:  Peer authentication failed for user "registrar"', "pg_hba.conf"),
    ("FATAL:  SASL authentication failed", "correct user and password"),
    (
        'FATAL:  no pg_hba.conf entry for host "10.0.0.1", user "u", database "registrar", no encryption',
        "let this machine in",
    ),
    ('FATAL:  pg_hba.conf rejects connection for host "::1", user "u", database "x"', "let this machine in"),
    ("FATAL:  the database system is starting up", "try again"),
    ("FATAL:  the database system is shutting down", "try again"),
    ("FATAL:  the database system is in recovery mode", "try again"),
    ("FATAL:  the database system is not yet accepting connections", "try again"),
    ("FATAL:  the database system is not accepting connections", "at the primary"),
    ('FATAL:  database "registrar" is not currently accepting connections', "ALLOW_CONNECTIONS"),
    ('FATAL:  permission denied for database "registrar"', "GRANT CONNECT"),
    ('FATAL:  role "registrar" does not exist', "create the role"),
    ('FATAL:  role "starting up" does not exist', "create the role"),
    ('FATAL:  role "registrar" is not permitted to log in', "LOGIN"),
    ('FATAL:  database "registrar" does not exist', "CREATE DATABASE"),
    ('FATAL:  database "pg_hba.conf" does not exist', "CREATE DATABASE"),
    ("FATAL:  no such database: registrar", "let the pooler know the database"),
    ("FATAL:  no such user: registrar", "let the pooler know the user"),
    ("Connection refused", "check REGISTRAR_DATABASE_URL and the server"),
    ("FATAL:  unsupported frontend protocol of the database server", "check REGISTRAR_DATABASE_URL and the server"),
]


@pytest.mark.parametrize(("said", "advice"), SAID)
def test_each_refusal_has_the_advice_that_helps(said: str, advice: str) -> None:
    says, what_to_do = unreachable(psycopg.OperationalError(f"{AT}{said}\n\tand more"))
    assert says == f"{AT}{said}"
    assert advice in what_to_do


def test_every_advice_is_given_for_something() -> None:
    given = {unreachable(psycopg.OperationalError(f"{AT}{said}"))[1] for said, _ in SAID}
    assert {advice for _, advice in AT_THE_DOOR} <= given


def test_an_unfit_session_gives_its_own_advice() -> None:
    error = UnfitSession("10.0.0.1:5432: it is a standby; 10.0.0.2:5432: connection refused", "look at the primary")
    assert unreachable(error) == (
        "10.0.0.1:5432: it is a standby; 10.0.0.2:5432: connection refused", "look at the primary"
    )  # fmt: skip
