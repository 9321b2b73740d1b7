"""Videos to files: under another name until they are whole, then all at once."""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from longtake.configs.engine import EngineConfig
from longtake.configs.request import OutputType, ResolvedDecode, ResolvedRequest
from longtake.engine.embedded_metadata import embedded_metadata
from longtake.engine.files import cause, flush_to_disk, partial_path, writing
from longtake.engine.frame_writers import WRITERS, Array, FrameWriter, frame_path, kind_of
from longtake.engine.latents import LATENTS_SUFFIX, KeptLatents, Origin, latents_bytes
from longtake.engine.snapshot import SnapshotPlan, drop_snapshot
from longtake.errors import EngineError, RefusedInputError, RequestError, Stopped, restated

logger = logging.getLogger(__name__)


def output_type(path: Path) -> OutputType:
    """What a file of this name holds.

    Raises:
        RequestError: no known suffix.
    """
    if kind_of(path) == LATENTS_SUFFIX:
        return "latents"
    if kind_of(path) not in WRITERS:
        raise RequestError(
            f"output={str(path)!r} has the suffix {path.suffix!r}: use "
            f"{', '.join(filter(None, WRITERS))}, {LATENTS_SUFFIX}, or none for a folder of PNG "
            "files"
        )
    return "frames"


def output_paths(path: Path, num_videos: int) -> list[Path]:
    """The files of several videos: ``out-0.mp4``, ``out-1.mp4``; of one, its own name."""
    if num_videos == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{video}{path.suffix}") for video in range(num_videos)]


def metadata_path(path: Path) -> Path:
    """Where the metadata of an output stands: ``out.json`` beside ``out.mp4``."""
    return path.with_suffix(".json")


def check_output(path: Path, num_videos: int, *, metadata: bool) -> None:
    """Refuse, before anything is rendered, an output that cannot be written.

    Args:
        metadata: whether a .json will stand beside it.

    Raises:
        RequestError: an unknown suffix, no such folder, no permission, or something in the way.
    """
    if path.name in ("", ".."):
        raise RequestError(f"output={str(path)!r} has no name: name a file, or a folder for PNGs")
    output_type(path)
    try:
        _check_places(path, output_paths(path, num_videos))
        if metadata and metadata_path(path).is_dir():
            raise RequestError(f"{metadata_path(path)} is a folder: move it, or pass --no-metadata")
    except RefusedInputError:
        raise
    except (OSError, ValueError) as error:  # too long a name, say
        raise RequestError(f"output={str(path)!r} cannot be a file: {cause(error)}") from error


def _check_places(path: Path, outputs: list[Path]) -> None:
    folder = path.parent
    if not folder.is_dir():
        raise RequestError(f"output={str(path)!r}: there is no folder {folder}; make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise RequestError(f"output={str(path)!r}: {folder} cannot be written to")
    for each in outputs:
        if kind_of(path) == "" and os.path.lexists(each) and not _is_empty_folder(each):
            raise RequestError(
                f"output={str(each)!r} is there and is not an empty folder: name another one, or "
                "end the name in .mp4, .webm, .gif, .npy or .safetensors for a file"
            )
        if kind_of(path) != "" and each.is_dir():
            raise RequestError(f"output={str(each)!r} is a folder: name a file in it")
        if each.exists() and not (each.is_file() or each.is_dir()):
            raise RequestError(
                f"output={str(each)!r} is a pipe or a device, and a video is renamed into its "
                "place once it is whole: name a file"
            )
        with suppress(FileNotFoundError):
            each.lstat()  # raises for a name that no file can have


def _is_empty_folder(path: Path) -> bool:
    """But for what a rendering that was killed left there."""
    return path.is_dir() and all(_is_partial(each) for each in path.iterdir())


def _is_partial(path: Path) -> bool:
    return path.name.startswith(".") and ".partial" in path.name


class VideoFiles:
    """A sink that writes all videos of a request to files, which appear once all are whole.

    Use it as a context: leaving it with an exception leaves none of them behind. The latents that
    frames are made of are in a file of their own meanwhile; if that fails they stay there, and
    the error says how to go on.

    Args:
        path: of the output; its suffix says what is written.
        request: what is rendered.
        engine: what renders it.
        metadata: write a .json beside it, and into it what the request allows; else neither.
        num_frames: of each video; those of the request if None.
        keep_latents: while frames are made of them; not where a snapshot does.
        snapshots: of the rendering, which are of no use any more once the latents are kept.
        token: in the names of files that are not whole; drawn if None.
        replace: what an earlier rendering left at its names, a folder of PNG files, too.

    Attributes:
        paths: of the videos.
        seconds: spent writing so far.
        published: the files that have their names.
        kept: the latents, until the videos have their names.

    Raises:
        RequestError: the output cannot be written.
    """

    def __init__(
        self,
        path: Path,
        request: ResolvedDecode,
        engine: EngineConfig,
        *,
        metadata: bool = True,
        num_frames: int | None = None,
        keep_latents: bool = True,
        snapshots: SnapshotPlan | None = None,
        token: str | None = None,
        replace: bool = False,
    ) -> None:
        if not replace:
            check_output(path, request.num_videos, metadata=metadata)
        self._path = path
        self._keeps_latents, self._snapshots = keep_latents, snapshots
        self._origin: Origin | None = None
        if isinstance(request, ResolvedRequest):
            identity = None if snapshots is None else snapshots.identity
            self._origin = Origin(request=request, engine=engine, identity=identity)
        self.paths = output_paths(path, request.num_videos)
        self.seconds = 0.0
        self.published: list[Path] = []
        self.kept = KeptLatents(path, engine)
        self._request = request
        self._num_frames = num_frames or request.num_frames
        self._token = token
        self._partial = [partial_path(each, token) for each in self.paths]
        self._metadata = metadata_path(path) if metadata else None
        self._embeds = metadata and request.embed_metadata
        self._tags = embedded_metadata(request, engine) if self._embeds else {}
        self._writers: dict[int, FrameWriter] = {}

    def __enter__(self) -> VideoFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, *rest: object
    ) -> None:
        """Discard what is not whole; keep the latents if something went wrong."""
        for writer in self._writers.values():
            with suppress(Exception):
                writer.discard()
        for partial in self._partial:
            if partial.is_dir():
                shutil.rmtree(partial, ignore_errors=True)
            else:
                partial.unlink(missing_ok=True)
        if error is None:
            self.kept.discard()
        elif isinstance(error, KeyboardInterrupt | Stopped):
            if not getattr(error, "terminated", False):
                self.kept.discard()
        elif isinstance(error, EngineError):
            raise restated(error, self.kept.way_on(error)) from error
        elif self.kept.path is not None:
            logger.warning("%s", self.kept.way_on(error))

    def latents(self, latents: Array) -> None:
        """Write the latents: into the videos' files where they are what was asked for, else keep
        them for as long as they are being decoded."""
        if kind_of(self._path) != LATENTS_SUFFIX:
            if self._keeps_latents:
                self.kept.write(latents, self._origin)
            if self._snapshots is not None and self.kept.path is not None:
                drop_snapshot(self._snapshots.path)
            return
        for video, partial in enumerate(self._partial):
            with self._timed(self.paths[video]):
                origin = self._origin if self._embeds else None
                partial.write_bytes(latents_bytes(latents[video], origin))

    def frame(self, video: int, index: int, frame: Array) -> None:
        """Write one frame."""
        if kind_of(self._path) == LATENTS_SUFFIX:
            return
        with self._timed(self.paths[video]):
            if video not in self._writers:
                shape = (self._num_frames, *frame.shape[:2])
                make = WRITERS[kind_of(self.paths[video])]
                self._writers[video] = make(
                    self._partial[video], shape, self._request.fps, self._tags
                )
            self._writers[video].write(index, frame)
            if index == self._num_frames - 1:
                self._writers[video].close()
                del self._writers[video]

    @contextmanager
    def _timed(self, path: Path) -> Iterator[None]:
        begun = time.perf_counter()
        with writing(path):
            yield
        self.seconds += time.perf_counter() - begun

    def publish(self, metadata: dict[str, Any]) -> None:
        """Give the whole files their names, and the metadata its own with them.

        Raises:
            EngineError: a video lacks frames, or the disk is full.
        """
        for video in self._writers:
            raise EngineError(f"{self.paths[video]} lacks frames: it was not written")
        moves = list(zip(self._partial, self.paths, strict=True))
        if self._metadata is not None:
            partial = partial_path(self._metadata, self._token)
            self._partial.append(partial)
            moves.append((partial, self._metadata))
            with writing(self._metadata):
                partial.write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
        for partial, path in moves:
            with writing(path):
                for file in partial.iterdir() if partial.is_dir() else ():
                    flush_to_disk(file)
                flush_to_disk(partial)
                if path.is_dir():
                    frames = sorted(partial.iterdir())
                    for frame in frames:
                        os.replace(frame, path / frame.name)
                    partial.rmdir()
                    for number in itertools.count(len(frames)):  # of a longer one before
                        if not (left := frame_path(path, number)).is_file():
                            break
                        left.unlink()
                else:
                    os.replace(partial, path)
            self.published.append(path)
        for folder in {path.parent for _, path in moves}:
            with writing(folder):
                flush_to_disk(folder)
        self.kept.discard()
