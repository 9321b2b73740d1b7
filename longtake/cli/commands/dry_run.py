"""What longtake batch --dry-run shows: every shot, and how long it takes by the plan."""

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
_AT_A_TIME = 1000
"""Lines that are printed together."""


class Planned(NamedTuple):
    """What is kept of a shot, of which there may be many.

    Attributes:
        cells: of its row in the table.
        seconds: that it takes by the plan, once the model is loaded.
        event: in JSON; empty if that is not asked for.
    """

    cells: tuple[str, ...]
    seconds: float
    event: str


def planned(shots: Iterable[Shot], layouts: LayoutChooser, *, as_json: bool) -> list[Planned]:
    """The plan of each shot."""
    found = []
    for shot in shots:
        request, seconds = shot.request, layouts.predicted(shot.request).rendering_s
        size, frames = f"{request.width}x{request.height}", str(request.num_frames)
        cells = shot.id, shot.output, *map(sys.intern, (size, frames, format_duration(seconds)))
        found.append(Planned(cells, seconds, _event(shot, seconds) if as_json else ""))
    return found


def show(shots: Sequence[Planned], replicas: int, *, quiet: bool, as_json: bool) -> None:
    """Print the plan of each shot, and what they take together."""
    if as_json:
        _say_all(each.event for each in shots)
    elif not quiet:
        _say_all(_TABLE.lines([each.cells for each in shots]))
        total = sum(each.seconds for each in shots) / min(replicas, len(shots))
        count = f"{len(shots)} shot{'s' if len(shots) != 1 else ''}"
        print_line(f"{count}, about {format_duration(total)} once the model is loaded", sys.stdout)


def _event(shot: Shot, seconds: float) -> str:
    told = {"id": shot.id, "output": shot.output, "seconds": seconds}
    return json.dumps({"event": "planned", **told, "request": shot.request.model_dump(mode="json")})


def _say_all(lines: Iterable[str]) -> None:
    held: list[str] = []
    for line in lines:
        held.append(line)
        if len(held) >= _AT_A_TIME:
            print_line("\n".join(held), sys.stdout)
            held.clear()
    if held:
        print_line("\n".join(held), sys.stdout)
