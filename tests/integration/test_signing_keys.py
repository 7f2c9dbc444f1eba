"""The key that signs checkpoints is changed while they are signed, and what was signed before still verifies."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from entrypoints.bootstrap.audit import log_verifier
from entrypoints.bootstrap.signing_keys import PATIENCE, CannotChange, signing_key_desk
from infrastructure.audit.checkpointer import Checkpointer
from infrastructure.audit.known import Known, known_checkpoints, known_keys
from infrastructure.audit.note_keys import SigningKey, VerifierKey
from infrastructure.audit.notes import BadNote, open_note
from infrastructure.audit.publishing import CheckpointDirectory
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.store import EventStore
from infrastructure.postgres.clock import DatabaseClock
from infrastructure.postgres.connection import connect
from infrastructure.settings.settings import Settings
from tests.integration.conftest import Command
from tests.integration.test_checkpoints import (
    SEED,
    checkpointing,
    recorded,
    signed_upto,
    until_published,
    until_signed,
)
from tests.integration.test_flow import register
from tests.support.facts import eventually
from tests.support.log import acts_of, query
from tests.support.service import open_service

NEXT = bytes(range(32, 64))
OTHER = bytes(range(64, 96))
BRIEFLY = timedelta(seconds=1)


def settings_of(dsn: str, directory: Path, key: bytes = SEED, following: bytes = NEXT) -> Settings:
    given = {
        "DATABASE_URL": dsn,
        "CHECKPOINT_DIR": str(directory),
        "CHECKPOINT_KEY": key.hex(),
        "NEXT_CHECKPOINT_KEY": following.hex(),
    }
    return Settings.from_environment({f"REGISTRAR_{name}": of for name, of in given.items()}, with_secrets=False)


async def change(settings: Settings, *, old_is_lost: bool = False, patience: timedelta = PATIENCE) -> int:
    """Change the key; the number of blocks of the first checkpoint that the new one has signed."""
    async with signing_key_desk(settings) as desk:
        return (await desk.change(old_is_lost=old_is_lost, patience=patience)).first_size


async def signers_by_size(dsn: str) -> dict[int, set[bytes]]:
    """Which of the keys of this file have signed each checkpoint."""
    found: dict[int, set[bytes]] = {}
    for size, note in await query(dsn, "SELECT size, note FROM checkpoints"):
        found[size] = set()
        for seed in (SEED, NEXT, OTHER):
            try:
                open_note(note, SigningKey(note.split("\n")[0], seed).verifiers)
            except BadNote:
                continue
            found[size].add(seed)
    return found


async def known(
    dsn: str, directory: Path | None, seeds: Sequence[bytes], keys: Sequence[VerifierKey] = ()
) -> list[Known]:
    """What somebody with these keys takes for checkpoints, and what not."""
    place = CheckpointDirectory(directory) if directory else None
    async with await connect(dsn, name="test", statement_timeout=timedelta(seconds=10)) as connection:
        keys = [*keys, *await known_keys(connection, place, seeds)]
        return await known_checkpoints(connection, place, keys, most=100)


async def test_the_first_checkpoint_of_a_new_key_is_signed_by_both_and_those_before_still_verify(
    store: EventStore, dsn: str, tmp_path: Path
) -> None:
    async with checkpointing(dsn, tmp_path, seeds=[SEED, NEXT]):
        await until_signed(dsn, await recorded(store, 2))
        size = await change(settings_of(dsn, tmp_path))  # with nothing new in the log but that
        await until_signed(dsn, await recorded(store, 2))
        await until_published(dsn)
    async with checkpointing(dsn, tmp_path, seeds=[NEXT]):  # the old one is taken away
        await until_signed(dsn, await recorded(store, 2))
        await until_published(dsn)

    signers = await signers_by_size(dsn)
    assert signers.pop(size) == {SEED, NEXT}
    assert all(found == ({SEED} if one < size else {NEXT}) for one, found in signers.items())
    directory = CheckpointDirectory(tmp_path)
    origin = directory.keys()[0].name
    assert set(directory.keys()) == {key for seed in (SEED, NEXT) for key in SigningKey(origin, seed).verifiers}
    notes = set(directory.notes())
    for seed in (SEED, NEXT):  # also where nobody has the directory's list of keys
        (tmp_path / "keys").unlink(missing_ok=True)
        found = await known(dsn, tmp_path, [seed])
        assert [one.why for one in found] == [None] * len(notes)


async def test_a_process_without_the_new_key_goes_on_with_the_old_one_and_says_so(
    store: EventStore, dsn: str, tmp_path: Path
) -> None:
    seeds = [SEED]
    with capture_logs() as logs:
        async with checkpointing(dsn, tmp_path, seeds=seeds):
            await until_signed(dsn, await recorded(store, 1))
            with pytest.raises(CannotChange, match="does not have both keys"):
                await change(settings_of(dsn, tmp_path), patience=BRIEFLY)
            await until_signed(dsn, await recorded(store, 1))
            assert set().union(*(await signers_by_size(dsn)).values()) == {SEED}
            seeds.append(NEXT)  # it gets it now
            await change(settings_of(dsn, tmp_path))

    assert [one["event"] for one in logs].count("checkpoint.key_missing") == 1
    assert (await signers_by_size(dsn))[(await known(dsn, tmp_path, [NEXT]))[-1].checkpoint.size] == {SEED, NEXT}  # type: ignore[union-attr]


async def test_a_process_that_has_only_another_key_than_the_one_that_signs_signs_nothing_and_names_it(
    store: EventStore, dsn: str, tmp_path: Path
) -> None:
    async with checkpointing(dsn, tmp_path):
        position = await recorded(store, 1)
        await until_signed(dsn, position)
        [(origin,)] = await query(dsn, "SELECT origin FROM tree_head")
    key = SigningKey(origin, SEED).verifier.short
    with capture_logs() as logs:
        async with checkpointing(dsn, tmp_path, seeds=[OTHER]):
            await recorded(store, 1)
            await eventually(lambda: [one for one in logs if one["event"] == "checkpoint.not_signed"])

    assert {one["why"] for one in logs if "why" in one} == {f"the key {key}, which signs, is not here"}
    assert all("checkpoint.key in the data directory" in one["hint"] for one in logs if "why" in one)
    assert await signed_upto(dsn) == position
    with pytest.raises(CannotChange, match=key.replace("+", r"\+")):
        await change(settings_of(dsn, tmp_path, key=OTHER))


async def test_a_lost_key_is_replaced_by_one_that_signs_alone(store: EventStore, dsn: str, tmp_path: Path) -> None:
    async with checkpointing(dsn, tmp_path):
        await until_signed(dsn, await recorded(store, 1))
        await until_published(dsn)
    settings = settings_of(dsn, tmp_path, key=OTHER)

    size = await change(settings, old_is_lost=True)  # where nothing of the service runs

    assert (await signers_by_size(dsn))[size] == {NEXT}
    assert [one.why for one in await known(dsn, tmp_path, [NEXT])] == [None, None]  # the directory knows the old one


async def test_a_change_that_was_made_and_not_told_is_only_finished(
    store: EventStore, dsn: str, tmp_path: Path
) -> None:
    async with checkpointing(dsn, tmp_path, seeds=[SEED, NEXT]):
        await until_signed(dsn, await recorded(store, 1))
        size = await change(settings_of(dsn, tmp_path))

        assert await change(settings_of(dsn, tmp_path)) == size
        with pytest.raises(CannotChange, match="has signed before"):
            await change(settings_of(dsn, tmp_path, key=NEXT, following=SEED))


async def test_what_a_superuser_writes_into_the_table_makes_no_key_known(
    store: EventStore, dsn: str, tmp_path: Path
) -> None:
    async with checkpointing(dsn, tmp_path):
        await until_signed(dsn, await recorded(store, 2))
        await until_published(dsn)
    [(note, origin)] = await query(
        dsn, "SELECT note, origin FROM checkpoints, tree_head ORDER BY checkpoints.size DESC LIMIT 1"
    )
    forger = SigningKey(origin, OTHER)
    await query(
        dsn,
        "INSERT INTO checkpoint_keys (number, public_key, first_size) VALUES (2, %b, 2)",
        forger.verifier.public,
    )
    text = note.rpartition("\n\n")[0] + "\n"
    changed = f"{text}key {forger.verifier}\nreplaces {SigningKey(origin, SEED).verifier}\n"
    now = (await query(dsn, "SELECT now()"))[0][0]
    for forged in (f"{text}\n{forger.lines(text, now)}", f"{changed}\n{forger.lines(changed, now)}"):
        await query(
            dsn, "INSERT INTO checkpoints (size, position, note) SELECT max(size) + 1, 9, %s FROM checkpoints", forged
        )

    found = await known(dsn, tmp_path, [SEED])

    assert [one.why for one in found if one.checkpoint is None] == ["no known key has signed it"] * 2
    with capture_logs() as logs:
        async with checkpointing(dsn, tmp_path):  # nor does the checkpointer take it for one of its own
            await recorded(store, 2)
            await eventually(lambda: [one for one in logs if one["event"] == "checkpoint.not_signed"])
    assert {key.public for key in CheckpointDirectory(tmp_path).keys()}.isdisjoint({forger.verifier.public})  # noqa: SIM118 - no mapping


async def test_the_embedded_database_has_the_command_make_the_key_and_what_runs_there_learns_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(
        cast("dict[str, Any]", Checkpointer.__init__.__kwdefaults__), "every", timedelta(milliseconds=200)
    )
    # Not tmp_path: the database's user cannot pass.
    with tempfile.TemporaryDirectory(prefix="registrar-test-") as name:
        directory = Path(name) / "data"
        settings = Settings.from_environment({"REGISTRAR_DATA_DIR": str(directory)})
        async with open_service(settings, follows=True) as service:
            await register(service, "ada@example.com")

            async def is_published() -> bool:
                return (directory / "checkpoints" / "keys").exists()

            await eventually(is_published)
            before = (directory / "checkpoint.key").read_text()
            async with signing_key_desk(settings) as desk:
                done = await desk.change(old_is_lost=False)

            after = (directory / "checkpoint.key").read_text()
            old, new = (SigningKey(done.keys[0].name, bytes.fromhex(one)) for one in (before, after))
            assert done.replaced == old.verifier.short
            assert list(done.keys) == list(new.verifiers)
            assert not (directory / "checkpoint.key.next").exists()
            kept = directory / f"checkpoint-{old.verifier.id.hex()}.key"
            assert (kept.read_text(), kept.stat().st_mode & 0o077) == (before, 0)
            async with log_verifier(settings) as verifier:
                assert {one.why for one in await verifier.known(100)} == {None}
                assert set(verifier.keys) == {*old.verifiers, *new.verifiers}


def test_the_command_says_what_to_set_and_what_it_did(dsn: str, command: Command, tmp_path: Path) -> None:
    given = {"DATABASE_URL": dsn, "CHECKPOINT_DIR": str(tmp_path), "CHECKPOINT_KEY": SEED.hex()}
    for more, says in (
        ({}, "Nothing has been signed yet"),
        ({"CHECKPOINT_DIR": ""}, "Nothing signs checkpoints here"),
    ):
        done = command("audit", "checkpoints", "rotate-key", **given | more | {"NEXT_CHECKPOINT_KEY": NEXT.hex()})
        assert (done.code != 0, done.out) == (True, ""), done
        assert says in done.err, done
    asyncio.run(one_checkpoint(dsn, tmp_path))

    unset = command("audit", "checkpoints", "rotate-key", **given)
    words = ("audit", "checkpoints", "rotate-key", "--reason", "every November", "--json")
    done, again = (command(*words, **given, NEXT_CHECKPOINT_KEY=NEXT.hex()) for _ in range(2))
    listed = command("audit", "checkpoints", "list", **given | {"CHECKPOINT_KEY": NEXT.hex()})

    assert "REGISTRAR_NEXT_CHECKPOINT_KEY is not set" in unset.err
    assert (done.code, again.code) == (0, 0), (done.err, again.err)
    assert asyncio.run(acts_of(dsn)) == [("rotate-signing-key", "every November")]
    new = SigningKey(done.json["keys"][0].split("+")[0], NEXT)
    assert done.json["keys"] == [str(key) for key in new.verifiers]
    assert "Now set REGISTRAR_CHECKPOINT_KEY" in done.err
    assert (listed.code, listed.err.count("Signed by ")) == (0, 4)
    assert NEXT.hex() not in done.out + done.err + listed.out + listed.err


async def one_checkpoint(dsn: str, directory: Path) -> None:
    store = EventStore(dsn, codec=EventCodec(), clock=DatabaseClock())
    await store.open()
    async with checkpointing(dsn, directory):
        await until_signed(dsn, await recorded(store, 1))
        await until_published(dsn)
    await store.close()
