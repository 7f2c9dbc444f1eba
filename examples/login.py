"""Check a password against the read model `accounts`, as a login service does.

    echo 'correct horse battery' | python examples/login.py ada@example.com

Reads the same REGISTRAR_ variables as the service, or the data directory of a running `registrar up`. The read model
holds sealed data: whoever opens it needs the master key, and after an erasure nobody can.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import ExitStack
from typing import Any

import psycopg
from nacl import pwhash
from nacl.exceptions import InvalidkeyError

from application.addresses import canonical_address, parse_address
from application.passwords import normal_password
from infrastructure.crypto.keyring import Keyring, read_root_secret
from infrastructure.crypto.master_keys import MasterKeys
from infrastructure.embedded.data_directory import DataDirectory
from infrastructure.embedded.postgres import EmbeddedPostgres
from infrastructure.settings.settings import Settings
from projections.accounts import Account, Accounts

NOBODY = pwhash.argon2id.str(b"nobody's", opslimit=2, memlimit=19 * 1024 * 1024)
"""Checked where there is no account, so that the time tells nothing."""


async def login(
    connection: psycopg.AsyncConnection[Any], keyring: Keyring, email: str, password: str
) -> Account | None:
    """The active account with this address and password."""
    try:
        address = parse_address(email)
        typed = normal_password(password).encode()  # not its rules: they change, and what was accepted holds
    except ValueError:  # nobody could have registered so
        return None
    account = await Accounts().by_address(connection, keyring.claim_id(canonical_address(address)))
    expected = None
    if account is not None and account.wrapped is not None:
        expected = keyring.open(account.registration_id, account.sealed, account.wrapped).password_hash
    try:
        await asyncio.to_thread(pwhash.verify, expected.encode() if expected else NOBODY, typed)
    except InvalidkeyError:
        return None
    return account


async def main(email: str, password: str) -> int:
    settings = Settings.from_environment(os.environ)
    own = [key.get_secret_value() for key in (settings.master_key, settings.next_master_key) if key is not None]
    keys = MasterKeys(*(own or DataDirectory(settings.data_dir).master_keys()))
    with ExitStack() as stack:
        if settings.database_url is None:
            embedded = EmbeddedPostgres(settings.data_dir)
            stack.callback(embedded.stop)
            embedded.start()  # joins the one that `registrar up` runs
        url = settings.database_url.get_secret_value() if settings.database_url else embedded.dsn
        read_only = "-c default_transaction_read_only=on"
        async with await psycopg.AsyncConnection.connect(url, autocommit=True, options=read_only) as connection:
            root_secret = await read_root_secret(connection, keys)
            if root_secret is None:
                sys.exit("no service has run on this database yet")
            keyring = Keyring(master_key=keys, root_secret=root_secret)
            account = await login(connection, keyring, email, password)
    print(account.registration_id if account else "wrong address or password")
    return 0 if account else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1], sys.stdin.readline().rstrip("\n"))))
