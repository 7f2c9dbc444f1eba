#!/usr/bin/env bash
# tlog-scales 0.0.3, cryptography 50.0.2 (which it needs for ML-DSA).
#
# A checkpoint of a transparency log (C2SP tlog-checkpoint) has three lines, origin, size and root, and may have extension
# lines before the blank line. The library's Checkpoint takes the fourth line for the blank one and those behind it for
# signatures, so a checkpoint with extension lines, signed as the specification says, raises a ValueError, and the class has
# no place for what a signature over them covers. The same checkpoint without them is read and verified. A log that puts a
# time or a position into its checkpoints cannot be read with it.
#
# Seen:
#   three lines: verified
#   with two extension lines: ValueError
set -euo pipefail
source "$(dirname "$0")/support/common.sh"
install tlog-scales==0.0.3 cryptography==50.0.2
python <<'PYTHON'
import base64
import hashlib
import sys

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tlog_scales.signing import Vkey
from tlog_scales.tlog import Checkpoint

NAME = "example.com/log"
key = Ed25519PrivateKey.generate()
public = b"\x01" + key.public_key().public_bytes_raw()
key_id = hashlib.sha256(NAME.encode() + b"\n" + public).digest()[:4]
vkey = Vkey.from_string(f"{NAME}+{key_id.hex()}+{base64.b64encode(public).decode()}")


def note(*extension):
    root = base64.b64encode(bytes(32)).decode()
    text = "".join(f"{line}\n" for line in (NAME, "7", root, *extension))
    signature = base64.b64encode(key_id + key.sign(text.encode())).decode()
    return f"{text}\n— {NAME} {signature}\n"


def outcome(text):
    try:
        checkpoint = Checkpoint.from_text(text)
        vkey.get_verifier().verify_note(checkpoint.signatures[0], checkpoint)
    except Exception as error:
        return type(error).__name__
    return "verified"


plain = outcome(note())
extended = outcome(note("position 9", "time 2026-01-01T00:00:00Z"))
print(f"three lines: {plain}")
print(f"with two extension lines: {extended}")
sys.exit(0 if (plain, extended) == ("verified", "ValueError") else 1)
PYTHON
