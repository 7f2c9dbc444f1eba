"""Today's decisions over recorded history: none differs while nothing has changed, and whatever changes is found."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from application import mail_saga
from application.commands import (
    ActivateAccount,
    CancelRegistration,
    Command,
    ReleaseEmail,
    ReplaceStaleCode,
    RevokeOtp,
)
from application.mail_saga import DeadlineReached, react
from application.ports import Context
from application.what_if import FIGURES, repetition, review
from application.what_if.effects import EFFECTS
from domain.mail_saga import MailSaga
from domain.policy import Policy
from domain.recorded import AnyEvent, Recorded
from domain.registration import Registration
from tests.support.facts import (
    REGISTRATION,
    T0,
    Fact,
    account_activated,
    email_dispatched,
    email_verified,
    end_awaited,
    mail_requested,
    otp_issued,
    registered,
    saga_ended,
    saga_started,
    stream,
)
from tests.support.histories import History
from tests.support.what_if import differences_in, recorded_as

SAGA = MailSaga.stream_id(REGISTRATION)


@pytest.fixture(scope="module")
def log() -> list[Recorded]:
    return recorded_as(History(seed=20261128, registrations=300).events)


def kinds(log: list[Recorded], policy: Policy | None = None) -> Counter[str]:
    return Counter(one.kind for one in differences_in(log, policy))


Reaction = tuple[MailSaga | None, list[Command]]


def deciding(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[Reaction, AnyEvent | DeadlineReached], Reaction]
) -> None:
    """The saga of today decides as it does, and then this is changed."""

    def changed(saga: MailSaga | None, happened: AnyEvent | DeadlineReached, now: object, policy: Policy) -> Reaction:
        return change(react(saga, happened, now, policy), happened)  # type: ignore[arg-type]

    for module in (review, repetition):
        monkeypatch.setattr(module, "react", changed)


# --- Nothing has changed ----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_the_same_code_and_settings_decide_the_same(seed: int) -> None:
    assert differences_in(recorded_as(History(seed=seed, registrations=120).events)) == []


def test_a_log_that_does_not_say_what_led_to_what_is_read_as_what_makes_sense() -> None:
    events = History(seed=7, registrations=150).events
    silent = [(event, Context(context.actor, context.correlation_id)) for event, context in events]

    assert differences_in(recorded_as(silent)) == []


def test_what_is_soon_seen_to_be_repeated_has_no_differences_looked_at_closely_either(
    log: list[Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(review, "is_repeated", lambda *_: False)

    assert differences_in(log) == []


def test_what_the_saga_has_not_seen_yet_is_not_decided(log: list[Recorded]) -> None:
    """At every moment of the log: the notes of the last events are not there, and whether they are to be is not
    known."""
    for length in range(1, 400):
        handled = max(
            (one.causation_position or 0 for one in log[:length] if one.topic.startswith("mail_saga.")), default=0
        )
        assert differences_in(log[:length], handled=handled) == []


def test_a_parked_registration_is_not_decided() -> None:
    [first, *_] = recorded_as(
        [(event, Context("client", REGISTRATION)) for event in stream(REGISTRATION, registered())]
    )

    assert differences_in([first]) != []
    assert differences_in([first], parked={REGISTRATION}) == []


# --- Something has changed --------------------------------------------------------------------


def test_a_shorter_life_of_codes_replaces_some_of_them(log: list[Recorded]) -> None:
    found = kinds(log, Policy(otp_ttl=timedelta(seconds=300)))

    assert found
    assert {kind.partition(": ")[2] for kind in found} == {"then MailRequested, now FreshCodeAsked + ReplaceStaleCode"}


def test_a_longer_life_of_registrations_is_one_difference_for_each(log: list[Recorded]) -> None:
    begun = sum(one.topic == "registration.user_registered" for one in log)

    found = kinds(log, Policy(registration_ttl=timedelta(hours=48)))

    assert found["on UserRegistered: then MailSagaStarted, now later"] == begun


def test_a_life_too_short_for_what_came_later_undoes_it(log: list[Recorded]) -> None:
    found = kinds(log, Policy(registration_ttl=timedelta(minutes=5)))

    assert found["on DeadlineReached: then nothing, now UndoDecided + RevokeOtp + CancelRegistration"] > 0


@pytest.mark.parametrize("left_out", EFFECTS)
def test_a_command_that_is_not_given_any_more_is_found(
    log: list[Recorded], left_out: type[Command], monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(reaction: Reaction, _: object) -> Reaction:
        saga, commands = reaction
        return saga, [command for command in commands if not isinstance(command, left_out)]

    deciding(monkeypatch, without)

    found = differences_in(log)

    effects = sum(one.topic == EFFECTS[left_out] and one.actor == "mail-saga" for one in log)
    assert 0 < len(found) <= effects
    assert all(left_out.__name__ in one.then and left_out.__name__ not in one.now for one in found)


def test_a_command_that_was_not_given_then_is_found(log: list[Recorded], monkeypatch: pytest.MonkeyPatch) -> None:
    def frees(reaction: Reaction, happened: AnyEvent | DeadlineReached) -> Reaction:
        saga, commands = reaction
        if isinstance(happened, Registration.EmailVerified) and saga is not None:
            return saga, [*commands, ReleaseEmail(registration_id=saga.registration_id, claim_id=saga.claim_id)]
        return reaction

    deciding(monkeypatch, frees)

    # What is claimed in the commit of the proof need not have been there when the command ran.
    claimed = {vars(one.event)["registration_id"]: one for one in log if one.topic == "email_claim.email_claimed"}
    verified = [one for one in log if one.topic == "registration.email_verified"]
    before = sum(claimed[str(one.event.originator_id)].position < one.position for one in verified)
    assert before > 0
    assert kinds(log) == {"on EmailVerified: then ActivateAccount, now ActivateAccount + ReleaseEmail": before}


def test_commands_in_another_order_are_found(log: list[Recorded], monkeypatch: pytest.MonkeyPatch) -> None:
    deciding(monkeypatch, lambda reaction, _: (reaction[0], reaction[1][::-1]))

    found = kinds(log)

    assert found
    assert all("now UndoDecided + CancelRegistration + RevokeOtp" in kind for kind in found)


def test_a_decision_that_fails_today_is_found(log: list[Recorded], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(reaction: Reaction, happened: AnyEvent | DeadlineReached) -> Reaction:
        if isinstance(happened, Registration.EmailDispatched):
            raise KeyError
        return reaction

    deciding(monkeypatch, fails)

    found = kinds(log)
    assert found
    assert all(kind.startswith("on EmailDispatched: ") and kind.endswith("now fails with KeyError") for kind in found)


@pytest.mark.parametrize(("delay", "when"), [(timedelta(seconds=30), "sooner"), (timedelta(minutes=5), "later")])
def test_another_delay_is_told_where_it_is_set(
    log: list[Recorded], delay: timedelta, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mail_saga, "SECOND_LOOK", delay)

    found = kinds(log)

    assert found[f"on OtpIssued: then MailRequested, now {when}"] > 0
    assert not any("CodeFoundDead" in kind for kind in found)  # which only repeats the date


# --- One history, step by step ----------------------------------------------------------------


def gone_well(*, mailed_after: float = 1.0, actor_of_activation: str = "mail-saga") -> list[Recorded]:
    def at(seconds: float) -> dict[str, object]:
        return {"at": T0 + timedelta(seconds=seconds)}

    def own(*facts: Fact, after: int) -> list[AnyEvent]:
        return list(stream(REGISTRATION, *facts, after=after))

    def noted(*facts: Fact, after: int) -> list[AnyEvent]:
        return list(stream(SAGA, *facts, after=after))

    client, saga = Context("client", REGISTRATION), Context("mail-saga", REGISTRATION)
    told: list[tuple[AnyEvent, Context]] = [(event, client) for event in own(registered(), otp_issued(), after=0)]
    told += [(event, replace(saga, causation_position=1)) for event in noted(saga_started(), after=0)]
    told += [(event, replace(saga, causation_position=2)) for event in noted(mail_requested(), after=1)]
    told += [(event, client) for event in own(email_dispatched(**at(mailed_after)), after=2)]  # type: ignore[arg-type]
    told += [(event, replace(saga, causation_position=5)) for event in noted(end_awaited(**at(mailed_after)), after=2)]  # type: ignore[arg-type]
    told += [(event, client) for event in own(email_verified(), after=3)]
    told += [
        (event, Context(actor_of_activation, REGISTRATION, causation_position=7))
        for event in own(account_activated(), after=4)
    ]
    told += [(event, replace(saga, causation_position=8)) for event in noted(saga_ended(), after=3)]
    return recorded_as(told)


def test_a_registration_that_went_well_has_no_difference() -> None:
    assert differences_in(gone_well()) == []


def test_a_command_of_which_only_the_effect_is_there_already_is_no_difference() -> None:
    """Somebody else has activated the account in the meantime: the saga's command left nothing."""
    assert differences_in(gone_well(actor_of_activation="operator")) == []


def test_a_difference_says_what_was_decided_then_and_what_would_be_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mail_saga, "SECOND_LOOK", timedelta(minutes=1))

    [found] = differences_in(gone_well())

    assert (found.registration_id, found.position, found.on) == (REGISTRATION, 4, "OtpIssued")
    assert found.then == "MailRequested(kind=code, serial=1, request=1, look again in 120 s)"
    assert found.now == "MailRequested(kind=code, serial=1, request=1, look again in 60 s)"
    assert found.kind == "on OtpIssued: then MailRequested, now sooner"


def test_what_would_happen_between_the_date_of_today_and_that_of_then_is_a_difference_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mail_saga, "SECOND_LOOK", timedelta(minutes=1))

    [_, found] = differences_in(gone_well(mailed_after=90))

    assert (found.on, found.then) == ("DeadlineReached", "nothing")
    assert found.now.startswith("MailRequested(kind=code, serial=1, request=2, look again in 120 s) at ")


# --- What this knows of the saga --------------------------------------------------------------


def test_the_figures_are_those_that_the_decisions_use() -> None:
    source = Path(mail_saga.__file__).read_text(encoding="utf-8")

    assert set(re.findall(r"policy\.(\w+)", source)) == set(FIGURES)


def test_the_effect_of_every_command_of_the_saga_is_known() -> None:
    source = Path(mail_saga.__file__).read_text(encoding="utf-8")
    commands = {
        kind.__name__ for kind in (ActivateAccount, CancelRegistration, ReleaseEmail, ReplaceStaleCode, RevokeOtp)
    }

    assert {kind.__name__ for kind in EFFECTS} == commands
    imported = re.search(r"from application\.commands import \(([^)]*)\)", source)
    assert imported is not None
    assert {name.strip(" ,") for name in imported[1].split()} - {"Command"} == {f"{name}" for name in commands}
