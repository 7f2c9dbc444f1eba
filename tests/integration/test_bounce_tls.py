"""STARTTLS at the listener for notifications, with clients that are not ours."""

from __future__ import annotations

import asyncio
import smtplib
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, cast
from uuid import UUID

import pytest
import trustme
import uvloop
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from cryptography.hazmat.primitives.serialization import load_pem_private_key as load_key

from entrypoints.bootstrap import CannotStart
from entrypoints.bootstrap.bounces import open_listener
from infrastructure.bounces.addresses import BounceAddresses
from infrastructure.bounces.certificate import Certificate
from infrastructure.bounces.listener import BounceListener
from infrastructure.settings.settings import Settings
from tests.support.bounces import Reported, notification
from tests.support.facts import eventually
from tests.support.scenarios import KEYRING

REGISTRATION = UUID("019cab10-0000-7000-8000-000000000001")
ADDRESSES = BounceAddresses("bounces@mail.example.org", KEYRING)
SENDER = ADDRESSES.of(REGISTRATION, 1)
LOOPS = [pytest.param(asyncio.new_event_loop, id="asyncio"), pytest.param(uvloop.new_event_loop, id="uvloop")]
"""Tests run on the one, the service on the other; aiosmtpd reaches into what is asyncio's own."""


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trust(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


class Files:
    """Of a certificate, as certbot writes them."""

    def __init__(self, directory: Path, authority: trustme.CA) -> None:
        self.chain, self.key = directory / "tls.crt", directory / "tls.key"
        self._authority = authority
        self.renew()

    def renew(self, *, chain: bool = True, key: bool = True) -> None:
        """In place of what was there, as by a rename."""
        issued = self._authority.issue_cert("127.0.0.1")
        self.next_key = issued.private_key_pem.bytes()
        if chain:
            self.put(self.chain, b"".join(one.bytes() for one in issued.cert_chain_pems))
        if key:
            self.put(self.key, self.next_key)

    @staticmethod
    def put(path: Path, content: bytes) -> None:
        new = path.with_suffix(".new")
        new.write_bytes(content)
        new.replace(path)


@pytest.fixture
def files(tmp_path: Path, authority: trustme.CA) -> Files:
    return Files(tmp_path, authority)


@asynccontextmanager
async def listening(files: Files, reported: Reported, *, sessions: int = 100) -> AsyncIterator[BounceListener]:
    certificate = Certificate(files.chain, files.key)
    listener = BounceListener(ADDRESSES, reported, host="127.0.0.1", port=0, certificate=certificate, sessions=sessions)
    await listener.start()
    try:
        yield listener
    finally:
        await listener.stop()


def handed_over(port: int, trust: ssl.SSLContext) -> bytes:
    """Hand a notification over, encrypted; the certificate."""
    with smtplib.SMTP("127.0.0.1", port, timeout=60) as client:
        client.starttls(context=trust)
        assert isinstance(client.sock, ssl.SSLSocket)
        client.sendmail("", SENDER, notification())
        return client.sock.getpeercert(binary_form=True) or b""


def replied(lines: BinaryIO) -> None:
    """Read to the end of a reply, which may have several lines and come in pieces."""
    while (line := lines.readline())[3:4] == b"-":
        pass
    assert line


@pytest.mark.fault("E67")
@pytest.mark.parametrize("loop", LOOPS)
def test_a_notification_comes_encrypted_and_to_a_client_who_breaks_it_off_nothing_happens(
    files: Files, trust: ssl.SSLContext, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    def break_off(port: int) -> None:
        with smtplib.SMTP("127.0.0.1", port, timeout=60) as client:
            with pytest.raises(ssl.SSLCertVerificationError):
                client.starttls(context=ssl.create_default_context())  # trusts somebody else
            client.close()
        with socket.create_connection(("127.0.0.1", port), timeout=60) as raw, raw.makefile("rb") as lines:
            replied(lines)
            for said in (b"EHLO a\r\n", b"STARTTLS\r\n"):
                raw.sendall(said)
                replied(lines)
            raw.sendall(b"no TLS at all\r\n")
            assert lines.read() == b""

    async def scene() -> None:
        reported = Reported()
        async with listening(files, reported, sessions=1) as listener:
            await asyncio.to_thread(handed_over, listener.port, trust)
            await eventually(lambda: not listener.sessions)
            await asyncio.to_thread(break_off, listener.port)
            await eventually(lambda: not listener.sessions)
            await asyncio.to_thread(handed_over, listener.port, trust)
        assert [(told[0], told[1]) for told in reported.told] == [(REGISTRATION, 1)] * 2

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(scene())


@pytest.mark.fault("E67")
async def test_what_was_said_in_clear_before_does_not_count_afterwards(files: Files, trust: ssl.SSLContext) -> None:
    reported = Reported()

    def injected(port: int) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as raw:
            raw.recv(1000)
            raw.sendall(b"STARTTLS\r\nEHLO a\r\nMAIL FROM:<>\r\n")
            assert raw.recv(1000).startswith(b"220")
            with trust.wrap_socket(raw, server_hostname="127.0.0.1") as encrypted:
                encrypted.sendall(f"RCPT TO:<{SENDER}>\r\n".encode())
                return encrypted.recv(1000)

    async with listening(files, reported) as listener:
        assert (await asyncio.to_thread(injected, listener.port)).startswith(b"503")


@pytest.mark.fault("E67")
async def test_a_renewed_certificate_is_taken_once_both_of_its_files_are_there(
    files: Files, trust: ssl.SSLContext
) -> None:
    async with listening(files, Reported()) as listener:

        async def served() -> bytes:
            return await asyncio.to_thread(handed_over, listener.port, trust)

        first = await served()
        files.renew(key=False)
        assert await served() == first
        files.put(files.key, files.next_key)
        second = await served()
        files.chain.unlink()

        assert second != first
        assert await served() == second


async def test_without_a_certificate_there_is_no_starttls_and_a_session_in_clear_is_always_taken(
    files: Files,
) -> None:
    def offered(port: int) -> bool:
        with smtplib.SMTP("127.0.0.1", port, timeout=60) as client:
            client.sendmail("", SENDER, notification())
            return client.has_extn("starttls")

    async with listening(files, Reported()) as listener:
        assert await asyncio.to_thread(offered, listener.port)
        listener.certificate = None
        assert not await asyncio.to_thread(offered, listener.port)


def encrypted(key: bytes) -> bytes:
    by = BestAvailableEncryption(b"passphrase")
    return load_key(key, None).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, by)


BAD: dict[str, tuple[Callable[[Files], Any], str]] = {
    "no certificate": (lambda files: files.chain.unlink(), "tls.crt cannot be read: No such file or directory"),
    "no key": (lambda files: files.key.unlink(), "tls.key cannot be read: No such file or directory"),
    "another's key": (lambda files: files.renew(key=False), "the private key is not that of the certificate"),
    "no PEM": (lambda files: files.chain.write_text("x"), "cannot be used: one of them has no PEM in it"),
    "an encrypted key": (lambda files: files.key.write_bytes(encrypted(files.key.read_bytes())), "is encrypted"),
}


@pytest.mark.parametrize("bad", BAD)
async def test_a_certificate_that_cannot_be_used_stops_the_start_in_one_line(files: Files, bad: str) -> None:
    spoil, says = BAD[bad]
    spoil(files)

    with pytest.raises(CannotStart, match=says) as stopped:
        await started(BOUNCE_CERTIFICATE=str(files.chain), BOUNCE_CERTIFICATE_KEY=str(files.key))

    assert "\n" not in str(stopped.value)


async def test_half_of_a_certificate_stops_the_start(files: Files) -> None:
    with pytest.raises(CannotStart, match="set both"):
        await started(BOUNCE_CERTIFICATE=str(files.chain))


async def started(**settings: str) -> None:
    core = SimpleNamespace(keyring=KEYRING, handlers=None, metrics=SimpleNamespace(takes_bounces=int, bounce=None))
    given = {f"REGISTRAR_{name}": value for name, value in settings.items()}
    given["REGISTRAR_BOUNCE_ADDRESS"] = ADDRESSES.address
    await open_listener(cast("Any", core), Settings.from_environment(given), cast("Any", None))
