"""python -m tests.simulation --seeds 2000        a range of seeds, the failures with how to replay them
python -m tests.simulation --seed 17 --trace     one seed, with every step that can be seen from outside
"""

from __future__ import annotations

import argparse
import sys

from tests.simulation.report import run_all


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=2000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first one")
    parser.add_argument("--seed", type=int, help="this one only")
    parser.add_argument("--trace", action="store_true", help="print every step")
    parser.add_argument("--stop-after", type=int, default=5, help="failures after which to stop")
    arguments = parser.parse_args()
    first, number = (arguments.first, arguments.seeds) if arguments.seed is None else (arguments.seed, 1)
    seeds = range(first, first + number)
    return 1 if run_all(seeds, trace=arguments.trace, stop_after=arguments.stop_after) else 0


if __name__ == "__main__":
    sys.exit(main())
