"""The program that an auditor is given: it believes what was signed, and nothing that was changed after."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import metamorphic_log
import pytest
import registrar_verify
from hypothesis import given, settings
from hypothesis import strategies as st
from registrar_verify import Key, Refused, Unusable, describe, root_of, verify
from tlog_scales.tlog import InclusionProof

from infrastructure.event_store.codec import event_classes
from tests.support.proofs import (
    ORIGIN,
    OTHER,
    SAGA,
    TOLD,
    Signer,
    a_log,
    about_another,
    audit_path,
    digest_of,
    event,
    tree_root,
)

KEYS = [Key.of(Signer().key)]
ANOTHER = Signer(seed=b"\1" * 32)
WITNESS = Signer("witness.example/w", b"\2" * 32, cosigns=datetime(2026, 11, 28, 16, tzinfo=UTC))

Change = Callable[[dict[str, Any]], object]


def checked(proof: dict[str, Any]) -> registrar_verify.Proof:
    return verify(json.dumps(proof).encode(), KEYS)


def refusal(proof: dict[str, Any]) -> str:
    with pytest.raises(Refused) as refused:
        checked(proof)
    return str(refused.value)


# --- What holds ---------------------------------------------------------------------------------------------------


def test_a_proof_is_told_event_by_event() -> None:
    told = "\n".join(describe(checked(a_log().proof())))

    assert f"The log {ORIGIN} had 11 blocks up to position 17 at 2026-11-28T16:00:00Z; signed: {ORIGIN}." in told
    assert f"stand 8 events about {TOLD}" in told
    assert "position 2, 2026-11-28T15:04:05.928901Z: somebody asked for an account\n" in told
    assert f"    registration.user_registered, version 1 of stream {TOLD}, by client, in block 1\n" in told


def test_events_of_another_registration_are_in_no_proof_of_this_one() -> None:
    text = json.dumps(a_log().proof())
    assert str(OTHER) not in text
    assert digest_of(about_another(2)).hex() in text


def test_every_type_of_event_has_its_words() -> None:
    about_registrations = ("registration.", "mail_saga.", "email_claim.")
    assert {topic for topic in event_classes() if topic.startswith(about_registrations)} <= {*registrar_verify.IN_WORDS}


def test_an_event_whose_bytes_are_no_text_is_proved_too() -> None:
    assert checked(a_log().proof()).events[-1].type == "registration.account_activated"


def test_what_a_log_says_does_not_move_the_terminal() -> None:
    log = a_log()
    log.blocks[5][0] |= {"actor": "\x1b[2J", "type": "registration.unheard_of"}
    told = "\n".join(describe(checked(log.proof())))
    assert "something that is unknown here\n    registration.unheard_of, version 3 of" in told
    assert "by '\\x1b[2J'" in told


def test_any_of_several_keys_may_have_signed() -> None:
    proof = json.dumps(a_log().proof(TOLD, Signer(), ANOTHER)).encode()
    for keys in ([Signer().key], [ANOTHER.key], [ANOTHER.key, Signer().key]):
        verify(proof, [Key.of(key) for key in keys])


def test_a_witness_that_was_named_must_have_cosigned() -> None:
    cosigned = json.dumps(a_log().proof(TOLD, Signer(), WITNESS)).encode()
    witness = [Key.of(WITNESS.key)]

    assert verify(cosigned, KEYS, witness).checkpoint.signers == (ORIGIN, WITNESS.name)
    with pytest.raises(Refused, match=re.escape("not cosigned by the witness witness.example/w")):
        verify(json.dumps(a_log().proof()).encode(), KEYS, witness)
    with pytest.raises(Refused, match="not signed by the given key"):
        verify(json.dumps(a_log().proof(TOLD, WITNESS)).encode(), KEYS, witness)


# --- What was forged ----------------------------------------------------------------------------------------------


def parts(found: Any, *path: Any) -> Iterator[tuple[Any, ...]]:
    """The paths to everything in a document."""
    if path:
        yield path
    if isinstance(found, dict | list):
        for name in found if isinstance(found, dict) else range(len(found)):
            yield from parts(found[name], *path, name)


def otherwise(value: Any) -> list[Any]:
    """Values like this one, that are not this one."""
    match value:
        case None:
            return [1, "", {}]
        case int():
            return [value + 1, value - 1, str(value), None, True if value != 1 else 2, 2**63, -1]
        case str():
            changed = [value[:-1], value + value[-1], value[:-1] + chr(ord(value[-1]) ^ 1), value.upper(), None, 7, ""]
            return [one for one in changed if one != value]
        case list():
            return [value[1:], value + value[-1:], value[::-1], None] if len(value) > 1 else [None, "", [*value, None]]
        case dict():
            return [None, {}, value | {"more": 1}]
        case _:
            raise TypeError(value)


def at(proof: dict[str, Any], path: tuple[Any, ...]) -> Any:
    for name in path[:-1]:
        proof = proof[name]
    return proof


def test_whatever_is_changed_in_a_proof_is_refused() -> None:
    proof = a_log().proof()
    tried = 0
    for path in parts(proof):
        for value in otherwise(at(proof, path)[path[-1]]):
            forged = copy.deepcopy(proof)
            at(forged, path)[path[-1]] = value
            assert refusal(forged), (path, value)
            tried += 1
    assert tried > 800


def test_whatever_is_taken_out_of_a_proof_is_refused() -> None:
    proof = a_log().proof()
    for path in parts(proof):
        forged = copy.deepcopy(proof)
        del at(forged, path)[path[-1]]
        if path not in (("blocks", 2), ("blocks", 5)):  # the last event of a stream: see the next test
            assert refusal(forged), path


def test_a_proof_that_ends_earlier_holds_and_says_that_it_does_not_show_what_came_later() -> None:
    proof = a_log().proof()
    proof["blocks"].pop()
    assert "Whether anything was recorded later, this file cannot show." in [*describe(checked(proof))]


def change_of_event(**changed: Any) -> Change:
    return lambda proof: proof["blocks"][0]["events"][0].update(changed)


def change_of_block(number: int = 1, **changed: Any) -> Change:
    return lambda proof: proof["blocks"][number].update(changed)


def change_of_note(old: str, new: str) -> Change:
    return lambda proof: proof.update(checkpoint=proof["checkpoint"].replace(old, new))


NOT_IN_LOG = "block 1 (positions 2 to 4) is not in the log that was signed"
ZEROS = "0" * 64

FORGERIES: dict[str, tuple[Change, str]] = {
    "another format": (lambda p: p.update(format="other"), "the file is no proof of Registrar's that is known here"),
    "a later version": (lambda p: p.update(version=2), "the file is no proof of Registrar's that is known here"),
    "another registration": (
        lambda p: p.update(registration_id=str(OTHER)), "the event at position 2 is about something else",
    ),
    "no registration": (lambda p: p.update(registration_id="x"), "the registration's id is not a UUID"),
    "no blocks": (lambda p: p.update(blocks=[]), "the file has no blocks"),
    "another name of the log": (change_of_note(ORIGIN + "\n11", "other\n11"), f"the checkpoint is not what {ORIGIN} signed"),
    "another size": (change_of_note("\n11\n", "\n12\n"), f"the checkpoint is not what {ORIGIN} signed"),
    "another position": (change_of_note("position 17", "position 18"), f"the checkpoint is not what {ORIGIN} signed"),
    "another time": (change_of_note("T16", "T17"), f"the checkpoint is not what {ORIGIN} signed"),
    "no signature": (change_of_note("— ", "- "), "the checkpoint has a line that is no signature"),
    "another signer": (change_of_note(f"— {ORIGIN}", "— other"), "the checkpoint is not signed by the given key"),
    "a control character": (change_of_note("\nposition", "\r\nposition"), "the checkpoint is no signed note"),
    "no note": (lambda p: p.update(checkpoint="x"), "the checkpoint is no signed note"),
    "stream": (change_of_event(stream_id=str(OTHER)), NOT_IN_LOG),
    "version": (change_of_event(version=2), NOT_IN_LOG),
    "type": (change_of_event(type="registration.email_verified"), NOT_IN_LOG),
    "correlation id": (change_of_event(correlation_id=str(OTHER)), NOT_IN_LOG),
    "cause": (change_of_event(causation_position=1), NOT_IN_LOG),
    "actor": (change_of_event(actor="operator"), NOT_IN_LOG),
    "trace": (change_of_event(trace=""), NOT_IN_LOG),
    "state": (change_of_event(state='{"locale":"de"}'), NOT_IN_LOG),
    "two states": (change_of_event(state_base64=""), "the event at position 2 must have one state"),
    "a broken state": (change_of_event(state="\ud800"), "the state of the event at position 2 is not text"),
    "a digest": (lambda p: p["blocks"][0]["events"].__setitem__(1, ZEROS), NOT_IN_LOG),
    "no digest": (
        lambda p: p["blocks"][0]["events"].__setitem__(1, "x"), "position 3 has no hash of 64 hexadecimal digits",
    ),
    "two events swapped": (lambda p: p["blocks"][0]["events"].reverse(), NOT_IN_LOG),
    "an event more": (lambda p: p["blocks"][0]["events"].append(ZEROS), "block 1 (positions 2 to 5) is not in the log that was signed"),
    "an event less": (lambda p: p["blocks"][0]["events"].pop(), "block 1 (positions 2 to 3) is not in the log that was signed"),
    "time": (change_of_block(0, recorded_at="2026-11-28T15:04:05.928902Z"), NOT_IN_LOG),
    "no time": (
        change_of_block(0, recorded_at="yesterday"),
        "the time of block 1 is not a time such as 2026-11-28T15:04:05.678901Z",
    ),
    "position": (change_of_block(0, first_position=3), "block 1 (positions 3 to 5) is not in the log that was signed"),
    "previous hash": (change_of_block(0, previous_hash=ZEROS), NOT_IN_LOG),
    "another place": (change_of_block(0, index=2), "block 2 (positions 2 to 4) is not in the log that was signed"),
    "a place beyond": (
        change_of_block(0, index=11), "block 11 is not covered by the checkpoint, which has 11 blocks",
    ),
    "audit path": (lambda p: p["blocks"][0]["inclusion"].__setitem__(0, ZEROS), NOT_IN_LOG),
    "a longer path": (lambda p: p["blocks"][0]["inclusion"].append(ZEROS), NOT_IN_LOG),
    "a shorter path": (lambda p: p["blocks"][0]["inclusion"].pop(), NOT_IN_LOG),
    "no path": (change_of_block(0, inclusion=None), "an inclusion proof is not a list"),
    "blocks swapped": (lambda p: p["blocks"].reverse(), "block 7 is out of order"),
    "a block twice": (lambda p: p["blocks"].insert(0, p["blocks"][0]), "block 1 is out of order"),
    "an event left out": (
        lambda p: p["blocks"][0]["events"].__setitem__(2, digest_of(p["blocks"][0]["events"][2]).hex()),
        f"version 2 of stream {TOLD} is left out",
    ),
    "a block left out": (lambda p: p["blocks"].pop(1), f"version 1 of stream {SAGA} is left out"),
    "the beginning left out": (lambda p: p["blocks"].pop(0), f"version 1 of stream {TOLD} is left out"),
    "something more": (lambda p: p.update(more=1), "the file has an unknown part"),
    "something less": (lambda p: p["blocks"][0].pop("index"), "a block has no index"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_proof_is_refused_in_its_own_words(name: str) -> None:
    change, says = FORGERIES[name]
    proof = a_log().proof()
    change(proof)
    assert refusal(proof) == says


def test_a_forged_log_with_fresh_hashes_needs_the_key() -> None:
    log = a_log()
    log.blocks[1][0]["state"] = '{"locale":"de"}'
    assert refusal(log.proof(TOLD, ANOTHER)) == "the checkpoint is not signed by the given key"
    assert refusal(log.proof() | {"checkpoint": a_log().checkpoint()}) == NOT_IN_LOG


def test_a_log_that_was_signed_but_does_not_hang_together_is_refused() -> None:
    log = a_log()
    proof = log.proof()
    torn = log.hashes()
    assert proof["blocks"][0]["previous_hash"] == torn[0].hex()
    proof["blocks"][1]["previous_hash"] = ZEROS
    assert "is not in the log" in refusal(proof)
    log.blocks.insert(9, [event(TOLD, 7, "registration.otp_issued", {})])
    assert refusal(log.proof()) == f"version 6 of stream {TOLD} is left out"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "the file is not JSON"),
        (b"\xff", "the file is not JSON"),
        (b"[" * 200_000, "the file is not JSON"),
        (b'{"a":1,"a":1}', "the file is not JSON"),
        (b"[]", "the file is not as it must be"),
        (b"{}", "the file has no format"),
    ],
)
def test_what_is_no_proof_at_all_is_refused(text: bytes, says: str) -> None:
    with pytest.raises(Refused, match=says):
        verify(text, KEYS)


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("registrar", "a key looks like"),
        ("name+00000000+AAAA", "is not whole"),
        (Signer().key[:-4] + "AAA=", "is not whole"),
        ("name+" + sha256(b"name\n\x09key").digest()[:4].hex() + "+CWtleQ==", "of a type that is unknown here"),
    ],
)
def test_a_key_that_is_not_one_is_told_before_anything_is_checked(key: str, says: str) -> None:
    with pytest.raises(Unusable, match=says):
        Key.of(key)


# --- Trees, and what others say of them ---------------------------------------------------------------------------


@settings(max_examples=200)
@given(data=st.data(), size=st.integers(1, 300))
def test_the_way_up_a_tree_is_that_of_others(data: st.DataObject, size: int) -> None:
    leaves = [sha256(number.to_bytes(4, "big")).digest() for number in range(size)]
    index = data.draw(st.integers(0, size - 1))
    path, root = audit_path(index, leaves), tree_root(leaves)

    assert root_of(leaves[index], index, size, path) == root
    metamorphic_log.verify_inclusion(index, size, leaves[index], path, root)
    InclusionProof(index, size, path).check(leaves[index], root)

    elsewhere = data.draw(st.integers(0, size - 1).filter(lambda other: other != index)) if size > 1 else size
    assert elsewhere >= size or root_of(leaves[index], elsewhere, size, path) != root
    assert root_of(leaves[index], index, size, [*path, root]) is None
    if path:
        changed = data.draw(st.integers(0, len(path) - 1))
        assert root_of(leaves[index], index, size, path[:changed] + path[changed + 1 :]) != root
        assert root_of(leaves[index], index, size, [*path[:changed], bytes(32), *path[changed + 1 :]]) != root


def test_others_accept_our_checkpoints() -> None:
    note = a_log().checkpoint()
    head = metamorphic_log.checkpoint_verify(note, [Signer().key])
    found = registrar_verify.open_note(note, KEYS, [])
    assert (head.origin, head.size, head.root) == (found.origin, found.size, found.root)


# --- The command --------------------------------------------------------------------------------------------------


def command(directory: Path, *arguments: str, typed: bytes | None = None) -> tuple[int, str, str]:
    """As an auditor runs it, where nothing but the file and `cryptography` is at hand."""
    program = Path(registrar_verify.__file__)
    (directory / program.name).write_bytes(program.read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "registrar_verify", *arguments],
        cwd=directory,
        input=typed,
        capture_output=True,
        check=False,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_the_command_says_what_it_proves_or_why_not_in_one_line(tmp_path: Path) -> None:
    proof = a_log().proof()
    file = tmp_path / "proof.json"
    file.write_text(json.dumps(proof))
    (tmp_path / "keys").write_text(f"{ANOTHER.key}\n\n{Signer().key}\n")

    code, out, err = command(tmp_path, "proof.json", "--key", "keys")
    assert (code, err) == (0, "")
    assert "somebody asked for an account" in out
    assert command(tmp_path, "-", "--key", Signer().key, typed=file.read_bytes()) == (0, out, "")

    says = "registrar_verify: NOT PROVED: the checkpoint is not signed by the given key.\n"
    assert command(tmp_path, "proof.json", "--key", ANOTHER.key) == (1, "", says)
    assert command(tmp_path, "other.json", "--key", "keys") == (
        2,
        "",
        "registrar_verify: No such file or directory: other.json.\n",
    )
    assert command(tmp_path, "proof.json", "--key", "a+b+c")[0] == 2
    assert command(tmp_path, "proof.json")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "one file and a key are required"),
        (["proof.json"], "one file and a key are required"),
        (["proof.json", "another.json", "--key", "k"], "one file and a key are required"),
        (["proof.json", "--key"], "option --key requires argument"),
        (["proof.json", "--kye", "k"], "option --kye not recognized"),
    ],
)
def test_wrong_usage_is_told_with_the_right_one(tmp_path: Path, arguments: list[str], says: str) -> None:
    usage = "usage: registrar_verify FILE --key KEY [--key KEY …] [--witness KEY …]\n"
    assert command(tmp_path, *arguments) == (2, "", f"{usage}registrar_verify: {says}.\n")
    code, out, err = command(tmp_path, "--help")
    assert (code, out[: len(usage)], err) == (0, usage, "")


def test_the_program_takes_nothing_of_ours() -> None:
    text = Path(registrar_verify.__file__).read_text()
    imported = set(re.findall(r"^\s*(?:from|import) (\w+)", text, re.MULTILINE))
    assert imported - set(sys.stdlib_module_names) == {"cryptography"}
