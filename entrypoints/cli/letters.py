"""`registrar mail preview` and `mail test`: what mails say and look like, and what mail servers say to one."""

from __future__ import annotations

import asyncio
import ssl
import webbrowser
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from uuid import UUID, uuid4

import click
from aiosmtplib import SMTPException, SMTPResponseException

from application.ports import CODE_GAP, ID_GAP, Letter
from domain.languages import LANGUAGES, Language, language_of
from domain.mail_outcome import MailKind
from entrypoints.bootstrap import CannotStart
from entrypoints.bootstrap.letters import letters_for
from entrypoints.cli.checks.causes import cause_of
from entrypoints.cli.output import note, print_json, print_table
from infrastructure.embedded.files import make_directory
from infrastructure.mail.composing import Composer
from infrastructure.mail.smtp.connection import Connection, Progress
from infrastructure.reach import reach
from infrastructure.settings.sender import mailbox
from infrastructure.settings.settings import Settings
from infrastructure.settings.values import MailServer

NO_CODE: Final = "SAMPLE"
"""In place of a code, which is of digits: it cannot be taken for one."""
NOBODY: Final = UUID(int=0)


@dataclass(frozen=True, slots=True)
class Said:
    """What a mail server made of the sample.

    Attributes:
        stage: of the conversation, where it ended.
        reply: the server's, or why there is none.
    """

    server: str
    accepted: bool
    stage: str
    reply: str


async def preview(settings: Settings, kind: MailKind, locale: str, *, opens: bool, as_html: bool, as_json: bool) -> int:
    """Print a mail as it would be after the next start; with `opens`, show its HTML in a browser."""
    language = _language_of(locale)
    letters = await letters_for(settings, (kind, language))
    subject, text, html = (_filled(part) for part in letters.rendered(kind, language))
    if as_json:
        print_json({"kind": kind.value, "language": language, "subject": subject, "text": text, "html": html})
    elif as_html:
        click.echo(html, nl=False)
    else:
        click.echo(f"Subject: {subject}\n\n{text}", nl=False)
    if opens:
        page = _kept(settings.data_dir / "previews" / f"{kind}.{language}.html", html)
        note(f"The HTML is in {page}.")
        if not webbrowser.open(page.as_uri()):
            note("No browser opened; open that file yourself.")
    return 0


def _language_of(locale: str) -> Language:
    language = language_of(locale)
    if not locale.lower().startswith(language):
        note(f"There is no mail in that language, so this is the English one; there are {', '.join(LANGUAGES)}.")
    return language


def _filled(part: str) -> str:
    return part.replace(CODE_GAP, NO_CODE).replace(ID_GAP, str(NOBODY))


def _kept(page: Path, html: str) -> Path:
    # Not in /tmp, which browsers in a sandbox of their own (snap, Flatpak) do not see.
    make_directory(page.parent)
    page.write_text(html, "utf-8")
    return page.resolve()


async def send_sample(settings: Settings, address: str, kind: MailKind, locale: str, *, as_json: bool) -> int:
    """Hand a sample to the first mail server that takes it, and print what each one said; 1 if none did.

    Raises:
        click.BadParameter: it is no address.
        CannotStart: there is no mail server, or a template is faulty.
    """
    try:
        to = mailbox(address)
    except ValueError:
        raise click.BadParameter("that is no mail address.", param_hint="ADDRESS") from None
    if not settings.mail_servers:
        raise CannotStart("REGISTRAR_SMTP_URLS is not set, so no mail leaves this machine; `mail preview` shows mails.")
    language = _language_of(locale)
    letters = await letters_for(settings, (kind, language))
    who = {"to": to, "locale": language, "message_id": f"sample.{uuid4().hex}"}
    letter = (
        letters.code(code=NO_CODE, registration_id=NOBODY, **who) if kind is MailKind.CODE else letters.notice(**who)
    )
    composer = Composer(settings.mail_from, settings.reply_to)
    said = []
    for server in settings.mail_servers:
        said.append(await _handed_to(server, composer, letter, settings))
        if said[-1].accepted:
            break
    if as_json:
        print_json(said)
    else:
        print_table(("server", "accepted", "stage", "reply"), map(astuple, said))
    return 0 if said[-1].accepted else 1


async def _handed_to(server: MailServer, composer: Composer, letter: Letter, settings: Settings) -> Said:
    where, loop = f"{server.host}:{server.port}", asyncio.get_running_loop()
    progress = Progress(started=loop.time())
    connection = None
    try:
        async with asyncio.timeout(settings.send_timeout.total_seconds()) as deadline:
            progress.on_content = lambda: deadline.reschedule(loop.time() + settings.accept_timeout.total_seconds())
            line = await reach(server.host, server.port)
            greeting = composer.sender.rpartition("@")[2]
            connection = await Connection.open(line, server, greeting, ssl.create_default_context(), progress)
            progress.stage = "mail"
            await connection.begin(composer.sender.encode("ascii"), letter.to)
            message = composer.compose(letter, letter.to, datetime.now(UTC))
            reply = await connection.send(letter.to, message, progress)
    except SMTPResponseException as error:
        return Said(where, False, progress.stage, _line(error.code, error.message))
    except (OSError, SMTPException) as error:
        return Said(where, False, progress.stage, cause_of(error) or type(error).__name__)
    finally:
        if connection is not None:
            connection.abort()
    return Said(where, True, progress.stage, _line(*reply))


def _line(code: int, text: str) -> str:
    """A reply in one line that does nothing to a terminal."""
    return " ".join("".join(one if one.isprintable() else " " for one in f"{code} {text}").split())
