"""Witnesses cosign what continues what they have seen, and nothing else; they hold nobody up."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import metamorphic_log
import pytest
from cryptography.exceptions import InvalidSignature
from pydantic import TypeAdapter, ValidationError
from registrar_verify import Key, open_note
from tlog_scales.signing import NoteSignature, Vkey
from tlog_scales.tlog import Checkpoint

from infrastructure.audit.witness import Witnesses
from infrastructure.settings.witnesses import WitnessAddress
from infrastructure.settings.witnesses import Witnesses as Setting
from tests.support.proofs import ORIGIN, Log, Signer, a_log, about_another, consistency, tree_root
from tests.support.witness import NOW, Witness

LOG_KEY = Signer().key


class Submitting:
    """What the publisher of checkpoints does with its witnesses."""

    def __init__(self, *witnesses: Witness, deadline: timedelta = timedelta(seconds=30)) -> None:
        self.outcomes: list[tuple[str, str]] = []
        addresses = [WitnessAddress.parse(witness.address) for witness in witnesses]
        self._witnesses = Witnesses(
            addresses, deadline=deadline, on_outcome=lambda name, outcome: self.outcomes.append((name, outcome))
        )

    async def submit(self, log: Log) -> str:
        leaves = log.leaves()

        async def continues(old: int) -> Sequence[bytes]:
            return consistency(old, leaves)

        return await self._witnesses.cosign(log.checkpoint(), len(leaves), continues)

    @property
    def latest(self) -> str:
        return self.outcomes[-1][1]


def grown(log: Log, blocks: int = 1) -> Log:
    return Log([*log.blocks, *([about_another(100 + number)] for number in range(blocks))])


async def test_a_checkpoint_is_cosigned_and_others_accept_it(tmp_path: Path) -> None:
    async with Witness(tmp_path, log_keys=[LOG_KEY]) as witness:
        submitting = Submitting(witness)

        note = await submitting.submit(a_log())

    assert submitting.latest == "cosigned"
    assert note.startswith(a_log().checkpoint())
    assert open_note(note, [Key.of(LOG_KEY)], [Key.of(witness.signer.key)]).signers == (ORIGIN, "witness.example/w")
    assert metamorphic_log.verify_signed_note(note, [LOG_KEY]) == 1
    text, _, lines = note.rpartition("\n\n")
    cosignature = NoteSignature.from_line(lines.splitlines()[-1])
    verifier = Vkey.from_string(witness.signer.key).get_verifier()
    verifier.verify_note(cosignature, Whole(ORIGIN, 0, b"", [], text=f"{text}\n"))
    with pytest.raises(InvalidSignature):
        verifier.verify_note(cosignature, Whole(ORIGIN, 0, b"", [], text=f"{text}?\n"))


@dataclass(frozen=True)
class Whole(Checkpoint):
    """With its extension lines, which a cosignature covers and tlog-scales 0.0.3 leaves out."""

    text: str = ""

    def serialize_body(self) -> str:
        return self.text


async def test_a_log_that_grows_is_cosigned_again_and_again(tmp_path: Path) -> None:
    async with Witness(tmp_path, log_keys=[LOG_KEY]) as witness:
        submitting = Submitting(witness)
        log = a_log()
        for blocks in (0, 1, 5, 0, 200):
            log = grown(log, blocks)
            await submitting.submit(log)
            assert submitting.latest == "cosigned"
            assert witness.seen[ORIGIN][0] == len(log.blocks)
        assert witness.calls == 5


async def test_a_process_that_starts_anew_is_told_what_the_witness_has_seen(tmp_path: Path) -> None:
    async with Witness(tmp_path, log_keys=[LOG_KEY]) as witness:
        await Submitting(witness).submit(a_log())
    async with Witness(tmp_path, log_keys=[LOG_KEY]) as restarted:
        submitting = Submitting(restarted)
        await submitting.submit(grown(a_log()))
        assert submitting.outcomes == [("witness.example/w", "cosigned")]
        assert restarted.calls == 2


async def test_a_rewritten_log_finds_no_witness_and_that_is_an_error(tmp_path: Path, log: io.StringIO) -> None:
    async with Witness(tmp_path, log_keys=[LOG_KEY]) as witness:
        await Submitting(witness).submit(a_log())
        rewritten = a_log()
        rewritten.blocks[1][0]["state"] = '{"locale":"de"}'

        for forged in (rewritten, grown(rewritten)):
            submitting = Submitting(witness)
            note = await submitting.submit(forged)
            assert submitting.latest == "forked"
            assert note == forged.checkpoint()
        assert witness.seen[ORIGIN] == [11, tree_root(a_log().leaves()).hex()]
    assert [json.loads(line)["level"] for line in log.getvalue().splitlines()] == ["error", "error"]


async def test_a_log_whose_end_was_cut_off_finds_no_witness(tmp_path: Path) -> None:
    async with Witness(tmp_path, log_keys=[LOG_KEY]) as witness:
        submitting = Submitting(witness)
        await submitting.submit(grown(a_log(), 3))

        assert await submitting.submit(a_log()) == a_log().checkpoint()
        assert submitting.latest == "ahead"
        await submitting.submit(grown(a_log(), 4))
        assert submitting.latest == "cosigned"


@pytest.mark.parametrize(
    ("answers", "outcome"),
    [
        (["500 Internal Server Error"], "away"),
        (["429 Too Many Requests"], "away"),
        (["drop"], "away"),
        (["302 Found"], "refused"),
        (["200 OK"], "refused"),
        (["409 Conflict"], "forked"),
        (["422 Unprocessable Entity"], "forked"),
    ],
)
async def test_without_a_cosignature_the_checkpoint_stays_as_it_is_until_the_witness_is_back(
    tmp_path: Path, answers: list[str], outcome: str
) -> None:
    async with Witness(tmp_path, log_keys=[LOG_KEY]) as witness:
        submitting = Submitting(witness)
        witness.then(*answers)
        assert await submitting.submit(a_log()) == a_log().checkpoint()
        assert submitting.latest == outcome
        assert await submitting.submit(a_log()) != a_log().checkpoint()
        assert submitting.latest == "cosigned"


async def test_a_witness_that_hangs_holds_up_neither_the_checkpoint_nor_the_others(tmp_path: Path) -> None:
    one = Witness(tmp_path, log_keys=[LOG_KEY], name="one.example")
    another = Witness(tmp_path, log_keys=[LOG_KEY], name="another.example")
    async with one, another:
        one.then("hang")
        submitting = Submitting(one, another, deadline=timedelta(seconds=2))

        note = await submitting.submit(a_log())

        assert dict(submitting.outcomes) == {"one.example": "away", "another.example": "cosigned"}
        assert "— another.example " in note
        assert "— one.example " not in note


async def test_a_witness_that_does_not_know_the_log_or_its_key_refuses(tmp_path: Path) -> None:
    async with Witness(tmp_path, log_keys=[Signer(seed=b"\1" * 32).key]) as witness:
        submitting = Submitting(witness)
        assert await submitting.submit(a_log()) == a_log().checkpoint()
        assert submitting.latest == "refused"


async def test_a_cosignature_by_another_key_is_none(tmp_path: Path) -> None:
    async with Witness(tmp_path, log_keys=[LOG_KEY]) as witness:
        submitting = Submitting(witness)
        witness.signer = Signer(witness.signer.name, b"\7" * 32, cosigns=witness.signer.cosigns)
        assert await submitting.submit(a_log()) == a_log().checkpoint()
        assert submitting.latest == "refused"


# --- The setting --------------------------------------------------------------------------------------------------

WITNESS_KEY = Signer("witness.example/w", bytes(32), cosigns=NOW).key


def test_witnesses_are_set_by_their_addresses_and_keys() -> None:
    parsed = TypeAdapter(Setting).validate_python(
        f"https://witness.example/v1/#{WITNESS_KEY}, http://127.0.0.1:9#{WITNESS_KEY}"
    )
    assert [one.url for one in parsed] == ["https://witness.example/v1", "http://127.0.0.1:9"]
    assert parsed[0].name == "witness.example/w"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("witness.example", "entry 1 is not of the form https://host"),
        (f"ftp://witness.example#{WITNESS_KEY}", "entry 1 is not of the form https://host"),
        (f"https://user:word@witness.example#{WITNESS_KEY}", "entry 1 is not of the form https://host"),
        ("https://witness.example", "entry 1 has behind its # no key"),
        (
            f"https://one.example#{WITNESS_KEY},https://two.example#{WITNESS_KEY[:-1]}B",
            "entry 2 has a key that was not copied",
        ),
        (f"https://one.example#{LOG_KEY}", "entry 1 has a key that is none of a witness"),
    ],
)
def test_what_is_no_witness_is_refused(value: str, says: str) -> None:
    with pytest.raises(ValidationError, match=says.replace("#", r"\#")):
        TypeAdapter(Setting).validate_python(value)
