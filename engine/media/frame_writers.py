"""The formats that a video is written in, frame by frame."""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import av
import imageio.v3 as iio
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from PIL import PngImagePlugin

Array = npt.NDArray[np.float32]

_CODECS = {".mp4": "libx264", ".webm": "libvpx-vp9"}
_ENCODER_OPTIONS = {
    # x264's AVX-512 code for macroblock trees reads past the end of a row, and what it finds there
    # decides on bits. This is x264's own switch to the code that all CPUs share.
    ".mp4": {"x264-params": "cpu-independent=1"},
    ".webm": {"crf": "30"},  # FFmpeg's 32 moves plain colors by more than 3 of 255
}
_THREADS = 4
"""x264's output depends on their number, so it must not be the number of cores."""
# Else a .webm holds random identifiers, and what is encoded stays in memory for longer.
_CONTAINER_OPTIONS = {"fflags": "+bitexact", "flush_packets": "1"}
_BT709, _LIMITED_RANGE = 1, 1
"""Of ITU-T H.273: matrix, primaries and transfer; and FFmpeg's number of the range."""
_EXACT = 0x4 | 0x2000 | 0x4000 | 0x40000 | 0x80000
"""Of libswscale: bicubic, full chroma in and out, accurate rounding, the same on all CPUs."""
_LARGEST_RATE_PART = 65535
_NO_TAGS: Mapping[str, str] = MappingProxyType({})


class FrameWriter(ABC):
    """One video's file, being written.

    Args:
        path: the temporary file or folder.
        shape: frames, height, width.
        fps: frames a second.
        tags: text that the file carries, by ``title`` and ``comment``; .npy has no place for it.
    """

    @abstractmethod
    def __init__(
        self,
        path: Path,
        shape: tuple[int, int, int],
        fps: float,
        tags: Mapping[str, str] = _NO_TAGS,
    ) -> None: ...

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


class _Encoded(FrameWriter):
    """A video file of libav, in BT.709 and limited range, and tagged so.

    Frames of an odd size are not subsampled in .mp4: H.264 in 4:2:0 has even sizes only.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int, int],
        fps: float,
        tags: Mapping[str, str] = _NO_TAGS,
    ) -> None:
        kind = kind_of(path)
        num_frames, height, width = shape
        odd = height % 2 or width % 2
        self._format = "yuv444p" if kind == ".mp4" and odd else "yuv420p"
        self._reformatter = VideoReformatter()
        options = {**_CONTAINER_OPTIONS, **_place_options(kind, num_frames, tags)}
        self._target = _Target(path.open("wb", buffering=0))
        try:
            self._file = av.open(self._target, "w", kind[1:], container_options=options)
            self._file.metadata.update(tags)
            rate = Fraction(fps).limit_denominator(_LARGEST_RATE_PART)
            self._frame_time = 1 / rate
            stream: Any = self._file.add_stream(_CODECS[kind], rate, _ENCODER_OPTIONS[kind])
            stream.width, stream.height, stream.pix_fmt = width, height, self._format
            context = stream.codec_context
            context.time_base = self._frame_time
            context.thread_count = _THREADS
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = _LIMITED_RANGE
            self._stream = stream
        except BaseException:
            self.discard()
            raise

    def write(self, index: int, frame: Array) -> None:
        picture = self._reformatter.reformat(
            av.VideoFrame.from_ndarray(_bytes(frame), format="rgb24"),
            format=self._format,
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            interpolation=_EXACT,
            threads=1,
        )
        picture.pts, picture.time_base = index, self._frame_time
        self._file.mux(self._stream.encode(picture))

    def close(self) -> None:
        self._file.mux(self._stream.encode(None))
        self._file.close()
        self._target.close()

    def discard(self) -> None:
        if not self._target.closed:  # what it still holds goes nowhere
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._target.fileno())
            os.close(nowhere)
        with suppress(Exception):
            self._file.close()
        with suppress(Exception):
            self._target.close()


def _place_options(kind: str, num_frames: int, tags: Mapping[str, str]) -> dict[str, str]:
    """Where a container puts its parts: an .mp4 its index in front, a .webm a second together.

    The index gets room before the first frame is written, so that nothing is moved at the end. A
    frame has 45 bytes in it at most; the rest of it is below 2 KiB.
    """
    if kind == ".webm":
        return {"cluster_time_limit": "1000"}
    tags_bytes = sum(64 + len(text.encode()) for text in tags.values())
    return {"moov_size": str(48 * num_frames + tags_bytes + 2048)}


class _Gif(FrameWriter):
    """An animated GIF that repeats. It counts in hundredths of a second, two a frame at least."""

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int, int],
        fps: float,
        tags: Mapping[str, str] = _NO_TAGS,
    ) -> None:
        self._target = path.open("wb")
        self._settings: dict[str, Any] = {"duration": 10 * max(2, round(100 / fps)), "loop": 0}
        if tags:
            self._settings["comment"] = "\n".join(tags.values()).encode()
        self._frames: list[npt.NDArray[np.uint8]] = []

    def write(self, index: int, frame: Array) -> None:
        self._frames.append(_bytes(frame))

    def close(self) -> None:
        content = iio.imwrite(
            "<bytes>", np.stack(self._frames), plugin="pillow", extension=".gif", **self._settings
        )
        self._target.write(content)
        self._target.close()

    def discard(self) -> None:
        with suppress(OSError):
            self._target.close()


class _Folder(FrameWriter):
    """A folder of numbered PNG files, in sRGB, and tagged so."""

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int, int],
        fps: float,
        tags: Mapping[str, str] = _NO_TAGS,
    ) -> None:
        self._path = path
        self._chunks = PngImagePlugin.PngInfo()
        self._chunks.add(b"sRGB", b"\0")  # 0: perceptual
        for name, text in tags.items():
            self._chunks.add_itxt(name.title(), text, zip=True)
        path.mkdir()

    def write(self, index: int, frame: Array) -> None:
        iio.imwrite(frame_path(self._path, index), _bytes(frame), pnginfo=self._chunks)

    def close(self) -> None:
        pass

    def discard(self) -> None:
        pass


class _Raw(FrameWriter):
    """``[frames, height, width, 3]``, float32 in [0, 1], for numpy."""

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int, int],
        fps: float,
        tags: Mapping[str, str] = _NO_TAGS,
    ) -> None:
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
