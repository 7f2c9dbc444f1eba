"""PasswordChecks: that somebody who does not know an account's password has tried to use the account."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from eventsourcing.domain import Aggregate
from eventsourcing.utils import register_topic

from domain.streams import begin

FIRST_TOLD = 3
"""Failed checks of one account within an hour that are recorded; then at 6, 12, 24 and so on.
Whoever mistypes a password once or twice is no news, and a thousand guesses are nine events."""


def is_told(failed: int) -> bool:
    """Is it recorded that so many checks have failed?"""
    times, rest = divmod(failed, FIRST_TOLD)
    return not rest and times & (times - 1) == 0


class PasswordChecks(Aggregate, created_event_name="ChecksFailed"):
    """Some failed checks of an account's password, one after the other; a stream of its own.

    Not in the account's own stream, which every command about it reads.
    """

    class ChecksFailed(Aggregate.Created):
        """So many checks have `failed` since then, none having succeeded; as one process has counted them.

        `registration_id`: of the account.
        """

        TOPIC = "password_checks.failed"
        registration_id: str
        failed: int
        since: datetime

    def __init__(self, registration_id: str, failed: int, since: datetime) -> None:
        self.registration_id = registration_id
        self.failed = failed
        self.since = since

    @classmethod
    def tell(
        cls, *, checks_id: UUID, registration_id: UUID, failed: int, since: datetime, now: datetime
    ) -> PasswordChecks:
        """Record that checks have failed; no other record has this id."""
        return begin(
            cls,
            cls.ChecksFailed,
            name="password_checks",
            stream_id=checks_id,
            now=now,
            registration_id=str(registration_id),
            failed=failed,
            since=since,
        )


register_topic("password_checks", PasswordChecks)
