"""Check a proof that `registrar audit prove` wrote: without a database, without a network, without trusting Registrar.

    python -m registrar_verify proof.json --key 'registrar/64b1…+1a2b3c4d+AU3…'

Exit code 0: the proof holds. 1: it does not. 2: it was not checked, as the file or the key cannot be used.

It takes Python's standard library and the package `cryptography`, and nothing of Registrar's. Read it from top to
bottom; it is one argument in five steps, each of which a function does:

1. `open_note`       The checkpoint was signed by the key that you trust: at that time the log was a tree of so many
                     blocks with this root hash.
2. `event_digest`    The SHA-256 of an event covers each of its bytes, and who recorded it in which stream and why.
3. `block_hash`      The hash of a block covers the digests of its events, their first position, their time, and the
                     hash of the block before, and so everything before.
4. `root_of`         The block is a leaf of the tree: hashed with the hashes that the proof gives, it makes the root.
5. `check_events`    The events are about this registration, and none is left out of its history in between.

The file is JSON; hashes are in hexadecimal, events about other registrations are given only by their digest:

    {"format": "registrar proof", "version": 1,
     "registration_id": "0190…",
     "checkpoint": "registrar/64b1…\\n1234\\n…",        a C2SP signed note, see `open_note`
     "blocks": [{
         "index": 17,                                  its place in the tree, from 0
         "previous_hash": "…",                         of the block before
         "first_position": 40,                         of its first event in the log
         "recorded_at": "2026-11-28T15:04:05.678901Z", the database's time of the commit, of all its events
         "inclusion": ["…", …],                        RFC 6962's audit path, from the leaf to the root
         "events": ["…", {                             each is a digest, or an event about the registration
             "stream_id": "0190…", "version": 1, "type": "registration.user_registered",
             "correlation_id": "…", "causation_position": null, "actor": "client", "trace": null,
             "state": "{…}"}]}]}                       the event's own bytes as UTF-8; otherwise "state_base64"

Personal data in a state is sealed by a key that is in no proof. A proof shows what stands in the log; it cannot show
that nothing was recorded later than its last event: for that, ask for one of a newer checkpoint.
"""

from __future__ import annotations

import base64
import getopt
import json
import re
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


class Refused(Exception):
    """The proof does not hold; the reason in one line."""


class Unusable(Exception):
    """Nothing was checked; the reason in one line."""


# --- 1. The checkpoint: a signed note (https://c2sp.org/signed-note, tlog-checkpoint, tlog-cosignature) ----------

ED25519, COSIGNATURE, ML_DSA_44 = 1, 4, 6


class Checkpoint(NamedTuple):
    """What was signed: the log's name, how many blocks it has, the root of their tree, its last position, and when."""

    text: bytes
    origin: str
    size: int
    root: bytes
    position: int | None = None
    time: str | None = None
    signers: tuple[str, ...] = ()

    @classmethod
    def of(cls, text: str) -> Checkpoint:
        """Three lines, and then lines of a name and a value."""
        lines = text.split("\n")
        if len(lines) < 4 or not lines[0] or re.fullmatch(r"0|[1-9][0-9]{0,18}", lines[1]) is None:
            raise Refused("what is signed is no checkpoint of a log")
        more = dict(line.split(" ", 1) for line in lines[3:] if " " in line)
        position = int(more["position"]) if re.fullmatch(r"[0-9]{1,19}", more.get("position", "")) else None
        root = _base64(lines[2], "the checkpoint's root hash")
        return cls(text.encode(), lines[0], int(lines[1]), root, position, more.get("time"))


class Key(NamedTuple):
    """A public key, written `name+id+base64`; the id is the beginning of the hash of the others."""

    name: str
    id: bytes
    algorithm: int
    public: bytes

    @classmethod
    def of(cls, text: str) -> Key:
        try:
            name, key_id, encoded = text.strip().split("+", 2)
            public = base64.b64decode(encoded, validate=True)
        except ValueError:
            raise Unusable("a key looks like name+1a2b3c4d+base64") from None
        if sha256(name.encode() + b"\n" + public).digest()[:4].hex() != key_id:
            raise Unusable(f"the key {name} is not whole: its id {key_id} does not fit")
        if public[:1] not in (b"\1", b"\4", b"\6") or (public[0] == ML_DSA_44 and _ml_dsa() is None):
            raise Unusable(f"the key {name} is of a type that is unknown here")
        return cls(name, bytes.fromhex(key_id), public[0], public[1:])

    def has_signed(self, checkpoint: Checkpoint, signature: bytes) -> bool:
        """Type 1 signs the text. The others sign the time, too, which stands in the signature's first eight bytes."""
        time = int.from_bytes(signature[:8], "big")
        try:
            if self.algorithm == ED25519:
                Ed25519PublicKey.from_public_bytes(self.public).verify(signature, checkpoint.text)
            elif self.algorithm == COSIGNATURE:
                signed = f"cosignature/v1\ntime {time}\n".encode() + checkpoint.text
                Ed25519PublicKey.from_public_bytes(self.public).verify(signature[8:], signed)
            else:
                name, origin = self.name.encode(), checkpoint.origin.encode()
                signed = b"subtree/v1\n\0" + bytes([len(name)]) + name + signature[:8] + bytes([len(origin)]) + origin
                signed += bytes(8) + checkpoint.size.to_bytes(8, "big") + checkpoint.root
                _ml_dsa().from_public_bytes(self.public).verify(signature[8:], signed)
        except (InvalidSignature, ValueError):
            return False
        return True


def _ml_dsa() -> Any:
    """The class of keys of ML-DSA-44; None if `cryptography` is of an older release, or built without."""
    try:
        from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey  # noqa: PLC0415 - hardly ever used
    except ImportError:
        return None
    return MLDSA44PublicKey


def open_note(note: str, keys: Sequence[Key], witnesses: Sequence[Key]) -> Checkpoint:
    """Check who signed the checkpoint: a text, an empty line, and lines `— name base64(id + signature)`.

    One of the log's keys must have signed it, and each of the witnesses. A signature by another key says nothing.
    """
    text, separator, lines = note.rpartition("\n\n")
    if not separator or not lines.endswith("\n") or re.search(r"[\x00-\x09\x0b-\x1f]", note):
        raise Refused("the checkpoint is no signed note")
    checkpoint, signers = Checkpoint.of(text + "\n"), []
    for line in lines[:-1].split("\n"):
        found = re.fullmatch(r"— (\S+) (\S+)", line)
        if found is None:
            raise Refused("the checkpoint has a line that is no signature")
        blob = _base64(found[2], "a signature of the checkpoint")
        for key in (*keys, *witnesses):
            if (key.name, key.id) == (found[1], blob[:4]):
                if not key.has_signed(checkpoint, blob[4:]):
                    raise Refused(f"the checkpoint is not what {key.name} signed")
                signers.append(key)
    if not any(key in keys for key in signers):
        raise Refused("the checkpoint is not signed by the given key")
    for witness in witnesses:
        if witness not in signers:
            raise Refused(f"the checkpoint is not cosigned by the witness {witness.name}")
    return checkpoint._replace(signers=tuple(dict.fromkeys(key.name for key in signers)))


# --- 2 and 3. Events and blocks ---------------------------------------------------------------------------------


def event_digest(event: dict[str, Any], where: str) -> bytes:
    """Of an event, in this order; a text or a number that may be missing is preceded by its length, -1 if it is."""
    fields = _take(
        event, where, "stream_id", "version", "type", "correlation_id", "causation_position", "actor", "trace"
    )
    cause = fields["causation_position"]
    return sha256(
        _uuid(fields["stream_id"], f"the stream of {where}")
        + _eight(fields["version"], f"the version of {where}")
        + _sized(_text(fields["type"], f"the type of {where}"))
        + _sized(state_of(event, where))
        + _uuid(fields["correlation_id"], f"the correlation id of {where}")
        + _sized(None if cause is None else _eight(cause, f"the cause of {where}"))
        + _sized(_text(fields["actor"], f"the actor of {where}"))
        + _sized(None if fields["trace"] is None else _text(fields["trace"], f"the trace of {where}"))
    ).digest()


def state_of(event: dict[str, Any], where: str) -> bytes:
    """An event's own bytes."""
    if ("state" in event) == ("state_base64" in event):
        raise Refused(f"{where} must have one state")
    if "state" in event:
        return _text(event["state"], f"the state of {where}")
    return _base64(event["state_base64"], f"the state of {where}")


def block_hash(previous: bytes, first_position: int, recorded_at: datetime, digests: Iterable[bytes]) -> bytes:
    """Of a block: over the previous block's, the first position, the time in microseconds since 1970, the digests."""
    microseconds = (recorded_at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    first = _eight(first_position, "a first position")
    return sha256(previous + first + _eight(microseconds, "a time") + b"".join(digests)).digest()


# --- 4. The tree (RFC 6962, 2.1; the way up as in RFC 9162, 2.1.3.2) ----------------------------------------------


def leaf_hash(data: bytes) -> bytes:
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


def root_of(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes | None:
    """The root of a tree of that size if the leaf stands at that index; None if the path is not as long as it must be.

    From level to level either the leaf's tree is the right one of two, and the next hash comes from the left, or the
    left one. The last tree of a level may have no neighbour, and then stands on the next level as it is.
    """
    last = size - 1
    for neighbour in path:
        if last == 0:
            return None
        if index % 2 == 1 or index == last:
            leaf = node_hash(neighbour, leaf)
            while index % 2 == 0 and index > 0:
                index, last = index // 2, last // 2
        else:
            leaf = node_hash(leaf, neighbour)
        index, last = index // 2, last // 2
    return leaf if last == 0 else None


# --- 5. The whole file --------------------------------------------------------------------------------------------


class Proven(NamedTuple):
    """An event of the log: what, when and by whom."""

    position: int
    recorded_at: datetime
    stream_id: str
    version: int
    type: str
    actor: str
    block: int


class Proof(NamedTuple):
    registration_id: str
    checkpoint: Checkpoint
    events: tuple[Proven, ...]


def verify(text: bytes, keys: Sequence[Key], witnesses: Sequence[Key] = ()) -> Proof:
    """Check a proof, with all that it says.

    Raises:
        Refused: anything in it is not as it must be.
    """
    try:
        found = json.loads(text, object_pairs_hook=_no_name_twice)
    except (ValueError, RecursionError):
        raise Refused("the file is not JSON") from None
    proof = _take(found, "the file", "format", "version", "registration_id", "checkpoint", "blocks", nothing_else=True)
    if proof["format"] != "registrar proof" or _number(proof["version"], "the format's version") != 1:
        raise Refused("the file is no proof of Registrar's that is known here")
    _uuid(proof["registration_id"], "the registration's id")
    checkpoint = open_note(_text(proof["checkpoint"], "the checkpoint").decode(), keys, witnesses)
    events: list[Proven] = []
    before: tuple[int, int, bytes] = (-1, 0, sha256(b"").digest())  # what the first block of a log follows
    for block in _list(proof["blocks"], "the file has no blocks"):
        before = _check_block(block, before, checkpoint, proof["registration_id"], events)
    check_events(events, proof["registration_id"])
    return Proof(proof["registration_id"], checkpoint, tuple(events))


def _check_block(
    found: Any, before: tuple[int, int, bytes], checkpoint: Checkpoint, registration_id: str, events: list[Proven]
) -> tuple[int, int, bytes]:
    """Is it a leaf of the tree, behind the one before in the file? Its index, last position and hash."""
    names = ("index", "previous_hash", "first_position", "recorded_at", "inclusion", "events")
    block = _take(found, "a block", *names, nothing_else=True)
    index, first = _number(block["index"], "a block's index"), _number(block["first_position"], "a block's position")
    where = f"block {index}"
    entries = _list(block["events"], f"{where} has no events")
    last, recorded_at = first + len(entries) - 1, _time(block["recorded_at"], f"the time of {where}")
    previous = _hash(block["previous_hash"], f"the previous hash of {where}")
    digests = [
        _hash(entry, f"position {first + place}")
        if isinstance(entry, str)
        else event_digest(entry, f"the event at position {first + place}")
        for place, entry in enumerate(entries)
    ]
    computed = block_hash(previous, first, recorded_at, digests)
    path = [_hash(one, f"the inclusion proof of {where}") for one in _list(block["inclusion"], "", empty=True)]
    if index >= checkpoint.size:
        raise Refused(f"{where} is not covered by the checkpoint, which has {checkpoint.size} blocks")
    if root_of(leaf_hash(computed), index, checkpoint.size, path) != checkpoint.root:
        which = f"position {first}" if first == last else f"positions {first} to {last}"
        raise Refused(f"{where} ({which}) is not in the log that was signed")
    if index <= before[0] or first <= before[1] or (checkpoint.position is not None and last > checkpoint.position):
        raise Refused(f"{where} is out of order")
    if index == before[0] + 1 and (previous, first) != (before[2], before[1] + 1):
        raise Refused(f"{where} does not follow the block before it")
    ours = [(first + place, entry) for place, entry in enumerate(entries) if not isinstance(entry, str)]
    for position, entry in ours:
        if registration_id not in (entry["stream_id"], _named_in(state_of(entry, ""))):
            raise Refused(f"the event at position {position} is about something else")
        named = (entry["stream_id"], entry["version"], entry["type"], entry["actor"])
        events.append(Proven(position, recorded_at, *named, index))
    return index, last, computed


def _named_in(state: bytes) -> str | None:
    """The registration that an event of another stream names."""
    try:
        found = json.loads(state)
    except (ValueError, RecursionError):
        return None
    return found.get("registration_id") if isinstance(found, dict) else None


def check_events(events: Sequence[Proven], registration_id: str) -> None:
    """Is the registration's history, and what was decided about its mail, without a gap, from its beginning?"""
    versions: dict[str, int] = {}
    for event in events:
        if event.type.startswith(("registration.", "mail_saga.")):
            due = versions.get(event.stream_id, 0) + 1
            if event.version != due:
                raise Refused(f"version {due} of stream {event.stream_id} is left out")
            versions[event.stream_id] = due
    if registration_id not in versions:
        raise Refused("there is no event of the registration itself")


# --- What it says ------------------------------------------------------------------------------------------------

IN_WORDS = {
    "email_claim.email_claimed": "the address was given to this registration",
    "email_claim.email_released": "the address was taken from this registration",
    "mail_saga.code_found_dead": "the code was found locked before its mail was sent",
    "mail_saga.end_awaited": "a mail server had the mail; the rest was up to the person",
    "mail_saga.ended": "nothing was left to do",
    "mail_saga.fresh_code_asked": "a new code was asked for, as the old one would have been late",
    "mail_saga.mail_requested": "the mail with the code was requested",
    "mail_saga.reopened": "the registration was taken up again",
    "mail_saga.retry_scheduled": "the mail failed for now and was to be tried again",
    "mail_saga.started": "the service began to look after the registration's mail",
    "mail_saga.undo_decided": "it was decided to undo the registration",
    "operator.acted": "an operator acted, for the reason that is recorded",
    "operator.personal_data_read": "an operator was shown personal data",
    "password_checks.failed": "wrong passwords were offered for the account",
    "registration.account_activated": "the account became active",
    "registration.code_locked": "no tries were left for the code",
    "registration.code_rejected": "a wrong code was given",
    "registration.email_discarded": "an operator gave up on the mail",
    "registration.email_dispatch_failed": "no mail server accepted the mail",
    "registration.email_dispatched": "a mail server accepted the mail",
    "registration.email_bounced": "the mail came back",
    "registration.email_complained": "the mail was marked as unwanted, and the mailbox is sent no more",
    "registration.email_retry_requested": "an operator asked for the mail to be tried again",
    "registration.email_verified": "the person proved that they read mail at the address",
    "registration.email_withheld": "the mail was not sent",
    "registration.otp_issued": "a code was issued",
    "registration.otp_revoked": "the code was revoked",
    "registration.owner_notified": "the owner was told that somebody tried to register the address again",
    "registration.password_rehashed": "the right password was offered, and its hash made stronger",
    "registration.password_set": "the account was given another password",
    "registration.personal_data_erased": "the person's key was destroyed; their data can be read by nobody",
    "registration.registration_cancelled": "the registration was cancelled",
    "registration.registration_superseded": "another registration of the same address proved it first",
    "registration.registration_reopened": "the cancelled registration was revived",
    "registration.user_imported": "an operator took the user over from another system",
    "registration.user_invited": "the user was invited to verify the address",
    "registration.user_registered": "somebody asked for an account",
}


def describe(proof: Proof) -> Iterable[str]:
    """What is proved, in sentences."""
    checkpoint = proof.checkpoint
    when = f" at {_plain(checkpoint.time)}" if checkpoint.time else ""
    upto = f" up to position {checkpoint.position}" if checkpoint.position is not None else ""
    yield f"The log {_plain(checkpoint.origin)} had {checkpoint.size} blocks{upto}{when}; signed: {', '.join(checkpoint.signers)}."
    yield f"In it, exactly as they are in this file, stand {len(proof.events)} events about {proof.registration_id}:"
    yield ""
    for event in proof.events:
        yield f"position {event.position}, {_shown(event.recorded_at)}: {IN_WORDS.get(event.type, 'something that is unknown here')}"
        which = f"{_plain(event.type)}, version {event.version} of stream {event.stream_id}"
        yield f"    {which}, by {_plain(event.actor)}, in block {event.block}"
    yield ""
    yield "Of the registration's own history, and of what was decided about its mail, none is left out before the last."
    yield "Whether anything was recorded later, this file cannot show."


# --- Reading what a stranger wrote ---------------------------------------------------------------------------------


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a name stands twice")
    return dict(pairs)


def _take(found: Any, where: str, *names: str, nothing_else: bool = False) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise Refused(f"{where} is not as it must be")
    for name in names:
        if name not in found:
            raise Refused(f"{where} has no {name}")
    for name in found:
        if name not in names and (nothing_else or name not in ("state", "state_base64")):
            raise Refused(f"{where} has an unknown part")
    return found


def _list(found: Any, says: str, *, empty: bool = False) -> list[Any]:
    if not isinstance(found, list) or (not found and not empty):
        raise Refused(says or "an inclusion proof is not a list")
    return found


def _number(found: Any, what: str) -> int:
    if type(found) is not int or not 0 <= found < 2**63:
        raise Refused(f"{what} is not a number that a log can have")
    return found


def _eight(found: Any, what: str) -> bytes:
    return _number(found, what).to_bytes(8, "big")


def _sized(field: bytes | None) -> bytes:
    return (-1).to_bytes(4, "big", signed=True) if field is None else len(field).to_bytes(4, "big") + field


def _text(found: Any, what: str) -> bytes:
    try:
        if isinstance(found, str):
            return found.encode()
    except UnicodeEncodeError:
        pass
    raise Refused(f"{what} is not text")


def _uuid(found: Any, what: str) -> bytes:
    if not isinstance(found, str) or re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", found) is None:
        raise Refused(f"{what} is not a UUID")
    return bytes.fromhex(found.replace("-", ""))


def _hash(found: Any, what: str) -> bytes:
    if not isinstance(found, str) or re.fullmatch(r"[0-9a-f]{64}", found) is None:
        raise Refused(f"{what} has no hash of 64 hexadecimal digits")
    return bytes.fromhex(found)


def _base64(found: Any, what: str) -> bytes:
    try:
        if (
            isinstance(found, str)
            and base64.b64encode(decoded := base64.b64decode(found, validate=True)).decode() == found
        ):
            return decoded
    except ValueError:
        pass
    raise Refused(f"{what} is not base64")


def _time(found: Any, what: str) -> datetime:
    try:
        if isinstance(found, str) and _shown(time := datetime.fromisoformat(found)) == found:
            return time
    except (ValueError, OverflowError):
        pass
    raise Refused(f"{what} is not a time such as 2026-11-28T15:04:05.678901Z")


def _plain(text: str) -> str:
    """What a terminal shows and does not obey."""
    return text if text.isprintable() else ascii(text)


def _shown(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


# --- The command ---------------------------------------------------------------------------------------------------


_OPTIONS = ["help", "key=", "witness="]
_USAGE = """\
usage: registrar_verify FILE --key KEY [--key KEY …] [--witness KEY …]

Check a proof of Registrar's, offline.

  FILE           what `registrar audit prove` wrote; - is standard input
  --key KEY      the log's public key, or a file that has it
  --witness KEY  a witness that must have cosigned, likewise"""


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        # (argparse would take a tenth of the time.)
        options, files = getopt.gnu_getopt(sys.argv[1:] if arguments is None else arguments, "h", _OPTIONS)
    except getopt.GetoptError as error:
        return _usage(error.msg)
    if {"-h", "--help"} & {name for name, _ in options}:
        print(_USAGE)
        return 0
    given = {which: [value for name, value in options if name == which] for which in ("--key", "--witness")}
    if len(files) != 1 or not given["--key"]:
        return _usage("one file and a key are required")
    try:
        keys = [key for one in given["--key"] for key in _keys(one)]
        witnesses = [key for one in given["--witness"] for key in _keys(one)]
        text = sys.stdin.buffer.read() if files == ["-"] else _read(files[0])
        for line in describe(verify(text, keys, witnesses)):
            print(line)
    except Refused as refused:
        print(f"registrar_verify: NOT PROVED: {refused}.", file=sys.stderr)
        return 1
    except Unusable as unusable:
        print(f"registrar_verify: {unusable}.", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"registrar_verify: {error.strerror}: {error.filename}.", file=sys.stderr)
        return 2
    return 0


def _usage(wrong: str) -> int:
    print(f"{_USAGE.partition(chr(10))[0]}\nregistrar_verify: {wrong}.", file=sys.stderr)
    return 2


def _keys(given: str) -> list[Key]:
    """A key as it is, or those of a file, one a line."""
    if "+" in given:
        return [Key.of(given)]
    return [Key.of(line) for line in _read(given).decode(errors="replace").splitlines() if line.strip()]


def _read(name: str) -> bytes:
    with open(name, "rb") as file:  # noqa: PTH123 - half of the time would be spent on importing pathlib
        return file.read()


if __name__ == "__main__":
    sys.exit(main())
