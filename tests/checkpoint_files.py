"""Small files of weights in every format, written by other libraries or from the definition."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

Tensors = Mapping[str, torch.Tensor]


def float8_scaled(
    weight: torch.Tensor,
    kind: str = "tensor",
    groups: int = 1,
    dtype: torch.dtype = torch.float8_e4m3fn,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight divided by scales of powers of two, and the scales.

    Args:
        weight: ``[R, C]``, any floating-point dtype.
        kind: "tensor" (a scalar), "row" (``[R, 1]``) or "group" (``[R, groups, 1]``).
        groups: Equal parts of a row's columns that have a scale each.
        dtype: A float8 dtype.
    """
    rows = weight.float().unflatten(1, (groups if kind == "group" else 1, -1))
    largest = rows.abs().amax() if kind == "tensor" else rows.abs().amax(-1, keepdim=True)
    scale = (largest / torch.finfo(dtype).max).log2().ceil().exp2()
    codes = (rows / scale).to(dtype).flatten(1)
    return codes, scale[:, 0] if kind == "row" else scale


def save_comfy_scaled(path: Path, tensors: Tensors, *, newer: bool = False) -> None:
    """Save matrices as ComfyUI's fp8_scaled: its first or its newer spelling."""
    saved: dict[str, torch.Tensor] = {}
    scale, inputs = ("weight_scale", "input_scale") if newer else ("scale_weight", "scale_input")
    layers = {}
    for name, tensor in tensors.items():
        layer, _, leaf = name.rpartition(".")
        if leaf != "weight" or tensor.dim() != 2:
            saved[name] = tensor
            continue
        saved[name], saved[f"{layer}.{scale}"] = float8_scaled(tensor)
        saved[f"{layer}.{inputs}"] = torch.tensor(1.5)
        layers[layer] = {"format": "float8_e4m3fn"}
    if newer:
        listed = json.dumps({"format_version": "1.0", "layers": layers})
        save_file(saved, path, {"_quantization_metadata": listed})
    else:
        saved["scaled_fp8"] = torch.empty(0, dtype=torch.float8_e4m3fn)
        save_file(saved, path)


def layer_json(content: object) -> torch.Tensor:
    """What ComfyUI keeps beside a layer as ``comfy_quant``."""
    return torch.tensor(list(json.dumps(content).encode()), dtype=torch.uint8)


def raw_safetensors(path: Path, header: object, values: bytes = b"") -> None:
    """Write a safetensors file with any header, true or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + values)


def rezip(source: Path, target: Path, changes: Mapping[str, bytes], deflate: bool = False) -> None:
    """Copy an archive of ``torch.save`` with other content of some of its files.

    Args:
        source: The archive.
        target: The copy.
        changes: Content by the name inside of the archive's folder; new names are added.
        deflate: Whether the files are compressed.
    """
    how = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", how) as new:
        folder = old.namelist()[0].partition("/")[0]
        content = {name: old.read(name) for name in old.namelist()}
        for name, data in (content | {f"{folder}/{k}": v for k, v in changes.items()}).items():
            new.writestr(name, data)
