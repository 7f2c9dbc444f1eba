"""The checker can fail: a clean history passes, and each forgery is reported, by the invariant that it breaks."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from domain.mail_saga import MailSaga
from tests.faults.evidence import Canary, Copy, DeadLetter, Evidence, HealthSample, Issue, Moment, ResourceSample
from tests.faults.history import REQUEST, History, at
from tests.faults.invariants import INVARIANTS, check
from tests.faults.journal import FaultWindow, Journal, Kind, Operation, Outcome
from tests.support.facts import (
    CLAIM,
    REGISTRATION,
    T0,
    account_activated,
    code_locked,
    code_rejected,
    email_claimed,
    email_dispatch_failed,
    email_dispatched,
    email_released,
    email_verified,
    end_awaited,
    mail_requested,
    otp_issued,
    registered,
    registration_cancelled,
    saga_ended,
    saga_started,
)

ADDRESS = "ada.canary@example.com"
OTHER = UUID("019cab10-0000-7000-8000-000000000002")
OTHER_CLAIM = UUID("c1a10000-0000-5000-8000-000000000002")
VERIFYING = UUID("c0000000-0000-4000-8000-00000000000b")
VERIFYING_OTHER = UUID("c0000000-0000-4000-8000-00000000000c")
KEY = "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"


def saga(registration_id: UUID = REGISTRATION) -> UUID:
    return MailSaga.stream_id(registration_id)


def mailed(history: History, *, registration_id: UUID = REGISTRATION, claim_id: UUID = CLAIM) -> History:
    """A registration whose mail is out: eight events."""
    history.add(registration_id, registered(claim_id=claim_id), otp_issued())
    history.add(claim_id, email_claimed(registration_id))
    history.add(
        saga(registration_id), saga_started(registration_id), mail_requested(registration_id), actor="mail-saga"
    )
    history.add(registration_id, email_dispatched(), actor="mail-worker")
    history.add(saga(registration_id), end_awaited(registration_id), actor="mail-saga")
    return history


def whole_story() -> History:
    """A registration from its first request to the account."""
    history = mailed(History())
    history.add(REGISTRATION, email_verified(), because_of=VERIFYING)
    history.add(REGISTRATION, account_activated(), actor="mail-saga")
    return history.add(saga(), saga_ended(), actor="mail-saga")


def operation(kind: Kind, outcome: Outcome = "ok", **fields: Any) -> Operation:
    codes = {"ok": 202 if kind == "register" else 200, "fail": 422, "unknown": None, "invoked": None}
    given: dict[str, Any] = {
        "request_id": uuid4(),
        "began": at(0.5),
        "ended": at(0.7),
        "took": 0.2,
        "timeout": 30.0,
        "status": codes[outcome],
        "outcome": outcome,
        "registration_id": REGISTRATION if outcome == "ok" or kind != "register" else None,
    } | fields
    if outcome == "ok" and "answer" not in given:
        given["answer"] = {"registration_id": str(given["registration_id"])}
    return Operation(kind, **given)


def register(outcome: Outcome = "ok", **fields: Any) -> Operation:
    return operation("register", outcome, **({"address": ADDRESS, "key": KEY, "body": "body"} | fields))


def copy(serial: int = 1, **fields: Any) -> Copy:
    given: dict[str, Any] = {"to": ADDRESS, "message_id": f"message-{serial}", "code": f"{serial}" * 6, "at": at(5.5)}
    return Copy(**(given | fields))


def resources(moment: Moment, **fields: Any) -> ResourceSample:
    given: dict[str, Any] = {"node": "serve-1", "kind": "serve", "rss": 100 * 2**20, "fds": 30, "threads": 5}
    return ResourceSample(at=T0, moment=moment, **(given | fields))


def evidence(history: History, **more: Any) -> Evidence:
    """What a run without any fault leaves behind that wrote this log."""
    log = history.log
    hashes = dict.fromkeys(("live", "from zero", "in two halves", "told twice"), "abc")
    given: dict[str, Any] = {
        "log": log,
        "head": len(log),
        "issues": {(REGISTRATION, n): Issue(f"{n}" * 6, f"message-{n}") for n in (1, 2)},
        "mails": [copy()],
        "followers": dict.fromkeys(("audit", "mail-saga", "relay"), len(log)),
        "handled": {"audit": [recorded.position for recorded in log]},
        "read_models": {"registrations": hashes},
        "texts": {"a log": "all is well", "the database": "sealed"},
        "canaries": [Canary("address", ADDRESS), Canary("code", "111111"), Canary("idempotency key", KEY)],
        "health": [
            HealthSample(at(3), "serve-1", "ready", 200, "up"),
            HealthSample(at(3), "serve-1", "live", 200, "up"),
        ],
        "resources": [resources("before"), resources("after")],
        "collected_at": at(60),
        "journal": [register(request_id=REQUEST)],
    }
    return Evidence(**(given | more))


def clean(**more: Any) -> Evidence:
    found = evidence(whole_story())
    verified = operation("verify", request_id=VERIFYING, code="111111", began=at(7.5), ended=at(8.5))
    return replace(found, **({"journal": [*found.journal, verified]} | more))


def blamed(evidence: Evidence) -> set[str]:
    return {violation.invariant for violation in check(evidence)}


@pytest.mark.parametrize(("head", "is_code"), [(111_110, True), (111_111, False)])
def test_six_digits_are_no_code_where_the_log_has_such_a_position(head: int, is_code: bool) -> None:
    found = clean(texts={"the database": "position 111111"}, head=head)

    assert ("I10" in blamed(found)) == is_code


def test_a_clean_history_passes() -> None:
    assert check(clean()) == []


def test_a_history_with_faults_and_what_they_excuse_passes() -> None:
    # given: the database was away, the worker was killed with a mail of unknown outcome, and a request got no answer
    faults = [
        FaultWindow("database away", at(2), at(12), frozenset({"database"})),
        FaultWindow("worker killed", at(5), at(6), frozenset({"process"})),
        FaultWindow("API killed", at(20), at(21), frozenset({"api"})),
    ]
    whole = clean()
    unanswered = operation("look", "unknown", began=at(20), ended=at(20.5), problem="ReadError")
    refused = operation("look", "unknown", status=503, retry_after="1")
    health = [
        HealthSample(at(6), "serve-1", "ready", 503, "down"),
        HealthSample(at(6), "serve-1", "live", 200, "up"),
        HealthSample(at(20), "serve-1", "live", None, None),
    ]

    found = replace(
        whole,
        faults=faults,
        mails=[copy(), copy(at=at(6.5))],
        journal=[*whole.journal, unanswered, refused],
        health=health,
    )

    assert check(found) == []


# --- One forgery each -----------------------------------------------------------------------------


def lost_acknowledgement() -> Evidence:
    whole = clean()
    return replace(whole, journal=[*whole.journal, register(registration_id=OTHER, address="b@example.com", key=None)])


def lost_verification() -> Evidence:
    return evidence(mailed(History()), journal=[register(request_id=REQUEST), operation("verify")])


def lost_new_code() -> Evidence:
    whole = clean()
    return replace(whole, journal=[*whole.journal, operation("new code", status=202)])


def position_beyond_the_end() -> Evidence:
    return clean(journal=[register(request_id=REQUEST, position=99)])


def ghost() -> Evidence:
    return clean(journal=[register("fail", request_id=REQUEST)])


def verified_by_a_refused_request() -> Evidence:
    return clean(journal=[operation("verify", "fail", request_id=VERIFYING, code="111111")])


def two_proofs_of_one_address() -> Evidence:
    # The second one takes the claim by its rules, but the first one has not ended.
    history = whole_story()
    history.add(CLAIM, email_released())
    mailed(history, registration_id=OTHER).add(OTHER, email_verified(), because_of=VERIFYING_OTHER)
    history.add(OTHER, account_activated(), actor="mail-saga")
    history.add(saga(OTHER), saga_ended(OTHER), actor="mail-saga")
    offered = [
        register(request_id=REQUEST),
        operation("verify", request_id=VERIFYING, code="111111"),
        operation("verify", request_id=VERIFYING_OTHER, registration_id=OTHER, code="222222"),
    ]
    return evidence(history, mails=[copy(), copy(2)], issues=two_issues(), journal=offered)


def proof_without_a_claim() -> Evidence:
    history = mailed(History()).add(CLAIM, email_released())
    history.add(REGISTRATION, email_verified(), because_of=VERIFYING)
    history.add(REGISTRATION, account_activated(), actor="mail-saga")
    history.add(saga(), saga_ended(), actor="mail-saga")
    offered = [register(request_id=REQUEST), operation("verify", request_id=VERIFYING, code="111111")]
    return evidence(history, journal=offered)


def two_issues() -> dict[tuple[UUID, int], Issue]:
    return {(REGISTRATION, 1): Issue("111111", "message-1"), (OTHER, 1): Issue("222222", "message-2")}


def claim_taken_from_its_holder() -> Evidence:
    history = mailed(History())
    history.add(REGISTRATION, registration_cancelled())
    history.add(saga(), saga_ended(outcome="expired"), actor="mail-saga")
    mailed(history, registration_id=OTHER)  # without a release in between
    return evidence(history, mails=[copy(), copy(2)], issues=two_issues())


def two_claims_of_one_address() -> Evidence:
    history = mailed(mailed(History()), registration_id=OTHER, claim_id=OTHER_CLAIM)
    accepted = [register(request_id=REQUEST), register(registration_id=OTHER, key=None)]
    return evidence(history, mails=[copy(), copy(2)], issues=two_issues(), journal=accepted)


def stuck_without_a_mail() -> Evidence:
    history = History().add(REGISTRATION, registered(), otp_issued()).add(CLAIM, email_claimed())
    history.add(saga(), saga_started(), mail_requested(), actor="mail-saga")
    return evidence(history, mails=[])


def verified_and_never_an_account() -> Evidence:
    history = mailed(History()).add(REGISTRATION, email_verified(), because_of=VERIFYING)
    return evidence(history)


def dead_letter_without_a_reason() -> Evidence:
    return evidence(mailed(History()), dead_letters=[DeadLetter(REGISTRATION, 1, None)])


def settled_dead_letter_that_waits() -> Evidence:
    return evidence(mailed(History()), dead_letters=[DeadLetter(REGISTRATION, 0, "mailbox-unknown", waits=True)])


def forgotten_by_its_saga() -> Evidence:
    return evidence(mailed(History()), collected_at=at(90_000))


def sent_twice_without_need() -> Evidence:
    return clean(mails=[copy(), copy(at=at(6))])


def sent_twice_with_a_fault_long_before() -> Evidence:
    before = FaultWindow("killed", at(-10), at(-5), frozenset({"process"}))
    return clean(mails=[copy(), copy(at=at(6))], faults=[before])


def sent_twice_with_a_fault_of_somebody_who_sends_no_mails() -> Evidence:
    relay = FaultWindow("process-1 dies", at(3), at(7), frozenset({"process"}), node="process-1")
    broker = FaultWindow("the broker is killed", at(3), at(7), frozenset({"broker"}))
    return clean(mails=[copy(), copy(at=at(6))], faults=[relay, broker], senders="work")


def sent_more_often_than_attempts_were_unknown() -> Evidence:
    history = History().add(REGISTRATION, registered(), otp_issued()).add(CLAIM, email_claimed())
    history.add(saga(), saga_started(), mail_requested(), actor="mail-saga")
    history.add(REGISTRATION, email_dispatch_failed(outcome_unknown=True), email_dispatched(), actor="mail-worker")
    return evidence(history, mails=[copy(at=at(n)) for n in (6, 7, 8)])


def sent_seven_times() -> Evidence:
    kills = [FaultWindow("killed", at(n), at(n), frozenset({"process"})) for n in range(3, 20)]
    return clean(mails=[copy(at=at(5 + n)) for n in range(7)], faults=kills)


def handed_over_and_in_no_mailbox() -> Evidence:
    return clean(mails=[])


def another_code_in_the_mail() -> Evidence:
    return clean(mails=[copy(code="999999")])


def another_code_in_a_copy() -> Evidence:
    killed = FaultWindow("killed", at(5), at(6), frozenset({"process"}))
    return clean(mails=[copy(), copy(code="999999", at=at(6))], faults=[killed])


def another_message_id() -> Evidence:
    return clean(mails=[copy(), copy(message_id="of-nobody")])


def mail_to_somebody_else() -> Evidence:
    return clean(mails=[copy(to="eve@example.com")])


def verified_by_a_superseded_code() -> Evidence:
    history = mailed(History())
    history.add(REGISTRATION, otp_issued(2, "requested"), email_verified(1), because_of=VERIFYING)
    history.add(REGISTRATION, account_activated(), actor="mail-saga")
    history.add(saga(), saga_ended(), actor="mail-saga")
    return evidence(history)


def verified_by_a_wrong_code() -> Evidence:
    whole = clean()
    [registering, _] = whole.journal
    return replace(whole, journal=[registering, operation("verify", request_id=VERIFYING, code="000000")])


def verified_twice() -> Evidence:
    history = mailed(History()).add(REGISTRATION, email_verified(), email_verified(), because_of=VERIFYING)
    history.add(REGISTRATION, account_activated(), actor="mail-saga")
    history.add(saga(), saga_ended(), actor="mail-saga")
    return evidence(history)


def guessed(*attempts: int) -> Evidence:
    history = mailed(History()).add(REGISTRATION, *(code_rejected(attempt) for attempt in attempts))
    return evidence(history)


def six_guesses() -> Evidence:
    return guessed(1, 2, 3, 4, 5, 6)


def one_guess_counted_for_two() -> Evidence:
    return guessed(1, 1)


def compared_after_the_lock() -> Evidence:
    return evidence(mailed(History()).add(REGISTRATION, code_rejected(1), code_locked(), code_rejected(2)))


def guess_answered_and_not_counted() -> Evidence:
    whole = evidence(mailed(History()))
    return replace(whole, journal=[*whole.journal, operation("verify", "fail", problem="wrong-code")])


def read_model_differs(way: str) -> Evidence:
    hashes = dict.fromkeys(("live", "from zero", "in two halves", "told twice"), "abc") | {way: "abd"}
    return clean(read_models={"registrations": hashes})


def event_missing_in_the_middle() -> Evidence:
    history = mailed(History())
    log = [recorded for recorded in history.log if recorded.position != 7]  # the saga's last note
    handled = [recorded.position for recorded in log]
    return replace(evidence(history), log=log, handled={"audit": handled})


def version_missing_in_a_stream() -> Evidence:
    history = mailed(History())
    history._versions[REGISTRATION] += 1
    return evidence(history.add(REGISTRATION, code_rejected()))


def follower_behind() -> Evidence:
    return clean(followers={"audit": 10, "relay": 3})


def follower_beyond_the_end() -> Evidence:
    return clean(followers={"relay": 99})


def event_left_out_by_a_follower() -> Evidence:
    return clean(handled={"audit": [1, 2, 4, 5, 6, 7, 8, 9, 10]})


def event_handled_twice() -> Evidence:
    return clean(handled={"audit": [1, 2, 3, 3, 4, 5, 6, 7, 8, 9, 10]})


def registration_that_the_saga_passed_by() -> Evidence:
    history = History().add(REGISTRATION, registered(), otp_issued()).add(CLAIM, email_claimed())
    history.add(REGISTRATION, email_dispatched(), actor="mail-worker")
    return evidence(history)


def broken_chain() -> Evidence:
    return clean(broken_blocks=[4])


def said(text: str) -> Evidence:
    return clean(texts={"a log": f"something went wrong with {text}"})


def address_in_a_log() -> Evidence:
    return said(ADDRESS)


def key_in_base64_in_a_log() -> Evidence:
    return said(base64.b64encode(b"xy" + KEY.encode() + b"z").decode())


def address_in_percents_in_a_log() -> Evidence:
    return said(ADDRESS.replace("@", "%40"))


def address_in_utf16_in_a_log() -> Evidence:
    return said(ADDRESS.encode("utf-16-le").decode("latin-1"))


def address_in_hex_in_a_log() -> Evidence:
    return said(f"\\x{ADDRESS.encode().hex()}")


def code_in_a_log() -> Evidence:
    return said("code 111111")


def more_memory_than_before() -> Evidence:
    return clean(resources=[resources("before"), resources("after", rss=200 * 2**20)])


def more_descriptors_than_before() -> Evidence:
    return clean(resources=[resources("before"), resources("after", fds=60)])


def more_threads_than_before() -> Evidence:
    return clean(resources=[resources("before"), resources("after", threads=30)])


def asked(*operations: Operation) -> Evidence:
    whole = clean()
    return replace(whole, journal=[*whole.journal, *operations])


def request_that_never_ended() -> Evidence:
    return asked(operation("look", "invoked", ended=None))


def request_that_took_too_long() -> Evidence:
    return asked(operation("look", took=40.0))


def request_without_an_answer() -> Evidence:
    return asked(operation("look", "unknown", problem="ReadTimeout"))


def shed_without_retry_after() -> Evidence:
    return asked(operation("look", "unknown", status=503))


def internal_error() -> Evidence:
    return asked(operation("look", "unknown", status=500))


def decided(off: timedelta) -> Evidence:
    history = mailed(History())
    return evidence(history.add(REGISTRATION, code_rejected(), decided=off))


def decided_by_a_clock_that_is_behind() -> Evidence:
    return decided(timedelta(hours=1))


def decided_by_a_clock_that_is_ahead() -> Evidence:
    return decided(-timedelta(minutes=11))


def caused_by_what_came_later() -> Evidence:
    return evidence(mailed(History()).add(REGISTRATION, code_rejected(), caused_by=99))


def recorded_before_what_came_earlier() -> Evidence:
    whole = clean()
    log = [*whole.log[:4], whole.log[4]._replace(recorded_at=at(3.5)), *whole.log[5:]]
    return replace(whole, log=log)


def parked_stream() -> Evidence:
    return clean(parked=[("audit", REGISTRATION, "stream is parked")])


def event_that_nobody_can_read() -> Evidence:
    whole = clean()
    return replace(whole, undecodable=[11], head=11, followers={"audit": 11}, handled={"audit": range(1, 12)})


def repeated(**fields: Any) -> Evidence:
    """The same address and key came again."""
    return asked(register(**({"began": at(20), "ended": at(21)} | fields)))


def repeat_with_another_id() -> Evidence:
    history = mailed(mailed(History()), registration_id=OTHER, claim_id=OTHER_CLAIM)
    return evidence(
        history,
        mails=[copy(), copy(2, to="b@example.com")],
        issues=two_issues(),
        journal=[
            register(request_id=REQUEST, address=None),
            register(registration_id=OTHER, address=None, began=at(20), ended=at(21)),
        ],
    )


def repeat_with_another_answer() -> Evidence:
    return repeated(answer={"registration_id": str(REGISTRATION), "message": "something else"})


def repeat_that_is_refused() -> Evidence:
    return repeated(outcome="fail", status=409)


def key_reused_with_another_body() -> Evidence:
    return repeated(body="another")


def key_reused_and_refused_with_the_wrong_status() -> Evidence:
    return repeated(body="another", outcome="fail", status=400)


def one_registration_for_two_addresses() -> Evidence:
    history = History().add(REGISTRATION, registered(), otp_issued()).add(CLAIM, email_claimed())
    history.add(saga(), saga_started(), mail_requested(), actor="mail-saga")
    accepted = [register(request_id=REQUEST), register(address="b@example.com")]
    return evidence(history, mails=[], journal=accepted, healed=False)


def felt(*samples: HealthSample, hits: str = "") -> Evidence:
    faults = [FaultWindow("fault", at(100), at(200), frozenset({hits}))] if hits else []
    return clean(health=samples, faults=faults)


def not_live_without_a_database() -> Evidence:
    return felt(HealthSample(at(150), "serve-1", "live", 503, "down"), hits="database")


def ready_without_a_database() -> Evidence:
    return felt(HealthSample(at(150), "serve-1", "ready", 200, "up"), hits="database")


def unready_long_after_healing() -> Evidence:
    return felt(HealthSample(at(210), "serve-1", "ready", 503, "down"), hits="database")


def unready_without_mail_servers() -> Evidence:
    return felt(HealthSample(at(150), "serve-1", "ready", 503, "down"), hits="mail")


def no_answer_to_whoever_asks_how_it_is() -> Evidence:
    return felt(HealthSample(at(150), "serve-1", "ready", None, None))


def not_live_while_another_node_is_dead() -> Evidence:
    dead = FaultWindow("serve-2 dies", at(100), at(200), frozenset({"api"}), node="serve-2")
    return clean(health=[HealthSample(at(150), "serve-1", "live", None, None)], faults=[dead])


FORGERIES: dict[str, list[Callable[[], Evidence]]] = {
    "I1": [lost_acknowledgement, lost_verification, lost_new_code, position_beyond_the_end],
    "I2": [ghost, verified_by_a_refused_request],
    "I3": [two_proofs_of_one_address, proof_without_a_claim, claim_taken_from_its_holder, two_claims_of_one_address],
    "chain": [broken_chain],
    "I4": [
        stuck_without_a_mail,
        verified_and_never_an_account,
        dead_letter_without_a_reason,
        settled_dead_letter_that_waits,
        forgotten_by_its_saga,
    ],
    "I5": [
        sent_twice_without_need,
        sent_twice_with_a_fault_long_before,
        sent_twice_with_a_fault_of_somebody_who_sends_no_mails,
        sent_more_often_than_attempts_were_unknown,
        sent_seven_times,
        handed_over_and_in_no_mailbox,
    ],
    "I6": [
        another_code_in_the_mail,
        another_code_in_a_copy,
        another_message_id,
        mail_to_somebody_else,
        verified_by_a_superseded_code,
        verified_by_a_wrong_code,
    ],
    "I7": [
        verified_twice,
        six_guesses,
        one_guess_counted_for_two,
        compared_after_the_lock,
        guess_answered_and_not_counted,
    ],
    "I8": [
        lambda: read_model_differs("from zero"),
        lambda: read_model_differs("in two halves"),
        lambda: read_model_differs("told twice"),
    ],
    "I9": [
        event_missing_in_the_middle,
        version_missing_in_a_stream,
        follower_behind,
        follower_beyond_the_end,
        event_left_out_by_a_follower,
        event_handled_twice,
        registration_that_the_saga_passed_by,
    ],
    "I10": [
        address_in_a_log,
        key_in_base64_in_a_log,
        address_in_percents_in_a_log,
        address_in_utf16_in_a_log,
        address_in_hex_in_a_log,
        code_in_a_log,
    ],
    "I11": [more_memory_than_before, more_descriptors_than_before, more_threads_than_before],
    "I12": [
        request_that_never_ended,
        request_that_took_too_long,
        request_without_an_answer,
        shed_without_retry_after,
        internal_error,
    ],
    "I13": [
        decided_by_a_clock_that_is_behind,
        decided_by_a_clock_that_is_ahead,
        caused_by_what_came_later,
        recorded_before_what_came_earlier,
    ],
    "I14": [parked_stream, event_that_nobody_can_read],
    "I15": [
        repeat_with_another_id,
        repeat_with_another_answer,
        repeat_that_is_refused,
        key_reused_with_another_body,
        key_reused_and_refused_with_the_wrong_status,
        one_registration_for_two_addresses,
    ],
    "I16": [
        not_live_without_a_database,
        ready_without_a_database,
        unready_long_after_healing,
        unready_without_mail_servers,
        no_answer_to_whoever_asks_how_it_is,
        not_live_while_another_node_is_dead,
    ],
}


def test_there_is_a_forgery_for_each_invariant() -> None:
    assert FORGERIES.keys() == INVARIANTS.keys()


@pytest.mark.parametrize(
    ("invariant", "forge"),
    [
        pytest.param(invariant, forge, id=f"{invariant} {forge.__name__} {number}")
        for invariant, forgeries in FORGERIES.items()
        for number, forge in enumerate(forgeries, start=1)
    ],
)
def test_a_forged_history_is_reported_by_the_invariant_that_it_breaks_and_by_no_other(
    invariant: str, forge: Callable[[], Evidence]
) -> None:
    forged = forge()

    assert blamed(forged) == {invariant}, check(forged)
    assert check(forged, only=INVARIANTS.keys() - {invariant}) == []


@pytest.mark.parametrize("forge", [forge for forgeries in FORGERIES.values() for forge in forgeries])
def test_a_violation_never_quotes_an_address_a_code_or_a_key(forge: Callable[[], Evidence]) -> None:
    said = "\n".join(map(str, check(forge())))

    assert said
    assert not [
        secret for secret in (ADDRESS, "eve@example.com", "b@example.com", KEY, "111111", "999999") if secret in said
    ]


def test_who_stood_by_at_first_may_lead_afterwards() -> None:
    samples = [
        resources("before", node="process-1", kind="process", fds=30),
        resources("before", node="process-2", kind="process", fds=16),
        resources("after", node="process-1", kind="process", fds=16),
        resources("after", node="process-2", kind="process", fds=30),
    ]
    assert check(clean(resources=samples), only=("I11",)) == []
    too_many = [*samples, resources("after", node="process-2", kind="process", fds=60)]
    assert {violation.invariant for violation in check(clean(resources=too_many))} == {"I11"}


def test_all_of_a_kind_together_take_no_more_than_before() -> None:
    samples = [
        resources("before", node="process-1", kind="process", fds=60),
        resources("before", node="process-2", kind="process", fds=16),
        resources("after", node="process-1", kind="process", fds=60),
        resources("after", node="process-2", kind="process", fds=60),
    ]
    [violation] = check(clean(resources=samples), only=("I11",))
    assert "all process have fds 120" in str(violation)


def test_a_kind_that_was_never_measured_before_is_told() -> None:
    [violation] = check(clean(resources=[resources("after", node="work-1", kind="work")]), only=("I11",))
    assert "nothing of the kind work" in str(violation)


def test_liveness_is_not_due_before_everything_is_healed() -> None:
    for forge in (stuck_without_a_mail, forgotten_by_its_saga, follower_behind, more_memory_than_before):
        assert check(replace(forge(), healed=False)) == []


def test_a_journal_has_a_line_before_an_operation_is_sent_and_one_after_it_ended(tmp_path: Path) -> None:
    # given
    written = Journal()
    one = register("invoked", ended=None)
    written.invoke(one)
    written.end(one, "ok")

    # when
    written.dump(tmp_path / "journal.jsonl")

    # then
    lines = (tmp_path / "journal.jsonl").read_text().splitlines()
    assert ['"outcome": "invoked"' in line for line in lines] == [True, False]
    assert '"outcome": "ok"' in lines[1]
