"""Small files of weights in every format, written by other libraries or from the definition."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
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


def random_blocks(num_rows: int, num_columns: int, kind: str, seed: int = 0) -> np.ndarray:
    """Rows of blocks of a type of GGUF with any codes, and scales that are finite.

    Returns:
        ``[num_rows, bytes of a row]``, uint8.
    """
    type_ = gguf.GGMLQuantizationType[kind]
    num_values, num_bytes = gguf.GGML_QUANT_SIZES[type_]
    shape = (num_rows * num_columns // num_values, num_bytes)
    blocks = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    # where float16 scales are: at the end of some types, at the begin of the others
    last = {"Q2_K": (-3, -1), "Q3_K": (-1,), "Q6_K": (-1,)}
    minima = kind in ("Q4_1", "Q5_1", "Q4_K", "Q5_K")
    for high_byte in last.get(kind, (1, 3) if minima else (1,)):
        blocks[:, high_byte] &= 0b10101111  # exponents below 16
    return blocks.reshape(num_rows, -1)


def save_gguf(
    path: Path,
    tensors: Mapping[str, tuple[np.ndarray, str]],
    metadata: Mapping[str, str | list[int]] | None = None,
) -> None:
    """Save tensors with the gguf package.

    Args:
        path: The file.
        tensors: Values of a plain type, or bytes of blocks by row, and the type, by name.
        metadata: Texts, and lists of numbers.
    """
    writer = gguf.GGUFWriter(path, "hyvid")
    for key, value in (metadata or {}).items():
        if isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, (values, kind) in tensors.items():
        writer.add_tensor(name, values, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def save_transformer_as_gguf(path: Path, tensors: Tensors) -> None:
    """Save a transformer as converters do: matrices in blocks of several types, the rest as it is.

    Args:
        path: The file.
        tensors: Its tensors by the names of the file.
    """
    saved: dict[str, tuple[np.ndarray, str]] = {}
    for number, (name, tensor) in enumerate(tensors.items()):
        values, kind = tensor.float().numpy(), "F32"
        if tensor.dim() == 2 and tensor.shape[1] % 32 == 0 and "_blocks." in name:
            kind = ("Q8_0", "Q4_0", "Q5_1")[number % 3]
            values = gguf.quantize(values, gguf.GGMLQuantizationType[kind])
        saved[name] = values, kind
    save_gguf(path, saved)
