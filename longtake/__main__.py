"""The command's way in and out: signals are taken before libraries are imported, which stay off the
terminal, and nothing runs after the command's last line."""

from __future__ import annotations

import os
import signal
import sys
import warnings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

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


def main() -> NoReturn:
    """Run the command, and end with its exit code (see :func:`longtake.cli.main.run`)."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from longtake.cli.interrupts import EXIT_STOPPED, Interrupts

    serves = sys.argv[1:2] == ["serve"]
    interrupts = Interrupts(exit_code=0 if serves else EXIT_STOPPED).__enter__()
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    try:
        from longtake.cli import main as cli

        code = cli.run(sys.argv[1:], interrupts)
    except KeyboardInterrupt:
        code = interrupts.exit_code
    from longtake.engine.launch.torchrun import TorchrunPlace

    if TorchrunPlace.given():
        sys.exit(code)  # of torchrun: gloo aborts a rank that leaves while another is gone already
    # At the interpreter's own end a thread in a library's C++ code would abort the process.
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass  # nobody reads it
    os._exit(code)


if __name__ == "__main__":
    main()
