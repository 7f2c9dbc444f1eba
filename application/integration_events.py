"""Integration events: what is published for other services, as CloudEvents 1.0 (https://cloudevents.io).

A public contract, and not the log: a few facts, nothing personal, no code, and nothing by which a registration for an
address that is already taken could be told apart from any other. A service that needs more queries the API by id.

Within a type, no field is removed and none changes its meaning; subscribers must ignore fields that they do not know.
Any other change is a new version of the type, published beside the old one.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar, Final, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from domain.mail_outcome import CancelReason
from domain.recorded import TRACEPARENT, Position, Recorded
from domain.registration import Registration
from domain.synthetic import is_synthetic

CONTENT_TYPE: Final = "application/cloudevents+json"
"""Structured mode: the attributes are in the body, so they survive brokers that drop headers."""

CONTRACT_VERSION: Final = "1.0.0"
"""Of all types together: the second number counts additions, the first replacements."""

Reason = Literal["unproven", "undeliverable", "withdrawn"]

_REASONS: Final[Mapping[str, Reason]] = {
    CancelReason.EXPIRED: "unproven",
    CancelReason.GUESSED: "unproven",
    CancelReason.UNDELIVERABLE: "undeliverable",
    CancelReason.DISCARDED: "undeliverable",
}
"""All others are "withdrawn": other services do not need to know whether that was an operator, an erasure or somebody
who registered the same address again."""


# --- The data -------------------------------------------------------------------------------------


class RegistrationReference(BaseModel):
    """Which registration, and the event's position in the log."""

    model_config = ConfigDict(frozen=True)

    registration_id: UUID = Field(description="the same in all events of one registration")
    position: Position = Field(
        ge=1,
        description="increases from event to event; `GET /v1/registrations/{id}?min_position=` waits until the response"
        " includes this one",
    )


class Cancellation(RegistrationReference):
    """Which registration, and why it was undone."""

    reason: Reason = Field(
        description="`unproven`: the address was not verified in time, or not within the allowed tries;"
        " `undeliverable`: no mail server accepted the mail; `withdrawn`: anything else"
    )


# --- The events -----------------------------------------------------------------------------------


def _without_default(schema: dict[str, Any]) -> None:
    del schema["default"]


class IntegrationEvent(BaseModel):
    """The envelope: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md."""

    model_config = ConfigDict(frozen=True)

    ROUTING_KEY: ClassVar[str]

    specversion: Literal["1.0"]
    id: str = Field(description="the same for every copy of one event: ignore ids that you have seen before")
    source: Literal["/registrar"]
    type: str
    subject: UUID = Field(description="the registration's id")
    time: datetime = Field(description="when it was recorded; the order is that of `position`")
    datacontenttype: Literal["application/json"]
    correlationid: UUID = Field(description="the same for everything that followed from one request")
    traceparent: str | SkipJsonSchema[None] = Field(
        default=None,
        description="W3C Trace Context of the request, if it has one",
        json_schema_extra=_without_default,
    )
    data: RegistrationReference


class RegistrationAccepted(IntegrationEvent):
    """Somebody asked for an account, or an operator has reopened a registration that was cancelled. The address is not
    verified, and may never be."""

    ROUTING_KEY = "registration.accepted"
    type: Literal["registrar.registration.accepted.v1"]


class RegistrationVerified(IntegrationEvent):
    """The registrant proved that they can read mail sent to the address."""

    ROUTING_KEY = "registration.verified"
    type: Literal["registrar.registration.verified.v1"]


class RegistrationActivated(IntegrationEvent):
    """The account may be used."""

    ROUTING_KEY = "registration.activated"
    type: Literal["registrar.registration.activated.v1"]


class RegistrationCancelled(IntegrationEvent):
    """The registration was undone. An active account is cancelled only because it is being erased."""

    ROUTING_KEY = "registration.cancelled"
    type: Literal["registrar.registration.cancelled.v1"]
    data: Cancellation


class RegistrationErased(IntegrationEvent):
    """The personal data is destroyed: services that have copies must delete them as well."""

    ROUTING_KEY = "registration.erased"
    type: Literal["registrar.registration.erased.v1"]


INTEGRATION_EVENTS: Final[tuple[type[IntegrationEvent], ...]] = (
    RegistrationAccepted,
    RegistrationVerified,
    RegistrationActivated,
    RegistrationCancelled,
    RegistrationErased,
)

TOPICS: Final = (
    Registration.UserRegistered.TOPIC,
    Registration.EmailVerified.TOPIC,
    Registration.AccountActivated.TOPIC,
    Registration.RegistrationCancelled.TOPIC,
    Registration.RegistrationReopened.TOPIC,
    Registration.PersonalDataErased.TOPIC,
)
"""Topics of the domain events that have an integration event."""


def integration_event(recorded: Recorded) -> IntegrationEvent | None:
    """The integration event for a domain event, None if it has none, as none of a synthetic registration has. The same
    event gives the same bytes."""
    if is_synthetic(recorded.event.originator_id):
        return None
    match recorded.event:
        case Registration.UserRegistered() | Registration.RegistrationReopened():
            return RegistrationAccepted(type="registrar.registration.accepted.v1", **_envelope(recorded))
        case Registration.EmailVerified():
            return RegistrationVerified(type="registrar.registration.verified.v1", **_envelope(recorded))
        case Registration.AccountActivated():
            return RegistrationActivated(type="registrar.registration.activated.v1", **_envelope(recorded))
        case Registration.RegistrationCancelled(reason=reason):
            return RegistrationCancelled(
                type="registrar.registration.cancelled.v1",
                **_envelope(recorded)
                | {"data": Cancellation(**_reference(recorded), reason=_REASONS.get(reason, "withdrawn"))},
            )
        case Registration.PersonalDataErased():
            return RegistrationErased(type="registrar.registration.erased.v1", **_envelope(recorded))
        case _:
            return None


def encode(event: IntegrationEvent) -> bytes:
    """The event in CloudEvents' JSON format."""
    return event.model_dump_json(exclude_none=True).encode()


def _envelope(recorded: Recorded) -> dict[str, Any]:
    registration_id = recorded.event.originator_id
    return {
        "specversion": "1.0",
        # Not the position alone: after a restore from a backup it may be that of another registration.
        "id": f"{registration_id}.{recorded.position}",
        "source": "/registrar",
        "subject": registration_id,
        "time": recorded.recorded_at,
        "datacontenttype": "application/json",
        "correlationid": recorded.correlation_id,
        "traceparent": _traceparent(recorded.trace or ""),
        "data": RegistrationReference(**_reference(recorded)),
    }


def _traceparent(trace: str) -> str | None:
    """Without the `tracestate` that may follow; None: it is none."""
    found = TRACEPARENT.fullmatch(trace.partition(" ")[0])
    return None if found is None else found[0]


def _reference(recorded: Recorded) -> dict[str, Any]:
    return {"registration_id": recorded.event.originator_id, "position": recorded.position}
