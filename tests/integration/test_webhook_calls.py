"""One call of a webhook: what is sent, whom it is sent to, and what counts as delivered."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import nacl.exceptions
import pytest
import standardwebhooks
import trustme
from nacl.signing import SigningKey, VerifyKey
from pydantic import TypeAdapter

from infrastructure.settings.addresses import Reachable
from infrastructure.settings.values import PrivateNetworks
from infrastructure.webhooks import calls as calls_module
from infrastructure.webhooks.calls import Calls, NotDelivered
from infrastructure.webhooks.signing import public_keys
from tests.support.endpoint_stub import LOOPBACK, SECRET, EndpointStub, endpoint
from tests.support.facts import eventually

BODY = b'{"specversion":"1.0","type":"registrar.registration.verified.v1","subject":"x"}'
ANOTHER = f"whsec_{b64encode(bytes(range(32, 64))).decode()}"
SEED = bytes(range(32))
PRIVATE = f"whsk_{b64encode(SEED).decode()}"


def reachable(networks: str = LOOPBACK) -> Reachable:
    return Reachable(TypeAdapter(PrivateNetworks).validate_python(networks) if networks else ())


@pytest.fixture
async def stub() -> AsyncIterator[EndpointStub]:
    async with EndpointStub() as stub:
        yield stub


def calls(stub: EndpointStub, secrets: str = SECRET, **options: Any) -> Calls:
    return Calls(endpoint(stub.url, secrets), reachable(), **options)


async def failure(calls: Calls) -> NotDelivered:
    with pytest.raises(NotDelivered) as failed:
        await calls.post("m-1", BODY)
    calls.drop()
    return failed.value


# --- What is sent ---------------------------------------------------------------------------------


async def test_a_call_is_verified_by_a_library_that_is_not_ours(stub: EndpointStub) -> None:
    await calls(stub).post("m-1", BODY)

    [call] = stub.calls
    assert standardwebhooks.Webhook(SECRET).verify(call.body, dict(call.headers)) == json.loads(BODY)
    assert (call.method, call.target) == ("POST", "/hook?key=1")
    assert call.headers["content-type"] == "application/cloudevents+json"
    assert call.headers["webhook-id"] == "m-1"


async def test_during_a_rotation_a_call_is_verified_with_the_old_secret_and_with_the_new_one(
    stub: EndpointStub,
) -> None:
    await calls(stub, f"{SECRET} {ANOTHER}").post("m-1", BODY)

    [call] = stub.calls
    for secret in (SECRET, ANOTHER):
        standardwebhooks.Webhook(secret).verify(call.body, dict(call.headers))
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(f"whsec_{b64encode(bytes(32)).decode()}").verify(call.body, dict(call.headers))


@pytest.mark.parametrize("key", [PRIVATE, PRIVATE.rstrip("="), f"whsk_{b64encode(SEED * 2).decode()}"])
async def test_a_signature_of_ed25519_is_verified_with_the_public_key_that_we_show(
    stub: EndpointStub, key: str
) -> None:
    one = endpoint(stub.url, f"{SECRET} {key}")
    await Calls(one, reachable()).post("m-1", BODY)

    [call] = stub.calls
    standardwebhooks.Webhook(SECRET).verify(call.body, dict(call.headers))  # a library that knows one kind passes over
    [public] = public_keys(one)
    [signature] = [b64decode(s[4:]) for s in call.headers["webhook-signature"].split(" ") if s.startswith("v1a,")]
    signed = f"m-1.{call.headers['webhook-timestamp']}.".encode() + call.body
    verify_key = VerifyKey(b64decode(public.removeprefix("whpk_")))
    assert verify_key == SigningKey(SEED).verify_key
    verify_key.verify(signed, signature)
    with pytest.raises(nacl.exceptions.BadSignatureError):
        verify_key.verify(signed + b" ", signature)


async def test_each_try_has_a_time_of_its_own(stub: EndpointStub) -> None:
    times = iter([1_700_000_000.9, 1_700_000_060.0])
    client = calls(stub, now=lambda: next(times))

    await client.post("m-1", BODY)
    await client.post("m-1", BODY)

    assert [call.headers["webhook-timestamp"] for call in stub.calls] == ["1700000000", "1700000060"]
    assert stub.ids == ["m-1", "m-1"]


async def test_user_and_password_of_an_address_become_a_header(stub: EndpointStub) -> None:
    url = stub.url.replace("://", "://us%40er:p%3Aw@")
    await Calls(endpoint(url), reachable()).post("m-1", BODY)

    assert b64decode(stub.calls[0].headers["authorization"].removeprefix("Basic ")) == b"us@er:p:w"
    assert stub.calls[0].headers["host"] == f"127.0.0.1:{stub.port}"


# --- What counts as delivered ---------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["200 OK", "202 Accepted", "204 No Content", "299 Fine"])
async def test_any_2xx_is_enough(stub: EndpointStub, answer: str) -> None:
    stub.answer = lambda _: answer
    await calls(stub).post("m-1", BODY)


@pytest.mark.fault("X20", "X23")
@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("301 Moved\r\nLocation: http://127.0.0.1:1/", "status 301"),
        ("302 Found\r\nLocation: /hook", "status 302"),
        ("307 Elsewhere\r\nLocation: https://example.com/", "status 307"),
        ("400 Bad", "status 400"),
        ("410 Gone", "status 410"),
        ("500 Oops", "status 500"),
        ("drop", "no connection"),
        ("hang", "no answer within 0.2 s"),
        (b"who is there?\r\n\r\n", "no HTTP answer"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "no HTTP answer"),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n" * 10_000, "no HTTP answer"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1_000_000 + b"\r\n\r\n", "no HTTP answer"),
    ],
    ids=lambda value: value[:20] if isinstance(value, bytes) else None,
)
async def test_nothing_else_is_and_its_failure_says_why_in_words_of_ours(
    stub: EndpointStub, answer: str | bytes, says: str
) -> None:
    stub.answer = lambda _: answer
    found = await failure(calls(stub, deadline=timedelta(milliseconds=200 if answer == "hang" else 10_000)))
    assert found.failure == says
    assert len(stub.calls) == 1  # no redirect was followed


async def test_nobody_there_is_a_failure() -> None:
    async with EndpointStub() as gone:
        pass
    assert (await failure(calls(gone))).failure == "no connection"


@pytest.mark.fault("X22")
@pytest.mark.parametrize(
    ("says", "waits"),
    [
        ("120", 120.0),
        (format_datetime(datetime.fromtimestamp(1_700_000_090, UTC), usegmt=True), 90.0),
        (format_datetime(datetime.fromtimestamp(1_600_000_000, UTC), usegmt=True), 0.0),
        ("999999999", 86400.0),
        ("tomorrow", None),
        ("", None),
        ("-5", None),
    ],
)
async def test_what_an_answer_asks_us_to_wait_is_read(stub: EndpointStub, says: str, waits: float | None) -> None:
    stub.answer = lambda _: f"503 Busy\r\nRetry-After: {says}"
    found = await failure(calls(stub, now=lambda: 1_700_000_000.0))
    assert found.retry_after == (None if waits is None else timedelta(seconds=waits))
    assert found.status == 503


@pytest.mark.fault("X22")
@pytest.mark.parametrize(
    "body", [b"HTTP/1.1 200 OK\r\nContent-Length: 5000000\r\n\r\nso far", b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1_000_000]
)
async def test_an_answer_without_an_end_is_a_delivery_and_costs_its_connection(
    stub: EndpointStub, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls_module, "REST", timedelta(milliseconds=10))
    stub.answer = lambda _: body
    client = calls(stub)
    await client.post("m-1", BODY)
    await client.post("m-2", BODY)
    assert stub.connections == 2


# --- Connections ----------------------------------------------------------------------------------


async def test_a_connection_is_used_again(stub: EndpointStub) -> None:
    client = calls(stub)
    for number in range(5):
        await client.post(f"m-{number}", BODY)
    assert stub.connections == 1


@pytest.mark.fault("X22")
async def test_a_second_answer_to_one_call_is_no_answer_to_the_next(stub: EndpointStub) -> None:
    two = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    stub.answer = lambda call: two * 2 if call.headers["webhook-id"] == "m-1" else "500 No"
    client = calls(stub)
    await client.post("m-1", BODY)
    with pytest.raises(NotDelivered):
        await client.post("m-2", BODY)


async def test_a_kept_connection_that_was_closed_is_no_failure(stub: EndpointStub) -> None:
    stub.answer = lambda call: "204 Fine" if stub.connections > 1 or call.headers["webhook-id"] == "m-1" else "drop"
    client = calls(stub)
    await client.post("m-1", BODY)
    await client.post("m-2", BODY)
    assert stub.connections == 2


async def test_no_connection_is_kept_for_more_than_a_minute(
    stub: EndpointStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls_module, "KEEP", timedelta(0))
    client = calls(stub)
    await client.post("m-1", BODY)
    await client.post("m-2", BODY)
    assert stub.connections == 2


async def test_idle_connections_are_closed_when_their_minute_is_over_though_nobody_calls_any_more(
    stub: EndpointStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls_module, "KEEP", timedelta(milliseconds=200))
    client = calls(stub)
    await client.post("m-1", BODY)
    await asyncio.gather(*(client.post(f"m-{number}", BODY) for number in range(2, 5)))
    assert stub.connections >= 3, "which were not all made at once"

    await eventually(lambda: stub.connected == 0, within=5)

    monkeypatch.setattr(calls_module, "KEEP", timedelta(minutes=1))
    await client.post("m-5", BODY)
    assert stub.connected == 1
    client.drop()
    await eventually(lambda: stub.connected == 0, within=5)


# --- Where to -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("64:ff9b::5db8:d822", True),
        ("127.0.0.1", False),
        ("0.0.0.0", False),  # noqa: S104 - it is not bound
        ("10.0.0.1", False),
        ("172.16.0.1", False),
        ("192.168.0.1", False),
        ("100.64.0.1", False),
        ("100.100.100.200", False),
        ("169.254.169.254", False),
        ("168.63.129.16", False),
        ("192.0.2.1", False),
        ("198.18.0.1", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("::7f00:1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:169.254.169.254", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b:1::1", False),
        ("2002:7f00:1::", False),
        ("2002:a9fe:a9fe::1", False),
        ("2001:0:1::", False),
        ("fe80::1%eth0", False),
        ("fec0::1", False),
        ("3fff::1", False),
        ("fc00::1", False),
        ("fd00:ec2::254", False),
        ("ff02::1", False),
    ],
)
def test_only_addresses_of_the_internet_are_public(address: str, public: bool) -> None:
    assert reachable("").allows(address, encrypted=True) is public
    assert not reachable("").allows(address, encrypted=False)


def test_a_network_that_is_named_may_be_called_also_in_clear() -> None:
    allowed = reachable("10.1.2.0/24,::1/128")
    assert allowed.allows("10.1.2.3", encrypted=False)
    assert allowed.allows("::ffff:10.1.2.3", encrypted=False)
    assert allowed.allows("::1", encrypted=True)
    assert not allowed.allows("10.1.3.3", encrypted=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]"])
async def test_this_machine_is_not_called_whatever_it_is_named(stub: EndpointStub, host: str) -> None:
    client = Calls(endpoint(f"http://{host}:{stub.port}/"), reachable(""))
    assert (await failure(client)).failure == "its address is not public, and not in REGISTRAR_WEBHOOK_NETWORKS"
    assert stub.connections == 0


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What names mean, which a test may change at any time; each look-up takes the next address of a name, the last
    one for good."""
    meant: dict[str, list[str]] = {}

    async def look_up(host: str, port: int, **_: Any) -> Sequence[Any]:
        said = meant[host]
        address = said.pop(0) if len(said) > 1 else said[0]
        return socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)

    monkeypatch.setattr(calls_module, "look_up", look_up)
    return meant


@pytest.mark.fault("X24")
async def test_a_name_that_comes_to_mean_this_machine_is_not_followed_there(
    stub: EndpointStub, names: dict[str, list[str]]
) -> None:
    names["rebinding.example"] = ["127.0.0.1", "127.9.9.9"]
    client = Calls(endpoint(f"http://rebinding.example:{stub.port}/"), reachable("127.0.0.1/32"))
    await client.post("m-1", BODY)
    client.drop()

    assert (await failure(client)).failure == "its address is not public, and not in REGISTRAR_WEBHOOK_NETWORKS"
    assert len(stub.calls) == 1


async def test_the_address_that_was_judged_is_the_one_that_is_called(
    stub: EndpointStub, names: dict[str, list[str]]
) -> None:
    names["rebinding.example"] = ["127.0.0.1", "127.0.0.2"]
    async with EndpointStub(host="127.0.0.2", port=stub.port) as wrong:
        await Calls(endpoint(f"http://rebinding.example:{stub.port}/"), reachable("127.0.0.1/32")).post("m-1", BODY)

    assert (len(stub.calls), len(wrong.calls)) == (1, 0)
    assert stub.calls[0].headers["host"] == f"rebinding.example:{stub.port}"


@pytest.mark.fault("X24")
async def test_an_endpoint_that_moves_is_followed_after_a_failure(
    stub: EndpointStub, names: dict[str, list[str]]
) -> None:
    names["app.example"] = ["127.0.0.1"]
    client = Calls(endpoint(f"http://app.example:{stub.port}/"), reachable())
    await client.post("m-1", BODY)
    names["app.example"] = ["127.0.0.2"]
    stub.answer = lambda _: "503 Moved away"
    async with EndpointStub(host="127.0.0.2", port=stub.port) as there:
        with pytest.raises(NotDelivered):
            await client.post("m-2", BODY)
        await client.post("m-2", BODY)
        client.drop()

    assert there.ids == ["m-2"]


async def test_a_certificate_has_to_be_for_the_name_whatever_address_is_called(names: dict[str, list[str]]) -> None:
    authority, offered, trusted = (
        trustme.CA(),
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH),
        ssl.create_default_context(),
    )
    authority.issue_cert("app.example").configure_cert(offered)
    authority.configure_trust(trusted)
    names |= {"app.example": ["127.0.0.1"], "evil.example": ["127.0.0.1"]}
    async with EndpointStub(tls=offered) as stub:
        client = Calls(endpoint(f"https://app.example:{stub.port}/"), reachable(), tls=trusted)
        await client.post("m-1", BODY)
        client.drop()
        wrong = Calls(endpoint(f"https://evil.example:{stub.port}/"), reachable(), tls=trusted)

        assert (await failure(wrong)).failure == "no trustworthy encryption"

    assert stub.ids == ["m-1"]


async def test_a_failure_says_what_may_be_the_cause(stub: EndpointStub, names: dict[str, list[str]]) -> None:
    names |= {"app.example": ["127.0.0.1"], "127.0.0.1": ["127.0.0.1"]}

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        clear = Calls(endpoint(f"https://app.example:{server.sockets[0].getsockname()[1]}/"), reachable())
        failed = await failure(clear)
        assert failed.failure == "it does not speak TLS"
        assert "http://" in failed.advice

    for status, advice in (
        ("401", "secret"),
        ("403", "secret"),
        ("404", "path"),
        ("308", "not followed"),
        ("500", "log"),
    ):
        stub.answer = lambda _, status=status: f"{status} No"  # type: ignore[misc]
        assert advice in (await failure(calls(stub))).advice


async def test_many_calls_at_once_have_a_connection_each_and_keep_it(stub: EndpointStub) -> None:
    client = calls(stub)
    for _ in range(3):
        await asyncio.gather(*(client.post(f"m-{number}", BODY) for number in range(64)))
    assert stub.connections <= 64
    assert len(stub.calls) == 192
    client.drop()
