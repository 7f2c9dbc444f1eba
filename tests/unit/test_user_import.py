"""Users who are taken over from another system: what becomes of them, and of a file of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import timedelta
from io import BytesIO
from typing import Any
from uuid import UUID

import pytest

from application.commands import (
    CancelRegistration,
    DiscardMail,
    EraseRegistration,
    ImportedUser,
    ImportUsers,
    InviteUser,
    RecordEmailComplained,
    RecordImport,
    RequestNewCode,
    RetryMail,
)
from application.user_import import Outcome
from domain.errors import NotPending, WrongCode
from domain.mail_outcome import CancelReason
from domain.registration import Registration, Status
from domain.user_import import Counts, UserImport
from infrastructure.archive.users import MAX_LINE_BYTES, Changed, Checked, Problem, UserLine, check, users_in
from tests.support.memory_log import MemoryLog
from tests.support.scenarios import (
    KEYRING,
    OPERATOR,
    InMemoryService,
    imported,
    registers,
    right_code,
    verifies,
)
from tests.unit.test_story import story_of

RUN = UUID(int=16)


def imported_id(email: str) -> UUID:
    return KEYRING.imported_id(KEYRING.claim_id(email))


ADA = imported_id("ada@example.com")


async def take_over(house: InMemoryService, *users: ImportedUser) -> list[str]:
    answer = await house.handle(ImportUsers(import_id=RUN, users=users), OPERATOR)
    return list(answer.details)


async def invite(house: InMemoryService, user: ImportedUser) -> str:
    return (await house.handle(InviteUser(import_id=RUN, user=user), OPERATOR)).details[0]


# --- Whose address is verified ----------------------------------------------------------------


async def test_a_verified_user_is_an_account_at_once_with_the_address_and_a_key(house: InMemoryService) -> None:
    user = imported("Ada@Example.com", password_hash="$2b$04$CCCCCCCCCCCCCCCCCCCCC.AKurti2nSiRoaXd0tyyeWA.1jj9Kto2")

    assert await take_over(house, user) == [Outcome.ACCOUNT]

    account = house.registration(ADA)
    assert (account.status, account.serial) == (Status.ACTIVE, 0)
    assert house.claim().holder == ADA
    assert house.log.appends == [["UserImported", "EmailClaimed"]]
    person = KEYRING.open(ADA, account.personal_data, house.log.keys[ADA])
    assert (person.email, person.name, person.password_hash) == ("Ada@example.com", "Ada", user.password_hash)


async def test_no_mail_and_no_saga_follow_from_it(house: InMemoryService) -> None:
    await take_over(house, imported(), imported("bob@example.com", verified=False))

    await house.settle()

    assert len(house.log.appends) == 1


async def test_the_same_again_changes_nothing(house: InMemoryService) -> None:
    users = imported(), imported("bob@example.com", verified=False)
    await take_over(house, *users)

    assert await take_over(house, *users) == [Outcome.ALREADY_THERE] * 2
    assert await take_over(house, users[1], imported("carol@example.com")) == [Outcome.ALREADY_THERE, Outcome.ACCOUNT]
    assert len(house.log.appends) == 2


async def test_an_account_that_is_there_stays_as_it_is(house: InMemoryService) -> None:
    account_id = await house.active()
    before = house.registration(account_id).personal_data

    assert (
        await take_over(house, imported(), imported("ADA@example.com", verified=False)) == [Outcome.ALREADY_THERE] * 2
    )

    assert house.registration(account_id).personal_data == before
    assert house.claim().holder == account_id
    assert house.log.history(ADA) == []


async def test_sign_ups_that_wait_for_the_address_give_way(house: InMemoryService) -> None:
    waiting = [await house.registered(registers(name=name)) for name in ("Ada", "Eve")]
    await house.settle()

    await take_over(house, imported())

    assert [house.registration(one).superseded_by for one in waiting] == [ADA, ADA]
    house.move(timedelta(minutes=2))
    with pytest.raises(WrongCode):
        await house.handle(verifies(waiting[1], right_code(waiting[1])))
    assert house.claim().holder == ADA


async def test_who_signs_up_later_is_told_nothing_and_gets_nothing(house: InMemoryService) -> None:
    await take_over(house, imported())

    later = await house.registered()

    assert house.registration(later).duplicate_of == ADA


async def test_what_was_erased_is_not_taken_over_again(house: InMemoryService) -> None:
    await take_over(house, imported(), imported("bob@example.com", verified=False))
    for email in ("ada@example.com", "bob@example.com"):
        await house.handle(EraseRegistration(registration_id=imported_id(email)), OPERATOR)

    assert house.log.history(imported_id("bob@example.com")) == [
        *("UserImported", "RegistrationCancelled", "PersonalDataErased")
    ]
    assert await take_over(house, imported(), imported("bob@example.com")) == [Outcome.ALREADY_THERE] * 2
    assert house.log.keys == {}


async def test_whose_account_was_erased_here_is_not_taken_over(house: InMemoryService) -> None:
    account_id = await house.active()
    pending = await house.registered(registers("bob@example.com"))
    for one in (account_id, pending):
        await house.handle(EraseRegistration(registration_id=one), OPERATOR)

    taken = await take_over(house, imported(), imported("bob@example.com"))

    # Whether the owner of an address asked for the erasure of what nobody had proven, nobody knows.
    assert taken == [Outcome.ERASED, Outcome.ACCOUNT]
    assert house.log.history(ADA) == []
    assert account_id not in house.log.keys
    house.move(timedelta(minutes=2))
    await house.active()  # they can sign up
    assert await take_over(house, imported()) == [Outcome.ALREADY_THERE]


async def test_whoever_proves_the_address_in_the_meantime_keeps_it() -> None:
    log = RacingLog()
    house = InMemoryService(log=log)
    registration_id = await house.registered()

    async def prove() -> None:
        await house.handle(verifies(registration_id, right_code(registration_id)))

    log.in_between = prove
    assert await take_over(house, imported(), imported("bob@example.com")) == [Outcome.ALREADY_THERE, Outcome.ACCOUNT]
    assert house.claim().holder == registration_id
    assert log.history(ADA) == []


class RacingLog(MemoryLog):
    """Somebody else records something just before an import does."""

    in_between: Any = None

    async def append(self, entries: Any, **others: Any) -> int:
        if self.in_between is not None and isinstance(entries[0][0], Registration.UserImported):
            prove, self.in_between = self.in_between, None
            await prove()
        return await super().append(entries, **others)


# --- Whose address is not ---------------------------------------------------------------------


async def test_nothing_can_be_done_with_a_user_who_waits_for_an_invitation(house: InMemoryService) -> None:
    await take_over(house, imported(verified=False))
    assert house.registration(ADA).status is Status.PENDING

    for asked in (verifies(ADA, right_code(ADA, 0)), RequestNewCode(registration_id=ADA)):
        with pytest.raises(NotPending):
            await house.handle(asked)
    for command in (RetryMail, DiscardMail):
        await house.handle(command(registration_id=ADA), OPERATOR)

    assert house.log.history(ADA) == ["UserImported"]


async def test_the_password_of_who_waits_is_left_out(house: InMemoryService) -> None:
    user = imported(verified=False, password_hash="$2b$04$CCCCCCCCCCCCCCCCCCCCC.AKurti2nSiRoaXd0tyyeWA.1jj9Kto2")

    assert await take_over(house, user) == [Outcome.WITHOUT_PASSWORD]
    assert await take_over(house, user) == [Outcome.ALREADY_THERE]

    person = KEYRING.open(ADA, house.registration(ADA).personal_data, house.log.keys[ADA])
    assert person.password_hash is None


async def test_an_invited_user_gets_a_code_and_becomes_an_account(house: InMemoryService) -> None:
    user = imported(verified=False)
    await take_over(house, user)
    house.move(timedelta(days=30))

    assert await invite(house, user) == Outcome.INVITED
    await house.settle()
    await house.handle(verifies(ADA, right_code(ADA)))
    await house.settle()

    assert house.registration(ADA).status is Status.ACTIVE
    assert house.claim().holder == ADA
    assert house.saga_of(ADA).ended
    assert house.log.history(ADA) == [
        *("UserImported", "UserInvited", "OtpIssued", "EmailVerified", "AccountActivated"),
    ]


async def test_who_was_invited_or_is_an_account_is_not_invited_again(house: InMemoryService) -> None:
    users = [imported(), imported("bob@example.com", verified=False)]
    await take_over(house, *users)
    await invite(house, users[1])
    before = len(house.log.events)

    assert [await invite(house, user) for user in users] == [Outcome.ALREADY_THERE] * 2
    assert await invite(house, imported("nobody@example.com", verified=False)) == Outcome.ALREADY_THERE
    assert len(house.log.events) == before


async def test_who_waits_ends_when_a_sign_up_proves_the_address(house: InMemoryService) -> None:
    user = imported(verified=False)
    await take_over(house, user)

    account_id = await house.active()

    ended = house.registration(ADA)
    assert (ended.superseded_by, ended.cancel_reason) == (account_id, CancelReason.SUPERSEDED)
    assert house.log.history(ADA) == ["UserImported", "RegistrationSuperseded", "RegistrationCancelled"]
    assert await invite(house, user) == Outcome.ALREADY_THERE
    assert await take_over(house, user) == [Outcome.ALREADY_THERE]


async def test_who_was_imported_just_when_another_proved_the_address_ends_when_they_are_to_be_invited() -> None:
    log = RacingLog()
    house, user = InMemoryService(log=log), imported(verified=False)
    registration_id = await house.registered()
    log.in_between = lambda: house.handle(verifies(registration_id, right_code(registration_id)))
    assert await take_over(house, user) == [Outcome.WAITING]
    house.move(timedelta(minutes=2))

    assert await invite(house, user) == Outcome.GAVE_WAY

    told = "An operator wanted to invite the user, whose address an account has by now"
    assert story_of(house, ADA).acts[-1].headline == told
    assert house.registration(ADA).superseded_by == registration_id
    assert house.registration(ADA).status is Status.CANCELLED
    assert await invite(house, user) == Outcome.ALREADY_THERE


async def test_an_invitation_counts_among_the_mails_of_its_mailbox(house: InMemoryService) -> None:
    user = imported(verified=False)
    await take_over(house, user)
    await house.registered()  # a mail a minute

    assert await invite(house, user) == Outcome.LEFT
    assert house.log.history(ADA) == ["UserImported"]

    house.move(timedelta(minutes=2))
    assert await invite(house, user) == Outcome.INVITED


async def test_a_mailbox_that_wants_no_mail_is_sent_no_invitation(house: InMemoryService) -> None:
    unwanted = await house.registered()
    await house.handle(RecordEmailComplained(registration_id=unwanted, serial=1, reported_by="ses"))
    user = imported(verified=False)
    await take_over(house, user)
    house.move(timedelta(days=30))

    assert await invite(house, user) == Outcome.LEFT


async def test_an_invited_user_gives_way_to_who_proves_the_address_first(house: InMemoryService) -> None:
    user = imported(verified=False)
    await take_over(house, user)
    await invite(house, user)
    house.move(timedelta(minutes=2))

    faster = await house.active(registers(password=None))

    assert house.registration(ADA).superseded_by == faster


async def test_an_invitation_that_nobody_answers_ends_like_a_registration(house: InMemoryService) -> None:
    user = imported(verified=False)
    await take_over(house, user)
    await invite(house, user)
    await house.settle()

    house.move(timedelta(hours=25))
    await house.look_again(ADA)
    await house.settle()

    assert house.registration(ADA).cancel_reason == CancelReason.EXPIRED
    assert await invite(house, user) == Outcome.ALREADY_THERE


async def test_who_waits_can_be_cancelled(house: InMemoryService) -> None:
    await take_over(house, imported(verified=False))

    await house.handle(CancelRegistration(registration_id=ADA, reason=CancelReason.OPERATOR), OPERATOR)

    assert house.registration(ADA).status is Status.CANCELLED


async def test_a_dry_run_says_what_would_become_of_them(house: InMemoryService) -> None:
    account_id = await house.active()
    before = len(house.log.events)
    users = imported(), imported("bob@example.com"), imported("carol@example.com", verified=False)

    answer = await house.handle(ImportUsers(import_id=RUN, users=users, dry_run=True), OPERATOR)

    assert list(answer.details) == [Outcome.ALREADY_THERE, Outcome.ACCOUNT, Outcome.WAITING]
    assert not answer.recorded
    assert len(house.log.events) == before
    assert house.claim().holder == account_id


async def test_a_run_is_recorded_with_its_reason_once_and_with_what_came_of_it(house: InMemoryService) -> None:
    ended = RecordImport(import_id=RUN, counts=Counts(accounts=3, waiting=2, invited=1), skipped=4)

    for command in (RecordImport(import_id=RUN), ended, ended):
        await house.handle(command, OPERATOR)

    assert house.log.appends == [["OperatorActed", "ImportBegun"], ["ImportEnded"]]
    told: Any = house.log.all(UserImport.ImportEnded)[0]
    assert (told.accounts, told.waiting, told.already_there, told.invited, told.skipped) == (3, 2, 0, 1, 4)


@pytest.fixture
def house() -> InMemoryService:
    return InMemoryService()


# --- A file of them ---------------------------------------------------------------------------


def line(**fields: object) -> bytes:
    user = {"email": "ada@example.com", "name": "Ada", "verified": True} | fields
    return json.dumps({name: value for name, value in user.items() if value is not None}).encode()


def read(*lines: bytes, end: bytes = b"\n") -> list[UserLine | list[Problem]]:
    return list(users_in(BytesIO(end.join(lines))))


def checked(data: bytes) -> tuple[Checked, list[str], BytesIO]:
    told: list[str] = []
    file = BytesIO(data)

    def tell(problems: Iterable[Problem]) -> None:
        told.extend(map(str, problems))

    found = check(file, BytesIO(), same=lambda user: user.email.lower(), on_problems=tell, on_line=lambda _: None)
    return found, told, file


def test_a_line_is_read_as_a_sign_up_is() -> None:
    [found] = read(line(email=" Ada@EXAMPLE.com ", name=" Ada ", locale="de_AT", verified=False))

    assert isinstance(found, UserLine)
    user = found.user
    assert (user.email, user.name, user.locale, user.verified) == ("Ada@example.com", "Ada", "de-AT", False)
    assert user.password_hash is None


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\n\n \n", b"\n\t\r\n"])
def test_blank_lines_and_line_ends_of_windows_and_a_byte_order_mark_do_no_harm(end: bytes) -> None:
    found = read(b"\xef\xbb\xbf" + line(), line(email="bob@example.com"), end=end)

    assert [one.user.email for one in found if isinstance(one, UserLine)] == ["ada@example.com", "bob@example.com"]
    assert len(found) == 2


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (line(email="ada"), "line 1: email: not a valid mail address"),
        (line(email=None), "line 1: email: is missing"),
        (line(name=None), "line 1: name: is missing"),
        (line(verified=None), "line 1: verified: is missing"),
        (line(verified=1), "line 1: verified: has to be true or false"),
        (line(name="x" * 201), "line 1: name: too long: at most 200 characters"),
        (line(name="\u200b"), "line 1: name: contains nothing that can be seen"),
        (line(locale="not a language"), "line 1: locale: not a language tag (BCP 47), such as 'en' or 'de-AT'"),
        (line(password_hash="secret"), "line 1: password_hash: not a hash in a form that is known here"),
        (
            line(password_hash="$2b$31$CCCCCCCCCCCCCCCCCCCCC.4c/Vz//sBM9XkyFmwsCP9HkrjK1U32S"),
            "line 1: password_hash: a check would cost too much: its cost",
        ),
        (line(secret_question="x"), "line 1: has a field that is not known"),
        (b"{", "line 1: not JSON in UTF-8, or a key comes twice"),
        (b"[" * 10_000, "line 1: not JSON in UTF-8, or a key comes twice"),
        (b'["ada"]', "line 1: not a JSON object"),
        (b'{"email": "\xff"}', "line 1: not JSON in UTF-8, or a key comes twice"),
        (line()[:-1] + b', "verified": false}', "line 1: not JSON in UTF-8, or a key comes twice"),
        (
            line(password_hash="pbkdf2_sha256$1000$\ud800$" + "A" * 43 + "="),
            "line 1: password_hash: has characters that are none",
        ),
        (b" " * (MAX_LINE_BYTES + 1), f"line 1: longer than {MAX_LINE_BYTES} bytes"),
        (b"\xef\xbb\xbf" + b" " * MAX_LINE_BYTES, f"line 1: longer than {MAX_LINE_BYTES} bytes"),
    ],
)
def test_what_is_wrong_with_a_line_is_told_by_number_field_and_reason(bad: bytes, reason: str) -> None:
    found, told, _ = checked(bad + b"\n" + line(email="bob@example.com"))

    assert told == [reason]
    assert (found.sound, found.skipped, list(found.left_out())) == (1, 1, [1])


def test_every_wrong_field_of_a_line_is_told_and_nothing_of_what_is_in_it() -> None:
    _, told, _ = checked(line(email="Somebody Else", name=7, password_hash="hunter2", extra="Somebody"))

    assert [one.split(": ")[1] for one in told] == ["email", "name", "has a field that is not known"]
    assert not any("somebody" in one.lower() or "hunter2" in one for one in told)


def test_a_line_that_is_far_too_long_is_not_kept_in_memory() -> None:
    class Endless(BytesIO):
        longest = 0

        def readline(self, size: int | None = -1, /) -> bytes:
            found = super().readline(size)
            self.longest = max(self.longest, len(found))
            return found

    file = Endless(b"x" * (5 << 20) + b"\n" + line())

    found = list(users_in(file))

    assert [type(one) for one in found] == [list, UserLine]
    assert file.longest <= 1 << 20


def test_an_address_that_comes_again_is_told_with_the_line_that_has_it_already() -> None:
    lines = [line(), line(email="bob@example.com"), line(email="ADA@example.com"), line()]

    found, told, file = checked(b"\n".join(lines))

    assert told == ["line 3: email: the same as in line 1", "line 4: email: the same as in line 1"]
    assert [user.email for portion in found.portions(file, 10) for user in portion] == [
        "ada@example.com",
        "bob@example.com",
    ]


def test_portions_leave_out_what_was_found_bad() -> None:
    lines = [line(email=f"user{n}@example.com") if n % 3 else b"bad" for n in range(100)]

    found, told, file = checked(b"\n".join(lines))

    assert len(told) == found.skipped == 34
    portions = list(found.portions(file, 20))
    assert [len(one) for one in portions] == [20, 20, 20, 6]
    assert [user.email for one in portions for user in one] == [f"user{n}@example.com" for n in range(100) if n % 3]


def test_a_file_that_has_changed_since_it_was_checked_is_told() -> None:
    found, _, _ = checked(line() + b"\n" + line(email="bob@example.com"))

    with pytest.raises(Changed, match=r"^line 2 is not as it was when it was checked"):
        list(found.portions(BytesIO(line() + b"\nbad"), 10))
