"""What a file of weights stores, by its header; without torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from longtake.errors import ModelError
from longtake.files.reading import open_regular
from longtake.pipelines.loading.files.model_files import printable
from longtake.pipelines.loading.files.tensor_files import Tensor, sample_tensors


@dataclass(frozen=True)
class StoredFile:
    """Header of a file of weights, in any format.

    Attributes:
        path: Path of the file.
        kind: Name of the format: "safetensors", "torch" or "gguf".
        tensors: Stored tensors by name, with offsets from the begin of the file. Dtypes are those
            of the safetensors format, or block types of GGUF, such as "Q4_K".
        header: What identifies the tensors, for a fingerprint.
        metadata: Texts that the file says of itself.
    """

    path: Path
    kind: str
    tensors: Mapping[str, Tensor]
    header: bytes
    metadata: Mapping[str, str] = field(default_factory=dict)

    def samples(self) -> Iterator[bytes]:
        """Yield the header, then the first and the last 4 KiB of each tensor.

        Raises:
            OSError: The file can no longer be read.
        """
        yield self.header
        yield from sample_tensors(self.path, self.tensors.values(), 0)


def read_small(file: StoredFile, name: str) -> bytes:
    """The bytes of a tensor.

    Raises:
        OSError: The file can no longer be read.
    """
    begin, end = file.tensors[name].offsets
    with open_regular(file.path) as opened:
        opened.seek(begin)
        return opened.read(end - begin)


def merged(files: Iterable[StoredFile]) -> dict[str, tuple[StoredFile, Tensor]]:
    """The stored tensors of several files by name, each with its file.

    Raises:
        ModelError: Two files hold the same tensor.
    """
    tensors: dict[str, tuple[StoredFile, Tensor]] = {}
    for file in files:
        for name, tensor in file.tensors.items():
            if name in tensors:
                raise ModelError(
                    f"{file.path} holds {printable(name)}, and {tensors[name][0].path} does, too: "
                    "download the files of one model again"
                )
            tensors[name] = file, tensor
    return tensors


def described(tensors: Mapping[str, Tensor]) -> bytes:
    """Names, dtypes, shapes and offsets of tensors, for a fingerprint."""
    return json.dumps(
        {name: (each.dtype, each.shape, each.offsets) for name, each in tensors.items()}
    ).encode()


def damaged(path: Path, kind: str, reason: str) -> ModelError:
    """The error for a file that is not whole, or not what it says it is."""
    return ModelError(
        f"{path} cannot be read: it is no whole {kind} file ({reason}): download it again"
    )
