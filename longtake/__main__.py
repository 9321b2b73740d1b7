"""The command's way in: Ctrl-C ends it quietly even while libraries are being imported."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Run the command; returns its exit code (see :func:`longtake.cli.main`)."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from longtake import cli

    signal.signal(signal.SIGINT, before)
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
