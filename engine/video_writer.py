"""Videos to files, frame by frame: under another name until they are whole."""

from __future__ import annotations

import os
import secrets
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import imageio.v3 as iio
import numpy as np
import numpy.typing as npt

from longtake.configs.request import OutputType, ResolvedRequest
from longtake.errors import EngineError, RequestError, one_line

Array = npt.NDArray[np.float32]

_CODECS = {".mp4": "libx264", ".webm": "libvpx-vp9"}


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


class _Imageio(FrameWriter):
    """A file of one of imageio's plugins."""

    def __init__(self, path: Path, plugin: Any) -> None:
        self._target = path.open("wb")
        self._file: Any = iio.imopen(self._target, "w", plugin=plugin, extension=_kind(path))

    def close(self) -> None:
        self._file.close()
        self._target.close()

    def discard(self) -> None:
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
        super().__init__(path, "pyav")
        _, height, width = shape
        self._file.init_video_stream(
            _CODECS[_kind(path)],
            fps=fps,
            pixel_format="yuv420p" if height % 2 == width % 2 == 0 else "yuv444p",
        )

    def write(self, index: int, frame: Array) -> None:
        self._file.write_frame(_bytes(frame))


class _Gif(_Imageio):
    """An animated GIF that repeats."""

    def __init__(self, path: Path, shape: tuple[int, int, int], fps: float) -> None:
        super().__init__(path, "pillow")
        self._duration_ms = 1000 / fps

    def write(self, index: int, frame: Array) -> None:
        self._file.write(_bytes(frame), duration=self._duration_ms, loop=0)


class _Folder(FrameWriter):
    """A folder of numbered PNG files."""

    def __init__(self, path: Path, shape: tuple[int, int, int], fps: float) -> None:
        self._path = path
        path.mkdir()

    def write(self, index: int, frame: Array) -> None:
        iio.imwrite(self._path / f"{index:05d}.png", _bytes(frame))

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


_WRITERS: dict[str, type[FrameWriter]] = {
    ".mp4": _Encoded,
    ".webm": _Encoded,
    ".gif": _Gif,
    ".npy": _Raw,
    "": _Folder,
}

LATENTS_SUFFIX = ".safetensors"


def output_type(path: Path) -> OutputType:
    """What a file of this name holds.

    Raises:
        RequestError: no known suffix.
    """
    if _kind(path) == LATENTS_SUFFIX:
        return "latents"
    if _kind(path) not in _WRITERS:
        raise RequestError(
            f"output={str(path)!r} has the suffix {path.suffix!r}: use "
            f"{', '.join(filter(None, _WRITERS))}, {LATENTS_SUFFIX}, or none for a folder of PNG "
            "files"
        )
    return "frames"


def _kind(path: Path) -> str:
    return path.suffix.lower()


def output_paths(path: Path, num_videos: int) -> list[Path]:
    """The files of several videos: ``out-0.mp4``, ``out-1.mp4``; of one, its own name."""
    if num_videos == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{video}{path.suffix}") for video in range(num_videos)]


def check_output(path: Path, num_videos: int) -> None:
    """Refuse, before anything is rendered, an output that cannot be written.

    Raises:
        RequestError: an unknown suffix, no such folder, no permission, or something in the way.
    """
    output_type(path)
    try:
        _check_places(path, output_paths(path, num_videos))
    except (OSError, ValueError) as error:  # too long a name, say
        raise RequestError(f"output={str(path)!r} cannot be a file: {_cause(error)}") from error


def _check_places(path: Path, outputs: list[Path]) -> None:
    folder = path.parent
    if not folder.is_dir():
        raise RequestError(f"output={str(path)!r}: there is no folder {folder}; make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise RequestError(f"output={str(path)!r}: {folder} cannot be written to")
    for each in outputs:
        if _kind(path) == "" and each.exists() and (not each.is_dir() or any(each.iterdir())):
            raise RequestError(
                f"output={str(each)!r} is there and is not an empty folder: name another one, or "
                "end the name in .mp4, .webm, .gif, .npy or .safetensors for a file"
            )
        if _kind(path) != "" and each.is_dir():
            raise RequestError(f"output={str(each)!r} is a folder: name a file in it")
        with suppress(FileNotFoundError):
            each.lstat()  # raises for a name that no file can have


def partial_path(path: Path) -> Path:
    """Where a file stands until it is whole: hidden, beside it, at no name that is taken."""
    return path.with_name(f".{path.stem[:40]}.{secrets.token_hex(4)}.partial{path.suffix}")


class VideoFiles:
    """A sink that writes all videos of a request to files, which appear once all are whole.

    Use it as a context: leaving it with an exception leaves no file behind.

    Args:
        path: of the output; its suffix says what is written.
        request: what is rendered.

    Raises:
        RequestError: the output cannot be written.
    """

    def __init__(self, path: Path, request: ResolvedRequest) -> None:
        check_output(path, request.num_videos)
        self.paths = output_paths(path, request.num_videos)
        self._request = request
        self._partial = [partial_path(each) for each in self.paths]
        self._writers: dict[int, FrameWriter] = {}

    def __enter__(self) -> VideoFiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Discard what is not whole."""
        for writer in self._writers.values():
            writer.discard()
        for partial in self._partial:
            if partial.is_dir():
                shutil.rmtree(partial, ignore_errors=True)
            else:
                partial.unlink(missing_ok=True)

    def latents(self, latents: Array) -> None:
        """Write the latents, where they are what was asked for."""
        if _kind(self.paths[0]) != LATENTS_SUFFIX:
            return
        from safetensors.numpy import save_file

        for video, partial in enumerate(self._partial):
            with _writing(self.paths[video]):
                save_file({"latents": np.ascontiguousarray(latents[video])}, partial)

    def frame(self, video: int, index: int, frame: Array) -> None:
        """Write one frame."""
        if _kind(self.paths[0]) == LATENTS_SUFFIX:
            return
        with _writing(self.paths[video]):
            if video not in self._writers:
                shape = (self._request.num_frames, *frame.shape[:2])
                make = _WRITERS[_kind(self.paths[video])]
                self._writers[video] = make(self._partial[video], shape, self._request.fps)
            self._writers[video].write(index, frame)
            if index == self._request.num_frames - 1:
                self._writers[video].close()
                del self._writers[video]

    def publish(self) -> None:
        """Give the whole files their names."""
        for partial, path in zip(self._partial, self.paths, strict=True):
            with _writing(path):
                if path.is_dir():
                    path.rmdir()
                os.replace(partial, path)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn what goes wrong while writing into an EngineError that names the file."""
    try:
        yield
    except Exception as error:
        raise EngineError(f"{path} cannot be written: {_cause(error)}") from error


def _cause(error: BaseException) -> str:
    """The operating system's reason, which libraries bury."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.errno and link.strerror:
            return os.strerror(link.errno) if link.errno < 1000 else link.strerror
        link = link.__cause__ or link.__context__
    return one_line(error)


def _bytes(frame: Array) -> npt.NDArray[np.uint8]:
    """Values in [0, 1] to bytes."""
    rounded: npt.NDArray[np.uint8] = np.rint(np.clip(frame, 0, 1) * 255).astype(np.uint8)
    return rounded
