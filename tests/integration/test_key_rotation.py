"""`keys rotate` and `keys list`: while the service runs, over several processes, and with a key that is missing."""

from __future__ import annotations

import asyncio
import io
import secrets
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from application.crash_points import CrashPoint, armed
from application.ports import WrongMasterKey
from domain.registration import Registration
from entrypoints.bootstrap.keys import CannotRotate, Done, key_desk
from infrastructure.crypto import rotation
from infrastructure.crypto.keyring import binding
from infrastructure.crypto.master_keys import MasterKeys, key_id, names
from infrastructure.event_store.store import EventStore
from infrastructure.settings.settings import Settings
from tests.integration.conftest import Command
from tests.integration.test_flow import register, registration
from tests.integration.test_replay_export import exported, imported, rows
from tests.support.facts import eventually
from tests.support.log import append, broken_blocks, happened, query
from tests.support.service import Service, open_service

OLD, NEXT, THIRD = "ab" * 32, "cd" * 32, "ef" * 32
OLD_ID, NEXT_ID, THIRD_ID = (key_id(bytes.fromhex(key)) for key in (OLD, NEXT, THIRD))


def with_keys(dsn: str, master_key: str = OLD, next_master_key: str | None = None, **more: str) -> Settings:
    keys = {"REGISTRAR_MASTER_KEY": master_key} | (
        {"REGISTRAR_NEXT_MASTER_KEY": next_master_key} if next_master_key else {}
    )
    return Settings.from_environment({"REGISTRAR_DATABASE_URL": dsn, **keys, **more})


@pytest.fixture(autouse=True)
def rejoined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotation, "REJOINED", rotation.LOOK)


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[Any]:
    """Starts a process that registers, with these keys."""
    async with AsyncExitStack() as stack:

        async def start(dsn: str, *keys: str) -> Service:
            settings = with_keys(dsn, *keys, REGISTRAR_DATA_DIR=str(tmp_path / secrets.token_hex(4)))
            return await stack.enter_async_context(open_service(settings, follows=False))

        yield start


async def rotate(settings: Settings) -> Done:
    async with key_desk(settings) as desk:
        return await desk.rotate(lambda *_: None)


async def wrapped(dsn: str) -> dict[UUID, bytes]:
    return dict(await query(dsn, "SELECT registration_id, wrapped FROM personal_keys"))


async def everything_opens(service: Service, addresses: dict[UUID, str]) -> None:
    keys = await wrapped(service.dsn)
    for registration_id, address in addresses.items():
        found = await registration(service, registration_id)
        assert service.keyring.open(registration_id, found.personal_data, keys[registration_id]).email == address


async def test_everything_is_re_wrapped_while_two_processes_register(dsn: str, process: Any) -> None:
    one, other = await process(dsn, OLD, NEXT), await process(dsn, OLD, NEXT)
    people = {}
    for number in range(5):
        people[(await register(one, f"before{number}@example.com")).subject_id] = f"before{number}@example.com"
    stop = asyncio.Event()

    async def go_on(service: Service, name: str) -> None:
        number = 0
        while not stop.is_set():
            address = f"{name}{number}@example.com"
            people[(await register(service, address)).subject_id] = address
            number += 1

    crowd = [asyncio.create_task(go_on(one, "one")), asyncio.create_task(go_on(other, "other"))]
    await eventually(lambda: len(people) > 20)
    done = await rotate(with_keys(dsn, OLD, NEXT))
    after = await asyncio.gather(register(one, "after1@example.com"), register(other, "after2@example.com"))
    stop.set()
    await asyncio.gather(*crowd)

    assert (done.key, done.retired, done.resumed) == (NEXT_ID.hex(), [OLD_ID.hex()], False)
    keys = await wrapped(dsn)
    assert {names(one) for one in keys.values()} == {NEXT_ID}
    assert len(keys) == len(people) + len(after)
    [(root,)] = await query(dsn, "SELECT wrapped FROM service_secrets WHERE name = 'root'")
    assert names(root) == NEXT_ID
    for service in (one, other):
        await everything_opens(service, people)
    only_the_new = await process(dsn, NEXT)
    await everything_opens(only_the_new, people)
    assert only_the_new.keyring.code(after[0].subject_id, 1) == one.keyring.code(after[0].subject_id, 1)
    again = await register(only_the_new, "before0@example.com")
    assert again.subject_id in people, "the same payload is the same registration: nothing derived has changed"


async def test_nothing_begins_before_every_running_process_has_the_next_key(
    dsn: str, process: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation, "PATIENCE", rotation.LOOK)
    with_it, without = await process(dsn, OLD, NEXT), await process(dsn, OLD)
    await register(with_it, "ada@example.com")
    await eventually(lambda: _listening(dsn, 2))

    with pytest.raises(CannotRotate, match=rf"do not have the new master key {NEXT_ID.hex()}.*pid \d+ of") as refusal:
        await rotate(with_keys(dsn, OLD, NEXT))

    assert str(refusal.value).count("pid ") == 1
    assert {names(one) for one in (await wrapped(dsn)).values()} == {None}
    await register(without, "eve@example.com")


async def _listening(dsn: str, count: int) -> bool:
    """Do so many processes show that they have a master key?"""
    [(found,)] = await query(
        dsn,
        "SELECT count(DISTINCT pid) FROM pg_locks JOIN pg_stat_activity USING (pid)"
        " WHERE application_name = 'registrar listen' AND datname = current_database() AND locktype = 'advisory'",
    )
    return bool(found == count)


async def test_a_process_with_only_one_of_two_keys_does_not_start_and_names_the_other(dsn: str, process: Any) -> None:
    service = await process(dsn, OLD, NEXT)
    await register(service, "ada@example.com")

    async def half_way(*_: object) -> None:
        raise RuntimeError("killed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rotation, "_rewrap_all", half_way)
        with pytest.raises(RuntimeError, match="killed"):
            await rotate(with_keys(dsn, OLD, NEXT))

    with pytest.raises(WrongMasterKey, match=NEXT_ID.hex()):
        await process(dsn, OLD)
    with pytest.raises(WrongMasterKey, match=OLD_ID.hex()):
        await process(dsn, NEXT)
    with pytest.raises(WrongMasterKey, match=NEXT_ID.hex()):
        await process(dsn, OLD, THIRD)
    async with key_desk(with_keys(dsn, NEXT)) as desk:
        listed = {one.key: (one.use, one.here, one.persons) for one in await desk.keys()}
    assert listed == {OLD_ID.hex(): ("replaced", False, 1), NEXT_ID.hex(): ("wraps", True, 0)}
    done = await rotate(with_keys(dsn, OLD, NEXT))
    assert (done.resumed, done.persons) == (True, 1)


async def test_a_key_that_was_replaced_does_not_come_back(dsn: str, process: Any) -> None:
    await process(dsn, OLD, NEXT)
    await rotate(with_keys(dsn, OLD, NEXT))

    with pytest.raises(CannotRotate, match=f"{OLD_ID.hex()} has been replaced here before; give a new one"):
        await rotate(with_keys(dsn, NEXT, OLD))
    again = await rotate(with_keys(dsn, OLD, NEXT))
    assert (again.resumed, again.persons) == (True, 0)


async def test_a_third_key_follows_the_second(dsn: str, process: Any) -> None:
    ada = (await register(await process(dsn, OLD, NEXT), "ada@example.com")).subject_id
    await rotate(with_keys(dsn, OLD, NEXT))
    both = await process(dsn, NEXT, THIRD)
    eve = (await register(both, "eve@example.com")).subject_id

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rotation, "lacking", _nobody)
        done = await rotate(with_keys(dsn, NEXT, THIRD))

    assert (done.key, set(done.retired)) == (THIRD_ID.hex(), {OLD_ID.hex(), NEXT_ID.hex()})
    await everything_opens(await process(dsn, THIRD), {ada: "ada@example.com", eve: "eve@example.com"})


async def _nobody(*_: object) -> list[object]:
    return []


async def test_an_erased_key_does_not_come_back(dsn: str, process: Any) -> None:
    """It is erased after it was read, and before it is written."""
    service = await process(dsn, OLD, NEXT)
    ada, eve = [(await register(service, f"{name}@example.com")).subject_id for name in ("ada", "eve")]
    write = rotation._write

    async def first_erased(connection: Any, found: Any) -> int:
        await query(dsn, "DELETE FROM personal_keys WHERE registration_id = %s", ada)
        return await write(connection, found)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rotation, "_write", first_erased)
        done = await rotate(with_keys(dsn, OLD, NEXT))

    assert set(await wrapped(dsn)) == {eve}
    assert done.persons == 1


async def test_a_row_that_somebody_holds_is_not_waited_for_and_taken_later(dsn: str, process: Any) -> None:
    service = await process(dsn, OLD, NEXT)
    people = {(await register(service, f"{name}@example.com")).subject_id: name for name in ("ada", "eve")}
    held = next(iter(people))
    async with AsyncExitStack() as stack:
        holder = await stack.enter_async_context(await _session(dsn))
        await holder.execute("SELECT FROM personal_keys WHERE registration_id = %s FOR UPDATE", (held,))
        rotating = asyncio.create_task(rotate(with_keys(dsn, OLD, NEXT)))

        async def the_other_is_done() -> bool:
            return {one for one, key in (await wrapped(dsn)).items() if names(key) == NEXT_ID} == set(people) - {held}

        await eventually(the_other_is_done)
        assert not rotating.done()
    assert (await rotating).persons == 2


async def _session(dsn: str) -> Any:
    return await psycopg.AsyncConnection.connect(dsn)


async def test_a_damaged_key_is_named_and_holds_up_nobody_else(dsn: str, process: Any) -> None:
    service = await process(dsn, OLD, NEXT)
    ada, eve = [(await register(service, f"{name}@example.com")).subject_id for name in ("ada", "eve")]
    await query(dsn, "UPDATE personal_keys SET wrapped = %s WHERE registration_id = %s", bytes(60), ada)

    with pytest.raises(CannotRotate, match=f"1 personal keys do not open.*{ada}"):
        await rotate(with_keys(dsn, OLD, NEXT))

    assert names((await wrapped(dsn))[eve]) == NEXT_ID
    await query(dsn, "DELETE FROM personal_keys WHERE registration_id = %s", ada)
    assert (await rotate(with_keys(dsn, OLD, NEXT))).retired == [OLD_ID.hex()]


async def test_no_key_is_retired_while_it_wraps_something(dsn: str, process: Any) -> None:
    """A process that nobody saw, because it was reconnecting, appends under the old key at the last moment."""
    await register(await process(dsn, OLD, NEXT), "ada@example.com")
    late, retired = [uuid4(), uuid4()], list[object]()

    def appends(point: CrashPoint) -> None:
        if point == "rotation.before_end" and late:
            one = late.pop()
            wrapped_by_old = MasterKeys(bytes.fromhex(OLD)).wrap(bytes(32), binding(one))
            with psycopg.connect(dsn, autocommit=True) as other:
                other.execute("INSERT INTO personal_keys VALUES (%s, %s)", (one, wrapped_by_old))
        elif point == "rotation.after_batch":
            with psycopg.connect(dsn) as other:
                retired.extend(other.execute("SELECT retired_at FROM master_keys WHERE number = 1").fetchall())

    with armed(appends):
        done = await rotate(with_keys(dsn, OLD, NEXT))

    assert (done.persons, done.retired) == (3, [OLD_ID.hex()])
    assert retired == [(None,)] * 3
    assert {names(one) for one in (await wrapped(dsn)).values()} == {NEXT_ID}


async def test_a_process_that_was_reconnecting_is_looked_for_before_the_end(
    dsn: str, process: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await register(await process(dsn, OLD, NEXT), "ada@example.com")
    monkeypatch.setattr(rotation, "PATIENCE", 10 * rotation.LOOK)
    with ExitStack() as sessions:

        def comes_back(point: CrashPoint) -> None:
            if point == "rotation.after_batch":
                sessions.enter_context(psycopg.connect(dsn, application_name="registrar listen"))

        with armed(comes_back), pytest.raises(CannotRotate, match="still wrap with another master key"):
            await rotate(with_keys(dsn, OLD, NEXT))

    assert await query(dsn, "SELECT 1 FROM master_keys WHERE retired_at IS NOT NULL") == []
    assert (await rotate(with_keys(dsn, OLD, NEXT))).retired == [OLD_ID.hex()]


async def test_what_is_on_its_way_into_the_log_is_waited_for(dsn: str, store: EventStore) -> None:
    """A process shows that it wraps with the new key only once nothing that it wrapped with the old one is pending."""
    locker = await _session(dsn)
    async with locker:
        await locker.execute("SELECT FROM head FOR UPDATE")
        appending = asyncio.create_task(_append(store))
        await eventually(lambda: store.waiting == 0 and not appending.done())
        settled = asyncio.create_task(store.settled())
        await asyncio.sleep(0)
        assert not settled.done()
        await locker.rollback()
    await settled
    assert appending.done() or await appending
    await store.settled()


async def _append(store: EventStore) -> int:
    return await append(store, happened())


async def test_the_log_is_not_touched(dsn: str, process: Any) -> None:
    service = await process(dsn, OLD, NEXT)
    ada = (await register(service, "ada@example.com")).subject_id
    before = await query(dsn, "SELECT * FROM events ORDER BY notification_id")
    await rotate(with_keys(dsn, OLD, NEXT))

    after = await query(dsn, "SELECT * FROM events WHERE topic <> 'operator.acted' ORDER BY notification_id")
    assert after == before
    async with await _session(dsn) as session:
        assert await broken_blocks(session) == []
    assert (await service.store.load(ada)).get(Registration, ada) is not None


# --- As an operator sees it -------------------------------------------------------------------


async def test_what_runs_on_the_embedded_database_learns_of_the_key_that_a_rotation_makes() -> None:
    # Not tmp_path: the database's user cannot pass.
    with tempfile.TemporaryDirectory(prefix="registrar-test-") as name:
        directory = Path(name) / "data"
        settings = Settings.from_environment({"REGISTRAR_DATA_DIR": str(directory)})
        async with open_service(settings, follows=False) as service:
            people = {(await register(service, "ada@example.com")).subject_id: "ada@example.com"}
            before = (directory / "master.key").read_text()
            old = key_id(bytes.fromhex(before)).hex()

            done = await rotate(settings)
            people[(await register(service, "eve@example.com")).subject_id] = "eve@example.com"

            assert done.retired == [old]
            assert {names(one) for one in (await wrapped(service.dsn)).values()} == {bytes.fromhex(done.key)}
            await everything_opens(service, people)
            assert (directory / f"master-{old}.key").read_text() == before
            assert (directory / f"master-{old}.key").stat().st_mode & 0o077 == 0
            assert key_id(bytes.fromhex((directory / "master.key").read_text())).hex() == done.key
            assert not (directory / "master.key.next").exists()
            third = await rotate(settings)
            assert (third.persons, set(third.retired)) == (2, {old, done.key})
            await everything_opens(service, people)
        async with open_service(settings, follows=False) as service:
            await everything_opens(service, people)


def test_without_a_next_key_it_says_what_to_set(dsn: str, command: Command) -> None:
    done = command("keys", "rotate", DATABASE_URL=dsn, MASTER_KEY=OLD)

    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "REGISTRAR_NEXT_MASTER_KEY is not set" in done.err


def test_it_says_what_it_did_and_what_is_to_be_done(dsn: str, command: Command) -> None:
    keys = {"DATABASE_URL": dsn, "MASTER_KEY": OLD, "NEXT_MASTER_KEY": NEXT}

    done = command("keys", "rotate", **keys)
    listed = command("keys", "list", **keys)
    doctor = command("doctor", "--json", **keys)

    assert done.code == 0, done.err
    assert NEXT_ID.hex() in done.out
    assert "Now set REGISTRAR_MASTER_KEY to the value of REGISTRAR_NEXT_MASTER_KEY" in done.err
    assert [line.split()[:2] for line in listed.out.splitlines()[1:]] == [
        [OLD_ID.hex(), "retired"],
        [NEXT_ID.hex(), "wraps"],
    ]
    [finding] = [one for one in doctor.json["checks"] if one["check"] == "master key"]
    assert finding["state"] == "warn"
    assert f"REGISTRAR_MASTER_KEY is {OLD_ID.hex()}, which is retired" in finding["says"]


def test_one_person_is_counted_as_one(dsn: str, command: Command) -> None:
    asyncio.run(_one_rotated(dsn, half_way=True))

    done = command("keys", "rotate", DATABASE_URL=dsn, MASTER_KEY=OLD, NEXT_MASTER_KEY=NEXT)

    assert "this one has re-wrapped 1 person." in done.out


def test_a_rotation_is_an_operators_act_in_the_audit_with_its_reason(dsn: str, command: Command) -> None:
    keys = {"DATABASE_URL": dsn, "MASTER_KEY": OLD, "NEXT_MASTER_KEY": NEXT}

    done = command("keys", "rotate", "--reason", "every November", **keys)
    again = command("keys", "rotate", "--reason", "once more", **keys)

    assert (done.code, again.code) == (0, 0), (done, again)
    found = rows(dsn, "SELECT actor, convert_from(state, 'UTF8')::jsonb FROM events WHERE topic = 'operator.acted'")
    assert [(actor, state["act"], state["reason"]) for actor, state in found] == [
        ("operator", "rotate-master-key", "every November")
    ]


async def test_a_rotation_that_does_not_begin_is_no_act(
    dsn: str, process: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation, "PATIENCE", rotation.LOOK)
    await register(await process(dsn, OLD), "ada@example.com")
    await eventually(lambda: _listening(dsn, 1))

    with pytest.raises(CannotRotate):
        await rotate(with_keys(dsn, OLD, NEXT))

    assert await query(dsn, "SELECT 1 FROM events WHERE topic = 'operator.acted'") == []


def test_no_key_is_ever_shown(dsn: str, command: Command, log: io.StringIO) -> None:
    keys = {"DATABASE_URL": dsn, "MASTER_KEY": OLD, "NEXT_MASTER_KEY": NEXT}
    said = [
        part
        for words in (("keys", "rotate"), ("keys", "list", "--json"), ("doctor",), ("keys", "rotate", "--json"))
        for part in command(*words, **keys)[1:]
    ]
    said += command("keys", "list", DATABASE_URL=dsn, MASTER_KEY=THIRD)[1:]

    assert not [one for one in (*said, log.getvalue()) if OLD in one or NEXT in one or THIRD in one]


# --- A log with its keys in a file ------------------------------------------------------------


def test_a_log_with_keys_of_a_later_master_key_is_read_where_it_is_imported(
    dsn: str, empty: str, tmp_path: Path, command: Command
) -> None:
    registration_id = asyncio.run(_one_rotated(dsn))
    file = exported(command, dsn, tmp_path / "log.jsonl", "--with-keys")

    wrong = imported(command, empty, file, "--with-keys")
    done = command("events", "import", "--with-keys", str(file), DATABASE_URL=empty, MASTER_KEY=NEXT)

    assert (wrong.code, wrong.err.count("\n")) == (2, 1)
    assert NEXT_ID.hex() in wrong.err
    assert done.code == 0, done.err
    assert rows(empty, "SELECT * FROM personal_keys") == rows(dsn, "SELECT * FROM personal_keys")
    assert asyncio.run(_address(empty, registration_id, NEXT)) == "ada@example.com"


def test_a_log_that_was_exported_during_a_rotation_needs_both_keys(
    dsn: str, empty: str, tmp_path: Path, command: Command
) -> None:
    registration_id = asyncio.run(_one_rotated(dsn, half_way=True))
    file = exported(command, dsn, tmp_path / "log.jsonl", "--with-keys")
    words = ("events", "import", "--with-keys", str(file))

    one = command(*words, DATABASE_URL=empty, MASTER_KEY=NEXT)
    assert rows(empty, "SELECT 1 FROM personal_keys") == []
    both = command(*words, DATABASE_URL=empty, MASTER_KEY=NEXT, NEXT_MASTER_KEY=OLD)

    assert (one.code, one.err.count("\n")) == (2, 1)
    assert "import with both (REGISTRAR_NEXT_MASTER_KEY)" in one.err
    assert both.code == 0, both.err
    assert asyncio.run(_address(empty, registration_id, OLD, NEXT)) == "ada@example.com"
    assert asyncio.run(rotate(with_keys(empty, OLD, NEXT))).persons == 1


async def _one_rotated(dsn: str, *, half_way: bool = False) -> UUID:
    with tempfile.TemporaryDirectory() as directory:
        settings = with_keys(dsn, OLD, NEXT, REGISTRAR_DATA_DIR=directory)
        async with open_service(settings, follows=False) as service:
            registration_id = (await register(service, "ada@example.com")).subject_id
    with pytest.MonkeyPatch.context() as patch:
        if half_way:
            patch.setattr(rotation, "_rewrap_all", _stopped)
            with pytest.raises(CannotRotate):
                await rotate(settings)
        else:
            await rotate(settings)
    return registration_id


async def _stopped(*_: object) -> None:
    raise CannotRotate("stopped")


async def _address(dsn: str, registration_id: UUID, *keys: str) -> str:
    with tempfile.TemporaryDirectory() as directory:
        async with open_service(with_keys(dsn, *keys, REGISTRAR_DATA_DIR=directory), follows=False) as service:
            found = await registration(service, registration_id)
            [(key,)] = await query(dsn, "SELECT wrapped FROM personal_keys")
            return service.keyring.open(registration_id, found.personal_data, key).email
