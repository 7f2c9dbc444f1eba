"""What other services hear of a registration, and what they do not."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from application.integration_events import INTEGRATION_EVENTS, TOPICS, IntegrationEvent, encode, integration_event
from domain.recorded import Recorded
from domain.registration import Registration
from domain.synthetic import marked
from entrypoints.api.asyncapi import document
from entrypoints.queries.followers import followers_with
from infrastructure.settings.settings import Settings
from tests.faults.canaries import occurs
from tests.support.facts import (
    CLIENT,
    REGISTRATION,
    T0,
    Fact,
    account_activated,
    code_locked,
    code_rejected,
    email_discarded,
    email_dispatched,
    email_retry_requested,
    email_verified,
    email_withheld,
    mailbox_unknown,
    otp_issued,
    otp_revoked,
    owner_notified,
    personal_data_erased,
    registered,
    registration_cancelled,
    registration_reopened,
    saga_started,
    stream,
)

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OWNER = UUID("019cab10-0000-7000-8000-00000000000f")
DOCUMENT = Path(__file__).parents[2] / "docs" / "asyncapi.json"

HEARD_OF = {
    "accepted": registered(),
    "verified": email_verified(),
    "activated": account_activated(),
    "cancelled": registration_cancelled(),
    "erased": personal_data_erased(),
}


def recorded(fact: Fact, *, position: int = 7, trace: str | None = TRACE, actor: str = "client") -> Recorded:
    (event,) = stream(REGISTRATION, fact)
    at = T0 + timedelta(milliseconds=250)
    return Recorded(event, position, fact.event.TOPIC, at, CLIENT.correlation_id, None, actor, trace)  # type: ignore[attr-defined]


def heard(fact: Fact, **beside: Any) -> IntegrationEvent:
    found = integration_event(recorded(fact, **beside))
    assert found is not None
    return found


@pytest.mark.parametrize("what", HEARD_OF)
def test_an_event_is_a_cloud_event_of_its_own_type(what: str) -> None:
    told = json.loads(encode(heard(HEARD_OF[what])))

    reason = {"reason": "unproven"} if what == "cancelled" else {}
    assert told == {
        "specversion": "1.0",
        "id": f"{REGISTRATION}.7",
        "source": "/registrar",
        "type": f"registrar.registration.{what}.v1",
        "subject": str(REGISTRATION),
        "time": "2026-03-01T12:00:00.250000Z",
        "datacontenttype": "application/json",
        "correlationid": str(CLIENT.correlation_id),
        "traceparent": TRACE,
        "data": {"registration_id": str(REGISTRATION), "position": 7, **reason},
    }


def test_a_copy_has_the_same_bytes() -> None:
    assert encode(heard(registered())) == encode(heard(registered()))


def test_every_position_has_an_id_of_its_own() -> None:
    assert heard(email_verified(), position=7).id != heard(email_verified(), position=8).id


def test_an_event_without_a_trace_has_no_attribute_for_it() -> None:
    assert "traceparent" not in json.loads(encode(heard(registered(), trace=None)))


@pytest.mark.parametrize("state", ["", " ot=th:8"])
def test_of_a_trace_an_event_has_the_traceparent(state: str) -> None:
    assert heard(registered(), trace=f"{TRACE}{state}").traceparent == TRACE


@pytest.mark.parametrize("trace", ["", "x", TRACE[:-1], f"{TRACE}x", TRACE.upper(), f"00-{'0' * 32}{TRACE[35:]}"])
def test_what_stands_in_an_imported_log_and_is_no_trace_is_told_to_nobody(trace: str) -> None:
    assert "traceparent" not in json.loads(encode(heard(registered(), trace=trace)))


def test_a_registration_for_a_taken_address_sounds_like_any_other() -> None:
    assert encode(heard(registered(duplicate_of=OWNER))) == encode(heard(registered()))


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("expired", "unproven"),
        ("guessed", "unproven"),
        ("undeliverable", "undeliverable"),
        ("discarded", "undeliverable"),
        ("superseded", "withdrawn"),
        ("operator", "withdrawn"),
        ("erased", "withdrawn"),
        ("of a later version", "withdrawn"),
    ],
)
def test_a_cancellation_tells_no_more_than_what_kind_of_end_it_was(reason: str, told: str) -> None:
    assert json.loads(encode(heard(registration_cancelled(reason))))["data"]["reason"] == told


@pytest.mark.parametrize(
    "fact",
    [
        otp_issued(),
        otp_revoked(),
        email_dispatched(),
        email_withheld(),
        mailbox_unknown(),
        email_retry_requested(),
        email_discarded(),
        owner_notified(OWNER),
        code_rejected(),
        code_locked(),
        saga_started(),
    ],
    ids=lambda fact: fact.event.TOPIC,
)
def test_what_happens_in_between_is_nobody_elses_business(fact: Fact) -> None:
    assert integration_event(recorded(fact)) is None
    assert recorded(fact).topic not in TOPICS


def test_every_topic_that_is_read_is_told_of_under_a_routing_key_of_its_own() -> None:
    assert [heard(fact).ROUTING_KEY for fact in HEARD_OF.values()] == [f"registration.{what}" for what in HEARD_OF]
    assert {recorded(fact).topic for fact in (*HEARD_OF.values(), registration_reopened())} == set(TOPICS)
    assert {type(heard(fact)) for fact in HEARD_OF.values()} == set(INTEGRATION_EVENTS)


def test_a_reopened_registration_is_accepted_once_more() -> None:
    assert heard(registration_reopened()).ROUTING_KEY == "registration.accepted"


def test_nothing_of_the_person_and_nothing_internal_is_told() -> None:
    canaries = {
        "claim_id": "c1a1c1a1-0000-5000-8000-0000000000ca",
        "fingerprint": "canary-fingerprint",
        "personal_data": "canary@example.org",
        "locale": "qq-Canary",
        "duplicate_of": "d0d0d0d0-0000-7000-8000-0000000000ca",
    }
    register = Fact(Registration.UserRegistered, canaries)
    cancel = Fact(Registration.RegistrationCancelled, {"reason": "canary-reason"})

    told = "".join(
        encode(heard(fact, actor="canary-actor")).decode() for fact in (register, cancel, *HEARD_OF.values())
    )

    assert occurs(told, [*canaries.values(), "canary-reason", "canary-actor"]) == []


def test_the_committed_asyncapi_document_is_that_of_the_code() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == document(), "run `make asyncapi`, and look at what it changed"


def test_the_asyncapi_document_has_every_event_under_its_routing_key() -> None:
    channels = json.loads(document())["channels"]

    assert {channel["address"] for channel in channels.values()} == {event.ROUTING_KEY for event in INTEGRATION_EVENTS}


def test_the_publisher_of_events_is_missed_only_where_there_is_a_broker() -> None:
    without = Settings.from_environment({})
    with_broker = Settings.from_environment({"REGISTRAR_BROKER_URL": "amqp://localhost"})

    assert "integration-events" not in followers_with(without)
    assert tuple(name for name in followers_with(with_broker) if name != "integration-events") == followers_with(
        without
    )
    assert followers_with(with_broker).count("integration-events") == 1


@pytest.mark.parametrize("fact", HEARD_OF.values(), ids=HEARD_OF)
def test_others_hear_nothing_of_a_synthetic_registration(fact: Fact) -> None:
    of_somebody = recorded(fact)
    (event,) = stream(marked(REGISTRATION), fact)

    assert integration_event(of_somebody) is not None
    assert integration_event(of_somebody._replace(event=event)) is None
