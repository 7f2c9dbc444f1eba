"""`registrar erase`, its proof, the journal of erasures, and what that does after a restore."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import os
import secrets
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr

from application.addresses import _ascii_domain
from application.commands import EraseRegistration, ImportedUser, ImportUsers, RegisterUser
from application.ports import Letter, Person
from domain.registration import Status
from domain.synthetic import is_synthetic
from entrypoints.bootstrap import CannotStart, erasing
from entrypoints.bootstrap.erasures import note_key
from entrypoints.cli.checks.backups import unsettled_restores
from entrypoints.queries.followers import followers_with
from infrastructure.audit.erasures import (
    ORIGIN,
    Complete,
    CompleteNote,
    Erasure,
    Journal,
    read_journal,
    write_to,
)
from infrastructure.audit.note_keys import SigningKey
from infrastructure.audit.notes import BadNote, open_note
from infrastructure.audit.publishing import CheckpointDirectory, append
from infrastructure.embedded.postgres import EmbeddedPostgres
from infrastructure.postgres.connection import connect
from infrastructure.settings.settings import Settings
from tests.integration.conftest import Command
from tests.integration.test_flow import client, code_in, mails_to, register, registration, verify
from tests.support.facts import eventually
from tests.support.log import broken_blocks, query
from tests.support.postgres import database_of
from tests.support.service import Service, open_service
from tests.support.smtp_stub import SmtpStub
from tests.support.webhook_stub import WebhookStub

KEY = "ab" * 32
REASON = "request of 28 November"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@pytest.fixture
def settings(dsn: str, tmp_path: Path, directory: Path) -> Settings:
    return Settings.from_environment(
        {
            "REGISTRAR_DATABASE_URL": dsn,
            "REGISTRAR_MASTER_KEY": KEY,
            "REGISTRAR_DATA_DIR": str(tmp_path / "data"),
            "REGISTRAR_CHECKPOINT_DIR": str(directory),
            "REGISTRAR_CHECKPOINT_KEY": "ef" * 32,
        }
    )


def erase(command: Command, dsn: str, who: object, *options: str) -> Any:
    words = ("erase", str(who), "--reason", REASON, *options)
    return command(*words, DATABASE_URL=dsn, MASTER_KEY=KEY)


async def one_registered(settings: Settings, *addresses: str) -> list[UUID]:
    async with open_service(settings, follows=True) as service:
        found = [(await register(service, address)).subject_id for address in addresses]
        for address in dict.fromkeys(addresses):
            await mails_to(service, address)
        await _read_models_at_the_end(service)
        return found


async def _read_models_at_the_end(service: Service) -> None:
    async def at_the_end() -> bool:
        behind = await query(
            service.dsn,
            "SELECT name FROM followers WHERE name LIKE 'registrations%' AND position < (SELECT position FROM head)",
        )
        return not behind

    await eventually(at_the_end)


async def keys_of(dsn: str) -> set[UUID]:
    return {one for (one,) in await query(dsn, "SELECT registration_id FROM personal_keys")}


# --- The command ------------------------------------------------------------------------------


def test_an_operator_erases_by_id_and_again_without_effect(dsn: str, settings: Settings, command: Command) -> None:
    [ada, eve] = asyncio.run(one_registered(settings, "ada@example.com", "eve@example.com"))

    done = erase(command, dsn, ada, "--json")
    head = asyncio.run(query(dsn, "SELECT position FROM head"))
    again = erase(command, dsn, ada, "--json")

    assert (done.code, again.code) == (0, 0), done.err
    assert [one["outcome"] for one in (*done.json, *again.json)] == ["erased", "erased before"]
    assert done.json[0]["position"] == again.json[0]["position"]
    assert asyncio.run(query(dsn, "SELECT position FROM head")) == head
    assert asyncio.run(keys_of(dsn)) == {eve}


def test_an_address_is_read_from_standard_input(
    dsn: str, settings: Settings, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    [ada] = asyncio.run(one_registered(settings, "ada@example.com"))
    monkeypatch.setattr(sys, "stdin", io.StringIO("ada@example.com\n"))

    done = erase(command, dsn, "-", "--json")

    assert [(one["registration_id"], one["outcome"]) for one in done.json] == [(str(ada), "erased")]


def test_of_an_address_every_registration_is_erased(
    dsn: str, settings: Settings, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody follows the log here, so it would be waited for in vain.
    monkeypatch.setattr(erasing.ErasureDesk.caught_up, "__defaults__", (timedelta(0),))
    ids = asyncio.run(one_registered(settings, "ada@example.com", "eve@example.com"))

    done = erase(command, dsn, "Ada@Example.com", "--json")
    none_left = erase(command, dsn, "ada@example.com")
    nobody = erase(command, dsn, "nobody@example.com")

    assert [(one["registration_id"], one["outcome"]) for one in done.json] == [(str(ids[0]), "erased")]
    assert (nobody.code, nobody.out) == (1, "")
    assert "no registration of this address" in nobody.err
    assert none_left.code in {0, 1}  # the read model may not know it yet


def test_where_the_read_model_is_behind_the_command_says_that_somebody_may_be_missing(
    dsn: str, settings: Settings, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasing.ErasureDesk.caught_up, "__defaults__", (timedelta(0),))
    asyncio.run(one_registered(settings, "ada@example.com"))
    asyncio.run(_registered_unseen(settings, "eve@example.com"))

    done = erase(command, dsn, "ada@example.com", "--json")

    assert (done.code, "not every registration may be found" in done.err) == (1, True), done
    assert [one["outcome"] for one in done.json] == ["erased"]


async def _registered_unseen(settings: Settings, address: str) -> None:
    async with open_service(settings, follows=False) as service:
        await register(service, address)


async def test_of_an_address_with_more_registrations_than_a_page_the_oldest_is_found_too(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_service(settings, follows=True) as service:
        account = (await register(service, "ada@example.com")).subject_id
        [mail] = await mails_to(service, "ada@example.com")
        await verify(service, account, code_in(mail))
        duplicate = (await register(service, "ada@example.com")).subject_id
        await _read_models_at_the_end(service)
    monkeypatch.setattr(erasing, "PAGE", 1)

    async with erasing.erasure_desk(settings) as desk:
        found = await desk.of_address("ada@example.com")

    assert found == [duplicate, account]
    assert duplicate != account


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("nobody", "--reason", "asked"), "neither the id of a registration nor a mail address"),
        ((str(uuid4()),), "Missing option '--reason'"),
        ((str(uuid4()), "--reason", " "), "say why"),
        ((str(uuid4()), "--reason", "x" * 501), "at most 500 characters"),
        ((str(uuid4()), "--reason", "ada@example.com asked"), "contains no mail address"),
    ],
)
def test_what_cannot_be_meant_is_bad_usage(dsn: str, command: Command, words: tuple[str, ...], says: str) -> None:
    done = command("erase", *words, DATABASE_URL=dsn, MASTER_KEY=KEY)

    assert (done.code, done.err.count("\n")) == (2, 1)
    assert says in done.err


def test_a_registration_that_nobody_knows_is_said_to_be_so(dsn: str, settings: Settings, command: Command) -> None:
    asyncio.run(one_registered(settings, "ada@example.com"))

    done = erase(command, dsn, uuid4(), "--json")

    assert done.code == 1
    assert [(one["outcome"], one["why_not"]) for one in done.json] == [("refused", "unknown-registration")]


def test_the_log_still_verifies_and_shows_nothing_of_the_person(
    dsn: str, settings: Settings, command: Command, tmp_path: Path
) -> None:
    """The canary scan: every table of the database, what was exported, the journal and the proof."""
    canary = f"canary-{secrets.token_hex(6)}"
    [erased] = asyncio.run(one_registered(settings, f"{canary}@example.com"))

    proof = tmp_path / "proof.txt"
    assert erase(command, dsn, erased, "--proof", str(proof)).code == 0
    asyncio.run(_followed_to_the_end(settings))

    export = tmp_path / "log.jsonl"
    assert command("events", "export", "--with-keys", str(export), DATABASE_URL=dsn).code == 0
    assert command("events", "import", "--check", str(export)).code == 0
    assert command("projections", "verify", DATABASE_URL=dsn).code == 0
    assert asyncio.run(_broken(dsn)) == []
    dump = asyncio.run(_dump(dsn))
    journal = (settings.checkpoint_dir or tmp_path) / "erasures"
    for text in (dump, export.read_text(), proof.read_text(), journal.read_text()):
        assert canary not in text
    assert str(erased) in dump


async def _followed_to_the_end(settings: Settings) -> None:
    async with open_service(settings, follows=True) as service:
        await eventually(lambda: _written(settings, 1))
        await _read_models_at_the_end(service)


def _written(settings: Settings, lines: int) -> list[Erasure]:
    assert settings.checkpoint_dir is not None
    try:
        found = [one.erasure for one in read_journal(settings.checkpoint_dir / "erasures").entries]
    except FileNotFoundError:
        return []
    return found if len(found) >= lines else []


async def _broken(dsn: str) -> list[int]:
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        return await broken_blocks(connection)


async def _dump(dsn: str) -> str:
    """Every row of every table, as text; `bytea` as the text that may be in it."""
    tables = await query(
        dsn,
        "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables"
        " WHERE schemaname = 'public' OR schemaname LIKE 'read\\_%'",
    )
    text = []
    for (table,) in tables:
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            cursor = await connection.execute(f"SELECT * FROM {table}".encode())
            text += [" ".join(map(_as_text, row)) for row in await cursor.fetchall()]
    return "\n".join(text)


def _as_text(value: object) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


# --- The proof --------------------------------------------------------------------------------


def test_a_proof_verifies_by_itself_and_holds_nothing_personal(
    dsn: str, settings: Settings, command: Command, tmp_path: Path
) -> None:
    [ada] = asyncio.run(one_registered(settings, "ada@example.com"))
    file = tmp_path / "proof.txt"

    done = erase(command, dsn, ada, "--json", "--proof", str(file))

    key = asyncio.run(_key(settings))
    assert str(key.verifier) in done.err
    text = open_note(file.read_text(), [key.verifier])
    assert text.startswith(f"registrar/erasure-proof\nregistration {ada}\nposition {done.json[0]['position']}\n")
    assert "no key of it at " in text
    assert "ada@" not in text  # its digests are hexadecimal, and "ada" may stand in one
    with pytest.raises(BadNote):
        open_note(file.read_text().replace("no key", "a key"), [key.verifier])


def test_nobody_is_erased_if_the_proof_cannot_be_written(
    dsn: str, settings: Settings, command: Command, tmp_path: Path
) -> None:
    [ada] = asyncio.run(one_registered(settings, "ada@example.com"))

    done = erase(command, dsn, ada, "--proof", str(tmp_path / "missing" / "proof.txt"))

    assert (done.code, "No such file or directory" in done.err) == (2, True), done
    assert asyncio.run(keys_of(dsn)) == {ada}


async def _key(settings: Settings) -> SigningKey:
    async with open_service(settings, follows=False) as service:
        return note_key(service.keyring)


# --- Pending mail, and what processes have in memory ------------------------------------------


@pytest.fixture
async def stub() -> AsyncIterator[SmtpStub]:
    async with SmtpStub() as stub:
        yield stub


@pytest.fixture
async def two(settings: Settings, stub: SmtpStub) -> AsyncIterator[tuple[Service, Service]]:
    """A process that serves requests, and one that sends mails."""
    mail_server = SecretStr(f"smtp://127.0.0.1:{stub.port}?starttls=never")
    # A mail server may hang for longer than the tests wait.
    sending = settings.model_copy(update={"smtp_urls": mail_server, "send_timeout": timedelta(minutes=10)})
    async with AsyncExitStack() as stack:
        serving = await stack.enter_async_context(open_service(settings, follows=False))
        yield serving, await stack.enter_async_context(open_service(sending, follows=True))


def in_memory(canary: str) -> list[object]:
    """What of a person is in this interpreter, in which both processes run."""
    gc.collect()
    found = [one for one in gc.get_objects() if isinstance(one, Person | Letter)]
    return [one for one in found if canary in (one.email if isinstance(one, Person) else one.to)]


@pytest.mark.fault("X7")
@pytest.mark.parametrize("stage", ["banner", "mail", "rcpt", "data", "eod"])
async def test_an_erasure_reaches_every_process_however_long_the_mail_server_hangs(
    two: tuple[Service, Service], stub: SmtpStub, stage: Any
) -> None:
    """The mail server does not get on with the mail, at any stage of it, while the person is erased by a process that
    does not send: the one that sends lets go of the letter, and no process has anything of the person any more."""
    serving, _ = two
    canary = f"canary-{secrets.token_hex(6)}"
    stub.at(stage, "hang", times=1)
    erased = (await register(serving, f"{canary}@{canary}.example")).subject_id
    await eventually(lambda: stub.faults[stage] == 1)
    assert in_memory(canary), "the test sees what is in memory"

    await serving.handlers.handle(EraseRegistration(registration_id=erased), client())

    await eventually(lambda: not in_memory(canary))
    await eventually(lambda: not _ascii_domain.cache_info().currsize)
    for one in two:
        story = await one.api.queries.registrations.story(erased)
        assert story is not None
        assert story.registration.person is None
    other = (await register(serving, "eve@example.com")).subject_id
    await eventually(lambda: [b"eve@example.com"] in [mail.recipients for mail in stub.mails])
    # What the mail server has in full cannot be called back; it is sent once, and not again.
    assert len(stub.mails) == (2 if stage == "eod" else 1)
    assert (await registration(serving, other)).status is Status.PENDING
    assert (await registration(serving, erased)).handed_over_at == {}


@pytest.mark.fault("X7")
async def test_a_mail_that_waits_for_its_next_try_is_not_sent_after_the_erasure(
    two: tuple[Service, Service], stub: SmtpStub, dsn: str
) -> None:
    serving, _ = two
    stub.at("rcpt", "450 4.7.1 greylisted")
    erased = (await register(serving, "ada@example.com")).subject_id

    async def waits() -> bool:
        return bool(await query(dsn, "SELECT 1 FROM events WHERE topic = 'mail_saga.retry_scheduled'"))

    await eventually(waits)
    await serving.handlers.handle(EraseRegistration(registration_id=erased), client())
    stub.heal()

    async def ended() -> bool:
        return bool(await query(dsn, "SELECT 1 FROM events WHERE topic = 'mail_saga.ended'"))

    await eventually(ended)
    again = (await register(serving, "ada@example.com")).subject_id

    async def is_settled() -> bool:
        return bool((await registration(serving, again)).handed_over_at)

    await eventually(is_settled)  # withheld: within a minute of the first mail that was asked for there
    assert again != erased, "the address is free"
    assert stub.mails == []
    assert (await registration(serving, erased)).handed_over_at == {}
    assert (await registration(serving, again)).duplicate_of is None


# --- The journal, and a restore ---------------------------------------------------------------


async def erased_by_service(settings: Settings, *addresses: str) -> list[UUID]:
    """Registered, and the first one erased and in the journal."""
    async with open_service(settings, follows=True) as service:
        found = [(await register(service, address)).subject_id for address in addresses]
        await service.handlers.handle(EraseRegistration(registration_id=found[0]), client())
        await eventually(lambda: _written(settings, 1))
        return found


async def test_a_journal_holds_what_a_restore_needs_and_nothing_personal(settings: Settings, directory: Path) -> None:
    [ada, _] = await erased_by_service(settings, "ada@example.com", "eve@example.com")

    [entry] = read_journal(directory / "erasures").entries

    key = await _key(settings)
    assert Erasure.parse(open_note(entry.note, [key.verifier])) == entry.erasure
    assert entry.erasure.registration_id == ada
    assert "ada@" not in (directory / "erasures").read_text()
    assert (directory / "erasures").stat().st_mode & 0o077 == 0


async def test_a_journal_holds_no_synthetic_registration(settings: Settings, directory: Path) -> None:
    async with open_service(settings, follows=True) as service:
        address = "probe@example.com"
        key = service.keyring.synthetic_key("register", address)
        probed = await service.handlers.handle(RegisterUser(email=address, name="Probe", idempotency_key=key), client())
        person = await register(service, "ada@example.com")
        for one in (probed.subject_id, person.subject_id):
            await service.handlers.handle(EraseRegistration(registration_id=one), client())
        await eventually(lambda: _written(settings, 1))

    assert is_synthetic(probed.subject_id)
    [entry] = read_journal(directory / "erasures").entries
    assert entry.erasure.registration_id == person.subject_id


async def restored(dsn: str, postgres: EmbeddedPostgres, administration: psycopg.Connection, name: str) -> str:
    """A copy of the database as it is now, to come back to."""
    administration.execute(
        sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy").format(
            sql.Identifier(name), sql.Identifier(str(conninfo_to_dict(dsn)["dbname"]))
        )
    )
    return database_of(postgres, name)


@pytest.fixture
async def backup(
    dsn: str, settings: Settings, postgres: EmbeddedPostgres, administration: psycopg.Connection
) -> AsyncIterator[tuple[Settings, list[UUID]]]:
    """A database as of before the erasure of the first of two persons, with the journal of after it."""
    name = f"restored_{secrets.token_hex(4)}"
    async with open_service(settings, follows=False) as service:
        ids = [(await register(service, f"{one}@example.com")).subject_id for one in ("ada", "eve")]
    copy = await restored(dsn, postgres, administration, name)
    async with open_service(settings, follows=True) as service:
        await service.handlers.handle(EraseRegistration(registration_id=ids[0]), client())
        await eventually(lambda: _written(settings, 1) and _complete(settings))
    yield settings.model_copy(update={"database_url": SecretStr(copy)}), ids
    administration.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def url_of(settings: Settings) -> str:
    assert settings.database_url is not None
    return settings.database_url.get_secret_value()


@pytest.mark.fault("X7")
async def test_who_was_erased_since_the_backup_is_erased_before_the_first_request(
    backup: tuple[Settings, list[UUID]], log: io.StringIO
) -> None:
    settings, [ada, eve] = backup
    dsn = url_of(settings)
    assert await keys_of(dsn) == {ada, eve}
    await query(dsn, "INSERT INTO restores (position) SELECT position FROM head")

    async with open_service(settings, follows=False) as service:
        assert await keys_of(dsn) == {eve}
        assert (await registration(service, ada)).erased
        assert (await registration(service, eve)).status is Status.PENDING
        [(actor,)] = await query(dsn, "SELECT actor FROM events WHERE topic = 'registration.personal_data_erased'")
    assert actor == "restore"
    assert await query(dsn, "SELECT 1 FROM restores WHERE settled_at IS NULL") == []
    assert '"erasures.repeated"' in log.getvalue()

    head = await query(dsn, "SELECT position FROM head")
    async with open_service(settings, follows=False):
        assert await query(dsn, "SELECT position FROM head") == head


async def test_without_the_journal_a_start_after_a_restore_says_so(
    backup: tuple[Settings, list[UUID]], log: io.StringIO, tmp_path: Path
) -> None:
    settings, [ada, eve] = backup
    dsn = url_of(settings)
    await query(dsn, "INSERT INTO restores (position) SELECT position FROM head")

    async with open_service(settings.model_copy(update={"checkpoint_dir": tmp_path / "elsewhere"}), follows=True):
        assert await keys_of(dsn) == {ada, eve}

    async with await connect(dsn, name="test", statement_timeout=timedelta(seconds=10)) as connection:
        [finding] = [one async for one in unsettled_restores(connection)]
    assert (finding.state, "who was erased after it is not known" in finding.says) == ("fail", True)
    [line] = [json.loads(line) for line in log.getvalue().splitlines() if "erasures.unknown_since_restore" in line]
    assert line["level"] == "error"
    assert "there is no journal of erasures" in line["hint"]
    assert await query(dsn, "SELECT settled_at FROM restores") == [(None,)]


async def test_the_api_of_a_host_without_the_journal_waits_for_the_host_that_has_it(
    backup: tuple[Settings, list[UUID]], tmp_path: Path
) -> None:
    having, [_, eve] = backup
    dsn = url_of(having)
    without = having.model_copy(update={"checkpoint_dir": tmp_path / "elsewhere"})
    await query(dsn, "INSERT INTO restores (position) SELECT position FROM head")

    with pytest.raises(CannotStart, match="who was erased since is not known here"):
        async with open_service(without, follows=False):
            pass
    async with open_service(having, follows=True), open_service(without, follows=False):
        assert await keys_of(dsn) == {eve}


@pytest.mark.parametrize("journal", ["an empty one", "one of later", "one that others signed", "a part of one"])
async def test_a_journal_that_was_not_complete_before_a_restore_settles_nothing(
    backup: tuple[Settings, list[UUID]], log: io.StringIO, tmp_path: Path, journal: str
) -> None:
    settings, [ada, eve] = backup
    dsn = url_of(settings)
    ours = await _key(settings.model_copy(update={"checkpoint_dir": None}))
    await query(dsn, "INSERT INTO restores (position) SELECT position FROM head")
    [[restored_at]] = await query(dsn, "SELECT restored_at FROM restores")
    before, after = (restored_at + timedelta(seconds=seconds) for seconds in (-1, 1))
    elsewhere = settings.model_copy(update={"checkpoint_dir": tmp_path / "elsewhere"})
    file = tmp_path / "elsewhere" / "erasures"
    match journal:
        case "an empty one":
            await write_to(file, "")
        case "one of later":
            await write_to(file, ours.sign(Complete(after).text()))
        case "one that others signed":
            await write_to(file, SigningKey(ORIGIN, bytes(32)).sign(Complete(before).text()))
        case "a part of one":
            await write_to(file, ours.sign(Erasure(uuid4(), 9, before).text()))

    async with open_service(elsewhere, follows=True):
        assert await keys_of(dsn) == {ada, eve}

    assert '"erasures.unknown_since_restore"' in log.getvalue()
    assert await query(dsn, "SELECT settled_at FROM restores") == [(None,)]

    await write_to(file, ours.sign(Complete(before).text()))
    async with open_service(elsewhere, follows=True):
        assert await query(dsn, "SELECT 1 FROM restores WHERE settled_at IS NULL") == []


async def test_where_nobody_was_ever_erased_the_journal_says_so_after_a_restore(settings: Settings, dsn: str) -> None:
    async with open_service(settings, follows=True) as service:
        await register(service, "ada@example.com")
        await eventually(lambda: _complete(settings))
    await query(dsn, "INSERT INTO restores (position) SELECT position FROM head")

    async with open_service(settings, follows=False):  # as `serve`, which does not start otherwise
        assert await query(dsn, "SELECT 1 FROM restores WHERE settled_at IS NULL") == []


def _complete(settings: Settings) -> list[CompleteNote]:
    assert settings.checkpoint_dir is not None
    try:
        return list(read_journal(settings.checkpoint_dir / "erasures").complete)
    except FileNotFoundError:
        return []


@pytest.mark.fault("A21")
async def test_a_journal_that_was_lost_is_written_anew_from_the_first_event_on(
    settings: Settings, directory: Path
) -> None:
    """Or whoever was erased before would be back after a restore, and the journal would say that it is complete."""
    [ada, _] = await erased_by_service(settings, "ada@example.com", "eve@example.com")
    (directory / "erasures").unlink()

    async with open_service(settings, follows=True):
        await eventually(lambda: _complete(settings))

    assert [one.registration_id for one in _written(settings, 1)] == [ada]


async def test_a_journal_that_cannot_be_read_stops_the_start(settings: Settings, directory: Path) -> None:
    (directory / "erasures").mkdir(parents=True)

    with pytest.raises(CannotStart, match=r"journal of erasures .* cannot be read"):
        async with open_service(settings, follows=False):
            pass


async def test_nobody_is_erased_because_somebody_wrote_to_the_journal(
    backup: tuple[Settings, list[UUID]], log: io.StringIO, directory: Path
) -> None:
    settings, [ada, eve] = backup
    file = directory / "erasures"
    [ours] = read_journal(file).entries
    forged = SigningKey(ORIGIN, bytes(32)).sign(Erasure(eve, 1, ours.erasure.erased_at).text())
    for text in (forged, ours.note.replace(str(ada), str(eve)), "{\n", "something else\n"):
        append(file, text)

    async with open_service(settings, follows=False):
        assert await keys_of(url_of(settings)) == {eve}

    assert log.getvalue().count('"erasures.not_signed"') == 2
    assert log.getvalue().count('"erasures.unreadable_line"') == 1


@pytest.fixture
async def empty(
    dsn: str, settings: Settings, postgres: EmbeddedPostgres, administration: psycopg.Connection
) -> AsyncIterator[Settings]:
    """A database as of before anybody registered."""
    async with open_service(settings, follows=False):
        pass
    name = f"restored_{secrets.token_hex(4)}"
    copy = await restored(dsn, postgres, administration, name)
    yield settings.model_copy(update={"database_url": SecretStr(copy)})
    administration.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


async def test_who_registers_again_after_a_restore_under_the_id_of_before_is_somebody_else(
    settings: Settings, empty: Settings
) -> None:
    """An Idempotency-Key gives the same id again, in a log that has never seen the first one."""
    [key] = [secrets.token_urlsafe(24)]
    async with open_service(settings, follows=True) as service:
        first = (await register(service, "ada@example.com", idempotency_key=key)).subject_id
        await service.handlers.handle(EraseRegistration(registration_id=first), client())
        await eventually(lambda: _written(settings, 1))
    async with open_service(empty, follows=False) as service:
        again = (await register(service, "ada@example.com", idempotency_key=key)).subject_id

    async with open_service(empty, follows=False):
        assert again == first
        assert await keys_of(url_of(empty)) == {again}


async def test_who_was_erased_and_is_imported_again_after_a_restore_is_erased_again(
    settings: Settings, empty: Settings
) -> None:
    """In a log that has never seen the first import, nothing else says that the person was erased."""
    users = tuple(
        ImportedUser(email=f"{one}@example.com", name="Ada Lovelace", verified=True) for one in ("ada", "eve")
    )
    command = ImportUsers(import_id=uuid4(), users=users)
    async with open_service(settings, follows=True) as service:
        await service.handlers.handle(command, client())
        ada, eve = [service.keyring.imported_id(service.keyring.claim_id(user.email)) for user in users]
        await service.handlers.handle(EraseRegistration(registration_id=ada), client())
        await eventually(lambda: _written(settings, 1))
    async with open_service(empty, follows=False) as service:
        await service.handlers.handle(command, client())
        assert await keys_of(url_of(empty)) == {ada, eve}

    async with open_service(empty, follows=False) as service:
        assert await keys_of(url_of(empty)) == {eve}
        assert (await registration(service, ada)).erased


def notes_of(number: int) -> tuple[list[Erasure], list[str]]:
    """Some erasures, and their notes."""
    erasures = [Erasure(uuid4(), one, datetime(2026, 11, 28, tzinfo=UTC)) for one in range(1, number + 1)]
    return erasures, [SigningKey(ORIGIN, bytes(32)).sign(one.text()) for one in erasures]


async def test_a_note_that_a_crash_tore_does_not_spoil_the_next_one(tmp_path: Path) -> None:
    file = tmp_path / "erasures"
    erasures, notes = notes_of(2)
    await asyncio.to_thread(file.write_text, notes[0][:50])

    for note in notes:
        await write_to(file, note)

    assert [one.erasure for one in read_journal(file).entries] == erasures


@pytest.mark.parametrize("between", ["", "\n", "\n\n"])
def test_a_journal_of_what_was_posted_is_read(tmp_path: Path, between: str, log: io.StringIO) -> None:
    erasures, notes = notes_of(3)
    (tmp_path / "erasures").write_text(between.join(notes))

    found = read_journal(tmp_path / "erasures")

    assert [(one.erasure, one.note) for one in found.entries] == list(zip(erasures, notes, strict=True))
    assert log.getvalue() == ""


def test_nothing_in_another_users_directory_becomes_roots(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root writes for somebody else")
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 54321, 54321)
    key, [[erasure], [note]] = SigningKey("registrar/test", bytes(32)).verifier, notes_of(1)

    asyncio.run(write_to(home / "data" / "journal" / "erasures", note))
    CheckpointDirectory(home / "data" / "checkpoints").publish(note, erasure.erased_at, [key])

    made = {path.relative_to(home).as_posix(): path.stat() for path in home.rglob("*")}
    assert made.keys() > {"data", "data/journal/erasures", "data/checkpoints/checkpoint"}
    assert {(one.st_uid, one.st_gid, one.st_mode & 0o077) for one in made.values()} == {(54321, 54321, 0)}


async def test_a_journal_that_cannot_be_written_holds_up_no_erasure(
    settings: Settings, directory: Path, log: io.StringIO
) -> None:
    async with open_service(settings, follows=True) as service:
        await register(service, "eve@example.com")
        await eventually(lambda: _complete(settings))
        await asyncio.to_thread(directory.rename, directory.with_name("away"))
        await asyncio.to_thread(directory.write_text, "a file where the directory should be")
        ada = (await register(service, "ada@example.com")).subject_id
        await service.handlers.handle(EraseRegistration(registration_id=ada), client())
        assert ada not in await keys_of(service.dsn)
        await eventually(lambda: "erasures.not_written" in log.getvalue())
        await asyncio.to_thread(directory.unlink)

        await eventually(lambda: _written(settings, 1))


@pytest.mark.fault("A21")
async def test_an_address_that_is_away_holds_up_no_line_of_the_journal_and_gets_all_of_it_when_it_is_back(
    settings: Settings, tmp_path: Path
) -> None:
    async with WebhookStub() as stub:
        url = stub.url
    posting = settings.model_copy(update={"checkpoint_url": SecretStr(url)})
    async with open_service(posting, follows=True) as service:
        ids = {(await register(service, f"{one}@example.com")).subject_id for one in ("ada", "eve")}
        for one in ids:
            await service.handlers.handle(EraseRegistration(registration_id=one), client())
        await eventually(lambda: _written(settings, 2))

        async with WebhookStub(port=stub.port) as back:

            def posted() -> Journal:
                notes = [call.body.decode() for call in back.calls]
                file = tmp_path / "posted"
                file.write_text("".join(note for note in notes if note.startswith("registrar/erasures\n")))
                return read_journal(file)

            await eventually(lambda: posted().complete, within=60)
            await eventually(lambda: {one.erasure.registration_id for one in posted().entries} == ids, within=60)


def test_erasures_are_followed_to_each_place_that_there_is_for_them(settings: Settings) -> None:
    nowhere = settings.model_copy(update={"checkpoint_dir": None})
    address = {"checkpoint_url": SecretStr("http://127.0.0.1:9")}

    def followers(one: Settings) -> set[str]:
        return {name for name in followers_with(one) if "erasures" in name}

    assert followers(nowhere) == set()
    assert followers(settings) == {"erasures"}
    assert followers(nowhere.model_copy(update=address)) == {"posted-erasures"}
    assert followers(settings.model_copy(update=address)) == {"erasures", "posted-erasures"}
