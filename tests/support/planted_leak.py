"""Run `registrar` so that it works longer for a known address: `python -m tests.support.planted_leak 200 -- serve`.

By so many microseconds of CPU, in the decision what a registration becomes; 0: as it is.
"""

from __future__ import annotations

import sys
import time
from typing import Any
from unittest.mock import patch

from application import handlers
from domain.sign_up import SignUp, sign_up
from entrypoints.cli.main import run


def main(arguments: list[str]) -> int:
    microseconds, dashes, *command = arguments
    assert dashes == "--"
    leak = int(microseconds) * 1000

    def decide(*, mailbox: Any, **known: Any) -> SignUp:
        end = time.thread_time_ns() + (0 if mailbox is None else leak)
        while time.thread_time_ns() < end:
            pass
        return sign_up(mailbox=mailbox, **known)

    with patch.object(handlers, "sign_up", decide):
        return run(command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
