"""longtake decode: a video from latents in a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from longtake.cli.commands.writing import DEFAULT_OUTPUT, output_of, place_of, write
from longtake.cli.config_file import over
from longtake.cli.settings import engine_config, flags
from longtake.cli.terminal import View
from longtake.configs.engine import EngineConfig
from longtake.configs.request import DecodeRequest
from longtake.engine.engine import VideoEngine
from longtake.engine.launch.torchrun import TorchrunPlace
from longtake.engine.media.latents import LatentsFile, Origin, output_name_of, read_latents
from longtake.engine.media.output_files import output_type
from longtake.engine.media.output_names import values_for
from longtake.engine.sinks import NullSink
from longtake.errors import RequestError


def run(options: dict[str, Any], view: View) -> None:
    """Make a video of a file of latents. Under torchrun, rank 0 alone reads it."""
    values = {**flags(options), "autoencoder_only": True}
    values.pop("overwrite", None)
    template = output_of(options["output"])
    asked = {name: values.pop(name) for name in list(values) if name in DecodeRequest.model_fields}
    if TorchrunPlace.given() and "model" not in values:
        raise RequestError("--model must be named under torchrun: rank 0 alone reads the latents")
    if not TorchrunPlace.writes():
        engine = VideoEngine(engine_config(values))
        view.stop_timeout_s = engine.config.stop_timeout_s
        try:
            engine.render(None, NullSink(), view.progress)
        finally:
            engine.close()
        return
    if output_type(Path(template or DEFAULT_OUTPUT)) == "latents":
        raise RequestError(f"output={template!r} is for latents, which are there: use .mp4, say")
    source = Path(os.path.expanduser(options["latents"]))
    file = read_latents(source)
    if file.origin is not None:
        asked, values = _over_origin(file.origin, asked, values)
    path = _place(template, source, file, values, options)
    request = DecodeRequest(**asked)
    engine = VideoEngine(engine_config(values))
    view.stop_timeout_s = engine.config.stop_timeout_s
    try:
        resolved = engine.resolve_decode(request, file.latents.shape)
        origin = file.origin if file.origin is not None and file.origin.made(resolved) else None
        if origin is not None:
            resolved = origin.decoded(resolved)
        write(engine, resolved, path, options, view, file.latents, origin)
    finally:
        engine.close()


def _place(
    template: str | None,
    source: Path,
    file: LatentsFile,
    values: dict[str, Any],
    options: dict[str, Any],
) -> Path:
    """Where the video goes; its id is the name of the file of latents."""
    num_videos = len(file.latents)
    known = values_for(
        seed=None if file.origin is None else file.origin.request.seed,
        name=output_name_of(source),
        model=values.get("model", EngineConfig().model),
        num_videos=num_videos,
    )
    return place_of(template, known, num_videos, options)


def _over_origin(
    origin: Origin, asked: dict[str, Any], values: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is asked of decoding and of the engine, over what the header of the latents says."""
    of_the_file = origin.request.model_dump(include=set(DecodeRequest.model_fields))
    engine = {}
    if "model" not in values:
        engine = {"model": origin.engine.model, "revision": origin.engine.revision}
    if "dtype" not in values:
        engine["vae_dtype"] = origin.engine.vae_dtype
    return over(of_the_file, asked), {**engine, **values}
