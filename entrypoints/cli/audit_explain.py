"""What happened to a registration, on paper."""

from __future__ import annotations

from dataclasses import asdict
from typing import Final

import click

from application.story.telling import QUESTION, lines
from entrypoints.bootstrap.auditor import Auditor
from entrypoints.cli.audit_search import tell_what_is_missing
from entrypoints.cli.output import moving, note, print_json
from entrypoints.queries.explanations import Explanation, NotFound

_MOST: Final = 20
"""Registrations of one address that are told."""


async def explain(auditor: Auditor, subject: str, *, as_json: bool) -> int:
    """Print the story of each registration that is meant.

    Raises:
        UnknownRegistration: there is none of this id.
    """
    try:
        with moving() as progress:
            found = await auditor.explanations.registrations(
                subject, lambda looked: progress("Comparing Message-IDs", looked, 0)
            )
    except NotFound as error:
        raise click.ClickException(str(error)) from None
    explanations = [await auditor.explanations.explanation(one) for one in found[:_MOST]]
    if as_json:
        print_json([_as_json(one) for one in explanations])
    else:
        for number, one in enumerate(explanations):
            if number:
                click.echo()
            for line in lines(one.story):
                click.echo(line)
    _notes(explanations, left=len(found) - len(explanations))
    return 0


def _as_json(one: Explanation) -> object:
    return {
        "question": QUESTION,
        **asdict(one.story),
        "unreadable": one.unreadable,
        "behind": one.behind,
        "parked": one.parked,
    }


def _notes(explanations: list[Explanation], *, left: int) -> None:
    if left:
        note(f"{left} earlier registrations are left out; `registrar audit search --email` lists them.")
    if any(one.unreadable for one in explanations):
        note("Events that a later release of Registrar has recorded are left out.")
    tell_what_is_missing(behind=max(one.behind for one in explanations), parked=max(one.parked for one in explanations))
