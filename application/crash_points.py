"""Crash points: named places between two steps at which a test kills the process. Otherwise they do nothing.

    crash_point("worker.after_claim")

Only code in the same process can arm them; no setting and no input reaches them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, Literal

CrashPoint = Literal[
    "api.before_append",
    "api.after_commit",
    "api.hashing",
    "pm.before_commit",
    "worker.before_claim",
    "worker.after_claim",
    "worker.before_eod_reply",
    "worker.before_sent_event",
    "worker.before_ack",
    "worker.before_dead_ack",
    "dead_letters.before_ack",
    "projector.mid",
    "reconcile.mid",
    "relay.before_publish",
    "relay.before_confirm",
    "relay.before_cursor",
    "relay.batch",
    "rebuild.begun",
    "rebuild.mid_batch",
    "rebuild.after_batch",
    "rebuild.indexed",
    "rebuild.before_swap",
    "rebuild.after_swap",
    "import.batch",
    "import.users",
    "rotation.begun",
    "rotation.mid_batch",
    "rotation.after_batch",
    "rotation.before_end",
    "rotation.before_key_file",
    "erasures.before_line",
    "erasures.before_position",
    "checkpoint.before_publication",
    "checkpoint.before_note",
    "webhooks.before_position",
]

CRASH_POINTS: Final[Mapping[CrashPoint, str]] = {
    "api.before_append": "a registration is decided, and not yet given to the log",
    "api.after_commit": "a registration is on disk, and not yet answered",
    "api.hashing": "a password is being hashed, and nothing is decided yet",
    "pm.before_commit": "the saga's commands have run; its notes and its position are not saved",
    "worker.before_claim": "a mail was requested, and its right to be sent not yet claimed",
    "worker.after_claim": "the right to send a mail is ours, and no mail server was called",
    "worker.before_eod_reply": "the whole mail is on its way to the server, whose reply is not read",
    "worker.before_sent_event": "the server took the mail, and that is not recorded",
    "worker.before_ack": "the mail's outcome is recorded, and the relay's position does not know",
    "worker.before_dead_ack": "the mail's failure for good is recorded, and the relay's position does not know",
    "dead_letters.before_ack": "what died in the broker is recorded, and its message not acknowledged",
    "projector.mid": "a batch is applied to a read model, and not committed",
    "reconcile.mid": "commands of a pass over the deadlines have run; the sagas' notes are not saved",
    "relay.before_publish": "a request is read from the log, and nothing of it is with the broker",
    "relay.before_confirm": "the broker has a request, and nobody has taken note of its confirm",
    "relay.before_cursor": "requests are confirmed by the broker, and the relay's position does not know",
    "relay.batch": "a request is about to be handed over, and those before it in its batch are under way",
    "rebuild.begun": "a read model's copy is made and empty, and the log does not know of it",
    "rebuild.mid_batch": "a batch is applied to a copy, and not committed",
    "rebuild.after_batch": "a batch is committed to a copy, and the next is not begun",
    "rebuild.indexed": "a copy's indexes are made, and not committed",
    "rebuild.before_swap": "a copy is in the place of the live read model, and that is not committed",
    "rebuild.after_swap": "a copy is in the place of the live read model, and the log does not know of it",
    "import.batch": "a part of an exported log is written, and not committed",
    "import.users": "users are taken over, or invited, and whoever does it does not know",
    "rotation.begun": "the new master key wraps from now on, and no person's key is re-wrapped",
    "rotation.mid_batch": "a batch of persons' keys is re-wrapped, and not committed",
    "rotation.after_batch": "a batch of persons' keys is re-wrapped, and the next is not begun",
    "rotation.before_end": "every person's key is re-wrapped, and the old master key not retired",
    "rotation.before_key_file": "the old master key is retired, and its file is in its place still",
    "erasures.before_line": "an erasure is in the log, and not in the journal of erasures",
    "erasures.before_position": "an erasure is in the journal, whose writer's position does not know",
    "checkpoint.before_publication": "a checkpoint is signed and kept, and published nowhere",
    "checkpoint.before_note": "a checkpoint is in its directory, and the database does not know",
    "webhooks.before_position": "an endpoint has taken messages, and its position does not know",
}

_hook: Callable[[CrashPoint], None] | None = None


def crash_point(name: CrashPoint) -> None:
    """Pass a crash point: a test that has armed it kills the process here, or raises."""
    if _hook is not None:
        _hook(name)


@contextmanager
def armed(hook: Callable[[CrashPoint], None]) -> Iterator[None]:
    """Call `hook` each time a crash point is passed, in any thread, until the end of the block.

    Raises:
        RuntimeError: the points are armed already.
    """
    global _hook  # noqa: PLW0603 - one comparison with None is the whole cost in production
    if _hook is not None:
        raise RuntimeError("the crash points are armed already")
    _hook = hook
    try:
        yield
    finally:
        _hook = None
