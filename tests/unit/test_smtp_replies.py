"""Verdicts on what mail servers reply: what one reply says by itself."""

from __future__ import annotations

import socket

import pytest

from infrastructure.mail.smtp.replies import STAGES, Stage, judge_error, judge_reply


@pytest.mark.parametrize("stage", STAGES)
def test_a_server_that_shuts_down_is_an_outage_at_any_stage(stage: Stage) -> None:
    assert judge_reply(stage, 421, "4.3.2 shutting down").outage


def test_an_unresolvable_name_is_a_connection_problem() -> None:
    verdict = judge_error("connect", socket.gaierror())
    assert (verdict.failure, verdict.outage, verdict.permanent) == ("connection", True, False)


@pytest.mark.parametrize(
    ("stage", "code", "text", "failure"),
    [
        # Sendmail, Debian's Postfix, Exim, Courier, OpenSMTPD and providers, as they word it.
        ("rcpt", 553, "5.1.8 Domain of sender address does not exist", "authentication"),
        ("rcpt", 550, "5.1.7 sender address rejected", "authentication"),
        ("end-of-data", 550, "5.1.8 sender address rejected", "authentication"),
        ("rcpt", 513, "Relaying denied.", "authentication"),
        ("rcpt", 530, "5.7.0 log in first", "authentication"),
        ("rcpt", 550, "5.7.1 relaying denied", "authentication"),
        ("rcpt", 550, "5.7.26 unauthenticated mail is not accepted", "authentication"),
        ("rcpt", 503, "5.5.1 need MAIL before RCPT", "authentication"),
        ("rcpt", 504, "5.5.2 need a fully-qualified address", "authentication"),
        ("rcpt", 501, "syntax error", "authentication"),
        ("end-of-data", 500, "line too long", "authentication"),
        ("end-of-data", 554, "5.7.1 looks like spam", "content"),
        ("rcpt", 550, "5.4.5 daily sending quota exceeded", "throttled"),
        ("end-of-data", 550, "5.4.5 daily sending quota exceeded", "throttled"),
        ("mail", 550, "5.4.5 daily sending quota exceeded", "throttled"),
        ("mail", 550, "5.2.254 sender throttled", "throttled"),
        ("end-of-data", 550, "5.2.251 sender throttled", "throttled"),
        ("rcpt", 550, "5.1.90 daily limit for recipients reached", "throttled"),
        ("mail", 553, "5.1.8 sender address rejected", "authentication"),
        ("rcpt", 511, "not here", "refused"),
    ],
)
def test_a_refusal_that_is_about_us_undoes_nobody(stage: Stage, code: int, text: str, failure: str) -> None:
    verdict = judge_reply(stage, code, text)
    assert (verdict.failure, verdict.permanent, verdict.about_us) == (failure, False, True)
    if stage == "rcpt":
        assert not verdict.costs_a_try, "the next server may be willing"


@pytest.mark.parametrize(
    ("code", "text"),
    [(454, "4.7.1 relay access denied"), (450, "4.1.8 sender address rejected"), (451, "4.1.7 who are you?")],
)
def test_a_deferral_that_is_about_us_is_asked_of_the_next_server(code: int, text: str) -> None:
    verdict = judge_reply("rcpt", code, text)
    assert (verdict.failure, verdict.permanent, verdict.costs_a_try) == ("authentication", False, False)
    assert not verdict.about_us, "it may still take them"


@pytest.mark.parametrize(
    "text",
    ["5.1.1 unknown", "5.1.2 no such host", "5.1.3 bad syntax", "5.1.6 has moved", "5.1.10 null MX", "5.2.1 disabled"],
)
def test_a_status_that_says_so_is_enough_for_an_unknown_mailbox(text: str) -> None:
    verdict = judge_reply("rcpt", 550, text)
    assert (verdict.permanent, verdict.on_evidence, verdict.about_us) == (True, False, False)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (550, "Invalid recipient: <ada@example.com>"),
        (550, "relay not permitted"),
        (551, "user not local"),
        (552, "no room"),
        (553, "5.3.0 rejected"),
        (554, "relay access denied"),
        (550, "5.0.0 no"),
        (550, "5.1.0 address rejected"),
        (550, "5.4.1 recipient address rejected: access denied"),
        (550, "5.5.0 mailbox unavailable"),
    ],
)
def test_other_refusals_of_a_recipient_need_evidence(code: int, text: str) -> None:
    verdict = judge_reply("rcpt", code, text)
    assert (verdict.failure, verdict.permanent, verdict.on_evidence) == ("mailbox-unknown", True, True)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (550, "no"),
        (554, "looks like spam"),
        (552, "too big"),
        (550, "5.6.0 no"),
        (554, "5.3.4 too big"),
        (554, "5.2.2 the sender's mailbox is full"),
        (554, "5.2.0 cannot store a copy"),
    ],
)
def test_other_refusals_after_the_final_dot_need_evidence_too(code: int, text: str) -> None:
    verdict = judge_reply("end-of-data", code, text)
    assert (verdict.failure, verdict.permanent, verdict.on_evidence) == ("content", True, True)


@pytest.mark.parametrize(
    ("stage", "code", "text"),
    [
        # Amazon SES, Exchange Online, Postfix with a limit per session, Gmail, as they word it.
        ("data", 454, "Throttling failure: Maximum sending rate exceeded"),
        ("end-of-data", 454, "Throttling failure: Maximum sending rate exceeded"),
        ("mail", 432, "4.3.2 concurrent connections limit exceeded"),
        ("end-of-data", 432, "4.3.2 concurrent connections limit exceeded"),
        ("mail", 452, "4.5.3 too many mails in this session"),
        ("rcpt", 450, "4.7.0 too fast"),
        ("rcpt", 421, "4.7.0 too many"),
    ],
)
def test_a_server_that_asks_for_less_is_known_by_its_reply(stage: Stage, code: int, text: str) -> None:
    verdict = judge_reply(stage, code, text)
    assert (verdict.failure, verdict.too_many, verdict.permanent) == ("throttled", True, False)
