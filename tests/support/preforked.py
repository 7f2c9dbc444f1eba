"""`registrar` in a process of its own that need not import anything: a process that has done so is forked.

To import our modules takes a second of CPU and more, which is most of what a short life costs, and the tests start
hundreds of processes. What comes after the imports is what `registrar` does. A test that looks at the start itself, or
at a process that is different from its first line on, starts the command (`REGISTRAR`).
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, Final

ROOT: Final = Path(__file__).parents[2]
_LONGEST: Final = 2**17
"""Bytes of a request: the environment, mostly."""

_IMPORTED: Final = (
    "entrypoints.cli.run",
    "entrypoints.cli.listening",
    "entrypoints.cli.mail",
    "entrypoints.cli.projections",
    "tests.faults.armed",
)


class Forked:
    """A process that was forked, with what is needed of `subprocess.Popen`."""

    def __init__(self, pid: int, ending: int) -> None:
        """
        Args:
            ending: where its exit status is to be read; closed with it.
        """
        self.pid = pid
        self.returncode: int | None = None
        self._ending = ending

    def poll(self) -> int | None:
        if self.returncode is None:
            os.set_blocking(self._ending, False)
            try:
                self._note()
            except BlockingIOError:
                return None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """
        Raises:
            subprocess.TimeoutExpired: it runs on after so many seconds.
        """
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._ending, selectors.EVENT_READ)
                if not selector.select(timeout):
                    raise subprocess.TimeoutExpired("registrar", timeout or 0)
            self._note()
        assert self.returncode is not None
        return self.returncode

    def _note(self) -> None:
        told = os.read(self._ending, 64)
        assert told, "the process that forks has ended"
        self.returncode = int(told)
        os.close(self._ending)

    def send_signal(self, number: signal.Signals) -> None:
        """Nothing happens to a process that has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def fork(
    *arguments: str,
    environment: Mapping[str, str],
    stdout: IO[Any],
    stderr: IO[Any],
    armed: tuple[str, Path] | None = None,
) -> Forked:
    """Start `registrar` with these arguments.

    Args:
        armed: the crash point at which it dies, and where that is noted; see `tests.faults.armed`.
    """
    words = [] if armed is None else [armed[0], str(armed[1]), "--"]
    request = {"armed": armed is not None, "arguments": [*words, *arguments], "environment": dict(environment)}
    ending, to_tell = os.pipe()
    try:
        pid = _forker.ask(json.dumps(request).encode(), [stdout.fileno(), stderr.fileno(), to_tell])
    except BaseException:
        os.close(ending)
        raise
    finally:
        os.close(to_tell)
    return Forked(pid, ending)


class _Forker:
    """The process that forks: one for each process that runs tests, started when first needed, ended with it."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._requests: socket.socket | None = None

    def ask(self, request: bytes, files: Sequence[int]) -> int:
        """Let a process be forked with these files; answers its id."""
        with self._turn:
            if self._requests is None:
                self._requests = self._started()
            socket.send_fds(self._requests, [request], files)
            return int(self._requests.recv(64))

    def _started(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())], cwd=ROOT, pass_fds=[theirs.fileno()]
            )

        def end() -> None:
            ours.close()
            process.wait()

        atexit.register(end)
        return ours


_forker = _Forker()


# --- In the process that forks -------------------------------------------------------------------


def _answer(requests: socket.socket) -> Callable[[], None] | None:
    """Fork until nobody asks any more. In a process that was forked: return what it is to do."""
    running: dict[int, tuple[int, int]] = {}
    with requests, selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not requests:
                    selector.unregister(key.fd)
                    pid, to_tell = running.pop(key.fd)
                    _tell_the_end(pid, to_tell)
                    os.close(key.fd)
                    continue
                asked, files, _, _ = socket.recv_fds(requests, _LONGEST, 3)
                if not asked:
                    return None
                pid = os.fork()
                if pid == 0:
                    return partial(_become, json.loads(asked), files)
                ended = os.pidfd_open(pid)
                running[ended] = pid, files.pop()
                selector.register(ended, selectors.EVENT_READ)
                for file in files:
                    os.close(file)
                requests.send(str(pid).encode())


def _tell_the_end(pid: int, to_tell: int) -> None:
    _, status = os.waitpid(pid, 0)
    with suppress(BrokenPipeError):  # whoever started it may have forgotten it
        os.write(to_tell, str(os.waitstatus_to_exitcode(status)).encode())
    os.close(to_tell)


def _become(asked: dict[str, Any], files: Sequence[int]) -> None:
    """Be a `registrar` as it is after its imports."""
    for number, file in enumerate(files[:2], start=1):
        os.dup2(file, number)
    os.closerange(3, 1 + max(int(one.name) for one in Path("/proc/self/fd").iterdir()))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=0"  # what was forked cannot begin once more
    if (directory := os.environ.get("SPANS_NOTED_IN")) is not None:
        importlib.import_module("tests.faults.noted_spans").note_in(Path(directory))
    if asked["armed"]:
        sys.exit(importlib.import_module("tests.faults.armed").main(asked["arguments"]))
    sys.argv = ["registrar", *asked["arguments"]]
    importlib.import_module("entrypoints.cli.start").main()


def _main() -> None:
    # Ctrl-C is for those who run the tests. Blocked, not ignored: one sent to a process just forked waits for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    for module in _IMPORTED:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()
    become = _answer(socket.socket(fileno=int(sys.argv[1])))
    if become is not None:
        become()


if __name__ == "__main__":
    _main()
