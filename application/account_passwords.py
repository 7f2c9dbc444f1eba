"""Passwords of accounts: checked for a login service, and set anew."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from application.addresses import canonical_address
from application.answers import Answer
from application.commands import RecordFailedChecks, RehashPassword, SetPassword
from application.handlers import CONFLICT_RETRIES, Handlers
from application.passwords import check_words, parse_password
from application.ports import (
    Clock,
    Conflict,
    Context,
    Outdated,
    PasswordChecker,
    Person,
    Persons,
    Seals,
    Unavailable,
)
from application.unfit import Unfit
from domain.errors import NotAnAccount, Refused, UnknownRegistration
from domain.password_checks import is_told

WITHIN: Final = timedelta(hours=1)
"""Over how long failed checks of an account are counted."""

MOST_COUNTED: Final = 10_000
"""Accounts whose failed checks a process counts at a time; the one that it began with first is forgotten."""


class UnfitPassword(Unfit):
    """A new password that is not accepted; the message can be shown, and repeats nothing of it."""


class AccountPasswords:
    """
    Raises (all of it):
        Overloaded, Unavailable: repeating later makes sense.
        WrongMasterKey: the key of this person cannot be opened.
    """

    def __init__(
        self,
        *,
        persons: Persons,
        seals: Seals,
        hasher: PasswordChecker,
        handlers: Handlers,
        clock: Clock,
        new_id: Callable[[], UUID],
        service_names: Sequence[str] = (),
    ) -> None:
        """
        Args:
            new_id: names what is recorded of failed checks.
            service_names: what people call the service, which counts for nothing in a password.
        """
        self._persons = persons
        self._seals = seals
        self._hasher = hasher
        self._handlers = handlers
        self._new_id = new_id
        self._service_names = service_names
        self._failed = FailedChecks(clock)

    async def check(self, account_id: UUID, typed: str, context: Context) -> bool:
        """Is it the password of this account?

        Hashes as much where there is no such account, or it has no password. That checks fail is recorded now and then
        (`domain.password_checks`). After a match, a hash that is not one of today's is replaced, or at the next match.
        """
        found = await self._persons.sealed(account_id)
        person = None
        if found is not None and found.is_active and found.wrapped is not None:
            person = self._seals.open(account_id, found.sealed, found.wrapped)
        verdict = await self._hasher.verify(forms_of(typed), None if person is None else person.password_hash)
        if found is None or found.wrapped is None or person is None:
            return False
        if not verdict.matches:
            await self._note_failure(account_id, context)
            return False
        self._failed.forget(account_id)
        if verdict.outdated:
            with suppress(Unavailable, Conflict, Refused):  # whoever knows the password is let in all the same
                password_hash = await self._hasher.rehash(forms_of(typed)[0], _address(person))
                again = replace(person, password_hash=password_hash)
                sealed = self._seals.seal_again(account_id, again, found.wrapped)
                rehash = RehashPassword(registration_id=account_id, personal_data=sealed, replaces=found.sealed)
                await self._handlers.handle(rehash, context)
        return True

    async def _note_failure(self, account_id: UUID, context: Context) -> None:
        failed, since = self._failed.count(account_id)
        if is_told(failed):
            told = RecordFailedChecks(checks_id=self._new_id(), registration_id=account_id, failed=failed, since=since)
            await self._handlers.handle(told, context)

    async def set(self, account_id: UUID, typed: str, context: Context) -> Answer:
        """Give an account another password; the same again records nothing. Of several that are set at once each is
        set, one after the other.

        Raises:
            UnknownRegistration: there is no such registration, or its person was erased.
            NotAnAccount: its address is not verified, or it has ended.
            UnfitPassword: the rules of a registration refuse it.
            IdempotencyKeyReused: the key came before with another password.
            Conflict: others were set at the same time, again and again.
        """
        person, sealed, wrapped = await self._account(account_id)
        try:
            password = parse_password(typed, email=person.email)
            check_words(password, self._service_names, "the name of this service")
        except Unfit as reason:
            raise UnfitPassword(reason.code, str(reason)) from None
        password_hash = await self._hasher.hash(password, _address(person))
        if context.once is not None:
            # The hash in place of the password: a fast hash of the password itself must not be stored in the log.
            context = replace(context, once=replace(context.once, asked=f"{context.once.asked}\n{password_hash}"))
        lost = 0
        while True:
            becomes = sealed
            if person.password_hash != password_hash:
                again = replace(person, password_hash=password_hash)
                becomes = self._seals.seal_again(account_id, again, wrapped)
            command = SetPassword(registration_id=account_id, personal_data=becomes, replaces=sealed)
            try:
                return await self._handlers.handle(command, context)
            except Outdated:
                lost += 1
                if lost > CONFLICT_RETRIES:
                    raise
            person, sealed, wrapped = await self._account(account_id)

    async def _account(self, account_id: UUID) -> tuple[Person, str, bytes]:
        """Whose it is, as sealed in the log, and with which key."""
        found = await self._persons.sealed(account_id)
        if found is None or found.wrapped is None:
            raise UnknownRegistration
        if not found.is_proven:
            raise NotAnAccount
        return self._seals.open(account_id, found.sealed, found.wrapped), found.sealed, found.wrapped


class FailedChecks:
    """How often in a row each account's password was wrong, as far as this process knows."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._counts: dict[UUID, tuple[int, datetime]] = {}

    def count(self, account_id: UUID) -> tuple[int, datetime]:
        """Count one more; how many there are, and since when."""
        now = self._clock()
        failed, since = self._counts.get(account_id, (0, now))
        if now >= since + WITHIN:
            failed, since = 0, now
        if account_id not in self._counts and len(self._counts) >= MOST_COUNTED:
            del self._counts[next(iter(self._counts))]
        self._counts[account_id] = failed + 1, since
        return failed + 1, since

    def forget(self, account_id: UUID) -> None:
        """It was right."""
        self._counts.pop(account_id, None)


def forms_of(typed: str) -> list[str]:
    """What a password may have been hashed as: in NFKC, as we do, which comes first, and as it was typed, as most other
    systems do."""
    return list(dict.fromkeys((unicodedata.normalize("NFKC", typed), typed)))


def _address(person: Person) -> str:
    return canonical_address(person.email)
