"""Writes videos to files, under temporary names until all are complete."""

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
from longtake.configs.request import ResolvedDecode, ResolvedRequest
from longtake.engine.media.arrays import Array
from longtake.engine.media.embedded_metadata import embedded_metadata
from longtake.engine.media.frame_writers import (
    WRITERS,
    FrameWriter,
    VideoHeader,
    frame_path,
    kind_of,
)
from longtake.engine.media.latents import KeptLatents, Origin, latents_bytes
from longtake.engine.media.output_files import place_all
from longtake.engine.media.paths import LATENTS_SUFFIX, OutputTarget, metadata_path, output_paths
from longtake.engine.media.snapshot import SnapshotPlan, drop_snapshot
from longtake.errors import EngineError, Stopped, with_message
from longtake.files.atomic import flush_to_disk, numbered, partial_path, writing

logger = logging.getLogger(__name__)


class VideoFiles:
    """A sink that writes all videos of a request to files.

    Use it as a context manager: after an exception no video is left behind. Until
    :meth:`publish`, the latents are kept in a separate file; after a failure it stays, and the
    error says how to decode it.

    Args:
        target: Where the files go. Without ``metadata`` none are embedded in the videos either.
            Without ``overwrite``, files that appeared since :func:`check_output` stay, and the
            videos' names get a number.
        request: The rendered request.
        engine: Configuration of the engine.
        num_frames: Frames of each video; the request's if None.
        keep_latents: Keep the latents while they are decoded; False where a snapshot does.
        snapshots: The rendering's snapshots, which are removed once the latents are kept.

    Attributes:
        paths: The videos' paths.
        seconds: Seconds spent writing so far.
        published: Paths of the files that have their final names.
        kept: The file of latents.
    """

    def __init__(
        self,
        target: OutputTarget,
        request: ResolvedDecode,
        engine: EngineConfig,
        *,
        num_frames: int | None = None,
        keep_latents: bool = True,
        snapshots: SnapshotPlan | None = None,
    ) -> None:
        self._target = target
        self._keeps_latents, self._snapshots = keep_latents, snapshots
        self._origin: Origin | None = None
        if isinstance(request, ResolvedRequest):
            identity = None if snapshots is None else snapshots.identity
            self._origin = Origin(request=request, engine=engine, identity=identity)
        self.paths = output_paths(target.path, request.num_videos)
        self.seconds = 0.0
        self.published: list[Path] = []
        self.kept = KeptLatents(target.path, engine, overwrite=target.overwrite)
        self._request = request
        self._num_frames = num_frames or request.num_frames
        self._partial = [partial_path(each, target.token) for each in self.paths]
        self._embeds = target.metadata and request.embed_metadata
        self._tags = embedded_metadata(request, engine) if self._embeds else {}
        self._writers: dict[int, FrameWriter] = {}

    def __enter__(self) -> VideoFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, *rest: object
    ) -> None:
        """Remove temporary files; keep the latents after a failure."""
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
            raise with_message(error, self.kept.with_command(error)) from error
        elif self.kept.path is not None:
            logger.warning("%s", self.kept.with_command(error))

    def latents(self, latents: Array) -> None:
        """Write the latents: to the output if it holds latents, else to the file that keeps them
        while they are decoded."""
        if kind_of(self._target.path) != LATENTS_SUFFIX:
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
        if kind_of(self._target.path) == LATENTS_SUFFIX:
            return
        with self._timed(self.paths[video]):
            if video not in self._writers:
                shape = (self._num_frames, *frame.shape[:2])
                header = VideoHeader(shape, self._request.fps, self._tags)
                make = WRITERS[kind_of(self.paths[video])]
                self._writers[video] = make(self._partial[video], header)
            self._writers[video].write(index, frame)
            if index == self._num_frames - 1:
                self._writers[video].close()
                del self._writers[video]

    @contextmanager
    def _timed(self, path: Path) -> Iterator[None]:
        started_at = time.perf_counter()
        with writing(path):
            yield
        self.seconds += time.perf_counter() - started_at

    def publish(self, metadata: dict[str, Any]) -> None:
        """Flush all files to disk, and give them and the metadata their final names.

        Args:
            metadata: Content of the .json.

        Raises:
            EngineError: A video lacks frames, or a file cannot be written.
        """
        for video in self._writers:
            raise EngineError(f"{self.paths[video]} lacks frames: it was not written")
        partials = list(self._partial)
        if self._target.metadata:
            path = metadata_path(self._target.path)
            partial = partial_path(path, self._target.token)
            self._partial.append(partial)
            partials.insert(0, partial)
            with writing(path):
                partial.write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
        for partial, path in zip(partials, self._names(self._target.path), strict=True):
            with writing(path):
                for file in partial.iterdir() if partial.is_dir() else ():
                    flush_to_disk(file)
                flush_to_disk(partial)
        if self._target.overwrite:
            self._replace(partials)
        else:
            self._place(partials)
        for folder in {path.parent for path in self.published}:
            with writing(folder):
                flush_to_disk(folder)
        self.kept.discard()

    def _names(self, path: Path) -> list[Path]:
        """Final names of all files of an output: its metadata, if any, and its videos."""
        videos = output_paths(path, self._request.num_videos)
        return [metadata_path(path), *videos] if self._target.metadata else videos

    def _place(self, partials: list[Path]) -> None:
        """Rename without replacing files. Metadata come first: they identify the videos."""
        for path in numbered(self._target.path):
            names = self._names(path)
            with writing(self.paths[0]):
                if not place_all(list(zip(partials, names, strict=True))):
                    continue
            if path != self._target.path:
                self.paths = output_paths(path, self._request.num_videos)
                logger.error(
                    "%s was created by another process meanwhile: this video is %s",
                    self._target.path,
                    " ".join(map(str, self.paths)),
                )
            self.published += names
            return

    def _replace(self, partials: list[Path]) -> None:
        """Replace existing files. The metadata come last: until then, the old ones describe the old
        videos."""
        moves = list(zip(partials, self._names(self._target.path), strict=True))
        for partial, path in reversed(moves):
            with writing(path):
                if path.is_dir():
                    _refill(partial, path)
                else:
                    os.replace(partial, path)
            self.published.append(path)


def _refill(partial: Path, folder: Path) -> None:
    """Replace the frames in a folder, and remove those left of a longer video."""
    frames = sorted(partial.iterdir())
    for frame in frames:
        os.replace(frame, folder / frame.name)
    partial.rmdir()
    for number in itertools.count(len(frames)):
        if not (extra := frame_path(folder, number)).is_file():
            break
        extra.unlink()
