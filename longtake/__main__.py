"""Entry point of the ``longtake`` command.

Installs signal handlers before the slow imports, silences libraries, and ends the process without
running exit handlers.
"""

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
    "TOKENIZERS_PARALLELISM": "false",  # otherwise it warns about forks
    "PYTHONWARNINGS": "ignore",
}
"""Environment variables that silence libraries, in this process and its children."""


def main() -> NoReturn:
    """Run the command and exit with its code; see :func:`longtake.cli.main.run`."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback while importing
    from longtake.cli.interrupts import EXIT_STOPPED, Interrupts

    is_server = sys.argv[1:2] == ["serve"]
    interrupts = Interrupts(exit_code=0 if is_server else EXIT_STOPPED).__enter__()
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    from longtake.errors import ModelError

    try:
        from longtake.cli import main as cli

        code = cli.run(sys.argv[1:], interrupts)
    except KeyboardInterrupt:
        code = interrupts.exit_code
    except ModelError as error:  # of model families, whose options are read while importing
        print(f"longtake: {error}", file=sys.stderr)
        code = 2
    from longtake.engine.torchrun import TorchrunEnvironment

    if TorchrunEnvironment.is_set():
        sys.exit(code)  # with os._exit, gloo aborts if another rank has left already
    # Skip interpreter shutdown: threads in C++ code of libraries can abort the process then.
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass  # the reader is gone
    os._exit(code)


if __name__ == "__main__":
    main()
