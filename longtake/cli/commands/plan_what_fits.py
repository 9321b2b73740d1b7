"""longtake plan --what-fits: sizes and lengths of videos that fit, for each released model."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

from longtake.cli.settings import pop_fields
from longtake.cli.table import Table
from longtake.cli.terminal import format_duration, print_line
from longtake.configs.commands.tools import PlanConfig
from longtake.configs.engine import EngineConfig
from longtake.configs.hardware import Hardware
from longtake.configs.models import presets
from longtake.configs.parallel import ParallelConfig
from longtake.engine.planning.advice.what_fits import RESOLUTIONS, Fit, what_fits
from longtake.engine.planning.hardware import find_hardware
from longtake.engine.planning.plan_input import PlanInput
from longtake.engine.planning.planner import best_fitting
from longtake.engine.planning.weights.places import Places
from longtake.engine.resolve.request import resolve_sizes
from longtake.errors import RequestError
from longtake.pipelines import registry
from longtake.pipelines.loading.checkpoint import Checkpoint

_SIZES = ("height", "width", "size", "resolution", "aspect_ratio", "num_frames", "seconds")
"""Options that --what-fits does not take: it lists these."""

_TABLE = Table(
    ("model", "size", "frames", "GiB a rank", "GiB of host", "plan", "a step", "in all", "longest")
)


def run(values: dict[str, Any], *, as_json: bool, quiet: bool) -> int:
    """Print what fits.

    Args:
        values: The options that were given, without ``what_fits``.
        as_json: Whether JSON is printed.
        quiet: Whether nothing is printed.

    Raises:
        RequestError: An option is invalid.
    """
    options = PlanConfig(**pop_fields(values, PlanConfig))
    models = [values.pop("model")] if "model" in values else presets()
    engine = EngineConfig(**pop_fields(values, EngineConfig))
    parallel = ParallelConfig(**pop_fields(values, ParallelConfig))
    if fixed := [name for name in _SIZES if name in values]:
        raise RequestError(
            f"{fixed[0]}={values[fixed[0]]} with --what-fits, which lists sizes and lengths: leave "
            "one of them out"
        )
    if engine.parts and len(models) > 1:
        name, path = next(iter(engine.parts.items()))
        raise RequestError(
            f"{name}={str(path)!r} with --what-fits, which lists all presets: add --model"
        )
    hardware = find_hardware(options.gpu, options.gpus_per_node)
    best = partial(
        best_fitting, requested=parallel, devices=engine.devices, places=Places.of(engine)
    )
    found = [
        (model, what_fits(planned, best))
        for model in models
        for planned in _plan_inputs(
            engine.model_copy(update={"model": model}), hardware, options, values
        )
    ]
    if as_json:
        described = {
            "hardware": hardware.description,
            "devices": engine.devices,
            "fits": [_as_json(model, fit) for model, fit in found],
        }
        print_line(json.dumps(described, indent=1, allow_nan=False), sys.stdout)
    elif not quiet:
        print_line(f"{engine.devices} x {hardware.description}", sys.stdout)
        for line in _TABLE.lines([_cells(model, fit) for model, fit in found]):
            print_line(line, sys.stdout)
    return 0


def _plan_inputs(
    config: EngineConfig, hardware: Hardware, options: PlanConfig, values: dict[str, Any]
) -> Iterator[PlanInput]:
    """Requests of a model's default size and of smaller ones."""
    checkpoint = Checkpoint.open(
        config.model, config.revision, configs_only=True, parts=config.parts
    )
    spec = registry.inspect(checkpoint, weights=False)
    for request in resolve_sizes(values, spec, RESOLUTIONS):
        yield PlanInput.for_engine(
            config,
            spec,
            hardware,
            request,
            text_tokens=options.text_tokens,
            decode_ranks=options.decode_ranks,
        )


def _cells(model: str, fit: Fit) -> tuple[str, ...]:
    request, best = fit.request, fit.prediction
    frames = str(request.num_frames)
    if request.num_frames < fit.default:
        frames += f" of {fit.default}"
    shown = model, f"{request.width}x{request.height}", frames
    if best is None:
        return (*shown, "-", "-", "does not fit", "-", "-", "-")
    return (
        *shown,
        f"{best.memory.total / 2**30:.1f}",
        f"{best.memory.host.total / 2**30:.1f}",
        f"{best.name}, text {best.placement.text}, decode {request.decode}",
        format_duration(best.step.seconds),
        format_duration(best.rendering_s),
        f"{fit.longest} frames, {format_duration(fit.longest / request.fps)}",
    )


def _as_json(model: str, fit: Fit) -> dict[str, Any]:
    request, best = fit.request, fit.prediction
    described: dict[str, Any] = {
        "model": model,
        "width": request.width,
        "height": request.height,
        "num_frames": request.num_frames,
        "decode": request.decode,
        "fits": best is not None,
        "longest_num_frames": fit.longest,
        "default_num_frames": fit.default,
    }
    if best is None:
        return described
    return {
        **described,
        "name": best.name,
        "weights": best.placement.weights,
        "text_weights": best.placement.text,
        "memory_bytes_per_rank": best.memory.total,
        "host_memory_bytes": best.memory.host.total,
        "seconds_per_step": best.step.seconds,
        "rendering_s": best.rendering_s,
    }
