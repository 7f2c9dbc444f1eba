"""Whether a refusal is about one mail or about all of ours, by what the server did before."""

from __future__ import annotations

from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from infrastructure.mail.smtp.evidence import Evidence
from infrastructure.mail.smtp.replies import Verdict, judge_reply

SPAM = judge_reply("end-of-data", 554, "looks like spam")
FILTERED = judge_reply("end-of-data", 554, "5.7.1 blocked")
NOBODY = judge_reply("rcpt", 550, "Invalid recipient: <ada@example.com>")
UNKNOWN = judge_reply("rcpt", 550, "5.1.1 no such user")
NO_RELAY = judge_reply("rcpt", 550, "5.7.1 relaying denied")
GREYLISTED = judge_reply("rcpt", 450, "4.7.1 come again")

ADA, BOB, EVE = "ada@example.com", "bob@example.com", "eve@example.com"


class Server:
    """Evidence on one server, and who was asked whether to believe it."""

    def __init__(self, *, others_agree: bool = True, only_deferred: timedelta = timedelta(minutes=10)) -> None:
        self.asked: list[str] = []
        self.changes = 0
        self.believed = 17.0
        self._others_agree = others_agree
        self.evidence = Evidence("mx:25", beliefs=self, on_change=self._changed, only_deferred=only_deferred)

    def latest(self, provider: str) -> float | None:
        return self.believed

    async def may_believe(self, provider: str, known: float | None) -> bool:
        assert known == self.believed, "what was known when the server took the mail"
        self.asked.append(provider)
        return self._others_agree

    def _changed(self) -> None:
        self.changes += 1

    async def replies(self, *replies: Verdict | None, to: str = ADA) -> list[Verdict]:
        """The verdicts on some replies to mails; None is a mail that was taken (of Eve's, each)."""
        verdicts = []
        for reply in replies:
            if reply is None:
                self.evidence.taken(EVE)
            else:
                verdicts.append(await self.evidence.judge(reply, to))
        return verdicts


@pytest.mark.parametrize("refusal", [SPAM, NOBODY])
@pytest.mark.parametrize(
    ("replies", "permanent"),
    [
        pytest.param("x", [False], id="before any was taken"),
        pytest.param("-x", [True], id="after one was taken"),
        pytest.param("-xxx", [True, False, False], id="in a row"),
        pytest.param("x-x", [False, True], id="after one was taken again"),
        pytest.param("-x-x", [True, True], id="now and then"),
        pytest.param("-ux", [True, True], id="an unknown mailbox says nothing about others"),
        pytest.param("xux", [False, True, False], id="nor does it make up for a mail that was taken"),
    ],
)
async def test_a_refusal_without_a_reason_is_about_one_mail_only_if_the_server_took_the_one_before(
    refusal: Verdict, replies: str, permanent: list[bool]
) -> None:
    verdicts = await Server().replies(*({"x": refusal, "-": None, "u": UNKNOWN}[one] for one in replies))
    assert [verdict.permanent for verdict in verdicts] == permanent
    assert not any(verdict.on_evidence for verdict in verdicts)


async def test_a_row_of_refused_recipients_has_a_class_of_its_own_and_is_no_outage() -> None:
    refused = await Server().replies(NOBODY, NOBODY)
    assert {(one.failure, one.about_us, one.outage, one.costs_a_try) for one in refused} == {
        ("refused", True, False, False)
    }


async def test_refused_contents_count_for_the_circuit_whoever_they_are_about() -> None:
    assert [one.outage for one in await Server().replies(None, SPAM, SPAM, FILTERED)] == [True, True, True]


async def test_content_that_a_filter_blocks_is_never_about_one_mail() -> None:
    assert [one.permanent for one in await Server().replies(None, FILTERED)] == [False]


async def test_a_persons_own_earlier_mail_is_no_evidence_that_others_are_taken() -> None:
    server = Server()
    server.evidence.taken(ADA)
    assert [one.failure for one in await server.replies(NOBODY, to=ADA)] == ["refused"]


async def test_what_another_worker_has_seen_counts() -> None:
    server = Server(others_agree=False)
    assert [one.permanent for one in await server.replies(None, NOBODY)] == [False]
    assert server.asked == ["mx:25"]


async def test_nobody_is_asked_about_what_is_clear() -> None:
    server = Server()
    await server.replies(UNKNOWN, NOBODY, SPAM, GREYLISTED, NO_RELAY)
    assert server.asked == []


@pytest.mark.parametrize("refusal", [SPAM, FILTERED, NOBODY, NO_RELAY])
async def test_while_mails_are_refused_so_would_be_the_next_and_for_nobodys_fault(refusal: Verdict) -> None:
    server = Server()
    assert server.evidence.expected is None
    await server.replies(refusal, refusal, UNKNOWN)
    assert server.evidence.expected is not None
    assert (server.evidence.expected.permanent, server.evidence.expected.about_us) == (False, True)
    assert server.evidence.expected.outage == (refusal.failure == "content"), (
        "a withheld mail must not close the circuit"
    )
    await server.replies(None)
    assert server.evidence.expected is None


async def test_the_others_are_told_of_the_first_two_mails_of_a_row_and_of_its_end() -> None:
    server = Server()
    changes = []
    for reply, to in [(NOBODY, ADA), (NOBODY, ADA), (NOBODY, BOB), (NOBODY, EVE), (None, EVE), (None, ADA)]:
        await server.replies(reply, to=to)
        changes.append(server.changes)
    assert changes == [1, 1, 2, 2, 3, 3]
    assert server.evidence.standing.refused_since is None


async def test_that_a_server_only_defers_is_told_and_not_while_it_takes_mails() -> None:
    at_once, patient = Server(only_deferred=timedelta(0)), Server()

    def told(server: Server) -> list[tuple[object, object]]:
        with capture_logs() as lines:
            server.evidence.tell_if_it_only_defers()
        return [(line["event"], line["reply"]) for line in lines]

    assert told(at_once) == []
    await at_once.replies(GREYLISTED)
    assert told(at_once) == [("mail.only_deferred", GREYLISTED.reply_code)]
    await at_once.replies(None)
    assert told(at_once) == []

    await patient.replies(GREYLISTED, GREYLISTED)
    assert told(patient) == [], "greylisting is nothing to call an operator for"


async def test_a_row_ends_when_another_workers_mail_was_taken_since_and_may_begin_again() -> None:
    server = Server()
    await server.replies(NO_RELAY, GREYLISTED)
    began = server.evidence.standing.refused_since
    assert began is not None
    server.evidence.taken_from_another(ago=3600)
    assert server.evidence.standing.refused_since == began, "that was before"

    server.evidence.taken_from_another(ago=-1)
    standing = server.evidence.standing
    assert (standing.refused_since, standing.deferred_since, standing.refusals) == (None, None, 0)
    assert server.evidence.expected is None
    await server.replies(NO_RELAY)
    assert standing.refused_since is not None
    assert standing.refused_since >= began
    assert [one.failure for one in await server.replies(NOBODY)] == ["refused"], "it is no evidence for ours"
