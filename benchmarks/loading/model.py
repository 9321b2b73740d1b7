"""A made-up HunyuanVideo of real width and few blocks, and a LoRA for all of its linear layers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.plan_input import MODEL
from longtake.pipelines.checkpoints.recognition import layouts_of
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.registry import family_of

RANK = 64

_PATTERN_BYTES = 2**24
_LINEAR = ("attn", "ff", "proj_mlp", "proj_out")

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class MadeUpModel:
    """The files.

    Attributes:
        config: Content of the transformer's config.json.
        weights: File of the transformer, in diffusers' layout and bfloat16.
        lora: File of the LoRA, in peft's spelling and bfloat16.
    """

    config: dict[str, Any]
    weights: Path
    lora: Path

    @classmethod
    def write(cls, folder: Path, num_bytes: float) -> MadeUpModel:
        """Write both files.

        Args:
            folder: Folder for them.
            num_bytes: Least size of the transformer.
        """
        checkpoint = Checkpoint.open(MODEL, configs_only=True)
        (layout, *_) = [
            each
            for each in layouts_of(family_of(checkpoint), "transformer")
            if each.name == "diffusers'"
        ]
        config, shapes = checkpoint.config("transformer"), {}
        for blocks in range(1, 21):  # two single-stream blocks for a double-stream one, as in all
            config = {**config, "num_layers": blocks, "num_single_layers": 2 * blocks}
            shapes = dict(layout.shapes(config))
            if 2 * sum(map(math.prod, shapes.values())) >= num_bytes:
                break
        model = cls(config, folder / "weights.safetensors", folder / "lora.safetensors")
        _write(model.weights, shapes, scale=0.02)
        _write(model.lora, _lora_shapes(shapes), scale=0.002)
        return model


def _lora_shapes(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Shapes of a LoRA's tensors: of every linear layer in a block, but for those of modulation."""
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        parts = module.split(".")
        if len(shape) == 2 and "blocks" in parts[0] and parts[2] in _LINEAR:
            found[f"transformer.{module}.lora_A.weight"] = (RANK, shape[1])
            found[f"transformer.{module}.lora_B.weight"] = (shape[0], RANK)
    return found


def _write(path: Path, shapes: Shapes, scale: float) -> None:
    """Write random values in bfloat16: one pattern, repeated, so that it takes no memory."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    values = np.random.default_rng(0).standard_normal(_PATTERN_BYTES // 2, np.float32) * scale
    pattern = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for begin in range(0, end, _PATTERN_BYTES):
            file.write(pattern[: end - begin])
