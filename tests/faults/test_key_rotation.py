"""`keys rotate`, killed wherever it is, is resumed, and loses nothing; neither does the journal of erasures."""

from __future__ import annotations

import asyncio
import random
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from application.commands import EraseRegistration
from application.crash_points import CrashPoint
from application.ports import Context, Person, entries_of
from infrastructure.audit.erasures import Erasure, read_journal
from infrastructure.crypto.keyring import Keyring, binding, open_root_secret
from infrastructure.crypto.master_keys import MasterKeys, key_id, names
from infrastructure.embedded.data_directory import DataDirectory
from infrastructure.event_store.store import EventStore
from infrastructure.postgres.connection import connect
from infrastructure.settings.settings import Settings
from tests.faults.conftest import Arm
from tests.faults.fleet import REGISTRAR, ROOT
from tests.integration.test_flow import register
from tests.support.commands import clean_environment
from tests.support.facts import CLIENT, eventually, registered, stream
from tests.support.log import query
from tests.support.service import open_service

OLD, NEXT = "ab" * 32, "cd" * 32
KILLS, MOST_KILLS = 8, 20
PEOPLE = 1_500  # three batches, so that one is done and one is not when it is killed
POINTS: list[CrashPoint] = ["rotation.begun", "rotation.mid_batch", "rotation.after_batch", "rotation.before_end"]


async def recorded(dsn: str, store: EventStore) -> dict[UUID, Person]:
    """Persons in the log, whose keys the first master key wraps."""
    async with await connect(dsn, name="setup", statement_timeout=timedelta(seconds=10)) as connection:
        root = await open_root_secret(connection, bytes.fromhex(OLD))
    keyring = Keyring(master_key=bytes.fromhex(OLD), root_secret=root)
    people = {}
    for _ in range(PEOPLE // 500):
        entries, keys = [], []
        for _ in range(500):
            registration_id = uuid4()
            person = people[registration_id] = Person(f"{secrets.token_hex(8)}@example.org", "Ada", None)
            sealed, key = keyring.seal(registration_id, person)
            entries += stream(registration_id, registered(personal_data=sealed))
            keys.append(key)
        await store.append(entries_of(entries, CLIENT), keys=keys)
    return people


class Rotation:
    """`registrar keys rotate` on a database, in a process of its own."""

    def __init__(self, dsn: str, reached: Path) -> None:
        self._environment = clean_environment(DATABASE_URL=dsn, MASTER_KEY=OLD, NEXT_MASTER_KEY=NEXT)
        self._reached = reached

    def begin(self, dies_at: str | None = None) -> subprocess.Popen[str]:
        command = [str(REGISTRAR)]
        if dies_at is not None:
            command = [sys.executable, "-m", "tests.faults.armed", dies_at, str(self._reached), "--"]
        return subprocess.Popen(
            [*command, "keys", "rotate"],
            cwd=ROOT,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    async def run(self, dies_at: str | None = None) -> tuple[int, str]:
        """Its exit code, and what it said."""
        process = self.begin(dies_at)
        out, err = await asyncio.to_thread(process.communicate)
        return process.returncode, out + err


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.fault("A20")
async def test_a_rotation_that_is_killed_again_and_again_is_resumed_and_ends(
    dsn: str, store: EventStore, reached_directory: Path, full_size: bool
) -> None:
    people = await recorded(dsn, store)
    rotation, dice = Rotation(dsn, reached_directory), random.Random(12)  # noqa: S311 - dice
    erased: set[UUID] = set()
    for number in range(MOST_KILLS if full_size else KILLS):
        if number >= len(POINTS):  # by then one run has come to its end, but for the last step
            await _back_to_the_old(dsn)
        code, said = await rotation.run(POINTS[number % len(POINTS)])
        assert code == -signal.SIGKILL, said
        gone = dice.choice(sorted(people.keys() - erased))
        await query(dsn, "DELETE FROM personal_keys WHERE registration_id = %s", gone)
        erased.add(gone)
        await _all_open(dsn, people, erased)

    code, said = await rotation.run()

    assert code == 0, said
    await _all_open(dsn, people, erased)
    assert {names(key) for (key,) in await query(dsn, "SELECT wrapped FROM personal_keys")} == {
        key_id(bytes.fromhex(NEXT))
    }
    assert await query(dsn, "SELECT key_id FROM master_keys WHERE retired_at IS NOT NULL") == [
        (key_id(bytes.fromhex(OLD)),)
    ]


async def _all_open(dsn: str, people: dict[UUID, Person], erased: set[UUID]) -> None:
    """With both keys, as a process has them; the keys of those who are erased stay away."""
    keys = MasterKeys(bytes.fromhex(OLD), bytes.fromhex(NEXT))
    async with await connect(dsn, name="test", statement_timeout=timedelta(seconds=10)) as connection:
        keyring = Keyring(master_key=keys, root_secret=await open_root_secret(connection, keys))
    found = await query(
        dsn,
        "SELECT k.registration_id, k.wrapped, convert_from(e.state, 'UTF8')::jsonb ->> 'personal_data'"
        " FROM personal_keys AS k JOIN events AS e ON e.originator_id = k.registration_id",
    )
    assert {one for one, _, _ in found} == people.keys() - erased
    assert all(keyring.open(one, sealed, wrapped) == people[one] for one, wrapped, sealed in found)


async def _back_to_the_old(dsn: str) -> None:
    """A tenth of them is as it was before, so that there is something to do."""
    keys = MasterKeys(bytes.fromhex(OLD), bytes.fromhex(NEXT))
    async with await connect(dsn, name="test", statement_timeout=timedelta(seconds=10)) as connection:
        await open_root_secret(connection, keys)
        found = await (await connection.execute("SELECT registration_id, wrapped FROM personal_keys")).fetchall()
        rows = [
            (keys.wrap(keys.unwrap(wrapped, binding(one)), binding(one), by=key_id(bytes.fromhex(OLD))), one)
            for one, wrapped in found[::10]
        ]
        await connection.cursor().executemany("UPDATE personal_keys SET wrapped = %b WHERE registration_id = %s", rows)


class KilledError(Exception):
    pass


def killed() -> None:
    raise KilledError


@pytest.mark.fault("A20")
def test_the_key_file_is_changed_whole_or_not_at_all(tmp_path: Path, arm: Arm) -> None:
    directory = DataDirectory(tmp_path / "data")
    old, following = directory.master_key(), directory.next_master_key()
    arm("rotation.before_key_file", killed)

    with pytest.raises(KilledError):
        directory.take_next_master_key("0" * 16)

    assert (directory.master_key(), directory.next_master_key()) == (old, following)
    assert set(directory.master_keys()) == {old.get_secret_value(), following.get_secret_value()}
    directory.take_next_master_key("0" * 16)
    assert directory.master_key() == following
    assert set(directory.master_keys()) == {old.get_secret_value(), following.get_secret_value()}


@pytest.mark.fault("A21")
@pytest.mark.parametrize(
    ("point", "lines"), [("erasures.before_line", 1), ("erasures.before_position", 2)], ids=["before", "after"]
)
async def test_an_erasure_reaches_the_journal_though_its_writer_dies_around_the_line(
    dsn: str, tmp_path: Path, arm: Callable[..., None], point: CrashPoint, lines: int
) -> None:
    settings = Settings.from_environment(
        {
            "REGISTRAR_DATABASE_URL": dsn,
            "REGISTRAR_MASTER_KEY": OLD,
            "REGISTRAR_DATA_DIR": str(tmp_path / "data"),
            "REGISTRAR_CHECKPOINT_DIR": str(tmp_path / "checkpoints"),
            "REGISTRAR_CHECKPOINT_KEY": "ef" * 32,
        }
    )
    arm(point, killed)
    async with open_service(settings, follows=True) as service:
        registration_id = (await register(service, "ada@example.com")).subject_id
        await service.handlers.handle(EraseRegistration(registration_id=registration_id), Context("operator", uuid4()))

        def journal() -> list[Erasure]:
            return [one.erasure for one in read_journal(tmp_path / "checkpoints" / "erasures").entries]

        found = await eventually(lambda: _of_length(journal, lines))

    assert {one.registration_id for one in found} == {registration_id}


def _of_length(journal: Callable[[], list[Erasure]], lines: int) -> list[Erasure]:
    try:
        found = journal()
    except FileNotFoundError:
        return []
    return found if len(found) >= lines else []
