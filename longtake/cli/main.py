"""Runs one command: parses its options, calls its module, and maps exceptions to exit codes."""

from __future__ import annotations

import importlib
import io
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from longtake.cli.command_line import parse
from longtake.cli.interrupts import EXIT_STOPPED, Interrupts
from longtake.cli.terminal import make_view
from longtake.configs.engine import EngineConfig
from longtake.errors import EngineError, RefusedInputError, RequestError, Stopped, one_line
from longtake.files.reading import check_regular
from longtake.version import __version__

EXIT_DONE, EXIT_REFUSED, EXIT_FAILED = 0, 2, 3

_MODEL_COMMANDS = ("generate", "batch", "serve", "decode", "verify")
"""Commands that load a model's weights."""


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
            _check_files(command, options)
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


def _check_files(command: str, options: dict[str, Any]) -> None:
    """Refuse unreadable files and damaged models before the command spends seconds importing torch.

    The command checks them again when it uses them, with the options of its config file.
    """
    for name in ("config", "latents"):
        path = os.path.expanduser(options.get(name) or "")
        if path and os.path.exists(path):
            try:
                check_regular(Path(path))
            except OSError as error:
                raise RequestError(f"{name}={path!r} cannot be read: {error.strerror}") from error
    model = options.get("model")
    if (
        command in _MODEL_COMMANDS
        and model is not None
        and os.path.exists(os.path.expanduser(model))
    ):
        from longtake.pipelines import registry
        from longtake.pipelines.checkpoint import Checkpoint

        registry.inspect(Checkpoint.open(model), autoencoder_only=command == "decode")


def _log_handler() -> logging.Handler:
    """A handler for warnings of longtake and errors of asyncio and uvicorn. It mutes other
    libraries."""
    handler = logging.StreamHandler()
    handler.addFilter(
        lambda record: (
            record.name.startswith("longtake.")
            or (record.name.startswith(("asyncio", "uvicorn")) and record.levelno >= logging.ERROR)
        )
    )
    return handler
