"""One handler per command: load, call one aggregate method, append. `Handlers` is the table of contents.

Over 400 lines, because it is one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from math import inf
from uuid import UUID

from eventsourcing.domain import Aggregate

from application.addresses import canonical_address, mailbox_guess
from application.answers import Answer, Around, Handle
from application.commands import (
    ActivateAccount,
    AllowMailbox,
    CancelRegistration,
    Command,
    DiscardMail,
    DiscardStrayMessage,
    EraseRegistration,
    ImportUsers,
    InviteUser,
    KeepAnswer,
    KeepStrayMessage,
    RecordEmailBounced,
    RecordEmailComplained,
    RecordEmailDispatched,
    RecordEmailDispatchFailed,
    RecordFailedChecks,
    RecordImport,
    RecordPersonalDataRead,
    RecordRebuild,
    RegisterUser,
    RehashPassword,
    ReleaseEmail,
    ReplaceStaleCode,
    RequestNewCode,
    RetryMail,
    RetryParkedStream,
    RevokeOtp,
    SetPassword,
    VerifyEmail,
    WithholdEmail,
)
from application.crash_points import crash_point
from application.keyed_lock import KeyedLock
from application.keyed_requests import Admit, KeyedRequests, answered_before
from application.loading import (
    Loaded,
    address_at_a_glance,
    known_address,
    loaded,
    must_be_of_kind,
    registrations,
    require,
)
from application.operator_acts import act_of
from application.ports import (
    Clock,
    Context,
    Keyed,
    Log,
    Outdated,
    PasswordHasher,
    Person,
    Secrets,
    Streams,
    WrappedKey,
    entries_of,
)
from application.retrying import decided_again
from application.user_import import UserImports
from domain.email_claim import EmailClaim
from domain.errors import Refused, WrongCode
from domain.kept_answer import KeptAnswer
from domain.mailbox import Mailbox, MailboxId, allow, silence
from domain.operator_act import OperatorAct
from domain.parked_retry import ParkedRetry
from domain.password_checks import PasswordChecks
from domain.policy import Policy
from domain.rebuild import Rebuild
from domain.recorded import Actor, Position
from domain.registration import BEGUN, Registration, Status
from domain.sign_up import KnownAddress, SignUp, prove, renew_code, reopen, sign_up
from domain.stray_message import StrayMessage
from domain.user_import import UserImport

MailboxOf = Callable[[Registration], Awaitable[MailboxId | None]]

CONFLICT_RETRIES = 3
"""How often a command is decided again after a conflict, before the caller sees it (docs/house-style.md, rule 9)."""


class Handlers:
    """Runs commands: `handle` is the only way in.

    Every command may be repeated: an effect that already holds is not recorded again.

    Raises (any command):
        Refused: a rule does not allow it; final.
        Conflict: it lost several races in a row; repeating makes sense.
        Unavailable, Overloaded: repeating later makes sense; the outcome may be unknown.
    """

    def __init__(
        self,
        *,
        log: Log,
        clock: Clock,
        secrets: Secrets,
        hasher: PasswordHasher,
        policy: Policy,
        reveal_duplicates: bool = False,
        mailbox_of: MailboxOf | None = None,
        around: Sequence[Around] = (),
    ) -> None:
        """
        Args:
            mailbox_of: finds that of a registration which names none: it was imported, or begun by release 0.1.0; None:
                nothing does.
            around: middleware that every command passes through, the outermost first.
        """
        self._log = log
        self._clock = clock
        self._secrets = secrets
        self._hasher = hasher
        self._policy = policy
        self._reveal_duplicates = reveal_duplicates
        self._mailbox_of = mailbox_of
        self._around = tuple(reversed(around))
        self._lock = KeyedLock()
        self.keys = KeyedRequests(log, secrets)
        self._imports = UserImports(log=log, clock=clock, secrets=secrets, policy=policy)
        self._table = self._by_command()

    def _by_command(self) -> dict[type[Command], Callable[..., Awaitable[Answer]]]:
        return {
            RegisterUser: self._register_user,
            VerifyEmail: self._verify_email,
            RequestNewCode: self._request_new_code,
            RecordEmailDispatched: self._record_email_dispatched,
            RecordEmailDispatchFailed: self._record_email_dispatch_failed,
            WithholdEmail: self._withhold_email,
            RecordEmailBounced: self._record_email_bounced,
            RecordEmailComplained: self._record_email_complained,
            ReplaceStaleCode: self._replace_stale_code,
            ActivateAccount: self._activate_account,
            RevokeOtp: self._revoke_otp,
            CancelRegistration: self._cancel_registration,
            ReleaseEmail: self._release_email,
            EraseRegistration: self._erase_registration,
            SetPassword: self._set_password,
            RehashPassword: self._rehash_password,
            RecordFailedChecks: self._record_failed_checks,
            RetryMail: self._retry_mail,
            DiscardMail: self._discard_mail,
            AllowMailbox: self._allow_mailbox,
            KeepStrayMessage: self._keep_stray_message,
            DiscardStrayMessage: self._discard_stray_message,
            RecordRebuild: self._record_rebuild,
            RetryParkedStream: self._retry_parked_stream,
            RecordPersonalDataRead: self._record_personal_data_read,
            ImportUsers: self._import_users,
            InviteUser: self._invite_user,
            RecordImport: self._record_import,
            KeepAnswer: self._keep_answer,
        }

    async def handle(
        self, command: Command, context: Context, *, read: Loaded | None = None, admit: Admit | None = None
    ) -> Answer:
        """Run any command.

        Args:
            admit: for requests with an Idempotency-Key only: lets it in, once it is known whether the key is.
            read: for the mail worker's commands only: the registration that it has just loaded, which saves a load; it
                must not use it any more. If it has changed since, the append conflicts, and it is loaded.
        """
        run: Handle = self._run if read is None and admit is None else partial(self._run, read=read, admit=admit)
        for around in self._around:
            run = partial(around, run)
        return await run(command, context)

    async def _run(
        self, command: Command, context: Context, read: Loaded | None = None, admit: Admit | None = None
    ) -> Answer:
        if context.actor == Actor.OPERATOR:
            context = replace(context, act=act_of(command))
        run = self._table[type(command)]
        if read is not None:
            return await run(command, context, read)
        keyed = self.keys.keyed(command, context)
        if keyed is None:
            return await run(command, context)
        return await self.keys.run_once(command, context, keyed, partial(run, command), admit)

    # --- The registrant -----------------------------------------------------------------------

    async def _register_user(self, command: RegisterUser, context: Context, admit: Admit | None = None) -> Answer:
        """Start a registration: one read and one append, whether the address is new, pending or taken. Only the same
        payload again has its registration looked at, too.

        With an Idempotency-Key the id is derived from address and key, so a repeat after a crash finds the registration
        that the first request made, and is told what that was: the registration as it was begun.

        Over 40 lines, because all of it is one decision.

        Args:
            admit: lets it in once it is known whether its key is; until then no password is hashed.
        """
        secrets = self._secrets
        address = canonical_address(command.email)
        claim_id, mailbox_id = secrets.claim_id(address), secrets.mailbox_id(mailbox_guess(address))
        network = secrets.network_mark(mailbox_id, command.network)
        idempotency_key = command.idempotency_key
        repeatable_id = secrets.registration_id_for(address, idempotency_key) if idempotency_key else None
        own_stream = (repeatable_id,) if repeatable_id else ()
        read = partial(self._log.load, *own_stream, proofs_of=(claim_id,), mailboxes=(mailbox_id,))
        first: Streams | None = None
        if admit is not None and repeatable_id is not None:  # not in turn: nobody is to wait for who is not let in
            first = await read()
            await admit(first.position(repeatable_id) > 0)
        fingerprint, person = await self._asked(command, address)
        if command.password is not None:
            first = None  # it is old by now

        async def decide() -> Answer:
            nonlocal first
            streams, first = first or await read(), None
            now = self._clock()
            earlier = None
            if repeatable_id:
                if told := answered_before(streams, repeatable_id, fingerprint):
                    return told
                earlier = streams.get(Registration, repeatable_id)
            mailbox = streams.get(Mailbox, mailbox_id)
            proven_by, alike = address_at_a_glance(streams, claim_id, mailbox, fingerprint)
            beside = await self._log.load(claim_id, *alike) if alike and earlier is None else None
            claim = None if beside is None else beside.get(EmailClaim, claim_id)
            applicants = () if beside is None else registrations(beside, alike)
            registration_id = repeatable_id or secrets.new_registration_id(now)
            sealed, key = secrets.seal(registration_id, person)
            outcome = sign_up(
                address=KnownAddress(claim_id, claim, None, applicants, proven_by),
                mailbox_id=mailbox_id,
                mailbox=mailbox,
                earlier=earlier,
                registration_id=registration_id,
                fingerprint=fingerprint,
                personal_data=sealed,
                locale=command.locale,
                network=network,
                now=now,
                policy=self._policy,
                keyed=repeatable_id is not None,
                reveal_duplicates=self._reveal_duplicates,
            )
            if earlier is not None:
                begun = streams.position_at(earlier.id, BEGUN)
                return Answer(earlier.id, Status.PENDING, begun, recorded=False, replayed=True)
            is_new = outcome.registration.id == registration_id
            own = await self._begun(outcome, context, keys=(key,) if is_new else ())
            met = outcome.registration.id
            before = max(found.position(met) for found in (streams, beside) if found is not None)
            return _answer(met, Status.PENDING, own, before)

        return await self._in_turn(mailbox_id, decide)

    async def _begun(self, outcome: SignUp, context: Context, *, keys: tuple[WrappedKey, ...]) -> Position | None:
        """Save a registration; the position of its own events, which a repeat finds again, where there are any."""
        behind = sum([len(one.pending_events) for one in outcome.changed[1:]])
        crash_point("api.before_append")
        saved = await self._save(*outcome.changed, context=context, keys=keys)
        crash_point("api.after_commit")
        return None if saved is None else saved - behind

    async def _asked(self, command: RegisterUser, address: str) -> tuple[str, Person]:
        """The fingerprint of a request to register, and whom it is about."""
        password_hash = None
        if command.password is not None:
            password_hash = await self._hasher.hash(command.password.get_secret_value(), address)
        # The hash in place of the password: a fast hash of the password itself must not be stored in the log.
        fingerprint = self._secrets.fingerprint(command.email, command.name, password_hash or "", command.locale)
        return fingerprint, Person(email=command.email, name=command.name, password_hash=password_hash)

    async def _verify_email(self, command: VerifyEmail, context: Context) -> Answer:
        """Try a code. Only the right one leads to a second read, of who else waits for the address or has it."""
        registration_id, offered = command.registration_id, command.code.get_secret_value()

        async def decide() -> Answer:
            kept = () if context.keyed is None else (context.keyed.answer_id,)
            streams, address, now = await self._log.load(registration_id, *kept), None, self._clock()
            registration, position = loaded(streams, registration_id)
            expected = self._secrets.code(registration_id, registration.serial)
            if registration.may_be_verified(offered=offered, expected=expected, now=now, policy=self._policy):
                claim_id, mailbox_id = registration.claim_id, registration.mailbox_id
                mailboxes = () if mailbox_id is None else (mailbox_id,)
                imported_id = self._secrets.imported_id(claim_id)
                streams = await self._log.load(
                    *(registration_id, imported_id, *kept), holders_of=(claim_id,), mailboxes=mailboxes
                )
                registration, position = loaded(streams, registration_id)
                mailbox = None if mailbox_id is None else streams.get(Mailbox, mailbox_id)
                address = known_address(streams, claim_id, mailbox, imported_id)
            if context.keyed is not None and registration.is_proven:
                return self._proven_already(command, context.keyed, registration, streams)
            proof = prove(
                registration,
                address,
                offered=offered,
                expected=self._secrets.code(registration_id, registration.serial),
                now=now,
                policy=self._policy,
            )
            saved = await self._save(
                *proof.changed, context=self._of_issue(context, command, registration.serial), refused=proof.refused
            )
            if proof.refused is not None:
                raise proof.refused
            return _answer(registration_id, registration.status, saved, position)

        return await self._in_turn(registration_id, decide)

    def _proven_already(
        self, command: VerifyEmail, keyed: Keyed, registration: Registration, streams: Streams
    ) -> Answer:
        """By this very request, if another process was faster with it. Or by another one: that is not kept, and yet
        told alike whenever it is asked."""
        told = self.keys.told_in(command, keyed, streams)
        proven = streams.position_at(registration.id, registration.proven_version)
        return told or Answer(registration.id, Status.VERIFIED, proven, recorded=False)

    def _of_issue(self, context: Context, command: VerifyEmail, serial: int) -> Context:
        """How the answer is kept: with the code's issue in place of a right code's hash."""
        keyed = context.keyed
        if keyed is None or not self.keys.is_code_of(command, serial):
            return context
        return replace(context, keyed=replace(keyed, fingerprint="", serial=serial))

    async def _request_new_code(self, command: RequestNewCode, context: Context) -> Answer:
        """Replace the code, and count its mail in the mailbox in the same commit.

        The registration is folded once, unless it changes meanwhile: it has more events if another one has proven the
        address, and each takes its time (docs/security.md, S2).
        """
        registration_id = command.registration_id
        begun = await self._load(registration_id)
        begun.registration.check_new_code(now=self._clock(), policy=self._policy)  # who asks too often costs one read
        mailbox_id = begun.registration.mailbox_id  # it stays the same
        mailboxes = () if mailbox_id is None else (mailbox_id,)
        network = "" if mailbox_id is None else self._secrets.network_mark(mailbox_id, command.network)
        first: Loaded | None = begun

        async def decide() -> Answer:
            nonlocal first
            streams = await self._log.load(registration_id, mailboxes=mailboxes)
            read, first = first, None
            if read is None or read.position != streams.position(registration_id):
                read = loaded(streams, registration_id)
            registration, position = read
            mailbox = None if mailbox_id is None else streams.get(Mailbox, mailbox_id)
            changed = renew_code(registration, mailbox, network=network, now=self._clock(), policy=self._policy)
            saved = await self._save(*changed, context=context)
            return _answer(registration_id, registration.status, saved, position)

        return await self._in_turn(mailbox_id or registration_id, decide)

    # --- The mail worker ----------------------------------------------------------------------

    # Facts about mails: decided again after a conflict for as long as it takes, since they have happened and would be
    # lost otherwise. It ends, because each conflict is an event that somebody else recorded on the same stream; should
    # a bug keep it from ending, it pauses (`decided_again`).

    async def _record_email_dispatched(
        self, command: RecordEmailDispatched, context: Context, read: Loaded | None = None
    ) -> Answer:
        """Record the hand-over; for a notice, on the owner's stream too, in the same commit."""

        async def decide() -> Answer:
            nonlocal read
            (registration, position), read = read or await self._load(command.registration_id), None
            owner = None
            if registration.duplicate_of is not None:
                owner_streams = await self._log.load(registration.duplicate_of)
                owner = owner_streams.get(Registration, registration.duplicate_of)
            before = registration.version
            registration.record_dispatched(serial=command.serial, hand_over=command.hand_over, now=self._clock())
            if owner is not None and registration.version > before:
                owner.record_owner_notified(duplicate_id=registration.id, now=self._clock())
            saved = await self._save(registration, *((owner,) if owner else ()), context=context)
            return _answer(registration.id, registration.status, saved, position)

        return await self._in_turn(command.registration_id, decide, losses=inf)

    async def _record_email_dispatch_failed(
        self, command: RecordEmailDispatchFailed, context: Context, read: Loaded | None = None
    ) -> Answer:
        """Record that a mail failed.

        Raises:
            ForeignRequest: the registration's mails are of another kind.
        """

        def fail(registration: Registration) -> None:
            must_be_of_kind(registration, command.kind)
            registration.record_dispatch_failed(
                serial=command.serial,
                failure=command.failure,
                request_position=command.request_position,
                now=self._clock(),
            )

        return await self._change(command.registration_id, context, fail, read, losses=inf)

    async def _withhold_email(self, command: WithholdEmail, context: Context, read: Loaded | None = None) -> Answer:
        def withhold(registration: Registration) -> None:
            registration.withhold_mail(serial=command.serial, now=self._clock())

        return await self._change(command.registration_id, context, withhold, read, losses=inf)

    # --- Reports of bounces -------------------------------------------------------------------

    async def _record_email_bounced(self, command: RecordEmailBounced, context: Context) -> Answer:
        def bounce(registration: Registration) -> None:
            registration.record_bounced(serial=command.serial, bounce=command.bounce, now=self._clock())

        return await self._change(command.registration_id, context, bounce, losses=inf)

    async def _record_email_complained(self, command: RecordEmailComplained, context: Context) -> Answer:
        """Record the complaint, and have the mailbox sent no more in the same commit. What release 0.1.0 began names no
        mailbox: nothing follows from a complaint about that."""

        async def decide() -> Answer:
            registration, position = await self._load(command.registration_id)
            now, before, mailbox_id = self._clock(), registration.version, registration.mailbox_id
            registration.record_complained(serial=command.serial, reported_by=command.reported_by, now=now)
            silenced: tuple[Mailbox, ...] = ()
            if registration.version > before and mailbox_id is not None:
                mailbox = (await self._log.load(mailboxes=(mailbox_id,))).get(Mailbox, mailbox_id)
                silenced = (silence(mailbox, mailbox_id, registration.id, command.serial, now),)
            saved = await self._save(registration, *silenced, context=context)
            own = None if saved is None else saved - len(silenced)
            return _answer(registration.id, registration.status, own, position)

        return await self._in_turn(command.registration_id, decide, losses=inf)

    # --- The consumer of dead letters ---------------------------------------------------------

    async def _keep_stray_message(self, command: KeepStrayMessage, context: Context) -> Answer:
        message_id = StrayMessage.stream_id(command.digest)

        async def decide() -> Answer:
            streams = await self._log.load(message_id)
            if streams.get(StrayMessage, message_id) is not None:  # also if discarded: an operator has seen it
                return _answer(message_id, None, None, streams.position(message_id))
            described = command.model_dump(exclude={"fields"})
            message = StrayMessage.keep(now=self._clock(), fields=",".join(command.fields), **described)
            return _answer(message_id, None, await self._save(message, context=context), 0)

        return await self._in_turn(message_id, decide, losses=inf)

    # --- The mail saga ------------------------------------------------------------------------

    async def _replace_stale_code(self, command: ReplaceStaleCode, context: Context) -> Answer:
        return await self._change(
            command.registration_id, context, lambda r: r.replace_stale_code(serial=command.serial, now=self._clock())
        )

    async def _activate_account(self, command: ActivateAccount, context: Context) -> Answer:
        return await self._change(command.registration_id, context, lambda r: r.activate(now=self._clock()))

    async def _revoke_otp(self, command: RevokeOtp, context: Context) -> Answer:
        return await self._change(command.registration_id, context, lambda r: r.revoke_code(now=self._clock()))

    async def _cancel_registration(self, command: CancelRegistration, context: Context) -> Answer:
        return await self._change(
            command.registration_id, context, lambda r: r.cancel(reason=command.reason, now=self._clock())
        )

    async def _release_email(self, command: ReleaseEmail, context: Context) -> Answer:
        async def decide() -> Answer:
            streams = await self._log.load(command.claim_id, command.registration_id)
            claim = streams.get(EmailClaim, command.claim_id)
            registration = streams.get(Registration, command.registration_id)
            saved = None
            # A saga that repeats its step after a crash must not take the address from one that was reopened since.
            if claim is not None and not (registration is not None and registration.is_pending):
                claim.release(registration_id=command.registration_id, now=self._clock())
                saved = await self._save(claim, context=context)
            return _answer(command.registration_id, None, saved, streams.position(command.claim_id))

        return await self._in_turn(command.claim_id, decide)

    # --- The operator -------------------------------------------------------------------------

    async def _erase_registration(self, command: EraseRegistration, context: Context) -> Answer:
        """End, release and destroy in one commit: the key is never gone without the event that says so."""

        async def decide() -> Answer:
            registration, position = await self._load(command.registration_id)
            claims = await self._log.load(registration.claim_id)
            claim = claims.get(EmailClaim, registration.claim_id)
            now = self._clock()
            registration.erase(now=now)
            if claim is not None:
                claim.release(registration_id=registration.id, now=now)
            saved = await self._save(
                registration,
                *((claim,) if claim else ()),
                context=context,
                keys=(WrappedKey(registration.id, wrapped=None),),
            )
            return _answer(registration.id, registration.status, saved, position)

        return await self._in_turn(command.registration_id, decide)

    async def _set_password(self, command: SetPassword, context: Context) -> Answer:
        def change(registration: Registration) -> None:
            _must_be_made_of(registration, command)
            registration.set_password(personal_data=command.personal_data, now=self._clock())

        return await self._change(command.registration_id, context, change)

    async def _rehash_password(self, command: RehashPassword, context: Context) -> Answer:
        def change(registration: Registration) -> None:
            _must_be_made_of(registration, command)
            registration.rehash_password(personal_data=command.personal_data, now=self._clock())

        return await self._change(command.registration_id, context, change)

    async def _record_failed_checks(self, command: RecordFailedChecks, context: Context) -> Answer:
        async def decide() -> Answer:
            streams, saved = await self._log.load(command.checks_id), None
            if streams.get(PasswordChecks, command.checks_id) is None:
                checks = PasswordChecks.tell(**command.model_dump(), now=self._clock())
                saved = await self._save(checks, context=context)
            return _answer(command.checks_id, None, saved, streams.position(command.checks_id))

        return await self._in_turn(command.checks_id, decide)

    async def _retry_mail(self, command: RetryMail, context: Context) -> Answer:
        """Request the mail again; if the registration was undone for want of it, reopen that first."""

        async def decide() -> Answer:
            registration, position = await self._load(command.registration_id)
            if registration.may_be_reopened:
                claim_id = registration.claim_id
                address = known_address(await self._log.load(holders_of=(claim_id,)), claim_id, None)
                reopen(registration, address, now=self._clock())
            else:
                registration.retry_mail(now=self._clock())
            saved = await self._save(registration, context=context)
            return _answer(registration.id, registration.status, saved, position)

        return await self._in_turn(command.registration_id, decide)

    async def _discard_mail(self, command: DiscardMail, context: Context) -> Answer:
        return await self._change(command.registration_id, context, lambda r: r.discard_mail(now=self._clock()))

    async def _allow_mailbox(self, command: AllowMailbox, context: Context) -> Answer:
        async def decide() -> Answer:
            registration, position = await self._load(command.registration_id)
            mailbox_id, allowed = registration.mailbox_id, None
            if mailbox_id is None and self._mailbox_of is not None:
                mailbox_id = await self._mailbox_of(registration)
            if mailbox_id is not None:
                mailbox = (await self._log.load(mailboxes=(mailbox_id,))).get(Mailbox, mailbox_id)
                allowed = None if mailbox is None else allow(mailbox, registration.id, self._clock())
            saved = await self._save(registration, *filter(None, (allowed,)), context=context)
            return _answer(registration.id, registration.status, saved, position)

        return await self._in_turn(command.registration_id, decide)

    async def _discard_stray_message(self, command: DiscardStrayMessage, context: Context) -> Answer:
        async def decide() -> Answer:
            streams = await self._log.load(command.message_id)
            message = require(StrayMessage, streams, command.message_id)
            message.discard(now=self._clock())
            saved = await self._save(message, context=context)
            return _answer(command.message_id, None, saved, streams.position(command.message_id))

        return await self._in_turn(command.message_id, decide)

    async def _record_rebuild(self, command: RecordRebuild, context: Context) -> Answer:
        async def decide() -> Answer:
            streams, now = await self._log.load(command.rebuild_id), self._clock()
            rebuild_id, read_model = command.rebuild_id, command.read_model
            rebuild = streams.get(Rebuild, rebuild_id)
            if rebuild is None and command.act == "version-dropped":
                rebuild = Rebuild.drop_version(
                    rebuild_id=rebuild_id, read_model=read_model, position=command.position, now=now
                )
            elif rebuild is None:
                rebuild = Rebuild.begin(rebuild_id=rebuild_id, read_model=read_model, now=now)
            match command.act:
                case "swapped":
                    rebuild.swap(
                        position=command.position,
                        differences=command.differences,
                        decision=command.decision,
                        now=now,
                    )
                case "rolled-back":
                    rebuild.roll_back(position=command.position, now=now)
                case "aborted":
                    rebuild.abort(now=now)
            saved = await self._save(rebuild, context=context)
            return _answer(rebuild.id, None, saved, streams.position(rebuild.id))

        return await self._in_turn(command.rebuild_id, decide)

    async def _retry_parked_stream(self, command: RetryParkedStream, context: Context) -> Answer:
        async def decide() -> Answer:
            streams, saved = await self._log.load(command.retry_id), None
            if streams.get(ParkedRetry, command.retry_id) is None:
                retry = ParkedRetry.ask(
                    retry_id=command.retry_id,
                    follower=command.follower,
                    parked_stream=command.stream_id,
                    now=self._clock(),
                )
                saved = await self._save(retry, context=context, about=command.registration_id)
            return _answer(command.retry_id, None, saved, streams.position(command.retry_id))

        return await self._in_turn(command.retry_id, decide)

    async def _record_personal_data_read(self, command: RecordPersonalDataRead, context: Context) -> Answer:
        async def decide() -> Answer:
            first = OperatorAct.stream_id_of_read(command.read_id, command.registration_ids[0])
            streams, saved = await self._log.load(first), None
            if streams.get(OperatorAct, first) is None:
                reads = [
                    OperatorAct.read(
                        read_id=command.read_id,
                        act=command.act,
                        registration_id=registration_id,
                        reason=context.reason,
                        now=self._clock(),
                    )
                    for registration_id in dict.fromkeys(command.registration_ids)
                ]
                saved = await self._save(*reads, context=context)
            return _answer(command.read_id, None, saved, streams.position(first))

        return await self._in_turn(command.read_id, decide)

    async def _keep_answer(self, command: KeepAnswer, context: Context) -> Answer:
        async def decide() -> Answer:
            streams = await self._log.load(command.answer_id)
            told = answered_before(streams, command.answer_id, command.fingerprint)
            if told is not None:
                return told
            kept = KeptAnswer.keep(**command.model_dump(), subject_id=None, now=self._clock())
            saved = await self._save(kept, context=context)
            return replace(_answer(command.answer_id, None, saved, 0), details=command.details)

        return await self._in_turn(command.answer_id, decide)

    async def _import_users(self, command: ImportUsers, context: Context) -> Answer:
        """`Answer.details`: what became of each, as `application.user_import.Outcome` has it."""
        taken = await self._imports.take_over(command.users, context, dry_run=command.dry_run)
        return Answer(command.import_id, None, taken.position, taken.recorded, details=tuple(taken.outcomes))

    async def _invite_user(self, command: InviteUser, context: Context) -> Answer:
        taken = await self._imports.invite(command.user, context, dry_run=command.dry_run)
        return Answer(command.import_id, None, taken.position, taken.recorded, details=tuple(taken.outcomes))

    async def _record_import(self, command: RecordImport, context: Context) -> Answer:
        async def decide() -> Answer:
            streams, now = await self._log.load(command.import_id), self._clock()
            run = streams.get(UserImport, command.import_id) or UserImport.begin(import_id=command.import_id, now=now)
            if command.counts is not None:
                run.end(counts=command.counts, skipped=command.skipped, now=now)
            saved = await self._save(run, context=context)
            return _answer(command.import_id, None, saved, streams.position(command.import_id))

        return await self._in_turn(command.import_id, decide)

    # --- The three moves ----------------------------------------------------------------------

    async def _load(self, registration_id: UUID) -> Loaded:
        return loaded(await self._log.load(registration_id), registration_id)

    async def _change(
        self,
        registration_id: UUID,
        context: Context,
        change: Callable[[Registration], Refused | None],
        read: Loaded | None = None,
        *,
        losses: float = CONFLICT_RETRIES,
    ) -> Answer:
        """Load a registration, change it, append; then raise the refusal, if the change returned one.

        A refusal that is itself recorded (a wrong code) is returned by the change and raised here after the append.
        A refusal that the change raises records nothing.
        """

        async def decide() -> Answer:
            nonlocal read
            (registration, position), read = read or await self._load(registration_id), None
            refused = change(registration)
            saved = await self._save(registration, context=context)
            if refused is not None:
                raise refused
            return _answer(registration_id, registration.status, saved, position)

        return await self._in_turn(registration_id, decide, losses=losses)

    async def _save(
        self,
        *aggregates: Aggregate,
        context: Context,
        keys: tuple[WrappedKey, ...] = (),
        about: UUID | None = None,
        refused: Refused | None = None,
    ) -> Position | None:
        """Append the events that the aggregates recorded, after the operator's act that led to them and before the
        answer that is kept; None if there are none.

        Args:
            aggregates: the first is the one that the answer is about.
            about: the registration that the act is about, if none is among the aggregates.
            refused: the answer, if it is a refusal.
        """
        events = [event for aggregate in aggregates for event in aggregate.collect_events()]
        if events and context.act is not None:
            about = next((one.id for one in aggregates if isinstance(one, Registration)), about)
            act = OperatorAct.acted(act=context.act, registration_id=about, reason=context.reason, effects=events)
            events[:0] = act.collect_events()
        keyed = context.keyed
        if keyed is not None and (events or keyed.always):
            subject = next(iter(aggregates), None)
            events += KeptAnswer.keep(
                answer_id=keyed.answer_id,
                request=keyed.request,
                subject_id=None if subject is None else subject.id,
                fingerprint=keyed.fingerprint,
                serial=keyed.serial,
                status=subject.status if isinstance(subject, Registration) else None,
                attempts_left=refused.attempts_left if isinstance(refused, WrongCode) else None,
                now=self._clock(),
            ).collect_events()
        if not events:
            return None
        return await self._log.append(entries_of(events, context), keys=keys)

    async def _in_turn(
        self, key: UUID, decide: Callable[[], Awaitable[Answer]], *, losses: float = CONFLICT_RETRIES
    ) -> Answer:
        """Decide, one at a time per key in this process; again after a conflict, at most `losses` times."""
        return await self._lock.run(key, partial(decided_again, decide, losses))


def _must_be_made_of(registration: Registration, command: SetPassword | RehashPassword) -> None:
    """Check that the new personal data is made of what the registration has, unless it has the new one already.

    Raises:
        Outdated: another password was set since.
    """
    if registration.personal_data not in (command.replaces, command.personal_data):
        raise Outdated


def _answer(subject_id: UUID, status: Status | None, saved: Position | None, before: Position) -> Answer:
    """The result of a command; `before` is the position of its subject if nothing was saved."""
    return Answer(subject_id, status, before if saved is None else saved, recorded=saved is not None)
