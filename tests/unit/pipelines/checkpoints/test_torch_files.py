"""Files of torch.save are read by rows, as torch reads them; nothing in them runs."""

from __future__ import annotations

import os
import pickle
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from longtake.errors import ModelError
from longtake.pipelines.checkpoints.formats.headers import read_headers
from longtake.pipelines.checkpoints.formats.source import open_source
from tests import checkpoint_files as files

E4M3 = torch.float8_e4m3fn
LAYER = "double_blocks.0.img_attn_qkv"


def content() -> dict[str, torch.Tensor]:
    whole = torch.randn(6, 8, generator=torch.Generator().manual_seed(3))
    return {
        "a.weight": whole.bfloat16(),
        "b.weight": nn.Parameter(whole),
        "rows of b": whole[2:5],
        "c.bias": whole[0].half(),
        "number": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.empty(0, 4),
        "ids": torch.arange(5),
    }


WRAPPED: dict[str, Callable[[Any], Any]] = {
    "a state dict": lambda tensors: tensors,
    "an ordered one": OrderedDict,
    "tencent's": lambda tensors: {"module": tensors},
    "a checkpoint of training": lambda tensors: {"state_dict": tensors, "epoch": 3, "name": "x"},
    "two levels": lambda tensors: {"ema": {"model": tensors}},
}


@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.bin", "named.safetensors"])
def test_the_values_are_those_of_torch_load(tmp_path: Path, wrapped: str, name: str) -> None:
    path, tensors = tmp_path / name, content()
    torch.save(WRAPPED[wrapped](tensors), path)
    headers, source = read_headers(path), open_source([path])
    assert headers.kind == "torch" and headers.tensors.keys() == tensors.keys()
    assert dict(headers.metadata) == ({"epoch": "3", "name": "x"} if "training" in wrapped else {})
    for key, tensor in tensors.items():
        assert headers.tensors[key].shape == tuple(tensor.shape)
        torch.testing.assert_close(source.read(key), tensor.detach(), rtol=0, atol=0)
    for rows in (slice(0, 1), slice(3, 6), slice(6, 6)):
        read = source.read("a.weight", rows)
        torch.testing.assert_close(read, tensors["a.weight"][rows], rtol=0, atol=0)


def test_the_state_dict_of_a_module(tmp_path: Path) -> None:
    """Its metadata, which pickles keep as an attribute of the dictionary, is no tensor."""
    module = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    torch.save(module.state_dict(), tmp_path / "a.pt")
    source = open_source([tmp_path / "a.pt"])
    read = {name: source.read(name) for name in source.tensors}
    torch.testing.assert_close(read, dict(module.state_dict()), rtol=0, atol=0)


def save_tencent(tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """Save a float8 model as tencent does, and the decoded weight by their formula."""
    codes, scale = files.float8_scaled(torch.randn(6, 8))
    path = tmp_path / "mp_rank_00_model_states_fp8.pt"
    torch.save({"module": {f"{LAYER}.weight": codes, f"{LAYER}.bias": torch.ones(6)}}, path)
    torch.save({LAYER: scale}, tmp_path / "mp_rank_00_model_states_fp8_map.pt")
    return path, codes.float() * scale.item()


def test_tencents_float8_with_its_map(tmp_path: Path) -> None:
    path, decoded = save_tencent(tmp_path)
    headers, source = read_headers(path), open_source([path])
    assert headers.kind == "fp8_scaled"
    assert headers.tensors.keys() == {f"{LAYER}.weight", f"{LAYER}.bias"}
    torch.testing.assert_close(source.read(f"{LAYER}.weight"), decoded, rtol=0, atol=0)
    rows = source.read(f"{LAYER}.weight", slice(2, 5))
    torch.testing.assert_close(rows, decoded[2:5], rtol=0, atol=0)


MAPS: dict[str, tuple[Any, str]] = {
    "none": (None, "whose scales are in mp_rank_00_model_states_fp8_map.pt, which is not beside"),
    "no tensor": ({LAYER: 3.0}, "which is no dense tensor .float"),
    "of other layers": ({"x": torch.tensor(1.0)}, "x.weight, which is not there, not float8"),
    "empty": ({}, "qkv.weight, which is float8, and has no scale"),
    "not finite": ({LAYER: torch.tensor(torch.inf)}, "a scale that is not finite"),
    "of a bias, too": (
        {LAYER: torch.tensor(1.0), f"{LAYER}.x": torch.tensor(1.0)},
        "x.weight, which is not there",
    ),
}


@pytest.mark.parametrize("name", MAPS)
def test_maps_that_do_not_fit_are_refused(tmp_path: Path, name: str) -> None:
    path, _ = save_tencent(tmp_path)
    scales, text = MAPS[name]
    beside = tmp_path / "mp_rank_00_model_states_fp8_map.pt"
    beside.unlink()
    if scales is not None:
        torch.save(scales, beside)
    with pytest.raises(ModelError, match=text) as caught:
        open_source([path])
    assert "\n" not in str(caught.value)


class Code:
    """What a hostile pickle holds: a call."""

    def __init__(self, call: Callable[..., Any], *arguments: object) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.call, self.arguments


def hostile(tmp_path: Path) -> dict[str, tuple[Any, str]]:
    marker = os.fspath(tmp_path / "it ran")
    tensor = torch.ones(4, 4)
    return {
        "code": ({"a": Code(os.mkdir, marker)}, r"it names posix.mkdir\), and a pickle can run"),
        "code beside": ({"model": {"a": tensor}, "x": Code(os.mkdir, marker)}, "posix.mkdir"),
        "code as a name": ({Code(os.mkdir, marker): tensor}, "posix.mkdir"),
        "eval": (Code(eval, f"__import__('os').mkdir({marker!r})"), "eval"),
        "a module": (nn.Linear(2, 2), "it names torch.nn.modules.linear.Linear"),
        "a list": ([tensor], "holds no dictionary of tensors"),
        "a tensor": (tensor, "holds no dictionary of tensors"),
        "a number for a name": ({3: tensor}, "holds no dictionary of tensors"),
        "an optimizer": (
            {"model": {}, "optimizer": {"a": tensor}},
            "holds model and optimizer, of",
        ),
        "one unknown dictionary": ({"generator": {"a": tensor}}, "holds generator, of which none"),
        "too deep": ({"ema": {"model": {"module": {"a": tensor}}}}, "no dictionary of tensors"),
        "a tensor beside the model": ({"model": {}, "x": tensor}, "holds x, a .*Tensor, beside"),
        "a list in it": ({"a": [tensor]}, "holds a, which is no dense tensor .list"),
        "a text in it": ({"a": "x"}, "holds a, which is no dense tensor .str"),
        "a transposed tensor": ({"a": torch.ones(4, 3).T}, "holds a transposed, which is not read"),
        "an expanded tensor": ({"a": torch.ones(1).expand(9)}, "holds a transposed"),
        "complex numbers": ({"a": tensor.to(torch.complex64)}, "holds a as torch.complex64"),
        "a sparse tensor": (
            {"a": tensor.to_sparse()},
            "holds a, which is no dense tensor .torch.sparse_coo",
        ),
        "a long name": ({"n" * 2**20: 3}, "holds 'nnn"),
    }


@pytest.mark.parametrize("name", hostile(Path()))
def test_what_is_not_tensors_alone_is_refused(tmp_path: Path, name: str) -> None:
    saved, text = hostile(tmp_path)[name]
    torch.save(saved, tmp_path / "a.pt")
    with pytest.raises(ModelError, match=text) as caught:
        read_headers(tmp_path / "a.pt")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert not (tmp_path / "it ran").exists()


def _encrypted(archive: bytes) -> bytes:
    """An archive whose directory says that all of it is encrypted."""
    begin = archive.index(b"PK\1\2")
    return archive[:begin] + archive[begin:].replace(b"PK\1\2\0\0\0\0\x08", b"PK\1\2\0\0\0\0\x09")


def damages(tmp_path: Path) -> dict[str, tuple[Callable[[Path], object], str]]:
    good = tmp_path / "good.pt"
    torch.save(content(), good)

    def changed(name: str, data: bytes, deflate: bool = False) -> Callable[[Path], None]:
        return lambda path: files.rezip(good, path, {name: data}, deflate)

    def twice(path: Path) -> None:
        files.rezip(good, path, {})
        with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zipfile's own, of the second one
            archive.writestr("good/data/0", bytes(96))

    def foreign(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/y", b"")

    def write(data: bytes) -> Callable[[Path], object]:
        return lambda path: path.write_bytes(data)

    with zipfile.ZipFile(good) as archive:
        values = archive.read("good/data/0")
    whole = good.read_bytes()
    return {
        "compressed": (changed("x", b"", deflate=True), "is compressed"),
        "a bomb": (changed("data/0", bytes(50 * 2**20), deflate=True), "is compressed"),
        "a long pickle": (changed("data.pkl", bytes(9 * 2**20)), "pickle is longer than 8 MiB"),
        "big-endian": (changed("byteorder", b"big"), "big-endian order"),
        "a short tensor": (changed("data/0", values[:-2]), "a.weight is not where its pickle says"),
        "a program": (changed("constants.pkl", b""), "TorchScript program"),
        "no pickle in it": (changed("data.pkl", b""), "is not read"),
        "a long directory": (
            write(
                whole[:4]
                + bytes(5 * 2**20)
                + b"PK\5\6"
                + struct.pack("<4H2IH", 0, 0, 1, 1, 5 * 2**20, 4, 0)
            ),
            "its directory is longer than 4 MiB",
        ),
        "a name twice": (twice, "holds good/data/0 twice"),
        "an archive of something else": (foreign, "none of torch.save"),
        "half of it": (write(whole[: len(whole) // 2]), "no whole torch file"),
        "one byte less": (write(whole[:-1]), "no whole torch file"),
        "a name that is no text": (
            write(whole.replace(b"good/byteorder", b"good/b\xff\xff\xff\xff\xff\xff\xff\xff")),
            "no whole torch file",
        ),
        "encrypted": (write(_encrypted(whole)), "is encrypted"),
        "only the first bytes": (write(whole[:6]), "no whole torch file"),
        "an old pickle": (write(pickle.dumps({"a": 1}, 2)), "saved it before version 1.6"),
    }


def test_damaged_archives_are_refused_in_one_line(tmp_path: Path) -> None:
    for name, (damage, text) in damages(tmp_path).items():
        damage(tmp_path / "a.pt")
        with pytest.raises(ModelError) as caught:
            read_headers(tmp_path / "a.pt")
        message = str(caught.value)
        assert text in message and "\n" not in message and len(message) < 400, (name, message)


def test_a_file_of_which_rows_are_read_is_not_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensor, bytes_read = torch.ones(2048, 1024), 0
    torch.save({"a": tensor}, tmp_path / "a.pt")
    preadv = os.preadv

    def counted(descriptor: int, buffers: Any, offset: int) -> int:
        nonlocal bytes_read
        bytes_read += sum(map(len, buffers))
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", counted)
    source = open_source([tmp_path / "a.pt"])
    torch.testing.assert_close(source.read("a", slice(5, 9)), tensor[5:9], rtol=0, atol=0)
    assert bytes_read == 4 * tensor[0].nbytes
