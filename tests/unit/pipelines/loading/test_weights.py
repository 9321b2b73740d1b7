"""Weights are loaded in the right dtypes, and nothing that a module needs is left unfilled."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from longtake.errors import ModelError
from longtake.pipelines.loading.files.tensor_files import Tensor
from longtake.pipelines.loading.tensor_source import SafetensorsSource, TensorSource
from longtake.pipelines.loading.weights import (
    all_gather_bytes,
    load_weights,
    prefetch,
    shard_module,
)
from tests import loading
from tests.rendering import ALONE

Changes = dict[str, torch.Tensor]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return loading.save_weights(tmp_path, num_files=2)


def test_values_and_dtypes(files: list[Path]) -> None:
    transformer = loading.loaded(files, ALONE)
    for name, stored in loading.weights().items():
        kept = "norm1" in name or "scale_shift_table" in name
        expected = stored if kept else stored.bfloat16()
        torch.testing.assert_close(transformer.state_dict()[name], expected, rtol=0, atol=0)
    assert {each.dtype for each in transformer.parameters()} == {torch.float32, torch.bfloat16}


def test_buffers_of_no_file_are_float32(files: list[Path]) -> None:
    """The module declares the rope as float64, and Module.to would round it to bfloat16."""
    transformer, given = loading.loaded(files, ALONE), loading.buffers()
    torch.testing.assert_close(transformer.rope, given["rope"].float(), rtol=0, atol=0)
    torch.testing.assert_close(transformer.positions, given["positions"], rtol=0, atol=0)
    transformer.rope.zero_()
    assert given["rope"].count_nonzero() > 0  # a copy


def test_one_dtype_without_a_pattern(files: list[Path]) -> None:
    transformer = loading.on_meta()
    loading.load(transformer, files, ALONE, float32=None)
    assert {each.dtype for each in transformer.state_dict().values()} == {torch.bfloat16}


def test_the_pattern_applies_to_persistent_buffers(files: list[Path]) -> None:
    transformer = loading.on_meta()
    loading.load(transformer, files, ALONE, float32=re.compile("mean"))
    kept = [name for name, each in transformer.state_dict().items() if each.dtype == torch.float32]
    assert kept == ["mean"]


@dataclass
class Renamed:
    """A source that knows another's tensors by other names."""

    source: TensorSource

    @property
    def label(self) -> str:
        return self.source.label

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {name.removeprefix("model."): each for name, each in self.source.tensors.items()}

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        return self.source.read(f"model.{name}", rows)


def test_a_source_need_not_be_files(tmp_path: Path) -> None:
    stored = {f"model.{name}": tensor for name, tensor in loading.weights().items()}
    source = Renamed(SafetensorsSource(loading.save_weights(tmp_path, stored)))
    transformer = loading.on_meta()
    load_weights(transformer, source, ALONE, torch.float32, buffers=loading.buffers())
    torch.testing.assert_close(transformer.state_dict(), loading.weights(), rtol=0, atol=0)


UNFILLED: dict[str, tuple[Callable[[Changes, Changes], Any], str]] = {
    "a parameter": (
        lambda weights, buffers: weights.pop("blocks.2.norm1.bias"),
        r"lacks blocks.2.norm1.bias \(1 missing, 0 too many\)",
    ),
    "a persistent buffer": (lambda weights, buffers: weights.pop("mean"), "lacks mean"),
    "a buffer of no file": (
        lambda weights, buffers: buffers.pop("rope"),
        r"nothing fills the buffer rope of Transformer \(1 missing\), which no file holds",
    ),
    "an integer buffer of no file": (
        lambda weights, buffers: buffers.pop("positions"),
        "nothing fills the buffer positions of Transformer",
    ),
    "an unknown tensor": (
        lambda weights, buffers: weights.update(more=torch.zeros(1)),
        "holds more, which the model does not have",
    ),
    "an unknown buffer": (
        lambda weights, buffers: buffers.update(more=torch.zeros(1)),
        "buffers holds more, which Transformer does not keep out of its files: it keeps positions, "
        "rope",
    ),
    "a buffer that the files hold": (
        lambda weights, buffers: buffers.update(mean=torch.zeros(8)),
        "buffers holds mean",
    ),
    "a buffer of another shape": (
        lambda weights, buffers: buffers.update(rope=torch.zeros(6, 9)),
        r"buffers holds rope of shape \(6, 9\), Transformer has it of \(6, 8\)",
    ),
}


@pytest.mark.parametrize("name", UNFILLED)
def test_what_does_not_fit_is_refused_before_it_is_loaded(tmp_path: Path, name: str) -> None:
    change, text = UNFILLED[name]
    weights, buffers = loading.weights(), loading.buffers()
    change(weights, buffers)
    transformer = loading.on_meta()
    with pytest.raises(ModelError, match=text) as caught:
        loading.load(transformer, loading.save_weights(tmp_path, weights), ALONE, buffers=buffers)
    assert "\n" not in str(caught.value)
    assert all(each.is_meta for each in transformer.parameters())


def test_an_unreadable_tensor_leaves_the_module_without_weights(files: list[Path]) -> None:
    class Damaged(SafetensorsSource):
        def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
            if name == "mean":  # after those of the blocks
                raise ModelError("mean cannot be read")
            return super().read(name, rows)

    transformer = loading.on_meta()
    with pytest.raises(ModelError, match="mean cannot be read"):
        load_weights(transformer, Damaged(files), ALONE, torch.float32, buffers=loading.buffers())
    assert all(each.is_meta for each in transformer.state_dict().values())


def test_nothing_is_sharded_on_one_rank(files: list[Path]) -> None:
    transformer = loading.on_meta()
    shard_module(transformer, transformer.blocks, ALONE)
    loading.load(transformer, files, ALONE)
    assert all(type(each) is nn.Parameter for each in transformer.parameters())
    assert all_gather_bytes(transformer) == 0
    with torch.inference_mode():
        expected = loading.loaded(files, ALONE)(loading.tokens())
        prefetch(transformer.blocks[0])
        assert torch.equal(transformer(loading.tokens(), prefetches=True), expected)
