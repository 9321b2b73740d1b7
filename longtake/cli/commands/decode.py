"""longtake decode: a video from latents in a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from longtake.cli.commands.output import output_spec, show
from longtake.cli.config_file import override_settings
from longtake.cli.settings import engine_config, given_values
from longtake.cli.terminal import View
from longtake.configs.request import DecodeRequest
from longtake.engine.media.latents import LatentsFile, Origin, output_name_of, read_latents
from longtake.engine.render_to_files import decode_to_files
from longtake.engine.torchrun import TorchrunEnvironment
from longtake.errors import RequestError


def run(options: dict[str, Any], view: View) -> None:
    """Decode a file of latents. Under torchrun, rank 0 alone reads it."""
    values = {**given_values(options), "autoencoder_only": True}
    overwrite = bool(values.pop("overwrite", False))
    source = Path(os.path.expanduser(options["latents"]))
    output = output_spec(
        options["output"],
        metadata=options["metadata"],
        overwrite=overwrite,
        request_id=output_name_of(source),
    )
    fields = {name: values.pop(name) for name in list(values) if name in DecodeRequest.model_fields}
    if TorchrunEnvironment.is_set() and "model" not in values:
        raise RequestError("--model must be named under torchrun: rank 0 alone reads the latents")
    file: LatentsFile | None = None
    if TorchrunEnvironment.is_writer():
        if output.output_type == "latents":
            raise RequestError(
                f"output={output.template!r} is for latents, which are there: use .mp4, say"
            )
        file = read_latents(source)
        if file.origin is not None:
            fields, values = _over_origin(file.origin, fields, values)
    config = engine_config(values)
    view.stop_timeout_s = config.stop_timeout_s
    show(decode_to_files(config, DecodeRequest(**fields), file, output, view), view)


def _over_origin(
    origin: Origin, fields: dict[str, Any], values: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields of the decode request and of the engine: the options' over those of the latents'
    header."""
    from_header = origin.request.model_dump(include=set(DecodeRequest.model_fields))
    engine = {}
    if "model" not in values:
        engine = {"model": origin.engine.model, "revision": origin.engine.revision}
    if "dtype" not in values:
        engine["vae_dtype"] = origin.engine.vae_dtype
    return override_settings(from_header, fields), {**engine, **values}
