"""The icon that browsers ask for beside any page."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from fastapi import FastAPI
from starlette.responses import Response


def add_icon_route(app: FastAPI) -> None:
    async def icon() -> Response:
        return Response(_icon(), media_type="image/x-icon")

    app.add_api_route("/favicon.ico", icon, methods=["GET"], include_in_schema=False)


@cache
def _icon() -> bytes:
    return (Path(__file__).parent / "favicon.ico").read_bytes()
