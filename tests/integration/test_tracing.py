"""One trace from the request to the mail server's reply, as a real collector gets it from real processes."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest

from application.commands import RegisterUser
from application.ports import Context
from application.story.telling import lines
from entrypoints.queries.explanations import ExplainQueries
from infrastructure.settings.settings import Settings
from infrastructure.telemetry.trace_context import trace_id_of
from tests.faults.canaries import occurs, shown
from tests.faults.evidence import MASTER_KEY
from tests.faults.fleet import TOKEN, Fleet
from tests.support.broker import spy_on_dead_letters, until_up
from tests.support.collector import Collector, Seen, collecting
from tests.support.facts import MovableClock, eventually
from tests.support.log import query
from tests.support.mail import code_in, until_recorded
from tests.support.service import Service, open_service
from tests.support.smtp_stub import SmtpStub

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
INTERNAL, SERVER, CLIENT, PRODUCER, CONSUMER = range(1, 6)

MAILS = "registrar:mail.requested"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture
async def stub() -> AsyncIterator[SmtpStub]:
    async with SmtpStub() as stub:
        yield stub


@asynccontextmanager
async def running(
    dsn: str,
    stub: SmtpStub,
    collector: Collector,
    *,
    clock: MovableClock | None = None,
    works: bool = False,
    **settings: str,
) -> AsyncIterator[Service]:
    async def at_once(_: float) -> None:
        """The waits between the tries of one mail are not waited for here."""

    with tempfile.TemporaryDirectory() as directory:
        chosen = {
            "database_url": dsn,
            "master_key": MASTER_KEY,
            "data_dir": directory,
            "smtp_urls": f"smtp://127.0.0.1:{stub.port}",
            "otlp_endpoint": collector.url,
        } | settings
        environment = {f"REGISTRAR_{name.upper()}": value for name, value in chosen.items()}
        async with open_service(
            Settings.from_environment(environment), follows=True, works=works, clock=clock, sleep=at_once
        ) as service:
            yield service


async def register(service: Service, trace: str | None = TRACE) -> UUID:
    context = Context("client", uuid4(), trace=trace)
    answer = await service.handlers.handle(RegisterUser(email="ada@example.com", name="Ada Lovelace"), context)
    return answer.subject_id


def way_to(last: Seen, spans: list[Seen]) -> list[tuple[str, str, int]]:
    """Service, name and kind of each span from the first one of a trace down to this one."""
    by_id = {span.span_id: span for span in spans}
    way = [last]
    while way[-1].parent_id in by_id:
        way.append(by_id[way[-1].parent_id])
    return [(span.service, span.name, span.kind) for span in reversed(way)]


async def test_a_registration_is_one_trace_through_every_process_the_broker_and_the_mail_server(
    dsn: str, broker_url: str, stub: SmtpStub, collector: Collector, tmp_path: Path, reached_directory: Path
) -> None:
    fleet = Fleet(
        dsn,
        stub.port,
        directory=tmp_path,
        reached=reached_directory,
        broker_url=broker_url,
        otlp_endpoint=collector.url,
    )
    person = {"email": "ada@example.com", "name": "Ada Lovelace", "password": "correct horse battery"}
    async with fleet, httpx.AsyncClient() as http:
        api = await fleet.serve()
        await fleet.process()
        await fleet.work()
        begun = await http.post(
            f"{api.url}/v1/registrations",
            json=person,
            headers={"traceparent": TRACE, "tracestate": "x=Lovelace,ot=th:8"},
        )
        assert begun.status_code == 202
        await until_recorded(dsn, "mail_saga.end_awaited")
        await collector.until("publish registrar.events:registration.accepted")
    [mail] = stub.mails

    spans = collector.traced(TRACE[3:35])
    # One tree: each span but the request's hangs on another one, and that on the client's.
    ids = {span.span_id for span in spans}
    assert [span.name for span in spans if span.parent_id not in ids] == ["POST /v1/registrations"]
    assert spans[0].parent_id == TRACE[36:52]

    [smtp] = [span for span in spans if span.name == "smtp"]
    assert way_to(smtp, spans) == [
        ("registrar-serve", "POST /v1/registrations", SERVER),
        ("registrar-process", "mail-saga decide", INTERNAL),
        ("registrar-process", f"publish {MAILS}", PRODUCER),
        ("registrar-work", f"consume {MAILS}:registrar.mail", CONSUMER),
        ("registrar-work", "smtp", CLIENT),
    ]
    assert smtp.attributes == {
        "network.protocol.name": "smtp",
        "server.address": "127.0.0.1",
        "server.port": stub.port,
        "smtp.reply_code": 250,
    }
    # What the worker recorded, and what the saga decided on that, goes on below it.
    last = [span for span in spans if span.name == "mail-saga decide"][-1]
    assert last.attributes["registrar.event"] == "registration.email_dispatched"
    assert way_to(last, spans)[-2:] == [
        ("registrar-work", f"consume {MAILS}:registrar.mail", CONSUMER),
        ("registrar-process", "mail-saga decide", INTERNAL),
    ]
    assert [span.service for span in spans if span.name == "append events"] == ["registrar-serve", "registrar-work"]
    [event] = [span for span in spans if span.name == "publish registrar.events:registration.accepted"]
    assert (event.service, event.kind, event.parent_id) == ("registrar-process", PRODUCER, spans[0].span_id)

    consume = next(span for span in spans if span.kind == CONSUMER)
    publish = next(span for span in spans if span.name == f"publish {MAILS}")
    assert {name: value for name, value in consume.attributes.items() if name.startswith("messaging.")} == {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "consume",
        "messaging.operation.type": "process",
        "messaging.destination.name": f"{MAILS}:registrar.mail",
        "messaging.rabbitmq.destination.routing_key": "mail.requested",
        "messaging.message.id": publish.attributes["messaging.message.id"],
        "messaging.message.conversation_id": begun.headers["registrar-request-id"],
    }
    assert (publish.attributes["messaging.operation.name"], publish.attributes["messaging.operation.type"]) == (
        "publish",
        "send",
    )
    assert consume.links == ((publish.trace_id, publish.span_id),)

    # The log leads from the event to the trace, with as much of the client's `tracestate` as sampling needs.
    rows = await query(dsn, "SELECT topic, trace_context FROM events ORDER BY notification_id")
    assert {row[1][3:35] for row in rows} == {TRACE[3:35]}
    assert {row[1][55:] for row in rows} == {" ot=th:8"}

    told = b"".join(collector.bodies).decode("latin-1")
    assert occurs(told, [*person.values(), "Lovelace", TOKEN, MASTER_KEY]) == []
    assert shown([code_in(mail)], told) == []


async def test_without_a_broker_the_mail_is_delivered_in_the_same_trace(
    dsn: str, stub: SmtpStub, collector: Collector
) -> None:
    async with running(dsn, stub, collector) as service:
        await register(service)
        await until_recorded(dsn, "mail_saga.end_awaited")
    spans = collector.traced(TRACE[3:35])
    [smtp] = [span for span in spans if span.name == "smtp"]
    assert [name for _, name, _ in way_to(smtp, spans)] == ["mail-saga decide", "deliver mail", "smtp"]
    assert {span.service for span in spans} == {"registrar-process"}
    assert sorted(span.parent_id not in {one.span_id for one in spans} for span in spans)[-2:] == [True, True]


async def test_a_retry_is_a_trace_of_its_own_linked_both_ways_and_an_error_is_kept_though_nothing_is_sampled(
    dsn: str, stub: SmtpStub, collector: Collector, clock: MovableClock
) -> None:
    stub.at("rcpt", "450 4.2.0 try later", times=3)
    async with running(dsn, stub, collector, clock=clock, trace_ratio="0") as service:
        unsampled = f"{TRACE[:-1]}0"
        registration_id = await register(service, unsampled)
        await until_recorded(dsn, "mail_saga.retry_scheduled")
        clock.move(timedelta(minutes=1))
        await until_recorded(dsn, "mail_saga.end_awaited")
        explained = await ExplainQueries(service.pool, service.keyring).explanation(registration_id)
    first = collector.traced(TRACE[3:35])

    # Nothing was sampled until the mail server refused; from there on all is kept.
    assert [span.name for span in first if span.is_error] == ["smtp", "smtp", "smtp"]
    assert {span.attributes["error.type"] for span in first if span.is_error} == {"greylisted"}
    assert [span.name for span in first if not span.is_error] == [
        "deliver mail",
        "append events",
        "mail-saga decide",
        "mail-saga deadline",
    ]

    deadline = first[-1]
    [(retry, root_id)] = deadline.links
    second = collector.traced(retry)
    root = second[0]
    assert (root.span_id, root.parent_id, root.name) == (root_id, "", "mail-saga decide")
    decided = next(span for span in first if span.name == "mail-saga decide")
    assert root.links == ((TRACE[3:35], decided.span_id),)
    assert deadline.parent_id == decided.span_id
    assert {"deliver mail", "smtp"} <= {span.name for span in second}
    assert not [span for span in second if span.is_error]

    # What is recorded of an error says to other processes, too, that what follows is to be kept.
    rows = await query(
        dsn,
        "SELECT trace_context FROM events WHERE topic IN ('registration.otp_issued', 'registration.email_dispatch_failed')",
    )
    assert [row[0][-2:] for row in rows] == ["00", "01"]

    # The log knows both, and so does the story that operators are told.
    rows = await query(dsn, "SELECT trace_context FROM events WHERE topic = 'registration.email_dispatched'")
    assert [trace_id_of(row[0]) for row in rows] == [retry]
    told = "\n".join(lines(explained.story))
    assert told.count(f"trace {TRACE[3:35]}") == 1
    assert told.count(f"trace {retry}") == 1


async def test_a_dead_letter_is_in_the_trace_of_the_mail_that_died_and_so_is_what_follows_from_it(
    dsn: str, broker_url: str, stub: SmtpStub, collector: Collector
) -> None:
    async with running(dsn, stub, collector, broker_url=broker_url, message_ttl="1") as service:
        await until_up(service)
        async with spy_on_dead_letters(broker_url) as dead:
            await register(service)
            await eventually(lambda: dead)
    async with running(dsn, stub, collector, broker_url=broker_url, works=True):
        await until_recorded(dsn, "mail_saga.retry_scheduled")
    spans = collector.traced(TRACE[3:35])
    consume = next(span for span in spans if span.name == "consume registrar.dlx:mail.failed:registrar.mail.failed")
    publish = next(span for span in spans if span.name == f"publish {MAILS}")

    assert (consume.kind, consume.parent_id) == (CONSUMER, publish.span_id)
    assert consume.links == ((publish.trace_id, publish.span_id),)
    assert consume.attributes["messaging.message.id"] == publish.attributes["messaging.message.id"]
    decided = [span for span in spans if span.name == "mail-saga decide"][-1]
    assert decided.attributes["registrar.event"] == "registration.email_dispatch_failed"
    assert decided.parent_id == consume.span_id


@pytest.mark.parametrize("what", ["hangs", "refuses", "is not there"])
async def test_a_collector_that_does_not_take_spans_costs_nothing_but_spans_which_are_counted(
    dsn: str, stub: SmtpStub, collector: Collector, what: str
) -> None:
    collector.hangs = what == "hangs"
    collector.status = 400
    url = "http://127.0.0.1:9" if what == "is not there" else collector.url
    async with running(dsn, stub, collector, otlp_endpoint=url) as service:
        await register(service)
        await until_recorded(dsn, "mail_saga.end_awaited")
    metrics = service.metrics.render().decode()
    lost = sum(
        float(line.rpartition(" ")[2])
        for line in metrics.splitlines()
        if line.startswith("registrar_spans_lost_total{")
    )
    assert lost >= 5
    assert "registrar_spans_exported_total 0.0" in metrics
    assert collector.spans == []
