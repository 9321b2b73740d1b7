"""Weights with LoRAs: any rows have the same bits, and scale 0 is the base."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from longtake.configs.fields.lora import LoraUse
from longtake.errors import ModelError
from longtake.pipelines.checkpoints.layout import Piece
from longtake.pipelines.loading import tensor_source
from longtake.pipelines.loading.tensor_source import SafetensorsSource, read_into
from longtake.pipelines.loading.threads import in_order
from longtake.pipelines.lora.lora_file import LoraFile
from longtake.pipelines.lora.match import LoraMatch, combine, match
from longtake.pipelines.lora.source import LoraSource
from longtake.pipelines.lora.targets import LoraTargets
from tests import lora_files
from tests.lora_files import WAN, Formula, write
from tests.lora_targets import Transformer

ROWS = 3 * tensor_source.TILE_ROWS + 11
SHAPE = (ROWS, 24)
SPLIT = 2 * tensor_source.TILE_ROWS + 5
"""First row of the second half of a weight that a LoRA's file has the other way round."""

FORMULAS: dict[str, Formula] = {
    "LoRA": lora_files.KOHYA,
    "LoHa": lora_files.loha,
    "LoKr": lora_files.lokr("whole", "low"),
    "difference": lora_files.diff,
}
TARGETS = {
    "transformer": LoraTargets(
        {"own.weight": SHAPE},
        {
            "whole": {"own.weight": (Piece("whole.weight"),)},
            "swapped": {
                "own.weight": (
                    Piece("swapped.weight", (ROWS - SPLIT, ROWS)),
                    Piece("swapped.weight", (0, ROWS - SPLIT)),
                )
            },
        },
    )
}


def loras(folder: Path, base: torch.Tensor) -> list[LoraMatch]:
    """A LoRA of each kind, one with norms of rows, and one whose rows are in another order."""
    matches = []
    for number, formula in enumerate([*FORMULAS.values(), *FORMULAS.values()]):
        module = "swapped" if number >= len(FORMULAS) else "whole"
        written = write({"own.weight": base}, {module: ["own"]}, formula)
        if number == 1:
            written = lora_files.with_norms(
                written, {"own.weight": base}, {module: ["own"]}, ".dora_scale"
            )
        path = written.save(folder / f"lora-{number}.safetensors")
        matches.append(match(LoraFile.read(path), LoraUse(str(path), 0.7), TARGETS))
    return matches


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> LoraSource:
    folder = tmp_path_factory.mktemp("fused")
    base = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).bfloat16()
    save_file({"own.weight": base, "other": base.clone()}, folder / "base.safetensors")
    deltas = combine(loras(folder, base))["transformer"]
    return LoraSource(SafetensorsSource([folder / "base.safetensors"]), deltas)


def test_any_range_of_rows_has_the_same_bits(fused: LoraSource) -> None:
    whole = fused.read("own.weight")
    edges = [0, 1, 63, 64, 65, 127, 130, SPLIT, ROWS - 1, ROWS]
    for begin in edges:
        for end in edges:
            rows = slice(begin, end)
            assert torch.equal(fused.read("own.weight", rows), whole[rows]), rows
    for number in range(3):
        ranks = -(-ROWS // 3)
        rows = slice(number * ranks, (number + 1) * ranks)
        assert torch.equal(fused.read("own.weight", rows), whole[rows])


@pytest.mark.parametrize("chunk_rows", [1, 50, 64, 100, 1000])
def test_chunks_have_the_same_bits(
    fused: LoraSource, monkeypatch: pytest.MonkeyPatch, chunk_rows: int
) -> None:
    monkeypatch.setattr(tensor_source, "_CHUNK_BYTES", chunk_rows * SHAPE[1] * 4)
    target = torch.empty(SHAPE)
    read_into(target, fused, "own.weight")
    assert torch.equal(target, fused.read("own.weight"))


def test_rows_of_a_file_in_another_order_add_up(fused: LoraSource, tmp_path: Path) -> None:
    base = torch.zeros(SHAPE)
    save_file({"own.weight": base}, tmp_path / "base.safetensors")
    written = write({"own.weight": base}, {"swapped": ["own"]}, lora_files.diff)
    path = written.save(tmp_path / "lora.safetensors")
    found = match(LoraFile.read(path), LoraUse(str(path)), TARGETS)
    source = LoraSource(
        SafetensorsSource([tmp_path / "base.safetensors"]), combine([found])["transformer"]
    )
    values = written.tensors["swapped.diff"]
    expected = torch.cat([values[ROWS - SPLIT :], values[: ROWS - SPLIT]])
    assert torch.equal(source.read("own.weight"), expected)


def test_headers_tell_what_is_read(fused: LoraSource) -> None:
    for name, header in fused.tensors.items():
        read = fused.read(name)
        assert header.shape == tuple(read.shape)
        assert header.dtype == {torch.float32: "F32", torch.bfloat16: "BF16"}[read.dtype]
    assert fused.touched == {"own.weight"}


def test_scale_0_and_removal_are_the_base_to_the_bit(
    transformers: Callable[[str], Transformer], tmp_path: Path
) -> None:
    transformer = transformers("wan21-t2v")
    written = write(transformer.base, WAN, lora_files.KOHYA)
    path = written.save(tmp_path / "lora.safetensors")
    zero = transformer.with_loras(transformer.match(path, ":0"))
    applied = transformer.with_loras(transformer.match(path))
    changed = {name: applied.read(name) for name in applied.touched}
    assert changed and zero.touched == frozenset()
    applied.apply({})
    for name, base in transformer.base.items():
        assert torch.equal(zero.read(name), base) and torch.equal(applied.read(name), base)
        assert zero.tensors[name] == applied.tensors[name] == transformer.source.tensors[name]
    applied.apply(transformer.deltas(transformer.match(path)))
    for name, values in changed.items():
        assert torch.equal(applied.read(name), values)
        assert not torch.equal(values, transformer.base[name])


def test_several_add_up(transformers: Callable[[str], Transformer], tmp_path: Path) -> None:
    transformer = transformers("wan21-t2v")
    expected = {name: each.double() for name, each in transformer.base.items()}
    matches = []
    for number, formula in enumerate((lora_files.KOHYA, lora_files.loha, lora_files.PEFT)):
        written = write(transformer.base, WAN, formula)
        if number < 2:
            lora_files.with_norms(written, transformer.base, WAN, ".dora_scale")
        path = written.save(tmp_path / f"{number}.safetensors")
        matches.append(transformer.match(path, f":{number - 0.5}"))
        for name, change in written.added.items():
            expected[name] += (number - 0.5) * change
    source = transformer.with_loras(*matches)
    for name, values in expected.items():
        torch.testing.assert_close(source.read(name).double(), values, rtol=0, atol=5e-6)


def test_threads_read_at_the_same_time(fused: LoraSource) -> None:
    names = sorted(fused.tensors)
    expected = {name: fused.read(name) for name in names}

    def read(name: str, begin: int) -> bool:
        return torch.equal(fused.read(name, slice(begin, None)), expected[name][begin:])

    tasks = (partial(read, name, begin) for begin in range(20) for name in names)
    assert all(in_order(tasks))


def test_a_base_that_cannot_be_read_is_refused(fused: LoraSource, tmp_path: Path) -> None:
    save_file({"own.weight": torch.zeros(SHAPE)}, tmp_path / "base.safetensors")
    deltas = combine(loras(tmp_path, torch.zeros(SHAPE)))["transformer"]
    source = LoraSource(SafetensorsSource([tmp_path / "base.safetensors"]), deltas)
    assert torch.isfinite(source.read("own.weight")).all()
    (tmp_path / "base.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"own.weight cannot be read from .*the file was"):
        source.read("own.weight")


def test_a_file_that_changes_is_refused(
    transformers: Callable[[str], Transformer], tmp_path: Path
) -> None:
    transformer = transformers("wan21-t2v")
    path = tmp_path / "lora.safetensors"
    found = transformer.match(write(transformer.base, WAN, lora_files.KOHYA).save(path))
    source = transformer.with_loras(found)
    other = write(transformer.base, WAN, lora_files.KOHYA)  # the same header
    other.tensors = {name: 2 * each for name, each in other.tensors.items()}
    other.save(path)
    with pytest.raises(ModelError, match="was changed"):
        source.apply(transformer.deltas(found))
    with pytest.raises(ModelError, match="was changed"):
        _ = found.file.sha256
    damaged = write(transformer.base, WAN, lora_files.KOHYA)
    damaged.tensors["blocks.0.self_attn.q.lora_up.weight"][5, 1] = torch.nan
    found = transformer.match(damaged.save(path))
    with pytest.raises(ModelError, match=r"holds blocks.0.self_attn.q.lora_up.weight with a value"):
        transformer.with_loras(found).read("blocks.0.attn1.to_q.weight")
