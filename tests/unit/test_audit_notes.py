"""Signed notes and the growing tree, against what others have published and the definitions."""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import sha256

import pytest

from infrastructure.audit.growing_tree import GrowingTree, edge_of
from infrastructure.audit.notes import (
    BadNote,
    SigningKey,
    VerifierKey,
    checkpoint_in,
    checkpoint_text,
    notes_in,
    open_note,
)
from infrastructure.audit.roots import Checkpoint
from tests.support.checkpoints import tiles_of
from tests.support.proofs import tree_root

# The example of https://pkg.go.dev/golang.org/x/mod/sumdb/note.
NEUMANN = VerifierKey.parse("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
NOTE = (
    f"{TEXT}\n— PeterNeumann "
    "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
KEY = SigningKey("registrar/0011223344556677", bytes(range(32)))
CHECKPOINT = Checkpoint(3, 7, sha256(b"root").digest())
SIGNED = KEY.sign(checkpoint_text(KEY.name, CHECKPOINT, datetime(2026, 11, 28, 17, 0, tzinfo=UTC)))


def test_a_note_that_others_signed_is_opened() -> None:
    assert open_note(NOTE, [NEUMANN]) == TEXT


def test_a_key_is_written_as_it_was_read() -> None:
    assert VerifierKey.parse(str(KEY.verifier)) == KEY.verifier


@pytest.mark.parametrize("text", ["", "name", "PeterNeumann+c74f20a4+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"])
def test_what_is_no_whole_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="key"):
        VerifierKey.parse(text)


def test_a_checkpoint_is_read_as_it_was_signed() -> None:
    assert checkpoint_in(open_note(SIGNED, [NEUMANN, KEY.verifier])) == CHECKPOINT


@pytest.mark.parametrize(
    "note",
    [
        "",
        "text\n",
        SIGNED.replace("position 7", "position 8"),
        SIGNED.replace("\n3\n", "\n4\n"),
        SIGNED + "no signature\n",
        SIGNED[:-1],
        NOTE,
    ],
)
def test_what_our_key_has_not_signed_is_refused(note: str) -> None:
    with pytest.raises(BadNote):
        open_note(note, [KEY.verifier])


def test_a_cosignature_beside_ours_says_nothing() -> None:
    assert checkpoint_in(open_note(SIGNED + NOTE.rpartition("\n\n")[2], [KEY.verifier])) == CHECKPOINT


@pytest.mark.parametrize("torn", range(0, len(SIGNED), 7))
def test_what_a_crash_has_torn_hides_no_whole_note(torn: int) -> None:
    assert list(notes_in(f"{SIGNED}\n{SIGNED[:torn]}\n\n{SIGNED}\n"))[-1] == SIGNED
    assert next(notes_in(f"{SIGNED}\n{SIGNED[:torn]}")) == SIGNED


@pytest.mark.parametrize("size", [0, 1, 2, 3, 255, 256, 257, 511, 512, 513, 65_535, 65_536, 65_537, 66_000])
def test_the_growing_tree_is_that_of_the_definition(size: int) -> None:
    leaves = [sha256(number.to_bytes(4)).digest() for number in range(size)]
    tree = GrowingTree(0, {})
    kept: dict[tuple[int, int], bytes] = {}
    for number, leaf in enumerate(leaves):
        tree.add(leaf)
        if number % 999 == 0:
            kept |= tree.take_changed()
            edge = {level: kept[level, index] for level, index in edge_of(tree.size)}
            tree = GrowingTree(tree.size, edge)
    kept |= tree.take_changed()

    assert tree.root() == tree_root(leaves)
    assert kept == tiles_of(leaves)
