"""How events stand in the log: what was ever written must be read for ever, byte by byte.

`tests/golden/` keeps one stored event of each topic and version as it was first written. These files are never
changed, but that the meaning of an old one gains what its upcaster adds. A new version of an event class gets an
upcaster, a new file beside the old ones, and a new line below.
"""

from __future__ import annotations

import ast
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from eventsourcing import utils
from eventsourcing.domain import Aggregate, event
from eventsourcing.persistence import (
    DatetimeAsISO,
    JSONTranscoder,
    Mapper,
    MapperDeserialisationError,
    StoredEvent,
    UUIDAsHex,
)
from eventsourcing.utils import TopicError

import domain
from domain.recorded import AnyEvent
from domain.registration import Registration
from infrastructure.event_store.codec import AGGREGATES, EventCodec, event_classes
from tests.support.facts import REGISTRATION, T0, Fact, email_dispatch_failed, otp_issued, registered, stream

GOLDEN = Path(__file__).parent.parent / "golden"

PINNED = """
email_claim.email_claimed v1: registration_id: str
email_claim.email_released v1: registration_id: str
kept_answer.kept v1: request: str, registration_id: str | None, fingerprint: str, serial: int | None, status: str | None, attempts_left: int | None, details: list[str]
mail_saga.code_found_dead v1: registration_id: str, serial: int, look_again_at: datetime
mail_saga.end_awaited v1: registration_id: str, serial: int, look_again_at: datetime
mail_saga.ended v1: registration_id: str, outcome: str
mail_saga.fresh_code_asked v1: registration_id: str, serial: int, look_again_at: datetime
mail_saga.mail_requested v1: registration_id: str, kind: str, serial: int, issued_at: datetime, request: int, look_again_at: datetime
mail_saga.reopened v1: registration_id: str, ends_at: datetime
mail_saga.retry_scheduled v1: registration_id: str, serial: int, failures: int, look_again_at: datetime
mail_saga.started v1: registration_id: str, claim_id: str, kind: str, ends_at: datetime
mail_saga.undo_decided v1: registration_id: str, reason: str, look_again_at: datetime
mailbox.mail_decided v1: registration_id: str, serial: int, withheld: bool, granted: list[str], applicants: list[str]
operator.acted v1: act: str, registration_id: str | None, reason: str | None
operator.personal_data_read v1: act: str, registration_id: str, reason: str | None
parked_retry.asked v1: follower: str, parked_stream: str
password_checks.failed v1: registration_id: str, failed: int, since: datetime
rebuild.aborted v1: read_model: str
rebuild.begun v1: read_model: str
rebuild.rolled_back v1: read_model: str, position: int
rebuild.swapped v1: read_model: str, position: int, differences: int, decision: str
rebuild.version_dropped v1: read_model: str, position: int
registration.account_activated v1:
registration.code_locked v1: serial: int
registration.code_rejected v1: serial: int, attempt: int
registration.email_bounced v1: serial: int, kind: str, failure: str, permanent: bool, reply_status: str | None, reported_by: str
registration.email_complained v1: serial: int, kind: str, reported_by: str
registration.email_discarded v1: serial: int
registration.email_dispatch_failed v3: serial: int, kind: str, permanent: bool, failure: str, provider: str, attempts: int, reply_code: int | None, reply_status: str | None, outcome_unknown: bool, circuit: str | None, request_position: int | None
registration.email_dispatched v1: serial: int, kind: str, provider: str, attempts: int, reply_code: int
registration.email_retry_requested v1: serial: int
registration.email_verified v1: serial: int
registration.email_withheld v1: serial: int
registration.otp_issued v2: serial: int, reason: str, withheld: bool | None, mailbox_id: str | None
registration.otp_revoked v1: serial: int
registration.owner_notified v1: duplicate_id: str
registration.password_rehashed v1: personal_data: str
registration.password_set v1: personal_data: str
registration.personal_data_erased v1:
registration.registration_cancelled v1: reason: str
registration.registration_reopened v1: claim_id: str, personal_data: str, locale: str, duplicate_of: str | None
registration.registration_superseded v1: by: str
registration.user_imported v1: claim_id: str, personal_data: str, locale: str, verified: bool
registration.user_invited v1: claim_id: str
registration.user_registered v1: claim_id: str, fingerprint: str, personal_data: str, locale: str, duplicate_of: str | None
stray_message.discarded v1:
stray_message.kept v1: digest: str, reason: str, died_of: str, size: int, content_type: str | None, fields: str, other_fields: int
user_import.begun v1:
user_import.ended v1: accounts: int, waiting: int, already_there: int, invited: int, skipped: int
"""

PLACED = {"originator_id", "originator_version", "originator_topic", "timestamp"}
"""Fields of the library's that every event, or every first event, has."""

PRIMITIVE = {"str", "int", "bool", "datetime", "str | None", "int | None", "list[str]", "bool | None"}


def fields(kind: type[AnyEvent]) -> list[dataclasses.Field[Any]]:
    """Events are dataclasses, by the library's metaclass."""
    return list(dataclasses.fields(kind))  # type: ignore[arg-type]


def version_of(kind: type[AnyEvent]) -> int:
    return int(getattr(kind, "class_version", 1))


def signature(topic: str, kind: type[AnyEvent]) -> str:
    named = ", ".join(f"{field.name}: {field.type}" for field in fields(kind) if field.name not in PLACED)
    return f"{topic} v{version_of(kind)}: {named}".strip()


@dataclass(frozen=True)
class Golden:
    """A stored event as it was written once."""

    topic: str
    class_version: int
    stream_id: UUID
    version: int
    state: bytes
    means: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Golden:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            topic=kept["topic"],
            class_version=kept["class_version"],
            stream_id=UUID(kept["stream_id"]),
            version=kept["version"],
            state=kept["state"].encode(),
            means=kept["means"],
        )

    @staticmethod
    def path(topic: str, class_version: int) -> Path:
        return GOLDEN / f"{topic}.v{class_version}.json"


GOLDEN_FILES = sorted(GOLDEN.glob("*.json"))


def shown(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else value


# --- Approval ---------------------------------------------------------------------------------


def test_topics_versions_and_fields_of_every_event_are_as_approved() -> None:
    now = sorted(signature(topic, kind) for topic, kind in event_classes().items())

    assert now == PINNED.strip().splitlines()


def test_every_event_class_of_every_aggregate_has_a_topic_of_its_own() -> None:
    """Without one an event would be stored under its class's path, which then could never change."""
    ours = {
        member
        for aggregate in AGGREGATES
        for name, member in vars(aggregate).items()
        if isinstance(member, type) and issubclass(member, Aggregate.Event) and name not in {"Event", "Created"}
    }

    assert ours == set(event_classes().values())
    assert len(ours) == len({kind.TOPIC for kind in ours})  # type: ignore[attr-defined]


def test_every_field_is_primitive() -> None:
    types = {field.type for kind in event_classes().values() for field in fields(kind) if field.name not in PLACED}

    assert types <= PRIMITIVE


def test_no_event_has_a_field_for_a_secret_or_for_personal_data_in_clear() -> None:
    names = {field.name for kind in event_classes().values() for field in fields(kind)}

    assert names.isdisjoint({"code", "otp", "password", "password_hash", "email", "address", "name", "to", "key"})


# --- Golden files -----------------------------------------------------------------------------


def test_every_version_of_every_topic_has_a_golden_file() -> None:
    wanted = {
        Golden.path(topic, version)
        for topic, kind in event_classes().items()
        for version in range(1, version_of(kind) + 1)
    }

    assert set(GOLDEN_FILES) == wanted


@pytest.mark.parametrize("path", GOLDEN_FILES, ids=lambda path: path.stem)
def test_what_was_once_written_is_read_for_ever(path: Path) -> None:
    golden = Golden.read(path)

    decoded = EventCodec().decode(golden.stream_id, golden.version, golden.topic, golden.state)

    assert type(decoded) is event_classes()[golden.topic]
    assert (decoded.originator_id, decoded.originator_version) == (golden.stream_id, golden.version)
    assert {name: shown(value) for name, value in vars(decoded).items() if name not in PLACED - {"timestamp"}} == (
        golden.means
    )


@pytest.mark.parametrize("path", GOLDEN_FILES, ids=lambda path: path.stem)
def test_the_current_version_is_written_as_it_was_the_first_time(path: Path) -> None:
    golden = Golden.read(path)
    decoded = EventCodec().decode(golden.stream_id, golden.version, golden.topic, golden.state)
    if golden.class_version < version_of(type(decoded)):
        return

    made_anew = type(decoded)(**vars(decoded))

    for same in (decoded, made_anew):
        assert EventCodec().encode(same) == StoredEvent(golden.stream_id, golden.version, golden.topic, golden.state)


@pytest.mark.parametrize("path", GOLDEN_FILES, ids=lambda path: path.stem)
def test_a_stock_application_of_the_library_reads_our_events(path: Path) -> None:
    golden = Golden.read(path)
    transcoder = JSONTranscoder()
    transcoder.register(UUIDAsHex())
    transcoder.register(DatetimeAsISO())
    stored = StoredEvent(golden.stream_id, golden.version, golden.topic, golden.state)

    event_classes()  # tells the library their topics; an earlier test need not have done so in this process
    theirs = Mapper[UUID](transcoder).to_domain_event(stored)

    assert theirs == EventCodec().decode(golden.stream_id, golden.version, golden.topic, golden.state)


def test_the_golden_events_of_a_registration_can_still_be_replayed() -> None:
    order = ["user_registered", "otp_issued", "email_dispatched", "email_verified", "account_activated"]
    aggregate: Any = None

    for version, name in enumerate(order, start=1):
        golden = Golden.read(Golden.path(f"registration.{name}", 1))
        aggregate = EventCodec().decode(golden.stream_id, version, golden.topic, golden.state).mutate(aggregate)

    assert isinstance(aggregate, Registration)
    assert aggregate.status.value == "ACTIVE"
    assert aggregate.claim_id == UUID("c1a10000-0000-5000-8000-000000000001")


# --- The codec --------------------------------------------------------------------------------


@pytest.fixture
def fresh_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process that has recorded nothing yet: the library knows topics only of what it was told."""
    monkeypatch.setattr(utils, "_topic_cache", dict[str, Any]())
    monkeypatch.setattr(utils, "_type_cache", dict[Any, str]())
    event_classes.cache_clear()
    yield
    event_classes.cache_clear()


@pytest.mark.usefixtures("fresh_process")
@pytest.mark.parametrize("path", GOLDEN_FILES, ids=lambda path: path.stem)
def test_a_process_that_has_recorded_nothing_reads_every_event(path: Path) -> None:
    golden = Golden.read(path)

    decoded = EventCodec().decode(golden.stream_id, golden.version, golden.topic, golden.state)

    assert type(decoded) is event_classes()[golden.topic]


@pytest.mark.parametrize(
    "fact",
    [
        registered(personal_data='äöü \u2028 \U0001f40e " \\ \x00 </script>', duplicate_of=REGISTRATION),
        email_dispatch_failed(reply_code=None, reply_status=None),
        otp_issued(2**62, at=datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)),
        otp_issued(at=datetime(2026, 3, 1, 12, tzinfo=timezone(timedelta(hours=5, minutes=30)))),
    ],
)
def test_what_is_written_is_read_again(fact: Any) -> None:
    codec = EventCodec()
    [written] = stream(REGISTRATION, fact)

    stored = codec.encode(written)

    assert codec.decode(REGISTRATION, written.originator_version, stored.topic, stored.state) == written


def test_a_topic_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(TopicError):
        EventCodec().decode(REGISTRATION, 1, "registration.never_heard_of", b"{}")


@pytest.mark.parametrize(
    "state",
    [
        *(b"", b"{", b"[]", b"null", b'"text"', b"\xff"),
        b'{"timestamp":{"_type_":"datetime_iso"}}',
        pytest.param(b'{"reason":' * 10_000, id="too deep"),
    ],
)
def test_a_state_that_is_not_what_was_written_is_an_error(state: bytes) -> None:
    with pytest.raises(MapperDeserialisationError):
        EventCodec().decode(REGISTRATION, 2, "registration.otp_issued", state)


def test_a_later_release_may_have_written_what_this_one_does_not_know() -> None:
    codec = EventCodec()
    stored = codec.encode(stream(REGISTRATION, otp_issued())[0])
    later = json.loads(stored.state) | {
        "class_version": 99,
        "note_until": {"_type_": "datetime_iso", "_data_": str(T0)},
    }

    decoded = codec.decode(REGISTRATION, 1, stored.topic, json.dumps(later).encode())

    assert type(decoded) is Registration.OtpIssued
    assert vars(decoded)["note_until"] == T0


# --- Upcasting --------------------------------------------------------------------------------


class Parcel(Aggregate, created_event_name="Sent"):
    """A toy: its event got a second version (grams instead of kilograms) and a third (a carrier)."""

    class Sent(Aggregate.Created):
        TOPIC = "parcel.sent"

    class Weighed(Aggregate.Event):
        TOPIC = "parcel.weighed"
        class_version = 3
        grams: int
        carrier: str

        @staticmethod
        def upcast_v1_v2(state: dict[str, Any]) -> None:
            state["grams"] = state.pop("kilograms") * 1000

        @staticmethod
        def upcast_v2_v3(state: dict[str, Any]) -> None:
            state["carrier"] = "post"

    def __init__(self) -> None:
        self.grams = 0
        self.carrier = ""

    @event(Weighed)
    def weigh(self, grams: int, carrier: str) -> None:
        self.grams = grams
        self.carrier = carrier


@pytest.fixture
def knows_parcels() -> Iterator[None]:
    utils.register_topic("parcel.weighed", Parcel.Weighed)
    yield
    utils._topic_cache.pop("parcel.weighed", None)


def weighed(grams: int, carrier: str) -> AnyEvent:
    fact = Fact(Parcel.Weighed, {"grams": grams, "carrier": carrier})
    return stream(REGISTRATION, fact, after=1)[0]


TIMESTAMP = '"timestamp":{"_type_":"datetime_iso","_data_":"2026-03-01T12:00:00+00:00"}'


@pytest.mark.usefixtures("knows_parcels")
@pytest.mark.parametrize(
    ("state", "grams", "carrier"),
    [
        (f'{{{TIMESTAMP},"kilograms":2}}', 2000, "post"),
        (f'{{{TIMESTAMP},"grams":1500,"class_version":2}}', 1500, "post"),
        (f'{{{TIMESTAMP},"grams":1500,"carrier":"drone","class_version":3}}', 1500, "drone"),
    ],
    ids=["version 1", "version 2", "version 3"],
)
def test_old_versions_are_brought_up_to_date_as_they_are_read(state: str, grams: int, carrier: str) -> None:
    decoded = EventCodec().decode(REGISTRATION, 2, "parcel.weighed", state.encode())

    assert decoded == weighed(grams, carrier)


@pytest.mark.usefixtures("knows_parcels")
def test_a_new_version_is_written_with_its_number() -> None:
    written = weighed(5, "post")

    stored = EventCodec().encode(written)

    assert stored.topic == "parcel.weighed"
    assert json.loads(stored.state)["class_version"] == 3
    assert EventCodec().decode(REGISTRATION, 2, stored.topic, stored.state) == written


# --- What an event does -----------------------------------------------------------------------


def test_no_event_method_has_a_default() -> None:
    # Where the event class lacks a field for an argument, the library drops the argument, and a default takes its
    # place.
    named = {
        f"{path.name}: {method.name}": ast.unparse(method.args)
        for path in Path(domain.__path__[0]).rglob("*.py")
        for method in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef)
        and any("event" in ast.unparse(one).split("(")[0].split(".") for one in method.decorator_list)
    }
    assert len(named) > 20
    assert {method: arguments for method, arguments in named.items() if "=" in arguments} == {}
