"""Ordinary circumstances in which the database cannot serve us, each in one line that says what to do."""

from __future__ import annotations

import re
from typing import Final

import structlog
from psycopg import errors

from application.ports import Unavailable
from infrastructure.postgres.addresses import first_line
from infrastructure.postgres.session import UnfitSession

log = structlog.get_logger(__name__)

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
        case errors.InsufficientPrivilege():
            return (
                f"This role lacks a right in the database ({first_line(error)}); grant it, "
                "or let REGISTRAR_DATABASE_URL name the role that owns Registrar's tables."
            )
        case errors.DiskFull():
            return f"The database's disk is full; make room there: {first_line(error)}."
        case _ if isinstance(error, _DAMAGED):
            return f"The database finds its files damaged; see its log, restore it from a backup: {first_line(error)}."
        case _ if isinstance(error, _MISSING):
            # Last what may be long: a line of the log has an end.
            return (
                "Something that Registrar made in the database is missing or was changed; restore it from a backup, "
                f"a read model also with `registrar projections rebuild`: {first_line(error)}."
            )
        case _:
            return None


_MISSING: Final = (
    errors.UndefinedTable,
    errors.UndefinedColumn,
    errors.UndefinedFunction,
    errors.UndefinedObject,
    errors.InvalidSchemaName,
)
_DAMAGED: Final = (errors.DataCorrupted, errors.IndexCorrupted)

REFUSALS: Final = (errors.InsufficientPrivilege, errors.DiskFull, *_MISSING, *_DAMAGED)
"""A statement of ours is refused until somebody does something about it, and nothing is wrong with the statement."""


class TellingRefusals:
    """For statements of one kind: raises `Unavailable` for `REFUSALS`, and says once in the log what to do."""

    def __init__(self, session: str) -> None:
        """
        Args:
            session: whose statements these are, in the log.
        """
        self._session = session
        self._told: str | None = None  # since the last statement that was not refused

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is None:
            self._told = None
        elif isinstance(error, REFUSALS):
            hint = why_unusable(error)
            if hint != self._told:
                log.error("database.refused", session=self._session, error=type(error).__name__, hint=hint)
                self._told = hint
            raise Unavailable("the database refuses it") from error
