"""The console script `registrar`, which can be stopped from its first line on.

Loading the commands takes a tenth of a second and more, and they install handlers of signals later still. Until then
SIGTERM's default action applies, which the kernel withholds from the first process of a container: there a stop that
comes early would be lost, and the container be killed when its patience is over.
"""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Run the command line and exit with its code."""
    signal.signal(signal.SIGTERM, _end)
    try:
        # Not before the handler is installed: this is what takes its time.
        from entrypoints.cli.huge_pages import begin_with_huge_pages  # noqa: PLC0415

        begin_with_huge_pages(sys.argv[1:])
        from entrypoints.cli.garbage_collection import collect_nothing_yet, collect_rarely  # noqa: PLC0415
        from entrypoints.cli.streams import secure_standard_streams  # noqa: PLC0415

        collect_nothing_yet()
        collect_rarely()
        secure_standard_streams()
        from entrypoints.cli.main import run  # noqa: PLC0415

        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def _end(number: int, _: object) -> None:
    """Die of the signal, which shells and supervisors show as 143; nothing has been begun."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # the first process of a container survives that
