"""Verdicts on what mail servers reply: what one reply says by itself, and what only the ones before it tell."""

from __future__ import annotations

import socket

import pytest

from infrastructure.mail.smtp.replies import STAGES, ContentHistory, Stage, Verdict, judge_error, judge_reply

SPAM = judge_reply("end-of-data", 554, "5.7.1 looks like spam")
UNKNOWN = judge_reply("rcpt", 550, "5.1.1 no such user")


@pytest.mark.parametrize("stage", STAGES)
def test_a_server_that_shuts_down_is_an_outage_at_any_stage(stage: Stage) -> None:
    verdict = judge_reply(stage, 421, "4.3.2 shutting down")
    assert (verdict.outage, verdict.too_many) == (True, False)


def test_an_unresolvable_name_is_a_connection_problem() -> None:
    verdict = judge_error("connect", socket.gaierror())
    assert (verdict.failure, verdict.outage, verdict.permanent) == ("connection", True, False)


@pytest.mark.parametrize(
    ("replies", "permanent"),
    [
        pytest.param([SPAM], [False], id="before any was taken"),
        pytest.param([None, SPAM], [True], id="after one was taken"),
        pytest.param([None, SPAM, SPAM, SPAM], [True, False, False], id="in a row"),
        pytest.param([SPAM, None, SPAM], [False, True], id="after one was taken again"),
        pytest.param([None, SPAM, None, SPAM], [True, True], id="now and then"),
        pytest.param([None, UNKNOWN, SPAM], [True, True], id="another refusal says nothing about contents"),
        pytest.param([SPAM, UNKNOWN, SPAM], [False, True, False], id="nor does it make up for a taken one"),
    ],
)
def test_a_refused_content_is_about_one_mail_only_if_the_server_took_the_one_before(
    replies: list[Verdict | None], permanent: list[bool]
) -> None:
    history = ContentHistory()
    verdicts = []
    for reply in replies:
        if reply is None:
            history.taken()
        else:
            verdicts.append(history.judge(reply))

    assert [verdict.permanent for verdict in verdicts] == permanent
    contents = [verdict for verdict in verdicts if verdict.failure == "content"]
    assert all(verdict.outage for verdict in contents), "its circuit counts each of them"


def test_while_contents_are_refused_so_would_be_the_next_and_for_nobodys_fault() -> None:
    history = ContentHistory()
    assert history.refusal is None

    history.taken()
    history.judge(SPAM)
    assert history.refusal is not None
    assert (history.refusal.failure, history.refusal.permanent, history.refusal.outage) == ("content", False, True)
    history.judge(UNKNOWN)
    assert history.refusal is not None

    history.taken()
    assert history.refusal is None
