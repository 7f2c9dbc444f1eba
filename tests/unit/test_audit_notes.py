"""Signed notes and the growing tree, against what others have published and the definitions."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from hashlib import sha256
from itertools import cycle

import metamorphic_log
import pytest
from cryptography.exceptions import InvalidSignature
from hypothesis import given, settings
from hypothesis import strategies as st
from registrar_verify import Key
from registrar_verify import open_note as open_as_an_auditor
from tlog_scales.signing import NoteSignature, Vkey
from tlog_scales.tlog import Checkpoint as Head

from infrastructure.audit import note_keys
from infrastructure.audit.growing_tree import GrowingTree, edge_of
from infrastructure.audit.note_keys import SigningKey, VerifierKey
from infrastructure.audit.notes import (
    BadNote,
    Change,
    checkpoint_in,
    checkpoint_text,
    notes_in,
    open_note,
    signed_note,
    vouched_for,
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
NOW = datetime(2026, 11, 28, 17, 0, tzinfo=UTC)
SIGNED = signed_note(checkpoint_text(KEY.name, CHECKPOINT, NOW), [KEY], NOW)
ED25519, ML_DSA = KEY.verifiers


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


def test_a_checkpoint_is_signed_by_both_algorithms_and_others_accept_each() -> None:
    plain, post_quantum = (NoteSignature.from_line(line) for line in SIGNED.rpartition("\n\n")[2].splitlines())
    head = Head(KEY.name, CHECKPOINT.size, CHECKPOINT.root, [])

    verifier = Vkey.from_string(str(ML_DSA)).get_verifier()
    verifier.verify_note(post_quantum, head)
    assert Vkey.from_string(str(ED25519)).match(plain)
    assert metamorphic_log.verify_signed_note(SIGNED, [str(ED25519)]) == 1
    for keys in ([ED25519], [ML_DSA], [ED25519, ML_DSA]):
        assert open_as_an_auditor(SIGNED, [Key.of(str(key)) for key in keys], []).signers == (KEY.name,)
    with pytest.raises(InvalidSignature):
        verifier.verify_note(post_quantum, Head(KEY.name, CHECKPOINT.size + 1, CHECKPOINT.root, []))


def test_what_ml_dsa_alone_has_signed_is_no_checkpoint_as_it_covers_no_position() -> None:
    text, _, lines = SIGNED.rpartition("\n\n")
    moved = text.replace("position 7", "position 8") + "\n\n" + lines.splitlines(keepends=True)[1]
    with pytest.raises(BadNote, match="no known key"):
        open_note(moved, [ED25519, ML_DSA])


def test_a_signature_of_ml_dsa_that_does_not_hold_is_refused() -> None:
    other = signed_note(checkpoint_text(KEY.name, CHECKPOINT._replace(size=4), NOW), [KEY], NOW)
    text, _, lines = SIGNED.rpartition("\n\n")
    mixed = f"{text}\n\n{lines.splitlines()[0]}\n{other.splitlines()[-1]}\n"

    assert open_note(mixed, [ED25519])
    with pytest.raises(BadNote, match="is not what"):
        open_note(mixed, [ED25519, ML_DSA])


def test_without_ml_dsa_in_the_library_ed25519_signs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(note_keys, "has_ml_dsa", lambda: False)

    note = signed_note(checkpoint_text(KEY.name, CHECKPOINT, NOW), [KEY], NOW)

    assert len(note.rpartition("\n\n")[2].splitlines()) == 1
    assert open_note(SIGNED, KEY.verifiers) == open_note(note, KEY.verifiers)
    with pytest.raises(ValueError, match="later release"):
        VerifierKey.parse(str(ML_DSA))


# --- A change of keys -----------------------------------------------------------------------------

NEXT = SigningKey(KEY.name, bytes(range(32, 64)))
THIRD = SigningKey(KEY.name, bytes(range(64, 96)))


def change(old: SigningKey, new: SigningKey, signers: list[SigningKey]) -> str:
    text = checkpoint_text(old.name, CHECKPOINT, NOW, Change(new.verifiers, old.verifiers))
    return signed_note(text, signers, NOW)


CHANGES = [change(NEXT, THIRD, [NEXT, THIRD]), change(KEY, NEXT, [KEY, NEXT])]
ALL = {key for one in (KEY, NEXT, THIRD) for key in one.verifiers}


@pytest.mark.parametrize("known", [KEY, NEXT, THIRD])
def test_who_knows_one_key_knows_all_before_and_after_it(known: SigningKey) -> None:
    assert set(vouched_for([known.verifier], CHANGES)) == ALL


def test_the_first_checkpoint_of_a_new_key_is_one_for_who_knows_either() -> None:
    for key in (KEY, NEXT):
        assert checkpoint_in(open_note(CHANGES[1], [key.verifier])) == CHECKPOINT
    assert metamorphic_log.verify_signed_note(CHANGES[1], [str(KEY.verifier), str(NEXT.verifier)]) == 2


def test_nobody_vouches_for_a_key_of_his_own() -> None:
    forger = SigningKey(KEY.name, bytes(32))
    own = change(KEY, forger, [forger])
    beside = SIGNED + forger.lines(SIGNED.rpartition("\n\n")[0] + "\n", NOW)

    assert vouched_for(KEY.verifiers, [own, beside]) == KEY.verifiers


def test_a_cosignature_beside_ours_says_nothing() -> None:
    assert checkpoint_in(open_note(SIGNED + NOTE.rpartition("\n\n")[2], [KEY.verifier])) == CHECKPOINT


@pytest.mark.parametrize("torn", range(0, len(SIGNED), 7))
def test_what_a_crash_has_torn_hides_no_whole_note(torn: int) -> None:
    assert list(notes_in(f"{SIGNED}\n{SIGNED[:torn]}\n\n{SIGNED}\n"))[-1] == SIGNED
    assert next(notes_in(f"{SIGNED}\n{SIGNED[:torn]}")) == SIGNED


@given(st.lists(st.sampled_from(["\n", "text\n", "— a b\n", "— ", "x", "\n\n", SIGNED]), max_size=16).map("".join))
@settings(max_examples=500, derandomize=True, database=None)
def test_notes_are_found_wherever_they_stand(text: str) -> None:
    # The definition; of a long file it would take the square of the time.
    assert list(notes_in(text)) == re.findall(r"(?:[^\n]+\n)+\n(?:— [^\n]+\n)+(?=\n|\Z)", text)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 255, 256, 257, 511, 512, 513, 65_535, 65_536, 65_537, 66_000])
def test_the_growing_tree_is_that_of_the_definition(size: int) -> None:
    leaves = [sha256(number.to_bytes(4)).digest() for number in range(size)]
    tree = GrowingTree(0, {})
    kept: dict[tuple[int, int], bytes] = {}
    portions = cycle([1, 255, 999, 256, 3, 700])
    while tree.size < size:
        tree.add(leaves[tree.size : tree.size + next(portions)])
        tree.add(leaves[tree.size : tree.size + next(portions)])
        kept |= tree.take_changed()
        edge = {level: kept[level, index] for level, index in edge_of(tree.size)}
        tree = GrowingTree(tree.size, edge)

    assert tree.root() == tree_root(leaves)
    assert kept == tiles_of(leaves)
