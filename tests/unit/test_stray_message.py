"""What is kept of a foreign message: once, however often it comes, until an operator has seen it."""

from uuid import uuid4

from domain.stray_message import StrayMessage
from tests.support.facts import DIGEST, STRAY, T0, given, recorded, stray_discarded, stray_kept


def kept(digest: str = DIGEST) -> StrayMessage:
    return StrayMessage.keep(
        digest=digest,
        reason="not-a-mail-request",
        died_of="rejected",
        size=42,
        content_type="application/json",
        fields="kind,serial",
        other_fields=3,
        now=T0,
    )


def test_keeping_a_message_begins_its_stream() -> None:
    message = kept()

    assert recorded(message) == [stray_kept()]
    assert (message.id, message.version, message.discarded) == (STRAY, 1, False)


def test_a_message_has_the_same_stream_however_often_it_comes_and_another_one_another() -> None:
    assert kept().id == kept().id
    assert kept(digest="a0" * 32).id != STRAY
    assert StrayMessage.stream_id(str(uuid4())) != STRAY


def test_discarding_is_recorded_once() -> None:
    message = given(StrayMessage, stray_kept(), stream_id=STRAY)

    message.discard(now=T0)
    message.discard(now=T0)

    assert recorded(message) == [stray_discarded()]
    assert message.discarded


def test_discarding_what_was_discarded_before_records_nothing() -> None:
    message = given(StrayMessage, stray_kept(), stray_discarded(), stream_id=STRAY)

    message.discard(now=T0)

    assert recorded(message) == []


def test_a_message_is_the_same_when_read_back_from_its_events() -> None:
    message = kept()
    message.discard(now=T0)

    again = given(StrayMessage, *recorded(message), stream_id=STRAY)

    assert vars(again).keys() == vars(message).keys()
    assert (again.digest, again.reason, again.died_of, again.size) == (DIGEST, "not-a-mail-request", "rejected", 42)
    assert (again.content_type, again.fields, again.other_fields) == ("application/json", "kind,serial", 3)
    assert (again.discarded, again.version) == (True, 2)
