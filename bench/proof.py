"""What an auditor waits for: the command that checks a proof of a long log, from its start to its end."""

# ruff: noqa: S603 - the program is ours
from __future__ import annotations

import asyncio
import base64
import json
import statistics
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import cryptography

from bench.report import Row
from infrastructure.audit.paths import Tiles, audit_path
from infrastructure.event_store.chain import block_hash
from tests.support.checkpoints import tiles_of
from tests.support.proofs import START, TOLD, Signer, digest_of, event

PROGRAM: Final = Path(__file__).parents[1] / "examples" / "registrar_verify.py"

EVENTS: Final = 10
"""About the registration, each in a block of its own: from its request to the active account."""

OTHERS: Final = 100
"""Events about others in each of these blocks: the appends of a busy service share a transaction."""

MOST_MS: Final = 100.0


def run(*, blocks: int, repetitions: int) -> list[Row]:
    """
    Args:
        blocks: in the log.
    """
    with tempfile.TemporaryDirectory(prefix="registrar-bench-") as directory:
        file = Path(directory) / "proof.json"
        file.write_text(json.dumps(asyncio.run(_proof(blocks))))
        check = ["-m", PROGRAM.stem, str(file), "--key", Signer().key]
        checking = [_milliseconds(check) for _ in range(repetitions)]
        starting = [_milliseconds(["-c", "pass"]) for _ in range(repetitions)]
        size = file.stat().st_size
    checked, started = statistics.median(checking), statistics.median(starting)
    row = Row(
        what=f"offline verification of one proof, of {EVENTS} events in a log of {blocks:,} blocks",
        against="Python's own start",
        ours=f"{checked:.0f} ms",
        other=f"{started:.0f} ms",
        figure=checked,
        unit="ms",
        target=MOST_MS,
        at_least=False,
        details={"milliseconds": checking, "start_milliseconds": starting, "bytes": size},
    )
    return [row]


async def _proof(blocks: int) -> dict[str, Any]:
    leaves = [sha256(number.to_bytes(8, "big")).digest() for number in range(blocks)]
    parts: list[dict[str, Any]] = []
    for version in range(1, EVENTS + 1):
        about = event(TOLD, version, "registration.otp_issued", {"serial": version, "reason": "asked" * 20})
        entries: list[Any] = [*(sha256(bytes([version, number])).hexdigest() for number in range(OTHERS)), about]
        index = version * blocks // (EVENTS + 1)
        digests = [bytes.fromhex(one) if isinstance(one, str) else digest_of(one) for one in entries]
        first = 1 + index * (OTHERS + 1)
        previous = sha256(f"{index}".encode()).digest()
        leaves[index] = sha256(b"\0" + block_hash(previous, first, START, digests)).digest()
        parts.append(
            {
                "index": index,
                "previous_hash": previous.hex(),
                "first_position": first,
                "recorded_at": START.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
                "inclusion": [],
                "events": entries,
            }
        )
    found = tiles_of(leaves)

    async def read(level: int, index: int) -> bytes:
        return found[level, index]

    tiles = Tiles(read)
    for part in parts:
        part["inclusion"] = [one.hex() for one in await audit_path(tiles, part["index"], blocks)]
    text = f"registrar/bench\n{blocks}\n{base64.b64encode(await tiles.root(0, blocks)).decode()}\n"
    checkpoint = f"{text}\n{Signer().line(text)}"
    return {
        "format": "registrar proof",
        "version": 1,
        "registration_id": str(TOLD),
        "checkpoint": checkpoint,
        "blocks": parts,
    }


def _milliseconds(arguments: list[str]) -> float:
    """Of a Python that has `cryptography` and nothing of ours, as an auditor's has."""
    packages = Path(cryptography.__file__).parents[1]
    began = time.perf_counter()
    command = [sys.executable, "-S", *arguments]
    environment = {"PYTHONPATH": str(packages)}
    subprocess.run(command, cwd=PROGRAM.parent, env=environment, stdout=subprocess.DEVNULL, check=True)
    return (time.perf_counter() - began) * 1000
