"""longtake generate: a video from a prompt."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from longtake.cli.commands.resuming import (
    earlier_rendering,
    kept_latents,
    snapshot_left,
    snapshots_of,
)
from longtake.cli.commands.writing import DEFAULT_OUTPUT, check, output_of, place_of, write
from longtake.cli.config_file import ConfigFile
from longtake.cli.settings import engine_config, flags
from longtake.cli.terminal import View
from longtake.configs.request import VideoRequest
from longtake.configs.snapshot import SnapshotConfig
from longtake.engine.engine import VideoEngine
from longtake.engine.launch.torchrun import TorchrunPlace
from longtake.engine.media.output_files import output_type
from longtake.engine.media.output_names import request_id, values_for


def run(options: dict[str, Any], view: View) -> None:
    """Render what the options ask for."""
    file = ConfigFile(options["config"])
    given = flags(options)
    if options["output"] is not None:
        given["output"] = options["output"]
    values = file.under(given)
    template = output_of(values.pop("output", None))
    resume, overwrite = (bool(values.pop(name, False)) for name in ("resume", "overwrite"))
    often, asked = (
        {name: values.pop(name) for name in list(values) if name in kind.model_fields}
        for kind in (SnapshotConfig, VideoRequest)
    )
    name = request_id(asked)
    asked["output_type"] = output_type(Path(template or DEFAULT_OUTPUT))
    with file.naming_lines():
        request = VideoRequest(**asked)
        config, how_often = engine_config(values), SnapshotConfig(**often)
    drawn = request.seed is None
    if drawn:  # the output may be named after it
        request = request.model_copy(update={"seed": secrets.randbits(32)})
    known = values_for(
        seed=request.seed, name=name, model=config.model, num_videos=request.num_videos
    )
    path = Path(DEFAULT_OUTPUT)
    view.stop_timeout_s = config.stop_timeout_s
    if TorchrunPlace.writes():  # the folder may be on another host
        path = place_of(template, known, request.num_videos, options)
    with file.naming_lines():
        engine = VideoEngine(config)
    try:
        with file.naming_lines():
            resolved = engine.resolve(request) if engine.knows(request) else None
        if resolved is None or not engine.writes:
            write(engine, resolved, path, options, view)
            return
        if resume:
            found = earlier_rendering(template, known, resolved, drawn=drawn)
            if found is not None:
                path, resolved = found
                check(path, request.num_videos, options)
            kept = kept_latents(path, engine.identity_of(resolved))
            if kept is not None:
                view.note(f"goes on with the latents in {kept[0]}")
                write(engine, resolved, path, options, view, kept[1])
                kept[0].unlink(missing_ok=True)
                return
        plan = snapshots_of(
            engine, resolved, path, how_often, view, resume=resume, overwrite=overwrite
        )
        with snapshot_left(plan.path, resume, view):
            write(engine, resolved, path, options, view, snapshots=plan)
    finally:
        engine.close()
