"""Run `registrar` with the least that argon2id can be asked for: `python -m bench.least_hashing serve …`.

Everything else of a request with a password can then be measured to the microsecond, which 10 ms of hashing hide.
"""

from __future__ import annotations

import sys
from unittest.mock import patch

from entrypoints.cli.main import run
from infrastructure.crypto import password_hashing

if __name__ == "__main__":
    with patch.multiple(password_hashing, MEMORY=8 * 1024, PASSES=1):  # libsodium takes no less
        sys.exit(run(sys.argv[1:]))
