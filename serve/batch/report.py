"""Reports of a batch: ``report.json`` for programs, ``report.html`` for people."""

from __future__ import annotations

import base64
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

from longtake.engine.media.paths import output_paths
from longtake.errors import EngineError, RequestError
from longtake.files.atomic import write_atomically
from longtake.serve.queue.job_records import JobRecord
from longtake.serve.runner.outputs import filmstrip_path
from longtake.serve.templates import TEMPLATES
from longtake.version import library_versions

REPORTS = ("report.json", "report.html")
_HTML_SIGNATURE = re.compile(rb"longtake \S+ .{1,9}\d+ s of rendering</p>")


def check_reports(folder: Path) -> None:
    """Refuse a folder in which another file has the name of a report.

    Raises:
        RequestError: There is such a file.
    """
    for path in (folder / name for name in REPORTS):
        if reason := _conflict(path):
            raise RequestError(reason)


def _conflict(path: Path) -> str:
    """Why a report cannot be written to a path; empty if it can."""
    if not os.path.lexists(path) or _is_report(path):
        return ""
    return f"{path} exists and is not a report of a batch: move it, or name another folder"


def _is_report(path: Path) -> bool:
    if not path.is_file():
        return False
    content = path.read_bytes()
    if path.suffix == ".html":
        return _HTML_SIGNATURE.search(content) is not None
    try:
        report = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(report, dict) and {"counts", "versions", "shots"} <= report.keys()


def write_report(folder: Path, jobs: Sequence[JobRecord], scratch: Path) -> list[Path]:
    """Write the reports into an output folder.

    Args:
        folder: Output folder.
        jobs: Jobs of the batch, in the order of the shots file.
        scratch: Folder for partial files.

    Returns:
        The paths of the reports.

    Raises:
        EngineError: A report cannot be written. Earlier reports are kept.
    """
    for path in (folder / name for name in REPORTS):
        if reason := _conflict(path):
            raise EngineError(reason)
    rows = [_row(folder, job) for job in jobs]
    counts = Counter(job.state for job in jobs)
    content = {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "counts": dict(counts),
        "seconds": round(sum(sum(job.seconds.values()) for job in jobs), 3),
        "versions": library_versions(),
        "shots": rows,
    }
    as_json, as_html = (folder / name for name in REPORTS)
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_atomically(as_json, text.encode(), partial=scratch / as_json.name)
    pictures = [_picture(folder, job) for job in jobs]
    html = TEMPLATES.get_template("report.html").render(
        **{**content, "shots": list(zip(rows, pictures, strict=True))}
    )
    write_atomically(as_html, html.encode(), partial=scratch / as_html.name)
    return [as_json, as_html]


def _row(folder: Path, job: JobRecord) -> dict[str, Any]:
    request = job.request
    files = [
        str(path.relative_to(folder))
        for path in output_paths(folder / job.output, request.num_videos)
    ]
    return {
        "id": job.id,
        "state": job.state,
        "files": files,
        "links": [quote(each) for each in files],
        "prompt": request.prompt,
        "seed": request.seed,
        "size": f"{request.width}x{request.height}",
        "num_frames": request.num_frames,
        "steps": request.num_inference_steps,
        "attempts": job.claims,
        "seconds": job.seconds,
        "error": job.error,
    }


def _picture(folder: Path, job: JobRecord) -> str:
    """The thumbnails of a job as a data URL, so that the page is one file; empty without any."""
    try:
        content = filmstrip_path(folder, job).read_bytes()
    except OSError:
        return ""
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"
