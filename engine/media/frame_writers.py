"""Writers of video formats, which take one frame at a time."""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import imageio.v3 as iio
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from PIL import PngImagePlugin

from longtake.engine.media.arrays import Array

_CODECS = {".mp4": "libx264", ".webm": "libvpx-vp9"}
_ENCODER_OPTIONS = {
    # x264's AVX-512 code for macroblock trees reads past the end of a row, and the output depends
    # on what it finds there. This switches to the code that is the same on all CPUs.
    ".mp4": {"x264-params": "cpu-independent=1"},
    ".webm": {"crf": "30"},  # FFmpeg's default, 32, changes plain colors by more than 3 of 255
}
_THREADS = 4
"""Fixed, not the number of cores: x264's output depends on it."""
# Without these a .webm has random identifiers, and encoded data stay in memory for longer.
_CONTAINER_OPTIONS = {"fflags": "+bitexact", "flush_packets": "1"}
_BT709, _LIMITED_RANGE = 1, 1
"""Matrix, primaries and transfer of ITU-T H.273; FFmpeg's number of the range."""
_EXACT = 0x4 | 0x2000 | 0x4000 | 0x40000 | 0x80000
"""Flags of libswscale: bicubic, full chroma in and out, accurate rounding, bit-exact."""
_LARGEST_RATE_PART = 65535


@dataclass(frozen=True)
class VideoHeader:
    """What a writer needs to know before the first frame.

    Attributes:
        shape: Number of frames, height, width.
        fps: Frames per second.
        tags: Embedded text, under ``title`` and ``comment``; ignored by .npy.
    """

    shape: tuple[int, int, int]
    fps: float
    tags: Mapping[str, str] = field(default_factory=dict)


class FrameWriter(ABC):
    """Writes one video.

    Args:
        path: Temporary file or folder.
        header: The video's size, rate and tags.
    """

    @abstractmethod
    def __init__(self, path: Path, header: VideoHeader) -> None: ...

    @abstractmethod
    def write(self, index: int, frame: Array) -> None:
        """Append a frame, ``[height, width, 3]`` in [0, 1]."""

    @abstractmethod
    def close(self) -> None:
        """Finish the file."""

    @abstractmethod
    def discard(self) -> None:
        """Close an unfinished file. Never raises."""


class _FailsOnce(io.BufferedWriter):
    """A file that raises only its first error: libav continues, and prints each further one."""

    _failed = False

    def write(self, data: Any) -> int:
        return len(data) if self._failed else self._attempt(super().write, data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return offset if self._failed else self._attempt(super().seek, offset, whence)

    def _attempt(self, function: Callable[..., int], *arguments: Any) -> int:
        try:
            return function(*arguments)
        except OSError:
            self._failed = True
            raise


class _Encoded(FrameWriter):
    """A video file written by libav, converted to BT.709 in limited range and tagged so.

    An .mp4 of an odd size is in 4:4:4, since H.264 in 4:2:0 has even sizes only.
    """

    def __init__(self, path: Path, header: VideoHeader) -> None:
        kind = kind_of(path)
        num_frames, height, width = header.shape
        odd = height % 2 or width % 2
        self._format = "yuv444p" if kind == ".mp4" and odd else "yuv420p"
        self._reformatter = VideoReformatter()
        options = {**_CONTAINER_OPTIONS, **_layout_options(kind, num_frames, header.tags)}
        self._target = _FailsOnce(path.open("wb", buffering=0))
        try:
            self._file = av.open(self._target, "w", kind[1:], container_options=options)
            self._file.metadata.update(header.tags)
            rate = Fraction(header.fps).limit_denominator(_LARGEST_RATE_PART)
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
        encoded = self._reformatter.reformat(
            av.VideoFrame.from_ndarray(_to_uint8(frame), format="rgb24"),
            format=self._format,
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            interpolation=_EXACT,
            threads=1,
        )
        encoded.pts, encoded.time_base = index, self._frame_time
        self._file.mux(self._stream.encode(encoded))

    def close(self) -> None:
        self._file.mux(self._stream.encode(None))
        self._file.close()
        self._target.close()

    def discard(self) -> None:
        if not self._target.closed:  # closing flushes its buffer
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._target.fileno())
            os.close(null)
        with suppress(Exception):
            self._file.close()
        with suppress(Exception):
            self._target.close()


def _layout_options(kind: str, num_frames: int, tags: Mapping[str, str]) -> dict[str, str]:
    """Layout of a container: an .mp4's index at its start, a .webm's clusters of one second.

    Room for the index is reserved before the first frame, so that no data are moved at the end. The
    index takes at most 45 bytes per frame, and less than 2 KiB in addition.
    """
    if kind == ".webm":
        return {"cluster_time_limit": "1000"}
    tags_bytes = sum(64 + len(text.encode()) for text in tags.values())
    return {"moov_size": str(48 * num_frames + tags_bytes + 2048)}


class _Gif(FrameWriter):
    """A looping animated GIF. Frames last a multiple of 10 ms, 20 ms at least."""

    def __init__(self, path: Path, header: VideoHeader) -> None:
        self._target = path.open("wb")
        duration_ms = 10 * max(2, round(100 / header.fps))
        self._settings: dict[str, Any] = {"duration": duration_ms, "loop": 0}
        if header.tags:
            self._settings["comment"] = "\n".join(header.tags.values()).encode()
        self._frames: list[npt.NDArray[np.uint8]] = []

    def write(self, index: int, frame: Array) -> None:
        self._frames.append(_to_uint8(frame))

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
    """A folder of numbered PNG files, tagged as sRGB."""

    def __init__(self, path: Path, header: VideoHeader) -> None:
        self._path = path
        self._chunks = PngImagePlugin.PngInfo()
        self._chunks.add(b"sRGB", b"\0")  # 0: perceptual
        for name, text in header.tags.items():
            self._chunks.add_itxt(name.title(), text, zip=True)
        path.mkdir()

    def write(self, index: int, frame: Array) -> None:
        iio.imwrite(frame_path(self._path, index), _to_uint8(frame), pnginfo=self._chunks)

    def close(self) -> None:
        pass

    def discard(self) -> None:
        pass


class _Raw(FrameWriter):
    """``[frames, height, width, 3]``, float32 in [0, 1], for numpy."""

    def __init__(self, path: Path, header: VideoHeader) -> None:
        self._file: BinaryIO = path.open("wb")
        description = {"descr": "<f4", "fortran_order": False, "shape": (*header.shape, 3)}
        np.lib.format.write_array_header_1_0(self._file, description)

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
"""Writers by suffix; a path without one is a folder."""


def frame_path(folder: Path, index: int) -> Path:
    """The path of a frame in a folder of PNG files."""
    return folder / f"{index:05d}.png"


def kind_of(path: Path) -> str:
    """The suffix in lower case, which selects the format."""
    return path.suffix.lower()


def _to_uint8(frame: Array) -> npt.NDArray[np.uint8]:
    """Values in [0, 1], rounded to 0 to 255."""
    rounded: npt.NDArray[np.uint8] = np.rint(np.clip(frame, 0, 1) * 255).astype(np.uint8)
    return rounded
