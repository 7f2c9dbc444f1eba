"""Pages of other origins: those that are named may call the registrants' routes from a browser, and nothing else."""

from __future__ import annotations

from typing import Any, Final

import pytest
from structlog.testing import capture_logs

from entrypoints.api.cors import RefusedOrigins
from infrastructure.settings.environment import BadSettings
from infrastructure.settings.settings import Settings
from tests.support.http import ADA, ADMIN, open_api

ORIGIN: Final = {"Origin": "https://app.example.org"}
OTHER: Final = {"Origin": "https://app.example.org.evil.example"}
PREFLIGHT: Final = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "idempotency-key"}
PATH: Final = "/v1/registrations"
EXPOSED: Final = {"location", "registrar-position", "retry-after", "ratelimit", "ratelimit-policy"}


async def test_a_page_of_a_named_origin_registers_and_reads_the_answer(dsn: str) -> None:
    async with open_api(
        dsn, follows=False, cors_origins="https://App.example.org:443, http://localhost:3000", limits="network=1/1h"
    ) as api:
        asked = await api.http.options(PATH, headers=ORIGIN | PREFLIGHT)
        begun = await api.http.post(PATH, json=ADA, headers=ORIGIN)
        shown = await api.http.get(begun.headers["location"], headers={"Origin": "http://localhost:3000"})
        refused = await api.http.post(PATH, json={}, headers=ORIGIN)

        assert (asked.status_code, asked.content) == (204, b"")
        assert "POST" in asked.headers["access-control-allow-methods"]
        assert {"Content-Type", "Idempotency-Key"} <= {*asked.headers["access-control-allow-headers"].split(", ")}
        assert int(asked.headers["access-control-max-age"]) >= 600
        assert (begun.status_code, shown.status_code, refused.status_code) == (202, 200, 422)
        for answer, origin in ((asked, ORIGIN["Origin"]), (begun, ORIGIN["Origin"]), (refused, ORIGIN["Origin"])):
            assert answer.headers["access-control-allow-origin"] == origin
        assert shown.headers["access-control-allow-origin"] == "http://localhost:3000"
        assert {*begun.headers["access-control-expose-headers"].lower().split(", ")} >= EXPOSED

        for headers in (OTHER, {"Origin": "null"}, {}):
            answers = [
                await api.http.options(PATH, headers=headers | PREFLIGHT),
                await api.http.get(begun.headers["location"], headers=headers),
            ]
            for answer in answers:
                assert answer.headers["vary"] == "Origin"
                assert not [name for name in answer.headers if name.startswith("access-control-")]
        for path in ("/v1/admin/registrations", "/mailbox/messages", "/metrics", "/openapi.json", "/"):
            for answer in (
                await api.http.get(path, headers=ORIGIN | ADMIN),
                await api.http.options(path, headers=ORIGIN | PREFLIGHT),
            ):
                assert not [name for name in answer.headers if name.startswith("access-control-")], path
        assert not [answer for answer in (asked, begun, shown) if "access-control-allow-credentials" in answer.headers]


@pytest.mark.parametrize("origins", ["https://app.example.org", ""])
async def test_the_log_says_once_that_an_origin_is_refused_and_not_which(dsn: str, origins: str) -> None:
    set_to: dict[str, Any] = {"cors_origins": origins} if origins else {}
    async with open_api(dsn, follows=False, **set_to) as api:
        with capture_logs() as logged:
            for _ in range(2):
                await api.http.options(PATH, headers=OTHER | PREFLIGHT)
            await api.http.options(PATH, headers=OTHER)
            for number in range(40):
                await api.http.options(PATH, headers={"Origin": f"https://{number}.example"} | PREFLIGHT)

    told = [one for one in logged if one["event"] == "cors.origin_refused"]
    assert len(told) == 16
    assert "REGISTRAR_CORS_ORIGINS" in told[0]["hint"]
    assert "evil" not in str(told)


def test_whoever_made_up_many_origins_hides_a_refused_page_for_an_hour_at_most() -> None:
    now = [0.0]
    refused = RefusedOrigins(clock=lambda: now[0])
    asked = {"method": "OPTIONS", "path": PATH, "headers": [(b"access-control-request-method", b"POST")]}

    def told(*origins: str) -> int:
        with capture_logs() as logged:
            for origin in origins:
                refused.note(asked, origin.encode())
        return len(logged)

    assert told(*(f"https://{number}.example" for number in range(40))) == 16
    assert told("https://app.example.org") == 0
    now[0] += 3600
    assert told("https://app.example.org", "https://app.example.org") == 1


def test_an_origin_with_a_slash_at_its_end_is_refused_for_that() -> None:
    with pytest.raises(BadSettings, match="entry 1 ends in a slash"):
        Settings.from_environment({"REGISTRAR_CORS_ORIGINS": "https://app.example.org/"})


async def test_without_the_setting_no_origin_may(dsn: str) -> None:
    async with open_api(dsn, follows=False) as api:
        answer = await api.http.options(PATH, headers=ORIGIN | PREFLIGHT)
        begun = await api.http.post(PATH, json=ADA, headers=ORIGIN)
    for one in (answer, begun):
        assert "vary" not in one.headers
        assert not [name for name in one.headers if name.startswith("access-control-")]


@pytest.mark.parametrize(
    "text",
    [
        *(
            "*",
            "null",
            "app.example.org",
            "https://app.example.org/",
            "https://app.example.org/path",
            "ftp://a.example",
        ),
        *(
            "https://user@app.example.org",
            "https://app.example.org:x",
            "https://",
            "https://a.example,,",
            "https://[::1",
        ),
    ],
)
def test_what_is_no_origin_is_refused(text: str) -> None:
    with pytest.raises(BadSettings, match=r"^REGISTRAR_CORS_ORIGINS "):
        Settings.from_environment({"REGISTRAR_CORS_ORIGINS": text})


def test_an_origin_is_compared_as_browsers_send_it() -> None:
    text = "https://App.Example.org:443, http://[::1]:80, https://bücher.example:8443"
    assert Settings.from_environment({"REGISTRAR_CORS_ORIGINS": text}).cors_origins == (
        "https://app.example.org",
        "http://[::1]",
        "https://xn--bcher-kva.example:8443",
    )
