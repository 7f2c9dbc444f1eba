"""What other services hear of a registration: our public contract, as CloudEvents 1.0 (https://cloudevents.io).

It is not the log: a few facts, nothing personal, no code, and nothing by which a registration for an address that is
taken already could be told from any other. Who needs to know more asks for it, by the registration's id.

Of a type nothing is taken away and nothing changes its meaning; what is added may be passed over. Anything else is a
type of the next version, published beside the old one.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar, Final, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from domain.mail_outcome import CancelReason
from domain.recorded import Position, Recorded
from domain.registration import Registration

CONTENT_TYPE: Final = "application/cloudevents+json"
"""Structured mode: the attributes stand in the body, so that they outlive any broker's headers."""

CONTRACT_VERSION: Final = "1.0.0"
"""Of all the types together: the second figure counts what was added, the first what was replaced."""

Reason = Literal["unproven", "undeliverable", "withdrawn"]

_REASONS: Final[Mapping[str, Reason]] = {
    CancelReason.EXPIRED: "unproven",
    CancelReason.GUESSED: "unproven",
    CancelReason.UNDELIVERABLE: "undeliverable",
    CancelReason.DISCARDED: "undeliverable",
}
"""All others are "withdrawn": whether by an operator, by an erasure or by somebody who registered the same address
again is nobody else's business."""


# --- The data -------------------------------------------------------------------------------------


class RegistrationReference(BaseModel):
    """Which registration, and since when."""

    model_config = ConfigDict(frozen=True)

    registration_id: UUID = Field(description="the same in all events of one registration")
    position: Position = Field(
        ge=1,
        description="rises from event to event; `GET /v1/registrations/{id}?min_position=` waits until the answer"
        " includes this one",
    )


class Cancellation(RegistrationReference):
    """Which registration, and why it was undone."""

    reason: Reason = Field(
        description="`unproven`: the address was not proved in time, or not within the tries;"
        " `undeliverable`: no mail server took the mail; `withdrawn`: anything else"
    )


# --- The events -----------------------------------------------------------------------------------


def _without_default(schema: dict[str, Any]) -> None:
    del schema["default"]


class IntegrationEvent(BaseModel):
    """The envelope: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md."""

    model_config = ConfigDict(frozen=True)

    ROUTING_KEY: ClassVar[str]

    specversion: Literal["1.0"]
    id: str = Field(description="the same for every copy of one event: what was seen before is to be passed over")
    source: Literal["/registrar"]
    type: str
    subject: UUID = Field(description="the registration's id")
    time: datetime = Field(description="when it was recorded; order is told by `position`")
    datacontenttype: Literal["application/json"]
    correlationid: UUID = Field(description="the same for everything that followed from one request")
    traceparent: str | SkipJsonSchema[None] = Field(
        default=None,
        description="W3C Trace Context of the request, where it has one",
        json_schema_extra=_without_default,
    )
    data: RegistrationReference


class RegistrationAccepted(IntegrationEvent):
    """Somebody asked for an account. The address is not proved, and may never be."""

    ROUTING_KEY = "registration.accepted"
    type: Literal["registrar.registration.accepted.v1"]


class RegistrationVerified(IntegrationEvent):
    """The registrant proved to read mail at the address."""

    ROUTING_KEY = "registration.verified"
    type: Literal["registrar.registration.verified.v1"]


class RegistrationActivated(IntegrationEvent):
    """The account may be used."""

    ROUTING_KEY = "registration.activated"
    type: Literal["registrar.registration.activated.v1"]


class RegistrationCancelled(IntegrationEvent):
    """The registration was undone; of an account, if it was active, because it is being erased."""

    ROUTING_KEY = "registration.cancelled"
    type: Literal["registrar.registration.cancelled.v1"]
    data: Cancellation


class RegistrationErased(IntegrationEvent):
    """The personal data is destroyed: whoever has copied some is to delete it as well."""

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
    Registration.PersonalDataErased.TOPIC,
)
"""Of the domain events that others hear of."""


def integration_event(recorded: Recorded) -> IntegrationEvent | None:
    """What others hear of a domain event; None if it is not for them. The same event gives the same bytes."""
    match recorded.event:
        case Registration.UserRegistered():
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
        # Not the position alone: after a restore of older data it may be another registration's.
        "id": f"{registration_id}.{recorded.position}",
        "source": "/registrar",
        "subject": registration_id,
        "time": recorded.recorded_at,
        "datacontenttype": "application/json",
        "correlationid": recorded.correlation_id,
        "traceparent": recorded.trace,
        "data": RegistrationReference(**_reference(recorded)),
    }


def _reference(recorded: Recorded) -> dict[str, Any]:
    return {"registration_id": recorded.event.originator_id, "position": recorded.position}
