"""Weights are encoded while they are read, by any rows, once each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn

from longtake.configs.fields.weights import StorageDtype
from longtake.errors import ModelError
from longtake.pipelines.loading.tensor_source import SafetensorsSource
from longtake.pipelines.quantization.codes import encode
from longtake.pipelines.quantization.linear import StoredLinear
from longtake.pipelines.quantization.source import EncodingSource
from tests import loading

STORAGES = pytest.mark.parametrize("storage", get_args(StorageDtype))
TENSORS = {
    "a.weight": torch.randn(7, 130, generator=torch.Generator().manual_seed(1)),
    "a.bias": torch.randn(7),
    "b.weight": torch.randn(5, 7, generator=torch.Generator().manual_seed(2)),
    "norm.weight": torch.randn(7),
}


class CountingSource(SafetensorsSource):
    """Records the rows that are read."""

    def __init__(self, files: list[Path]) -> None:
        super().__init__(files)
        self.reads: list[tuple[str, slice | None]] = []

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        self.reads.append((name, rows))
        return super().read(name, rows)


def source_of(
    folder: Path, storage: StorageDtype, tensors: Mapping[str, torch.Tensor] = TENSORS
) -> tuple[EncodingSource, CountingSource]:
    """A source of two layers in fewer bits, and the source that it wraps."""
    files = CountingSource(loading.save_weights(folder, dict(tensors), 1))
    with torch.device("meta"):
        linears = {"a": nn.Linear(130, 7), "b": nn.Linear(7, 5, bias=False)}
    stored = {name: StoredLinear(each, storage) for name, each in linears.items()}
    return EncodingSource(files, stored), files


@STORAGES
def test_whole_and_by_rows(tmp_path: Path, storage: StorageDtype) -> None:
    source, _ = source_of(tmp_path, storage)
    for name in ("a.weight", "b.weight"):
        codes, scales = encode(TENSORS[name], storage)
        for rows in (None, slice(0, 3), slice(3, 5), slice(2, 2), slice(1, 99)):
            some = rows or slice(None)
            found = source.read(name, rows)
            assert torch.equal(found.view(torch.uint8), codes[some].view(torch.uint8))
            assert torch.equal(source.read(f"{name}_scale", rows), scales[some])
        assert source.tensors[name].shape == codes.shape
        assert source.tensors[f"{name}_scale"].shape == scales.shape
    for name in ("a.bias", "norm.weight"):
        assert torch.equal(source.read(name), TENSORS[name])
        assert source.tensors[name].dtype == "F32"


def test_scales_are_not_read_again_after_their_codes(tmp_path: Path) -> None:
    source, files = source_of(tmp_path, "nf4")
    for rows in (slice(0, 4), slice(4, 7)):  # as a block is read
        source.read("a.weight", rows)
    whole = source.read("a.weight_scale")
    assert [name for name, _ in files.reads] == ["a.weight"] * 2
    assert torch.equal(whole, encode(TENSORS["a.weight"], "nf4")[1])
    source.read("b.weight", slice(0, 2))
    source.read("b.weight_scale", slice(0, 4))  # of which two rows are not known
    assert files.reads[2:] == [("b.weight", slice(0, 2)), ("b.weight", slice(0, 4))]


def test_scales_before_their_codes(tmp_path: Path) -> None:
    source, _ = source_of(tmp_path, "float8")
    expected = encode(TENSORS["b.weight"], "float8")[1]
    assert torch.equal(source.read("b.weight_scale", slice(1, 3)), expected[1:3])
    assert torch.equal(source.read("b.weight_scale"), expected)


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        (None, r"lacks b.weight \(1 missing"),
        (torch.zeros(5, 8), r"b.weight of shape \(5, 8\), its config.json says \(5, 7\)"),
        (torch.zeros(5, 7, dtype=torch.int8), "holds b.weight as I8.*quantized weights are not"),
        (torch.zeros(5, 7).to(torch.float8_e4m3fn), "holds b.weight as F8_E4M3"),
    ],
)
@STORAGES
def test_refusals(
    tmp_path: Path, storage: StorageDtype, change: torch.Tensor | None, refusal: str
) -> None:
    tensors = {name: each for name, each in TENSORS.items() if name != "b.weight"}
    if change is not None:
        tensors["b.weight"] = change
    with pytest.raises(ModelError, match=refusal):
        source_of(tmp_path, storage, tensors)
