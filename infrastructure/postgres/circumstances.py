"""Ordinary circumstances in which the database cannot serve us, each in one line that says what to do."""

from __future__ import annotations

import re
from typing import Final

import psycopg

from infrastructure.postgres.addresses import first_line
from infrastructure.postgres.session import UnfitSession

AT_THE_DOOR: Final = (
    ("too many", "let other sessions go, or allow more of them (of the server, the database, the role or the pooler)"),
    ("remaining connection slots", "let other sessions go, or raise max_connections"),
    ("no more connections allowed", "let other sessions go, or raise max_client_conn of the pooler"),
    ("password authentication failed", "correct user and password in REGISTRAR_DATABASE_URL"),
    ("no password supplied", "put user and password into REGISTRAR_DATABASE_URL"),
    ("authentication failed", "let this user in (pg_hba.conf), or correct user and password in REGISTRAR_DATABASE_URL"),
    ("pg_hba.conf", "let this machine in (pg_hba.conf)"),
    ("starting up", "try again in a moment"),
    ("shutting down", "try again in a moment"),
    ("in recovery mode", "try again in a moment"),
    ("not yet accepting connections", "try again in a moment"),
    ("system is not accepting connections", "point REGISTRAR_DATABASE_URL at the primary"),
    ("not currently accepting connections", "allow them (ALTER DATABASE … ALLOW_CONNECTIONS true)"),
    ("permission denied for database", "let the role in (GRANT CONNECT ON DATABASE …)"),
    ('role "…" does not exist', "create the role, or correct REGISTRAR_DATABASE_URL"),
    ('role "…" is not permitted to log in', "allow the role to log in (ALTER ROLE … LOGIN)"),
    ('database "…" does not exist', "create the database (CREATE DATABASE), or correct REGISTRAR_DATABASE_URL"),
    ("no such database", "let the pooler know the database, or correct REGISTRAR_DATABASE_URL"),
    ("no such user", "let the pooler know the user, or correct REGISTRAR_DATABASE_URL"),
)
"""What an English server or pooler says when it lets nobody in, names left out, and what to do; the first that fits."""

_NAME: Final = re.compile('"[^"]*"')


def unreachable(error: Exception) -> tuple[str, str]:
    """Why no session could be had, and what to do."""
    if isinstance(error, UnfitSession):
        return error.says, error.advice
    says = first_line(error)
    _, refused, refusal = says.partition("FATAL:")
    words = _NAME.sub('"…"', refusal if refused else says)
    fitting = (advice for said, advice in AT_THE_DOOR if said in words)
    return says, next(fitting, "check REGISTRAR_DATABASE_URL and the server")


def why_unreachable(error: Exception) -> str:
    """The same as a sentence."""
    says, advice = unreachable(error)
    return f"The database cannot be {'used' if isinstance(error, UnfitSession) else 'reached'}: {says}; {advice}."


def why_unusable(error: BaseException | None) -> str | None:
    """Why a statement of ours, or a session for it, is refused; None: for no reason that we know."""
    match error:
        case UnfitSession():
            return why_unreachable(error)
        case psycopg.errors.InsufficientPrivilege():
            return (
                f"This role lacks a right in the database ({first_line(error)}); grant it, "
                "or let REGISTRAR_DATABASE_URL name the role that owns Registrar's tables."
            )
        case _:
            return None
