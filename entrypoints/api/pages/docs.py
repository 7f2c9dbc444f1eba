"""`/docs`: Swagger UI, from files of an installed package, without requests to other hosts.

Its own colours have too little contrast, and its page no place for them to be read on a phone: `docs.css` mends both.
"""

from __future__ import annotations

from importlib.metadata import distribution
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI
from starlette.responses import FileResponse, Response

_HERE: Final = Path(__file__).parent
_OF_SWAGGER_UI: Final = ("swagger-ui.css", "swagger-ui-bundle.js")
_OURS: Final = ("docs.css", "docs.js")

_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def add_docs_routes(app: FastAPI) -> None:
    """The page and its files."""
    app.add_api_route("/docs", _page, methods=["GET"], include_in_schema=False)
    for name in (*_OF_SWAGGER_UI, *_OURS):
        app.add_api_route(f"/docs/{name}", _file(name), methods=["GET"], include_in_schema=False)


async def _page() -> Response:
    return FileResponse(_HERE / "docs.html", headers={"Content-Security-Policy": _POLICY})


def _file(name: str) -> Any:
    async def file() -> Response:
        # Found without an import of the package, which has code of its own.
        package = Path(str(distribution("fastapi-swagger").locate_file("fastapi_swagger/resources")))
        return FileResponse((_HERE if name in _OURS else package) / name)

    return file
