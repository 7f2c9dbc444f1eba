"""Cuts a connection that gets no answer: a cancellation would have to be sent to the very server that gives none."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import psycopg
import structlog

log = structlog.get_logger(__name__)


@contextmanager
def cut_after(patience: timedelta, connection: psycopg.AsyncConnection[Any]) -> Iterator[None]:
    """Cut the connection at the socket if the block takes longer: it then fails, instead of hanging."""
    alarm = asyncio.get_running_loop().call_later(patience.total_seconds(), cut, connection)
    try:
        yield
    finally:
        alarm.cancel()


def cut(connection: psycopg.AsyncConnection[Any]) -> None:
    """End it at the socket: whoever waits for its answer gets an error."""
    log.warning("database.no_answer", hint="the connection is cut; look at the database server")
    # A duplicate, so that closing it leaves libpq's own descriptor alone.
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.pgconn.socket)) as line:
        line.shutdown(socket.SHUT_RDWR)
