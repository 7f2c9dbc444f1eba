"""What passwords are compared with: the bare hash, on as many threads as there are cores, in a process of its own."""

from __future__ import annotations

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any, Final

from infrastructure.crypto.argon2id import fastest, memory_kept
from infrastructure.crypto.password_hashing import MEMORY, PASSES

PASSWORD: Final = "correct horse battery"  # noqa: S105 - nobody's

AS_THE_SERVICE: Final = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""Of its environment: memory in huge pages. See `entrypoints.cli.huge_pages`."""


def hash_for(seconds: float, *, kept: bool = False) -> dict[str, float]:
    """Hashes a second, and seconds of CPU for one, with the service's parameters.

    Args:
        kept: whether each thread keeps its memory from one hash to the next, as the service's do.
    """
    derive, salt, password = fastest(), b"0123456789abcdef", PASSWORD.encode()

    def work() -> int:
        done = 0
        with memory_kept(MEMORY) if kept else nullcontext():
            while time.perf_counter() < end:
                derive(password, salt, passes=PASSES, memory=MEMORY)
                done += 1
        return done

    threads = os.cpu_count() or 1
    begun, used = time.perf_counter(), time.process_time()
    end = begun + seconds
    with ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(lambda _: work(), range(threads)))
    return {"rate": done / (time.perf_counter() - begun), "cpu": (time.process_time() - used) / done}


def main(job: dict[str, Any]) -> dict[str, float]:
    return hash_for(**job)


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
