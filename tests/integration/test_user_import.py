"""`registrar import` on a service that runs: what becomes of the users, and of an import that is repeated or killed."""

from __future__ import annotations

import asyncio
import json
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from entrypoints.cli.user_import import PORTION
from tests.support.commands import Done, clean_environment, ran
from tests.support.facts import eventually
from tests.support.http import ADMIN, MASTER_KEY, Api, open_api
from tests.support.log import acts_of, query

BCRYPT = "$2b$05$CCCCCCCCCCCCCCCCCCCCC.4c/Vz//sBM9XkyFmwsCP9HkrjK1U32S"
PASSWORD = "correct horse battery"


@pytest.fixture
async def api(dsn: str) -> AsyncIterator[Api]:
    async with open_api(dsn) as opened:
        yield opened


def user(email: str, *, verified: bool = True, **more: Any) -> dict[str, Any]:
    return {"email": email, "name": "Ada Lovelace", "verified": verified} | more


def written(path: Path, users: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in users))
    return path


async def run(dsn: str, *arguments: str | Path, **settings: str) -> Done:
    environment = clean_environment(DATABASE_URL=dsn, MASTER_KEY=MASTER_KEY, **settings)
    return await asyncio.to_thread(ran, "import", *arguments, environment=environment)


async def events(dsn: str) -> list[tuple[Any, ...]]:
    return await query(dsn, "SELECT notification_id, originator_id, topic FROM events ORDER BY notification_id")


async def account_of(api: Api, email: str) -> dict[str, Any] | None:
    answered = await api.http.get("/v1/admin/accounts", params={"email": email}, headers=ADMIN)
    items = answered.json()["items"]
    return items[0] if items else None


async def matches(api: Api, account_id: str, password: str) -> bool:
    path = f"/v1/admin/accounts/{account_id}/password-check"
    answered = await api.http.post(path, json={"password": password}, headers=ADMIN)
    return bool(answered.json()["matches"])


async def test_users_of_another_system_are_accounts_that_their_passwords_open(api: Api, tmp_path: Path) -> None:
    dsn = api.service.dsn
    pending = (await api.register("grace@example.com")).json()["registration_id"]
    file = written(
        tmp_path / "users.jsonl",
        [
            user("Ada@example.com", password_hash=BCRYPT, locale="de"),
            user("grace@example.com"),
            user("eve@example.com", verified=False, password_hash=BCRYPT),
        ],
    )

    done = await run(dsn, file, "--reason", "from the old shop", "--json")

    assert (done.code, done.err) == (0, "")
    assert done.json == {
        "file": str(file),
        "dry_run": False,
        "changed": True,
        "accounts": 2,
        "waiting": 1,
        "already_there": 0,
        "invited": 0,
        "skipped": 0,
        "passwords_left_out": 1,
        "erased": 0,
        "gave_way": 0,
        "not_invited": 0,
    }
    account: dict[str, Any] = await eventually(lambda: account_of(api, "ada@example.com"))
    account_id = account["registration_id"]
    assert (account["locale"], account["has_password"]) == ("de", True)
    assert not await matches(api, account_id, "wrong horse battery")
    assert await matches(api, account_id, PASSWORD)
    [[rehashed]] = await query(dsn, "SELECT count(*) FROM events WHERE topic = 'registration.password_rehashed'")
    assert rehashed == 1
    assert await matches(api, account_id, PASSWORD)  # by the hash that is ours

    shown = (await api.http.get(f"/v1/registrations/{account_id}")).json()
    told = (shown["status"], shown["mail"], shown["verified_at"], shown["attempts_left"])
    assert told == ("ACTIVE", "NONE", None, 0)
    assert (await account_of(api, "grace@example.com")) is not None
    assert await account_of(api, "eve@example.com") is None
    superseded = "SELECT originator_id FROM events WHERE topic = 'registration.registration_superseded'"
    assert await query(dsn, superseded) == [(UUID(pending),)]
    assert [one["to"] for one in (await api.http.get("/mailbox/messages")).json()] == ["grace@example.com"]
    assert await acts_of(dsn) == [("import-users", "from the old shop")]


async def test_the_same_file_again_changes_nothing_and_says_so(api: Api, tmp_path: Path) -> None:
    erased = await api.active(email="grace@example.com")
    await api.http.post(f"/v1/admin/registrations/{erased}/erase", headers=ADMIN)
    users = [user(email, verified="eve" not in email, password_hash=BCRYPT) for email in ("ada@a.org", "eve@a.org")]
    file = written(tmp_path / "users.jsonl", [*users, user("grace@example.com")])

    dry, done = [await run(api.service.dsn, file, *more) for more in (["--dry-run"], [])]
    before = await events(api.service.dsn)
    again = await run(api.service.dsn, file, "--reason", "once more")

    told = "Of those who were there already, 1 had an account that was erased; they can sign up.\n"
    password = (
        "Left out 1 password of users whose addresses the other system has not verified: somebody else may know them.\n"
    )
    assert dry.err == done.err == password + told
    assert "1 account and 1 user who wait for an invitation; 1 user there already" in dry.out
    assert (again.code, again.out, again.err) == (0, "Nothing changed: 3 users there already.\n", told)
    assert await events(api.service.dsn) == before


def killed(dsn: str, file: Path, reached: Path, passing: int) -> int:
    armed = ["-m", "tests.faults.armed", f"import.users:{passing}", str(reached), "--", "import", str(file)]
    return subprocess.run(
        [sys.executable, *armed],
        env=clean_environment(DATABASE_URL=dsn, MASTER_KEY=MASTER_KEY),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=False,
    ).returncode


@pytest.mark.fault("A25")
async def test_an_import_that_is_killed_goes_on_where_it_was(api: Api, tmp_path: Path, reached_directory: Path) -> None:
    dsn = api.service.dsn
    # Killed after its second portion, while a third one may be on its way to the server, which commits it all the same.
    count = 3 * PORTION + 100
    users = [user(f"user{n}@example.com", verified=n % 10 > 0, password_hash=BCRYPT) for n in range(count)]
    file = written(tmp_path / "users.jsonl", users)

    code = await asyncio.to_thread(killed, dsn, file, reached_directory, 2)

    by_then = await events(dsn)
    taken = sum(topic == "registration.user_imported" for _, _, topic in by_then)
    assert code == -signal.SIGKILL
    assert PORTION <= taken < count

    done = await run(dsn, file, "--json")

    assert done.code == 0
    assert done.json["passwords_left_out"] == done.json["waiting"]
    assert done.json["accounts"] + done.json["waiting"] == count - taken
    assert done.json["already_there"] == taken
    after = await events(dsn)
    assert [row for row in after if row[0] <= by_then[-1][0]] == by_then
    assert len({stream for _, stream, topic in after if topic == "registration.user_imported"}) == count
    [[keys, claims]] = await query(
        dsn,
        "SELECT (SELECT count(*) FROM personal_keys),"
        " (SELECT count(DISTINCT originator_id) FROM events WHERE topic = 'email_claim.email_claimed')",
    )
    assert (keys, claims) == (count, count * 9 // 10)
    accounts = "SELECT count(*) FROM read_accounts.accounts"
    await eventually(lambda: _is(dsn, accounts, count * 9 // 10))
    begun = [topic for _, _, topic in after if topic.startswith("user_import.")]
    assert begun == ["user_import.begun", "user_import.begun", "user_import.ended"]
    assert (await run(dsn, file)).out == f"Nothing changed: {count:,} users there already.\n"
    assert await events(dsn) == after


async def _is(dsn: str, statement: str, expected: object) -> bool:
    return bool(await query(dsn, statement) == [(expected,)])


async def test_read_models_and_the_chain_are_those_of_the_log(api: Api, tmp_path: Path) -> None:
    dsn = api.service.dsn
    users = [user("ada@example.com"), user("eve@example.com", verified=False)]
    await run(dsn, written(tmp_path / "users.jsonl", users))
    await eventually(lambda: account_of(api, "ada@example.com"))
    environment = clean_environment(DATABASE_URL=dsn, MASTER_KEY=MASTER_KEY)

    verified = await asyncio.to_thread(ran, "projections", "verify", environment=environment)
    chain = await asyncio.to_thread(ran, "audit", "verify", environment=environment)
    story = await asyncio.to_thread(ran, "audit", "explain", "eve@example.com", environment=environment)

    assert (verified.code, chain.code) == (0, 0), verified.out + chain.out
    assert "the user was taken over from another system, and nobody has invited them yet" in story.out


async def test_an_invited_user_gets_a_code_and_becomes_an_account(api: Api, tmp_path: Path) -> None:
    dsn = api.service.dsn
    file = written(tmp_path / "users.jsonl", [user("ada@example.com"), user("eve@example.com", verified=False)])

    done = await run(dsn, file, "--invite")

    says = "REGISTRAR_VERIFY_URL is not set: an invitation has a code, and nothing that leads to where it is entered.\n"
    assert (done.code, done.err) == (0, says)
    assert done.out == (
        "Imported 1 account and 1 user who wait for an invitation; 0 users there already.\nInvited 1 user.\n"
    )

    async def mail() -> dict[str, Any] | None:
        found = (await api.http.get("/mailbox/messages")).json()
        return found[0] if found else None

    arrived: dict[str, Any] = await eventually(mail)
    assert arrived["to"] == "eve@example.com"
    [[registration_id]] = await query(dsn, "SELECT originator_id FROM events WHERE topic = 'registration.user_invited'")
    code = api.service.keyring.code(registration_id, 1)
    assert code in arrived["text"]
    answered = await api.http.post(f"/v1/registrations/{registration_id}/verification", json={"code": code})
    assert answered.status_code == 200
    await eventually(lambda: account_of(api, "eve@example.com"))
    before = len(await query(dsn, "SELECT 1 FROM events WHERE topic LIKE 'user_import%%'"))
    again = await run(dsn, file, "--invite", VERIFY_URL="https://app.example.org/#id={id}&code={code}")
    assert (again.out, again.err) == ("Nothing changed: 2 users there already.\n", "")
    assert len(await query(dsn, "SELECT 1 FROM events WHERE topic LIKE 'user_import%%'")) == before


BAD = [
    user("ada@example.com"),
    user("nobody"),
    user("eve@example.com", password_hash="md5$secret"),
    user("ADA@example.com"),
]
TOLD = (
    "line 2: email: not a valid mail address\n"
    "line 3: password_hash: not a hash in a form that is known here\n"
    "line 4: email: the same as in line 1\n"
)


async def test_nothing_is_written_where_a_line_is_bad(api: Api, tmp_path: Path) -> None:
    file, listed = written(tmp_path / "users.jsonl", BAD), tmp_path / "bad.txt"
    before = await events(api.service.dsn)

    done = await run(api.service.dsn, file, "--skipped", listed)

    assert (done.code, done.out) == (1, "")
    assert done.err == (
        f"{TOLD}registrar: 3 of 4 lines cannot be taken over, and none was; mend what is named above, or leave it out "
        "with --skip-bad.\n"
    )
    assert listed.read_text() == TOLD
    assert stat.S_IMODE(listed.stat().st_mode) == 0o600
    assert await events(api.service.dsn) == before


async def test_a_file_without_users_says_so(api: Api, tmp_path: Path) -> None:
    file = tmp_path / "users.jsonl"
    file.write_text("\n \n")

    done = await run(api.service.dsn, file)

    assert (done.code, done.out) == (0, "There is nobody in the file.\n")


async def test_bad_lines_are_left_out_where_that_is_wanted_and_dry_runs_change_nothing(
    api: Api, tmp_path: Path
) -> None:
    dsn, file = api.service.dsn, written(tmp_path / "users.jsonl", BAD)
    before = await events(dsn)

    dry = await run(dsn, file, "--skip-bad", "--dry-run")
    unchanged = await events(dsn) == before
    done = await run(dsn, file, "--skip-bad")

    assert unchanged
    would = "Would import 1 account and 0 users who wait for an invitation; 0 users there already.\n"
    assert (dry.code, dry.out, dry.err) == (0, would, f"{TOLD}Left out 3 lines.\n")
    assert (done.code, done.out) == (0, would.replace("Would import", "Imported"))
    ended = "SELECT convert_from(state, 'UTF8')::jsonb ->> 'skipped' FROM events WHERE topic = 'user_import.ended'"
    assert await query(dsn, ended) == [("3",)]


async def test_the_list_of_bad_lines_does_not_take_the_place_of_the_users(api: Api, tmp_path: Path) -> None:
    file = written(tmp_path / "users.jsonl", BAD)
    (link := tmp_path / "link.jsonl").symlink_to(file)
    before = file.read_bytes()

    done = await run(api.service.dsn, file, "--skip-bad", "--skipped", link)

    assert done.code == 2
    assert "Invalid value for '--skipped': is the file that is to be imported." in done.err
    assert file.read_bytes() == before


async def test_a_file_may_come_by_a_pipe(api: Api, tmp_path: Path) -> None:
    file = written(tmp_path / "users.jsonl", [user("ada@example.com")])
    program = str(Path(sys.executable).with_name("registrar"))
    environment = clean_environment(DATABASE_URL=api.service.dsn, MASTER_KEY=MASTER_KEY)

    process = await asyncio.create_subprocess_exec(
        *(program, "import", "-", "--json"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    out, _ = await process.communicate(file.read_bytes())

    assert json.loads(out)["accounts"] == 1
