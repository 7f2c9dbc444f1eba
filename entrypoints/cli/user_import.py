"""What `import` does."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import ExitStack, aclosing, nullcontext
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from io import BufferedReader
from pathlib import Path
from shutil import copyfileobj
from tempfile import TemporaryFile
from threading import Event
from typing import IO, Final
from uuid import UUID, uuid4

import click

from application.addresses import canonical_address
from application.commands import ImportedUser, ImportUsers, InviteUser, RecordImport
from application.ports import Context
from application.user_import import Outcome
from domain.recorded import Actor
from domain.user_import import Counts
from entrypoints.bootstrap.desk import Desk
from entrypoints.cli.output import Progress, moving, note, print_json
from infrastructure.archive.files import Busy, Source, Stopped, written
from infrastructure.archive.users import Changed, Checked, Problem, check

PORTION: Final = 400
"""Users in one commit: 800 events, of the 1,000 from which on a commit takes longer without taking more."""

MOST_WAITING: Final = 100
"""Mails that wait to be sent, of whomever, from which on nobody is invited: whoever signs up comes first."""

LINES_A_LOOK: Final = 1_000
"""From one look of a person at a terminal to the next: to draw a bar takes longer than to check a line."""

LOOK_AGAIN: Final = timedelta(seconds=5)
"""How often it is looked whether fewer wait by now."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """
    Attributes:
        file: "-" is standard input.
        skipped: where to write what cannot be taken over.
        every: from one invitation to the next.
    """

    file: Path
    dry_run: bool
    skip_bad: bool
    skipped: Path | None
    invite: bool
    every: timedelta


async def import_users(desk: Desk, wanted: Wanted, *, reason: str | None, as_json: bool) -> int:
    """Check the file and take its users over; 1 if there are lines that cannot be, and were not to be left out."""
    with ExitStack() as stack:
        progress = stack.enter_context(moving())
        file, checked = await _checked(stack, wanted, progress)
        if checked.skipped and not wanted.skip_bad:
            raise click.ClickException(
                f"{checked.skipped:,} of {_users(checked.sound + checked.skipped, 'line')} cannot be taken over, and "
                "none was; mend what is named above, or leave it out with --skip-bad."
            )
        run = _Run(desk, wanted, checked, Context(Actor.OPERATOR, correlation_id=uuid4(), reason=reason))
        try:
            await run.take_over(file, partial(progress, "Importing"))
            if wanted.invite and not wanted.dry_run:
                await run.invite(file, partial(progress, "Inviting"))
        except asyncio.CancelledError:
            note("Stopped; the same command goes on.")
            raise
        except Changed as error:
            raise click.ClickException(f"{error}; stopped there, and the same command goes on.") from None
        await run.end()
    if as_json:
        print_json(run.summary())
    else:
        _tell(run)
    return 0


async def _checked(stack: ExitStack, wanted: Wanted, progress: Progress) -> tuple[IO[bytes], Checked]:
    """The file, to be read again, and what was found in it."""
    standard = str(wanted.file) == "-"
    source = stack.enter_context(Source(None if standard else wanted.file))
    # Files without names, for nobody else to open: a copy of what comes once, and what is to be left out.
    copy = stack.enter_context(TemporaryFile())  # noqa: SIM115 - the stack does
    numbers = stack.enter_context(TemporaryFile())  # noqa: SIM115
    stopped = Event()
    stack.callback(stopped.set)  # a thread may still be reading
    stack.callback(source.stop)

    def work() -> tuple[IO[bytes], Checked]:
        file: IO[bytes] = BufferedReader(source)
        if standard or not source.seekable():
            copyfileobj(file, copy)
            copy.seek(0)
            file = copy
        with nullcontext() if wanted.skipped is None else written(wanted.skipped) as listed:

            def tell(problems: Iterable[Problem]) -> None:
                for one in problems:
                    note(str(one))
                    if listed is not None:
                        listed.write(f"{one}\n".encode())

            def look(line: int) -> None:
                if line % LINES_A_LOOK == 0:
                    progress("Checking", line, 0)
                if stopped.is_set():
                    raise Stopped

            return file, check(file, numbers, same=_same, on_problems=tell, on_line=look)

    try:
        return await asyncio.to_thread(work)
    except Busy as error:
        raise click.ClickException(f"{error}.") from None


def _same(user: ImportedUser) -> str:
    return canonical_address(user.email)


_BESIDE: Final = {
    "passwords_left_out": Outcome.WITHOUT_PASSWORD,
    "erased": Outcome.ERASED,
    "gave_way": Outcome.GAVE_WAY,
    "not_invited": Outcome.LEFT,
}
"""What is told beside the counts that are recorded. The first are among those who wait, the second among those who were
there already."""

_HAVE_AN_EFFECT: Final = {Outcome.INVITED, Outcome.GAVE_WAY}
"""Of a user who waits."""


class _Run:
    """One import; it is recorded when it has its first effect."""

    def __init__(self, desk: Desk, wanted: Wanted, checked: Checked, context: Context) -> None:
        self.wanted = wanted
        self.checked = checked
        self.outcomes: Counter[str] = Counter()
        self._desk = desk
        self._id: UUID = context.correlation_id
        self._context = context
        self._beginning = asyncio.Lock()
        self._begun = False

    @property
    def has_changed(self) -> bool:
        """Did it change anything, or would it?"""
        unchanged = {Outcome.ALREADY_THERE, Outcome.ERASED, Outcome.LEFT}
        return any(number for outcome, number in self.outcomes.items() if outcome not in unchanged)

    @property
    def counts(self) -> Counts:
        found = self.outcomes
        return Counts(
            accounts=found[Outcome.ACCOUNT],
            waiting=found[Outcome.WAITING] + found[Outcome.WITHOUT_PASSWORD],
            already_there=found[Outcome.ALREADY_THERE] + found[Outcome.ERASED],
            invited=found[Outcome.INVITED],
        )

    def summary(self) -> dict[str, object]:
        """What is printed for programs."""
        others = {name: self.outcomes[outcome] for name, outcome in _BESIDE.items()}
        counts = asdict(self.counts) | {"skipped": self.checked.skipped} | others
        return {"file": str(self.wanted.file), "dry_run": self.wanted.dry_run, "changed": self._begun, **counts}

    async def take_over(self, file: IO[bytes], progress: Callable[[int, int], None]) -> None:
        """While one portion is recorded, the next one is sealed and the one after that is read."""
        done, under_way = 0, None
        try:
            async with aclosing(_ahead(self.checked.portions(file, PORTION))) as portions:
                async for portion in portions:
                    earlier, under_way = under_way, asyncio.create_task(self._take_over(portion))
                    if earlier is not None:
                        self.outcomes.update(await earlier)
                    done += len(portion)
                    progress(done, self.checked.sound)
            if under_way is not None:
                self.outcomes.update(await under_way)
        finally:
            if under_way is not None and not under_way.done():
                under_way.cancel()
                await asyncio.wait({under_way})

    async def _take_over(self, portion: tuple[ImportedUser, ...]) -> Iterable[str]:
        if not self._begun:  # a repeat of what is done changes nothing, and records nothing either
            foreseen = await self._import(portion, dry_run=True)
            if self.wanted.dry_run or set(foreseen) <= {Outcome.ALREADY_THERE, Outcome.ERASED}:
                return foreseen
            await self._begin()
        return await self._import(portion)

    async def _import(self, portion: tuple[ImportedUser, ...], *, dry_run: bool = False) -> Iterable[str]:
        command = ImportUsers(import_id=self._id, users=portion, dry_run=dry_run)
        return (await self._desk.handlers.handle(command, self._context)).details

    async def _begin(self) -> None:
        async with self._beginning:
            if not self._begun:
                await self._desk.handlers.handle(RecordImport(import_id=self._id), self._context)
                self._begun = True

    async def invite(self, file: IO[bytes], progress: Callable[[int, int], None]) -> None:
        """One after the other, at the rate that is wanted, and none while too many mails wait."""
        done, next_at = 0, 0.0
        await self._until_few_wait()
        async with aclosing(_ahead(self.checked.portions(file, PORTION))) as portions:
            async for user in (user async for portion in portions for user in portion):
                done += 1
                progress(done, self.checked.sound)
                if user.verified or await self._invite(user) != Outcome.INVITED:
                    continue
                next_at = max(next_at, time.monotonic()) + self.wanted.every.total_seconds()
                await asyncio.sleep(max(0, next_at - time.monotonic()))
                await self._until_few_wait()

    async def _invite(self, user: ImportedUser) -> str:
        command = InviteUser(import_id=self._id, user=user)
        if not self._begun:
            foreseen = command.model_copy(update={"dry_run": True})
            if (await self._desk.handlers.handle(foreseen, self._context)).details[0] in _HAVE_AN_EFFECT:
                await self._begin()
        outcome = (await self._desk.handlers.handle(command, self._context)).details[0]
        if outcome != Outcome.ALREADY_THERE:  # these are counted already
            self.outcomes[outcome] += 1
        return outcome

    async def _until_few_wait(self) -> None:
        told = False
        while len((await self._desk.mails.search(state="QUEUED", limit=MOST_WAITING)).items) == MOST_WAITING:
            if not told:
                note(f"{MOST_WAITING} mails or more wait to be sent; the invitations go on when fewer do.")
                told = True
            await asyncio.sleep(LOOK_AGAIN.total_seconds())

    async def end(self) -> None:
        """Record what came of it, if anything did."""
        if self._begun:
            ended = RecordImport(import_id=self._id, counts=self.counts, skipped=self.checked.skipped)
            await self._desk.handlers.handle(ended, self._context)


async def _ahead(portions: Iterator[tuple[ImportedUser, ...]]) -> AsyncGenerator[tuple[ImportedUser, ...], None]:
    """Read in a thread, one portion ahead."""
    following = asyncio.create_task(asyncio.to_thread(next, portions, None))
    try:
        while (portion := await following) is not None:
            following = asyncio.create_task(asyncio.to_thread(next, portions, None))
            yield portion
    finally:
        await asyncio.wait({following})  # a portion is read in a moment


def _tell(run: _Run) -> None:
    counts, skipped, found = run.counts, run.checked.skipped, run.outcomes
    if not run.checked.sound + skipped:
        click.echo("There is nobody in the file.")
    elif not run.wanted.dry_run and not run.has_changed:
        click.echo(f"Nothing changed: {_users(counts.already_there, 'user')} there already.")
    else:
        would = "Would import" if run.wanted.dry_run else "Imported"
        told = [f"{would} {_users(counts.accounts, 'account')}"]
        told.append(f"{_users(counts.waiting, 'user')} who wait for an invitation")
        click.echo(f"{' and '.join(told)}; {_users(counts.already_there, 'user')} there already.")
    if counts.invited:
        click.echo(f"Invited {_users(counts.invited, 'user')}.")
    if passwords := found[Outcome.WITHOUT_PASSWORD]:
        note(
            f"Left out {_users(passwords, 'password')} of users whose addresses the other system has not verified: "
            "somebody else may know them."
        )
    if erased := found[Outcome.ERASED]:
        note(f"Of those who were there already, {erased:,} had an account that was erased; they can sign up.")
    if gave_way := found[Outcome.GAVE_WAY]:
        note(f"Not invited, and ended: {gave_way:,}, whose addresses accounts have by now.")
    if left := found[Outcome.LEFT]:
        note(f"Not invited: {left:,}, whose mailboxes have had as many mails as they are sent; try again tomorrow.")
    if skipped:
        note(f"Left out {_users(skipped, 'line')}.")


def _users(number: int, what: str) -> str:
    return f"1 {what}" if number == 1 else f"{number:,} {what}s"
