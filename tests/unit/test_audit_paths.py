"""Proofs from tiles are those of RFC 6962's definitions, and others accept them."""

from __future__ import annotations

from hashlib import sha256

import metamorphic_log
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tlog_scales.tlog import ConsistencyProof

from infrastructure.audit.paths import GrowingTiles, MissingTile, Tiles, audit_path, consistency_proof, root_of
from infrastructure.audit.roots import Frontier
from tests.support import proofs
from tests.support.checkpoints import FULL, tiles_of


def reading(found: dict[tuple[int, int], bytes]) -> Tiles:
    async def read(level: int, index: int) -> bytes:
        return found.get((level, index), b"")

    return Tiles(read)


def leaves_of(size: int) -> list[bytes]:
    return [sha256(number.to_bytes(4, "big")).digest() for number in range(size)]


SIZES = st.one_of(st.integers(1, 20), st.integers(250, 260), st.integers(500, 1200))


@settings(max_examples=100)
@given(data=st.data(), size=SIZES, grown_by=st.integers(0, 300))
async def test_an_audit_path_is_that_of_the_definition_whatever_came_later(
    data: st.DataObject, size: int, grown_by: int
) -> None:
    leaves = leaves_of(size)
    index = data.draw(st.integers(0, size - 1))

    path = await audit_path(reading(tiles_of(leaves_of(size + grown_by))), index, size)

    assert path == proofs.audit_path(index, leaves)
    assert root_of(leaves[index], index, size, path) == proofs.tree_root(leaves)
    metamorphic_log.verify_inclusion(index, size, leaves[index], path, proofs.tree_root(leaves))


@settings(max_examples=100)
@given(data=st.data(), size=SIZES)
async def test_a_consistency_proof_is_that_of_the_definition(data: st.DataObject, size: int) -> None:
    leaves = leaves_of(size)
    old = data.draw(st.integers(0, size))

    proof = await consistency_proof(reading(tiles_of(leaves)), old, size)

    assert proof == proofs.consistency(old, leaves)
    roots = proofs.tree_root(leaves[:old]), proofs.tree_root(leaves)
    ConsistencyProof(old, size, proof).check(*roots)
    if old:
        metamorphic_log.verify_consistency(old, size, proof, *roots)


async def test_a_large_tree_takes_few_tiles() -> None:
    size = FULL * FULL + 3 * FULL + 7
    found = tiles_of(leaves_of(size))
    read: list[tuple[int, int]] = []

    async def count(level: int, index: int) -> bytes:
        read.append((level, index))
        return found[level, index]

    path = await audit_path(Tiles(count), 12345, size)
    assert root_of(leaves_of(size)[12345], 12345, size, path) == proofs.tree_root(leaves_of(size))
    assert len(read) <= 6


@pytest.mark.parametrize("size", [1, 255, 256, 257, 1000, FULL * FULL, FULL * FULL + 300])
async def test_tiles_that_are_computed_anew_are_the_same(size: int) -> None:
    leaves = leaves_of(size)
    indexes = {0, size // 3, size - 1}
    growing = GrowingTiles(size, indexes)
    for leaf in leaves:
        growing.add(leaf)

    for index in indexes:
        path = await audit_path(Tiles(growing.read), index, size)
        assert path == await audit_path(reading(tiles_of(leaves)), index, size)


async def test_a_tile_that_is_missing_or_short_is_named() -> None:
    found = tiles_of(leaves_of(600))
    found[0, 2] = found[0, 2][:-32]
    with pytest.raises(MissingTile, match="tile 2 of level 0 of the tree has no hash 87"):
        await audit_path(reading(found), 0, 600)
    del found[1, 0]
    with pytest.raises(MissingTile, match="tile 0 of level 1"):
        await audit_path(reading(found), 550, 599)


@given(st.integers(0, 70))
def test_the_root_of_the_growing_tree_is_that_of_the_definition(size: int) -> None:
    tree = Frontier()
    for leaf in leaves_of(size):
        tree.add(leaf)

    assert (tree.size, tree.root()) == (size, proofs.tree_root(leaves_of(size)))


@given(st.lists(st.one_of(st.integers(0, 5), st.integers(250, 600)), max_size=6))
def test_a_tree_that_grows_by_many_leaves_at_once_is_the_same(portions: list[int]) -> None:
    tree, leaves = Frontier(), leaves_of(sum(portions))
    for portion in portions:
        tree.add_all(leaves[tree.size : tree.size + portion])

    assert (tree.size, tree.root()) == (len(leaves), proofs.tree_root(leaves))
