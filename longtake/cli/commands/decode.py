"""longtake decode: decode a file of latents into a video."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from longtake.cli.commands.output import output_spec, show
from longtake.cli.config_file import override_settings
from longtake.cli.settings import engine_config, given_values, pop_fields
from longtake.cli.terminal import View
from longtake.configs.request import DecodeRequest
from longtake.engine.media.latents import LatentsFile, Origin, output_name_of, read_latents
from longtake.engine.render_to_files import decode_to_files
from longtake.engine.torchrun import TorchrunEnvironment
from longtake.errors import RequestError


def run(options: dict[str, Any], view: View) -> None:
    """Decode a file of latents. Under torchrun, only rank 0 reads it."""
    values = {**given_values(options), "autoencoder_only": True}
    overwrite = bool(values.pop("overwrite", False))
    source = Path(os.path.expanduser(options["latents"]))
    output = output_spec(
        options["output"],
        metadata=options["metadata"],
        overwrite=overwrite,
        request_id=output_name_of(source),
    )
    fields = pop_fields(values, DecodeRequest)
    if TorchrunEnvironment.is_set() and "model" not in values:
        raise RequestError("torchrun needs --model: only rank 0 reads the latents")
    file: LatentsFile | None = None
    if TorchrunEnvironment.is_writer():
        if output.output_type == "latents":
            raise RequestError(
                f"output={output.template!r} is for latents, which the input is already: try .mp4"
            )
        file = read_latents(source)
        if file.origin is not None:
            fields, values = _with_origin(file.origin, fields, values)
    config = engine_config(values)
    view.stop_timeout_s = config.stop_timeout_s
    show(decode_to_files(config, DecodeRequest(**fields), file, output, view), view)


def _with_origin(
    origin: Origin, fields: dict[str, Any], values: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of the decode request and of the engine: options override the file's header."""
    header_fields = origin.request.model_dump(include=set(DecodeRequest.model_fields))
    engine = {}
    if "model" not in values:
        engine = {name: getattr(origin.engine, name) for name in ("model", "revision", "vae")}
    if "dtype" not in values:
        engine["vae_dtype"] = origin.engine.vae_dtype
    return override_settings(header_fields, fields), {**engine, **values}
