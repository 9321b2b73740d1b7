"""The command line: parses, runs the command, and says how it ended."""

from __future__ import annotations

import importlib
import io
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from longtake.cli.command_line import parsed
from longtake.cli.interrupts import EXIT_STOPPED, Interrupts
from longtake.cli.terminal import view_of
from longtake.configs.engine import EngineConfig
from longtake.errors import EngineError, RefusedInputError, RequestError, Stopped, one_line
from longtake.files.reading import check_regular
from longtake.version import __version__

EXIT_DONE, EXIT_REFUSED, EXIT_FAILED = 0, 2, 3

_LOADING = ("generate", "batch", "serve", "decode", "verify")
"""Commands that load a model."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command in this process, which goes on; see :func:`run`."""
    with Interrupts() as interrupts:
        interrupts.begin(lambda: EngineConfig().stop_timeout_s)
        return run(sys.argv[1:] if arguments is None else arguments, interrupts)


def run(arguments: list[str], interrupts: Interrupts) -> int:
    """Run a command.

    Returns:
        0 done, 1 done and something was found (doctor, verify), 2 refused input, 3 failure, 130
        stopped; of a server, which ends by being stopped, 0.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal need not have all letters
            stream.reconfigure(errors="backslashreplace")
    command, options = parsed(arguments)
    if command == "version":
        print(__version__)
        return EXIT_DONE
    view = view_of(quiet=options["quiet"], as_json=options["json"])
    logging.basicConfig(format="longtake: %(message)s", handlers=[_log_handler()])
    try:
        with view:
            _check_files(command, options)
            module = importlib.import_module(f"longtake.cli.commands.{command}")
            interrupts.begin(lambda: view.stop_timeout_s)
            return module.run(options, view) or EXIT_DONE
    except (KeyboardInterrupt, Stopped):
        if command == "serve":
            view.note("stopped; what was begun goes on the next time")
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
        interrupts.over = True


def _check_files(command: str, options: dict[str, Any]) -> None:
    """Refuse what is no file, and a folder that holds no whole model, before torch is imported,
    which takes seconds."""
    for name in ("config", "latents"):
        path = os.path.expanduser(options.get(name) or "")
        if path and os.path.exists(path):
            try:
                check_regular(Path(path))
            except OSError as error:
                raise RequestError(f"{name}={path!r} cannot be read: {error.strerror}") from error
    model = options.get("model")
    if command in _LOADING and model is not None and os.path.exists(os.path.expanduser(model)):
        from longtake.pipelines import registry
        from longtake.pipelines.checkpoint import Checkpoint

        registry.inspect(Checkpoint.open(model), autoencoder_only=command == "decode")


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


if __name__ == "__main__":
    sys.exit(main())
