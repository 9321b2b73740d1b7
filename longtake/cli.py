"""The command line: parses, runs the command, and says how it ended."""

from __future__ import annotations

import importlib
import logging
import signal
import sys
import traceback
from typing import Any

import longtake
from longtake.errors import EngineError, RefusedInputError, Stopped, one_line
from longtake.options import parsed
from longtake.terminal import view_of

EXIT_DONE, EXIT_REFUSED, EXIT_FAILED, EXIT_STOPPED = 0, 2, 3, 130


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 done, 1 done and something was found (doctor, verify), 2 refused input, 3 failure, 130
        stopped.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup asks for
            signal.signal(number, _interrupt)
    command, options = parsed(sys.argv[1:] if arguments is None else arguments)
    if command == "version":
        print(longtake.__version__)
        return EXIT_DONE
    view = view_of(quiet=options["quiet"], as_json=options["json"])
    logging.basicConfig(format="longtake: %(message)s", handlers=[_log_handler()])
    try:
        with view:
            run = importlib.import_module(f"longtake.commands.{command}").run
            return run(options, view) or EXIT_DONE
    except (KeyboardInterrupt, Stopped):
        left = " ".join(map(str, view.written)) or "nothing"
        return view.failed(f"stopped; {left} was written", "stopped", EXIT_STOPPED)
    except RefusedInputError as error:
        return view.failed(str(error), type(error).__name__, EXIT_REFUSED)
    except EngineError as error:
        return view.failed(str(error), type(error).__name__, EXIT_FAILED)
    except Exception as error:
        traceback.print_exc()
        return view.failed(one_line(error), type(error).__name__, EXIT_FAILED)


def _log_handler() -> logging.Handler:
    """Shows warnings of longtake itself, and of the loops that it runs in what they cannot handle.
    Other libraries do not speak for the product."""
    handler = logging.StreamHandler()
    handler.addFilter(
        lambda record: (
            record.name.startswith("longtake.")
            or (record.name.startswith(("asyncio", "uvicorn")) and record.levelno >= logging.ERROR)
        )
    )
    return handler


class _Terminated(KeyboardInterrupt):
    """The command was told to end by a signal that is not Ctrl-C; see :class:`Stopped`."""

    terminated = True


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt if number == signal.SIGINT else _Terminated


if __name__ == "__main__":
    sys.exit(main())
