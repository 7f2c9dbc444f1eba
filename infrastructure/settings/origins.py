"""What an operator may write as `REGISTRAR_CORS_ORIGINS`."""

from __future__ import annotations

from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import BeforeValidator

from infrastructure.settings.entries import each
from infrastructure.settings.values import host_name

_PORTS: Final = {"http": 80, "https": 443}


def origin(text: str) -> str:
    """An origin as browsers send it: in lower case, in ASCII, without the port that its scheme has anyway.

    Raises:
        ValueError: it is none.
    """
    try:
        parts = urlsplit(text)
        port, host = parts.port, parts.hostname or ""
        name = f"[{host}]" if ":" in host else host_name(host)
    except ValueError:
        name, port = "", None
    if not name or parts.scheme not in _PORTS or parts.path or parts.query or parts.fragment or "@" in parts.netloc:
        at_end = text.endswith("/") and "/" not in text.partition("://")[2][:-1]
        raise ValueError(
            "ends in a slash, which an origin does not"
            if at_end
            else "is not an origin of the form https://host[:port]"
        )
    return f"{parts.scheme}://{name}" + ("" if port in {None, _PORTS[parts.scheme]} else f":{port}")


def _origins(value: object) -> object:
    if not isinstance(value, str):
        return value
    entries = [entry.strip() for entry in value.split(",")]
    if "*" in entries:
        raise ValueError("would let every page register people; list the origins of your pages")
    return tuple(each(entries, origin))


Origins = Annotated[tuple[str, ...], BeforeValidator(_origins)]
