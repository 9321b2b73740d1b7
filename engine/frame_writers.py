"""The formats that a video is written in, frame by frame."""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import imageio.v3 as iio
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

_CODECS = {".mp4": "libx264", ".webm": "libvpx-vp9"}
# Else a .webm holds chance identifiers, and the same video is another file; and what is encoded
# stays in memory for longer, of a .webm five seconds of video.
_OPTIONS = {"fflags": "+bitexact", "flush_packets": "1"}
_FORMAT_OPTIONS = {".mp4": _OPTIONS, ".webm": {**_OPTIONS, "cluster_time_limit": "1000"}}


class FrameWriter(ABC):
    """One video's file, being written.

    Args:
        path: the temporary file or folder.
        shape: frames, height, width.
        fps: frames a second.
    """

    @abstractmethod
    def __init__(self, path: Path, shape: tuple[int, int, int], fps: float) -> None: ...

    @abstractmethod
    def write(self, index: int, frame: Array) -> None:
        """Add a frame, ``[height, width, 3]`` in [0, 1]."""

    @abstractmethod
    def close(self) -> None:
        """Finish the file."""

    @abstractmethod
    def discard(self) -> None:
        """Let go of a file that will not be finished; never fails."""


class _Target(io.BufferedWriter):
    """A file that fails once: libav goes on after an error, and would print every further one."""

    _failed = False

    def write(self, data: Any) -> int:
        return len(data) if self._failed else self._tried(super().write, data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return offset if self._failed else self._tried(super().seek, offset, whence)

    def _tried(self, function: Callable[..., int], *arguments: Any) -> int:
        try:
            return function(*arguments)
        except OSError:
            self._failed = True
            raise


class _Imageio(FrameWriter):
    """A file of one of imageio's plugins."""

    def __init__(self, path: Path, plugin: Any, **settings: Any) -> None:
        self._target = _Target(path.open("wb", buffering=0))
        self._file: Any = iio.imopen(
            self._target, "w", plugin=plugin, extension=kind_of(path), **settings
        )

    def close(self) -> None:
        self._file.close()
        self._target.close()

    def discard(self) -> None:
        if not self._target.closed:  # what it still holds goes nowhere
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._target.fileno())
            os.close(nowhere)
        with suppress(Exception):
            self._file.close()
        self._file.close = lambda: None  # imageio would try again, and complain, when collected
        with suppress(Exception):
            self._target.close()


class _Encoded(_Imageio):
    """A video file of libav."""

    def __init__(self, path: Path, shape: tuple[int, int, int], fps: float) -> None:
        super().__init__(path, "pyav", options=_FORMAT_OPTIONS[kind_of(path)])
        _, height, width = shape
        try:
            self._file.init_video_stream(
                _CODECS[kind_of(path)],
                fps=fps,
                pixel_format="yuv420p" if height % 2 == width % 2 == 0 else "yuv444p",
            )
        except BaseException:
            self.discard()
            raise

    def write(self, index: int, frame: Array) -> None:
        self._file.write_frame(_bytes(frame))


class _Gif(_Imageio):
    """An animated GIF that repeats. It counts in hundredths of a second, two a frame at least."""

    def __init__(self, path: Path, shape: tuple[int, int, int], fps: float) -> None:
        super().__init__(path, "pillow")
        self._duration_ms = 10 * max(2, round(100 / fps))

    def write(self, index: int, frame: Array) -> None:
        self._file.write(_bytes(frame), duration=self._duration_ms, loop=0)


class _Folder(FrameWriter):
    """A folder of numbered PNG files."""

    def __init__(self, path: Path, shape: tuple[int, int, int], fps: float) -> None:
        self._path = path
        path.mkdir()

    def write(self, index: int, frame: Array) -> None:
        iio.imwrite(frame_path(self._path, index), _bytes(frame))

    def close(self) -> None:
        pass

    def discard(self) -> None:
        pass


class _Raw(FrameWriter):
    """``[frames, height, width, 3]``, float32 in [0, 1], for numpy."""

    def __init__(self, path: Path, shape: tuple[int, int, int], fps: float) -> None:
        self._file: BinaryIO = path.open("wb")
        header = {"descr": "<f4", "fortran_order": False, "shape": (*shape, 3)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def write(self, index: int, frame: Array) -> None:
        self._file.write(np.ascontiguousarray(frame, dtype="<f4").data)

    def close(self) -> None:
        self._file.close()

    def discard(self) -> None:
        with suppress(OSError):
            self._file.close()


WRITERS: dict[str, type[FrameWriter]] = {
    ".mp4": _Encoded,
    ".webm": _Encoded,
    ".gif": _Gif,
    ".npy": _Raw,
    "": _Folder,
}
"""By suffix; none is a folder."""


def frame_path(folder: Path, index: int) -> Path:
    """Where a frame of a folder of PNG files stands."""
    return folder / f"{index:05d}.png"


def kind_of(path: Path) -> str:
    """The suffix that decides what is written."""
    return path.suffix.lower()


def _bytes(frame: Array) -> npt.NDArray[np.uint8]:
    """Values in [0, 1] to bytes."""
    rounded: npt.NDArray[np.uint8] = np.rint(np.clip(frame, 0, 1) * 255).astype(np.uint8)
    return rounded
