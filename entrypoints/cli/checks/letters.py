"""What mails say."""

from __future__ import annotations

from entrypoints.bootstrap import CannotStart
from entrypoints.bootstrap.letters import letters_for
from entrypoints.cli.checks.finding import Finding
from infrastructure.settings.settings import Settings


async def look_at_templates(settings: Settings) -> Finding:
    """Try the operator's own templates out, as each process does that sends mails."""
    if settings.templates is None:
        return Finding("templates", "ok", "ours; `registrar mail preview` shows the mails")
    try:
        await letters_for(settings)
    except CannotStart as error:
        return Finding("templates", "fail", str(error), "Correct it: no process that sends mails starts with it.")
    return Finding("templates", "ok", f"those in {settings.templates}; every mail can be made")
