"""longtake download: download the files of a model that are read."""

from __future__ import annotations

import json
import sys
from typing import Any

from longtake.cli.settings import given_values
from longtake.cli.terminal import View, print_line
from longtake.configs.engine import EngineConfig
from longtake.engine.tools.download import Download
from longtake.files.sizes import format_bytes


def run(options: dict[str, Any], view: View) -> None:
    """Download a model, or print what would be downloaded."""
    values = given_values(options)
    dry_run = values.pop("dry_run")
    planned = Download.plan(EngineConfig(**values))
    missing = planned.missing
    if dry_run:
        view.close()
        if options["json"]:
            print_line(json.dumps(_as_json(planned), indent=1), sys.stdout)
        elif not options["quiet"]:
            for file in planned.files:
                print_line(f"{format_bytes(file.num_bytes):>10}  {file.name}", sys.stdout)
            print_line(_summary(planned), sys.stdout)
        return
    view.note(_summary(planned))
    planned.run(view.progress, view.warn)
    counts = f"{len(planned.files)} files checked, {len(missing)} downloaded"
    view.note(f"{values['model']} is complete: {counts}")


def _summary(planned: Download) -> str:
    checkpoint, missing = planned.checkpoint, planned.missing
    if not planned.files:
        return f"{checkpoint.model} is in {checkpoint.folder}: there is nothing to download"
    to_come = sum(file.num_bytes for file in missing)
    return (
        f"{checkpoint.repository} at {str(checkpoint.revision)[:12]}: "
        f"{format_bytes(planned.num_bytes)} in {len(planned.files)} files are read, of which "
        f"{format_bytes(to_come)} in {len(missing)} files are to be downloaded"
    )


def _as_json(planned: Download) -> dict[str, Any]:
    missing = {file.name for file in planned.missing}
    return {
        "model": planned.checkpoint.model,
        "repository": planned.checkpoint.repository,
        "revision": planned.checkpoint.revision,
        "folder": str(planned.checkpoint.folder),
        "num_bytes": planned.num_bytes,
        "missing_bytes": sum(file.num_bytes for file in planned.missing),
        "files": [
            {"name": file.name, "num_bytes": file.num_bytes, "missing": file.name in missing}
            for file in planned.files
        ],
    }
