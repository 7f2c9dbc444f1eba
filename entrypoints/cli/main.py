"""The command line: the commands that run the service, each with its options and an example; the others are in
`operating`. What a command does is in the modules beside it.

Exit codes: 0 done; 1 something failed, or a problem was found; 2 wrong usage, or the service cannot start.
An error is one line on standard error, never a traceback.
"""

# ruff: noqa: PLC0415 - a command imports what it needs when it runs: `registrar --help` must not wait for it
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import click

from entrypoints.cli import options


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code."""
    try:
        code = registrar.main(args=list(arguments), prog_name="registrar", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.UsageError as error:
        see = f" (see `{error.ctx.command_path} --help`)" if error.ctx else ""
        return _complain(error.format_message() + see, error.exit_code)
    except click.ClickException as error:
        return _complain(error.format_message(), error.exit_code)
    except click.Abort:
        return 130
    except Exception as error:  # noqa: BLE001 - the edge of the process: one line per error, a bug with its place
        from entrypoints.cli.session import explain

        return _complain(*explain(error))
    return int(code or 0)


def _complain(message: str, code: int) -> int:
    click.echo(f"registrar: {' '.join(message.split())}", err=True)
    return code


# --- Running the service ----------------------------------------------------------------------


class _Commands(click.Group):
    """Loads the operators' commands for whoever asks for one of them, or for all: the service needs none."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, cmd_name) or self._complete().commands.get(cmd_name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return super(_Commands, self._complete()).list_commands(ctx)

    def _complete(self) -> Self:
        from entrypoints.cli.operating import COMMANDS

        for command in COMMANDS:
            self.add_command(command)
        return self


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=options.example("registrar up"),
)
@click.version_option(package_name="registrar", message="registrar %(version)s")
@options.config_file
def registrar() -> None:
    """Event-sourced registration: a sign-up, a code by mail, an account.

    Settings are environment variables with the prefix REGISTRAR_ (docs/settings.md lists them), or lines of a file
    (`registrar config example`). With none set, nothing else is needed: there is an embedded PostgreSQL, and a mailbox
    in which to read the mails.
    """


def _keep_running(command: str, **given: Any) -> int:
    """Run one of the commands that go on until they are stopped; returns its exit code."""
    from entrypoints.cli.libraries import load_structlog

    load_structlog()
    from entrypoints.cli import run as commands
    from entrypoints.cli.session import finish, read_settings

    return finish(getattr(commands, command)(read_settings(**given)))


@registrar.command(epilog=options.example("registrar up --port 8001"))
@options.listen
@options.data_dir
def up(host: str | None, port: int | None, data_dir: Path | None) -> int:
    """Run everything in one process.

    An embedded PostgreSQL, the HTTP API, the followers, mail delivery, and a mailbox in which to read the mails. With
    REGISTRAR_DATABASE_URL or REGISTRAR_SMTP_URLS, that database and those mail servers are used instead.
    """
    return _keep_running("up", host=host, port=port, data_dir=data_dir)


@registrar.command(epilog=options.example("registrar serve --host 0.0.0.0 --port 8000"))
@options.listen
@options.data_dir
def serve(host: str | None, port: int | None, data_dir: Path | None) -> int:
    """Run the HTTP API only; any number of copies."""
    return _keep_running("serve", host=host, port=port, data_dir=data_dir)


@registrar.command(epilog=options.example("registrar process"))
@options.data_dir
def process(data_dir: Path | None) -> int:
    """Run projections, mail saga, deadlines, delivery.

    Any number of copies: one leads each task, the others stand by. Needs REGISTRAR_SMTP_URLS.
    """
    return _keep_running("process", data_dir=data_dir)


@registrar.command(epilog=options.example("registrar work"))
@options.data_dir
def work(data_dir: Path | None) -> int:
    """Run the mail worker and the dead-letter consumer.

    Any number of copies. They take mails from RabbitMQ (REGISTRAR_BROKER_URL) and hand them to the mail servers
    (REGISTRAR_SMTP_URLS).
    """
    return _keep_running("work", data_dir=data_dir)


@registrar.command(epilog=options.example("registrar bounces"))
@options.data_dir
def bounces(data_dir: Path | None) -> int:
    """Take notifications of mails that came back.

    An SMTP server for these alone (REGISTRAR_BOUNCE_LISTEN), which a mail that could not be delivered comes back to,
    and which tells by its address (REGISTRAR_BOUNCE_ADDRESS) which mail it was. Any number of copies.
    """
    return _keep_running("bounces", data_dir=data_dir)


@registrar.command(epilog=options.example("registrar doctor", "registrar doctor --json"))
@options.as_json
@options.data_dir
def doctor(data_dir: Path | None, *, as_json: bool) -> int:
    """Check everything the service depends on.

    Says for each dependency and setting what is wrong and what to do. Changes nothing and starts nothing. Exit code 1
    if a check failed; warnings are not failures.
    """
    from entrypoints.cli import doctor as cli_doctor
    from entrypoints.cli.session import finish

    return finish(cli_doctor.doctor(data_dir, as_json=as_json))
