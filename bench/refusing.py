"""A server that refuses every registration at its door: `python bench/refusing.py [--bare]`, in the checkout measured.

It also runs in one of 2026-11-25, where the modules had other names. `--bare`: no HTTP at all, just as many bytes for
every piece that is read, which is what the event loop and the kernel take.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvloop
from fastapi import FastAPI

sys.path.insert(0, str(Path.cwd()))


class _Bare(asyncio.Protocol):
    _RESPONSE = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 124\r\n" + b"x: y\r\n" * 52 + b"\r\n" + b"y" * 124

    def connection_made(self, transport: Any) -> None:
        self._write = transport.write

    def data_received(self, _: bytes) -> None:
        self._write(self._RESPONSE)


def _module(*names: str) -> Any:
    for name in names:
        with suppress(ModuleNotFoundError):
            return importlib.import_module(name)
    raise ModuleNotFoundError(str(names))


async def _listen(*, bare: bool) -> int:
    """Returns the port."""
    if bare:
        server = await asyncio.get_running_loop().create_server(_Bare, "127.0.0.1", 0)
        port: int = server.sockets[0].getsockname()[1]
        return port
    admission = _module("entrypoints.api.admission", "entrypoints.admission")
    admission.STEADY = admission.BURST = 0
    serving = _module("entrypoints.api.http_server", "entrypoints.server").Server(FastAPI(), host="127.0.0.1", port=0)
    await serving.start()
    return int(serving.port)


async def _main() -> None:
    print("listening on", await _listen(bare="--bare" in sys.argv), flush=True)
    gc.freeze()
    gc.set_threshold(20_000)  # as a service does
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_main())
