"""longtake models: the bundled models and the presets, what is here, and what runs here."""

from __future__ import annotations

import json
import sys
from typing import Any

from longtake.cli.settings import given_values, pop_fields
from longtake.cli.table import Table
from longtake.cli.terminal import View, format_duration, print_line
from longtake.configs.commands.tools import PlanConfig
from longtake.configs.engine import EngineConfig
from longtake.engine.planning.hardware import find_hardware
from longtake.engine.tools.model_list import ListedModel, list_models
from longtake.files.sizes import format_bytes

_TABLE = Table(
    header=("model", "takes", "weights", "license", "here", "largest video that fits", "rendering"),
    shortened=("largest video that fits",),
    dropped=("license", "takes"),
)


def run(options: dict[str, Any], view: View) -> None:
    """Print the list."""
    values = given_values(options)
    plan = PlanConfig(**pop_fields(values, PlanConfig))
    config = EngineConfig(**values)
    hardware = find_hardware(plan.gpu, plan.gpus_per_node)
    listed = list(list_models(config, hardware))
    if options["json"]:
        described = {
            "hardware": hardware.description,
            "devices": config.devices,
            "models": [_as_json(each) for each in listed],
        }
        print_line(json.dumps(described, indent=1, allow_nan=False), sys.stdout)
    elif not options["quiet"]:
        view.close()
        for line in _TABLE.lines([_cells(each) for each in listed]):
            print_line(line, sys.stdout)
        print_line(f"\nOn {config.devices} x {hardware.description}.", sys.stdout)
        print_line("longtake download MODEL downloads a model.", sys.stdout)


def _cells(model: ListedModel) -> tuple[str, ...]:
    request, best = model.fit.request, model.fit.prediction
    video = f"{request.width}x{request.height}, {request.num_frames} frames"
    if request.num_frames < model.fit.default:
        video += f" of {model.fit.default}"
    return (
        model.name,
        _takes(model),
        format_bytes(model.num_bytes),
        model.license,
        model.state,
        "none" if best is None else video,
        "" if best is None else format_duration(best.rendering_s),
    )


def _takes(model: ListedModel) -> str:
    pictures = [
        f"{name}{'' if needed == 'required' else ' (optional)'}"
        for name, needed in model.spec.pictures.items()
    ]
    return ", ".join(["text", *pictures])


def _as_json(model: ListedModel) -> dict[str, Any]:
    request, best = model.fit.request, model.fit.prediction
    return {
        "model": model.name,
        "family": model.spec.family,
        "repository": model.repository,
        "license": model.license,
        "pictures": dict(model.spec.pictures),
        "state": model.state,
        "num_bytes": model.num_bytes,
        "fits": best is not None,
        "width": request.width,
        "height": request.height,
        "num_frames": request.num_frames,
        "rendering_s": None if best is None else best.rendering_s,
    }
