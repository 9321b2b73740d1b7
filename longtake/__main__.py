"""The command's way in: Ctrl-C ends it quietly even while libraries are being imported, and they
stay off the terminal."""

from __future__ import annotations

import os
import signal
import sys
import warnings

_QUIET = {
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TRANSFORMERS_VERBOSITY": "critical",
    "DIFFUSERS_VERBOSITY": "critical",
    "HF_HUB_VERBOSITY": "critical",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",  # else it warns of forks
    "PYTHONWARNINGS": "ignore",
}
"""What libraries read before they speak, in this process and in those that it starts."""


def main() -> int:
    """Run the command; returns its exit code (see :func:`longtake.cli.main`)."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    from longtake import cli

    signal.signal(signal.SIGINT, before)
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
