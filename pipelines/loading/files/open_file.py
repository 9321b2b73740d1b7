"""A file of weights that stays open, and notices when it changes."""

from __future__ import annotations

import os
import weakref
from pathlib import Path

import torch

from longtake.files.reading import open_regular


class OpenFile:
    """A file that is read at offsets; it stays open as long as it is referenced.

    It is not memory-mapped: a disk that fails would then end the process, and pages of the file
    would count as its memory.

    Args:
        path: Path of a regular file.

    Raises:
        OSError: The file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        with open_regular(path) as file:
            self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)
        self._opened = self._state()

    def read_into(self, tensor: torch.Tensor, begin: int) -> None:
        """Fill a tensor.

        Args:
            tensor: Contiguous, on the CPU.
            begin: Offset of its first byte in the file.

        Raises:
            OSError: The file cannot be read, or has changed since it was opened.
        """
        values = tensor.reshape(-1).view(torch.uint8).numpy().data
        done = 0
        while done < len(values):
            number = os.preadv(self._descriptor, [values[done:]], begin + done)
            if number == 0:
                raise OSError("the file was cut")
            done += number
        if self._state() != self._opened:
            raise OSError("the file was changed while it was in use")

    def _state(self) -> tuple[int, int]:
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns
