"""What checkpoints say of a log: notes that nobody has signed say nothing, however many there are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256

import pytest

from infrastructure.audit.roots import Agreement, Checkpoint, Claim, Comparison, Frontier

LEAVES = [sha256(b"%d" % number).digest() for number in range(5_000)]
SIGNED, FORGED = "signed", "forged"


def claim(size: int, note: str = SIGNED, *, root: bytes | None = None, position: int | None = None) -> Claim:
    tree = Frontier()
    for leaf in LEAVES[:size]:
        tree.add(leaf)
    return Claim(Checkpoint(size, 2 * size if position is None else position, root or tree.root()), note)


class Signatures:
    def __init__(self) -> None:
        self.looks = 0

    def __call__(self, claim: Claim) -> bool:
        self.looks += 1
        return claim.note == SIGNED


def compared(claims: Iterable[Claim], *, signatures: Signatures | None = None, blocks: int = len(LEAVES)) -> Agreement:
    comparison = Comparison(claims, signatures or Signatures())
    comparison.grow(range(2, 2 * blocks + 1, 2), LEAVES[:blocks])
    return comparison.result()


def test_the_last_one_that_agrees_speaks_for_those_before_it() -> None:
    signatures = Signatures()

    found = compared([claim(size) for size in range(1, 101)], signatures=signatures)

    assert (found.compared, found.last, found.disagrees, found.unsigned) == (100, claim(100).checkpoint, None, 0)
    assert signatures.looks == 1


def test_a_forged_note_is_no_checkpoint_though_it_fits_the_log() -> None:
    found = compared([claim(10), claim(20, FORGED), claim(30, FORGED)])

    assert (found.compared, found.last, found.unsigned, found.findings) == (1, claim(10).checkpoint, 2, [])
    assert compared([claim(20, FORGED)]).last is None


@pytest.mark.parametrize(
    "forged",
    [
        claim(20, FORGED, root=bytes(32)),
        claim(20, FORGED, position=7),
        claim(0, FORGED, root=bytes(32)),
        Claim(Checkpoint(9_000_000, 9, bytes(32)), FORGED),
    ],
)
def test_a_forged_note_that_does_not_fit_is_no_finding(forged: Claim) -> None:
    found = compared(sorted([claim(10), forged, claim(30)]))

    assert (found.compared, found.last, found.unsigned, found.findings) == (2, claim(30).checkpoint, 1, [])


def test_the_first_that_does_not_agree_is_named_and_the_last_before_it() -> None:
    claims = [claim(10), claim(15, FORGED), claim(20, root=bytes(32)), claim(30)]

    found = compared(claims)

    assert (found.last, found.disagrees, found.compared) == (claims[0].checkpoint, claims[2].checkpoint, 2)
    assert [one[:3] for one in found.findings] == [("checkpoint", 21, 40)]


def test_a_log_that_was_cut_off_is_told_by_the_first_that_was_signed() -> None:
    claims = [claim(10), claim(30, FORGED), claim(40), claim(50)]

    found = compared(claims, blocks=20)

    assert (found.last, found.disagrees, found.unsigned) == (claims[0].checkpoint, claims[2].checkpoint, 1)
    assert [one[:3] for one in found.findings] == [("cut", 41, 80)]


def test_of_many_notes_few_are_kept_and_few_signatures_looked_at() -> None:
    signatures, taken, most = Signatures(), 0, 0
    comparison: Comparison

    def claims() -> Iterable[Claim]:
        nonlocal taken, most
        tree = Frontier()
        for size, leaf in enumerate(LEAVES, 1):
            tree.add(leaf)
            taken += 1
            most = max(most, len(comparison._unsettled) if taken > 1 else 0)
            yield Claim(Checkpoint(size, 2 * size, tree.root()), SIGNED)

    comparison = Comparison(claims(), signatures)
    comparison.grow(range(2, 2 * len(LEAVES) + 1, 2), LEAVES)

    assert (comparison.result().compared, most < Comparison.MOST_UNSETTLED) == (len(LEAVES), True)
    assert signatures.looks <= len(LEAVES) // Comparison.MOST_UNSETTLED + 1


@pytest.mark.parametrize("copies", [[claim(10), claim(10)], [claim(10), claim(10), claim(20)]])
def test_a_note_that_comes_from_two_places_counts_once(copies: Sequence[Claim]) -> None:
    assert compared(copies).compared == len(set(copies))
