"""Reads what files of weights hold, in any format; without torch but for torch's own files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from longtake.errors import ModelError, one_line
from longtake.pipelines.checkpoints.formats.float8_scales import FLOAT8_DTYPES, Scales
from longtake.pipelines.checkpoints.formats.safetensors_file import read_safetensors
from longtake.pipelines.checkpoints.formats.stored_file import StoredFile, merged
from longtake.pipelines.loading.tensor_files import Tensor


@dataclass(frozen=True)
class FileTensors:
    """What one or more files of weights hold together.

    Attributes:
        files: The files' headers.
        stored: Stored tensors by name, each with its file.
        scales: Scales of float8 weights.
    """

    files: tuple[StoredFile, ...]
    stored: Mapping[str, tuple[StoredFile, Tensor]]
    scales: Scales

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        """What is read, by name: tensors of fewer bits as "F32", in the shape of their values."""
        return {
            name: _decoded(tensor)
            for name, (_, tensor) in self.stored.items()
            if name not in self.scales.hidden
        }

    @cached_property
    def metadata(self) -> Mapping[str, str]:
        """Texts that the files say of themselves; of the first file that has a name."""
        return {name: text for file in reversed(self.files) for name, text in file.metadata.items()}

    @property
    def kind(self) -> str:
        """Name of the format, such as "safetensors", "fp8_scaled" or "torch"."""
        return _float8_kind(self) or self.files[0].kind

    def samples(self) -> Iterator[bytes]:
        """Yield each file's header, and the first and the last 4 KiB of each of its tensors.

        Raises:
            ModelError: A file can no longer be read.
        """
        for file in self.files:
            try:
                yield from file.samples()
            except OSError as error:
                raise ModelError(f"{file.path} cannot be read: {one_line(error)}") from error


def read_headers(*paths: Path) -> FileTensors:
    """Read the headers of one or more files of weights.

    Args:
        paths: The files, at least one, whose tensors belong together.

    Raises:
        ModelError: A file is missing, damaged, of an unknown format, or of a kind that would not
            be read rightly; or two files hold the same tensor.
    """
    files = tuple(_read(path) for path in paths)
    stored = merged(files)
    return FileTensors(files, stored, Scales(stored, files))


def _read(path: Path) -> StoredFile:
    return read_safetensors(path)


def _decoded(stored: Tensor) -> Tensor:
    """Header entry of a tensor as it is read."""
    if stored.dtype not in FLOAT8_DTYPES:
        return stored
    return Tensor("F32", stored.shape, (0, 4 * math.prod(stored.shape)))


def _float8_kind(tensors: FileTensors) -> str:
    if tensors.scales.of:
        return "fp8_scaled"
    has_float8 = any(each.dtype in FLOAT8_DTYPES for _, each in tensors.stored.values())
    return "fp8" if has_float8 else ""
