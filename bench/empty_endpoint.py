"""The same framework and the same server with nothing behind them: what our routes are compared with."""

from __future__ import annotations

import asyncio
import signal
import sys
from uuid import UUID

import uvloop
from fastapi import FastAPI
from pydantic import BaseModel

from entrypoints.api.admission import MOST
from entrypoints.api.http_server import Server
from entrypoints.cli.garbage_collection import collect_rarely, keep_what_is_there


class Body(BaseModel):
    """What a registration without a password sends."""

    email: str
    name: str


def _application() -> FastAPI:
    app = FastAPI(
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )

    @app.post("/empty", status_code=202)
    async def register(body: Body) -> dict[str, str]:
        return {"email": body.email, "status": "PENDING"}

    @app.get("/v1/registrations/{registration_id}")
    async def show(registration_id: UUID) -> dict[str, str]:
        return {"registration_id": str(registration_id), "status": "PENDING"}

    return app


async def _main() -> None:
    # There is no guard to give back the places that are taken at the door.
    MOST.update(dict.fromkeys(MOST, sys.maxsize))
    server = Server(_application(), host="127.0.0.1", port=0)
    await server.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    print("listening", server.port, flush=True)
    collect_rarely()  # as the service does, so that the comparison is fair
    keep_what_is_there()
    await stop.wait()
    await server.stop()


if __name__ == "__main__":
    uvloop.run(_main())
