"""GGUF files are read by rows, equal bit for bit to what the gguf package decodes."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from longtake.errors import ModelError
from longtake.pipelines.checkpoints.formats import source as source_module
from longtake.pipelines.checkpoints.formats.gguf_decoding import decode_blocks
from longtake.pipelines.checkpoints.formats.gguf_types import BLOCK_TYPES, PLAIN_BYTES, TYPE_NAMES
from longtake.pipelines.checkpoints.formats.headers import read_headers
from longtake.pipelines.checkpoints.formats.source import open_source
from tests import checkpoint_files as files

COLUMNS = 512


def reference(blocks: np.ndarray, kind: str) -> torch.Tensor:
    with np.errstate(all="ignore"):  # of scales that are not finite
        return torch.from_numpy(gguf.dequantize(blocks, gguf.GGMLQuantizationType[kind]))


def test_types_are_those_of_the_gguf_package() -> None:
    for number, name in TYPE_NAMES.items():
        kind = gguf.GGMLQuantizationType(number)
        size = BLOCK_TYPES.get(name) or (1, PLAIN_BYTES[name])
        assert kind.name == name and gguf.GGML_QUANT_SIZES[kind] == tuple(size)


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_blocks_of_any_bytes(kind: str) -> None:
    """2,048 blocks of random bytes: each bit of a code and of a scale is seen both ways."""
    shape = (2048, BLOCK_TYPES[kind].num_bytes)
    blocks = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    expected = reference(blocks, kind)
    assert expected.isfinite().float().mean() > 0.9
    decoded = decode_blocks(torch.from_numpy(blocks), kind)
    torch.testing.assert_close(decoded, expected, rtol=0, atol=0, equal_nan=True)


def save(path: Path) -> dict[str, torch.Tensor]:
    """Save a tensor of each type, and return what the gguf package decodes."""
    tensors: dict[str, tuple[Any, str]] = {}
    expected = {}
    for kind in BLOCK_TYPES:
        blocks = files.random_blocks(6, COLUMNS, kind)
        tensors[f"{kind}.weight"], expected[f"{kind}.weight"] = (
            (blocks, kind),
            reference(blocks, kind),
        )
    values = np.random.default_rng(0).standard_normal((6, 4, 3)).astype(np.float32)
    tensors["f32"], expected["f32"] = (values, "F32"), torch.from_numpy(values)
    tensors["f16"] = (values.astype(np.float16), "F16")
    expected["f16"] = torch.from_numpy(values).half()
    bf16 = torch.from_numpy(values).bfloat16()
    tensors["bf16"], expected["bf16"] = (bf16.view(torch.uint8).numpy(), "BF16"), bf16
    tensors["ids"] = (np.arange(6, dtype=np.int32), "I32")
    expected["ids"] = torch.arange(6, dtype=torch.int32)
    files.save_gguf(path, tensors, {"general.name": "tiny", "long": list(range(99))})
    return expected


def test_every_type_by_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoded in chunks of three blocks, which rows do not divide."""
    monkeypatch.setattr(source_module, "_CHUNK_VALUES", 3 * 256)
    expected = save(tmp_path / "a.gguf")
    headers, source = read_headers(tmp_path / "a.gguf"), open_source([tmp_path / "a.gguf"])
    assert headers.tensors.keys() == expected.keys()
    assert headers.kind.startswith("gguf Q8_0, ") and "IQ4_XS" in headers.kind
    assert headers.metadata["general.name"] == "tiny" and "long" not in headers.metadata
    for name, tensor in expected.items():
        assert headers.tensors[name].shape == tuple(tensor.shape)
        assert headers.tensors[name].dtype == ("F32" if "weight" in name else tensor_dtype(tensor))
        for rows in (None, slice(0, 1), slice(1, 4), slice(5, 6), slice(6, 6), slice(2, 99)):
            whole = tensor if rows is None else tensor[rows]
            torch.testing.assert_close(source.read(name, rows), whole, rtol=0, atol=0)


def tensor_dtype(tensor: torch.Tensor) -> str:
    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    return names.get(tensor.dtype, "I32")


def test_the_shape_before_conversion(tmp_path: Path) -> None:
    """ComfyUI's converter stores a convolution as a matrix; rows then begin within blocks."""
    blocks = files.random_blocks(3, 256, "Q4_K")
    key = "comfy.gguf.orig_shape.conv.weight"
    files.save_gguf(tmp_path / "a.gguf", {"conv.weight": (blocks, "Q4_K")}, {key: [8, 3, 2, 4, 4]})
    whole = reference(blocks, "Q4_K").view(8, 3, 2, 4, 4)
    source = open_source([tmp_path / "a.gguf"])
    assert source.tensors["conv.weight"].shape == (8, 3, 2, 4, 4)
    for rows in (None, slice(0, 1), slice(2, 5), slice(7, 8)):
        expected = whole if rows is None else whole[rows]
        torch.testing.assert_close(source.read("conv.weight", rows), expected, rtol=0, atol=0)


def test_only_the_blocks_of_rows_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = files.random_blocks(64, COLUMNS, "Q4_K")
    files.save_gguf(tmp_path / "a.gguf", {"a.weight": (blocks, "Q4_K")})
    source, read, preadv = open_source([tmp_path / "a.gguf"]), [], os.preadv

    def counted(descriptor: int, buffers: Any, offset: int) -> int:
        read.append(preadv(descriptor, buffers, offset))
        return read[-1]

    monkeypatch.setattr(os, "preadv", counted)
    source.read("a.weight", slice(5, 9))
    assert sum(read) == 4 * COLUMNS // 256 * BLOCK_TYPES["Q4_K"].num_bytes


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def tensor(name: str = "a", shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + sizes + struct.pack("<IQ", kind, offset)


def header(
    *tensors: bytes, fields: tuple[bytes, ...] = (), counts: tuple[int, int] | None = None
) -> bytes:
    numbers = counts or (len(tensors), len(fields))
    content = b"GGUF" + struct.pack("<IQQ", 3, *numbers) + b"".join(fields) + b"".join(tensors)
    return content + bytes(-len(content) % 32)


def field(name: str, kind: int, data: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + data


HOSTILE: dict[str, tuple[bytes, str]] = {
    "only its magic": (b"GGUF", "ends within its header"),
    "version 1": (b"GGUF" + struct.pack("<I", 1) + bytes(64), "of version 1, and 2 and 3 are read"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(64), "big-endian"),
    "many tensors": (header(counts=(2**62, 0)), "claims 4611686018427387904 tensors"),
    "many values": (header(counts=(0, 2**62)), "values"),
    "more tensors than there are": (header(tensor(), counts=(2, 0)), "ends within its header"),
    "a cut tensor": (header(tensor()) + bytes(15), "a is cut"),
    "a name of a megabyte": (header(tensor("n" * 2**20)), "has 1048576 bytes"),
    "a name beyond the end": (header(struct.pack("<Q", 2**63)), "has 9223372036854775808 bytes"),
    "a tensor twice": (header(tensor(), tensor(offset=32)) + bytes(64), "holds a twice"),
    "overlapping tensors": (
        header(tensor(shape=(16,)), tensor("b", offset=32)) + bytes(96),
        "b is empty, or not where its header says",
    ),
    "values beyond the end": (header(tensor(offset=2**62)) + bytes(64), "a is cut"),
    "an unaligned tensor": (header(tensor(offset=4)) + bytes(64), "not where its header says"),
    "an empty tensor": (header(tensor(shape=(0, 4))) + bytes(64), "a is empty"),
    "a huge tensor": (header(tensor(shape=(2**62, 2**62))) + bytes(64), "a is cut"),
    "no dimension": (header(tensor(shape=())) + bytes(64), "a has 0 dimensions"),
    "many dimensions": (header(tensor(shape=(1,) * 9)) + bytes(64), "a has 9 dimensions"),
    "an unknown type": (header(tensor(kind=99)) + bytes(64), "is of type 99 of ggml"),
    "a type that is not read": (header(tensor(kind=16)) + bytes(64), "is of type 16 of ggml"),
    "half a block": (header(tensor(shape=(16, 2), kind=8)) + bytes(64), "16 columns is no Q8_0"),
    "a value twice": (header(fields=(field("x", 0, b"1"),) * 2), "says x twice"),
    "an unknown value": (header(fields=(field("x", 13, bytes(8)),)), "of the unknown type 13"),
    "an array of arrays": (
        header(fields=(field("x", 9, struct.pack("<IQ", 9, 1) + bytes(64)),)),
        "an array of the unknown type 9",
    ),
    "an endless array": (
        header(fields=(field("x", 9, struct.pack("<IQ", 0, 2**63)),)),
        "ends within its header",
    ),
    "endless texts": (
        header(fields=(field("x", 9, struct.pack("<IQ", 8, 2**63)),)),
        "an array of 9223372036854775808 texts",
    ),
    "a text beyond the end": (header(fields=(field("x", 8, struct.pack("<Q", 2**63)),)), "ends"),
    "no alignment": (
        header(tensor(), fields=(field("general.alignment", 4, bytes(4)),)) + bytes(64),
        "aligned to 0 bytes",
    ),
    "alignment of a word": (
        header(tensor(), fields=(field("general.alignment", 8, text("x")),)) + bytes(64),
        "aligned to x bytes",
    ),
    "a shape of other size": (
        header(
            tensor(),
            fields=(field("comfy.gguf.orig_shape.a", 9, struct.pack("<IQ3i", 5, 3, 1, -1, -4)),),
        )
        + bytes(64),
        "was not of (1, -1, -4)",
    ),
    "one of two parts": (
        header(tensor(), fields=(field("split.count", 2, b"\2\0"),)) + bytes(64),
        "is one of 2 parts of a model, and 1 are given",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    data, reason = HOSTILE[name]
    (tmp_path / "a.gguf").write_bytes(data)
    with pytest.raises(ModelError) as caught:
        read_headers(tmp_path / "a.gguf")
    message = str(caught.value)
    assert reason in message and "\n" not in message and len(message) < 400


def test_a_header_without_end_is_left_at_64_mebibytes(tmp_path: Path) -> None:
    with (tmp_path / "a.gguf").open("wb") as file:
        file.write(header(fields=(field("x", 9, struct.pack("<IQ", 0, 2**32)),)))
        file.truncate(2**33)
    with pytest.raises(ModelError, match="longer than 64 MiB"):
        read_headers(tmp_path / "a.gguf")


def test_every_cut_of_a_file_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "whole.gguf")
    whole = (tmp_path / "whole.gguf").read_bytes()
    end = max(
        each.offsets[1] for each in read_headers(tmp_path / "whole.gguf").files[0].tensors.values()
    )
    for length in [*range(0, 1000, 37), end // 2, end - 1]:
        (tmp_path / "a.gguf").write_bytes(whole[:length])
        with pytest.raises(ModelError, match="cannot be read"):
            read_headers(tmp_path / "a.gguf")


def test_parts_of_a_model(tmp_path: Path) -> None:
    parts = []
    for number in range(2):
        parts.append(tmp_path / f"{number}.gguf")
        count = field("split.count", 2, b"\2\0")
        parts[-1].write_bytes(header(tensor(f"t{number}"), fields=(count,)) + bytes(32))
    assert read_headers(*parts).tensors.keys() == {"t0", "t1"}
