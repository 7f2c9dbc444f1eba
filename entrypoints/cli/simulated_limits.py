"""What limits would have stopped: the log's answer, for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import click

from domain.policy import Policy
from entrypoints.bootstrap.core import policy_of
from entrypoints.bootstrap.desk import Reader
from entrypoints.cli.output import moving, note, print_json, print_table
from entrypoints.cli.session import read_settings
from infrastructure.limits.simulation import UNANSWERED, Distinct, Trial, trials_of
from infrastructure.settings.limits import DEFAULTS, MAILBOX_DEFAULTS, Limit, parse_limit

NOT_IN_THE_LOG = "The log has what was let pass: neither what was refused, nor the same request again."


@dataclass(frozen=True, slots=True)
class Stretch:
    """What was asked from one time until another."""

    since: datetime
    until: datetime

    @classmethod
    def of(cls, since: datetime, until: datetime | None) -> Self:
        """
        Raises:
            click.UsageError: nothing lies between.
        """
        until = until or datetime.now(UTC)
        if since >= until:
            raise click.UsageError(
                "--since is later than --until, or the same: nothing lies between.", click.get_current_context()
            )
        return cls(since, until)


def chosen(data_dir: Path | None, entries: Sequence[str]) -> tuple[list[Limit], Policy]:
    """The limits to try, by default those in force; and what else is in force.

    Raises:
        click.BadParameter: an entry is not what a limit can be.
        BadSettings: see `entrypoints.cli.session.read_settings`.
    """
    settings = read_settings(data_dir=data_dir, with_secrets=False)
    tried = [_parsed(entry) for entry in entries]
    in_force = [limit for limit in (*settings.limits, *MAILBOX_DEFAULTS) if limit.mode != "off"]
    return tried or in_force, policy_of(settings)


def _parsed(entry: str) -> Limit:
    try:
        return _limit(entry.strip())
    except ValueError as error:
        raise click.BadParameter(f"'{entry}' {error}.", click.get_current_context(), param_hint="--limit") from None


def _limit(entry: str) -> Limit:
    limit = parse_limit(entry, (*DEFAULTS, *MAILBOX_DEFAULTS))
    if limit.mode == "off":
        raise ValueError(f"turns {limit.name} off, which stops nothing")
    usual = next((one for one in MAILBOX_DEFAULTS if one.name == limit.name), None)
    if usual is not None and (limit.per, limit.burst) != (usual.per, limit.count):
        raise ValueError(f"gives {limit.name} other than COUNT/{usual.written_per}: it counts over that, without burst")
    return limit


async def simulate(reader: Reader, limits: Sequence[Limit], policy: Policy, stretch: Stretch, *, as_json: bool) -> int:
    """Print what each limit would have stopped; 1 if anything, 2 if the log can tell of none of them."""
    trials = trials_of(limits, policy)
    unanswered = [limit for limit in limits if limit.name in UNANSWERED]
    with moving() as progress:
        async for read, of in reader.past_requests.put_to(trials, since=stretch.since, until=stretch.until):
            progress("Trying the limits", read, of)
    if as_json:
        print_json(
            {
                "since": stretch.since,
                "until": stretch.until,
                "limits": [_told(trial) for trial in trials],
                "unanswered": [{"limit": str(limit), "why": UNANSWERED[limit.name]} for limit in unanswered],
            }
        )
    else:
        _print(trials, unanswered)
    if not trials:
        return 2
    return int(any(trial.tally.stopped for trial in trials))


def _told(trial: Trial) -> dict[str, Any]:
    limit, tally = trial.limit, trial.tally
    most, begun = tally.worst
    return {
        "limit": str(limit),
        "name": limit.name,
        "counts": limit.of,
        "asked": tally.asked,
        "stopped": tally.stopped,
        "mails_not_sent": tally.mails,
        "mails_sent_besides": tally.more_mails,
        "requesters": len(tally.requesters),
        "mailboxes": len(tally.mailboxes),
        "at_least": tally.requesters.at_least or tally.mailboxes.at_least,
        "longest_wait_seconds": tally.longest.total_seconds() if limit.name == "mails" else None,
        "worst": {"stopped": most, "since": begun, "seconds": int(limit.per.total_seconds())} if begun else None,
    }


def _print(trials: Sequence[Trial], unanswered: Sequence[Limit]) -> None:
    if trials:
        print_table(
            ("limit", "asked", "stopped", "mails not sent", "requesters", "mailboxes", "worst", "more mails", "of"),
            (
                (
                    *(_figures(trial.limit), f"{trial.tally.asked:,}", f"{trial.tally.stopped:,}"),
                    *(f"{trial.tally.mails:,}", _count(trial.tally.requesters), _count(trial.tally.mailboxes)),
                    *(_worst(trial), f"{trial.tally.more_mails:,}", trial.limit.of),
                )
                for trial in trials
            ),
        )
        note(f"{NOT_IN_THE_LOG} A network at two mailboxes is two requesters.")
    for trial in trials:
        if trial.tally.longest:
            note(f"{trial.limit.name}: those stopped wait, the longest {trial.tally.longest.total_seconds():,.1f} s.")
    for limit in unanswered:
        note(f"{limit.name} cannot be answered from the log: {UNANSWERED[limit.name]}.")


def _figures(limit: Limit) -> str:
    burst = f" burst {limit.burst}" if limit.burst != limit.count else ""
    return f"{limit.name}={limit.count}/{limit.written_per}{burst}"


def _count(distinct: Distinct) -> str:
    return f"{'≥ ' if distinct.at_least else ''}{len(distinct):,}"


def _worst(trial: Trial) -> str | None:
    most, begun = trial.tally.worst
    return f"{most:,} in {trial.limit.written_per} since {begun:%Y-%m-%d %H:%M}Z" if begun else None
