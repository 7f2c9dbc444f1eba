"""The database and its secrets: from the settings, or from the data directory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial

import psycopg

from entrypoints.bootstrap import CannotStart
from infrastructure.crypto.keyring import Keyring, open_root_secret, read_root_secret
from infrastructure.crypto.master_keys import MasterKeys
from infrastructure.embedded.data_directory import DataDirectory
from infrastructure.embedded.postgres import EmbeddedPostgres
from infrastructure.followers.projector import read_scripts
from infrastructure.postgres.circumstances import why_unreachable, why_unusable
from infrastructure.postgres.connection import AWAY, Connection, closing, connect_first
from infrastructure.postgres.cutting import cut_after
from infrastructure.postgres.schema import (
    CONFIRM_WITHIN,
    NothingThere,
    Outdated,
    WrongSchema,
    bring_up_to_date,
    check,
)
from infrastructure.scripts import SCRIPTS
from infrastructure.settings.settings import Settings
from projections import PROJECTIONS

SCHEMA = (*SCRIPTS, *(script for projection in PROJECTIONS for script in read_scripts(projection())))
"""Everything that makes tables and functions, in order."""


@dataclass(frozen=True, slots=True)
class Database:
    """
    Attributes:
        master_keys: those that this process has.
        find_keys: those that it would have by now: in a data directory a rotation makes one.
        admin_token: what operators prove themselves with; None if admin routes are off.
        embedded: the server, where this process looks after it.
    """

    dsn: str = field(repr=False)
    master_keys: MasterKeys
    find_keys: Callable[[], Sequence[bytes]]
    admin_token: str | None = field(repr=False)
    embedded: EmbeddedPostgres | None


async def open_database(settings: Settings, stack: AsyncExitStack) -> Database:
    """The database that is set, or the embedded one, started if it does not run.

    Raises:
        CannotStart, BadDataDirectory, DatabaseDidNotStart: one line each, fit to show.
    """
    if settings.database_url is not None:
        if settings.master_key is None:
            raise CannotStart("REGISTRAR_MASTER_KEY is not set; set it to what `openssl rand -hex 32` prints.")
        token = settings.admin_token.get_secret_value() if settings.admin_token else None
        set_keys = partial(keys_in, settings)
        dsn = settings.database_url.get_secret_value()
        return Database(dsn, MasterKeys(*set_keys()), set_keys, token, embedded=None)
    directory = DataDirectory(settings.data_dir)
    find = directory.master_keys if settings.master_key is None else partial(keys_in, settings)
    keys = MasterKeys(*find())  # made before there is a database, never beside one
    postgres = await _started(directory, stack)
    return Database(
        postgres.dsn,
        keys,
        find,
        (settings.admin_token or directory.admin_token()).get_secret_value(),
        embedded=postgres,
    )


def keys_in(settings: Settings) -> Sequence[bytes]:
    """The master keys that are set: the one in use first, as a rule."""
    keys = (settings.master_key, settings.next_master_key)
    return [key.get_secret_value() for key in keys if key is not None]


async def dsn_to_read(settings: Settings, stack: AsyncExitStack) -> str:
    """Where the database is, without a look at its secrets; the embedded one is started if it does not run.

    Raises:
        BadDataDirectory, DatabaseDidNotStart: one line each, fit to show.
    """
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    return (await _started(DataDirectory(settings.data_dir), stack)).dsn


async def _started(directory: DataDirectory, stack: AsyncExitStack) -> EmbeddedPostgres:
    postgres = EmbeddedPostgres(directory.path)
    stack.push_async_callback(asyncio.to_thread, postgres.stop)  # also for a start that is cancelled half-way
    await asyncio.to_thread(postgres.start)
    return postgres


# --- What is in it ----------------------------------------------------------------------------


async def prepare(database: Database) -> Keyring:
    """Create what is missing; returns what opens and derives secrets there.

    Raises:
        CannotStart, WrongMasterKey: one line each, fit to show.
    """
    async with first_connection(database.dsn) as connection:
        await create_schema(connection)
        await _check_import(connection)
        with cut_after(CONFIRM_WITHIN, connection):
            root_secret = await open_root_secret(connection, database.master_keys)
    return Keyring(master_key=database.master_keys, root_secret=root_secret)


async def keyring_of(database: Database) -> Keyring:
    """`prepare` where nothing may be created: everything has to be there.

    Raises:
        CannotStart, WrongMasterKey: one line each, fit to show.
    """
    async with first_connection(database.dsn, read_only=True) as connection:
        await check(connection, SCHEMA)
        await _check_import(connection)
        root_secret = await read_root_secret(connection, database.master_keys)
    if root_secret is None:
        raise CannotStart("No service has run on this database yet; start one first (`registrar up`, or `serve`).")
    return Keyring(master_key=database.master_keys, root_secret=root_secret)


async def keyring_after_update(database: Database) -> Keyring:
    """`keyring_of` on a database on which an earlier release may still run: first updates it, as a start does.

    Raises:
        CannotStart, WrongMasterKey: one line each, fit to show.
    """
    async with first_connection(database.dsn) as connection:
        try:
            await check(connection, SCHEMA)
        except NothingThere:
            raise
        except Outdated:
            await create_schema(connection)
    return await keyring_of(database)


async def check_schema(dsn: str) -> None:
    """
    Raises:
        CannotStart: this version cannot work with what is there, or it is away.
    """
    async with first_connection(dsn, read_only=True) as connection:
        await check(connection, SCHEMA)
        await _check_import(connection)


async def _check_import(connection: Connection) -> None:
    """
    Raises:
        CannotStart: an import has been begun here and is not at its end.
    """
    row = await (await connection.execute("SELECT EXISTS (SELECT FROM public.head)")).fetchone()
    if row is None or not row[0]:
        raise CannotStart(
            "An import into this database is not finished; finish it with the same `registrar events import FILE`, "
            "or use another database."
        )


async def create_schema(connection: Connection) -> None:
    """Run the scripts that have not been run on this database."""
    await bring_up_to_date(connection, SCHEMA)


@asynccontextmanager
async def first_connection(dsn: str, *, read_only: bool = False) -> AsyncIterator[Connection]:
    """A connection for the time before anything runs.

    Raises:
        CannotStart: the database is away, or what is done within finds that it holds what we cannot work with.
    """
    try:
        connection = await connect_first(
            dsn, name="setup", statement_timeout=timedelta(seconds=60), read_only=read_only
        )
    except (psycopg.Error, OSError) as error:
        raise CannotStart(why_unreachable(error)) from None
    async with closing(connection):
        try:
            yield connection
        except WrongSchema as error:
            raise CannotStart(str(error)) from None
        except psycopg.Error as error:
            reason = why_unusable(error) or (why_unreachable(error) if isinstance(error, AWAY) else None)
            if reason is None:
                raise
            raise CannotStart(reason) from None
