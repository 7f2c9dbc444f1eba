"""The silent budget of a mailbox, the part of it that one network gets, and what a mailbox remembers."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid5

import pytest

from domain.email_claim import ClaimId
from domain.mailbox import (
    OF_ONE_NETWORK,
    REMEMBERED,
    Asked,
    Mailbox,
    applicants_with,
    claim_mark,
    decide_mail,
    payload_mark,
)
from domain.policy import Policy
from infrastructure.event_store.codec import EventCodec
from tests.support.facts import CLAIM, MAILBOX, NETWORK, REGISTRATION, T0, Fact, given, mail_decided, recorded

POLICY = Policy()
INSTANT = timedelta(microseconds=1)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)


def ask(
    mailbox: Mailbox | None,
    at: datetime,
    network: str = NETWORK,
    *,
    registration_id: UUID = REGISTRATION,
    serial: int = 1,
) -> Mailbox:
    asked = Asked(registration_id, serial, CLAIM if serial == 1 else None, network, "fingerprint")
    return decide_mail(mailbox, MAILBOX, asked, now=at, policy=POLICY)


def granted(*before: tuple[timedelta, str]) -> Mailbox:
    """A mailbox that was sent mails so long before T0, the oldest first."""
    return given(Mailbox, mail_decided(granted=[(T0 - ago, of) for ago, of in before]), stream_id=MAILBOX)


def test_the_first_mail_begins_the_stream() -> None:
    mailbox = ask(None, T0)

    assert not mailbox.withheld
    assert (mailbox.id, mailbox.version) == (MAILBOX, 1)
    assert recorded(mailbox) == [mail_decided()]


@pytest.mark.parametrize(
    ("before", "network", "withheld"),
    [
        ([(MINUTE - INSTANT, "a")], "b", True),
        ([(MINUTE, "a")], "b", False),
        ([(40 * MINUTE, "a"), (30 * MINUTE, "b"), (20 * MINUTE, "c")], "d", True),
        ([(HOUR, "a"), (30 * MINUTE, "b"), (20 * MINUTE, "c")], "d", False),
        ([(n * HOUR, "abcde"[n - 1]) for n in (5, 4, 3, 2, 1)], "f", True),
        ([(24 * HOUR, "a"), *((n * HOUR, "bcde"[n - 1]) for n in (4, 3, 2, 1))], "f", False),
        ([(40 * MINUTE, "a"), (20 * MINUTE, "a")], "a", True),
        ([(40 * MINUTE, "a"), (20 * MINUTE, "a")], "b", False),
        ([(n * HOUR, "a") for n in (3, 2, 1)], "a", True),
        ([(n * HOUR, "a") for n in (3, 2, 1)], "b", False),
        ([(-INSTANT, "a")], "b", True),
    ],
    ids=[
        "within the minute",
        "a minute later",
        "the fourth within an hour",
        "when the first is an hour old",
        "the sixth within a day",
        "when the first is a day old",
        "the third of a network within an hour",
        "another network within that hour",
        "the fourth of a network within a day",
        "another network within that day",
        "by a clock that lags",
    ],
)
def test_the_budget_of_a_mailbox(before: list[tuple[timedelta, str]], network: str, withheld: bool) -> None:
    mailbox = ask(granted(*before), T0, network)

    assert mailbox.withheld is withheld


def test_a_mail_that_is_withheld_uses_up_nothing() -> None:
    mailbox = ask(None, T0)
    for seconds in range(1, 60):
        mailbox = ask(mailbox, T0 + timedelta(seconds=seconds))
        assert mailbox.withheld

    assert not ask(mailbox, T0 + MINUTE).withheld


def test_whatever_one_network_does_another_gets_two_mails_a_day() -> None:
    mailbox = None
    for minutes in range(24 * 60):
        mailbox = ask(mailbox, T0 + minutes * MINUTE, "stranger")
    assert mailbox is not None
    end = T0 + 24 * HOUR

    sent = [not (mailbox := ask(mailbox, end + n * MINUTE, "person")).withheld for n in range(2)]

    assert sent == [True, True]


def test_only_the_latest_event_of_a_mailbox_is_needed() -> None:
    mailbox = None
    for minutes in range(20):
        mailbox = ask(mailbox, T0 + minutes * 10 * MINUTE, f"{minutes:08x}", registration_id=uuid5(CLAIM, str(minutes)))
    assert mailbox is not None
    last: Any = mailbox.collect_events()[-1]

    again = last.mutate(None)

    assert isinstance(again, Mailbox)
    assert (again.version, again.granted, again.applicants) == (20, mailbox.granted, mailbox.applicants)
    assert ask(again, T0 + 4 * HOUR).version == 21


def test_a_mailbox_remembers_the_latest_registrations_whether_they_got_a_mail_or_not() -> None:
    ids = [uuid5(CLAIM, str(n)) for n in range(REMEMBERED + 3)]
    mailbox = None
    for n, one in enumerate(ids):
        mailbox = ask(mailbox, T0, f"{n:08x}", registration_id=one)
    assert mailbox is not None

    assert [one.registration_id for one in mailbox.applicants] == ids[3:]


def test_one_network_cannot_make_a_mailbox_forget_another_ones_registrations() -> None:
    mailbox = ask(None, T0, "person")
    for n in range(100):
        mailbox = ask(mailbox, T0, "stranger", registration_id=uuid5(CLAIM, str(n)))

    assert [one.registration_id for one in mailbox.applicants] == [
        REGISTRATION,
        *(uuid5(CLAIM, str(n)) for n in range(100 - OF_ONE_NETWORK, 100)),
    ]


def test_who_may_have_sent_a_payload_is_known_by_address_and_payload() -> None:
    tagged = ClaimId(uuid5(CLAIM, "a tag"))
    ids = {fingerprint: uuid5(CLAIM, fingerprint) for fingerprint in ("one", "two", "tagged")}
    mailbox = None
    for fingerprint, one in ids.items():
        asked = Asked(one, 1, tagged if fingerprint == "tagged" else CLAIM, NETWORK, fingerprint)
        mailbox = decide_mail(mailbox, MAILBOX, asked, now=T0, policy=POLICY)

    assert applicants_with(mailbox, CLAIM, "two") == (ids["two"],)
    assert applicants_with(mailbox, CLAIM, "tagged") == ()
    assert applicants_with(mailbox, tagged, "tagged") == (ids["tagged"],)
    assert applicants_with(None, CLAIM, "one") == ()


def test_a_new_code_is_no_new_registration() -> None:
    mailbox = ask(ask(None, T0), T0 + HOUR, serial=2)

    assert len(mailbox.applicants) == 1
    assert len(mailbox.granted) == 2


def test_what_a_mailbox_is_told_is_small() -> None:
    """From 2,000 bytes on PostgreSQL would compress it, and the time for that tell who is asked for much."""
    mailbox = None
    for n in range(1000):
        mailbox = ask(mailbox, T0 + n * MINUTE, f"{n % 40:08x}", registration_id=uuid5(CLAIM, str(n)))
    assert mailbox is not None

    last: Any = mailbox.collect_events()[-1]

    assert (len(last.granted), len(last.applicants)) == (5, REMEMBERED)
    assert len(EventCodec().encode(last).state) < 1500


def test_what_earlier_builds_wrote_of_an_applicant_is_understood() -> None:
    written = f"{REGISTRATION} {CLAIM} {NETWORK} {payload_mark('fingerprint')}"
    fact = mail_decided()
    mailbox = given(Mailbox, Fact(fact.event, {**fact.fields, "applicants": [written]}), stream_id=MAILBOX)

    assert [(one.registration_id, one.claim, one.network) for one in mailbox.applicants] == [
        (REGISTRATION, claim_mark(CLAIM), NETWORK)
    ]
    assert applicants_with(mailbox, CLAIM, "fingerprint") == (REGISTRATION,)
    assert mailbox.latest.applicant() == mailbox.applicants[0]
