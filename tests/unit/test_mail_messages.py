"""The message that stands for a mail: what is in it, what is taken for one, and what is told of a stranger's."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from application.ports import MailRequest, WantedMail
from domain.mail_outcome import MailKind
from infrastructure.rabbitmq.dead_letters import stray
from infrastructure.rabbitmq.mail_message import (
    MAX_BODY_BYTES,
    Malformed,
    decode,
    encode,
    headers_of,
    message_id_of,
)
from tests.support.facts import T0

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
REQUEST = MailRequest(
    wanted=WantedMail(
        registration_id=UUID("0198c0de-0000-7000-8000-000000000001"), serial=2, kind=MailKind.CODE, requested_at=T0
    ),
    position=77,
    correlation_id=UUID("0198c0de-0000-7000-8000-000000000002"),
    trace=TRACE,
)


def body(**changes: object) -> bytes:
    return json.dumps(json.loads(encode(REQUEST)) | changes).encode()


def test_a_request_comes_back_as_it_was_sent() -> None:
    assert decode(encode(REQUEST), headers=headers_of(REQUEST), correlation_id=str(REQUEST.correlation_id)) == REQUEST


def test_a_message_has_the_four_fields_of_the_contract_and_no_more() -> None:
    assert json.loads(encode(REQUEST)) == {
        "registration_id": str(REQUEST.registration_id),
        "serial": 2,
        "kind": "code",
        "requested_at": T0.isoformat(),
    }


def test_the_bytes_of_a_message_stay_the_same() -> None:
    assert encode(REQUEST) == (
        b'{"registration_id":"0198c0de-0000-7000-8000-000000000001","serial":2,"kind":"code",'
        b'"requested_at":"%s"}' % T0.isoformat().encode()
    )


def test_a_time_without_a_zone_is_meant_as_utc() -> None:
    request = decode(body(requested_at="2026-11-27T08:00:00.5"), headers={}, correlation_id=None)

    assert request.requested_at == datetime(2026, 11, 27, 8, 0, 0, 500_000, UTC)


def test_every_copy_of_a_request_has_the_same_id_and_a_later_request_another() -> None:
    assert message_id_of(REQUEST) == message_id_of(replace(REQUEST, trace=None))
    assert message_id_of(REQUEST) != message_id_of(replace(REQUEST, position=78))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"registrar-position": "77", "traceparent": 5},
        {"registrar-position": -1, "traceparent": "00-é"},
        {"registrar-position": 2**64, "traceparent": "nonsense"},
        {"registrar-position": True, "traceparent": b"bytes"},
    ],
)
def test_headers_that_are_missing_or_wrong_cost_the_trace_and_not_the_mail(headers: dict[str, Any]) -> None:
    request = decode(encode(REQUEST), headers=headers, correlation_id="no uuid")

    assert (request.registration_id, request.serial) == (REQUEST.registration_id, 2)
    assert (request.position, request.trace) == (None, None)


POISON = {
    "empty": b"",
    "not JSON": b"\x00\xff\xfe",
    "cut off": encode(REQUEST)[:-1],
    "bad UTF-8": b'{"registration_id": "\xc3\x28"}',
    "a list": b"[]",
    "deep nesting": b"[" * 2000,
    "another version": body(version=2),
    "a field too many": body(email="ada@example.com"),
    "no serial": json.dumps({"registration_id": str(REQUEST.registration_id)}).encode(),
    "serial zero": body(serial=0),
    "serial as text": body(serial="2"),
    "serial too large": body(serial=2**31),
    "serial true": body(serial=True),
    "another kind": body(kind="advertisement"),
    "no time": body(requested_at="soon"),
    "too long": body(kind="code") + b" " * MAX_BODY_BYTES,
}


@pytest.mark.parametrize("poison", POISON.values(), ids=POISON)
def test_what_is_no_request_of_ours_is_refused_in_words_of_ours(poison: bytes) -> None:
    with pytest.raises(Malformed) as refused:
        decode(poison, headers={}, correlation_id=None)

    assert refused.value.reason in {"not-a-mail-request", "too-long"}
    assert refused.value.__cause__ is None


def test_nothing_that_a_stranger_wrote_is_told_of_a_stray_message() -> None:
    told = stray(
        json.dumps({"registration_id": "x", "serial": 1, "ada@example.com": "123456"}).encode(),
        "not-a-mail-request",
        "rejected",
        "text/ada@example.com",
    )

    assert (told.fields, told.other_fields, told.content_type) == (("registration_id", "serial"), 1, None)
    assert "ada" not in told.model_dump_json()
    assert "123456" not in told.model_dump_json()


@pytest.mark.parametrize("poison", POISON.values(), ids=POISON)
def test_any_poison_can_be_described(poison: bytes) -> None:
    assert stray(poison, "not-a-mail-request", "rejected", None).size == len(poison)
