"""Safetensors files, plain and of float8, are read by rows; what would be read wrongly is refused.

float8 is decoded as the formats define it: stored value times scale, in float32.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from longtake.errors import ModelError
from longtake.pipelines.checkpoints.formats.headers import read_headers
from longtake.pipelines.checkpoints.formats.source import open_source
from tests import checkpoint_files as files

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
ROWS = (None, slice(0, 2), slice(1, 5), slice(5, 6), slice(6, 6))


def plain() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "blocks.0.qkv.weight": random(6, 8).bfloat16(),
        "blocks.0.qkv.bias": random(6),
        "patch.weight": random(6, 2, 1, 2, 2).half(),
        "scale": torch.tensor(2.5),
        "ids": torch.arange(6),
    }


def assert_reads(paths: list[Path], expected: dict[str, torch.Tensor]) -> None:
    """Check all tensors of files, whole and by rows, bit for bit."""
    headers, source = read_headers(*paths), open_source(paths)
    assert headers.tensors == source.tensors
    assert source.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert source.tensors[name].shape == tuple(tensor.shape)
        for rows in ROWS if tensor.dim() else (None,):
            read = source.read(name, rows)
            whole = tensor if rows is None else tensor[rows]
            torch.testing.assert_close(read, whole, rtol=0, atol=0, equal_nan=True)


def test_plain_files_and_shards(tmp_path: Path) -> None:
    tensors = plain()
    one, parts = tmp_path / "one.safetensors", [tmp_path / f"{n}.safetensors" for n in (1, 2)]
    save_file(tensors, one, {"format": "pt"})
    for number, path in enumerate(parts):
        save_file(dict(list(tensors.items())[number::2]), path)
    for paths in ([one], parts):
        assert_reads(paths, tensors)
        assert read_headers(*paths).kind == "safetensors"
    assert read_headers(one).metadata == {"format": "pt"}
    assert open_source([one]).label == str(one) and open_source(parts).label == str(tmp_path)


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_every_code_of_plain_float8(tmp_path: Path, dtype: torch.dtype) -> None:
    codes = torch.arange(256, dtype=torch.uint8).reshape(8, 32).view(dtype)
    save_file({"a.weight": codes, "b": torch.ones(6)}, tmp_path / "a.safetensors")
    # the definition: sign, exponent, mantissa; e4m3fn has no infinities, and one NaN of each sign
    bits, bias = (3, 7) if dtype == E4M3 else (2, 15)
    values = []
    for code in range(256):
        sign, exponent, mantissa = code >> 7, (code & 127) >> bits, code & ((1 << bits) - 1)
        value = (mantissa / 2**bits + (exponent > 0)) * 2.0 ** (max(exponent, 1) - bias)
        if dtype == E4M3 and code & 127 == 127:
            value = float("nan")
        elif dtype == E5M2 and exponent == 31:
            value = float("nan") if mantissa else float("inf")
        values.append(-value if sign else value)
    expected = {"a.weight": torch.tensor(values).reshape(8, 32), "b": torch.ones(6)}
    assert_reads([tmp_path / "a.safetensors"], expected)
    headers = read_headers(tmp_path / "a.safetensors")
    assert headers.kind == "fp8" and headers.tensors["a.weight"].dtype == "F32"


@pytest.mark.parametrize("newer", [False, True])
def test_comfyui_scaled_files(tmp_path: Path, newer: bool) -> None:
    tensors = {f"model.diffusion_model.{name}": each for name, each in plain().items()}
    files.save_comfy_scaled(tmp_path / "a.safetensors", tensors, newer=newer)
    weight = "model.diffusion_model.blocks.0.qkv.weight"
    codes, scale = files.float8_scaled(tensors[weight])
    assert scale < 1  # or a reader that ignores it would pass
    assert_reads([tmp_path / "a.safetensors"], tensors | {weight: codes.float() * scale.item()})
    assert read_headers(tmp_path / "a.safetensors").kind == "fp8_scaled"


@pytest.mark.parametrize("kind", ["tensor", "row", "group"])
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16])
def test_scales_of_tensors_rows_and_groups_in_shards(
    tmp_path: Path, kind: str, scale_dtype: torch.dtype
) -> None:
    weight = torch.randn(6, 8) * torch.arange(1, 7)[:, None] * torch.arange(1, 9)
    codes, scale = files.float8_scaled(weight, kind, 4)
    shapes = {"tensor": [(), (1,), (1, 1)], "row": [(6,), (6, 1)], "group": [(6, 4), (6, 4, 1)]}
    by_hand = codes.float()
    for row in range(6):
        for column in range(8):
            at = {"tensor": 0, "row": row, "group": 4 * row + column // 2}[kind]
            by_hand[row, column] *= scale.reshape(-1)[at]
    paths = [tmp_path / "1.safetensors", tmp_path / "2.safetensors"]
    save_file({"x.weight": codes}, paths[0])
    for shape in shapes[kind]:
        save_file({"x.weight_scale": scale.reshape(shape).to(scale_dtype)}, paths[1])
        assert_reads(paths, {"x.weight": by_hand})


def scaled(change: Callable[[dict[str, torch.Tensor]], Any]) -> dict[str, torch.Tensor]:
    codes, scale = files.float8_scaled(torch.ones(6, 8))
    tensors = {"x.weight": codes, "x.scale_weight": scale, "y.weight": torch.ones(6, 8)}
    change(tensors)
    return tensors


def layer(settings: object) -> dict[str, torch.Tensor]:
    return scaled(lambda each: each.update({"x.comfy_quant": files.layer_json(settings)}))


REFUSED: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "a weight without a scale": (
        scaled(lambda each: each.update({"z.weight": torch.ones(2, 2).to(E4M3)})),
        "z.weight, which is float8, and has no scale as others have",
    ),
    "a marker without scales": (
        {"scaled_fp8": torch.empty(0, dtype=E4M3), "z.weight": torch.ones(2, 2).to(E4M3)},
        "z.weight, which is float8, and has no scale",
    ),
    "a scale without a weight": (
        scaled(lambda each: each.pop("x.weight")),
        "x.scale_weight, which scales x.weight, which is not there, not float8",
    ),
    "a scale of a weight in bf16": (
        scaled(lambda each: each.update({"y.weight_scale": torch.tensor(2.0)})),
        "y.weight_scale, which scales y.weight, which is F32, not float8",
    ),
    "two scales": (
        scaled(lambda each: each.update({"x.weight_scale": torch.tensor(2.0)})),
        "which is the second scale of x.weight",
    ),
    "a scale of another shape": (
        scaled(lambda each: each.update({"x.scale_weight": torch.ones(5)})),
        r"x.scale_weight, which is F32 of shape \(5,\), which is no scale",
    ),
    "blocks of rows and columns": (
        scaled(lambda each: each.update({"x.scale_weight": torch.ones(3, 2)})),
        "which is no scale of a weight of shape",
    ),
    "groups that do not divide the columns": (
        scaled(lambda each: each.update({"x.scale_weight": torch.ones(6, 3)})),
        "which is no scale",
    ),
    "a scale of integers": (
        scaled(lambda each: each.update({"x.scale_weight": torch.tensor(2)})),
        "x.scale_weight, which is I64",
    ),
    "a scale of a kind that is not known": (
        {"x.weight": torch.ones(4, 4).to(E4M3), "x.weight_scale_inv": torch.ones(1, 1)},
        "x.weight_scale_inv, which belongs to a float8 weight in unknown ways",
    ),
    "a format of fewer bits": (layer({"format": "nvfp4"}), "x, which is stored as nvfp4"),
    "rotated weights": (
        layer({"format": "float8_e4m3fn", "convrot": True}),
        "x, which is stored with convrot, which is not known",
    ),
    "a layer that says nothing": (layer([1]), r"x, which is stored as \[1\]"),
    "a long text": (layer({"format": "x" * 5000}), "no short JSON text"),
    "a scale that is not a number": (
        scaled(lambda each: each.update({"x.scale_weight": torch.tensor(float("nan"))})),
        "x.scale_weight, a scale that is not finite",
    ),
    "an infinite scale of a row": (
        scaled(lambda each: each.update({"x.scale_weight": torch.tensor([1.0] * 5 + [torch.inf])})),
        "x.scale_weight, a scale that is not finite",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_float8_that_would_be_read_wrongly_is_refused(tmp_path: Path, name: str) -> None:
    tensors, text = REFUSED[name]
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match=text) as caught:
        open_source([tmp_path / "a.safetensors"])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("listed", ["[", "[]", "{}", '{"layers": 3}', '{"layers": {"x": {}}}'])
def test_metadata_of_unknown_content_is_refused(tmp_path: Path, listed: str) -> None:
    tensors = {"x.weight": torch.ones(2, 2).to(E4M3)}
    save_file(tensors, tmp_path / "a.safetensors", {"_quantization_metadata": listed})
    with pytest.raises(ModelError, match="lists no layers|x, which is stored as None"):
        read_headers(tmp_path / "a.safetensors")


def entry(begin: int, end: int, shape: tuple[int, ...] = (2,), dtype: str = "F32") -> Any:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HOSTILE: dict[str, tuple[Any, bytes]] = {
    "nothing": (b"", b""),
    "no JSON": (b"{" * 9, b""),
    "deep JSON": (b"[" * 100_000, b""),
    "overlapping tensors": ({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)),
    "a hole": ({"a": entry(0, 8), "b": entry(12, 20)}, bytes(20)),
    "bytes at the end": ({"a": entry(0, 8)}, bytes(9)),
    "a cut tensor": ({"a": entry(0, 8)}, bytes(7)),
    "an offset beyond 64 bits": ({"a": entry(0, 2**70)}, bytes(8)),
    "a negative offset": ({"a": entry(-8, 0)}, bytes(8)),
    "a shape that overflows": ({"a": entry(0, 8, (2**62, 8))}, bytes(8)),
    "a shape of other size": ({"a": entry(0, 8, (3,))}, bytes(8)),
    "an unknown dtype": ({"a": entry(0, 8, dtype="F99")}, bytes(8)),
    "metadata that is no text": ({"__metadata__": {"a": 3}, "a": entry(0, 8)}, bytes(8)),
    "two tensors of one name": (
        b'{"a": %b, "a": %b}'
        % tuple(json.dumps(entry(*each)).encode() for each in [(0, 8), (8, 16)]),
        bytes(16),
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    files.raw_safetensors(tmp_path / "a.safetensors", *HOSTILE[name])
    with pytest.raises(ModelError, match="a.safetensors cannot be read") as caught:
        read_headers(tmp_path / "a.safetensors")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_header_that_claims_more_than_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for length in (9, 2**31, 2**63, 2**64 - 1):
        path.write_bytes(length.to_bytes(8, "little") + b"{}")
        with pytest.raises(ModelError, match="longer than the file"):
            read_headers(path)
    os.truncate(path, 17 * 2**20)
    with path.open("r+b") as file:
        file.write((17 * 2**20 - 8).to_bytes(8, "little"))
    with pytest.raises(ModelError, match="longer than 16 MiB"):
        read_headers(path)


def test_a_name_of_a_megabyte_is_shortened_in_the_message(tmp_path: Path) -> None:
    name = "n" * 2**20 + ".weight_scale"
    save_file({name: torch.tensor(1.0)}, tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match="nnn.* scales 'nnn.*not float8") as caught:
        read_headers(tmp_path / "a.safetensors")
    assert len(str(caught.value)) < 600


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    paths = [tmp_path / "1.safetensors", tmp_path / "2.safetensors"]
    for path in paths:
        save_file({"x": torch.ones(2)}, path)
    with pytest.raises(ModelError, match="2.safetensors holds x, and .*1.safetensors does, too"):
        read_headers(*paths)


def test_samples_tell_files_apart(tmp_path: Path) -> None:
    path, seen = tmp_path / "a.safetensors", set()
    first = torch.zeros(6000)
    for index, name in ((0, "x"), (0, "y"), (5999, "x")):
        tensor = first.clone()
        tensor[index] = 1
        save_file({name: tensor}, path)
        seen.add(b"".join(read_headers(path).samples()))
    assert len(seen) == 3 and all(len(each) < 10_000 for each in seen)


def test_a_file_that_vanishes_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.ones(2)}, path)
    headers = read_headers(path)
    path.unlink()
    for action in (lambda: read_headers(path), lambda: list(headers.samples())):
        with pytest.raises(ModelError, match="a.safetensors (is missing|cannot be read)"):
            action()
