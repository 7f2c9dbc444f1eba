"""Runs a peer that is an ASGI application."""

# mypy: ignore-errors
from __future__ import annotations

import uvicorn


class _Server(uvicorn.Server):
    async def startup(self, sockets=None) -> None:
        await super().startup(sockets)
        print("listening", self.servers[0].sockets[0].getsockname()[1], flush=True)


def listen(app) -> None:
    """On a free port, which is printed."""
    _Server(uvicorn.Config(app, port=0, access_log=False, log_level="warning")).run()
