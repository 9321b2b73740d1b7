"""Sources of a component's tensors: their names, and how they are read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError

from longtake.errors import ModelError, one_line
from longtake.pipelines.loading.model_files import open_weights, read_tensors
from longtake.pipelines.loading.tensor_files import Tensor


class TensorSource(Protocol):
    """Named tensors that can be read whole or by rows.

    A source may wrap another one, to rename its tensors or to compute new ones from them.
    """

    @property
    def label(self) -> str:
        """What holds the tensors, for error messages, such as a component's folder."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Dtype and shape of each tensor, by name."""

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """Read a tensor into host memory, in its stored dtype.

        Args:
            name: A key of :attr:`tensors`.
            rows: Range along the first dimension; None is all of it.

        Raises:
            ModelError: The tensor cannot be read.
        """


class SafetensorsSource:
    """The tensors of a component's safetensors files.

    The files are memory-mapped: bytes are read from disk when they are used. A file stays open as
    long as the source or one of its tensors is referenced.

    Args:
        files: The files, at least one, all in one folder.

    Raises:
        ModelError: A file is missing or damaged, or two files hold the same tensor.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.label = str(files[0].parent)
        self.tensors: Mapping[str, Tensor] = read_tensors(files)
        self._file_of = {name: file for file in map(open_weights, files) for name in file.keys()}

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """Read a tensor, or a range of its rows; see :meth:`TensorSource.read`."""
        file = self._file_of[name]
        try:
            tensor: torch.Tensor
            tensor = file.get_tensor(name) if rows is None else file.get_slice(name)[rows]
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{name} cannot be read from {self.label}: {one_line(error)}"
            ) from error
        return tensor


class UsedTensors:
    """A source without the tensors that a module does not have, by a pattern of their names.

    Args:
        source: The source.
        unused: Pattern that matches the whole names of the tensors to leave out.
    """

    def __init__(self, source: TensorSource, unused: re.Pattern[str]) -> None:
        self._source, self.label = source, source.label
        self.tensors: Mapping[str, Tensor] = {
            name: each for name, each in source.tensors.items() if not unused.fullmatch(name)
        }

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """Read a tensor; see :meth:`TensorSource.read`."""
        return self._source.read(name, rows)
