"""What-if: today's decisions of the mail saga over the recorded history. Reads only; nothing is recorded or sent."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import click

from application.what_if import FIGURES, Difference
from domain.policy import Policy
from domain.recorded import Position
from entrypoints.bootstrap.core import policy_of
from entrypoints.bootstrap.desk import Reader
from entrypoints.cli.output import moving, note, print_json, print_table
from entrypoints.cli.session import read_settings
from infrastructure.replay.moments import Moment

_PREFIX = "REGISTRAR_"


@dataclass(frozen=True, slots=True)
class Stretch:
    """Which decisions.

    Attributes:
        since: those after it; None: from the beginning.
        until: those up to it; None: to the end.
        since_release: those of the release that decided last.
    """

    since: Moment | None
    until: Moment | None
    since_release: bool


def policy_with(data_dir: Path | None, settings: tuple[str, ...]) -> Policy:
    """The figures of this environment, with these settings (NAME=VALUE) on top.

    Raises:
        click.BadParameter: it is no setting that the saga's decisions depend on.
        BadSettings: see `entrypoints.cli.session.read_settings`.
    """
    given: dict[str, str] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        figure = name.removeprefix(_PREFIX).lower()
        if figure not in FIGURES or not value:
            raise click.BadParameter(
                f"'{setting}' is not one of {', '.join(f'{one.upper()}=VALUE' for one in FIGURES)}: "
                "the saga's decisions depend on no other setting.",
                click.get_current_context(),
                param_hint="--set",
            )
        given[_PREFIX + figure.upper()] = value
    return policy_of(read_settings(data_dir=data_dir, with_secrets=False, instead=given))


async def what_if(reader: Reader, policy: Policy, stretch: Stretch, *, limit: int, as_json: bool) -> int:
    """Print every decision that would be another one today, the first `limit` of them in full; 1 if there are any."""
    since, until = await _positions(reader, stretch)
    listed: list[Difference] = []
    kinds: Counter[str] = Counter()
    registrations = 0
    with moving() as progress:
        async for reviewed in reader.what_if.review(policy, since=since, until=until):
            registrations += reviewed.registrations
            kinds.update(one.kind for one in reviewed.differences)
            listed += reviewed.differences[: limit - len(listed)]
            progress("Asking today's saga", reviewed.upto - since, until - since)
    listed.sort(key=lambda one: one.position)
    if as_json:
        print_json(
            {
                "since": since,
                "until": until,
                "registrations": registrations,
                "differences": kinds.total(),
                "kinds": dict(kinds.most_common()),
                "listed": listed,
            }
        )
    else:
        _print(listed, kinds)
        note(
            f"{kinds.total():,} differences about {registrations:,} registrations, "
            f"from position {since + 1:,} to {until:,}."
        )
        if kinds.total() > len(listed):
            note(f"The first {len(listed):,} are listed; --limit lists more.")
    return 1 if kinds else 0


def _print(listed: list[Difference], kinds: Counter[str]) -> None:
    for one in listed:
        click.echo(f"{one.position}  {one.registration_id}  on {one.on}")
        click.echo(f"    then {one.then}")
        click.echo(f"    now  {one.now}")
    if kinds:
        if listed:
            click.echo()
        print_table(("decisions", "kind"), ((f"{count:,}", kind) for kind, count in kinds.most_common()))


async def _positions(reader: Reader, stretch: Stretch) -> tuple[Position, Position]:
    """After which position, and up to which."""
    since = 0 if stretch.since is None else await reader.what_if.position_at(stretch.since)
    until = await (reader.what_if.head() if stretch.until is None else reader.what_if.position_at(stretch.until))
    if stretch.since_release:
        found = await reader.what_if.deciding_release()
        if found is None:
            note("No release is noted yet as deciding for the saga; all of the log is looked at.")
        else:
            note(f"Release {found[0]} has decided since position {found[1] + 1:,}.")
            since = found[1]
    if _nothing_lies_in(stretch, since, until):
        given = "What --since-release means" if stretch.since_release else "--since"
        raise click.UsageError(
            f"{given} is later than --until, or the same: nothing lies between.", click.get_current_context()
        )
    return since, until


def _nothing_lies_in(stretch: Stretch, since: Position, until: Position) -> bool:
    """Whatever is recorded; between two times there may just have been nothing."""
    if isinstance(stretch.since, datetime) and isinstance(stretch.until, datetime):
        return stretch.since >= stretch.until
    begins = stretch.since is not None or stretch.since_release
    return begins and stretch.until is not None and since >= until
