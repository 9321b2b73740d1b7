"""Reads what files of weights hold, in any format; without torch but for torch's own files."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from longtake.errors import ModelError, one_line
from longtake.files.reading import open_regular
from longtake.pipelines.checkpoints.formats import gguf_file, torch_zip
from longtake.pipelines.checkpoints.formats.float8_scales import FLOAT8_DTYPES, SCALES, Scales
from longtake.pipelines.checkpoints.formats.gguf_types import BLOCK_TYPES
from longtake.pipelines.checkpoints.formats.safetensors_file import read_safetensors
from longtake.pipelines.checkpoints.formats.stored_file import StoredFile, merged
from longtake.pipelines.loading.files.tensor_files import Tensor

_MAGIC_BYTES = 9
_PICKLES = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))


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
        """Name of the format, such as "safetensors", "fp8_scaled", "torch" or "gguf Q4_K, F32"."""
        sizes: Counter[str] = Counter()
        for _, tensor in self.stored.values():
            sizes[tensor.dtype] += tensor.offsets[1] - tensor.offsets[0]
        if self.is_gguf:
            return f"gguf {', '.join(name for name, _ in sizes.most_common())}"
        if self.scales.of:
            return "fp8_scaled"
        return "fp8" if sizes.keys() & set(FLOAT8_DTYPES) else self.files[0].kind

    @property
    def is_gguf(self) -> bool:
        """Whether the files are GGUF."""
        return self.files[0].kind == "gguf"

    @property
    def has_blocks(self) -> bool:
        """Whether the files are GGUF, and have weights of fewer bits."""
        return self.is_gguf and any(each.dtype in BLOCK_TYPES for _, each in self.stored.values())

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
    weights = [_read(path) for path in paths]
    scales = [found for file in weights if (found := _scales_beside(file)) is not None]
    files = (*weights, *scales)
    gguf_file.check_parts(files)
    stored = merged(files)
    return FileTensors(files, stored, Scales(stored, files))


def _read(path: Path) -> StoredFile:
    """Read a header in the format that the first bytes of the file tell."""
    try:
        with open_regular(path) as file:
            begin = file.read(_MAGIC_BYTES)
    except OSError:
        begin = b""  # the reader below words the error
    if begin.startswith(gguf_file.MAGIC):
        return gguf_file.read_gguf(path)
    if begin.startswith(torch_zip.MAGIC):
        return torch_zip.read_torch_zip(path)
    if begin.startswith(_PICKLES) and not begin.endswith(b"{"):  # a header may be as long
        raise ModelError(
            f"{path} is a pickle as torch saved it before version 1.6, which is not read: save it "
            "again with a newer torch, or as safetensors"
        )
    return read_safetensors(path)


def _scales_beside(file: StoredFile) -> StoredFile | None:
    """The scales of tencent's float8 files: a second file, with a scale for each layer.

    Raises:
        ModelError: The file is missing or damaged.
    """
    if file.kind != "torch" or not any(
        each.dtype in FLOAT8_DTYPES for each in file.tensors.values()
    ):
        return None
    path = file.path.with_name(f"{file.path.stem}_map.pt")
    if not path.exists():
        raise ModelError(
            f"{file.path} holds weights as float8, whose scales are in {path.name}, which is not "
            "beside it: download it to there"
        )
    scales = torch_zip.read_torch_zip(path)
    tensors = {f"{layer}.{SCALES[0]}": each for layer, each in scales.tensors.items()}
    return replace(scales, tensors=tensors)


def _decoded(stored: Tensor) -> Tensor:
    """Header entry of a tensor as it is read."""
    if stored.dtype not in FLOAT8_DTYPES and stored.dtype not in BLOCK_TYPES:
        return stored
    return Tensor("F32", stored.shape, (0, 4 * math.prod(stored.shape)))
