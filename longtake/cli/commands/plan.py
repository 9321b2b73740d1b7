"""longtake plan: predict the time and memory of a video for each layout, without rendering it.

With --train it plans the training of a decoder; see plan_training.
"""

from __future__ import annotations

import io
import sys
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from longtake.cli.commands import plan_training, plan_what_fits
from longtake.cli.settings import given_values, pop_fields
from longtake.cli.terminal import View, print_line, print_refusable
from longtake.configs.commands.tools import PlanConfig
from longtake.configs.commands.training import TrainingConfig
from longtake.configs.engine import EngineConfig
from longtake.configs.parallel import ParallelConfig
from longtake.configs.request import VideoRequest
from longtake.engine.loras.matching import LoraMatcher
from longtake.engine.planning.advice.ladder import Rung
from longtake.engine.planning.hardware import find_hardware
from longtake.engine.planning.plan_input import PlanInput
from longtake.engine.planning.planner import Plan, make_plan
from longtake.engine.planning.prediction import Prediction
from longtake.engine.planning.weights.places import Places
from longtake.engine.resolve.few_step import few_step_of_files
from longtake.engine.resolve.request import resolve
from longtake.errors import RequestError
from longtake.pipelines import registry
from longtake.pipelines.loading.checkpoint import Checkpoint

_ANY_PROMPT = "any"
_MIN_TABLE_WIDTH = 140
"""Minimum width of a table in columns."""


def run(options: dict[str, Any], view: View) -> int:
    """Print a plan.

    Raises:
        RequestError: No layout can run; the message suggests what would.
    """
    values = given_values(options)
    if PlanConfig(**{"train": values.get("train", False)}).train:
        return plan_training.run(values, as_json=options["json"], quiet=options["quiet"])
    if PlanConfig(**{"what_fits": values.pop("what_fits", False)}).what_fits:
        return plan_what_fits.run(values, as_json=options["json"], quiet=options["quiet"])
    plan = _plan(values)
    if options["json"]:
        return _print_json(plan)
    if not options["quiet"]:
        _print_tables(plan)
    _ = plan.best  # raises if no layout can run
    return 0


def _plan(values: dict[str, Any]) -> Plan:
    if only_training := [name for name in TrainingConfig.model_fields if name in values]:
        raise RequestError(
            f"{only_training[0]}={values[only_training[0]]} is of a training plan: add --train, or "
            "leave it out"
        )
    options = PlanConfig(**pop_fields(values, PlanConfig))
    engine = EngineConfig(**pop_fields(values, EngineConfig))
    parallel = ParallelConfig(**pop_fields(values, ParallelConfig))
    request = VideoRequest(**{"prompt": _ANY_PROMPT, **values})
    hardware = find_hardware(options.gpu, options.gpus_per_node)
    checkpoint = Checkpoint.open(
        engine.model, engine.revision, configs_only=True, parts=engine.parts
    )
    spec = registry.inspect(checkpoint, weights=False)
    loras = LoraMatcher(checkpoint, engine.lora_folder)
    plan_input = PlanInput.for_engine(
        engine,
        spec,
        hardware,
        resolve(request, spec, few_step=few_step_of_files(request, checkpoint, loras)),
        text_tokens=options.text_tokens,
        decode_ranks=options.decode_ranks,
    )
    return make_plan(plan_input, parallel, engine.devices, Places.of(engine))


def _print_json(plan: Plan) -> int:
    """Print one JSON object to stdout; if no layout can run, the reason to stderr as well."""
    layouts = [_as_json(plan, each) for each in plan.layouts]
    request = plan.plan_input.request
    described: dict[str, Any] = {
        "hardware": plan.plan_input.hardware.description,
        "devices_per_node": plan.plan_input.hardware.devices_per_node,
        "devices": plan.devices,
        "request": {
            "height": request.height,
            "width": request.width,
            "num_frames": request.num_frames,
            "num_inference_steps": request.num_inference_steps,
            "num_videos": request.num_videos,
            "dtype": plan.plan_input.dtype,
            "vae_dtype": plan.plan_input.vae_dtype,
            "text_tokens": plan.plan_input.text_tokens,
        },
        "best": layouts[0] if layouts else None,
        "layouts": layouts,
        "ladder": [_rung_as_json(each) for each in plan.ladder],
        "refused": [{"layout": each.name, "reason": each.reason} for each in plan.refused],
    }
    return print_refusable(described, lambda: plan.best)


def _as_json(plan: Plan, each: Prediction) -> dict[str, Any]:
    step = each.step
    return {
        "layout": {
            "cfg_degree": each.dims.cfg_degree,
            "ring_degree": each.dims.ring_degree,
            "ulysses_degree": each.dims.ulysses_degree,
            "weights": each.placement.weights,
            "text_weights": each.placement.text,
        },
        "name": each.name,
        "end_to_end_s": each.end_to_end_s,
        "seconds_per_step": step.seconds,
        "stages_s": dict(each.stages),
        "step_s": {
            "compute": step.compute_s,
            "copies": step.copies_s,
            "communication_exposed": step.exposed_s,
            "communication_hidden": step.hidden_s,
        },
        "bytes_per_step": sum(each.step_bytes),
        "bytes_per_step_by_rank": list(each.step_bytes),
        "memory_bytes_per_rank": each.memory.total,
        "memory_bytes": each.memory.as_json(),
        "efficiency": plan.efficiency(each),
    }


def _rung_as_json(rung: Rung) -> dict[str, Any]:
    prediction = rung.prediction
    return {
        "name": rung.name,
        "weights": prediction.placement.weights,
        "text_weights": prediction.placement.text,
        "storage_dtype": rung.storage,
        "loss": rung.loss,
        "fits": rung.shortage is None,
        "reason": rung.shortage,
        "seconds_per_step": prediction.step.seconds,
        "memory_bytes_per_rank": prediction.memory.total,
        "host_memory_bytes": prediction.memory.host.total,
    }


def _print_tables(plan: Plan) -> None:
    terminal, text = Console(), io.StringIO()
    width = max(terminal.width, _MIN_TABLE_WIDTH)  # the terminal wraps, nothing is cut off
    console = Console(file=text, width=width, markup=False, highlight=False)
    request, plan_input = plan.plan_input.request, plan.plan_input
    passes = ", classifier-free guidance" if plan_input.num_passes > 1 else ""
    console.print(
        f"{request.num_frames} frames of {request.width}x{request.height}, "
        f"{plan_input.grid.num_tokens} video tokens, "
        f"{request.num_inference_steps} steps{passes}, "
        f"{plan_input.dtype}, on {plan.devices} x {plan_input.hardware.description}, "
        f"{plan_input.hardware.devices_per_node} to a node"
    )
    if plan.layouts:
        best = plan.layouts[0]
        console.print(
            f"best: {best.name} (cfg x ring x ulysses), {_duration(best.step.seconds)} a step, "
            f"{_duration(best.end_to_end_s)} end to end"
        )
        console.print(_duration_table(plan))
        console.print(_memory_table(plan))
    console.print(_ladder_table(plan))
    if plan.refused:
        table = _table("refused", "why")
        for refused in plan.refused:
            table.add_row(refused.name, refused.reason)
        console.print(table)
    print_line("\n".join(line.rstrip() for line in text.getvalue().splitlines()), sys.stdout)


def _duration_table(plan: Plan) -> Table:
    """Durations by layout: a step, its parts, and the stages."""
    table = _table(
        "layout",
        "a step",
        "compute",
        "exposed",
        "hidden",
        "GB/step",
        "load",
        "text",
        "denoise",
        "decode",
        "in all",
        "eff.",
    )
    for each in plan.layouts:
        step, whole = each.step, each.step.seconds
        table.add_row(
            each.name,
            _duration(whole),
            _percent((step.compute_s + step.copies_s) / whole),
            _percent(step.exposed_s / whole),
            _percent(step.hidden_s / whole),
            f"{sum(each.step_bytes) / 1e9:.3g}",
            *(_duration(each.stages[stage]) for stage in ("load", "text", "denoise", "decode")),
            _duration(each.end_to_end_s),
            _percent(plan.efficiency(each)),
        )
    return table


def _ladder_table(plan: Plan) -> Table:
    """All ways to run the request: what they take, what they lose, and why some do not fit."""
    table = _table("plan", "text encoders", "GiB a rank", "GiB of host", "a step", "result", "fits")
    for rung in plan.ladder:
        memory, step = rung.prediction.memory, rung.prediction.step
        table.add_row(
            rung.name,
            rung.prediction.placement.text,
            f"{memory.total / 2**30:.2f}",
            f"{memory.host.total / 2**30:.1f}",
            _duration(step.seconds),
            rung.loss,
            "yes" if rung.shortage is None else f"no: {rung.shortage}",
        )
    return table


def _memory_table(plan: Plan) -> Table:
    """Memory of a rank by layout and part."""
    parts = [*plan.layouts[0].memory.as_json()]
    table = _table("GiB a rank", *parts, "at most")
    for each in plan.layouts:
        bytes_by_part = each.memory.as_json()
        sizes = [*(bytes_by_part[part] for part in parts), each.memory.total]
        table.add_row(each.name, *(f"{size / 2**30:.2f}" for size in sizes))
    return table


def _table(first: str, *columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="")
    table.add_column(first, no_wrap=True)
    for column in columns:
        is_text = column in ("why", "text encoders", "fits", "result")
        table.add_column(column, justify="left" if is_text else "right", no_wrap=not is_text)
    return table


def _duration(seconds: float) -> str:
    if seconds < 0.1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 600:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes < 600 else f"{minutes / 60:.1f} h"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.095 else f"{100 * share:.1f} %"
