"""python -m tests.fuzz --minutes 10             as long as you like, from a seed that it prints
python -m tests.fuzz --minutes 10 --seed 17   the same again
"""

from __future__ import annotations

import argparse
import secrets
import sys

from tests.fuzz.running import fuzz, running


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10, help="how long")
    parser.add_argument("--seed", type=int, default=None, help="of the generated requests")
    arguments = parser.parse_args()
    seed = secrets.randbelow(2**32) if arguments.seed is None else arguments.seed
    print(f"seed {seed}")
    with running() as service:
        done = fuzz(service, "--seed", str(seed), "--max-time", f"{max(1, round(arguments.minutes * 60))}")
        faults = service.faults()
    print(done.stdout, done.stderr, *faults, sep="\n")
    return 1 if done.returncode or faults else 0


if __name__ == "__main__":
    sys.exit(main())
