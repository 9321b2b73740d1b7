"""What ``longtake plan`` prints, for tests."""

from __future__ import annotations

import json
from typing import Any

import pytest

from longtake.cli import main as cli


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """The plan that ``--json`` prints."""
    capsys.readouterr()
    assert cli.main(["plan", "--json", *arguments]) == 0
    described: dict[str, Any] = json.loads(capsys.readouterr().out)
    return described


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The error line of a command that exits with 2."""
    capsys.readouterr()
    try:
        code = cli.main(["plan", *arguments])
    except SystemExit as end:
        code = int(str(end.code))
    assert code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line
