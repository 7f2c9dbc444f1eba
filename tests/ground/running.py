"""A server of a package that is not installed: it runs in namespaces of its own, with the system's folders in memory.

What each of them needs is in `servers/`: a few functions of the shell in a file of its name; `servers/inside.sh` says
what they stand on.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psutil  # type: ignore[import-untyped]

from tests.support.facts import eventually
from tests.support.mail import code_in
from tests.support.smtp_stub import Mail

ROOT: Final = Path(__file__).parents[2]
SERVERS: Final = Path(__file__).with_name("servers")
CACHE: Final = ROOT / ".ground"
"""Packages that were fetched, logs of the servers; git does not see it."""

MAILBOXES: Final = 2000
"""Of a server; all scenarios together use fewer."""

NEEDS: Final = ("setpriv", "unshare", "nsenter", "mount", "apt-get", "npm")

_TO: Final = re.compile(rb"^To:\s+(?:.*<)?([^\s<>]+@[^\s<>]+)", re.MULTILINE)
_RECEIVED: Final = re.compile(rb"^Received:(?:.|\n[ \t])*?\bid (\S+?);?\s", re.MULTILINE)
_MESSAGE_ID: Final = re.compile(rb"^Message-ID:\s+(<[^>]+>)", re.MULTILINE | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Letter:
    """A mail of ours in somebody's mailbox.

    Attributes:
        acceptance: the server's own name for the transaction that brought it; empty if it tells none. A server that is
            stopped amid a delivery delivers again what it accepted once.
    """

    to: str
    message_id: str
    acceptance: str
    data: bytes

    @property
    def code(self) -> str:
        return code_in(Mail(b"", [], self.data))


class RunningServer:
    """A server and all its processes, from `async with` to its end.

    Attributes:
        port: where it listens, on 127.0.0.1.
        version: of its package.
        mailboxes: names of some that nobody has used.
    """

    def __init__(self, name: str, **environment: str) -> None:
        """
        Args:
            environment: further variables for its script.
        """
        self.name = name
        self.port = 0
        self.version = ""
        self.mailboxes = (f"u{number}" for number in range(MAILBOXES))
        self._environment = environment
        self._boxes = ""
        self._functions: frozenset[str] = frozenset()
        self._pid = 0
        self._log = CACHE / f"{name}.log"

    async def __aenter__(self) -> Self:
        CACHE.mkdir(exist_ok=True)
        command: list[str | Path] = [
            *("setpriv", "--pdeathsig", "KILL"),  # nothing outlasts this process, however it ends
            *("unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *("env", *(f"{name}={value}" for name, value in self._environment.items())),
            *("bash", SERVERS / "inside.sh", self.name, CACHE, str(MAILBOXES)),
        ]
        with self._log.open("wb") as log:
            # By the main thread: the kernel takes the thread that started it for the parent.
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # noqa: ASYNC220
        try:
            ready = await eventually(self._said_that_it_is_ready, within=600, every=0.2)
            self.port, self._boxes, self._functions = int(ready[1]), ready[2], frozenset(ready[3].split(","))
            self.version = ready[4]
            assert not await listens(self.port), f"port {self.port}, where {self.name} is to listen, is taken"
            (inside,) = psutil.Process(self._process.pid).children()
            self._pid = inside.pid
        except BaseException:
            self._end()
            raise
        return self

    def _said_that_it_is_ready(self) -> re.Match[str] | None:
        log = self._log.read_text(errors="replace")
        if self._process.poll() is not None:  # no AssertionError, which would be taken for "not yet"
            raise RuntimeError(f"{self.name} ended at its start, see {self._log}: {log[-300:]}")
        return re.search(r"^ready: (\d+) (\S+) (\S*) (.*)$", log, re.MULTILINE)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        self._process.kill()  # and with it the first process inside, and with that all others
        self._process.wait()

    @property
    def url(self) -> str:
        return f"smtp://127.0.0.1:{self.port}?starttls=never"

    def has(self, function: str) -> bool:
        return function in self._functions

    async def call(self, function: str) -> None:
        """Run one of the functions of its script."""
        words = f'set -euo pipefail; here={SERVERS}; directory={CACHE}; . "$here/{self.name}.sh"; {function}'
        command = ["nsenter", "--target", str(self._pid), "--mount", "--uts", "--pid", "env"]
        command += [*(f"{name}={value}" for name, value in self._environment.items()), "bash", "-c", words]
        with self._log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
            )
            async with asyncio.timeout(60):
                code = await process.wait()
        assert code == 0, f"{function} of {self.name} failed with {code}, see {self._log}"

    async def reset(self) -> None:
        """Its configuration as it was shipped, with what `setup` of its script does to it."""
        await self.call('[ -z "$folder" ] || { rm -rf "$folder"; cp -a "$folder.shipped" "$folder"; }; setup')

    async def start(self) -> None:
        await self.call("start")

        async def up() -> bool:
            return await listens(self.port)

        await eventually(up, within=60, every=0.1)

    async def stop(self) -> None:
        """Its way of stopping, and until nobody listens any more."""
        await self.call("stop")

        async def silent() -> bool:
            return not await listens(self.port)

        await eventually(silent, within=60, every=0.1)

    async def restart(self) -> None:
        if await listens(self.port):
            await self.stop()
        await self.start()

    def letters(self) -> list[Letter]:
        """Everything that it put into mailboxes: files of one mail each, or one after another as in an mbox."""
        boxes = Path(f"/proc/{self._pid}/root{self._boxes}")
        found = []
        for file in boxes.rglob("*"):
            with suppress(FileNotFoundError):  # it moves them about
                if file.is_file() and "/tmp/" not in str(file):  # noqa: S108 - that of a maildir
                    found += [
                        letter for part in re.split(rb"(?m)^From .*\n", file.read_bytes()) if (letter := _read(part))
                    ]
        return found


async def listens(port: int) -> bool:
    """Does somebody take connections there, on 127.0.0.1?"""
    try:
        async with asyncio.timeout(5):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


def _read(data: bytes) -> Letter | None:
    to, message_id, received = _TO.search(data), _MESSAGE_ID.search(data), _RECEIVED.search(data)
    if to is None or message_id is None:
        return None
    acceptance = received[1].decode() if received else ""
    return Letter(
        to[1].decode(), message_id[1].decode(), acceptance, data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    )
