"""The access log: a line for each request, without anything of who asks."""

from __future__ import annotations

from typing import Any

from structlog.testing import capture_logs

from tests.support.http import ADA, open_api

REQUEST = "5f0c1f4e-6a53-4a5b-9a77-0b8d0f3a2c11"
TRACE = "0af7651916cd43dd8448eb211c80319c"
HEADERS = {"X-Request-Id": REQUEST, "traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}


def of_requests(logs: list[Any]) -> list[dict[str, Any]]:
    return [{**line} for line in logs if line["event"] == "request"]


async def test_each_request_is_a_line_with_its_route_and_the_ids_of_its_story(dsn: str) -> None:
    async with open_api(dsn, follows=False, access_log="true") as api:
        with capture_logs() as logs:
            begun = await api.http.post("/v1/registrations", json=ADA, headers=HEADERS)
            await api.look(begun.json()["registration_id"])

    registered, looked = of_requests(logs)
    assert 0 < registered.pop("seconds") < 60
    assert registered == {
        "event": "request",
        "log_level": "info",
        "method": "POST",
        "route": "/v1/registrations",
        "status": 202,
        "correlation_id": REQUEST,
        "trace_id": TRACE,
    }
    assert (looked["method"], looked["route"], looked["trace_id"]) == (
        "GET",
        "/v1/registrations/{registration_id}",
        None,
    )


async def test_the_access_log_has_nothing_that_a_client_wrote(dsn: str) -> None:
    canary = "ada-lovelace"
    async with open_api(dsn, follows=False, access_log="true") as api:
        with capture_logs() as logs:
            await api.http.request(canary, f"/{canary}?{canary}=1", headers={"User-Agent": canary, "Referer": canary})

    [line] = of_requests(logs)
    assert (line["method"], line["route"], line["status"]) == ("other", "unmatched", 404)
    assert canary not in str(logs).lower()


async def test_without_the_setting_requests_are_no_lines(dsn: str) -> None:
    async with open_api(dsn, follows=False) as api:
        with capture_logs() as logs:
            await api.register()

    assert of_requests(logs) == []
