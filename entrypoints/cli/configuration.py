"""`registrar config`: the settings that are in force, and what is wrong with them."""

# ruff: noqa: PLC0415 - as in `main`: a command imports what it needs when it runs
from __future__ import annotations

import os
from pathlib import Path

import click

from entrypoints.cli import options


@click.group(
    "config", epilog=options.example("registrar config show", "registrar --config registrar.toml config check")
)
def config() -> None:
    """Settings: which are in force, and are they right?"""


@config.command("show", epilog=options.example("registrar config show", "registrar config show --json"))
@options.wide
@options.as_json
@options.data_dir
def show(data_dir: Path | None, *, as_json: bool) -> int:
    """Show every setting and where it comes from.

    The command line beats the environment, the environment the file, the file the default. Passwords, keys and tokens
    are hidden, also those in URLs.
    """
    from entrypoints.cli.output import print_json, print_table
    from entrypoints.cli.session import given_settings, read_settings
    from infrastructure.settings.written import shown

    settings = read_settings(with_secrets=False, data_dir=data_dir)
    rows = [*shown(settings, given_settings(data_dir=data_dir))]
    if as_json:
        print_json({"settings": [{"name": one.name, "value": one.value, "from": one.source} for one in rows]})
    else:
        print_table(("setting", "from", "value"), ((one.name, one.source, one.value) for one in rows))
    return 0


@config.command("check", epilog=options.example("registrar config check", "registrar config check --json"))
@options.as_json
@options.data_dir
def check(data_dir: Path | None, *, as_json: bool) -> int:
    """Check all settings, without starting anything.

    Exit code 1 if a setting cannot be used; all of them are named at once. What is legal but unwise is only said.
    `registrar doctor` also tries out what the settings name.
    """
    from entrypoints.cli.checks.machine import look_at_settings
    from entrypoints.cli.output import note, print_json
    from entrypoints.cli.session import read_settings
    from infrastructure.settings.environment import BadSettings

    try:
        settings = read_settings(data_dir=data_dir)
    except BadSettings as error:
        faults, remarks = error.faults, []
    else:
        remarks = [*look_at_settings(settings, os.environ)]
        faults = ()
    warnings = [f"{one.says}. {one.advice}" for one in remarks if one.state == "warn"]
    if as_json:
        print_json({"usable": not faults, "faults": faults, "warnings": warnings})
        return 1 if faults else 0
    for fault in faults:
        click.echo(fault)
    for one in warnings:
        note(f"warning: {one}")
    if not faults:
        click.echo(f"{len(settings.model_fields_set)} settings are set, and can be used.")
    return 1 if faults else 0


@config.command("example", epilog=options.example("registrar config example > registrar.toml"))
def example() -> int:
    """Print a file of settings to begin with.

    It lists every setting with its default, or an example where there is none; nothing in it is in force until its #
    is removed.
    """
    from infrastructure.settings.written import example_file

    for line in example_file():
        click.echo(line)
    return 0
