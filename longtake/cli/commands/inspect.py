"""longtake inspect: what a file of weights or a LoRA is, and what it would be applied to."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from longtake.cli.settings import given_values
from longtake.cli.terminal import View, print_line
from longtake.configs.fields.few_step import FewStep
from longtake.engine.tools.inspection import (
    CheckpointReport,
    FolderReport,
    LoraReport,
    inspect_path,
)
from longtake.engine.tools.inspection.checkpoint_report import ComponentReport
from longtake.engine.tools.inspection.lora_report import LoraFit, patterns
from longtake.files.sizes import format_bytes
from longtake.pipelines.loading.files.model_files import printable

_EXIT_WHOLE, _EXIT_NOT_WHOLE = 0, 1
_MAX_LINES = 40
"""Patterns of tensor names that are listed; --json lists all names."""

_SHOWN_METADATA = ("modelspec.title", "modelspec.architecture", "ss_base_model_version")
"""Keys by which trainers say what a file is."""


Report = CheckpointReport | FolderReport | LoraReport


def run(options: dict[str, Any], view: View) -> int:
    """Print the report.

    Returns:
        0 if all of the file would be used; 1 if not.
    """
    values = given_values(options)
    report = inspect_path(Path(os.path.expanduser(values["file"])), values.get("model"))
    view.close()
    if options["json"]:
        print_line(json.dumps(_as_json(report), indent=1, allow_nan=False), sys.stdout)
    elif not options["quiet"]:
        for line in _lines(report):  # names in a file may hold codes that steer a terminal
            print_line(line if line.isprintable() else repr(line)[1:-1], sys.stdout)
    return _EXIT_WHOLE if report.is_usable else _EXIT_NOT_WHOLE


def _lines(report: Report) -> Iterator[str]:
    if isinstance(report, LoraReport):
        yield from _lora_lines(report)
    elif isinstance(report, CheckpointReport):
        yield from _checkpoint_lines(report)
    else:
        yield f"{report.path}: {report.publisher} folder"
        if report.problem:
            yield _line("unusable", report.problem)
        else:
            yield _line("use", f"--model {report.path} (the rest is that of {report.preset})")
        for part in report.parts:
            yield from _checkpoint_lines(part)


def _as_json(report: Report) -> dict[str, Any]:
    if isinstance(report, LoraReport):
        return _lora_json(report)
    if isinstance(report, CheckpointReport):
        return _checkpoint_json(report)
    return {
        "kind": "folder",
        "path": str(report.path),
        "publisher": report.publisher,
        "preset": report.preset,
        "problem": report.problem,
        "usable": report.is_usable,
        "parts": [_checkpoint_json(each) for each in report.parts],
    }


def _line(name: str, text: str) -> str:
    return f"  {name:<12}{text}"


def _said_lines(metadata: Mapping[str, str], few_step: FewStep | None) -> Iterator[str]:
    """What a file says of itself."""
    said = [f"{key}={printable(metadata[key])}" for key in _SHOWN_METADATA if key in metadata]
    if said:
        yield _line("says", ", ".join(said))
    if few_step is not None:
        yield _line("made for", str(few_step))


def _settings(few_step: FewStep | None) -> dict[str, Any]:
    return {} if few_step is None else few_step.model_dump(mode="json", exclude_none=True)


def _checkpoint_lines(report: CheckpointReport) -> Iterator[str]:
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in sorted(report.dtypes.items()))
    yield f"{report.path}: {report.kind}, {format_bytes(report.num_bytes)}; tensors: {dtypes}"
    yield from _said_lines(report.metadata, report.few_step)
    for each in report.components:
        found = each.recognized
        prefix = f", names begin with {found.prefix}" if found.prefix else ""
        yield _line("holds", f"{found}{prefix}")
        yield _line("size", f"{_count(each.num_values)} values in {each.num_tensors} tensors")
        if each.problem:
            yield _line("unusable", each.problem)
        elif not each.fits:
            yield _line("fits", "no bundled model or preset: use --model with one of its own")
        else:
            yield from _uses(report, each)


def _uses(report: CheckpointReport, component: ComponentReport) -> Iterator[str]:
    for at, (model, name) in enumerate(component.fits):
        option = name.replace("_", "-")
        yield _line("" if at else "use", f"--model {model} --{option} {report.path}")


def _lora_lines(report: LoraReport) -> Iterator[str]:
    file = report.file
    size = format_bytes(report.num_bytes)
    yield f"{file.path}: a LoRA, {size}, {len(file.tensors)} tensors, all finite"
    yield from _said_lines(file.metadata, report.few_step)
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(report.kinds.items()))
    norms = ", with norms of rows (DoRA)" if report.has_norms else ""
    yield _line("changes", f"{len(file.adapters)} modules: {kinds}{norms}")
    if report.ranks:
        yield _line("rank", f"{_range(report.ranks)}, alpha over rank {_range(report.factors)}")
    if not report.fits:
        yield _line("fits", report.reason or "no bundled model or preset")
        return
    best = report.fits[0]
    yield _line("names", f"{best.match.layout} layout")
    for at, fit in enumerate(report.fits):
        use = file.path if fit.component is None else f"{file.path}@{fit.component}"
        yield _line("" if at else "use", f"--model {fit.model} --lora {use}")
    yield from _patterns("applied", best.changed(), f"of {best.model}")
    if best.match.left:
        without = f"that {best.model} lacks: refused, unless --lora-partial goes on without"
        yield from _patterns("left out", best.match.left, without)


def _patterns(name: str, names: list[str] | tuple[str, ...], ending: str) -> Iterator[str]:
    counted = patterns(names)
    yield _line(name, f"{len(names)} tensors {ending}")
    for pattern, count in list(counted.items())[:_MAX_LINES]:
        yield _line("", f"{count:>5} x {pattern}")
    if len(counted) > _MAX_LINES:
        yield _line("", f"      and {len(counted) - _MAX_LINES} more: see --json")


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} billion" if number >= 1e9 else f"{number / 1e6:.2f} million"


def _range(values: list[Any]) -> str:
    first, last = values[0], values[-1]
    return f"{first:.4g}" if first == last else f"{first:.4g} to {last:.4g}"


def _checkpoint_json(report: CheckpointReport) -> dict[str, Any]:
    return {
        "kind": "checkpoint",
        "path": str(report.path),
        "format": report.kind,
        "num_bytes": report.num_bytes,
        "dtypes": dict(report.dtypes),
        "metadata": dict(report.metadata),
        "few_step": _settings(report.few_step),
        "usable": report.is_usable,
        "components": [
            {
                "component": each.recognized.layout.component,
                "family": each.recognized.family.name,
                "layout": each.recognized.layout.name,
                "prefix": each.recognized.prefix,
                "num_tensors": each.num_tensors,
                "num_values": each.num_values,
                "config": dict(each.config),
                "fits": [{"model": model, "component": name} for model, name in each.fits],
                "problem": each.problem,
            }
            for each in report.components
        ],
    }


def _lora_json(report: LoraReport) -> dict[str, Any]:
    return {
        "kind": "lora",
        "path": str(report.file.path),
        "num_bytes": report.num_bytes,
        "sha256": report.sha256,
        "num_tensors": len(report.file.tensors),
        "metadata": dict(report.file.metadata),
        "few_step": _settings(report.few_step),
        "usable": report.is_usable,
        "reason": report.reason,
        "adapters": [asdict(each) for each in report.file.adapters],
        "fits": [_fit_json(each) for each in report.fits],
    }


def _fit_json(fit: LoraFit) -> dict[str, Any]:
    return {
        "model": fit.model,
        "component": fit.component,
        "layout": fit.match.layout,
        "applied": {component: list(own) for component, own in fit.match.deltas.items()},
        "left": list(fit.match.left),
    }
