"""Runs one command: parses its options, calls its module, and maps exceptions to exit codes."""

from __future__ import annotations

import importlib
import io
import logging
import sys
import traceback

from longtake.cli.command_line import parse
from longtake.cli.interrupts import EXIT_STOPPED, Interrupts
from longtake.cli.terminal import make_view
from longtake.configs.engine import EngineConfig
from longtake.errors import EngineError, RefusedInputError, Stopped, one_line
from longtake.version import __version__

EXIT_DONE, EXIT_REFUSED, EXIT_FAILED = 0, 2, 3


def main(arguments: list[str] | None = None) -> int:
    """Run a command without ending the process; see :func:`run`.

    Args:
        arguments: Words of the command line; those of the process if None.
    """
    with Interrupts() as interrupts:
        interrupts.begin(lambda: EngineConfig().stop_timeout_s)
        return run(sys.argv[1:] if arguments is None else arguments, interrupts)


def run(arguments: list[str], interrupts: Interrupts) -> int:
    """Run a command.

    Args:
        arguments: Words of the command line.
        interrupts: The installed signal handlers.

    Returns:
        The exit code: 0 success; 1 success with findings (doctor, verify) or unfinished jobs
        (batch); 2 invalid input; 3 failure; 130 stopped by a signal, which is 0 for serve.

    Raises:
        SystemExit: Help was printed, or the words are no command; see :func:`parse`.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # its encoding may lack characters
            stream.reconfigure(errors="backslashreplace")
    command, options = parse(arguments)
    if command == "version":
        print(__version__)
        return EXIT_DONE
    view = make_view(quiet=options["quiet"], as_json=options["json"])
    logging.basicConfig(format="longtake: %(message)s", handlers=[_log_handler()])
    try:
        with view:
            module = importlib.import_module(f"longtake.cli.commands.{command}")
            interrupts.begin(lambda: view.stop_timeout_s)
            return module.run(options, view) or EXIT_DONE
    except (KeyboardInterrupt, Stopped):
        if command == "serve":
            view.note("stopped; unfinished videos continue at the next start")
            return EXIT_DONE
        left = " ".join(map(str, view.written)) or "nothing"
        return view.failed(f"stopped; {left} was written", "stopped", EXIT_STOPPED)
    except RefusedInputError as error:
        return view.failed(str(error), type(error).__name__, EXIT_REFUSED)
    except EngineError as error:
        return view.failed(str(error), type(error).__name__, EXIT_FAILED)
    except Exception as error:
        traceback.print_exc()
        return view.failed(one_line(error), type(error).__name__, EXIT_FAILED)
    finally:
        interrupts.finished = True


def _log_handler() -> logging.Handler:
    """Shows warnings of longtake, and errors of the event loop and of uvicorn; other libraries are
    muted."""
    handler = logging.StreamHandler()
    handler.addFilter(
        lambda record: (
            record.name.startswith("longtake.")
            or (record.name.startswith(("asyncio", "uvicorn")) and record.levelno >= logging.ERROR)
        )
    )
    return handler
