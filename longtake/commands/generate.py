"""longtake generate: a video from a prompt."""

from __future__ import annotations

from typing import Any

from longtake.commands.writing import output_of, write
from longtake.configs.request import VideoRequest
from longtake.engine.engine import VideoEngine
from longtake.engine.torchrun import TorchrunPlace
from longtake.engine.video_writer import check_output, output_type
from longtake.settings import engine_config, validated, values_of
from longtake.terminal import View


def run(options: dict[str, Any], view: View) -> None:
    """Render what the options ask for."""
    values = values_of(options)
    path = output_of(values.pop("output", None))
    asked = {name: values.pop(name) for name in list(values) if name in VideoRequest.model_fields}
    asked["output_type"] = output_type(path)
    request = validated(VideoRequest, asked)
    config = engine_config(values)
    if TorchrunPlace.writes():  # the folder may be on another host
        check_output(path, request.num_videos, metadata=options["metadata"])
    engine = VideoEngine(config)
    try:
        resolved = engine.resolve(request) if engine.knows(request) else None
        write(engine, resolved, path, options, view)
    finally:
        engine.close()
