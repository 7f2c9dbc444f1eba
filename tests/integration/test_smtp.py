"""Mail servers over real sockets: what is on the wire, what each misbehaviour becomes, what is never sent."""

from __future__ import annotations

import asyncio
import email
import email.policy
import logging
import socket
import ssl
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
import trustme
from pydantic import SecretStr

from application.ports import Letter, MailServersAway, NotSent, Rendered
from domain.mail_outcome import DispatchFailure, HandOver
from infrastructure.circuits import Circuits
from infrastructure.mail.smtp.evidence import Evidence
from infrastructure.mail.smtp.pool import FIRST_CONNECTIONS, Limits
from infrastructure.mail.smtp.servers import SmtpServers
from infrastructure.settings.values import MailServer
from tests.support.facts import eventually
from tests.support.smtp_stub import SmtpStub, Stage

RENDERED = Rendered(
    subject="Ihr Bestätigungscode",
    text="Grüße!\n\n    123456\n\n.\n.versteckt\nfrom here\n",
    html="<p style='color:#000'>Grüße: <b>123456</b></p>\r\n.\r\nQUIT\r\n",
)
LETTER = Letter("jo.doe+x@example.com", RENDERED, message_id="<0192f0aa.1@registrar.example>", locale="de")
OTHER = Letter("eve@example.com", RENDERED, message_id="<0192f0aa.2@registrar.example>", locale="de")
QUICK = Limits(timeout=timedelta(seconds=0.6), content_timeout=timedelta(seconds=0.6))
WIDE = Limits(connections=32, first_connections=32)
NOON = datetime(2025, 1, 2, 12, tzinfo=UTC)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Post:
    """The adapter over stubs, with sleeping and the breakers' clock in our hands."""

    def __init__(self, *servers: MailServer, limits: Limits, tls: ssl.SSLContext | None) -> None:
        self.clock = Clock()
        self.pauses: list[float] = []
        self.attempts: list[tuple[str, str]] = []
        self.concurrency: list[int] = []
        self.evidence: list[Evidence] = []
        self.between_tries: Callable[[], None] = lambda: None
        self.servers = SmtpServers(
            servers,
            sender="Registrar <no-reply@registrar.example>",
            circuits=Circuits(clock=self.clock),
            limits=limits,
            tls=tls,
            on_attempt=lambda *attempt: self.attempts.append(attempt),
            on_concurrency=lambda _, mails: self.concurrency.append(mails),
            on_opened=lambda _, evidence: self.evidence.extend(evidence),
            sleep=self._sleep,
            now=lambda: NOON,
        )

    async def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.between_tries()

    async def send(self, letter: Letter = LETTER) -> HandOver:
        return await self.servers.send(letter)

    async def insist(self, letter: Letter = LETTER) -> HandOver:
        """Send it again and again until it is taken, as the saga does."""
        while True:
            with suppress(NotSent):
                return await self.servers.send(letter)

    async def refused(self, letter: Letter = LETTER) -> DispatchFailure:
        with pytest.raises(NotSent) as refusal:
            await self.servers.send(letter)
        return refusal.value.failure

    @property
    def outcomes(self) -> list[str]:
        return [outcome for _, outcome in self.attempts]

    async def open_circuit(self, number: int = 0) -> None:
        await self.servers.states()  # makes the circuits
        self.servers.circuits[number].open()


OpenPost = Callable[..., Awaitable[Post]]


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture(params=["one command at a time", "pipelining"])
async def stub(stack: AsyncExitStack, request: pytest.FixtureRequest) -> SmtpStub:
    return await stack.enter_async_context(SmtpStub(pipelining=request.param == "pipelining"))


@pytest.fixture
def open_post(stack: AsyncExitStack) -> OpenPost:
    async def opened(
        *servers: MailServer | SmtpStub, limits: Limits = QUICK, tls: ssl.SSLContext | None = None
    ) -> Post:
        post = Post(
            *(server if isinstance(server, MailServer) else plain(server) for server in servers), limits=limits, tls=tls
        )
        stack.push_async_callback(post.servers.close)
        return post

    return opened


@pytest.fixture
async def post(stub: SmtpStub, open_post: OpenPost) -> Post:
    return await open_post(stub)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def certificate(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def trust(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def plain(stub: SmtpStub) -> MailServer:
    return MailServer("smtp", "127.0.0.1", stub.port, starttls="never")


def provider(stub: SmtpStub) -> str:
    return f"127.0.0.1:{stub.port}"


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- What is on the wire ------------------------------------------------------------------------------


async def test_a_letter_arrives_as_written(stub: SmtpStub, post: Post) -> None:
    accepted = await post.send()

    assert accepted == HandOver(provider(stub), attempts=1, reply_code=250)
    (mail,) = stub.mails
    assert (mail.sender, mail.recipients) == (b"no-reply@registrar.example", [b"jo.doe+x@example.com"])
    message = email.message_from_bytes(mail.data.replace(b"\r\n..", b"\r\n."), policy=email.policy.default)
    assert dict(message.items()) == {
        "From": "Registrar <no-reply@registrar.example>",
        "Auto-Submitted": "auto-generated",
        "MIME-Version": "1.0",
        "To": "jo.doe+x@example.com",
        "Subject": "Ihr Bestätigungscode",
        "Date": "Thu, 02 Jan 2025 12:00:00 +0000",
        "Message-ID": "<0192f0aa.1@registrar.example>",
        "Content-Language": "de",
        "Content-Type": 'multipart/alternative; boundary="=_registrar"',
    }
    text, html = message.iter_parts()
    assert isinstance(text, email.message.EmailMessage)
    assert isinstance(html, email.message.EmailMessage)
    assert (text.get_content_type(), html.get_content_type()) == ("text/plain", "text/html")
    assert text.get_content().splitlines() == RENDERED.text.splitlines()
    assert html.get_content().splitlines() == RENDERED.html.splitlines()


async def test_every_byte_of_a_mail_is_ascii_in_lines_ended_by_crlf(stub: SmtpStub, post: Post) -> None:
    await post.send()
    data = stub.mails[0].data
    assert data.isascii()
    assert max(map(len, data.split(b"\r\n"))) <= 998
    assert b"\n" not in data.replace(b"\r\n", b"")
    assert b"\r" not in data.replace(b"\r\n", b"")


async def test_a_domain_in_unicode_goes_out_in_ascii(stub: SmtpStub, post: Post) -> None:
    await post.send(letter_to("jo@straße.example"))
    assert stub.mails[0].recipients == [b"jo@xn--strae-oqa.example"]
    assert b"To: jo@xn--strae-oqa.example\r\n" in stub.mails[0].data


def letter_to(address: str) -> Letter:
    return replace(LETTER, to=address)


@pytest.mark.fault("E29")
@pytest.mark.parametrize(
    "address",
    [
        "v@x.test\r\nRCPT TO:<e@x.test>",
        "v@x.test\nRCPT TO:<e@x.test>",
        "v@x.test\n",
        "v@x.test\r",
        "v@x.test\0",
        "v@x.test> SIZE=1",
        "v@x.test,e@x.test",
        "v@x.test e@x.test",
        " v@x.test",
        "<v@x.test>",
        "V <v@x.test>",
        "v@x.test (e@x.test)",
        '"v w"@x.test',
        '"v@x.test\\r\\nRCPT TO:<e@x.test>"@x.test',
        "v@x.test\u2028RCPT TO:<e@x.test>",
        "v@x.test\u0085",
        "\u202ev@x.test",
        "m\u0131ke@x.test",
        "=?utf-8?q?e=40x=2Etest=2C?=@x.test",
        "v@[127.0.0.1]",
        "v@@x.test",
        "v..w@x.test",
        ".v@x.test",
        "v@x..test",
        "v@" + "x." * 130 + "test",
        "v" * 65 + "@x.test",
        "v@\ud800.test",
        "v",
        "@",
        "",
    ],
)
async def test_what_is_not_one_mailbox_never_reaches_the_wire(stub: SmtpStub, post: Post, address: str) -> None:
    with pytest.raises(NotSent) as refused:
        await post.send(letter_to(address))
    refusal = refused.value.failure
    assert (refusal.failure in {"mailbox-unknown", "content"}, refusal.permanent, refusal.attempts) == (True, True, 0)
    assert refused.value.__context__ is None
    assert stub.sessions == []


async def test_percent_encoded_line_ends_stay_letters(stub: SmtpStub, post: Post) -> None:
    await post.send(letter_to("v%0d%0aRCPT@x.test"))
    assert stub.sessions[0].commands[:4] == [b"EHLO", b"MAIL", b"RCPT", b"DATA"]
    assert stub.mails[0].recipients == [b"v%0d%0aRCPT@x.test"]


@pytest.mark.parametrize("break_", ["\r\n", "\n", "\r", "\0", "\u2028", "\u2029", "\x85", "\x0b"])
@pytest.mark.parametrize("field", ["subject", "message_id", "locale"])
async def test_no_header_can_be_broken_open(stub: SmtpStub, post: Post, field: str, break_: str) -> None:
    for end in (f"{break_}Bcc: e@x.test", break_):
        letters = {
            "subject": replace(LETTER, rendered=RENDERED._replace(subject=f"{RENDERED.subject}{end}")),
            "message_id": replace(LETTER, message_id=f"{LETTER.message_id}{end}"),
            "locale": replace(LETTER, locale=f"{LETTER.locale}{end}"),
        }
        refusal = await post.refused(letters[field])
        assert (refusal.failure, refusal.permanent) == ("content", True)
    assert stub.sessions == []


async def test_a_body_cannot_end_the_mail_early(stub: SmtpStub, post: Post) -> None:
    for end in ("\r\n.\r\n", "\n.\n", "\r.\r", "\n.\r\n", "\r\n.\n", "\r\n.\r"):
        trick = f"x{end}MAIL FROM:<e@x.test>\r\n"
        await post.send(Letter("v@x.test", Rendered("Code", trick, trick), LETTER.message_id, "en"))
    assert [mail.sender for mail in stub.mails] == [b"no-reply@registrar.example"] * 6
    assert [mail.recipients for mail in stub.mails] == [[b"v@x.test"]] * 6


# --- Replies -------------------------------------------------------------------------------------------


@pytest.mark.fault("E20")
@pytest.mark.parametrize(
    ("stage", "reply", "failure"),
    [
        ("rcpt", "550 5.1.1 no such user", "mailbox-unknown"),
        ("rcpt", "553 5.1.3 bad syntax", "mailbox-unknown"),
        ("rcpt", "556 5.1.10 null MX", "mailbox-unknown"),
        ("rcpt", "552 5.2.2 mailbox full", "permanent"),
        ("rcpt", "550 5.2.1 mailbox disabled", "permanent"),
        ("eod", "550 5.1.1 no such user after all", "mailbox-unknown"),
    ],
)
async def test_a_refusal_of_a_mailbox_is_permanent_and_no_outage(
    stub: SmtpStub, post: Post, stage: Stage, reply: str, failure: str
) -> None:
    stub.at(stage, reply)
    for _ in range(12):
        refusal = await post.refused()
        assert (refusal.failure, refusal.permanent, refusal.attempts) == (failure, True, 1)
        assert refusal.reply_code == int(reply[:3])
        assert refusal.reply_status in {None, reply.split()[1]}
    assert post.pauses == []
    assert await post.servers.states() == {provider(stub): "closed"}


BARE = pytest.mark.parametrize(
    "reply",
    [
        "550 no such user",
        "550 Invalid recipient: <ada@example.com>",
        "551 moved",
        "554 relay access denied",
        "550 5.4.1 recipient address rejected",
        "553 5.3.0 rejected",
    ],
)


@pytest.mark.fault("E30")
@BARE
async def test_a_recipient_refused_without_a_reason_is_unknown_if_others_were_just_taken(
    stub: SmtpStub, post: Post, reply: str
) -> None:
    for _ in range(3):
        await post.send(OTHER)
        stub.at("rcpt", reply, times=1)
        refusal = await post.refused()
        assert (refusal.failure, refusal.permanent, refusal.attempts) == ("mailbox-unknown", True, 1)
        assert refusal.reply_code == int(reply[:3])


@pytest.mark.fault("E30")
@BARE
async def test_a_row_of_refused_recipients_is_about_us_and_costs_the_first_one_at_most(
    stub: SmtpStub, second: SmtpStub, open_post: OpenPost, reply: str
) -> None:
    post = await open_post(stub)
    await post.send(OTHER)
    stub.at("rcpt", reply)
    refusals = [await post.refused() for _ in range(12)]
    assert [refusal.permanent for refusal in refusals] == [True] + 11 * [False]
    assert {refusal.failure for refusal in refusals[1:]} == {"refused"}
    assert post.pauses == [], "the same would be refused again"
    assert await post.servers.states() == {provider(stub): "closed"}
    with pytest.raises(NotSent):
        await post.servers.probe()

    backed_up = await open_post(stub, second)
    assert await backed_up.send() == HandOver(provider(second), attempts=1, reply_code=250)

    stub.heal()
    assert (await post.send()).attempts == 1
    await post.servers.probe()


CONTENT_REFUSED = pytest.mark.parametrize(
    ("stage", "reply"),
    [
        ("data", "554 no"),
        ("eod", "554 looks like spam"),
        ("eod", "550 5.6.0 looks like spam"),
        ("eod", "552 too big"),
        ("mail", "552 5.3.4 too big"),
    ],
)


@pytest.mark.fault("E21")
@CONTENT_REFUSED
async def test_a_content_refused_after_others_were_taken_is_refused_for_good(
    stub: SmtpStub, post: Post, stage: Stage, reply: str
) -> None:
    for _ in range(6):
        await post.send()
        stub.at(stage, reply, times=1)
        refusal = await post.refused()
        assert (refusal.failure, refusal.permanent, refusal.attempts) == ("content", True, 1)
        assert refusal.reply_code == int(reply[:3])
    assert post.pauses == []
    assert await post.servers.states() == {provider(stub): "closed"}


@pytest.mark.fault("E21")
@CONTENT_REFUSED
async def test_contents_refused_in_a_row_are_an_outage_and_no_mails_fault(
    stub: SmtpStub, post: Post, stage: Stage, reply: str
) -> None:
    stub.at(stage, reply)
    for _ in range(5):
        refusal = await post.refused()
        assert (refusal.failure, refusal.permanent, refusal.attempts) == ("content", False, 1)
    assert post.pauses == [], "the same content would be refused again"
    with pytest.raises(MailServersAway):
        await post.send()

    stub.heal()
    post.clock.now += 30
    assert (await post.send()).attempts == 1


async def test_a_probe_shares_the_fate_of_a_mail_whose_content_would_be_refused(stub: SmtpStub, post: Post) -> None:
    await post.send()
    stub.at("eod", "554 looks like spam", times=1)
    await post.refused()

    with pytest.raises(NotSent) as probed:
        await post.servers.probe()
    assert (probed.value.failure.failure, probed.value.failure.permanent, probed.value.failure.reply_code) == (
        "content",
        False,
        554,
    )

    await post.send()
    await post.servers.probe()


@pytest.mark.fault("E18")
@pytest.mark.parametrize(
    ("stage", "reply", "failure"),
    [
        ("mail", "450 4.7.1 come back later", "greylisted"),
        ("rcpt", "451 4.7.1 greylisted", "greylisted"),
        ("rcpt", "450 busy", "greylisted"),
        ("rcpt", "452 4.2.2 mailbox full", "temporary"),
        ("rcpt", "451 4.3.0 disk full", "temporary"),
        ("rcpt", "450 4.7.0 too fast", "throttled"),
        ("data", "452 no space", "temporary"),
        ("eod", "451 later", "greylisted"),
    ],
)
async def test_a_temporary_refusal_of_one_mail_gets_three_tries_and_is_no_outage(
    stub: SmtpStub, post: Post, stage: Stage, reply: str, failure: str
) -> None:
    stub.at(stage, reply)
    for _ in range(4):
        refusal = await post.refused()
        assert (refusal.failure, refusal.permanent, refusal.attempts) == (failure, False, 3)
    assert await post.servers.states() == {provider(stub): "closed"}
    assert len(stub.sessions) == 1, "such a refusal costs no connection"


async def test_the_pauses_double_and_are_jittered(stub: SmtpStub, post: Post) -> None:
    stub.at("rcpt", "451 4.7.1 greylisted")
    await post.refused()
    await post.refused()
    assert [int(pause) for pause in post.pauses] == [2, 4, 2, 4]
    assert post.pauses[:2] != post.pauses[2:]


async def test_a_later_try_may_succeed(stub: SmtpStub, post: Post) -> None:
    stub.at("rcpt", "451 4.7.1 greylisted", times=2)
    assert (await post.send()).attempts == 3
    assert post.outcomes == ["greylisted", "greylisted", "accepted"]
    assert len(stub.mails) == 1


@pytest.mark.fault("E18")
@pytest.mark.parametrize("stage", ["banner", "ehlo", "mail", "rcpt", "data", "eod"])
async def test_421_is_throttling_and_an_outage(stub: SmtpStub, post: Post, stage: Stage) -> None:
    stub.at(stage, "421 4.7.0 too many")
    refusal = await post.refused()
    assert (refusal.failure, refusal.permanent, refusal.attempts) == ("throttled", False, 3)
    assert not refusal.outcome_unknown
    assert (await post.refused()).attempts == 2
    assert await post.servers.states() == {provider(stub): "opened"}
    with pytest.raises(MailServersAway):
        await post.send()


@pytest.mark.fault("E18")
@pytest.mark.parametrize("code", [450, 451, 452])
async def test_a_temporary_greeting_is_tried_again(stub: SmtpStub, post: Post, code: int) -> None:
    stub.at("banner", f"{code} not now", times=2)
    assert (await post.send()).attempts == 3


@pytest.mark.parametrize("reply", ["nonsense", "999 what", "250 for DATA?"])
async def test_an_answer_out_of_turn_is_the_servers_fault(stub: SmtpStub, post: Post, reply: str) -> None:
    stub.at("data", reply)
    refusal = await post.refused()
    assert (refusal.failure, refusal.permanent, refusal.outcome_unknown) == ("connection", False, False)


async def test_a_garbled_answer_to_the_mail_leaves_the_outcome_unknown(stub: SmtpStub, post: Post) -> None:
    stub.at("eod", "nonsense")
    assert (await post.refused()).outcome_unknown


# --- Hanging and dropping ---------------------------------------------------------------------------------


@pytest.mark.fault("E1", "E2", "E5", "E6", "E7", "E10", "E11", "E14", "E15", "E16")
@pytest.mark.parametrize("action", ["hang", "drop"])
@pytest.mark.parametrize("stage", ["banner", "ehlo", "mail", "rcpt", "data"])
async def test_a_try_lost_before_the_content_is_repeated(stub: SmtpStub, post: Post, stage: Stage, action: str) -> None:
    stub.at(stage, action, times=1)
    accepted = await post.send()
    assert accepted.attempts >= 2, "a busy machine may need a third"
    assert (post.outcomes[0], post.outcomes[-1]) == ("timeout" if action == "hang" else "connection", "accepted")
    assert len(stub.mails) == 1


@pytest.mark.fault("E9")
@pytest.mark.parametrize(("action", "failure"), [("hang", "timeout"), ("drop", "connection")])
async def test_a_connection_lost_after_the_content_leaves_the_outcome_unknown(
    stub: SmtpStub, post: Post, action: str, failure: str
) -> None:
    stub.at("eod", action)
    refusal = await post.refused()
    assert (refusal.failure, refusal.permanent, refusal.outcome_unknown) == (failure, False, True)
    assert refusal.attempts == 1
    assert len(stub.mails) == 1, "the server has it: another try at once would be a second copy"


@pytest.mark.fault("E8", "E17")
@pytest.mark.parametrize("action", ["hang", "drop", "500 what?"])
async def test_quit_decides_nothing(stub: SmtpStub, open_post: OpenPost, action: str) -> None:
    stub.at("quit", action)
    post = await open_post(stub, limits=replace(QUICK, quit_timeout=timedelta(milliseconds=50), mails_per_connection=1))
    assert (await post.send()).attempts == 1
    assert (await post.send()).attempts == 1
    await post.servers.close()
    assert [session.commands[-1] for session in stub.sessions] == [b"QUIT"] * 2


async def test_nobody_listening_is_an_outage(open_post: OpenPost) -> None:
    post = await open_post(MailServer("smtp", "127.0.0.1", unused_port(), starttls="never"))
    refusal = await post.refused()
    assert (refusal.failure, refusal.permanent, refusal.attempts) == ("connection", False, 3)


async def test_a_try_takes_no_longer_than_allowed_in_all(stub: SmtpStub, post: Post) -> None:
    stub.at("rcpt", "hang", times=1)
    assert (await post.send()).attempts == 2


@pytest.mark.fault("E31")
async def test_a_server_may_take_its_time_over_the_content(stub: SmtpStub, open_post: OpenPost) -> None:
    post = await open_post(stub, limits=Limits(timeout=timedelta(seconds=0.3), content_timeout=timedelta(minutes=1)))
    stub.at("eod", "wait")
    sent: list[float] = []
    loop = asyncio.get_running_loop()
    sending = asyncio.create_task(post.servers.send(LETTER, on_content=lambda: sent.append(loop.time())))
    await eventually(lambda: bool(sent) and loop.time() > sent[0] + 0.6)
    assert not sending.done()
    stub.go_on.set()
    assert await sending == HandOver(provider(stub), attempts=1, reply_code=250)
    assert len(stub.mails) == 1


async def test_a_cancelled_send_leaves_no_connection_and_counts_for_nothing(stub: SmtpStub, post: Post) -> None:
    stub.at("rcpt", "hang")
    for number in range(6):
        sending = asyncio.create_task(post.send())
        await stub.until(lambda number=number: stub.received.count(b"RCPT") == number + 1)  # type: ignore[misc]
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        await stub.until(lambda: stub.sessions[-1].over)
    assert await post.servers.states() == {provider(stub): "closed"}
    stub.heal()
    assert (await post.send()).attempts == 1


# --- Encryption and login -----------------------------------------------------------------------------------


async def test_starttls_comes_before_login_and_mail(
    stack: AsyncExitStack, open_post: OpenPost, certificate: ssl.SSLContext, trust: ssl.SSLContext
) -> None:
    stub = await stack.enter_async_context(SmtpStub(tls=certificate, credentials=("jo", "s3cret")))
    server = MailServer("smtp", "127.0.0.1", stub.port, "jo", SecretStr("s3cret"))
    post = await open_post(server, tls=trust)
    assert (await post.send()).attempts == 1
    (session,) = stub.sessions
    assert session.encrypted
    assert session.commands == [b"EHLO", b"STARTTLS", b"EHLO", b"AUTH", b"MAIL", b"RCPT", b"DATA"]


async def test_tls_from_the_first_byte(
    stack: AsyncExitStack, open_post: OpenPost, certificate: ssl.SSLContext, trust: ssl.SSLContext
) -> None:
    stub = await stack.enter_async_context(SmtpStub(tls=certificate, implicit=True, credentials=("jo", "s3cret")))
    server = MailServer("smtps", "127.0.0.1", stub.port, "jo", SecretStr("s3cret"))
    post = await open_post(server, tls=trust)
    assert (await post.send()).attempts == 1


@pytest.mark.fault("E23")
@pytest.mark.parametrize("fault", ["stripped", "untrusted", "refused", "expected-implicit"])
async def test_without_good_tls_neither_login_nor_mail_is_sent(
    stack: AsyncExitStack, open_post: OpenPost, certificate: ssl.SSLContext, trust: ssl.SSLContext, fault: str
) -> None:
    stub = await stack.enter_async_context(
        SmtpStub(tls=certificate, offer_starttls=fault != "stripped", credentials=("jo", "s3cret"))
    )
    if fault == "refused":
        stub.at("starttls", "502 not today")
    scheme = "smtps" if fault == "expected-implicit" else "smtp"
    server = MailServer(scheme, "127.0.0.1", stub.port, "jo", SecretStr("s3cret"))  # type: ignore[arg-type]
    post = await open_post(server, tls=None if fault == "untrusted" else trust)

    for _ in range(3):
        with pytest.raises(MailServersAway):
            await post.send()

    assert post.outcomes == ["tls"]
    assert stub.received.count(b"AUTH") == stub.received.count(b"MAIL") == 0
    assert stub.mails == []
    assert len(stub.sessions) == 1


@pytest.mark.fault("E3", "E4", "E12", "E13")
@pytest.mark.parametrize("action", ["hang", "drop", "454 4.7.0 not just now"])
@pytest.mark.parametrize("stage", ["starttls", "auth"])
async def test_trouble_on_the_way_to_a_session_sends_nothing_and_passes(
    stack: AsyncExitStack,
    open_post: OpenPost,
    certificate: ssl.SSLContext,
    trust: ssl.SSLContext,
    stage: Stage,
    action: str,
) -> None:
    stub = await stack.enter_async_context(SmtpStub(tls=certificate, credentials=("jo", "s3cret")))
    stub.at(stage, action)
    post = await open_post(MailServer("smtp", "127.0.0.1", stub.port, "jo", SecretStr("s3cret")), tls=trust)
    refusal = await post.refused()
    assert (refusal.permanent, refusal.outcome_unknown) == (False, False)
    assert stub.received.count(b"MAIL") == 0
    stub.heal()
    assert (await post.send()).attempts == 1


@pytest.mark.fault("E22")
async def test_a_refused_login_opens_the_circuit_and_heals_after_thirty_seconds(
    stack: AsyncExitStack, open_post: OpenPost
) -> None:
    stub = await stack.enter_async_context(SmtpStub(credentials=("jo", "s3cret")))
    server = MailServer("smtp", "127.0.0.1", stub.port, "jo", SecretStr("s3cret"), starttls="never")
    post = await open_post(server)
    stub.at("auth", "535 5.7.8 no")

    for _ in range(3):
        with pytest.raises(MailServersAway):
            await post.send()
    assert post.outcomes == ["authentication"]
    assert len(stub.sessions) == 1

    stub.heal()
    post.clock.now += 30
    assert (await post.send()).attempts == 1


@pytest.mark.parametrize("reply", ["530 5.7.0 authentication required", "550 5.7.1 sender not yours", "553 no"])
async def test_an_unwelcome_sender_is_our_configuration(stub: SmtpStub, post: Post, reply: str) -> None:
    stub.at("mail", reply)
    with pytest.raises(MailServersAway):
        await post.send()
    assert post.outcomes == ["authentication"]
    assert await post.servers.states() == {provider(stub): "opened"}


@pytest.mark.fault("E30")
@pytest.mark.parametrize(
    ("reply", "failure"),
    [
        ("554 5.7.1 relay access denied", "authentication"),
        ("553 5.1.8 domain of sender address does not exist", "authentication"),
        ("513 Relaying denied.", "authentication"),
        ("454 4.7.1 relay access denied", "authentication"),
        ("450 4.1.8 sender address rejected", "authentication"),
        ("550 5.4.5 daily sending quota exceeded", "throttled"),
    ],
)
async def test_what_is_about_us_is_no_mailboxs_fault(stub: SmtpStub, post: Post, reply: str, failure: str) -> None:
    await post.send()
    stub.at("rcpt", reply)
    refusal = await post.refused()
    assert (refusal.failure, refusal.permanent, refusal.attempts) == (failure, False, 0)
    assert await post.servers.states() == {provider(stub): "closed"}


# --- Several servers ------------------------------------------------------------------------------------------


@pytest.fixture
async def second(stack: AsyncExitStack) -> SmtpStub:
    return await stack.enter_async_context(SmtpStub())


async def test_the_first_server_is_preferred(stub: SmtpStub, second: SmtpStub, open_post: OpenPost) -> None:
    post = await open_post(stub, second)
    for _ in range(3):
        await post.send()
    assert (len(stub.mails), len(second.mails)) == (3, 0)


async def test_an_open_circuit_sends_mail_to_the_next_server(
    stub: SmtpStub, second: SmtpStub, open_post: OpenPost
) -> None:
    post = await open_post(stub, second)
    await post.send()
    await post.open_circuit()
    assert await post.send() == HandOver(provider(second), attempts=1, reply_code=250)


async def test_after_an_outage_the_next_try_goes_to_the_next_server(
    stub: SmtpStub, second: SmtpStub, open_post: OpenPost
) -> None:
    post = await open_post(stub, second)
    stub.at("banner", "drop")
    assert await post.send() == HandOver(provider(second), attempts=2, reply_code=250)


async def test_a_refused_login_costs_no_try_at_the_next_server(
    stub: SmtpStub, second: SmtpStub, open_post: OpenPost
) -> None:
    post = await open_post(stub, second)
    stub.at("mail", "530 log in first")
    assert await post.send() == HandOver(provider(second), attempts=1, reply_code=250)
    assert post.pauses == []


async def test_a_content_that_a_server_refuses_of_everybody_is_shown_to_the_next(
    stub: SmtpStub, second: SmtpStub, open_post: OpenPost
) -> None:
    post = await open_post(stub, second)
    stub.at("eod", "554 looks like spam")
    assert await post.send() == HandOver(provider(second), attempts=2, reply_code=250)


async def test_a_permanent_refusal_is_not_asked_of_the_next_server(
    stub: SmtpStub, second: SmtpStub, open_post: OpenPost
) -> None:
    post = await open_post(stub, second)
    stub.at("rcpt", "550 5.1.1 unknown")
    assert (await post.refused()).provider == provider(stub)
    assert second.sessions == []


async def test_circuits_that_open_between_tries_end_with_the_tries_made(stub: SmtpStub, post: Post) -> None:
    stub.at("rcpt", "451 4.7.1 greylisted")
    await post.servers.states()  # makes the circuit
    (circuit,) = post.servers.circuits
    post.between_tries = circuit.open
    assert (await post.refused()).attempts == 1


async def test_waiting_ends_when_the_first_server_is_back(
    stub: SmtpStub, second: SmtpStub, open_post: OpenPost
) -> None:
    post = await open_post(stub, second)
    await post.servers.until_ready()
    for circuit in post.servers.circuits:
        circuit.open()
    waiting = asyncio.create_task(post.servers.until_ready())
    await asyncio.wait([waiting], timeout=0)
    assert not waiting.done()
    post.clock.now += 30
    post.servers.circuits[1].wake()  # what its timer does, on the loop's own clock
    async with asyncio.timeout(5):
        await waiting


# --- Connections ------------------------------------------------------------------------------------------------


async def test_a_connection_carries_many_mails(stub: SmtpStub, post: Post) -> None:
    for _ in range(10):
        await post.send()
    assert (len(stub.sessions), len(stub.mails)) == (1, 10)


async def test_a_connection_carries_no_more_than_its_share(stub: SmtpStub, open_post: OpenPost) -> None:
    post = await open_post(stub, limits=Limits(mails_per_connection=4))
    for _ in range(10):
        await post.send()
    assert [session.commands.count(b"MAIL") for session in stub.sessions] == [4, 4, 2]
    await stub.until(lambda: sum(session.over for session in stub.sessions) == 2)
    assert [session.commands[-1] for session in stub.sessions[:2]] == [b"QUIT"] * 2


async def test_no_more_than_the_allowed_connections_are_open(stub: SmtpStub, open_post: OpenPost) -> None:
    post = await open_post(stub, limits=Limits(connections=3))
    await asyncio.gather(*(post.send() for _ in range(30)))
    assert (stub.peak, len(stub.mails)) == (3, 30)


async def test_an_idle_connection_is_closed_in_time(stub: SmtpStub, open_post: OpenPost) -> None:
    post = await open_post(stub, limits=Limits(idle=timedelta(milliseconds=50)))
    await post.send()
    await stub.until(lambda: stub.sessions[0].over)
    assert stub.sessions[0].commands[-1] == b"QUIT"
    assert (await post.send()).attempts == 1


async def test_a_connection_closed_by_the_server_is_replaced(stub: SmtpStub, post: Post) -> None:
    await post.send()
    stub.drop_connections()
    await stub.until(lambda: stub.sessions[0].over)
    assert (await post.send()).attempts == 1
    assert post.outcomes == ["accepted", "accepted"]


@pytest.mark.parametrize("action", ["drop", "hang", "421 4.4.2 idle for too long"])
async def test_a_stale_connection_costs_no_try(stub: SmtpStub, post: Post, action: str) -> None:
    await post.send()
    stub.at("mail", action, times=1)
    assert (await post.send()).attempts == 1
    assert post.outcomes == ["accepted", "accepted"]
    assert (len(stub.sessions), len(stub.mails)) == (2, 2)


async def test_a_refused_mail_is_forgotten_before_the_next(stub: SmtpStub, post: Post) -> None:
    stub.at("rcpt", "550 5.1.1 unknown", times=1)
    await post.refused()
    await post.send()
    refused = [b"MAIL", b"RCPT", b"DATA"] if stub.pipelining else [b"MAIL", b"RCPT"]
    assert stub.sessions[0].commands == [b"EHLO", *refused, b"RSET", b"MAIL", b"RCPT", b"DATA"]


async def test_a_server_that_waits_for_a_mail_that_it_has_refused_gets_nothing(
    stack: AsyncExitStack, open_post: OpenPost
) -> None:
    stub = await stack.enter_async_context(SmtpStub(pipelining=True))
    post = await open_post(stub)
    stub.at("rcpt", "550 5.1.1 unknown", times=1).at("data", "354 go ahead", times=1)

    assert (await post.refused()).permanent
    await post.send(letter_to("ann@example.com"))

    assert [mail.recipients for mail in stub.mails] == [[b"ann@example.com"]]
    assert [session.commands for session in stub.sessions] == [[b"EHLO", b"MAIL", b"RCPT", b"DATA"]] * 2


async def answering(stack: AsyncExitStack, *exchanges: tuple[bytes, bytes]) -> MailServer:
    """A server that says each of these only after all of the line before it, on every session anew."""

    serving = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            writer.write(b"220 stub.test\r\n")
            for heard, said in (*exchanges, (b"QUIT\r\n", b"221 bye\r\n")):
                await reader.readuntil(heard)
                for byte in said:  # in as many pieces as there can be
                    writer.write(bytes([byte]))
                    await writer.drain()
            await reader.read()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async def end() -> None:
        server.close()
        await asyncio.gather(*(task for task in serving if task is not None))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    stack.push_async_callback(end)
    return MailServer("smtp", "127.0.0.1", server.sockets[0].getsockname()[1], starttls="never")


HELLO = (b"EHLO registrar.example\r\n", b"250-stub.test\r\n250-PIPELINING\r\n250 8BITMIME\r\n")
COMMANDS = (b"DATA\r\n", b"250-fine\r\n250 so far\r\n250\r\n354 go ahead\r\n")


async def test_a_server_that_takes_commands_ahead_of_its_replies_gets_them_together(
    stack: AsyncExitStack, open_post: OpenPost
) -> None:
    post = await open_post(await answering(stack, HELLO, COMMANDS, (b"\r\n.\r\n", b"250 2.0.0 taken\r\n")))
    assert (await post.send()).reply_code == 250


async def test_what_a_server_says_unasked_is_not_taken_for_a_reply(stack: AsyncExitStack, open_post: OpenPost) -> None:
    unasked = (b"\r\n.\r\n", b"250 2.0.0 taken\r\n421 4.3.2 I go\r\n")
    post = await open_post(await answering(stack, HELLO, COMMANDS, unasked))

    await post.send()
    await post.send()  # on another session

    assert post.outcomes == ["accepted", "accepted"]


@pytest.mark.parametrize("reply", [b"hello\r\n", b"2500 fine\r\n", b"250-" + b"x" * 40000])
async def test_what_is_no_reply_ends_the_session_before_anything_is_sent(
    stack: AsyncExitStack, open_post: OpenPost, reply: bytes
) -> None:
    post = await open_post(await answering(stack, HELLO, (b"DATA\r\n", reply)))
    failure = await post.refused()
    assert (failure.failure, failure.permanent, failure.outcome_unknown) == ("connection", False, False)


async def test_closing_says_goodbye(stub: SmtpStub, post: Post) -> None:
    await post.send()
    await post.servers.close()
    assert stub.sessions[0].commands[-1] == b"QUIT"


# --- Throttling -------------------------------------------------------------------------------------------------


def numbered(count: int) -> list[Letter]:
    return [letter_to(f"jo{number}@example.com") for number in range(count)]


def copies(stub: SmtpStub) -> Counter[bytes]:
    return Counter(recipient for mail in stub.mails for recipient in mail.recipients)


@pytest.mark.fault("E26")
@pytest.mark.parametrize("reply", ["450 4.7.0 too many at once", "421 4.7.0 too many at once", "421 busy"])
async def test_a_server_gets_as_many_mails_at_once_as_it_takes_and_more_when_it_takes_more(
    stub: SmtpStub, open_post: OpenPost, reply: str
) -> None:
    post = await open_post(stub, limits=WIDE)
    stub.bears, stub.throttle = 3, reply

    await asyncio.gather(*(post.insist(letter) for letter in numbered(300)))  # fails if its circuit opens

    throttled = post.outcomes.count("throttled")
    assert stub.faults["too many at once"] >= throttled > 0
    assert throttled < 100, "at first by the dozen, then one now and then"
    lowered = [now for before, now in pairwise(post.concurrency) if now < before]
    assert lowered[0] == 16
    assert len(lowered) < throttled, "what is refused at the same time counts once"
    assert min(post.concurrency) >= 2
    settled = next(number for number, limit in enumerate(post.concurrency) if limit <= 4)
    assert max(post.concurrency[settled:]) <= 7
    assert set(copies(stub).values()) == {1}
    assert len(stub.mails) == 300

    stub.bears = None
    await asyncio.gather(*(post.send(letter) for letter in numbered(700)))

    assert post.concurrency[-1] == 32
    assert post.outcomes.count("throttled") == throttled
    assert await post.servers.states() == {provider(stub): "closed"}


@pytest.mark.fault("E26")
@pytest.mark.parametrize(
    ("stage", "action"),
    [
        ("banner", "drop"),
        *((stage, "421 4.7.0 too many") for stage in ("banner", "ehlo", "mail", "rcpt", "data", "eod")),
    ],
)
async def test_a_server_that_says_421_to_everybody_gets_no_more_tries_than_one_that_is_away(
    stub: SmtpStub, open_post: OpenPost, stage: Stage, action: str
) -> None:
    post = await open_post(stub, limits=WIDE)
    stub.at(stage, action)

    failures = await asyncio.gather(*(post.send(letter) for letter in numbered(100)), return_exceptions=True)

    # Those that are under way when the fifth fails, and those that have taken the place of the first four.
    assert 32 <= stub.faults[stage] <= 32 + 4
    assert len(post.outcomes) == stub.faults[stage]
    assert sum(isinstance(failure, MailServersAway) for failure in failures) == 100 - stub.faults[stage]
    assert await post.servers.states() == {provider(stub): "opened"}


@pytest.mark.fault("E26")
@pytest.mark.parametrize("stage", ["mail", "rcpt"])
async def test_too_many_says_nothing_against_a_server_that_is_just_taking_another_mail(
    stub: SmtpStub, open_post: OpenPost, stage: Stage
) -> None:
    post = await open_post(stub, limits=Limits(connections=64, first_connections=64))
    stub.at("data", "hang", times=1)
    taken = asyncio.create_task(post.send())
    await stub.until(lambda: stub.faults["data"] == 1)

    stub.at(stage, "421 4.7.0 too many", times=5)
    assert (await post.refused()).attempts == 3
    assert (await post.send()).attempts == 3

    assert post.concurrency == [64, 32, 16, 8, 4, 2]
    assert await post.servers.states() == {provider(stub): "closed"}
    taken.cancel()
    await asyncio.gather(taken, return_exceptions=True)


def open_now(stub: SmtpStub) -> int:
    return sum(not session.over for session in stub.sessions)


CROWDED = {
    "421, six at once": ("421 4.7.0 too many connections", lambda stub: open_now(stub) > 5),
    "closed, six at once": ("drop", lambda stub: open_now(stub) > 5),
    "554, six at once": ("554 5.7.1 no more for you", lambda stub: open_now(stub) > 5),
    "421 4.3.2, eleven in all": ("421 4.3.2 connection rate limit exceeded", lambda stub: len(stub.sessions) > 10),
    "closed, three in all": ("drop", lambda stub: len(stub.sessions) > 2),
}


@pytest.mark.fault("E26")
@pytest.mark.parametrize("kind", CROWDED)
async def test_a_server_that_takes_no_further_session_gets_all_mails_by_those_that_it_has(
    stub: SmtpStub, open_post: OpenPost, kind: str
) -> None:
    action, is_crowded = CROWDED[kind]
    stub.at("banner", lambda: action if is_crowded(stub) else None)
    post = await open_post(stub, limits=Limits(first_connections=16))

    sent = await asyncio.gather(*(post.send(letter) for letter in numbered(300)))

    assert {one.attempts for one in sent} == {1}, "it costs no try"
    assert set(post.outcomes) == {"accepted"}
    assert 0 < stub.faults["banner"] < 30
    assert copies(stub) == Counter({letter.to.encode(): 1 for letter in numbered(300)})
    assert await post.servers.states() == {provider(stub): "closed"}


@pytest.mark.fault("E26")
@pytest.mark.parametrize("action", ["drop", "421 4.7.0 too many", "554 5.7.1 no more"])
@pytest.mark.parametrize("takes", [1, 2, 3])
async def test_a_refusal_that_comes_before_the_others_are_greeted_is_no_outage(
    stub: SmtpStub, open_post: OpenPost, action: str, takes: int
) -> None:
    refused_one = asyncio.Event()

    def greeting() -> str | None:
        if open_now(stub) > takes:
            refused_one.set()
            asyncio.get_running_loop().call_later(0.02, stub.go_on.set)
            return action
        return None if stub.go_on.is_set() else "wait"

    stub.at("banner", greeting)
    post = await open_post(stub, limits=Limits())
    sent = await asyncio.gather(*(post.send(letter) for letter in numbered(120)))

    assert refused_one.is_set()
    assert {one.attempts for one in sent} == {1}
    assert post.concurrency[1] == takes, "it is known at once how many it takes"
    assert min(post.concurrency) == takes
    assert await post.servers.states() == {provider(stub): "closed"}


@pytest.mark.fault("E26")
async def test_a_worker_that_gets_no_session_waits_while_the_server_takes_mails_of_others(
    stub: SmtpStub, open_post: OpenPost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infrastructure.mail.smtp.server.CROWDED_PAUSE", 0.01)
    stub.at("banner", lambda: "drop" if open_now(stub) > 2 else None)
    one, other = await open_post(stub, limits=Limits()), await open_post(stub, limits=Limits())
    await asyncio.gather(*(one.send(letter) for letter in numbered(20)))
    await other.servers.states()  # makes what is known of the servers
    other.evidence[0].taken_from_another(0.0)

    refused = stub.faults["banner"]
    sending = [asyncio.create_task(other.send(letter)) for letter in numbered(20)]
    await stub.until(lambda: stub.faults["banner"] > refused + 10)
    await one.servers.close()
    sent = await asyncio.gather(*sending)

    assert {one.attempts for one in sent} == {1}
    assert await other.servers.states() == {provider(stub): "closed"}


@pytest.mark.fault("E31")
@pytest.mark.parametrize("hung", [1, 60])
async def test_mails_that_a_server_has_and_does_not_answer_keep_no_other_from_the_next_server(
    stub: SmtpStub, stack: AsyncExitStack, open_post: OpenPost, hung: int
) -> None:
    other = await stack.enter_async_context(SmtpStub())
    post = await open_post(stub, other, limits=replace(QUICK, content_timeout=timedelta(minutes=10)))
    stub.at("eod", "hang", times=hung)
    first = [asyncio.create_task(post.send(letter)) for letter in numbered(hung)]
    await stub.until(lambda: stub.faults["eod"] >= min(hung, FIRST_CONNECTIONS))
    stub.at("banner", "hang")

    sent = await asyncio.gather(*(post.send(letter) for letter in numbered(200)[-20:]))

    assert {one.provider for one in sent} == {provider(other)}
    for task in first:
        task.cancel()
    await asyncio.gather(*first, return_exceptions=True)


@pytest.mark.fault("E26")
async def test_sessions_are_kept_while_the_server_takes_no_further_one(stub: SmtpStub, open_post: OpenPost) -> None:
    post = await open_post(stub, limits=Limits(mails_per_connection=5, idle=timedelta(milliseconds=1)))
    stub.at("banner", lambda: "drop" if len(stub.sessions) > 2 else None)

    for _ in range(2):
        await asyncio.gather(*(post.send(letter) for letter in numbered(60)))

    assert max(session.mails for session in stub.sessions) > 5
    assert len(stub.mails) == 120


async def test_connections_are_opened_as_they_are_needed(stub: SmtpStub, open_post: OpenPost) -> None:
    post = await open_post(stub, limits=Limits())
    await asyncio.gather(*(post.send(letter) for letter in numbered(300)))
    assert post.concurrency[:2] == [4, 8], "twice as many, while mails wait; more only if that has brought more"
    assert 4 < len(stub.sessions) <= 32


@pytest.mark.fault("E26")
async def test_the_mail_after_a_slow_refusal_gets_another_session(
    stub: SmtpStub, open_post: OpenPost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infrastructure.mail.smtp.pool.SLOW_REFUSAL", timedelta(0))
    post = await open_post(stub, limits=Limits())
    stub.at("rcpt", "550 5.1.1 no such user", times=1)
    await post.refused()
    await post.send()
    assert len(stub.sessions) == 2


async def test_a_mail_whose_time_was_used_up_by_waiting_for_its_turn_is_not_begun(
    stub: SmtpStub, open_post: OpenPost
) -> None:
    limits = Limits(connections=1, timeout=timedelta(minutes=1))
    post = await open_post(stub, limits=limits)
    stub.at("eod", "wait", times=1)
    first = asyncio.create_task(post.send())
    await stub.until(lambda: len(stub.mails) == 1)
    until = asyncio.get_running_loop().time() + limits.timeout.total_seconds()
    second = asyncio.create_task(post.servers.send(letter_to("second@example.com"), until=until))
    await eventually(lambda: post.servers.waiting == 1)

    stub.go_on.set()

    assert (await first).attempts == 1
    with pytest.raises(MailServersAway):
        await second
    assert post.outcomes == ["accepted"]
    assert stub.sessions[0].commands.count(b"MAIL") == 1
    assert await post.servers.states() == {provider(stub): "closed"}


@pytest.mark.fault("E26")
async def test_a_server_that_ends_connections_after_so_many_mails_gets_no_more_on_one(
    stub: SmtpStub, post: Post
) -> None:
    stub.mails_per_session = 10
    for letter in numbered(45):
        assert (await post.send(letter)).attempts == 1

    assert post.outcomes == ["accepted"] * 45
    assert stub.faults == {"too many on one connection": 2}
    learned, left_in_time = [11, 11], [10, 10, 5]  # the eleventh mail was refused on the first two
    assert [session.commands.count(b"MAIL") for session in stub.sessions] == learned + left_in_time
    await stub.until(lambda: sum(session.over for session in stub.sessions) == 4)
    assert [session.commands[-1] for session in stub.sessions[2:4]] == [b"QUIT"] * 2
    assert set(copies(stub).values()) == {1}
    assert post.concurrency == [4]


async def test_what_a_server_takes_on_one_connection_is_tested_again_now_and_then(
    stub: SmtpStub, open_post: OpenPost
) -> None:
    post = await open_post(stub, limits=replace(QUICK, learned_for=2))
    stub.mails_per_session = 3
    for _ in range(7):
        await post.send()
    stub.mails_per_session = None
    for _ in range(20):
        await post.send()
    learned, tested_again = [4, 4], [3, 3, 15]  # the fourth mail was refused on the first two
    assert [session.commands.count(b"MAIL") for session in stub.sessions] == learned + tested_again


@pytest.mark.parametrize("reply", ["421 4.4.2 idle for too long", "421 4.3.2 shutting down"])
async def test_a_connection_ended_for_another_reason_tells_nothing_about_its_mails(
    stub: SmtpStub, post: Post, reply: str
) -> None:
    await post.send()
    await post.send()
    for more in (2, 5):
        stub.at("mail", reply, times=1)
        for _ in range(more):
            await post.send()
    assert [session.commands.count(b"MAIL") for session in stub.sessions] == [3, 3, 5]


# --- Silence --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stage", "reply"), [("rcpt", "550 5.1.1"), ("eod", "554"), ("mail", "550"), ("rcpt", "450")])
async def test_neither_logs_nor_errors_repeat_what_the_server_says(
    stub: SmtpStub, post: Post, caplog: pytest.LogCaptureFixture, stage: Stage, reply: str
) -> None:
    caplog.set_level(logging.DEBUG)
    stub.at(stage, f"{reply} <jo.doe+x@example.com>: CANARY")
    with pytest.raises((NotSent, MailServersAway)) as raised:
        await post.send()
    refusal = raised.value
    told = "".join(traceback.format_exception(refusal, chain=True)) + repr(refusal.args) + caplog.text
    error: BaseException | None = refusal
    while error is not None:
        told += repr(error)
        error = error.__cause__ or error.__context__
    assert "CANARY" not in told
    assert "jo.doe" not in told
    assert "123456" not in told


async def test_a_probe_goes_all_the_way_but_for_the_mail(open_post: OpenPost, stub: SmtpStub) -> None:
    post = await open_post(stub)

    probed = await post.servers.probe()
    accepted = await post.send()

    assert probed == accepted
    assert len(stub.mails) == 1
    (session,) = stub.sessions
    assert session.commands[:6] == [b"EHLO", b"MAIL", b"RSET", b"MAIL", b"RCPT", b"DATA"]


async def test_a_probe_shares_the_fate_of_a_mail(open_post: OpenPost, stub: SmtpStub) -> None:
    post = await open_post(stub)
    stub.at("banner", "drop")

    with pytest.raises(NotSent) as probed:
        await post.servers.probe()
    refused = await post.refused()

    assert (probed.value.failure.failure, probed.value.failure.permanent) == (refused.failure, refused.permanent)
    assert probed.value.failure.attempts > 0


async def test_a_mail_that_is_not_begun_does_not_ask_to_probe_first(stub: SmtpStub, stack: AsyncExitStack) -> None:
    clock, asked = Clock(), list[str]()

    async def may_probe(name: str) -> bool:
        asked.append(name)
        return True

    servers = SmtpServers(
        [plain(stub)],
        sender="Registrar <no-reply@registrar.example>",
        circuits=Circuits(clock=clock),
        may_probe=may_probe,
    )
    stack.push_async_callback(servers.close)
    await servers.states()  # makes the circuits
    servers.circuits[0].open()
    clock.now = 30

    with pytest.raises(MailServersAway):
        await servers.send(LETTER, until=asyncio.get_running_loop().time())
    assert asked == []

    assert (await servers.send(LETTER)).attempts == 1
    assert len(asked) == 1


async def test_who_may_probe_does_though_another_mail_that_asked_beside_it_was_told_no(
    stub: SmtpStub, stack: AsyncExitStack
) -> None:
    clock, answers = Clock(), [asyncio.get_running_loop().create_future() for _ in range(2)]
    asked = iter(answers)

    async def may_probe(_: str) -> bool:
        return await next(asked)

    servers = SmtpServers(
        [plain(stub)],
        sender="Registrar <no-reply@registrar.example>",
        circuits=Circuits(clock=clock),
        may_probe=may_probe,
    )
    stack.push_async_callback(servers.close)
    await servers.states()  # makes the circuits
    servers.circuits[0].open()
    clock.now = 30
    probe, other = (asyncio.create_task(servers.send(LETTER)) for _ in answers)

    answers[1].set_result(False)
    with pytest.raises(MailServersAway):
        await other
    answers[0].set_result(True)

    assert (await probe).attempts == 1
    assert len(stub.mails) == 1
    assert set((await servers.states()).values()) == {"closed"}
