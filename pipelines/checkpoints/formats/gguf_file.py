"""Reads headers of GGUF files, versions 2 and 3, little-endian; without torch.

A header is read once from its begin to its end, whatever it claims: no number in it makes a reader
allocate memory or seek before it was compared with the size of the file.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, TypeGuard

from longtake.errors import ModelError, one_line
from longtake.files.reading import open_regular
from longtake.pipelines.checkpoints.formats.gguf_types import (
    BLOCK_TYPES,
    TYPE_NAMES,
    tensor_bytes,
)
from longtake.pipelines.checkpoints.formats.stored_file import StoredFile, damaged, described
from longtake.pipelines.loading.files.model_files import printable
from longtake.pipelines.loading.files.tensor_files import Tensor

MAGIC = b"GGUF"
"""First bytes of a file."""

_KIND = "gguf"
_VERSIONS = (2, 3)
_ALIGNMENT, _DEFAULT_ALIGNMENT = "general.alignment", 32
_SHAPE = "comfy.gguf.orig_shape."
"""Metadata of ComfyUI's converter: the shape of a tensor that it stored as a matrix."""

_NUM_PARTS = "split.count"
_MAX_COUNT, _MAX_DIMS, _MAX_NAME_BYTES = 2**16, 8, 1024
_MAX_HEADER_BYTES = 64 * 2**20
"""The vocabulary of a text encoder, 256,000 words, takes 10 MB."""

_MAX_TEXTS, _MAX_TEXT_BYTES, _MAX_SHORT_ARRAY = 2**20, 4096, 8

_TEXT, _ARRAY = 8, 9
_NUMBERS = {
    **{0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i"},
    **{6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"},
}
"""Formats of numbers in metadata, by the numbers of their types."""

_Value = str | int | float | tuple[int | float, ...] | None


class _DamageError(ValueError):
    """The header is not that of a whole GGUF file."""


def read_gguf(path: Path) -> StoredFile:
    """Read the header of a GGUF file.

    Raises:
        ModelError: The file is missing or damaged, or holds a tensor of a type that is not read.
    """
    try:
        with open_regular(path) as file:
            header = _Header(file)
            metadata, tensors = _content(header)
            tensors = _placed(header, metadata, tensors)
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing: download it again") from error
    except (OSError, _DamageError) as error:
        raise damaged(path, _KIND, getattr(error, "strerror", None) or one_line(error)) from error
    texts = {name: str(value) for name, value in metadata.items() if value is not None}
    return StoredFile(path, _KIND, tensors, described(tensors), texts)


def check_parts(files: tuple[StoredFile, ...]) -> None:
    """Check that a model in several GGUF files is whole.

    Raises:
        ModelError: A part is missing.
    """
    for file in files:
        named = file.metadata.get(_NUM_PARTS, "1")
        if file.kind == _KIND and named not in ("0", "1", str(len(files))):
            raise ModelError(
                f"{file.path} is one of {printable(named)} parts of a model, and {len(files)} are "
                "given: merge them into one file with llama-gguf-split --merge"
            )


class _Header:
    """Reads the values of a header, one after the other.

    Args:
        file: The file, at its begin.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.size_bytes = file, os.fstat(file.fileno()).st_size
        self._end = min(self.size_bytes, _MAX_HEADER_BYTES)
        self.position = 0

    def take(self, num_bytes: int) -> bytes:
        """The next bytes."""
        self._advance(num_bytes)
        taken = self._file.read(num_bytes)
        if len(taken) != num_bytes:
            raise _DamageError("it ends within its header")
        return taken

    def skip(self, num_bytes: int) -> None:
        """Leave out the next bytes."""
        self._advance(num_bytes)
        self._file.seek(self.position)

    def number(self, format_: str) -> int:
        """The next whole number, in a format of :mod:`struct`."""
        (value,) = struct.unpack(format_, self.take(struct.calcsize(format_)))
        return int(value)

    def count(self, of_what: str) -> int:
        """The next number, which counts what a header may hold no more than 65,536 of."""
        number = self.number("<Q")
        if number > _MAX_COUNT:
            raise _DamageError(f"its header claims {number} {of_what}")
        return number

    def text(self, max_bytes: int) -> str:
        """The next text."""
        num_bytes = self.number("<Q")
        if num_bytes > max_bytes:
            raise _DamageError(f"a name in its header has {num_bytes} bytes")
        return self.take(num_bytes).decode(errors="replace")

    def value(self) -> _Value:
        """The next value of the metadata; None for long ones, which are left out."""
        kind = self.number("<I")
        if kind == _TEXT:
            num_bytes = self.number("<Q")
            if num_bytes <= _MAX_TEXT_BYTES:
                return self.take(num_bytes).decode(errors="replace")
            self.skip(num_bytes)
            return None
        if kind == _ARRAY:
            return self._array()
        return self._plain(kind)

    def _plain(self, kind: int) -> int | float:
        if kind not in _NUMBERS:
            raise _DamageError(f"its metadata has a value of the unknown type {kind}")
        format_ = _NUMBERS[kind]
        value: int | float
        (value,) = struct.unpack(format_, self.take(struct.calcsize(format_)))
        return value

    def _array(self) -> tuple[int | float, ...] | None:
        kind, length = self.number("<I"), self.number("<Q")
        if kind == _TEXT:
            if length > _MAX_TEXTS:
                raise _DamageError(f"its metadata has an array of {length} texts")
            for _ in range(length):
                self.skip(self.number("<Q"))
            return None
        if kind not in _NUMBERS:
            raise _DamageError(f"its metadata has an array of the unknown type {kind}")
        if length <= _MAX_SHORT_ARRAY:
            return tuple(self._plain(kind) for _ in range(length))
        self.skip(length * struct.calcsize(_NUMBERS[kind]))
        return None

    def _advance(self, num_bytes: int) -> None:
        self.position += num_bytes
        if self.position > self._end:
            long = self.size_bytes > self._end
            limit = f"it is longer than {_MAX_HEADER_BYTES >> 20} MiB"
            raise _DamageError(limit if long else "it ends within its header")


def _content(header: _Header) -> tuple[Mapping[str, _Value], dict[str, Tensor]]:
    """The metadata, and the tensors with the begin of their offsets only."""
    if header.take(len(MAGIC)) != MAGIC:
        raise _DamageError("it does not begin with GGUF")
    version = header.number("<I")
    if version & 0xFFFF == 0:
        raise _DamageError("its bytes are in big-endian order")
    if version not in _VERSIONS:
        raise _DamageError(f"it is of version {version}, and 2 and 3 are read")
    num_tensors, num_values = header.count("tensors"), header.count("values")
    metadata: dict[str, _Value] = {}
    for _ in range(num_values):
        name = header.text(_MAX_NAME_BYTES)
        if name in metadata:
            raise _DamageError(f"it says {printable(name)} twice")
        metadata[name] = header.value()
    tensors: dict[str, Tensor] = {}
    for _ in range(num_tensors):
        name = header.text(_MAX_NAME_BYTES)
        if name in tensors:
            raise _DamageError(f"it holds {printable(name)} twice")
        tensors[name] = _tensor(header, name)
    return metadata, tensors


def _tensor(header: _Header, name: str) -> Tensor:
    """The next tensor; its offsets count from the begin of all values."""
    num_dims = header.number("<I")
    if not 1 <= num_dims <= _MAX_DIMS:
        raise _DamageError(f"{printable(name)} has {num_dims} dimensions")
    shape = tuple(header.number("<Q") for _ in range(num_dims))[::-1]
    kind, begin = header.number("<I"), header.number("<Q")
    if kind not in TYPE_NAMES:
        raise _DamageError(f"{printable(name)} is of type {kind} of ggml, which is not read")
    dtype = TYPE_NAMES[kind]
    if dtype in BLOCK_TYPES and shape[-1] % BLOCK_TYPES[dtype].num_values:
        raise _DamageError(f"{printable(name)} of {shape[-1]} columns is no {dtype}")
    return Tensor(dtype, shape, (begin, begin + tensor_bytes(math.prod(shape), dtype)))


def _placed(
    header: _Header, metadata: Mapping[str, _Value], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors with offsets in the file and the shapes that they had before conversion."""
    alignment = metadata.get(_ALIGNMENT, _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or not 1 <= alignment <= 2**20:
        raise _DamageError(f"its values are aligned to {printable(alignment)} bytes")
    values_begin = -(-header.position // alignment) * alignment
    placed: dict[str, Tensor] = {}
    last_end = values_begin
    for name, each in sorted(tensors.items(), key=lambda item: item[1].offsets):
        begin, end = (values_begin + offset for offset in each.offsets)
        if math.prod(each.shape) == 0 or begin % alignment or begin < last_end:
            raise _DamageError(f"{printable(name)} is empty, or not where its header says")
        if end > header.size_bytes:
            raise _DamageError(f"{printable(name)} is cut")
        shape = metadata.get(_SHAPE + name, each.shape)
        if not _same_size(shape, each.shape):
            raise _DamageError(f"{printable(name)} of shape {each.shape} was not of {shape!r}")
        placed[name] = Tensor(each.dtype, shape, (begin, end))
        last_end = end
    return placed


def _same_size(shape: object, stored: tuple[int, ...]) -> TypeGuard[tuple[int, ...]]:
    """Whether a shape from the metadata has as many values as the stored one."""
    return (
        isinstance(shape, tuple)
        and all(isinstance(size, int) and size > 0 for size in shape)
        and math.prod(shape) == math.prod(stored)
    )
