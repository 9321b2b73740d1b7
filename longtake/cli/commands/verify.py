"""longtake verify: compare what each layout renders with what one rank renders."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

from longtake.cli.settings import engine_config, given_values, pop_fields
from longtake.cli.table import Table
from longtake.cli.terminal import View, print_line
from longtake.configs.commands.tools import VerifyConfig
from longtake.configs.engine import EngineConfig
from longtake.configs.fields.sizes import merge_fields
from longtake.configs.request import ResolvedRequest, VideoRequest
from longtake.engine.resolve.outline import EngineOutline
from longtake.engine.resolve.request import resolve
from longtake.engine.tools.verify import (
    TOLERANCES,
    Comparison,
    Divergence,
    cases_of,
    uneven_size,
    verify,
)
from longtake.engine.torchrun import TorchrunEnvironment
from longtake.errors import RequestError
from longtake.parallel import ParallelDims
from longtake.pipelines.spec import ModelSpec

EXIT_WITHIN, EXIT_DIVERGED = 0, 1

_DEFAULTS: dict[str, Any] = {"prompt": "a red circle", "seed": 0, "output_type": "latents"}
_STEPS = 3
_NEGATIVE_PROMPT = "blue"
"""Negative prompt of layouts with two passes, unless the request has one."""

_TABLE = Table(("layout", "CFG", "max error", "PSNR", "diverges at"))


def run(options: dict[str, Any], view: View) -> int:
    """Compare each layout with one rank, and print the result.

    Returns:
        0 if every layout is within the tolerance, else 1.
    """
    if TorchrunEnvironment.is_set():
        raise RequestError(
            "RANK and WORLD_SIZE are set, as torchrun does: verify starts ranks of its own; run it "
            "without torchrun, with --devices"
        )
    values = given_values(options)
    layouts = [ParallelDims.parse(text) for text in values.pop("layout", ())]
    settings = VerifyConfig(**pop_fields(values, VerifyConfig))
    request = pop_fields(values, VideoRequest)
    outline = EngineOutline(engine_config(values))
    plain, guided = _requests(request, outline.spec, outline.config.devices)
    outline.place_weights([plain])
    config = outline.config
    view.stop_timeout_s = config.stop_timeout_s
    tolerance = TOLERANCES[config.dtype] if settings.tolerance is None else settings.tolerance
    pictures = outline.spec.required_pictures
    cases = cases_of(layouts, config.devices, plain, guided, pictures)
    on_progress = (lambda progress: None) if options["json"] else view.progress
    found = verify(config, cases, tolerance, on_progress)
    view.close()
    if options["json"]:
        lines = [json.dumps(_as_json(found, config, tolerance), allow_nan=False)]
    else:
        lines = [] if options["quiet"] else _lines(found, config, outline.spec, tolerance)
    for line in lines:
        print_line(line, sys.stdout)
    return EXIT_WITHIN if all(each.divergence is None for each in found) else EXIT_DIVERGED


def _requests(
    given: dict[str, Any], spec: ModelSpec, devices: int
) -> tuple[ResolvedRequest, ResolvedRequest | None]:
    """The request of layouts that compute one pass at a time, and that of those that compute two.

    The latter has classifier-free guidance. It is None if the options turn that off, or the model
    has none.
    """
    on, off = (spec.guidance_fields(guided=guided) for guided in (True, False))
    if given.get("negative_prompt"):
        given = {**on, **given}
    steps = {} if "sigmas" in given else {"num_inference_steps": _STEPS}
    values = merge_fields({**_DEFAULTS, **steps, **uneven_size(spec, devices)}, given)
    if any(name in given for name in spec.guidance_options):
        asked = resolve(VideoRequest(**values), spec)
        return asked, asked if spec.num_passes(asked) > 1 else None
    plain = resolve(VideoRequest(**{**off, **values}), spec)
    if not on:
        return plain, None
    return plain, resolve(
        VideoRequest(**{**on, "negative_prompt": _NEGATIVE_PROMPT, **values}), spec
    )


def _lines(
    found: list[Comparison], config: EngineConfig, spec: ModelSpec, tolerance: float
) -> list[str]:
    """The request, a table with one row per layout, and the verdict."""
    request = found[0].case.request
    ranks = f"{config.devices} {config.device} rank{'s' if config.devices > 1 else ''}"
    return [
        f"{config.model} on one rank and on {ranks}, {config.dtype}: {request.num_frames} frames "
        f"of {request.width}x{request.height} in {request.num_inference_steps} steps, seed "
        f"{request.seed}",
        *_TABLE.lines([_row(each, spec) for each in found]),
        _verdict(found, tolerance, config.dtype),
    ]


def _row(each: Comparison, spec: ModelSpec) -> tuple[str, ...]:
    guided = spec.num_passes(each.case.request) > 1
    side_by_side = each.case.dims.cfg_degree == 2
    return (
        each.case.dims.name,
        "side by side" if side_by_side else "in turn" if guided else "no",
        f"{each.max_error:.1e}",
        "exact" if each.psnr_db == math.inf else f"{each.psnr_db:.1f} dB",
        "-" if each.divergence is None else _where(each.divergence),
    )


def _where(divergence: Divergence) -> str:
    if divergence.block is None:
        return f"step {divergence.step}, in no single block"
    negative = ", negative branch" if divergence.branch == "negative" else ""
    if divergence.block == 0:
        return f"step {divergence.step}, before the first block{negative}"
    of = f"block {divergence.block} of {divergence.num_blocks}"
    return f"step {divergence.step}, {of} ({divergence.name}){negative}"


def _verdict(found: list[Comparison], tolerance: float, dtype: str) -> str:
    diverged = [each.case.dims.name for each in found if each.divergence is not None]
    if not diverged:
        return f"all within {tolerance:g} after every step (layouts are cfg x ring x ulysses)"
    verdict = (
        f"{len(diverged)} of {len(found)} differ by more than {tolerance:g}: {' '.join(diverged)}"
    )
    if dtype != "float32":
        verdict += f"; {dtype} may do so by rounding alone: try --dtype float32, or --tolerance"
    return verdict


def _as_json(found: list[Comparison], config: EngineConfig, tolerance: float) -> dict[str, Any]:
    """All results; infinite values and NaN become null, which JSON can hold."""
    return {
        "within": all(each.divergence is None for each in found),
        "tolerance": tolerance,
        "engine": config.model_dump(mode="json"),
        "layouts": [_layout_as_json(each, tolerance) for each in found],
    }


def _layout_as_json(each: Comparison, tolerance: float) -> dict[str, Any]:
    divergence = each.divergence
    return {
        "layout": each.case.dims.name,
        "request": each.case.request.model_dump(mode="json"),
        "attention_kernel": each.kernel,
        "within": divergence is None,
        "max_error": _finite(each.max_error),
        "psnr_db": _finite(each.psnr_db),
        "exact": each.psnr_db == math.inf,
        "steps": [
            {"step": step, "max_error": _finite(error), "within": error <= tolerance}
            for step, error in enumerate(each.errors, start=1)
        ],
        "parting": None
        if divergence is None
        else {
            "step": divergence.step,
            "block": divergence.block,
            "num_blocks": divergence.num_blocks,
            "name": divergence.name,
            "branch": None if divergence.block is None else divergence.branch,
            "relative_error": _finite(divergence.error),
        },
    }


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
