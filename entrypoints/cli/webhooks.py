"""`webhooks list`, `test`, `replay`, `disable` and `enable`: their options and examples."""

# ruff: noqa: PLC0415 - as in `main`: a command imports what it needs when it runs
from __future__ import annotations

from pathlib import Path

import click

from entrypoints.cli import options


@click.group(epilog=options.example("registrar webhooks list"))
def webhooks() -> None:
    """See the endpoints of REGISTRAR_WEBHOOKS, and how they fare."""


@webhooks.command("list", epilog=options.example("registrar webhooks list", "registrar webhooks list --json"))
@options.wide
@options.as_json
@options.data_dir
def webhooks_list(*, as_json: bool, data_dir: Path | None) -> int:
    """List the endpoints: how far each is, since when it fails and why, and the public key of `v1a`.

    How far it is counts positions of the log; most of them are calls of no endpoint. A next try "now" is under way.

    Exit code 1 if one is failing, or has asked not to be called any more.
    """
    from entrypoints.cli import webhook_desk
    from entrypoints.cli.session import calling_webhooks

    return calling_webhooks(data_dir, lambda desk: webhook_desk.list_endpoints(desk, as_json=as_json))


@webhooks.command("test", epilog=options.example("registrar webhooks test app"))
@click.argument("name")
@options.reason
@options.as_json
@options.data_dir
def webhooks_test(name: str, *, reason: str | None, as_json: bool, data_dir: Path | None) -> int:
    """Call an endpoint once, now and from here, with an event of the type registrar.test.v1.

    It is signed like any other. An endpoint that was failing, and takes it, gets at once what it has missed. Exit code
    1 if the answer is no 2xx.
    """
    from entrypoints.cli import webhook_desk
    from entrypoints.cli.session import calling_webhooks

    return calling_webhooks(data_dir, lambda desk: webhook_desk.test(desk, name, reason, as_json=as_json))


@webhooks.command(
    "replay",
    epilog=options.example('registrar webhooks replay app --from 1200 --reason "it lost a day"'),
)
@click.argument("name")
@click.option(
    "--from",
    "first",
    type=click.IntRange(min=1),
    required=True,
    help="Position of the first event that is sent (again), at most the next one that there will be.",
)
@options.reason
@options.as_json
@options.data_dir
def webhooks_replay(name: str, *, first: int, reason: str | None, as_json: bool, data_dir: Path | None) -> int:
    """Send everything from a position on, again or for the first time.

    What an endpoint has seen before comes with the ids that it came with then. A position beyond that which the
    endpoint has reached leaves out what is between them, and says so.
    """
    from entrypoints.cli import webhook_desk
    from entrypoints.cli.session import calling_webhooks

    return calling_webhooks(data_dir, lambda desk: webhook_desk.replay(desk, name, first, reason, as_json=as_json))


@webhooks.command("disable", epilog=options.example('registrar webhooks disable app --reason "moves on Monday"'))
@click.argument("name")
@options.reason
@options.as_json
@options.data_dir
def webhooks_disable(name: str, *, reason: str | None, as_json: bool, data_dir: Path | None) -> int:
    """Send an endpoint nothing until it is enabled. It then gets what it has missed."""
    from entrypoints.cli import webhook_desk
    from entrypoints.cli.session import calling_webhooks

    return calling_webhooks(data_dir, lambda desk: webhook_desk.disable(desk, name, reason, as_json=as_json))


@webhooks.command("enable", epilog=options.example("registrar webhooks enable app"))
@click.argument("name")
@options.reason
@options.as_json
@options.data_dir
def webhooks_enable(name: str, *, reason: str | None, as_json: bool, data_dir: Path | None) -> int:
    """Go on where an endpoint was disabled, or had failed: at once, without waiting for the next try."""
    from entrypoints.cli import webhook_desk
    from entrypoints.cli.session import calling_webhooks

    return calling_webhooks(data_dir, lambda desk: webhook_desk.enable(desk, name, reason, as_json=as_json))
