"""longtake verify: whether each layout renders what one rank renders."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

from longtake.cli.settings import engine_config, flags
from longtake.cli.terminal import View, say
from longtake.configs.engine import EngineConfig
from longtake.configs.request import ResolvedRequest, VideoRequest
from longtake.configs.sizes import over
from longtake.configs.tools import VerifyConfig
from longtake.engine.engine import VideoEngine
from longtake.engine.launch.torchrun import TorchrunPlace
from longtake.engine.request import resolve
from longtake.engine.tools.verify import (
    TOLERANCES,
    Comparison,
    Parting,
    cases_of,
    uneven_size,
    verify,
)
from longtake.errors import RequestError
from longtake.parallel import ParallelDims
from longtake.pipelines import registry
from longtake.pipelines.checkpoint import Checkpoint
from longtake.pipelines.spec import ModelSpec

EXIT_WITHIN, EXIT_PARTED = 0, 1

_WORDS: dict[str, Any] = {"prompt": "a red circle", "seed": 0, "output_type": "latents"}
_STEPS = 3
_GUIDED: dict[str, Any] = {"true_cfg_scale": 1.5, "negative_prompt": "blue"}
"""Of layouts with two branches. A larger scale adds nothing but rounding, which it multiplies."""


def run(options: dict[str, Any], view: View) -> int:
    """Compare what one rank renders with what each layout does.

    Returns:
        0: all are within the tolerance; 1: some are not.
    """
    if TorchrunPlace.given():
        raise RequestError(
            "RANK and WORLD_SIZE are set, as torchrun does: verify starts ranks of its own; run it "
            "without torchrun, with --devices"
        )
    values = flags(options)
    layouts = [ParallelDims.parse(text) for text in values.pop("layout", ())]
    asked = {name: values.pop(name) for name in list(values) if name in VideoRequest.model_fields}
    tolerance = VerifyConfig(**{"tolerance": values.pop("tolerance", None)}).tolerance
    config = VideoEngine(engine_config(values)).config
    view.stop_timeout_s = config.stop_timeout_s
    spec = registry.inspect(Checkpoint.open(config.model, config.revision))
    if tolerance is None:
        tolerance = TOLERANCES[config.dtype]
    plain, guided = _requests(asked, spec, config.devices)
    cases = cases_of(layouts, config.devices, plain, guided)
    on_progress = (lambda progress: None) if options["json"] else view.progress
    found = verify(config, cases, tolerance, on_progress)
    view.close()
    if options["json"]:
        lines = [json.dumps(_as_json(found, config, tolerance), allow_nan=False)]
    else:
        lines = [] if options["quiet"] else _lines(found, config, tolerance)
    for line in lines:
        say(line, sys.stdout)
    return EXIT_WITHIN if all(each.parting is None for each in found) else EXIT_PARTED


def _requests(
    asked: dict[str, Any], spec: ModelSpec, devices: int
) -> tuple[ResolvedRequest, ResolvedRequest | None]:
    """The request of layouts of one branch, and that of two, which has true CFG, if it may."""
    if asked.get("negative_prompt"):
        asked = {"true_cfg_scale": _GUIDED["true_cfg_scale"], **asked}
    steps = {} if "sigmas" in asked else {"num_inference_steps": _STEPS}
    values = over({**_WORDS, **steps, **uneven_size(spec, devices)}, asked)
    plain = resolve(VideoRequest(**values), spec)
    if "true_cfg_scale" in asked:
        return plain, plain if plain.uses_true_cfg else None
    return plain, resolve(VideoRequest(**{**_GUIDED, **values}), spec)


def _lines(found: list[Comparison], config: EngineConfig, tolerance: float) -> list[str]:
    """What was rendered, a table, and what comes of it."""
    asked = found[0].case.request
    ranks = f"{config.devices} {config.device} rank{'s' if config.devices > 1 else ''}"
    return [
        f"{config.model} on one rank and on {ranks}, {config.dtype}: {asked.num_frames} frames of "
        f"{asked.width}x{asked.height} in {asked.num_inference_steps} steps, seed {asked.seed}",
        *_table(found),
        _verdict(found, tolerance, config.dtype),
    ]


def _table(found: list[Comparison]) -> list[str]:
    """A line a layout, below a line of headings."""
    rows = [("layout", "true CFG", "max error", "PSNR", "parts at")]
    for each in found:
        guided = each.case.request.uses_true_cfg
        side_by_side = each.case.dims.cfg_degree == 2
        rows.append(
            (
                each.case.dims.name,
                "side by side" if side_by_side else "in turn" if guided else "no",
                f"{each.max_error:.1e}",
                "exact" if each.psnr_db == math.inf else f"{each.psnr_db:.1f} dB",
                "-" if each.parting is None else _where(each.parting),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _where(parting: Parting) -> str:
    if parting.block is None:
        return f"step {parting.step}, in no block by itself"
    negative = ", of the negative branch" if parting.branch == "negative" else ""
    if parting.block == 0:
        return f"step {parting.step}, before the first block{negative}"
    of = f"block {parting.block} of {parting.num_blocks}"
    return f"step {parting.step}, {of} ({parting.name}){negative}"


def _verdict(found: list[Comparison], tolerance: float, dtype: str) -> str:
    parted = [each.case.dims.name for each in found if each.parting is not None]
    if not parted:
        return f"all within {tolerance:g} after every step (layouts are cfg x ring x ulysses)"
    said = f"{len(parted)} of {len(found)} part by more than {tolerance:g}: {' '.join(parted)}"
    if dtype != "float32":
        said += f"; {dtype} may do so by rounding alone: try --dtype float32, or --tolerance"
    return said


def _as_json(found: list[Comparison], config: EngineConfig, tolerance: float) -> dict[str, Any]:
    """Everything that was found; what is infinite or no number becomes null."""
    return {
        "within": all(each.parting is None for each in found),
        "tolerance": tolerance,
        "engine": config.model_dump(mode="json"),
        "layouts": [_layout_as_json(each, tolerance) for each in found],
    }


def _layout_as_json(each: Comparison, tolerance: float) -> dict[str, Any]:
    parting = each.parting
    return {
        "layout": each.case.dims.name,
        "request": each.case.request.model_dump(mode="json"),
        "attention_kernel": each.kernel,
        "within": parting is None,
        "max_error": _finite(each.max_error),
        "psnr_db": _finite(each.psnr_db),
        "exact": each.psnr_db == math.inf,
        "steps": [
            {"step": step, "max_error": _finite(error), "within": error <= tolerance}
            for step, error in enumerate(each.errors, start=1)
        ],
        "parting": None
        if parting is None
        else {
            "step": parting.step,
            "block": parting.block,
            "num_blocks": parting.num_blocks,
            "name": parting.name,
            "branch": None if parting.block is None else parting.branch,
            "relative_error": _finite(parting.error),
        },
    }


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
