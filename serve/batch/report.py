"""What became of a batch: a table for programs, and a page to look at."""

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

from longtake.engine.media.output_files import output_paths
from longtake.errors import EngineError, RequestError
from longtake.files.atomic import write_atomically
from longtake.serve.queue.job_records import JobRecord
from longtake.serve.runner.outputs import filmstrip_path
from longtake.serve.templates import TEMPLATES
from longtake.version import library_versions

REPORTS = ("report.json", "report.html")
_IN_A_REPORT = re.compile(rb"longtake \S+ .{1,9}\d+ s of rendering</p>")


def check_reports(folder: Path) -> None:
    """Refuse a folder where something else stands under the names of the reports.

    Raises:
        RequestError: something does.
    """
    for path in (folder / name for name in REPORTS):
        if reason := _other_at(path):
            raise RequestError(reason)


def _other_at(path: Path) -> str:
    """What stands at a report's name and is none of longtake's, in words; else empty."""
    if not os.path.lexists(path) or _is_report(path):
        return ""
    return f"{path} is there, and is no report of a batch: move it, or name another folder"


def _is_report(path: Path) -> bool:
    if not path.is_file():
        return False
    content = path.read_bytes()
    if path.suffix == ".html":
        return _IN_A_REPORT.search(content) is not None
    try:
        told = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(told, dict) and {"counts", "versions", "shots"} <= told.keys()


def write_report(folder: Path, jobs: Sequence[JobRecord], scratch: Path) -> list[Path]:
    """Write ``report.json`` and ``report.html`` into a folder.

    Args:
        scratch: folder for files that are not whole.

    Raises:
        EngineError: they cannot be written; earlier ones are still there.
    """
    for path in (folder / name for name in REPORTS):
        if reason := _other_at(path):
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
    """Its thumbnails, within the page, which then is one file."""
    try:
        content = filmstrip_path(folder, job).read_bytes()
    except OSError:
        return ""
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"
