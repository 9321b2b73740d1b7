"""Reads headers of the files of ``torch.save``: zip archives of a pickle and of raw values.

The pickle is read by ``torch.load(weights_only=True)``, which builds tensors and plain values and
runs nothing that a file names. Values are not read: tensors are fake, and know where in the file
their values are.
"""

from __future__ import annotations

import io
import os
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from longtake.errors import ModelError, one_line
from longtake.files.reading import open_regular
from longtake.pipelines.checkpoints.formats.stored_file import StoredFile, damaged, described
from longtake.pipelines.loading.files.model_files import printable
from longtake.pipelines.loading.files.tensor_files import Tensor

if TYPE_CHECKING:
    import torch

MAGIC = b"PK\x03\x04"
"""First bytes of a zip archive."""

_KIND = "torch"
_WRAPPERS = ("module", "state_dict", "model_state_dict", "model", "ema", "params")
"""Keys under which training programs save the tensors of a model."""

_MAX_LEVELS = 2
_MAX_DIRECTORY_BYTES, _MAX_PICKLE_BYTES = 4 * 2**20, 8 * 2**20
"""A model of 10,000 tensors has a directory of about 1 MB and a pickle of about 1 MB."""

_LOCAL_HEADER_BYTES = 30

_DAMAGE = (OSError, EOFError, ValueError, RuntimeError, struct.error, zipfile.BadZipFile)
"""What reading a damaged archive raises: zipfile words some of it in errors of its own."""


def read_torch_zip(path: Path) -> StoredFile:
    """Read the names, dtypes, shapes and offsets of the tensors in a file of ``torch.save``.

    Dictionaries around the tensors are looked into, and plain values beside them are metadata.

    Raises:
        ModelError: The file is missing or damaged, or holds anything else.
    """
    try:
        with open_regular(path) as file:
            records = _records(path, file)
            content, metadata = _unwrapped(path, _load(path, file))
    except ModelError:
        raise
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing: download or save the model again") from error
    except _DAMAGE as error:
        raise damaged(path, _KIND, getattr(error, "strerror", None) or one_line(error)) from error
    tensors = {name: _header(path, name, value, records) for name, value in content.items()}
    return StoredFile(path, _KIND, tensors, described(tensors), metadata)


class _ShortReads(io.BufferedReader):
    """Refuses reads that no directory of a model's archive needs, whatever the file claims."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(
                f"its directory is longer than {_MAX_DIRECTORY_BYTES >> 20} MiB"
            )
        return super().read(size)


def _records(path: Path, file: BinaryIO) -> Mapping[int, int]:
    """Sizes of the raw values in an archive, by the offset of their first byte.

    Raises:
        ModelError: The archive is not one of ``torch.save``, or of another byte order.
        zipfile.BadZipFile: It is damaged.
    """
    records: dict[int, int] = {}
    seen: set[str] = set()
    reader = _ShortReads(io.FileIO(os.dup(file.fileno())))
    with reader, zipfile.ZipFile(reader) as archive:
        for info in archive.infolist():
            name = info.filename.partition("/")[2]
            if info.filename in seen:
                raise zipfile.BadZipFile(f"it holds {printable(info.filename)} twice")
            seen.add(info.filename)
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                raise zipfile.BadZipFile(f"{printable(info.filename)} is compressed")
            if name == "data.pkl" and info.file_size > _MAX_PICKLE_BYTES:
                raise zipfile.BadZipFile(f"its pickle is longer than {_MAX_PICKLE_BYTES >> 20} MiB")
            if name == "byteorder" and archive.read(info)[:16] != b"little":
                raise damaged(path, _KIND, "its bytes are in big-endian order")
            if name == "constants.pkl":
                raise damaged(path, _KIND, "it is a TorchScript program, not weights")
            records[_begin_of(reader, info)] = info.file_size
    if not any(name.partition("/")[2] == "data.pkl" for name in seen):
        raise damaged(path, _KIND, "it is a zip archive, but none of torch.save")
    return records


def _begin_of(file: BinaryIO, info: zipfile.ZipInfo) -> int:
    """Offset of the first byte of a stored file in an archive."""
    file.seek(info.header_offset)
    header = file.read(_LOCAL_HEADER_BYTES)
    name_bytes = int.from_bytes(header[26:28], "little")
    extra_bytes = int.from_bytes(header[28:30], "little")
    begin = info.header_offset + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes
    if begin + info.file_size > os.fstat(file.fileno()).st_size:
        raise zipfile.BadZipFile(f"{printable(info.filename)} is cut")
    return begin


def _load(path: Path, file: BinaryIO) -> Any:
    """The content of a file, with fake tensors in place of tensors."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode  # documented with torch.load

    file.seek(0)
    try:
        with FakeTensorMode():
            return torch.load(file, map_location="meta", weights_only=True)
    except Exception as error:  # what a hostile pickle raises is not foreseen
        named = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it names {printable(named[1])}" if named else one_line(error)[:150]
        raise ModelError(
            f"{path} is not read: it is not tensors alone ({reason}), and a pickle can run code: "
            "use a safetensors file"
        ) from error


def _unwrapped(path: Path, content: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """The dictionary of tensors in a file's content, and the plain values around it."""
    metadata: dict[str, str] = {}
    for _ in range(_MAX_LEVELS + 1):
        if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
            break
        inner = [name for name, value in content.items() if isinstance(value, dict)]
        if not inner:
            return content, metadata
        (wrapper, *more) = inner
        if more or wrapper not in _WRAPPERS:
            raise ModelError(
                f"{path} holds {' and '.join(map(printable, inner[:3]))}, of which none is known "
                "to be the model: save the model's tensors alone"
            )
        for name, value in content.items():
            if name != wrapper:
                metadata[name] = _text(path, name, value)
        content = content[wrapper]
    raise ModelError(f"{path} holds no dictionary of tensors: save the model's state_dict()")


def _text(path: Path, name: str, value: Any) -> str:
    if value is None or isinstance(value, str | int | float):
        return str(value)
    raise ModelError(
        f"{path} holds {printable(name)}, a {type(value).__name__}, beside the model: save the "
        "model's tensors alone"
    )


def _header(path: Path, name: str, value: Any, records: Mapping[int, int]) -> Tensor:
    """Header entry of a fake tensor, checked against the archive."""
    import torch

    from longtake.pipelines.loading.tensor_source import DTYPES

    names = {dtype: each for each, dtype in DTYPES.items()}
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
        is_tensor = isinstance(value, torch.Tensor)
        kind = str(value.layout) if is_tensor else type(value).__name__
        raise ModelError(
            f"{path} holds {printable(name)}, which is no dense tensor ({kind}): save the model's "
            "tensors alone"
        )
    if value.dtype not in names or not value.is_contiguous():
        how = f"as {value.dtype}" if value.dtype not in names else "transposed"
        raise ModelError(
            f"{path} holds {printable(name)} {how}, which is not read here: save it contiguous, in "
            "a floating-point dtype"
        )
    begin, end = _span(value)
    storage: torch.UntypedStorage = value.untyped_storage()
    values_begin = getattr(storage, "_checkpoint_offset", None)
    if value.numel() == 0:
        return Tensor(names[value.dtype], tuple(value.shape), (0, 0))
    if (
        values_begin is None
        or records.get(values_begin) != storage.nbytes()
        or end > storage.nbytes()
    ):
        raise damaged(path, _KIND, f"{printable(name)} is not where its pickle says")
    return Tensor(
        names[value.dtype], tuple(value.shape), (values_begin + begin, values_begin + end)
    )


def _span(value: torch.Tensor) -> tuple[int, int]:
    """Offsets of a contiguous tensor's first byte and of its end in its storage."""
    begin = int(value.storage_offset()) * value.itemsize
    return begin, begin + value.numel() * value.itemsize
