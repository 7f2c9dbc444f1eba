"""`registrar doctor`: looks at everything the service depends on, and says what is wrong and what to do."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

from entrypoints.cli.checks.bounces import look_at_bounces
from entrypoints.cli.checks.database import look_at_database
from entrypoints.cli.checks.finding import Finding
from entrypoints.cli.checks.letters import look_at_templates
from entrypoints.cli.checks.machine import data_directory, disk, host_names, look_at_settings, python
from entrypoints.cli.checks.services import (
    look_at_broker,
    look_at_endpoints,
    look_at_limiter,
    look_at_mail_servers,
    look_at_webhook,
)
from entrypoints.cli.output import console, print_json
from entrypoints.cli.session import log_troubles, read_settings
from infrastructure.settings.environment import BadSettings


async def doctor(data_dir: Path | None, *, as_json: bool) -> int:
    """Run every check and print what they found; 1 if any failed."""
    log_troubles()
    findings = [finding async for finding in examine(data_dir)]
    if as_json:
        print_json({"healthy": not _failed(findings), "checks": findings})
    else:
        colour = {"ok": "green", "warn": "yellow", "fail": "red"}
        for one in findings:
            console().print(f"{one.state:<6}", style=colour[one.state], end="")
            console().print(f"{one.check:<16}{one.says}", markup=False)
            if one.advice:
                console().print(f"{'':<22}→ {one.advice}", markup=False)
    return 1 if _failed(findings) else 0


def _failed(findings: list[Finding]) -> bool:
    return any(one.state == "fail" for one in findings)


async def examine(data_dir: Path | None) -> AsyncIterator[Finding]:
    """Every check, one after the other; one that cannot be made because an earlier one failed is left out."""
    yield python()
    try:
        settings = read_settings(data_dir=data_dir)
    except BadSettings as error:
        for fault in error.faults:
            yield Finding("settings", "fail", fault)
        return
    for finding in look_at_settings(settings, os.environ):
        yield finding
    yield host_names(settings)
    if settings.database_url is None or not settings.mail_servers:  # nothing else is kept there
        yield data_directory(settings)
        yield disk(settings)
    async for finding in look_at_database(settings):
        yield finding
    async for finding in look_at_broker(settings):
        yield finding
    yield await look_at_limiter(settings)
    async for finding in look_at_mail_servers(settings):
        yield finding
    async for finding in look_at_endpoints(settings):
        yield finding
    async for finding in look_at_bounces(settings):
        yield finding
    yield await look_at_templates(settings)
    if settings.alert_url is not None:
        yield await look_at_webhook(settings.alert_url.get_secret_value())
