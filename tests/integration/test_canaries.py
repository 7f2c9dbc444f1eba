"""The canary scan: nothing of a person can be read anywhere, and after an erasure no key of theirs opens anything."""

from __future__ import annotations

import asyncio
import gzip
import io
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from application.commands import EraseRegistration
from application.ports import WrongMasterKey
from entrypoints.bootstrap import backups
from entrypoints.bootstrap.erasing import erasure_desk
from entrypoints.bootstrap.keys import key_desk
from infrastructure.audit.erasures import read_journal
from infrastructure.crypto import rotation
from infrastructure.crypto.keyring import binding
from infrastructure.crypto.master_keys import MasterKeys, key_id, prefix_of
from infrastructure.embedded.data_directory import DataDirectory
from infrastructure.settings.settings import Settings
from tests.faults.canaries import occurs, shown
from tests.integration.conftest import Command
from tests.integration.test_flow import client, code_in, mails_to, register
from tests.support.facts import eventually
from tests.support.log import query
from tests.support.postgres import in_memory
from tests.support.service import Service, open_service

pytestmark = pytest.mark.slow

ADDRESS, NAME, PASSWORD = "canary-7f3a9c@quetzalcoatl.example", "Canary Quetzalcoatl", "Canary-Pass-of-41d5e8"
SECRETS = (ADDRESS, "canary-7f3a9c", "quetzalcoatl", NAME, PASSWORD)


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="registrar-tests-", dir=in_memory()) as directory:
        yield Path(directory)


def settings_of(home: Path) -> Settings:
    return Settings.from_environment({"REGISTRAR_DATA_DIR": str(home / "data")})


async def registered(service: Service) -> tuple[UUID, str]:
    """The person that is looked for, and the code in her mail."""
    found = (await register(service, ADDRESS, NAME, password=PASSWORD)).subject_id
    [mail] = await mails_to(service, ADDRESS)
    return found, code_in(mail)


async def erased(service: Service, settings: Settings, registration_id: UUID) -> None:
    await service.handlers.handle(EraseRegistration(registration_id=registration_id), client())
    journal = settings.data_dir / "checkpoints" / "erasures"
    await eventually(lambda: journal.exists() and read_journal(journal).entries)


async def backed_up(settings: Settings, service: Service, to: Path) -> None:
    """With everything that was recorded by then in the archive, too."""
    await backups.back_up(settings, to, keep=None, progress=lambda *_: None)

    def archived(name: str) -> bool:
        return any(to.glob(f"*/wal/{name}.gz"))

    with psycopg.connect(service.dsn, autocommit=True) as connection:
        [name] = connection.execute("SELECT pg_walfile_name(pg_switch_wal())").fetchone() or [""]
    await eventually(lambda: archived(name), within=30)


def contents(directory: Path) -> Iterator[tuple[str, bytes]]:
    """Every file below a directory, unpacked, with its path."""
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.name.endswith(".tar.gz"):
            with tarfile.open(fileobj=io.BytesIO(gzip.decompress(content))) as members:
                for member in members:
                    if (file := members.extractfile(member)) is not None:
                        yield f"{path}/{member.name}", file.read()
        else:
            yield str(path), gzip.decompress(content) if path.suffix == ".gz" else content


def found_in(directory: Path) -> dict[str, list[str]]:
    """What of the person stands in which file."""
    looked = {path: occurs(content.decode("latin-1"), SECRETS) for path, content in contents(directory)}
    return {path: secrets for path, secrets in looked.items() if secrets}


async def test_nothing_of_a_person_is_in_clear_in_a_backup_its_archive_or_what_is_published(home: Path) -> None:
    """Whether it is from before an erasure or after it."""
    settings = settings_of(home)
    async with open_service(settings, follows=True) as service:
        person, code = await registered(service)
        await backed_up(settings, service, home / "before")
        await erased(service, settings, person)
        async with erasure_desk(settings) as desk:
            proof = desk.proof(await desk.erase(person, "ticket 4711"))
        await backed_up(settings, service, home / "after")

    assert found_in(home / "before") == found_in(home / "after") == {}
    assert found_in(home / "data" / "checkpoints") == {}
    texts = [content.decode() for _, content in contents(home / "data" / "checkpoints")]
    assert shown([code], "\n".join([*texts, proof])) == occurs(proof, SECRETS) == []


async def test_a_backup_from_before_an_erasure_has_the_key_and_one_from_after_a_rotation_has_none_that_opens(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What docs/data-protection.md says of backups: only the end of the old master key is the end of older copies."""
    monkeypatch.setattr(rotation, "REJOINED", rotation.LOOK)
    settings = settings_of(home)
    async with open_service(settings, follows=True) as service:
        person, _ = await registered(service)
        other = (await register(service, "eve@example.com")).subject_id
        old = DataDirectory(settings.data_dir).master_key().get_secret_value()
        await backed_up(settings, service, home / "before")
        wrapped = _wrapped(service.dsn, person)
        await erased(service, settings, person)
        async with key_desk(settings) as desk:
            await desk.rotate(lambda *_: None)
        new = DataDirectory(settings.data_dir).master_key().get_secret_value()
        await backed_up(settings, service, home / "after")

    assert MasterKeys(old).unwrap(wrapped, binding(person))
    assert any(wrapped in content for _, content in contents(home / "before"))
    assert [_opens(home / "after", new, one) for one in (person, other)] == [False, True]


def _wrapped(dsn: str, person: UUID) -> bytes:
    with psycopg.connect(dsn) as connection:
        found = connection.execute("SELECT wrapped FROM personal_keys WHERE registration_id = %s", (person,))
        [wrapped] = found.fetchone() or [b""]
        return bytes(wrapped)


def _opens(directory: Path, master_key: bytes, person: UUID) -> bool:
    """Is there a key of that person anywhere in the files, wrapped by this master key?"""
    keys, begins = MasterKeys(master_key), prefix_of(key_id(master_key))
    for _, content in contents(directory):
        at = content.find(begins)
        while at >= 0:
            try:
                keys.unwrap(content[at : at + 69], binding(person))
            except WrongMasterKey:
                at = content.find(begins, at + 1)
            else:
                return True
    return False


def test_nothing_of_a_person_is_in_clear_in_an_export_or_a_proof_of_the_log(home: Path, command: Command) -> None:
    person, code = asyncio.run(_in_a_checkpoint(settings_of(home)))
    said = _exported(command, home, person)

    texts = [content.decode() for _, content in contents(home / "exported")]
    assert [occurs(text, SECRETS) for text in [*texts, *said]] == [[]] * (len(texts) + len(said))
    assert shown([code], "\n".join([*texts, *said])) == []
    assert sum(str(person) in text for text in texts) == len(texts) == 4


async def _in_a_checkpoint(settings: Settings) -> tuple[UUID, str]:
    async with open_service(settings, follows=True) as service:
        found = await registered(service)
        await eventually(lambda: query(service.dsn, _ALL_IS_SIGNED), within=60)
        return found


_ALL_IS_SIGNED = """
    SELECT 1 FROM head WHERE position = (SELECT max(position) FROM checkpoints)
        AND EXISTS (SELECT FROM events WHERE topic = 'mail_saga.end_awaited')
        AND EXISTS (SELECT FROM followers WHERE name = 'audit' AND followers.position = head.position)
"""
"""And is in the audit log. What follows from a mail is the last that is recorded of a registration for now."""


def _exported(command: Command, home: Path, person: UUID) -> list[str]:
    """Everything that is exported, into files; what the commands said."""
    to, data = home / "exported", ("--data-dir", str(home / "data"))
    to.mkdir()
    done = [
        command("events", "export", str(to / "events.jsonl"), *data),
        command("audit", "export", str(to / "audit.jsonl"), *data),
        command("audit", "export", "--format", "csv", str(to / "audit.csv"), *data),
        command("audit", "prove", str(person), "--output", str(to / "proof.json"), *data),
        command("audit", "explain", str(person), *data),
        command("audit", "search", "--json", *data),
    ]
    assert [one.code for one in done] == [0] * len(done), done
    return [text for one in done for text in (one.out, one.err)]
