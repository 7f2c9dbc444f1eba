"""Users from another system, many in one commit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from eventsourcing.domain import Aggregate

from application.addresses import canonical_address, mailbox_guess
from application.commands import ImportedUser
from application.crash_points import crash_point
from application.loading import known_address
from application.ports import Clock, Context, Log, Person, Secrets, Streams, WrappedKey, entries_of
from application.retrying import decided_again
from domain.email_claim import ClaimId
from domain.mailbox import Mailbox, MailboxId
from domain.policy import Policy
from domain.recorded import Position
from domain.registration import Registration
from domain.sign_up import import_user, invite

LOST_RACES = 3
"""How often users are decided again after a conflict: as every command."""

THE_OPERATOR = "operator's invitations"
"""Stands for a network where the mails of a mailbox are counted."""


class Outcome(StrEnum):
    """What became of a user.

    Attributes:
        WITHOUT_PASSWORD: as WAITING; what they had as a password's hash is left out.
        ERASED: nothing; an account of theirs was erased here.
        LEFT: not invited, and may be some other time.
        GAVE_WAY: not invited, and ended, since an account has their address.
    """

    ACCOUNT = "account"
    WAITING = "waiting"
    WITHOUT_PASSWORD = "waiting without the password"  # noqa: S105 - none
    ALREADY_THERE = "already there"
    ERASED = "erased"
    INVITED = "invited"
    LEFT = "left"
    GAVE_WAY = "gave way"


class Taken(NamedTuple):
    """What became of users, and a position at which a read model shows it."""

    outcomes: list[Outcome]
    position: Position
    recorded: bool


class _Asked(NamedTuple):
    user: ImportedUser
    registration_id: UUID
    claim_id: ClaimId
    mailbox_id: MailboxId

    @property
    def outcome(self) -> Outcome:
        """If they are new."""
        if self.user.verified:
            return Outcome.ACCOUNT
        return Outcome.WAITING if self.user.password_hash is None else Outcome.WITHOUT_PASSWORD

    @property
    def person(self) -> Person:
        """Whose address nobody has verified brings no password: whoever began with somebody else's address there would
        know that of the account which its owner makes of an invitation here."""
        user = self.user
        return Person(user.email, user.name, user.password_hash if user.verified else None)


@dataclass(slots=True)
class _Decided:
    """What to record of users, their keys, and what became of those of whom there is something to be said."""

    changed: list[Aggregate] = field(default_factory=list)
    keys: list[WrappedKey] = field(default_factory=list)
    outcomes: dict[UUID, Outcome] = field(default_factory=dict)


class UserImports:
    """Takes users over, and invites those of them who wait.

    A user's registration has an id that follows from the address: so it is taken over once, however often it is tried,
    and whatever became of it since.
    """

    def __init__(self, *, log: Log, clock: Clock, secrets: Secrets, policy: Policy) -> None:
        self._log = log
        self._clock = clock
        self._secrets = secrets
        self._policy = policy

    async def take_over(self, users: Sequence[ImportedUser], context: Context, *, dry_run: bool = False) -> Taken:
        """Record those who are new, in one commit; what became of each. No address may be there twice.

        Args:
            dry_run: record nothing, and say what would become of them.

        Raises:
            Conflict: it lost several races in a row.
            Overloaded, Unavailable: see `application.ports.Log.append`.
        """
        asked = [self._asked(user) for user in users]
        known = await self._log.load(*[one.registration_id for one in asked])
        position = max(known.position(one.registration_id) for one in asked)
        new = [one for one in asked if not known.position(one.registration_id)]

        async def decide() -> _Decided:
            nonlocal position
            decided = await self._decided(new)
            if decided.changed and not dry_run:
                position = await self._append(decided.changed, context, decided.keys)
            return decided

        decided = await decided_again(decide, LOST_RACES) if new else _Decided()
        outcomes = [decided.outcomes.get(one.registration_id, Outcome.ALREADY_THERE) for one in asked]
        return Taken(outcomes, position, recorded=bool(decided.changed) and not dry_run)

    async def _decided(self, new: Sequence[_Asked]) -> _Decided:
        streams = await self._log.load(
            *[one.registration_id for one in new],
            holders_of=[one.claim_id for one in new],
            mailboxes=list(dict.fromkeys(one.mailbox_id for one in new)),
        )
        decided = _Decided()
        for one in new:
            if streams.position(one.registration_id):  # another run was faster
                continue
            address = known_address(streams, one.claim_id, _mailbox(streams, one.mailbox_id))
            sealed, key = self._secrets.seal(one.registration_id, one.person)
            changed = import_user(
                address,
                registration_id=one.registration_id,
                personal_data=sealed,
                locale=one.user.locale,
                verified=one.user.verified,
                now=self._clock(),
            )
            if changed:
                decided.outcomes[one.registration_id] = one.outcome
                decided.changed += changed
                decided.keys.append(key)
            elif address.owner is None:
                decided.outcomes[one.registration_id] = Outcome.ERASED
        return decided

    async def invite(self, user: ImportedUser, context: Context, *, dry_run: bool = False) -> Taken:
        """Have one sent a code who was taken over and waits; LEFT where the mailbox has had as many mails as it is sent
        for the time being, ALREADY_THERE where nobody waits, GAVE_WAY where an account has the address.

        Raises:
            Conflict, Overloaded, Unavailable: see `take_over`.
        """
        _, registration_id, claim_id, mailbox_id = self._asked(user)

        async def decide() -> Taken:
            streams = await self._log.load(registration_id, holders_of=(claim_id,), mailboxes=(mailbox_id,))
            registration, position = streams.get(Registration, registration_id), streams.position(registration_id)
            if registration is None or not registration.awaits_invitation:
                return Taken([Outcome.ALREADY_THERE], position, recorded=False)
            mailbox = _mailbox(streams, mailbox_id)
            changed = invite(
                registration,
                known_address(streams, claim_id, mailbox),
                mailbox_id,
                mailbox,
                network=self._secrets.network_mark(mailbox_id, THE_OPERATOR),
                now=self._clock(),
                policy=self._policy,
            )
            if not changed:
                return Taken([Outcome.LEFT], position, recorded=False)
            if not dry_run:
                position = await self._append(changed, context) - (len(changed) - 1)  # the mailbox's event comes last
            outcome = Outcome.INVITED if registration.is_pending else Outcome.GAVE_WAY
            return Taken([outcome], position, recorded=not dry_run)

        return await decided_again(decide, LOST_RACES)

    def _asked(self, user: ImportedUser) -> _Asked:
        address = canonical_address(user.email)
        claim_id = self._secrets.claim_id(address)
        mailbox_id = self._secrets.mailbox_id(mailbox_guess(address))
        return _Asked(user, self._secrets.imported_id(claim_id), claim_id, mailbox_id)

    async def _append(
        self, changed: Sequence[Aggregate], context: Context, keys: Sequence[WrappedKey] = ()
    ) -> Position:
        events = [event for aggregate in changed for event in aggregate.collect_events()]
        saved = await self._log.append(entries_of(events, context), keys=keys)
        crash_point("import.users")
        return saved


def _mailbox(streams: Streams, mailbox_id: MailboxId) -> Mailbox | None:
    """None without a look where there is none, which nobody is kept from seeing here."""
    return streams.get(Mailbox, mailbox_id) if streams.position(mailbox_id) else None
