"""Checkpoints whose directory is full, whose address is dead, and whose process is killed between two steps."""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from application.crash_points import CrashPoint
from entrypoints.bootstrap.checkpoints import posting_to
from infrastructure.audit.publishing import CheckpointDirectory
from infrastructure.event_store.store import EventStore
from tests.faults.scene import Scene
from tests.integration.test_checkpoints import (
    SEED,
    checkpointing,
    recorded,
    until_published,
    until_signed,
)
from tests.support.facts import eventually
from tests.support.filesystems import small_filesystem
from tests.support.log import query
from tests.support.proofs import tree_root
from tests.support.webhook_stub import WebhookStub

BLOCKS = "SELECT last_position, hash FROM blocks ORDER BY last_position"


async def trusted(dsn: str, notes: Sequence[str], seed: bytes) -> list[int]:
    """The sizes of these notes, each of which an auditor who has only the key and the log's blocks takes for true.

    It shares no code with the checkpointer: it takes RFC 6962, C2SP's signed-note and tlog-checkpoint at their word.
    """
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    blocks = await query(dsn, BLOCKS)
    leaves = [sha256(b"\0" + hash_).digest() for _, hash_ in blocks]
    sizes = []
    for note in notes:
        text, lines = re.fullmatch(r"((?:.+\n)+)\n((?:— .+\n)+)", note).groups()  # type: ignore[union-attr]
        origin, size, root, *more = text.splitlines()
        key_id = sha256(origin.encode() + b"\n\1" + public).digest()[:4]
        blobs = [base64.b64decode(line.removeprefix(f"— {origin} ")) for line in lines.splitlines()]
        [signature] = [blob[4:] for blob in blobs if blob[:4] == key_id]
        Ed25519PublicKey.from_public_bytes(public).verify(signature, text.encode())
        assert base64.b64decode(root) == tree_root(leaves[: int(size)])
        assert f"position {blocks[int(size) - 1][0]}" in more
        sizes.append(int(size))
    return sizes


def published(directory: Path) -> list[str]:
    return list(CheckpointDirectory(directory).notes())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[str], None]]]:
    """A directory, and what changes how much it holds."""
    place = tmp_path / "checkpoints"
    place.mkdir()
    with small_filesystem(place, "64k", tmp_path.stat()) as resize:
        yield place, resize


@pytest.mark.fault("H8")
async def test_a_full_disk_of_the_checkpoints_holds_up_no_append_and_is_caught_up(
    store: EventStore, dsn: str, small_disk: tuple[Path, Callable[[str], None]]
) -> None:
    place, resize = small_disk
    async with checkpointing(dsn, place):
        await until_signed(dsn, await recorded(store, 1))
        await until_published(dsn)
        before = published(place)
        fill(place)
        for _ in range(3):
            await until_signed(dsn, await recorded(store, 2))
        # (Two events may be covered by a checkpoint each.)
        assert len(await query(dsn, "SELECT 1 FROM checkpoints WHERE NOT in_directory")) >= 3
        assert published(place) == before

        resize("1m")
        await until_published(dsn)

    sizes = await trusted(dsn, published(place), SEED)
    assert sizes == [size for (size,) in await query(dsn, "SELECT size FROM checkpoints ORDER BY size")]
    assert (place / "checkpoint").read_text() == published(place)[-1]


def fill(place: Path) -> None:
    with (place / "filler").open("wb", buffering=0) as filler:
        while shutil.disk_usage(place).free:
            filler.write(bytes(4096))


@pytest.mark.fault("H8")
async def test_a_dead_address_of_the_checkpoints_holds_up_neither_appends_nor_the_directory_and_is_caught_up(
    store: EventStore, dsn: str, tmp_path: Path
) -> None:
    async with WebhookStub() as stub:
        port = stub.port
    post = posting_to(f"http://127.0.0.1:{port}/hook")  # nobody listens there any more
    async with checkpointing(dsn, tmp_path, post):
        for _ in range(3):
            await until_signed(dsn, await recorded(store, 2))

        async def is_written() -> bool:
            return not await query(dsn, "SELECT 1 FROM checkpoints WHERE NOT in_directory")

        await eventually(is_written)
        assert not await query(dsn, "SELECT 1 FROM checkpoints WHERE at_url")

        async with WebhookStub(port=port).then("503 Busy", "drop", "garbage") as stub:
            await until_published(dsn)

    taken = [call.body.decode() for call in stub.calls[3:]]
    assert await trusted(dsn, taken, SEED) == [
        size for (size,) in await query(dsn, "SELECT size FROM checkpoints ORDER BY size")
    ]


@pytest.mark.slow
@pytest.mark.fault("A22")
@pytest.mark.parametrize(
    ("point", "written"), [("checkpoint.before_publication", False), ("checkpoint.before_note", True)]
)
async def test_a_checkpoint_whose_process_dies_before_or_after_it_is_in_the_directory_is_there_once(
    scene: Scene, store: EventStore, dsn: str, tmp_path: Path, point: CrashPoint, written: bool
) -> None:
    place = tmp_path / "checkpoints"
    await recorded(store, 2)
    node = await scene.fleet.process(armed=point, wait=False, checkpoint_dir=str(place), checkpoint_key=SEED.hex())
    await node.dies()
    [(note,)] = await query(dsn, "SELECT note FROM checkpoints WHERE NOT in_directory")
    assert published(place) == ([note] if written else [])

    await node.start()
    await until_published(dsn)

    assert published(place).count(note) == 1
    await trusted(dsn, published(place), SEED)
