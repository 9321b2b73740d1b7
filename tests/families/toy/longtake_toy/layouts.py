"""Names of tensors in files of toy models: longtake_toy's own, and those of another trainer."""

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from longtake.pipelines.checkpoints.layout import CheckpointLayout, Piece, TensorNames
from longtake.pipelines.loading.files.tensor_files import Tensor
from longtake.pipelines.loading.tensor_shapes import NamedShapes, linear, norm
from longtake_toy.spec import PATCH, SPACE, TIME


def config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What shapes tell: not into how many heads the width is divided."""
    blocks = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
    return {
        "latent_channels": tensors["embed.weight"].shape[1] // prod(PATCH),
        "num_layers": len(blocks),
        "text_size": tensors["blocks.0.text_kv.weight"].shape[1] if blocks else 1,
    }


def shapes(config: Mapping[str, Any]) -> NamedShapes:
    """Tensors of ToyDenoiser."""
    width = config["num_heads"] * config["head_size"]
    values = prod(PATCH) * config["latent_channels"]
    yield from linear("embed", values, width)
    yield from linear("head", width, values)
    yield from linear("place", 3, width)
    yield from linear("time", 1, width)
    for index in range(config["num_layers"]):
        block = f"blocks.{index}."
        for number in range(3):
            yield from norm(f"{block}norms.{number}", width)
        for name in ("to_out", "text_q", "text_out"):
            yield from linear(f"{block}{name}", width, width)
        yield from linear(f"{block}to_qkv", width, 3 * width)
        yield from linear(f"{block}text_kv", config["text_size"], 2 * width)
        yield from linear(f"{block}to_inner", width, 2 * width)
        yield from linear(f"{block}from_inner", 2 * width, width)


def same(config: Mapping[str, Any]) -> TensorNames:
    """The names of ToyDenoiser."""
    return {name: (Piece(name),) for name, _ in shapes(config)}


def others(config: Mapping[str, Any]) -> TensorNames:
    """Of the other trainer: q, k and v are three layers, and two outputs are one."""
    return {name: tuple(_pieces(name, shape[0])) for name, shape in shapes(config)}


def _pieces(name: str, num_rows: int) -> Iterator[Piece]:
    layer, _, kind = name.rpartition(".")
    if layer.endswith("to_qkv"):
        for part in "qkv":
            yield Piece(f"{layer.removesuffix('to_qkv')}{part}.{kind}")
    elif layer.endswith(("to_out", "text_out")):
        first = num_rows * layer.endswith("text_out")
        yield Piece(f"{layer.rpartition('.')[0]}.outs.{kind}", (first, first + num_rows))
    else:
        yield Piece(name)


def autoencoder_shapes(config: Mapping[str, Any]) -> NamedShapes:
    """Tensors of the autoencoder."""
    yield "weight", (config["latent_channels"], 3, TIME, SPACE, SPACE)
    yield "bias", (3,)


LAYOUTS = (
    CheckpointLayout(
        name="longtake_toy's",
        component="transformer",
        class_name="ToyDenoiser",
        recognizes=lambda tensors: "embed.weight" in tensors and "blocks.0.q.weight" not in tensors,
        config=config,
        shapes=shapes,
        names=same,
    ),
    CheckpointLayout(
        name="another trainer's",
        component="transformer",
        class_name="ToyDenoiser",
        recognizes=lambda tensors: "blocks.0.q.weight" in tensors,
        config=config,
        shapes=shapes,
        names=others,
        unused=lambda name: name == "step",
    ),
    CheckpointLayout(
        name="longtake_toy's",
        component="vae",
        class_name="ConvTranspose3d",
        recognizes=lambda tensors: len(tensors.get("weight", Tensor("F32", (), (0, 0))).shape) == 5,
        config=lambda tensors: {"latent_channels": tensors["weight"].shape[0]},
        shapes=autoencoder_shapes,
        names=lambda config: {name: (Piece(name),) for name, _ in autoencoder_shapes(config)},
    ),
)
