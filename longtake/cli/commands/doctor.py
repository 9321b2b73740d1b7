"""longtake doctor: check this machine and report problems."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from longtake.cli.settings import engine_config, given_values, pop_fields
from longtake.cli.terminal import View, print_line
from longtake.configs.commands.tools import DoctorConfig
from longtake.engine.tools.doctor import CheckContext, Finding, Status, examine, worst
from longtake.engine.torchrun import TorchrunEnvironment

_EXIT_CODES: dict[Status, int] = {"ok": 0, "warning": 1, "failure": 3}
_STYLES: dict[Status, str] = {"ok": "green", "warning": "yellow", "failure": "bold red"}
_UNLIMITED_WIDTH = 10_000
"""Width where the output is not a terminal: one line per finding."""


def run(options: dict[str, Any], view: View) -> int:
    """Run all checks and print a line for each.

    Returns:
        0 if all is well, 1 if something could be better, 3 if something will fail.
    """
    values = given_values(options)
    context = CheckContext(DoctorConfig(**pop_fields(values, DoctorConfig)), engine_config(values))
    if not TorchrunEnvironment.is_writer():
        return _EXIT_CODES["ok"]
    view.close()  # a progress bar would capture what is printed
    if options["json"]:
        with contextlib.redirect_stdout(sys.stderr):  # libraries may print; stdout is one object
            findings = list(examine(context))
        described = [asdict(finding) for finding in findings]
        print_line(json.dumps({"status": worst(findings), "findings": described}), sys.stdout)
        return _EXIT_CODES[worst(findings)]
    console = Console() if sys.stdout.isatty() else Console(width=_UNLIMITED_WIDTH)
    findings = []
    for finding in examine(context):
        findings.append(finding)
        if finding.status != "ok" or not options["quiet"]:
            for line in _lines(finding, console):
                print_line(line, sys.stdout)
    return _EXIT_CODES[worst(findings)]


def _lines(finding: Finding, console: Console) -> list[str]:
    """A finding in three columns with the remedy below; a terminal adds colours and breaks."""
    row = Table.grid(padding=(0, 2))
    for width in (len("failure"), len("kernel sdpa-efficient"), None):
        row.add_column(width=width, overflow="fold")
    style = _STYLES[finding.status]
    row.add_row(Text(finding.status, style=style), Text(finding.name), Text(finding.message))
    if finding.way_out:
        row.add_row("", "", Text(f"-> {finding.way_out}"))
    with console.capture() as captured:
        console.print(row)
    return [line.rstrip() for line in captured.get().splitlines()]
