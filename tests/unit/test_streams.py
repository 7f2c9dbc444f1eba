"""Events that we make and encode ourselves are those that the library would have made."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from eventsourcing.domain import Aggregate, AggregateCreated, AggregateEvent
from eventsourcing.persistence import Mapper

from domain.email_claim import EmailClaim
from domain.mail_saga import MailSaga
from domain.mailbox import Mailbox
from domain.registration import Registration
from domain.streams import begin, made, record
from infrastructure.event_store.codec import EventCodec, EventTranscoder, event_classes
from tests.support.facts import REGISTRATION, T0

ANYTHING: dict[str, Any] = {
    "claim_id": str(REGISTRATION),
    "registration_id": str(REGISTRATION),
    "duplicate_of": None,
    "originator_id": REGISTRATION,
    "originator_version": 1,
    "timestamp": T0,
    "granted": [],
    "applicants": [],
    "serial": 1,
    "withheld": True,
    "mailbox_id": str(REGISTRATION),
    "kind": "code",
}


def fields_of(kind: type[AggregateEvent]) -> dict[str, Any]:
    """Some value for each field, not in the order of the fields."""
    fields = [(field.name, T0 if "datetime" in str(field.type) else field.name) for field in dataclasses.fields(kind)]
    return {name: ANYTHING.get(name, value) for name, value in reversed(fields)}


def own_fields_of(kind: type[AggregateEvent]) -> dict[str, Any]:
    inherited = {field.name for field in dataclasses.fields(AggregateCreated)}
    return {name: value for name, value in fields_of(kind).items() if name not in inherited}


@pytest.mark.parametrize("topic", sorted(event_classes()))
def test_an_event_is_what_its_constructor_makes(topic: str) -> None:
    kind: Any = event_classes()[topic]
    fields = fields_of(kind)

    event = made(kind, fields)

    assert event == kind(**fields)
    assert list(vars(event)) == list(vars(kind(**fields)))  # the order in which they are stored


@pytest.mark.parametrize("topic", sorted(event_classes()))
def test_an_event_is_stored_as_the_library_stores_it(topic: str) -> None:
    kind: Any = event_classes()[topic]
    event = kind(**fields_of(kind))

    assert EventCodec().encode(event) == Mapper(EventTranscoder()).to_stored_event(event)


@pytest.mark.parametrize("fault", ["too few", "too many", "another"])
def test_an_event_with_other_fields_is_refused(fault: str) -> None:
    fields = fields_of(Registration.CodeRejected)
    if fault != "too many":
        del fields["attempt"]
    if fault != "too few":
        fields["attempts"] = 1

    with pytest.raises(TypeError, match=r"CodeRejected has the fields .*attempt"):
        made(Registration.CodeRejected, fields)


@pytest.mark.parametrize(
    ("kind", "created", "name"),
    [
        (Registration, Registration.UserRegistered, "registration"),
        (EmailClaim, EmailClaim.EmailClaimed, "email_claim"),
        (Mailbox, Mailbox.MailDecided, "mailbox"),
        (MailSaga, MailSaga.MailSagaStarted, "mail_saga"),
    ],
)
def test_a_stream_begins_as_the_library_folds_its_first_event(
    kind: type[Aggregate], created: type[AggregateCreated], name: str
) -> None:
    begun = begin(kind, created, name=name, stream_id=REGISTRATION, now=T0, **own_fields_of(created))

    [first] = begun.collect_events()
    folded: Any = first.mutate(None)
    assert begun == folded
    assert list(vars(begun)) == list(vars(folded))


def test_a_further_event_is_what_the_library_triggers() -> None:
    def issued(how: Any) -> Registration:
        created = Registration.UserRegistered
        one = begin(
            Registration, created, name="registration", stream_id=REGISTRATION, now=T0, **own_fields_of(created)
        )
        how(one)
        return one

    fields = own_fields_of(Registration.OtpIssued)
    ours = issued(lambda one: record(one, Registration.OtpIssued, now=T0, **fields))
    theirs = issued(lambda one: one.trigger_event(Registration.OtpIssued, timestamp=T0, **fields))

    assert ours == theirs  # also in their pending events
    assert ours.withheld == {1}
