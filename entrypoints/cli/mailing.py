"""`registrar mail preview` and `mail test`, which do what is in `letters`, and `mail suppressions` and `mail allow`, of
which that is in `mail`; with their options and examples."""

# ruff: noqa: PLC0415 - as in `main`: a command imports what it needs when it runs
from __future__ import annotations

from pathlib import Path

import click

from domain.mail_outcome import MailKind
from entrypoints.cli import options

_KINDS = click.Choice([kind.value for kind in MailKind])


@click.command(
    epilog=options.example(
        "registrar mail preview code --locale fr --open", "registrar mail preview notice --html > notice.html"
    )
)
@click.argument("kind", type=_KINDS, metavar="KIND")
@click.option("--locale", default="en", show_default=True, metavar="TAG", help="Language, as of a registration.")
@click.option("--open", "opens", is_flag=True, help="Show the HTML in a browser.")
@click.option("--html", "as_html", is_flag=True, help="Print the HTML instead of the text.")
@options.as_json
@options.data_dir
def preview(*, kind: str, locale: str, opens: bool, as_html: bool, as_json: bool, data_dir: Path | None) -> int:
    """Show a mail as the templates on disk make it.

    KIND is code or notice. What runs goes on with the templates that it started with.
    """
    from entrypoints.cli import letters
    from entrypoints.cli.session import finish, read_settings

    if as_html and as_json:
        raise click.UsageError("--html and --json exclude each other.", click.get_current_context())
    settings = read_settings(data_dir=data_dir, with_secrets=False)
    return finish(letters.preview(settings, MailKind(kind), locale, opens=opens, as_html=as_html, as_json=as_json))


@click.command(
    epilog=options.example(
        "registrar mail test you@example.org", "echo you@example.org | registrar mail test - --kind notice --locale fr"
    )
)
@click.argument("address", callback=options.or_standard_input, metavar="ADDRESS")
@click.option("--kind", type=_KINDS, default="code", show_default=True, help="Which mail.")
@click.option("--locale", default="en", show_default=True, metavar="TAG", help="Language, as of a registration.")
@options.wide
@options.as_json
@options.data_dir
def test(*, address: str, kind: str, locale: str, as_json: bool, data_dir: Path | None) -> int:
    """Send a sample to an address of yours.

    Through the mail servers of REGISTRAR_SMTP_URLS, the next one where one refuses, and says what each replied. In
    place of a code it has the word SAMPLE. Exit code 1 if no server took it.
    """
    from entrypoints.cli import letters
    from entrypoints.cli.session import finish, log_troubles, read_settings

    settings = read_settings(data_dir=data_dir, with_secrets=False)
    log_troubles(settings)
    return finish(letters.send_sample(settings, address, MailKind(kind), locale, as_json=as_json))


@click.command(epilog=options.example("registrar mail suppressions", "registrar mail suppressions --limit 500 --json"))
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, metavar="N", help="At most N.")
@options.wide
@options.as_json
@options.data_dir
def suppressions(*, limit: int, as_json: bool, data_dir: Path | None) -> int:
    """List mailboxes that are sent no more.

    Those where a mail was marked as unwanted, the latest complaint first, each by the registration whose mail that was:
    no address is shown. `registrar mail allow` lifts it.
    """
    from entrypoints.cli import mail
    from entrypoints.cli.session import reading

    return reading(data_dir, lambda reader: mail.list_suppressions(reader, limit=limit, as_json=as_json))


@click.command(
    epilog=options.example(
        "registrar mail allow 0198c0de-0000-7000-8000-000000000000 --reason 'ticket 4711'",
        "registrar mail allow - --reason 'asked by phone' < address.txt",
    )
)
@click.argument("who", callback=options.or_standard_input, metavar="ID|ADDRESS")
@options.reason
@options.wide
@options.as_json
@options.data_dir
def allow(*, who: str, reason: str | None, as_json: bool, data_dir: Path | None) -> int:
    """Send a mailbox mails again.

    One that is sent no more since a mail there was marked as unwanted: that of a registration, or of an ADDRESS ("-"
    reads it from standard input). The next code that somebody asks for goes there.
    """
    from entrypoints.cli import mail
    from entrypoints.cli.session import acting

    wanted = options.registration_or_address(who)
    return acting(data_dir, lambda desk: mail.allow(desk, wanted, reason=reason, as_json=as_json))
