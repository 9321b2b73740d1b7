"""A small transformer with what loading must get right, and functions that ranks run with it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from benchmarks.traffic import TrafficMeter
from longtake.parallel import World
from longtake.pipelines.loading.tensor_source import SafetensorsSource
from longtake.pipelines.loading.weights import (
    all_gather_bytes,
    load_weights,
    prefetch,
    shard_module,
)
from longtake.pipelines.runtime.block_runner import BlockRunner
from tests.ranks import random_tensors
from tests.rendering import ALONE, world

WIDTH, NUM_BLOCKS = 8, 4
FLOAT32 = re.compile(r"(^|\.)(norm\d|scale_shift_table)(\.|$)")


class Block(nn.Module):
    """A block whose norm and table are computed in float32, as Wan's are."""

    def __init__(self) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.zeros(1, 2, WIDTH))
        self.norm1 = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 7)
        self.down = nn.Linear(7, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale, shift = self.scale_shift_table.unbind(1)
        normed = self.norm1(x.float()) * (1 + scale) + shift
        changed: torch.Tensor = self.down(self.up(normed.to(x.dtype)).relu())
        return x + changed


class Transformer(nn.Module):
    """Blocks between two projections, a persistent buffer and two that no state dict holds."""

    positions: torch.Tensor
    rope: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(NUM_BLOCKS))
        self.head = nn.Linear(WIDTH, 3)
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.register_buffer("rope", torch.zeros(6, WIDTH, dtype=torch.float64), persistent=False)
        self.register_buffer("positions", torch.zeros(4, dtype=torch.int64), persistent=False)

    def forward(self, x: torch.Tensor, prefetches: bool = False) -> torch.Tensor:
        x = self.embed(x) + self.mean + self.rope[self.positions].to(x.dtype)
        if prefetches:
            blocks, run_blocks = list(self.blocks), BlockRunner()
            segments = run_blocks(blocks[:2], [x], then=blocks[2])
            (x,) = run_blocks(blocks[2:], segments)
        else:
            for block in self.blocks:
                x = block(x)
        velocity: torch.Tensor = self.head(x)
        return velocity


class Experts(nn.Module):
    """Two transformers, of which one is called."""

    def __init__(self, experts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.experts = nn.ModuleList(experts)

    def forward(self, x: torch.Tensor, expert: int) -> torch.Tensor:
        velocity: torch.Tensor = self.experts[expert](x, prefetches=True)
        return velocity


def on_meta() -> Transformer:
    """A transformer without weights."""
    with torch.device("meta"):
        return Transformer()


def buffers() -> dict[str, torch.Tensor]:
    """The buffers that no state dict holds."""
    (rope,) = random_tensors(1, [(6, WIDTH)], torch.float64)
    return {"rope": rope, "positions": torch.tensor([3, 1, 0, 5])}


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random float32 values of all tensors that a state dict holds."""
    state = on_meta().state_dict()
    tensors = random_tensors(seed, [tuple(each.shape) for each in state.values()])
    return dict(zip(state, tensors, strict=True))


def save_weights(
    folder: Path, tensors: Mapping[str, torch.Tensor] | None = None, num_files: int = 1
) -> list[Path]:
    """Save tensors, by default :func:`weights`, over several files."""
    tensors = weights() if tensors is None else tensors
    files = [folder / f"model-{number}.safetensors" for number in range(num_files)]
    for number, file in enumerate(files):
        names = list(tensors)[number::num_files]
        save_file({name: tensors[name] for name in names}, file)
    return files


def load(module: nn.Module, files: Sequence[Path], ranks: World, **options: Any) -> None:
    """Load a transformer in bfloat16, with its float32 parts and buffers unless told otherwise."""
    settings: dict[str, Any] = {"float32": FLOAT32, "buffers": buffers(), **options}
    load_weights(module, SafetensorsSource(files), ranks, torch.bfloat16, **settings)


def loaded(files: Sequence[Path], ranks: World, *, sharded: bool = False) -> Transformer:
    """A loaded transformer."""
    transformer = on_meta()
    if sharded:
        shard_module(transformer, transformer.blocks, ranks)
    load(transformer, files, ranks)
    return transformer


def tokens(seed: int = 5) -> torch.Tensor:
    """An input of the transformer, ``[4, 5]``."""
    return random_tensors(seed, [(4, 5)], torch.bfloat16)[0]


@torch.inference_mode()
def outputs(files: list[Path], sharded: bool, prefetches: bool) -> list[torch.Tensor]:
    """On a rank: the outputs of three calls."""
    transformer = loaded(files, world(), sharded=sharded)
    return [transformer(tokens(seed), prefetches) for seed in range(3)]


def rows_read(files: list[Path]) -> tuple[dict[str, int], int]:
    """On a rank: rows read of each tensor for a sharded transformer, and bytes sent meanwhile."""
    rows: dict[str, int] = {}

    class Counting(SafetensorsSource):
        def read(self, name: str, rows_: slice | None = None) -> torch.Tensor:
            tensor = super().read(name, rows_)
            assert name not in rows
            rows[name] = len(tensor)
            return tensor

    transformer = on_meta()
    shard_module(transformer, transformer.blocks, world())
    with TrafficMeter() as meter:
        load_weights(
            transformer,
            Counting(files),
            world(),
            torch.bfloat16,
            float32=FLOAT32,
            buffers=buffers(),
        )
    return rows, meter.bytes_sent


@torch.inference_mode()
def gathers_before_blocks(files: list[Path], prefetches: bool) -> list[int]:
    """On a rank: the number of gathers started before each block computes, and of all."""
    transformer = loaded(files, world(), sharded=True)
    started: list[int] = []
    with TrafficMeter() as meter:
        for block in transformer.blocks:
            block.get_submodule("norm1").register_forward_pre_hook(
                lambda module, args: started.append(len(meter.order))
            )
        transformer(tokens(), prefetches)
    return [*started, len(meter.order)]


@torch.inference_mode()
def prefetch_twice(files: list[Path]) -> list[str]:
    """On a rank: operations of two prefetches of a block before its call."""
    transformer = loaded(files, world(), sharded=True)
    transformer(tokens())
    with TrafficMeter() as meter:
        prefetch(transformer.blocks[1])
        prefetch(transformer.blocks[1])
        transformer.blocks[1](torch.zeros(4, WIDTH, dtype=torch.bfloat16))
    return list(meter.order)


@torch.inference_mode()
def sent_and_counted(files: list[Path]) -> tuple[int, int]:
    """On a rank: bytes sent in one forward, and those of :func:`all_gather_bytes`."""
    transformer = loaded(files, world(), sharded=True)
    with TrafficMeter() as meter:
        transformer(tokens(), prefetches=True)
    return meter.bytes_sent, all_gather_bytes(transformer)


@torch.inference_mode()
def run_experts(
    files: tuple[list[Path], list[Path]], order: list[int]
) -> list[tuple[torch.Tensor, int, int]]:
    """On a rank: output, bytes sent and bytes counted of each call of two sharded experts."""
    model = Experts([loaded(each, world(), sharded=True) for each in files])
    calls = []
    for expert in order:
        with TrafficMeter() as meter:
            output = model(tokens(), expert)
        calls.append((output, meter.bytes_sent, all_gather_bytes(model.experts[expert])))
    return calls


@torch.inference_mode()
def outputs_on_one_rank(files: list[Path]) -> list[torch.Tensor]:
    """The outputs of three calls in this process."""
    transformer = loaded(files, ALONE)
    return [transformer(tokens(seed)) for seed in range(3)]
