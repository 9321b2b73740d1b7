"""Tensors are read from several files, whole or by rows; damage is a one-line ModelError."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from longtake.errors import ModelError
from longtake.pipelines.loading import tensor_source
from longtake.pipelines.loading.tensor_source import SafetensorsSource, read_into
from tests import loading


def read_all(source: SafetensorsSource) -> dict[str, torch.Tensor]:
    return {name: source.read(name) for name in source.tensors}


@pytest.mark.parametrize("num_files", [1, 3])
def test_whole_tensors_of_several_files(tmp_path: Path, num_files: int) -> None:
    tensors = {name: tensor.bfloat16() for name, tensor in loading.weights().items()}
    source = SafetensorsSource(loading.save_weights(tmp_path, tensors, num_files))
    assert source.label == str(tmp_path)
    assert {name: each.shape for name, each in source.tensors.items()} == {
        name: tuple(each.shape) for name, each in tensors.items()
    }
    assert {each.dtype for each in source.tensors.values()} == {"BF16"}
    torch.testing.assert_close(read_all(source), tensors, rtol=0, atol=0)


@pytest.mark.parametrize(
    "rows", [slice(0, 3), slice(2, 7), slice(6, 7), slice(7, 7)], ids=lambda rows: str(rows)[5:]
)
def test_a_range_of_rows(tmp_path: Path, rows: slice) -> None:
    tensors = {"a": torch.randn(7, 2, 3), "b": torch.randn(7).bfloat16()}
    source = SafetensorsSource(loading.save_weights(tmp_path, tensors, 2))
    for name, whole in tensors.items():
        torch.testing.assert_close(source.read(name, rows), whole[rows], rtol=0, atol=0)


def test_tensors_outlive_their_source(tmp_path: Path) -> None:
    files = loading.save_weights(tmp_path)
    read = read_all(SafetensorsSource(files))
    files[0].unlink()
    torch.testing.assert_close(read, loading.weights(), rtol=0, atol=0)


def cut(files: list[Path]) -> None:
    os.truncate(files[1], files[1].stat().st_size - 1)


def copy_a_tensor(files: list[Path]) -> None:
    tensors = loading.weights()
    save_file({name: tensors[name] for name in (*list(tensors)[1::2], "mean")}, files[1])
    assert "mean" in SafetensorsSource(files[:1]).tensors


DAMAGED: dict[str, tuple[Any, str]] = {
    "a missing file": (lambda files: files[1].unlink(), "model-1.safetensors is missing"),
    "a file that was cut": (cut, "model-1.safetensors cannot be read: it is no whole safetensors"),
    "a tensor in two files": (copy_a_tensor, "model-1.safetensors holds mean, which another file"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_refused(tmp_path: Path, name: str) -> None:
    damage, text = DAMAGED[name]
    tensors = {"mean": torch.zeros(8), **loading.weights()}
    files = loading.save_weights(tmp_path, tensors, num_files=2)
    damage(files)
    with pytest.raises(ModelError, match=text) as caught:
        SafetensorsSource(files)
    assert "\n" not in str(caught.value)


def test_an_unreadable_tensor_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(*arguments: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    source = SafetensorsSource(loading.save_weights(tmp_path))
    monkeypatch.setattr(os, "preadv", unreadable)
    with pytest.raises(ModelError, match=rf"head.bias cannot be read from {tmp_path}: .*Input"):
        source.read("head.bias")


@pytest.mark.parametrize("change", ["cut", "changed"])
def test_a_file_that_changes_while_it_is_in_use_is_refused(tmp_path: Path, change: str) -> None:
    files = loading.save_weights(tmp_path)
    source = SafetensorsSource(files)
    names = sorted(source.tensors, key=lambda name: source.tensors[name].offsets)
    if change == "cut":
        os.truncate(files[0], files[0].stat().st_size - 1)
    else:
        os.utime(files[0], ns=(0, 0))
    with pytest.raises(
        ModelError, match=f"the file was {change if change == 'cut' else 'changed'}"
    ):
        source.read(names[-1])


@pytest.mark.parametrize(("first", "num_rows"), [(0, 1000), (100, 900), (63, 2), (128, 0)])
def test_rows_are_read_in_chunks_that_begin_at_tiles(
    first: int, num_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that no tile that a source computes is computed twice."""
    monkeypatch.setattr(tensor_source, "_CHUNK_BYTES", 200 * 4 * 3)  # 200 rows hold 3 tiles
    whole = torch.randn(1000, 3)
    source = SafetensorsSource(loading.save_weights(tmp_path, {"a": whole}, 1))
    asked: list[slice] = []
    read = source.read

    def recorded(name: str, rows: slice | None = None) -> torch.Tensor:
        asked.append(rows or slice(None))
        return read(name, rows)

    monkeypatch.setattr(source, "read", recorded)
    target = torch.zeros(num_rows, 3)
    read_into(target, source, "a", first)
    torch.testing.assert_close(target, whole[first : first + num_rows], rtol=0, atol=0)
    assert all(each.start % tensor_source.TILE_ROWS == 0 for each in asked[1:])
    assert len(asked) == len({each.start // (3 * tensor_source.TILE_ROWS) for each in asked})


def test_a_tensor_is_read_into_another_one_in_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longtake.pipelines.loading.tensor_source._CHUNK_BYTES", 16)
    tensors = {"a": torch.randn(7, 2, 3), "b": torch.randn(7), "c": torch.tensor(3.0)}
    source = SafetensorsSource(loading.save_weights(tmp_path, tensors, 1))
    for name, whole in tensors.items():
        target = torch.empty(whole.shape, dtype=torch.bfloat16)
        read_into(target, source, name)
        torch.testing.assert_close(target, whole.bfloat16(), rtol=0, atol=0)
