"""Linear layers whose weights stay in the blocks of a GGUF file, and what fills them."""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import pytest
import torch
from torch import nn

from longtake.errors import ModelError
from longtake.pipelines.checkpoints.formats.gguf_types import BLOCK_TYPES
from longtake.pipelines.checkpoints.formats.source import open_source
from longtake.pipelines.checkpoints.layout import Piece
from longtake.pipelines.checkpoints.pieces_source import PiecesSource
from longtake.pipelines.counting.work import WorkCounter
from longtake.pipelines.loading.files.tensor_files import Tensor
from longtake.pipelines.loading.tensor_source import TensorSource, UsedTensors, block_types
from longtake.pipelines.lora.source import LoraSource
from longtake.pipelines.operations import LiveBytes, observing
from longtake.pipelines.quantization.block_linear import BlockLinear, block_linears
from longtake.pipelines.quantization.block_source import BlocksSource
from longtake.pipelines.quantization.codes import CODE_DTYPE
from longtake.pipelines.quantization.linear import stored_dtypes
from longtake.pipelines.quantization.replacement import keep_blocks
from tests import checkpoint_files
from tests.unit.pipelines.quantization.test_sizes import costs_of

COLUMNS = 512


@pytest.mark.parametrize("kind", BLOCK_TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_it_computes_with_the_decoded_weight(kind: str, dtype: torch.dtype) -> None:
    blocks = checkpoint_files.random_blocks(6, COLUMNS, kind)
    with torch.device("meta"):
        layer = BlockLinear(nn.Linear(COLUMNS, 6), kind)
    assert repr(layer) == f"BlockLinear(512, 6, block_type={kind})"
    assert layer.weight.shape == blocks.shape
    layer.weight = nn.Parameter(torch.from_numpy(blocks).view(CODE_DTYPE), requires_grad=False)
    layer.bias = nn.Parameter(torch.randn(6, dtype=dtype))
    weight = torch.from_numpy(gguf.dequantize(blocks, gguf.GGMLQuantizationType[kind])).to(dtype)
    for shape in ((2, 3, COLUMNS), (1, 0, COLUMNS), (COLUMNS,)):
        values = torch.randn(shape, dtype=dtype)
        expected = nn.functional.linear(values, weight, layer.bias)
        torch.testing.assert_close(layer(values), expected, rtol=0, atol=0)


class Model(nn.Module):
    """A block of three matrices, of which a file has two in blocks, between two others."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(COLUMNS, 4)
        self.block = nn.Sequential(nn.Linear(COLUMNS, 6), nn.Linear(COLUMNS, 2), nn.Linear(3, 3))


def save(path: Path) -> Path:
    """Save the model's tensors as one fused matrix, and matrices of their own."""
    plain = torch.zeros(3, 3).numpy()
    checkpoint_files.save_gguf(
        path,
        {
            "fused.weight": (checkpoint_files.random_blocks(9, COLUMNS, "Q4_K"), "Q4_K"),
            "other.weight": (checkpoint_files.random_blocks(3, COLUMNS, "Q4_K", 1), "Q4_K"),
            "mixed.weight": (checkpoint_files.random_blocks(3, COLUMNS, "Q6_K"), "Q6_K"),
            "plain.weight": (plain, "F32"),
        },
    )
    return path


def pieces_of(path: Path) -> PiecesSource:
    """The model's tensors as pieces of the file."""
    names = {
        "block.0.weight": (Piece("fused.weight", (2, 5)), Piece("other.weight")),
        "block.1.weight": (Piece("fused.weight", (0, 2)),),
        "block.2.weight": (Piece("plain.weight"),),
        "embed.weight": (Piece("fused.weight", (8, 9)), Piece("mixed.weight")),
    }
    rows = {"block.0.weight": 6, "block.1.weight": 2, "embed.weight": 4}
    shapes = {name: (rows[name], COLUMNS) if name in rows else (3, 3) for name in names}
    tensors = {name: Tensor("F32", shape, (0, 0)) for name, shape in shapes.items()}
    return PiecesSource(open_source([path]), names, tensors)


def test_rows_of_blocks_through_the_pieces_of_a_file(tmp_path: Path) -> None:
    source = UsedTensors(pieces_of(save(tmp_path / "a.gguf")), re.compile("x"))
    assert block_types(source) == {"block.0.weight": "Q4_K", "block.1.weight": "Q4_K"}
    fused = torch.from_numpy(checkpoint_files.random_blocks(9, COLUMNS, "Q4_K"))
    other = torch.from_numpy(checkpoint_files.random_blocks(3, COLUMNS, "Q4_K", 1))
    whole = torch.cat([fused[2:5], other])
    for rows in (None, slice(0, 2), slice(1, 5), slice(3, 6), slice(4, 4), slice(5, 99)):
        expected = whole if rows is None else whole[rows]
        assert torch.equal(source.read_blocks("block.0.weight", rows), expected)
    assert torch.equal(source.read_blocks("block.1.weight"), fused[:2])
    without_loras = LoraSource(source)
    assert block_types(without_loras) == block_types(source)
    assert torch.equal(without_loras.read_blocks("block.1.weight"), fused[:2])


def test_layers_in_blocks_are_replaced_and_filled(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = Model()
    pieces = pieces_of(save(tmp_path / "a.gguf"))
    keep_blocks(model, [model.block], pieces)
    kept = block_linears(model)
    assert kept.keys() == {"block.0", "block.1"} and type(model.embed) is nn.Linear
    assert stored_dtypes(model) == {f"{name}.weight": CODE_DTYPE for name in kept}
    source = BlocksSource(pieces, kept)
    for name in kept:
        read = source.read(f"{name}.weight", slice(1, 2))
        assert source.tensors[f"{name}.weight"].shape == kept[name].weight.shape
        assert read.dtype == CODE_DTYPE and read.shape == (1, kept[name].weight.shape[1])
        assert torch.equal(
            read.view(torch.uint8), pieces.read_blocks(f"{name}.weight", slice(1, 2))
        )
    assert source.read("block.2.weight").dtype == torch.float32


class Changed:
    """A source that changes its tensors, as one with LoRAs: it has no blocks of them."""

    def __init__(self, source: TensorSource) -> None:
        self.label, self.tensors, self.read = source.label, source.tensors, source.read


def test_changed_weights_are_refused_not_dropped(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = Model()
    pieces = pieces_of(save(tmp_path / "a.gguf"))
    with pytest.raises(ModelError, match=r"storage_dtype=gguf: .*a.gguf holds no weights of a"):
        keep_blocks(model, [model.block], Changed(pieces))
    keep_blocks(model, [model.block], pieces)
    source = BlocksSource(Changed(pieces), block_linears(model))
    with pytest.raises(ModelError, match="block.0.weight is stored as in its GGUF file, to which"):
        source.read("block.0.weight")


def test_a_layer_that_modules_share_stays_shared(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = Model()
    model.block.append(nn.Sequential(model.block[0]))
    keep_blocks(model, [model.block], pieces_of(save(tmp_path / "a.gguf")))
    first, again = model.block[0], next(model.block[3].children())
    assert isinstance(first, BlockLinear) and first is again


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_memory_and_traffic_of_decoding_are_within_those_planned(kind: str) -> None:
    """The largest weight of HunyuanVideo, counted on the meta device for no tokens."""
    costs, columns = costs_of("hunyuan-video"), 3072
    with torch.device("meta"):
        layer = BlockLinear(nn.Linear(columns, 6 * columns, bias=False), kind)
        memory, counter = LiveBytes(), WorkCounter()
        with torch.no_grad(), observing(memory, counter):
            layer(torch.empty(0, columns, dtype=torch.bfloat16))
    value_bytes = layer.weight.nbytes / (6 * columns**2)
    assert 0.6 < memory.peak / costs.decoded_bytes(2, value_bytes) <= 1.01
    moved = counter.memory_bytes / (6 * columns**2) - value_bytes
    assert 0.35 < moved / 28 < 1.2


def test_planned_bytes_of_a_file() -> None:
    """0.5625 bytes a value, as Q4_K has: the linear layers of blocks take so much of bfloat16's."""
    costs = costs_of("hunyuan-video")
    values = sum(rows * columns for rows, columns in costs.linear_shapes)
    saved = costs.transformer_bytes(2) - costs.transformer_bytes(2, storage=0.5625)
    assert saved == pytest.approx(values * (2 - 0.5625), rel=1e-6)
