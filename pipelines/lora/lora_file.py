"""A LoRA's file: its header, its adapters, its digest; without torch."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from longtake.errors import ModelError
from longtake.files.reading import open_regular
from longtake.pipelines.loading.files.model_files import printable, read_header
from longtake.pipelines.loading.files.tensor_files import Tensor, TensorFile
from longtake.pipelines.lora.adapters import Adapter, build_adapters
from longtake.pipelines.lora.part_names import group_parts
from longtake.pipelines.lora.peft_metadata import PeftScales

_PICKLES = (".pt", ".pth", ".bin", ".ckpt")
_CHUNK_BYTES = 4 * 2**20
_MAX_ALPHA = 1e6


@dataclass(frozen=True)
class LoraFile:
    """A safetensors file of adapters.

    Attributes:
        path: Path of the file.
        metadata: Its metadata: text by name.
        tensors: Its tensors by name.
        adapters: The changes that it makes, by the module's name there.
        others: Names of the tensors that are part of no adapter.
        identity: What changes when the file does, from before it was read.
    """

    path: Path
    metadata: Mapping[str, str]
    tensors: Mapping[str, Tensor]
    adapters: tuple[Adapter, ...]
    others: tuple[str, ...]
    identity: tuple[int, ...]

    @classmethod
    def read(cls, path: Path) -> LoraFile:
        """Read a file's header and its alphas.

        Raises:
            ModelError: The file is missing, damaged, a pickle, or holds no adapter; or an adapter
                is not whole.
        """
        if path.suffix in _PICKLES:
            raise ModelError(
                f"{path} is a pickle, which can run code and is not read: use its .safetensors"
            )
        identity = _identity(path)
        header = read_header(path)
        metadata = _metadata(header)
        groups, others = group_parts(header.tensors, str(path))
        if not groups:
            raise ModelError(f"{path} is no LoRA: none of its tensors is part of an adapter")
        named = {
            module: group.names["alpha"]
            for (module, _), group in groups.items()
            if "alpha" in group.names
        }
        alphas = _read_alphas(header, named)
        scales = PeftScales.read(metadata, path)

        def factor_of(module: str, rank: int) -> float:
            if module in alphas:
                return alphas[module] / rank
            return scales.factor(module, rank)

        adapters = build_adapters(groups, header.tensors, factor_of, str(path))
        _check_beside(path, adapters)
        return cls(path, metadata, header.tensors, adapters, tuple(others), identity)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the whole file, in hexadecimal digits. All of its values are finite.

        It is computed once for as long as the file is not changed.

        Raises:
            ModelError: The file cannot be read, was changed since its header was read, or holds a
                value that is not finite.
        """
        return _checked_digest(self.path, self.identity)

    def check_unchanged(self) -> None:
        """Check that the file is the one whose header was read.

        Raises:
            ModelError: It was changed or removed.
        """
        if _identity(self.path) != self.identity:
            raise ModelError(f"{self.path} was changed while it was in use: name it again")


def _check_beside(path: Path, adapters: Iterable[Adapter]) -> None:
    """Refuse a file whose scale stands in another one, which no digest covers."""
    scales = PeftScales.beside(path)
    if scales is None:
        return
    for each in adapters:
        factor = 1.0 if each.rank is None else scales.factor(each.module, each.rank)
        if factor not in (1.0, each.factor):
            raise ModelError(
                f"{path} is multiplied by {factor:g} as adapter_config.json beside it says, which "
                f"is no part of the file: rename the file, and name it with the scale {factor:g}"
            )


def _identity(path: Path) -> tuple[int, ...]:
    """What changes when the file does."""
    try:
        status = os.stat(path)
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing: check the name") from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@lru_cache(maxsize=64)
def _checked_digest(path: Path, identity: tuple[int, ...]) -> str:
    """SHA-256 of a file whose values are all finite."""
    header = read_header(path)
    digest = hashlib.sha256()
    try:
        with open_regular(path) as file:
            digest.update(file.read(8 + len(header.header)))
            for name, tensor in sorted(header.tensors.items(), key=lambda item: item[1].offsets):
                for begin in range(*tensor.offsets, _CHUNK_BYTES):
                    chunk = file.read(min(_CHUNK_BYTES, tensor.offsets[1] - begin))
                    digest.update(chunk)
                    if not _are_finite(chunk, tensor.dtype):
                        raise ModelError(
                            f"{path} holds {printable(name)} with a value that is not finite: "
                            "download it again"
                        )
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    if _identity(path) != identity:
        raise ModelError(f"{path} was changed while it was read: try again")
    return digest.hexdigest()


_EXPONENTS: Mapping[str, tuple[str, int]] = {
    "F64": ("<u8", 0x7FF0 << 48),
    "F32": ("<u4", 0x7F80 << 16),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F8_E4M3": ("<u1", 0x7F),
    "F8_E5M2": ("<u1", 0x7C),
}
"""Integers of a dtype's size, and the bits that are all set in values that are not finite."""


def _are_finite(values: bytes, dtype: str) -> bool:
    """Whether values of a dtype are finite; those of other dtypes always are."""
    if dtype not in _EXPONENTS:
        return True
    kind, mask = _EXPONENTS[dtype]
    bits = np.frombuffer(values, kind) & np.dtype(kind).type(mask)
    return not bool((bits == mask).any())


def _read_alphas(file: TensorFile, names: Mapping[str, str]) -> dict[str, float]:
    """The alphas of modules.

    Args:
        file: The file's header.
        names: Name of the tensor of each module's alpha.
    """
    try:
        with open_regular(file.path) as opened:
            return {module: _alpha(file, opened, name) for module, name in names.items()}
    except OSError as error:
        raise ModelError(f"{file.path} cannot be read: {error.strerror}") from error


def _alpha(file: TensorFile, opened: BinaryIO, name: str) -> float:
    """The value of a tensor of one number."""
    tensor = file.tensors[name]
    value = math.nan
    if tensor.dtype in _NUMBERS and math.prod(tensor.shape) == 1:
        begin, end = tensor.offsets
        opened.seek(8 + len(file.header) + begin)
        stored = opened.read(end - begin)
        if tensor.dtype == "BF16":
            stored = b"\0\0" + stored
        value = float(np.frombuffer(stored, _NUMBERS[tensor.dtype])[0])
    if not abs(value) <= _MAX_ALPHA:
        raise ModelError(
            f"{file.path} holds {printable(name)} of shape {tensor.shape} and dtype "
            f"{tensor.dtype}, which is no finite number: download it again"
        )
    return value


_NUMBERS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<f4", "I64": "<i8", "I32": "<i4"}
"""Dtypes of a single number in a file."""


def _metadata(file: TensorFile) -> dict[str, str]:
    """The metadata of a file, whose values are text by the format's definition."""
    found: Any = json.loads(file.header).get("__metadata__") or {}
    return {str(name): str(value) for name, value in found.items()}
