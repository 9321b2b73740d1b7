"""longtake batch --dry-run: list the shots and their predicted durations."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from longtake.cli.table import Table
from longtake.cli.terminal import format_duration, print_line
from longtake.engine.planning.layout_chooser import LayoutChooser
from longtake.serve.batch.shot_checker import Shot

_TABLE = Table(("id", "output", "size", "frames", "about"), ("id", "output"), ("output",))
_CHUNK = 1000
"""Number of lines printed at once."""


class PlannedShot(NamedTuple):
    """The printable part of a shot, kept small because a file may have very many.

    Attributes:
        cells: Cells of the row in the table.
        seconds: Predicted duration in seconds, without loading the model.
        event: The shot as JSON; empty if not requested.
    """

    cells: tuple[str, ...]
    seconds: float
    event: str


def plan_shots(
    shots: Iterable[Shot], layouts: LayoutChooser, *, as_json: bool
) -> list[PlannedShot]:
    """Predict the duration of each shot."""
    found = []
    for shot in shots:
        request, seconds = shot.request, layouts.predicted(shot.request).rendering_s
        size, frames = f"{request.width}x{request.height}", str(request.num_frames)
        cells = shot.id, shot.output, *map(sys.intern, (size, frames, format_duration(seconds)))
        found.append(PlannedShot(cells, seconds, _event(shot, seconds) if as_json else ""))
    return found


def show(shots: Sequence[PlannedShot], replicas: int, *, quiet: bool, as_json: bool) -> None:
    """Print the predictions and the total duration."""
    if as_json:
        _print_all(each.event for each in shots)
    elif not quiet:
        _print_all(_TABLE.lines([each.cells for each in shots]))
        total = sum(each.seconds for each in shots) / min(replicas, len(shots))
        count = f"{len(shots)} shot{'s' if len(shots) != 1 else ''}"
        print_line(f"{count}, about {format_duration(total)} once the model is loaded", sys.stdout)


def _event(shot: Shot, seconds: float) -> str:
    values = {"id": shot.id, "output": shot.output, "seconds": seconds}
    return json.dumps(
        {"event": "planned", **values, "request": shot.request.model_dump(mode="json")}
    )


def _print_all(lines: Iterable[str]) -> None:
    chunk: list[str] = []
    for line in lines:
        chunk.append(line)
        if len(chunk) >= _CHUNK:
            print_line("\n".join(chunk), sys.stdout)
            chunk.clear()
    if chunk:
        print_line("\n".join(chunk), sys.stdout)
