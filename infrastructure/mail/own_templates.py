"""Somebody's own templates: tried out by a process of their own, once, and never read again.

What was rendered at the start is what is sent until the next start, whatever becomes of the files: no mail waits for a
template, and none is spoilt by one that is being edited.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Final

from application.ports import CODE_GAP, ID_GAP, Rendered
from domain.languages import LANGUAGES, Language
from domain.mail_outcome import MailKind
from infrastructure.mail.look import Look
from infrastructure.mail.rendering import Prepared, variables

EVERY: Final[Sequence[tuple[MailKind, Language]]] = tuple(
    (kind, language) for kind in MailKind for language in LANGUAGES
)
PATIENCE: Final = timedelta(seconds=60)
"""For the trial, on however busy a machine."""
SECONDS: Final = 20
"""Of computing, for all of it; it takes 0.2 s."""

_COMMAND: Final = (sys.executable, "-P", "-c", "from infrastructure.mail.template_trial import main; main()")
_SAMPLES: Final = {CODE_GAP: "483920", ID_GAP: "0198c0de-0000-7000-8000-00000000002a"}


class BadTemplates(Exception):
    """The templates cannot be used. The message is one line that names the file, the line where there is one, and what
    is wrong."""


async def rendered_from(
    directory: Path,
    ttl: timedelta,
    look: Look,
    which: Sequence[tuple[MailKind, Language]] = EVERY,
    *,
    seconds: int = SECONDS,
) -> Prepared:
    """Those mails, from the templates of the directory and, where it has none, from ours.

    Args:
        seconds: of computing, after which the trial is ended.

    Raises:
        BadTemplates: one is faulty.
    """
    mails = [(kind.value, language, variables(kind, language, ttl, look)) for kind, language in which]
    known = {kind.value: list(variables(kind, "en", ttl, look)) for kind in MailKind}
    job = json.dumps(
        {"known": known, "directory": str(directory), "samples": _SAMPLES, "mails": mails, "seconds": seconds}
    )
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(*_COMMAND, stdin=pipe, stdout=pipe, stderr=pipe, env={})
    try:
        async with asyncio.timeout(PATIENCE.total_seconds()):
            answer, said = await child.communicate(job.encode())
    except TimeoutError:
        raise BadTemplates(f"{directory}: they were not rendered within {PATIENCE.total_seconds():.0f} s") from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode != 0:
        raise BadTemplates(_died(directory, child.returncode, said.decode(errors="replace").splitlines()))
    found = json.loads(answer)
    if "fault" in found:
        raise BadTemplates(" ".join(found["fault"].split()))
    return {mail: Rendered(*made) for mail, made in zip(which, found["made"], strict=True)}


def _died(directory: Path, code: int | None, said: Sequence[str]) -> str:
    last = said[-1] if said else "the first one"
    if code is not None and code < 0:
        return f"{directory / last}: it takes too much time or memory (signal {-code})"
    return f"{directory}: they could not be tried out: {last.rstrip('.')}"
