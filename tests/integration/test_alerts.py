"""Alerts: each occasion is told once when it begins and once when it is over, whatever the webhook or we go through."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import datetime, timedelta
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
import trustme
from purgatory.domain.model import CLOSED, OPENED
from structlog.testing import capture_logs
from tenacity import wait_fixed, wait_none

from application.commands import RecordEmailDispatchFailed
from application.ports import Context, entries_of
from domain.mail_outcome import DispatchFailure, MailKind
from infrastructure.alerts.alerts import NEWS_FOR, UNUSED, Alerts
from infrastructure.alerts.webhook import NotTaken, Webhook
from infrastructure.circuits import Circuit, Circuits
from infrastructure.event_store.store import EventStore
from infrastructure.followers.leadership import lead
from infrastructure.followers.projector import Projector
from infrastructure.mail.shared_circuits import SharedCircuits
from infrastructure.mail.smtp.evidence import ONLY_DEFERRED, Evidence
from infrastructure.mail.smtp.replies import Verdict, judge_reply
from infrastructure.postgres.connection import ReconnectingConnection, connect
from infrastructure.postgres.notifications import Notifications
from infrastructure.telemetry.metrics import Metrics
from projections.mail import Mails
from tests.support.facts import STRAY, eventually, stray_kept, stream
from tests.support.http import ADMIN, open_api
from tests.support.log import query
from tests.support.smtp_stub import SmtpStub
from tests.support.webhook_stub import WebhookStub

THRESHOLD = 4
SERVER = "mail.example:25"
SERVICE = "https://accounts.example.org"
DeadLetters = Callable[[int], Awaitable[None]]
FIRING, RESOLVED = ("dead-letters", "firing"), ("dead-letters", "resolved")
OPEN, CLOSED_AGAIN = ("circuit-open", "firing"), ("circuit-open", "resolved")


@pytest.fixture
async def stub() -> AsyncIterator[WebhookStub]:
    async with WebhookStub() as stub:
        yield stub


def alerts(
    url: str,
    *,
    deadline: timedelta = timedelta(minutes=1),
    metrics: Metrics | None = None,
    settled: timedelta = timedelta(0),
    only_deferred: timedelta = ONLY_DEFERRED,
    webhooks: Collection[str] = (),
    pauses: Any = None,
) -> Alerts:
    return Alerts(
        Webhook(url, deadline=deadline),
        service=SERVICE,
        threshold=THRESHOLD,
        dead_letters=Mails().dead_letters,
        on_attempt=(metrics or Metrics()).alert,
        look_every=timedelta(milliseconds=20),
        settled=settled,
        only_deferred=only_deferred,
        webhooks=webhooks,
        pauses=pauses or wait_none(),
    )


@asynccontextmanager
async def watching(dsn: str, watcher: Alerts) -> AsyncIterator[None]:
    """A process whose alerts stand by or lead."""
    task = asyncio.create_task(lead(watcher, dsn))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest.fixture
async def dead_letters(dsn: str) -> AsyncIterator[DeadLetters]:
    """From now on so many mails wait for an operator, with nothing in between to be seen.

    Mails fail for good while no saga runs to undo their registrations, and an operator discards them.
    """
    waiting: list[UUID] = []
    async with open_api(dsn, follows=False) as api:

        async def fail() -> UUID:
            begun = await api.register(f"{uuid4().hex}@example.com")
            registration_id = UUID(begun.json()["registration_id"])
            await api.service.handlers.handle(
                RecordEmailDispatchFailed(
                    registration_id=registration_id,
                    serial=1,
                    kind=MailKind.CODE,
                    failure=DispatchFailure(
                        "mailbox-unknown",
                        permanent=True,
                        provider="mail.example:25",
                        attempts=1,
                        reply_code=550,
                        reply_status="5.1.1",
                    ),
                ),
                Context("mail-worker", uuid4()),
            )
            return registration_id

        async def discard(registration_id: UUID) -> None:
            discarded = await api.http.post(f"/v1/admin/mail/{registration_id}/discard", headers=ADMIN)
            assert discarded.status_code == 200, discarded.text

        async def wait(count: int) -> None:
            while len(waiting) < count:
                waiting.append(await fail())
            while len(waiting) > count:
                await discard(waiting.pop())
            await followed(dsn, api.service.store, count)

        yield wait


async def followed(dsn: str, store: EventStore, count: int) -> None:
    """Let the read model take up in one batch what has happened."""
    task = asyncio.create_task(lead(Projector(Mails(), store=store, notifications=Notifications(dsn)), dsn))
    try:
        async with await connect(dsn, name="test", statement_timeout=timedelta(seconds=10)) as connection:

            async def counted() -> bool:
                return await Mails().dead_letters(connection) == count

            await eventually(counted)
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def worker(dsn: str) -> AsyncIterator[SharedCircuits]:
    """The circuits as a process that sends has them; `changed` publishes a change."""
    connection = ReconnectingConnection(dsn, name="circuits", statement_timeout=timedelta(seconds=10))
    circuits = SharedCircuits(connection, probe_lasts=timedelta(seconds=20))
    task = asyncio.create_task(circuits.run())
    try:
        yield circuits
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await connection.close()


async def told(stub: WebhookStub, *expected: tuple[str, str]) -> None:
    """Wait until these calls were made, in this order, and no other."""

    def all_told() -> bool:
        assert [call.says for call in stub.calls] == list(expected)
        return True

    await eventually(all_told)


async def settled(dsn: str) -> None:
    """Wait until nothing is to be told any more: the calls made are all that will be."""

    async def nothing_waits() -> bool:
        return not await query(dsn, "SELECT 1 FROM alerts WHERE NOT firing_told OR resolved_at IS NOT NULL")

    await eventually(nothing_waits)


# --- What is told -------------------------------------------------------------------------------


async def test_dead_letters_are_told_once_when_they_gather_and_once_when_they_are_cleared(
    dsn: str, stub: WebhookStub, dead_letters: DeadLetters
) -> None:
    await dead_letters(THRESHOLD - 1)
    async with watching(dsn, alerts(stub.url)), worker(dsn) as circuits:
        circuits.changed(SERVER, CLOSED, OPENED)
        await told(stub, OPEN)  # so it has looked at the dead letters, too

        await dead_letters(THRESHOLD)
        await told(stub, OPEN, FIRING)
        await dead_letters(THRESHOLD - 1)
        circuits.changed(SERVER, OPENED, CLOSED)
        await told(stub, OPEN, FIRING, CLOSED_AGAIN)
        await dead_letters(THRESHOLD // 2)
        await told(stub, OPEN, FIRING, CLOSED_AGAIN, RESOLVED)
        await dead_letters(THRESHOLD)
        await told(stub, OPEN, FIRING, CLOSED_AGAIN, RESOLVED, FIRING)


@pytest.mark.parametrize(
    ("reply", "alert", "failure", "status"),
    [
        (judge_reply("rcpt", 553, "5.1.8 domain of sender does not exist"), "mail-refused", "authentication", "5.1.8"),
        (judge_reply("rcpt", 454, "4.7.1 relay access denied"), "mail-deferred", "authentication", "4.7.1"),
    ],
)
async def test_a_server_that_takes_nothing_is_told_of_until_it_does(
    dsn: str, stub: WebhookStub, reply: Verdict, alert: str, failure: str, status: str
) -> None:
    async with watching(dsn, alerts(stub.url, only_deferred=timedelta(0))), worker(dsn) as circuits:
        evidence = Evidence(SERVER, beliefs=circuits, only_deferred=timedelta(0))
        circuits.share([cast("Circuit", (await Circuits().get_breaker(SERVER)).context)], [evidence])
        await evidence.judge(reply, "ada@example.com")
        circuits.standing_changed()
        with capture_logs() as lines:
            await told(stub, (alert, "firing"))
            if alert == "mail-deferred":
                await eventually(
                    lambda: "mail.only_deferred" in {line["event"] for line in lines}
                )  # without another try
        evidence.taken("ada@example.com")
        circuits.standing_changed()
        await told(stub, (alert, "firing"), (alert, "resolved"))

    begin, end = (call.json["details"] for call in stub.calls)
    assert {name: begin[name] for name in begin if name != "since"} == {
        "server": SERVER,
        "failure": failure,
        "reply_code": reply.reply_code,
        "reply_status": status,
    }
    assert datetime.fromisoformat(begin["since"]).tzinfo is not None
    assert end == {"server": SERVER, "reason": "taken"}


async def test_a_read_model_that_is_not_what_the_log_says_is_told_of_until_it_is(dsn: str, stub: WebhookStub) -> None:
    async def verified(name: str, differences: int) -> None:
        await query(
            dsn,
            f"INSERT INTO verifications (read_model, position, row_count, differences) VALUES ('{name}', 7, 5, {differences})"
            " ON CONFLICT (read_model) DO UPDATE SET differences = excluded.differences RETURNING 1",
        )

    await verified("audit", 0)
    await verified("mail", 3)
    async with watching(dsn, alerts(stub.url)):
        await told(stub, ("projection-differs", "firing"))
        await verified("mail", 2)
        await verified("accounts", 1)
        await told(stub, *[("projection-differs", "firing")] * 2)
        await verified("mail", 0)
        await told(stub, *[("projection-differs", "firing")] * 2, ("projection-differs", "resolved"))

    bodies = [call.json["details"] for call in stub.calls]
    assert [(one["projection"], one["differences"]) for one in bodies] == [("mail", 3), ("accounts", 1), ("mail", 0)]
    assert {(one["position"], "verified_at" in one) for one in bodies} == {(7, True)}


async def test_a_call_says_what_who_when_and_nothing_personal(
    dsn: str, stub: WebhookStub, dead_letters: DeadLetters
) -> None:
    await dead_letters(THRESHOLD + 1)
    async with watching(dsn, alerts(f"{stub.url}?token=t0ken".replace("http://", "http://us%3Aer:pass@"))):
        await told(stub, FIRING)
        await dead_letters(0)
        await told(stub, FIRING, RESOLVED)

    begin, end = stub.calls
    assert (begin.method, begin.target) == ("POST", "/hook?token=t0ken")
    assert begin.headers["content-type"] == "application/json"
    assert begin.headers["authorization"] == "Basic dXM6ZXI6cGFzcw=="
    assert begin.headers["host"] == f"127.0.0.1:{stub.port}"
    identifier = begin.json["id"]
    assert begin.json == {
        "id": identifier,
        "alert": "dead-letters",
        "state": "firing",
        "service": SERVICE,
        "at": begin.json["at"],
        "details": {"dead_letters": THRESHOLD + 1, "threshold": THRESHOLD},
    }
    assert end.json["id"] == identifier
    assert end.json["details"]["dead_letters"] == 0
    assert datetime.fromisoformat(begin.json["at"]) < datetime.fromisoformat(end.json["at"])
    assert (begin.key, end.key) == (f"{identifier}-firing", f"{identifier}-resolved")


async def test_a_circuit_is_told_once_however_often_its_probes_fail(dsn: str, stub: WebhookStub) -> None:
    async with watching(dsn, alerts(stub.url)), worker(dsn) as circuits:
        circuits.changed(SERVER, CLOSED, OPENED)
        await told(stub, OPEN)
        [(since,)] = await query(dsn, "SELECT changed_at FROM circuits")
        assert stub.calls[0].json["details"] == {"server": SERVER, "since": since.isoformat()}

        circuits.changed(SERVER, OPENED, OPENED)
        circuits.changed("other.example:25", CLOSED, OPENED)
        await told(stub, OPEN, OPEN)
        circuits.changed(SERVER, OPENED, CLOSED)
        await told(stub, OPEN, OPEN, CLOSED_AGAIN)
    assert [call.json["details"]["server"] for call in stub.calls] == [SERVER, "other.example:25", SERVER]
    assert stub.calls[2].json["details"]["reason"] == "closed"
    assert stub.calls[2].json["id"] == stub.calls[0].json["id"]


async def test_a_circuit_that_opens_again_at_once_is_the_same_trouble(
    dsn: str, stub: WebhookStub, dead_letters: DeadLetters
) -> None:
    async with watching(dsn, alerts(stub.url, settled=timedelta(hours=1))), worker(dsn) as circuits:
        circuits.changed(SERVER, CLOSED, OPENED)
        await told(stub, OPEN)
        circuits.changed(SERVER, OPENED, CLOSED)
        await eventually(lambda: circuits.states == {SERVER: CLOSED})
        await dead_letters(THRESHOLD)
        await told(stub, OPEN, FIRING)
        await query(dsn, "UPDATE circuits SET changed_at = changed_at - interval '1 hour'")
        await told(stub, OPEN, FIRING, CLOSED_AGAIN)


async def test_a_server_that_nobody_uses_any_more_is_no_trouble(dsn: str, stub: WebhookStub) -> None:
    async with watching(dsn, alerts(stub.url)), worker(dsn) as circuits:
        circuits.changed(SERVER, CLOSED, OPENED)
        await told(stub, OPEN)
        await query(dsn, "UPDATE circuits SET named_at = named_at - %s", UNUSED)
        await told(stub, OPEN, CLOSED_AGAIN)
    assert stub.calls[1].json["details"] == {"server": SERVER, "reason": "unused"}


# --- The webhook is away ------------------------------------------------------------------------


async def test_a_call_that_fails_is_made_again_with_the_same_key_until_it_is_taken(
    dsn: str, stub: WebhookStub, dead_letters: DeadLetters
) -> None:
    metrics = Metrics()
    stub.headers = f"Location: {stub.url}/elsewhere\r\n"
    stub.then("500 Broken", "drop", "hang", "garbage", "302 Found", "404 Not Found", "200 OK")
    await dead_letters(THRESHOLD)

    with capture_logs() as logged:
        url = f"{stub.url}?token=t0ken-canary"
        async with watching(dsn, alerts(url, deadline=timedelta(seconds=2), metrics=metrics)):
            await told(stub, *[FIRING] * 7)
            await settled(dsn)

    assert len({call.key for call in stub.calls}) == 1
    assert {call.target for call in stub.calls} == {"/hook?token=t0ken-canary"}
    assert 'registrar_alerts_total{alert="dead-letters",outcome="failed"} 6.0' in metrics.render().decode()
    assert 'registrar_alerts_total{alert="dead-letters",outcome="told"} 1.0' in metrics.render().decode()
    assert [line["failure"] for line in logged if line["event"] == "alert.not_told"] == [
        "status 500",
        "no HTTP answer",
        "no answer within 2 s",
        "no HTTP answer",
        "status 302",
        "status 404",
    ]
    assert "canary" not in str(logged)


async def test_what_nobody_took_is_told_when_the_webhook_is_there_again(dsn: str, dead_letters: DeadLetters) -> None:
    async with WebhookStub() as gone:
        pass
    metrics = Metrics()
    await dead_letters(THRESHOLD)
    async with watching(dsn, alerts(gone.url, metrics=metrics)):

        def refused() -> bool:
            return 'outcome="failed"' in metrics.render().decode()

        await eventually(refused)
        await dead_letters(0)
        await eventually(lambda: query(dsn, "SELECT 1 FROM alerts WHERE resolved_at IS NOT NULL"))
        async with WebhookStub(port=gone.port) as back:
            await told(back, FIRING, RESOLVED)
            await settled(dsn)


async def test_what_was_over_long_before_anyone_could_be_told_is_told_no_more(dsn: str, stub: WebhookStub) -> None:
    await query(
        dsn,
        "INSERT INTO alerts (alert, subject, firing, firing_told, resolved, resolved_at)"
        " SELECT 'dead-letters', '', '{}', told, '{}', clock_timestamp() - %s FROM unnest('{true,false}'::bool[]) AS told",
        NEWS_FOR,
    )
    async with watching(dsn, alerts(stub.url)):
        await told(stub, RESOLVED)  # of the one whose begin was told
        await settled(dsn)
    assert len(stub.calls) == 1


@pytest.mark.parametrize("answer", ["hang", "500 Broken"])
async def test_an_occasion_given_up_while_it_is_being_told_is_told_to_be_over(
    dsn: str, stub: WebhookStub, dead_letters: DeadLetters, answer: str
) -> None:
    stub.then(answer)  # it may have taken the call all the same
    await dead_letters(THRESHOLD)
    async with watching(dsn, alerts(stub.url, pauses=wait_fixed(3600))):
        await told(stub, FIRING)
        await dead_letters(0)
        await over_for_too_long(dsn)
        await told(stub, FIRING, RESOLVED)
        await settled(dsn)
    assert stub.calls[0].json["id"] == stub.calls[1].json["id"]
    assert await query(dsn, "SELECT 1 FROM alerts") == []


async def test_an_occasion_that_a_leader_now_gone_has_tried_to_tell_is_told_to_be_over(
    dsn: str, stub: WebhookStub, dead_letters: DeadLetters
) -> None:
    stub.then("hang")
    await dead_letters(THRESHOLD)
    async with watching(dsn, alerts(stub.url)):
        await told(stub, FIRING)
        await dead_letters(0)
        await eventually(lambda: query(dsn, "SELECT 1 FROM alerts WHERE resolved_at IS NOT NULL"))
    await over_for_too_long(dsn)

    async with watching(dsn, alerts(stub.url)):
        await told(stub, FIRING, RESOLVED)
        await settled(dsn)


async def over_for_too_long(dsn: str) -> None:
    """The occasion is over, and was so for an hour."""
    await eventually(
        lambda: query(
            *(dsn, "UPDATE alerts SET resolved_at = resolved_at - %s WHERE resolved_at IS NOT NULL RETURNING 1"),
            NEWS_FOR,
        )
    )


async def test_a_webhook_that_hangs_does_not_cost_the_leadership(
    dsn: str, stub: WebhookStub, dead_letters: DeadLetters
) -> None:
    stub.then("hang")
    await dead_letters(THRESHOLD)
    async with watching(dsn, alerts(stub.url)):
        await told(stub, FIRING)
        session = (
            "SELECT state_change FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'registrar alerts'"
        )
        [(before,)] = await query(dsn, session)
        await eventually(lambda: query(dsn, session + " AND state_change > %s", before))


# --- We are away --------------------------------------------------------------------------------


async def test_a_restart_tells_nothing_again_and_forgets_nothing(
    dsn: str, stub: WebhookStub, dead_letters: DeadLetters
) -> None:
    await dead_letters(THRESHOLD)
    async with watching(dsn, alerts(stub.url)):
        await told(stub, FIRING)
        await settled(dsn)

    async with watching(dsn, alerts(stub.url)), worker(dsn) as circuits:
        circuits.changed(SERVER, CLOSED, OPENED)
        await told(stub, FIRING, OPEN)
        await settled(dsn)
    await dead_letters(0)

    async with watching(dsn, alerts(stub.url)):
        await told(stub, FIRING, OPEN, RESOLVED)
        await settled(dsn)


async def test_a_call_cut_off_by_our_end_is_made_again_with_the_same_key(
    dsn: str, stub: WebhookStub, dead_letters: DeadLetters
) -> None:
    stub.then("hang")
    await dead_letters(THRESHOLD)
    async with watching(dsn, alerts(stub.url)):
        await told(stub, FIRING)

    async with watching(dsn, alerts(stub.url)):
        await told(stub, FIRING, FIRING)
        await settled(dsn)
    assert stub.calls[0].key == stub.calls[1].key


async def test_of_two_processes_one_calls_and_the_other_takes_over(
    dsn: str, stub: WebhookStub, dead_letters: DeadLetters
) -> None:
    async with WebhookStub() as other, AsyncExitStack() as first, worker(dsn) as circuits:
        await first.enter_async_context(watching(dsn, alerts(stub.url)))
        await dead_letters(THRESHOLD)
        await told(stub, FIRING)
        async with watching(dsn, alerts(other.url)):
            await eventually(lambda: query(dsn, _STANDS_BY))
            circuits.changed(SERVER, CLOSED, OPENED)
            await told(stub, FIRING, OPEN)
            await settled(dsn)
            assert not other.calls

            await first.aclose()
            await dead_letters(0)
            await told(other, RESOLVED)
    assert len(stub.calls) == 2


_STANDS_BY = """
    SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'registrar alerts'
    HAVING count(*) > 1
"""


# --- The whole service --------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_dead_letter_and_a_server_that_is_away_reach_the_webhook_and_so_does_their_end(
    dsn: str, stub: WebhookStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        cast("dict[str, Any]", Alerts.__init__.__kwdefaults__), "look_every", timedelta(milliseconds=200)
    )
    async with SmtpStub() as smtp:
        url = f"smtp://127.0.0.1:{smtp.port}"
        async with open_api(
            dsn,
            smtp_urls=url,
            alert_url=stub.url,
            alert_dead_letters="1",
            public_url=SERVICE,
            allowed_hosts="registrar.test",
        ) as api:
            stray = entries_of(stream(STRAY, stray_kept()), Context("dead-letter-consumer", uuid4()))
            await api.service.store.append(stray)
            await told(stub, FIRING)
            assert stub.calls[0].json["service"] == SERVICE
            discarded = await api.http.post(f"/v1/admin/mail/{STRAY}/discard", headers=ADMIN)
            assert discarded.status_code == 200
            await eventually(lambda: query(dsn, "SELECT 1 FROM read_mail.strays WHERE discarded"))
            servers = api.service.servers
            assert servers is not None
            for server in await servers._servers():
                server.circuit.open()
            await told(stub, FIRING, RESOLVED, OPEN)
            assert stub.calls[2].json["details"]["server"] == f"127.0.0.1:{smtp.port}"

            async def counted() -> bool:
                metrics = (await api.http.get("/metrics")).text
                return 'registrar_alerts_total{alert="circuit-open",outcome="told"} 1.0' in metrics

            await eventually(counted)


# --- Encryption ---------------------------------------------------------------------------------


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def certificate(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


async def test_only_a_webhook_with_a_trustworthy_certificate_of_its_name_is_called(authority: trustme.CA) -> None:
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    async with (
        WebhookStub(tls=certificate(authority, "127.0.0.1")) as good,
        WebhookStub(tls=certificate(authority, "other.example")) as misnamed,
    ):
        await Webhook(good.url, tls=trust).post(b"{}", {})
        for webhook in (Webhook(good.url), Webhook(misnamed.url, tls=trust)):
            with pytest.raises(NotTaken, match="encryption"):
                await webhook.post(b"{}", {})
        assert (len(good.calls), len(misnamed.calls)) == (1, 0)


async def test_a_look_whether_it_can_be_reached_calls_nobody(authority: trustme.CA, stub: WebhookStub) -> None:
    await Webhook(stub.url).reach()
    await eventually(lambda: stub.connections == 1)
    assert not stub.calls

    async with WebhookStub() as gone:
        pass
    with pytest.raises(NotTaken, match="no connection"):
        await Webhook(gone.url).reach()


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("https://u:p@alerts.example.org/x?y=z", "alerts.example.org:443"),
        ("http://alerts.example.org", "alerts.example.org:80"),
        ("http://[::1]:8080/x", "[::1]:8080"),
    ],
)
def test_of_an_address_only_host_and_port_are_shown(url: str, where: str) -> None:
    assert Webhook(url).where == where


# --- Endpoints of webhooks ------------------------------------------------------------------------


async def test_an_endpoint_that_fails_for_long_or_is_gone_is_told_elsewhere_and_so_is_its_end(
    dsn: str, stub: WebhookStub
) -> None:
    await query(
        dsn,
        "INSERT INTO webhooks (name, position, failing_since, failure, disabled_at, disabled_by) VALUES"
        " ('app', 0, now() - interval '6 minutes', 'status 500', NULL, NULL),"
        " ('gone', 0, NULL, NULL, now() - interval '6 minutes', 'endpoint'),"
        " ('paused', 0, now() - interval '6 minutes', 'status 500', now(), 'operator'),"
        " ('left', 0, now() - interval '6 minutes', 'status 500', NULL, NULL),"
        " ('restarts', 0, now() - interval '1 minute', 'no connection', NULL, NULL)",
    )
    async with watching(dsn, alerts(stub.url, webhooks=["app", "gone", "paused", "restarts"])):
        await eventually(lambda: len(stub.calls) == 2)
        await query(dsn, "UPDATE webhooks SET failing_since = NULL, disabled_at = NULL, disabled_by = NULL")
        await eventually(lambda: len(stub.calls) == 4)

    assert {(*call.says, call.json["details"]["endpoint"]) for call in stub.calls} == {
        ("webhook-failing", state, name) for state in ("firing", "resolved") for name in ("app", "gone")
    }
