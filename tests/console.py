"""A process that runs commands of longtake one after the other, with packages on its path."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).parents[1]


class Console:
    """A process that runs commands, whose ranks it forks. Used as a context.

    Args:
        site: A folder of installed packages.
    """

    def __init__(self, site: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.console"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(site),
        )

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *error: object) -> None:
        with self._process as process:
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(timeout=30) == 0

    def run(self, *words: object) -> tuple[int, str, str]:
        """Run a command; returns exit code, stdout, stderr."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps([str(word) for word in words]), file=self._process.stdin, flush=True)
        code, out, err = json.loads(self._process.stdout.readline())
        return code, out, err


def environment(site: Path) -> dict[str, str]:
    """The environment of a process in which the packages of a folder are installed."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}


def _run(words: list[str]) -> tuple[int | str | None, str, str]:
    from longtake.cli import main as cli

    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        try:
            code: int | str | None = cli.main(words)
        except SystemExit as ended:  # --help
            code = ended.code
    return code, out.getvalue(), err.getvalue()


def main() -> None:
    """Run the commands on stdin, one a line, with their results on stdout."""
    from longtake.engine.launch import rank_processes
    from tests import forked_ranks

    forked_ranks.PRELOADED[-1] = "longtake.pipelines.family"  # those of longtake import for long
    answers = os.fdopen(os.dup(1), "w")
    with patch.object(rank_processes, "start_processes", forked_ranks.start_processes):
        for line in sys.stdin:
            print(json.dumps(_run(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
