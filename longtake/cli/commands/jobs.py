"""longtake jobs: list, show, cancel or retry the jobs of an output folder."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from longtake.cli.table import Table
from longtake.cli.terminal import View, print_line
from longtake.errors import RequestError, did_you_mean
from longtake.serve.queue.job_records import JobRecord
from longtake.serve.queue.job_store import JobStore

_TABLE = Table(
    header=("id", "state", "at", "attempts", "output", "error"),
    shortened=("id", "output"),
    dropped=("output", "attempts", "at"),
    wrapped="error",
)
_ACTIONS = ("list", "show", "cancel", "retry")

_BUSY_S = 5.0


def run(options: dict[str, Any], view: View) -> None:
    """Run the requested action and print its result."""
    action, ids = options["action"], options["ids"]
    folder = Path(os.path.expanduser(options["folder"]))
    if action not in _ACTIONS:
        raise RequestError(
            f"{action[:60]!r} is not one of {', '.join(_ACTIONS)}{did_you_mean(action, _ACTIONS)}"
        )
    if action in ("show", "cancel") and not ids:
        raise RequestError(f"jobs {action} needs ids: see longtake jobs list {folder}")
    if action == "list" and ids:
        raise RequestError(f"jobs list takes no ids: longtake jobs show {folder} {' '.join(ids)}")
    with JobStore(folder, read_only=action in ("list", "show"), busy_s=_BUSY_S) as store:
        if action == "list":
            lines = _list_lines(store.jobs(), options["json"])
        elif action == "show":
            lines = [_describe(store, name, options["json"]) for name in ids]
        elif action == "cancel":
            ended = store.cancel(ids, time.time())
            lines = [
                f"{name} has already ended" if name in ended else f"{name} is cancelled"
                for name in ids
            ]
        else:
            queued = store.retry(ids, time.time())
            lines = [f"{name} is queued; the batch command renders it" for name in queued]
            lines += [f"{name} did not fail" for name in ids if name not in queued]
    for line in lines:
        print_line(line, sys.stdout)


def _list_lines(jobs: list[JobRecord], as_json: bool) -> list[str]:
    if as_json:
        return [json.dumps(_as_json(job)) for job in jobs]
    rows = [
        (
            job.id,
            job.state,
            f"{job.steps_done}/{job.request.num_inference_steps} {job.phase}"
            if job.state == "running"
            else "",
            str(job.claims),
            job.output,
            job.error.partition("\n")[0],
        )
        for job in jobs
    ]
    return list(_TABLE.lines(rows))


def _describe(store: JobStore, name: str, as_json: bool) -> str:
    job, events = store.job(name), store.events(name)
    if as_json:
        return json.dumps({**_as_json(job), "events": [asdict(event) for event in events]})
    lines = [f"{job.id}: {job.state}, {job.output}", f"  prompt    {job.request.prompt}"]
    if job.seconds:
        stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in job.seconds.items())
        lines.append(f"  seconds   {stages}")
    if job.error:
        lines.append("  error     " + job.error.replace("\n", "\n            "))
    for event in events:
        when = datetime.fromtimestamp(event.at).strftime("%Y-%m-%d %H:%M:%S")
        lines.append(f"  {when}  {event.kind:<10} " + event.text.partition("\n")[0])
    return "\n".join(lines)


def _as_json(job: JobRecord) -> dict[str, Any]:
    described = {each.name: getattr(job, each.name) for each in fields(job)}
    owner = job.owner
    return {
        **described,
        "request": job.request.model_dump(mode="json"),
        "owner": None if owner is None else owner.model_dump(),
    }
