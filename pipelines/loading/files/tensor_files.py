"""Reads safetensors files, and validates them before use."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from longtake.errors import one_line
from longtake.files.reading import open_regular

MAX_HEADER_BYTES = 16 * 2**20
"""A model of 10,000 tensors has a header of about 1 MB; trainers of LoRAs add what they counted."""

MAX_LATENTS_BYTES = 4 * 2**30
"""Size limit of a latents file. The longest video that can be requested, 16384 frames of 720p in 16
channels, takes 3.8 GB."""

FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")

_SAMPLE_BYTES = 4096


class TensorFileError(ValueError):
    """The file is not a complete safetensors file."""


@dataclass(frozen=True)
class Tensor:
    """Header entry of one tensor.

    Attributes:
        dtype: Name of the dtype in the safetensors format, such as "BF16".
        shape: Size of each dimension.
        offsets: Offsets of the first byte and of the end (exclusive), from the end of the header.
    """

    dtype: str
    shape: tuple[int, ...]
    offsets: tuple[int, int]


@dataclass(frozen=True)
class TensorFile:
    """Header of a safetensors file.

    Attributes:
        path: Path of the file.
        header: The unparsed header, without its length prefix.
        tensors: Header entries of the tensors, by name.
    """

    path: Path
    header: bytes
    tensors: dict[str, Tensor]

    @classmethod
    def read(cls, path: Path) -> TensorFile:
        """Read a header, and check that the file is complete.

        Raises:
            OSError: The file cannot be read, or is not a regular file.
            TensorFileError: The file is not a complete safetensors file.
        """
        with open_tensors(path, "np"):
            pass
        with open_regular(path) as file:
            header = file.read(_header_bytes(file.read(8)))
        entries = json.loads(header)
        tensors = {
            name: Tensor(entry["dtype"], tuple(entry["shape"]), tuple(entry["data_offsets"]))
            for name, entry in entries.items()
            if name != "__metadata__"
        }
        return cls(path, header, tensors)

    def samples(self) -> Iterator[bytes]:
        """Yield the header, then the first and the last 4 KiB of each tensor.

        Raises:
            OSError: The file can no longer be read.
        """
        yield self.header
        yield from sample_tensors(self.path, self.tensors.values(), 8 + len(self.header))


def sample_tensors(path: Path, tensors: Iterable[Tensor], values_begin: int) -> Iterator[bytes]:
    """Yield the first and the last 4 KiB of each tensor of a file.

    Args:
        path: The file.
        tensors: Header entries of the tensors.
        values_begin: Offset in the file from which theirs count.

    Raises:
        OSError: The file can no longer be read.
    """
    with open_regular(path) as file:
        for tensor in tensors:
            begin, end = tensor.offsets
            for at in sorted({begin, max(begin, end - _SAMPLE_BYTES)}):
                file.seek(values_begin + at)
                yield file.read(min(_SAMPLE_BYTES, end - at))


def open_safetensors(path: Path, framework: str, max_bytes: int | None = None) -> Any:
    """Open a safetensors file, memory-mapped; it stays open as long as it is referenced.

    Args:
        path: Path of the file.
        framework: Framework of the returned tensors: "pt" or "np".
        max_bytes: Largest allowed file size; None is unlimited.

    Returns:
        The open file of the safetensors library.

    Raises:
        OSError: The file cannot be read, or is not a regular file.
        TensorFileError: The file is not a complete safetensors file, or is too large.
    """
    with open_regular(path) as file:
        header_bytes, size_bytes = _header_bytes(file.read(8)), os.fstat(file.fileno()).st_size
    if header_bytes > max(0, size_bytes - 8):
        raise TensorFileError("its header is longer than the file")
    if header_bytes > MAX_HEADER_BYTES:
        raise TensorFileError(f"its header is longer than {MAX_HEADER_BYTES >> 20} MiB")
    if max_bytes is not None and size_bytes > max_bytes:
        raise TensorFileError(f"it is larger than {max_bytes >> 30} GiB")
    with _library_errors():
        return safe_open(path, framework=framework)


@contextmanager
def open_tensors(path: Path, framework: str, max_bytes: int | None = None) -> Iterator[Any]:
    """Open a safetensors file within the context; see :func:`open_safetensors`."""
    with open_safetensors(path, framework, max_bytes) as tensors, _library_errors():
        yield tensors


@contextmanager
def _library_errors() -> Iterator[None]:
    """Raise errors of the safetensors library as TensorFileError."""
    try:
        yield
    except SafetensorError as error:
        words = "".join(each if each.isprintable() else "?" for each in one_line(error)[:150])
        raise TensorFileError(words) from error


def _header_bytes(length: bytes) -> int:
    return int.from_bytes(length, "little")
