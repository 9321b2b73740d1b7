"""LoRAs in the spellings and formulas of other programs, and what each adds by its definition.

A LoRA is written for modules under the names of a program. Names and rows are written out by hand,
and what a module's weight changes by is computed in float64 from the formula of the format.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]

RANK, ALPHA = 3, 4.5

WAN: Mapping[str, Sequence[str]] = {
    "blocks.0.self_attn.q": ["blocks.0.attn1.to_q"],
    "blocks.1.self_attn.k": ["blocks.1.attn1.to_k"],
    "blocks.0.self_attn.v": ["blocks.0.attn1.to_v"],
    "blocks.1.self_attn.o": ["blocks.1.attn1.to_out.0"],
    "blocks.0.cross_attn.q": ["blocks.0.attn2.to_q"],
    "blocks.0.cross_attn.o": ["blocks.0.attn2.to_out.0"],
    "blocks.0.ffn.0": ["blocks.0.ffn.net.0.proj"],
    "blocks.1.ffn.2": ["blocks.1.ffn.net.2"],
    "patch_embedding": ["patch_embedding"],
    "text_embedding.0": ["condition_embedder.text_embedder.linear_1"],
    "text_embedding.2": ["condition_embedder.text_embedder.linear_2"],
    "time_embedding.2": ["condition_embedder.time_embedder.linear_2"],
    "time_projection.1": ["condition_embedder.time_proj"],
    "head.head": ["proj_out"],
}
"""Modules by Wan's own names: the modules of diffusers that they are, one below the other."""

WAN_PICTURES: Mapping[str, Sequence[str]] = {
    **WAN,
    "blocks.0.cross_attn.k_img": ["blocks.0.attn2.add_k_proj"],
    "blocks.1.cross_attn.v_img": ["blocks.1.attn2.add_v_proj"],
    "img_emb.proj.1": ["condition_embedder.image_embedder.ff.net.0.proj"],
    "img_emb.proj.3": ["condition_embedder.image_embedder.ff.net.2"],
}
"""Those of a model with image keys."""

_DOUBLE, _SINGLE = "transformer_blocks.0", "single_transformer_blocks.1"
_REFINER = "context_embedder.token_refiner.refiner_blocks.0"
_REFINED = "txt_in.individual_token_refiner.blocks.0"

TENCENT: Mapping[str, Sequence[str]] = {
    "double_blocks.0.img_attn_qkv": [f"{_DOUBLE}.attn.to_{each}" for each in "qkv"],
    "double_blocks.0.txt_attn_qkv": [f"{_DOUBLE}.attn.add_{each}_proj" for each in "qkv"],
    "double_blocks.0.img_attn_proj": [f"{_DOUBLE}.attn.to_out.0"],
    "double_blocks.0.txt_attn_proj": [f"{_DOUBLE}.attn.to_add_out"],
    "double_blocks.0.img_mlp.fc1": [f"{_DOUBLE}.ff.net.0.proj"],
    "double_blocks.0.txt_mlp.fc2": [f"{_DOUBLE}.ff_context.net.2"],
    "double_blocks.0.img_mod.linear": [f"{_DOUBLE}.norm1.linear"],
    "single_blocks.1.linear1": [
        *(f"{_SINGLE}.attn.to_{each}" for each in "qkv"),
        f"{_SINGLE}.proj_mlp",
    ],
    "single_blocks.1.linear2": [f"{_SINGLE}.proj_out"],
    "single_blocks.1.modulation.linear": [f"{_SINGLE}.norm.linear"],
    f"{_REFINED}.self_attn_qkv": [f"{_REFINER}.attn.to_{each}" for each in "qkv"],
    f"{_REFINED}.mlp.fc1": [f"{_REFINER}.ff.net.0.proj"],
    "img_in.proj": ["x_embedder.proj"],
    "txt_in.input_embedder": ["context_embedder.proj_in"],
    "time_in.mlp.0": ["time_text_embed.timestep_embedder.linear_1"],
    "vector_in.in_layer": ["time_text_embed.text_embedder.linear_1"],
    "guidance_in.mlp.2": ["time_text_embed.guidance_embedder.linear_2"],
    "final_layer.linear": ["proj_out"],
    "final_layer.adaLN_modulation.1": ["norm_out.linear:shift", "norm_out.linear:scale"],
}
"""Modules by tencent's names. Its last modulation has the shift above the scale; diffusers' has the
scale above the shift."""

COMFYUI: Mapping[str, Sequence[str]] = {
    "double_blocks.0.img_attn.qkv": TENCENT["double_blocks.0.img_attn_qkv"],
    "double_blocks.0.txt_attn.qkv": TENCENT["double_blocks.0.txt_attn_qkv"],
    "double_blocks.0.img_attn.proj": TENCENT["double_blocks.0.img_attn_proj"],
    "double_blocks.0.img_mlp.0": TENCENT["double_blocks.0.img_mlp.fc1"],
    "double_blocks.0.txt_mlp.2": TENCENT["double_blocks.0.txt_mlp.fc2"],
    "double_blocks.0.img_mod.lin": TENCENT["double_blocks.0.img_mod.linear"],
    "single_blocks.1.linear1": TENCENT["single_blocks.1.linear1"],
    "single_blocks.1.modulation.lin": TENCENT["single_blocks.1.modulation.linear"],
    f"{_REFINED}.self_attn.qkv": TENCENT[f"{_REFINED}.self_attn_qkv"],
    f"{_REFINED}.mlp.0": TENCENT[f"{_REFINED}.mlp.fc1"],
    "time_in.in_layer": TENCENT["time_in.mlp.0"],
    "final_layer.linear": TENCENT["final_layer.linear"],
}
"""Modules by the names that they have in ComfyUI."""


def own_names(modules: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """The modules of a table by diffusers' names, each for itself."""
    names = {name.partition(":")[0] for found in modules.values() for name in found}
    return {name: [name] for name in sorted(names)}


@dataclass
class Written:
    """A LoRA, and what it adds.

    Attributes:
        tensors: What is saved.
        added: Change of each weight, by diffusers' name, float64; at alpha over rank, and scale 1.
        metadata: Metadata of the file.
    """

    tensors: Tensors = field(default_factory=dict)
    added: Tensors = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)

    def save(self, path: Path) -> Path:
        """Save the LoRA."""
        save_file(self.tensors, path, self.metadata)
        return path


Parts = tuple[Tensors, torch.Tensor]
"""Tensors by what follows the module's name, and the change that they stand for, float64."""

Formula = Callable[[Sequence[int], torch.Generator], Parts]
"""Random parts of an adapter for a weight of a shape."""


def write(
    base: Mapping[str, torch.Tensor],
    modules: Mapping[str, Sequence[str]],
    formula: Formula,
    spell: Callable[[str], str] = lambda module: module,
) -> Written:
    """Write a LoRA with random values.

    Args:
        base: The transformer's weights, by diffusers' names.
        modules: Modules by name, and those of diffusers that they consist of.
        formula: Makes the adapter of a module.
        spell: How a file spells a module.
    """
    generator = torch.Generator().manual_seed(7)
    written = Written()
    for module, owns in modules.items():
        names = [f"{own.partition(':')[0]}.weight" for own in owns]
        halves = [own.partition(":")[2] for own in owns]
        rows = [
            len(base[name]) // (2 if half else 1) for name, half in zip(names, halves, strict=True)
        ]
        parts, change = formula((sum(rows), *base[names[0]].shape[1:]), generator)
        written.tensors |= {f"{spell(module)}{end}": each for end, each in parts.items()}
        split = dict(zip(owns, change.split(rows), strict=True))
        if any(halves):
            (name, _) = names
            split = {owns[0]: torch.cat([split[owns[1]], split[owns[0]]])}
        for own, each in split.items():
            written.added[f"{own.partition(':')[0]}.weight"] = each
    return written


def random(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Values of about 0.3, float32."""
    return torch.randn(shape, generator=generator) * 0.3


def lora(down: str, up: str, alpha: str = "") -> Formula:
    """alpha / rank * up @ down, of a convolution as one with its kernel and one of size 1."""

    def make(shape: Sequence[int], generator: torch.Generator) -> Parts:
        ones = [1] * (len(shape) - 2)
        a, b = random(generator, RANK, *shape[1:]), random(generator, shape[0], RANK, *ones)
        parts = {down: a, up: b} | ({alpha: torch.tensor(ALPHA)} if alpha else {})
        change = (b.double().flatten(1) @ a.double().flatten(1)).reshape(shape)
        return parts, change * (ALPHA / RANK if alpha else 1.0)

    return make


PEFT = lora(".lora_A.weight", ".lora_B.weight")
KOHYA = lora(".lora_down.weight", ".lora_up.weight", ".alpha")


def tucker_lora(shape: Sequence[int], generator: torch.Generator) -> Parts:
    """LoCon's convolution: one of size 1, one with the kernel, one of size 1."""
    ones, kernel = [1] * (len(shape) - 2), shape[2:]
    down, mid = random(generator, RANK, shape[1], *ones), random(generator, RANK, RANK, *kernel)
    up = random(generator, shape[0], RANK, *ones)
    names = (".lora_down.weight", ".lora_mid.weight", ".lora_up.weight")
    change = torch.einsum(
        "op,pq...,qi->oi...", up.double().flatten(1), mid.double(), down.double().flatten(1)
    )
    return dict(zip(names, (down, mid, up), strict=True)), change


def loha(shape: Sequence[int], generator: torch.Generator) -> Parts:
    """alpha / rank * (w1_a @ w1_b) * (w2_a @ w2_b)."""
    columns = int(torch.Size(shape[1:]).numel())
    parts = {
        f".hada_{name}": random(generator, *size)
        for number in "12"
        for name, size in ((f"w{number}_a", (shape[0], RANK)), (f"w{number}_b", (RANK, columns)))
    }
    a, b, c, d = (each.double() for each in parts.values())
    change = ((a @ b) * (c @ d)).reshape(list(shape)) * ALPHA / RANK
    return parts | {".alpha": torch.tensor(ALPHA, dtype=torch.bfloat16)}, change


def tucker_loha(shape: Sequence[int], generator: torch.Generator) -> Parts:
    """The product of two convolutions in Tucker's decomposition."""
    parts: Tensors = {}
    change = torch.ones(list(shape), dtype=torch.float64)
    for number in "12":
        core = random(generator, RANK, RANK, *shape[2:])
        a, b = random(generator, RANK, shape[0]), random(generator, RANK, shape[1])
        parts |= {f".hada_t{number}": core, f".hada_w{number}_a": a, f".hada_w{number}_b": b}
        change *= torch.einsum("ij...,ip,jr->pr...", core.double(), a.double(), b.double())
    return parts, change


def lokr(first: str, second: str) -> Formula:
    """kron(w1, w2), times alpha / rank unless both are whole.

    Args:
        first: How w1 is stored: "whole" or "low".
        second: How w2 is: "whole", "low", or "tucker".
    """

    def make(shape: Sequence[int], generator: torch.Generator) -> Parts:
        rows, columns = _small_factor(shape[0]), _small_factor(shape[1])
        size = (shape[0] // rows, shape[1] // columns, *shape[2:])
        parts, one = _kronecker_factor("w1", first, (rows, columns), generator)
        more, other = _kronecker_factor("w2", second, size, generator)
        one = one.reshape(rows, columns, *[1] * (len(shape) - 2))
        factor = 1.0 if (first, second) == ("whole", "whole") else ALPHA / RANK
        return {**parts, **more, ".alpha": torch.tensor(ALPHA)}, torch.kron(one, other) * factor

    return make


def _small_factor(number: int) -> int:
    return next((each for each in (4, 3, 2) if number % each == 0), 1)


def _kronecker_factor(
    name: str, kind: str, shape: Sequence[int], generator: torch.Generator
) -> Parts:
    if kind == "whole":
        whole = random(generator, *shape)
        return {f".lokr_{name}": whole}, whole.double()
    if kind == "low":
        columns = int(torch.Size(shape[1:]).numel())
        a, b = random(generator, shape[0], RANK), random(generator, RANK, columns)
        parts = {f".lokr_{name}_a": a, f".lokr_{name}_b": b}
        return parts, (a.double() @ b.double()).reshape(list(shape))
    core = random(generator, RANK, RANK, *shape[2:])
    a, b = random(generator, RANK, shape[0]), random(generator, RANK, shape[1])
    parts = {".lokr_t2": core, f".lokr_{name}_a": a, f".lokr_{name}_b": b}
    return parts, torch.einsum("ij...,ip,jr->pr...", core.double(), a.double(), b.double())


def diff(shape: Sequence[int], generator: torch.Generator) -> Parts:
    """The change as it stands."""
    values = random(generator, *shape)
    return {".diff": values}, values.double()


def with_norms(
    written: Written,
    base: Mapping[str, torch.Tensor],
    modules: Mapping[str, Sequence[str]],
    end: str,
    spell: Callable[[str], str] = lambda module: module,
) -> Written:
    """Give the rows of changed weights norms of their own: m * (W + change) / |W + change| - W.

    Args:
        written: A LoRA of these modules.
        base: The transformer's weights, by diffusers' names.
        modules: The modules, none of which has its rows in another order than diffusers.
        end: What follows the module's name in that of m, ``[rows, 1...]`` or ``[rows]``.
        spell: How the file spells a module.
    """
    generator = torch.Generator().manual_seed(8)
    for module, owns in modules.items():
        magnitudes = []
        for own in owns:
            name = f"{own}.weight"
            whole = base[name].double() + written.added[name]
            norms = whole.flatten(1).norm(dim=1)
            magnitude = norms.float() * (1 + random(generator, len(norms)))
            ones = [1] * (whole.dim() - 1)
            scaled = whole * (magnitude.double() / norms).reshape(-1, *ones)
            written.added[name] = scaled - base[name].double()
            magnitudes.append(magnitude)
        values = torch.cat(magnitudes)
        written.tensors[f"{spell(module)}{end}"] = values if "lora" in end else values[:, None]
    return written


def with_peft_alpha(written: Written, prefix: str, **config: object) -> Written:
    """Write peft's configuration to the metadata."""
    content = {f"{prefix}{name}": value for name, value in config.items()}
    written.metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(content)}
    return written
