"""Headers of LoRAs: digest, ranks, alphas; what is damaged or hostile is refused in one line."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from longtake.errors import ModelError
from longtake.pipelines.lora.lora_file import LoraFile

Tensors = dict[str, torch.Tensor]
A, B, ALPHA = "m.lora_A.weight", "m.lora_B.weight", "m.alpha"


def tensors() -> Tensors:
    return {A: torch.ones(2, 8), B: torch.ones(6, 2)}


def written(path: Path, changes: Tensors, **metadata: str) -> LoraFile:
    save_file({**tensors(), **changes}, path, metadata)
    return LoraFile.read(path)


def test_what_a_header_tells(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    file = written(path, {ALPHA: torch.tensor(8), "odd": torch.ones(1)}, author="somebody")
    (adapter,) = file.adapters
    assert (adapter.kind, adapter.shape, adapter.rank, adapter.factor) == ("lora", (6, 8), 2, 4.0)
    assert file.others == ("odd",) and file.metadata == {"author": "somebody"}
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_digest_follows_the_file(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    first = written(path, {}).sha256
    os.utime(path, ns=(0, 0))
    second = written(path, {B: torch.zeros(6, 2)}).sha256
    assert first != second == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite_are_refused(
    tmp_path: Path, dtype: torch.dtype, value: float
) -> None:
    largest = torch.full((6, 2), torch.finfo(dtype).max, dtype=dtype)
    assert written(tmp_path / "largest.safetensors", {B: largest}).sha256
    wrong = torch.zeros(6, 2, dtype=dtype)
    wrong[3, 1] = value
    file = written(tmp_path / "wrong.safetensors", {B: wrong})
    with pytest.raises(ModelError, match=r"holds m.lora_B.weight with a value that is not finite"):
        _ = file.sha256


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_values_of_8_bits_are_checked(tmp_path: Path, dtype: torch.dtype) -> None:
    largest = torch.full((6, 2), torch.finfo(dtype).max).to(dtype)
    assert written(tmp_path / "largest.safetensors", {B: largest}).sha256
    file = written(tmp_path / "wrong.safetensors", {B: torch.full((6, 2), torch.nan).to(dtype)})
    with pytest.raises(ModelError, match="not finite"):
        _ = file.sha256


REFUSED: dict[str, tuple[dict[str, torch.Tensor | None], str]] = {
    "no lora_B": ({B: None}, r"m lacks up beside down"),
    "ranks that differ": ({B: torch.ones(6, 3)}, r"up of shape \(6, 3\), which do not fit"),
    "rank 0": ({A: torch.ones(0, 8), B: torch.ones(6, 0)}, r"m is of rank 0, not of 1 to 4096"),
    "a huge rank": ({A: torch.ones(5000, 8), B: torch.ones(6, 5000)}, r"is of rank 5000, not"),
    "a vector": ({B: torch.ones(6)}, r"do not fit together"),
    "no values": ({A: torch.ones(2, 0)}, r"m has no values"),
    "whole numbers": ({A: torch.ones(2, 8, dtype=torch.int32)}, r"m has down as I32, not one of"),
    "a NaN alpha": ({ALPHA: torch.tensor(torch.nan)}, r"m.alpha of shape \(\) and dtype F32"),
    "two alphas": ({ALPHA: torch.ones(2)}, r"m.alpha of shape \(2,\)"),
    "two kinds": ({"m.hada_w1_a": torch.ones(2, 2)}, r"m has parts of loha and lora"),
    "two of a kind": ({"m.lora_down.weight": torch.ones(2, 8)}, r"the same part of two adapters"),
    "two adapters": ({"m.lora_A.x.weight": torch.ones(2, 8)}, r"the same part of two adapters"),
    "a weight and a difference": ({"m.diff": torch.ones(6, 8)}, r"parts of diff and lora"),
    "a short magnitude": ({"m.dora_scale": torch.ones(5, 1)}, r"magnitude of shape \(5, 1\), not"),
    "norms of columns": ({"m.dora_scale": torch.ones(1, 8)}, r"one for each of its 6 rows"),
    "a bias alone": ({"n.lora_B.bias": torch.ones(6)}, r"n has a bias of lora_B, and no lora_B"),
    "half of LoKr": ({"n.lokr_w1": torch.ones(2, 2)}, r"n lacks w2 beside w1"),
    "LoKr of two ranks": (
        {
            "n.lokr_w1_a": torch.ones(2, 1),
            "n.lokr_w1_b": torch.ones(1, 2),
            "n.lokr_w2_a": torch.ones(2, 3),
            "n.lokr_w2_b": torch.ones(3, 2),
        },
        r"n has .*do not fit together",
    ),
    "LoHa of two shapes": (
        {
            **{f"n.hada_w{each}_a": torch.ones(4, 2) for each in "12"},
            "n.hada_w1_b": torch.ones(2, 3),
            "n.hada_w2_b": torch.ones(2, 4),
        },
        r"n has .*do not fit together",
    ),
    "a name of 1 MB": (
        {"x" * 2**20 + ".lora_A.weight": torch.ones(2, 8)},
        r"a name of 1048590 characters",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_parts_that_make_no_adapter_are_refused(tmp_path: Path, name: str) -> None:
    changes, text = REFUSED[name]
    all_parts: dict[str, torch.Tensor | None] = {**tensors(), **changes}
    save_file({part: each for part, each in all_parts.items() if each is not None}, tmp_path / "a")
    with pytest.raises(ModelError, match=text) as caught:
        LoraFile.read(tmp_path / "a")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def no_adapter(path: Path) -> None:
    save_file({"blocks.0.weight": torch.ones(2)}, path)


def truncated(path: Path) -> None:
    path.write_bytes(save(tensors())[:-1])


def huge_header(path: Path) -> None:
    path.write_bytes((2**40).to_bytes(8, "little") + b"{}")


def overlapping(path: Path) -> None:
    entry = {"dtype": "F32", "shape": [2, 8], "data_offsets": [0, 64]}
    header = json.dumps({A: entry, B: {**entry, "shape": [8, 2]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))


def pickled(path: Path) -> None:
    torch.save(tensors(), path)


def metadata_of_lists(path: Path) -> None:
    save_file(tensors(), path, {"lora_adapter_metadata": "[1]"})


def nested_metadata(path: Path) -> None:
    save_file(tensors(), path, {"lora_adapter_metadata": "[" * 100_000})


def endless_alpha(path: Path) -> None:
    save_file(tensors(), path, {"lora_adapter_metadata": '{"lora_alpha": Infinity}'})


def pattern_of_regular_expressions(path: Path) -> None:
    content = '{"alpha_pattern": {"(a+)+$": 1}}'
    save_file(tensors(), path, {"lora_adapter_metadata": content})


def text_alpha(path: Path) -> None:
    save_file(tensors(), path, {"lora_adapter_metadata": '{"transformer.lora_alpha": "8"}'})


FILES: dict[Callable[[Path], None], str] = {
    no_adapter: "is no LoRA: none of its tensors",
    truncated: "is no whole safetensors file",
    huge_header: "is no whole safetensors file",
    overlapping: "is no whole safetensors file",
    pickled: "is no whole safetensors file",
    metadata_of_lists: "lora_adapter_metadata that cannot be read",
    nested_metadata: "lora_adapter_metadata that cannot be read",
    endless_alpha: "lora_adapter_metadata that cannot be read",
    pattern_of_regular_expressions: "lora_adapter_metadata that cannot be read",
    text_alpha: "lora_adapter_metadata that cannot be read",
    Path.touch: "is no whole safetensors file",
    Path.mkdir: "is no whole safetensors file",
    lambda path: None: "is missing",
    os.mkfifo: "is no whole safetensors file",
}


@pytest.mark.parametrize("make", FILES, ids=lambda make: make.__name__)
def test_files_that_are_no_loras_are_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "lora.safetensors"
    make(path)
    with pytest.raises(ModelError, match=FILES[make]) as caught:
        LoraFile.read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"lora_alpha": 2, "r": 2}, None),
        ({"r": 2}, None),
        ({"lora_alpha": 1, "r": 2}, r"is multiplied by 0.5 as adapter_config.json beside it says"),
        ({"alpha": 6, "r": 2}, r"is multiplied by 3 as .* name it with the scale 3$"),
        ({"lora_alpha": "2"}, r"adapter_config.json cannot be read .*so the scale of adapter_mod"),
        ([], r"adapter_config.json cannot be read"),
    ],
)
def test_a_scale_beside_the_file_is_not_ignored(
    tmp_path: Path, config: object, text: str | None
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert written(tmp_path / "lora.safetensors", {}).adapters[0].factor == 1.0
    path = tmp_path / "adapter_model.safetensors"
    if text is None:
        assert written(path, {}).adapters[0].factor == 1.0
        return
    with pytest.raises(ModelError, match=text) as caught:
        written(path, {})
    assert "\n" not in str(caught.value)


def test_pickles_are_refused_by_their_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a pickle, which can run code"):
        LoraFile.read(tmp_path / "lora.pt")
