"""longtake plan --train: predict the time and memory of training a decoder for each layout."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from longtake.cli.settings import pop_fields
from longtake.cli.table import Table
from longtake.cli.terminal import print_line, print_refusable
from longtake.configs.commands.tools import PlanConfig
from longtake.configs.commands.training import TrainingConfig
from longtake.configs.decoders import decoders, load_decoder
from longtake.configs.engine import EngineConfig
from longtake.configs.parallel import ParallelConfig
from longtake.engine.planning.hardware import find_hardware
from longtake.engine.planning.training.layouts import AXES, Axis, TrainingLayout
from longtake.engine.planning.training.planner import (
    TrainingPlan,
    TrainingPrediction,
    make_training_plan,
)
from longtake.engine.planning.training.training_input import TrainingInput
from longtake.errors import LayoutError, RequestError

_TAKEN = {
    *("train", "gpu", "gpus_per_node", "model", "devices", "dtype"),
    *("ring_degree", "ulysses_degree", *TrainingConfig.model_fields),
}
"""Options of plan that --train takes."""

_PARTS = {
    "matrices": "matrices_s",
    "attention": "attention_s",
    "memory ops": "memory_s",
    "exposed": "exposed_s",
    "hidden": "hidden_s",
    "waiting": "waiting_s",
}
_FITTING = Table(("layout", "recompute", "a step", "tokens/s", "MFU", *_PARTS, "GiB a rank"))
_REFUSED = Table(("refused", "why"), wrapped="why")


def run(values: dict[str, Any], *, as_json: bool, quiet: bool) -> int:
    """Print a training plan.

    Args:
        values: The options that were given.
        as_json: Whether JSON is printed.
        quiet: Whether nothing but errors is printed.

    Raises:
        RequestError: An option is invalid, or no layout can run.
    """
    top, plan = _plan(values)
    if as_json:
        return _print_json(plan)
    if not quiet:
        for line in _lines(plan, top):
            print_line(line, sys.stdout)
    _ = plan.best  # raises if no layout can run
    return 0


def _plan(values: dict[str, Any]) -> tuple[int, TrainingPlan]:
    """The rows to print of a table, and the plan."""
    if foreign := [name for name in values if name not in _TAKEN]:
        raise RequestError(
            f"{foreign[0]}={values[foreign[0]]} is of a video and has no meaning with --train: "
            "leave it out"
        )
    if "model" not in values:
        raise RequestError(
            f"--train plans a decoder: add --model with {', '.join(decoders())}, or a config.json"
        )
    options = PlanConfig(**pop_fields(values, PlanConfig))
    config = TrainingConfig(**pop_fields(values, TrainingConfig))
    engine = EngineConfig(**pop_fields(values, EngineConfig))
    degrees = _degrees(config, ParallelConfig(**values))
    _check_degrees(engine.devices, degrees)
    hardware = find_hardware(options.gpu, options.gpus_per_node)
    training = TrainingInput(
        config=load_decoder(engine.model),
        hardware=hardware,
        sequence=config.sequence_length,
        batch=config.batch_size,
        dtype=engine.compute_dtype(hardware.device),
    )
    return config.top, make_training_plan(
        training,
        engine.devices,
        wanted=_filter(config, degrees),
        recompute=None if config.recompute == "auto" else config.recompute,
    )


def _degrees(config: TrainingConfig, parallel: ParallelConfig) -> dict[Axis, int]:
    """The given degrees."""
    degrees: dict[Axis, int | None] = {
        "pipeline": config.pipeline_degree,
        "data": config.data_degree,
        "ring": parallel.ring_degree,
        "ulysses": parallel.ulysses_degree,
        "tensor": config.tensor_degree,
    }
    return {axis: degree for axis, degree in degrees.items() if degree is not None}


def _check_degrees(devices: int, degrees: dict[Axis, int]) -> None:
    """Check that the number of devices has a layout with the given degrees.

    Raises:
        LayoutError: It has none.
    """
    product = math.prod(degrees.values())
    if product == devices or (devices % product == 0 and len(degrees) < len(AXES)):
        return
    given = " x ".join(f"{axis}_degree={degree}" for axis, degree in degrees.items())
    equals = f" = {product}" if len(degrees) > 1 else ""
    raise LayoutError(
        f"no layout of devices={devices} has {given}{equals}: change or leave out "
        f"{'one of them' if equals else 'the degree'}, or plan devices={product}"
    )


def _filter(config: TrainingConfig, degrees: dict[Axis, int]) -> Callable[[TrainingLayout], bool]:
    """Whether a layout has the given degrees, ZeRO stage and split of tokens."""
    split, stage = config.tensor_sequence, config.zero_stage

    def wanted(layout: TrainingLayout) -> bool:
        if layout.tensor > 1 and split is not None and layout.tensor_sequence != (split == "true"):
            return False
        if layout.copies > 1 and stage not in (None, layout.zero):
            return False
        return all(getattr(layout, axis) == degree for axis, degree in degrees.items())

    return wanted


def _print_json(plan: TrainingPlan) -> int:
    """Print one JSON object to stdout; if no layout can run, the reason to stderr as well."""
    training = plan.training
    described: dict[str, Any] = {
        "hardware": training.hardware.description,
        "devices_per_node": training.hardware.devices_per_node,
        "devices": plan.devices,
        "request": {
            "sequence_length": training.sequence,
            "batch_size": training.batch,
            "dtype": training.dtype,
            "parameters": training.decoder.parameters,
        },
        "best": _as_json(plan.layouts[0]) if plan.layouts else None,
        "layouts": [_as_json(each) for each in plan.layouts],
        "refused": [{"layout": each.layout.name, "reason": each.reason} for each in plan.refused],
    }
    return print_refusable(described, lambda: plan.best)


def _as_json(each: TrainingPrediction) -> dict[str, Any]:
    return {
        "name": each.layout.name,
        "layout": asdict(each.layout),
        "recompute": each.recompute,
        "seconds_per_step": each.time.seconds,
        "step_s": {name.removesuffix("_s"): value for name, value in asdict(each.time).items()},
        "tokens_per_s": each.tokens_per_s,
        "mfu": each.mfu,
        "memory_bytes_per_rank": each.memory.total,
        "memory_bytes": each.memory.as_json(),
    }


def _lines(plan: TrainingPlan, top: int) -> Iterator[str]:
    """The request, the best layouts, and those refused that are closest to fitting."""
    training = plan.training
    yield (
        f"{training.decoder.parameters / 1e9:.2f} B parameters, {training.batch} x "
        f"{training.sequence} tokens a step, {training.dtype}, on {plan.devices} x "
        f"{training.hardware.description}, {training.hardware.devices_per_node} to a node"
    )
    if plan.layouts:
        yield f"best: {plan.best.layout.name}, MFU {_percent(plan.best.mfu)}"
        yield ""
        yield from _FITTING.lines([_row(each) for each in plan.layouts[:top]])
        if (more := len(plan.layouts) - top) > 0:
            yield f"and {more} slower ones: --top, or --json"
    if plan.refused:
        shown = plan.refused[-top:][::-1]
        yield ""
        yield from _REFUSED.lines([(each.layout.name, each.reason) for each in shown])
        if (more := len(plan.refused) - top) > 0:
            yield f"and {more} more: --top, or --json"


def _row(each: TrainingPrediction) -> tuple[str, ...]:
    whole = each.time.seconds
    return (
        each.layout.name,
        each.recompute,
        f"{whole:.3g} s",
        f"{each.tokens_per_s:,.0f}",
        _percent(each.mfu),
        *(_percent(getattr(each.time, name) / whole) for name in _PARTS.values()),
        f"{each.memory.total / 2**30:.1f}",
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
