"""How many mails a server takes on one connection: learned from two in a row, and not believed for ever."""

from __future__ import annotations

import pytest

from infrastructure.mail.smtp.pool import MailsPerConnection


@pytest.mark.parametrize(
    ("ended_after", "limit"),
    [
        pytest.param([], 100, id="none ended"),
        pytest.param([7], 100, id="one may have any reason"),
        pytest.param([7, 7], 7, id="two after as many"),
        pytest.param([7, 9], 100, id="two after different numbers"),
        pytest.param([7, 9, 7], 100, id="not in a row"),
        pytest.param([7, 7, 3, 3], 3, id="even fewer"),
    ],
)
def test_two_connections_in_a_row_that_end_after_as_many_mails_set_the_limit(
    ended_after: list[int], limit: int
) -> None:
    mails = MailsPerConnection(100, learned_for=10)
    for number in ended_after:
        mails.ended(number)
    assert mails.limit == limit
    assert [mails.used_up(limit - 1), mails.used_up(limit)] == [False, True]


def test_what_was_learned_is_forgotten_after_so_many_connections() -> None:
    mails = MailsPerConnection(100, learned_for=3)
    mails.ended(7)
    mails.ended(7)

    limits = []
    for _ in range(4):
        mails.used_up(mails.limit)
        limits.append(mails.limit)

    assert limits == [7, 7, 100, 100]
