"""What `audit verify` says last."""

from __future__ import annotations

from entrypoints.cli.verified import summary
from infrastructure.audit.roots import Agreement, Checkpoint
from infrastructure.audit.verification import Verified

TWO = Agreement(2, Checkpoint(8, 12, bytes(32)), None)


def test_what_was_read_is_counted() -> None:
    later = Verified(since=12, upto=15, events=3, blocks=1, checkpoints=TWO)

    assert (
        summary(later)
        == "Verified positions 13 to 15: 3 events in 1 block, as they were recorded; 2 checkpoints agree."
    )


def test_that_nothing_was_recorded_since_the_checkpoint_is_said_as_such() -> None:
    nothing = Verified(since=12, upto=12, checkpoints=TWO)

    assert summary(nothing) == (
        "Nothing was recorded after position 12, to which the latest checkpoint leads; 2 checkpoints agree."
    )
