"""Finds where the adapters of a file belong, or says which do not; without torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from longtake.configs.fields.lora import LoraUse
from longtake.errors import RequestError
from longtake.pipelines.loading.files.model_files import printable
from longtake.pipelines.lora.adapters import Adapter
from longtake.pipelines.lora.lookalikes import check_layers, check_metadata
from longtake.pipelines.lora.lora_file import LoraFile
from longtake.pipelines.lora.targets import Home, LoraTargets

_PREFIXES = ("base_model.model.", "diffusion_model.", "transformer.", "model.", "pipe.dit.")
_FLAT_PREFIXES = (
    "lora_unet_",
    "lora_unet__",
    "lora_transformer_",
    "lora_transformer__",
    "lycoris_",
)
_LEAVES = {"weight": (".weight", ""), "bias": (".bias",), "modulation": (".modulation",)}
"""What follows a module's name in that of a tensor."""


@dataclass(frozen=True)
class Delta:
    """What a LoRA adds to rows of a module's tensor.

    Attributes:
        file: The LoRA.
        adapter: The change.
        scale: Factor that the user gave.
        rows: First row of the change that is added, and the end of its rows (exclusive).
        begin: Row of the module's tensor that the first one is added to.
    """

    file: LoraFile
    adapter: Adapter
    scale: float
    rows: tuple[int, int]
    begin: int = 0


Deltas = Mapping[str, tuple[Delta, ...]]
"""What is added to the tensors of a transformer, by name."""


@dataclass(frozen=True)
class LoraMatch:
    """Where the adapters of a LoRA belong.

    Attributes:
        file: The LoRA.
        layout: Name of the layout whose names it has.
        deltas: What it adds to the tensors of each transformer, by component. At scale 0 they are
            listed, too, and are not added.
        left: Names of its tensors that belong nowhere.
    """

    file: LoraFile
    layout: str
    deltas: Mapping[str, Deltas]
    left: tuple[str, ...] = ()


def match(
    file: LoraFile, use: LoraUse, targets: Mapping[str, LoraTargets], *, partial: bool = False
) -> LoraMatch:
    """Find where the adapters of a LoRA belong.

    Args:
        file: The LoRA.
        use: Its scale, and the transformer that the user named.
        targets: The tensors of the model's transformers, by component.
        partial: Whether tensors that belong nowhere are left out, not refused.

    Raises:
        RequestError: A tensor belongs nowhere, or all do, or two are the same change; the
            transformer does not exist; there are two, and nothing says which it is for; or it is
            for a model that looks alike.
    """
    for each in targets.values():
        check_metadata(file, each.lookalikes)
    components = _components(file, use, targets)
    layout, homes = _best_layout(file, components, targets)
    _check_once(file, components, homes)
    deltas: dict[str, dict[str, tuple[Delta, ...]]] = {}
    left, misfit = list(file.others), ""
    for adapter, component, own in zip(file.adapters, components, homes, strict=True):
        shapes = targets[component].shapes
        wrong = _misfit(adapter, own, shapes)
        if wrong is not None:
            misfit = misfit or ("" if left else wrong)
            left += adapter.parts.values()
            continue
        changed = deltas.setdefault(component, {})
        for home in own:
            rows = home.rows or (0, shapes[home.target][0])
            delta = Delta(file, adapter, use.scale, rows, home.begin)
            changed[home.target] = (*changed.get(home.target, ()), delta)
    if left and not (partial and deltas):
        raise RequestError(
            f"lora={file.path} holds {printable(left[0])}, which {misfit or 'the model lacks'}"
            f" ({len(left)} of its {len(file.tensors)} tensors do not fit): it is for another model"
            + (", or lora_partial=true goes on without them" if deltas else "")
        )
    for component, own_deltas in deltas.items():
        of = targets[component]
        check_layers(file, own_deltas, of.shapes, of.lookalikes)
    return LoraMatch(file, layout, deltas, tuple(left))


def combine(matches: Iterable[LoraMatch]) -> dict[str, Deltas]:
    """What several LoRAs add to the tensors of each transformer, by component, in their order."""
    combined: dict[str, dict[str, tuple[Delta, ...]]] = {}
    for each in matches:
        for component, deltas in each.deltas.items():
            changed = combined.setdefault(component, {})
            for target, added in deltas.items():
                changed[target] = (*changed.get(target, ()), *added)
    return {**combined}


def _components(file: LoraFile, use: LoraUse, targets: Mapping[str, LoraTargets]) -> Sequence[str]:
    """The transformer that each adapter of a file is for."""
    first, *others = targets
    listed = " or ".join(f"{use.file}@{name}" for name in targets)
    if use.component is not None and use.component not in targets:
        raise RequestError(f"lora={use} names no transformer of the model: write {listed}")
    told = [
        next((name for name in others if each.module.startswith(f"{name}.")), first)
        for each in file.adapters
    ]
    if set(told) <= {first}:
        if use.component is None and others:
            raise RequestError(
                f"lora={use.file} does not say which of the model's {len(targets)} transformers it "
                f"is for: write {listed}"
            )
        return [use.component or first] * len(told)
    if use.component is not None and set(told) != {use.component}:
        raise RequestError(
            f"lora={use} names a transformer, but the file names one for each of its tensors: "
            f"write {use.file}:{use.scale!r}"
        )
    return told


def _best_layout(
    file: LoraFile, components: Sequence[str], targets: Mapping[str, LoraTargets]
) -> tuple[str, list[tuple[Home, ...]]]:
    """The layout in which most adapters of a file have a home, and their homes."""
    found = {
        layout: [
            _homes(adapter, component, targets[component], layout)
            for adapter, component in zip(file.adapters, components, strict=True)
        ]
        for layout in next(iter(targets.values())).layouts
    }
    best = max(found, key=lambda layout: sum(map(bool, found[layout])))
    return best, found[best]


def _check_once(
    file: LoraFile, components: Sequence[str], homes: Sequence[tuple[Home, ...]]
) -> None:
    """Check that a file does not hold the same change twice, under two spellings."""
    seen: dict[tuple[str, tuple[Home, ...]], Adapter] = {}
    for adapter, component, own in zip(file.adapters, components, homes, strict=True):
        first = seen.setdefault((component, own), adapter)
        if own and first is not adapter:
            raise RequestError(
                f"lora={file.path} changes {own[0].target} twice, as {printable(first.module)} and "
                f"as {printable(adapter.module)}: save one adapter in a file"
            )


def _homes(adapter: Adapter, component: str, targets: LoraTargets, layout: str) -> tuple[Home, ...]:
    """Where an adapter belongs in a layout; empty if nowhere."""
    homes = targets.homes[layout]
    for module in _spellings(adapter.module.removeprefix(f"{component}."), targets, layout):
        for ending in _LEAVES[adapter.leaf]:
            if found := homes.get(module + ending):
                return found
    return ()


def _spellings(module: str, targets: LoraTargets, layout: str) -> Iterator[str]:
    """What a module in a file may be called in a layout: without prefixes, and with its dots."""
    yield module
    while prefix := next(filter(module.startswith, _PREFIXES), ""):
        module = module.removeprefix(prefix)
        yield module
    flat = targets.flat_names[layout]
    for prefix in (*_FLAT_PREFIXES, *targets.lora_prefixes):
        if module.startswith(prefix) and module.removeprefix(prefix) in flat:
            yield flat[module.removeprefix(prefix)]


def _misfit(
    adapter: Adapter, homes: Sequence[Home], shapes: Mapping[str, tuple[int, ...]]
) -> str | None:
    """Why an adapter does not fit where it belongs; None if it does, empty if it has no home."""
    if not homes:
        return ""
    rows, columns = adapter.shape
    for home in homes:
        shape = shapes[home.target]
        if not shape:
            fits = False  # a single number has no rows to which something is added
        elif home.rows is None:
            one_row = adapter.kind == "diff" and 1 in (rows, shape[0])
            fits = (one_row or rows == shape[0]) and rows * columns == math.prod(shape)
        else:
            expected = max(end for _, end in (each.rows or (0, 0) for each in homes))
            fits = (rows, columns) == (expected, math.prod(shape[1:]))
        if not fits:
            return (
                f"is part of a change of {rows} x {columns} values, and does not fit "
                f"{home.target} of shape {shape}"
            )
    return None
