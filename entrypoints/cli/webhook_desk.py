"""What the commands about webhooks do."""

from __future__ import annotations

from datetime import datetime

import click

from entrypoints.bootstrap.webhooks import BeyondTheLog, ListedEndpoint, NotDelivered, WebhookDesk
from entrypoints.cli.output import note, print_json, print_table


async def list_endpoints(desk: WebhookDesk, *, as_json: bool) -> int:
    """Print the endpoints; 1 if one of them is in trouble."""
    found = await desk.list()
    if as_json:
        print_json(found)
    else:
        print_table(
            (
                *(
                    "name",
                    "state",
                    "positions behind",
                    "where",
                    "position",
                    "failing since",
                    "failure",
                    "failures",
                    "next try",
                ),
                *("delivered", "public keys"),
            ),
            (
                (
                    *(one.name, one.state, one.behind, one.where, one.position, one.failing_since, one.failure),
                    *(one.failures or None, _next_try(one), one.delivered_at, " ".join(one.public_keys) or None),
                )
                for one in found
            ),
        )
    if not as_json and any(one.behind for one in found):
        note("Not each position of the log is a call: most are no news to others.")
    if not found:
        note("There are no endpoints; REGISTRAR_WEBHOOKS names them.")
    return 1 if any(one.state in {"failing", "gone"} for one in found) else 0


def _next_try(one: ListedEndpoint) -> datetime | str | None:
    return "now" if one.state == "failing" and one.retry_at is None else one.retry_at


async def test(desk: WebhookDesk, name: str, reason: str | None, *, as_json: bool) -> int:
    """Call an endpoint once and say what it answered; 1 if it did not take it."""
    await _known(desk, name)
    if name not in desk.endpoints:
        raise click.UsageError(f"{name} is not in REGISTRAR_WEBHOOKS here.")
    failure, advice, wakes = None, "", False
    try:
        wakes = await desk.test(name, reason)
    except NotDelivered as failed:
        failure, advice = failed.failure, failed.advice
    if as_json:
        print_json(
            {"endpoint": name, "delivered": failure is None, "failure": failure, "advice": advice, "wakes": wakes}
        )
    elif failure is None:
        click.echo(f"{name} has taken it.{' What it has missed is sent now.' if wakes else ''}")
    else:
        click.echo(f"{name} has not taken it: {failure}. {advice}".rstrip())
    return 0 if failure is None else 1


async def replay(desk: WebhookDesk, name: str, first: int, reason: str | None, *, as_json: bool) -> int:
    """Have an endpoint begin again at a position; 1 if there is nothing to begin again yet."""
    await _known(desk, name)
    try:
        found = await desk.replay(name, first, reason)
    except BeyondTheLog as error:
        raise click.BadParameter(
            f"the log ends at {error.head}; {error.head + 1} sends what is recorded from now on, and nothing else.",
            click.get_current_context(),
            param_hint="--from",
        ) from None
    skipped = found.skipped if found is not None else None
    if as_json:
        print_json({"endpoint": name, "from": found.begins if found is not None else None, "skipped": skipped})
    elif found is not None:
        click.echo(f"{name} gets what was recorded from {found.begins} on.")
    if skipped is not None:
        note(
            f"It had not taken all of {skipped[0]} to {skipped[1]}, which is left out now; --from {skipped[0]} sends it."
        )
    return _said_if_new(name, found is not None)


async def disable(desk: WebhookDesk, name: str, reason: str | None, *, as_json: bool) -> int:
    """Have nothing more sent to an endpoint."""
    await _known(desk, name)
    done = await desk.disable(name, reason)
    if as_json:
        print_json({"endpoint": name, "disabled": done})
    else:
        click.echo(f"{name} is disabled{'' if done else ' already, or no process has sent to it yet'}.")
    return 0


async def enable(desk: WebhookDesk, name: str, reason: str | None, *, as_json: bool) -> int:
    """Have an endpoint go on at once; 1 if there is nothing to go on with yet."""
    await _known(desk, name)
    done = await desk.enable(name, reason)
    if as_json:
        print_json({"endpoint": name, "enabled": done})
    elif done:
        click.echo(f"{name} goes on where it was.")
    return _said_if_new(name, done)


def _said_if_new(name: str, known: bool) -> int:
    if not known:
        note(f"No process has sent to {name} yet; does `registrar up` or `registrar process` have it in its settings?")
    return 0 if known else 1


async def _known(desk: WebhookDesk, name: str) -> None:
    """
    Raises:
        click.UsageError: there is no such endpoint.
    """
    names = await desk.names()
    if name not in names:
        known = f"known are {', '.join(sorted(names))}" if names else "REGISTRAR_WEBHOOKS names none"
        raise click.UsageError(f"'{name}' is no endpoint; {known}.")
