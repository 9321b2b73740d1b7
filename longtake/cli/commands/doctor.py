"""longtake doctor: what this machine has for rendering, and what is amiss."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from longtake.cli.settings import engine_config, flags
from longtake.cli.terminal import View, say
from longtake.configs.tools import DoctorConfig
from longtake.engine.launch.torchrun import TorchrunPlace
from longtake.engine.tools.doctor import Asked, Finding, Status, examine, worst

EXIT_CODES: dict[Status, int] = {"ok": 0, "warning": 1, "failure": 3}
_STYLES: dict[Status, str] = {"ok": "green", "warning": "yellow", "failure": "bold red"}
_WIDE = 10_000


def run(options: dict[str, Any], view: View) -> int:
    """Say what is found. Returns 0 if all is well, 1 if something might be better, 3 if something
    will fail."""
    values = flags(options)
    own = {name: values.pop(name) for name in list(values) if name in DoctorConfig.model_fields}
    asked = Asked(DoctorConfig(**own), engine_config(values))
    if not TorchrunPlace.writes():
        return EXIT_CODES["ok"]
    view.close()  # a bar would take what is printed for itself
    if options["json"]:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for one object and nothing else
            findings = list(examine(asked))
        told = [asdict(finding) for finding in findings]
        say(json.dumps({"status": worst(findings), "findings": told}), sys.stdout)
        return EXIT_CODES[worst(findings)]
    console = Console() if sys.stdout.isatty() else Console(width=_WIDE)
    findings = []
    for finding in examine(asked):
        findings.append(finding)
        if finding.status != "ok" or not options["quiet"]:
            for line in _lines(finding, console):
                say(line, sys.stdout)
    return EXIT_CODES[worst(findings)]


def _lines(finding: Finding, console: Console) -> list[str]:
    """A finding in three columns, and its way out below; colours and breaks on a terminal alone."""
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
