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
from longtake.configs.request import ResolvedDecode, ResolvedRequest
from longtake.engine.media.embedded_metadata import embedded_metadata
from longtake.engine.media.frame_writers import WRITERS, Array, FrameWriter, frame_path, kind_of
from longtake.engine.media.latents import LATENTS_SUFFIX, KeptLatents, Origin, latents_bytes
from longtake.engine.media.output_files import metadata_path, output_paths, place_all
from longtake.engine.media.snapshot import SnapshotPlan, drop_snapshot
from longtake.errors import EngineError, Stopped, restated
from longtake.files.atomic import flush_to_disk, numbered, partial_path, writing

logger = logging.getLogger(__name__)


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
        overwrite: replace what stands at its names; else, what was put there since
            :func:`check_output` looked stays, and the videos get names with a number.

    Attributes:
        paths: of the videos.
        seconds: spent writing so far.
        published: the files that have their names.
        kept: the latents, until the videos have their names.
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
        overwrite: bool = False,
    ) -> None:
        self._path = path
        self._keeps_latents, self._snapshots = keep_latents, snapshots
        self._origin: Origin | None = None
        if isinstance(request, ResolvedRequest):
            identity = None if snapshots is None else snapshots.identity
            self._origin = Origin(request=request, engine=engine, identity=identity)
        self.paths = output_paths(path, request.num_videos)
        self.seconds = 0.0
        self.published: list[Path] = []
        self.kept = KeptLatents(path, engine, overwrite=overwrite)
        self._request = request
        self._num_frames = num_frames or request.num_frames
        self._token = token
        self._partial = [partial_path(each, token) for each in self.paths]
        self._has_metadata, self._overwrite = metadata, overwrite
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
        partials = list(self._partial)
        if self._has_metadata:
            path = metadata_path(self._path)
            partial = partial_path(path, self._token)
            self._partial.append(partial)
            partials.insert(0, partial)
            with writing(path):
                partial.write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
        for partial, path in zip(partials, self._names(self._path), strict=True):
            with writing(path):
                for file in partial.iterdir() if partial.is_dir() else ():
                    flush_to_disk(file)
                flush_to_disk(partial)
        if self._overwrite:
            self._replace(partials)
        else:
            self._place(partials)
        for folder in {path.parent for path in self.published}:
            with writing(folder):
                flush_to_disk(folder)
        self.kept.discard()

    def _names(self, path: Path) -> list[Path]:
        """Of all files of an output: its metadata, if it has some, and its videos."""
        videos = output_paths(path, self._request.num_videos)
        return [metadata_path(path), *videos] if self._has_metadata else videos

    def _place(self, partials: list[Path]) -> None:
        """Replace nothing: the metadata comes first, and says whose videos come after it."""
        for path in numbered(self._path):
            names = self._names(path)
            with writing(self.paths[0]):
                if not place_all(list(zip(partials, names, strict=True))):
                    continue
            if path != self._path:
                self.paths = output_paths(path, self._request.num_videos)
                logger.error(
                    "%s was put there by something else meanwhile: this video is %s",
                    self._path,
                    " ".join(map(str, self.paths)),
                )
            self.published += names
            return

    def _replace(self, partials: list[Path]) -> None:
        """Replace what is there: the metadata comes last, and until then tells of what was."""
        moves = list(zip(partials, self._names(self._path), strict=True))
        for partial, path in reversed(moves):
            with writing(path):
                if path.is_dir():
                    _fill_again(partial, path)
                else:
                    os.replace(partial, path)
            self.published.append(path)


def _fill_again(partial: Path, folder: Path) -> None:
    """Replace the frames in a folder, and remove those of a longer video that was there."""
    frames = sorted(partial.iterdir())
    for frame in frames:
        os.replace(frame, folder / frame.name)
    partial.rmdir()
    for number in itertools.count(len(frames)):
        if not (left := frame_path(folder, number)).is_file():
            break
        left.unlink()
