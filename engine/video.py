"""The result of a rendering: frames and latents in memory, and their metadata."""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from longtake.configs.request import ResolvedRequest
from longtake.engine.media.arrays import Array
from longtake.engine.media.output_files import check_output, output_type
from longtake.engine.media.paths import OutputTarget
from longtake.engine.media.sinks import Sink
from longtake.engine.media.video_writer import VideoFiles
from longtake.engine.metadata import Metadata
from longtake.errors import RequestError


def _player(path: Path) -> str:
    """An HTML video element with the file embedded."""
    content = base64.b64encode(path.read_bytes()).decode()
    return f'<video controls loop muted src="data:video/mp4;base64,{content}"></video>'


@dataclass(repr=False)
class Video:
    """The videos of one request.

    Attributes:
        batch: Frames of each video, ``[frames, height, width, 3]``, float32 in [0, 1]. Empty for
            ``output_type="latents"``, and under torchrun on all ranks but 0.
        latents: ``[B, C, F, H, W]``, float32, before the decoder's scale.
        metadata: How they were rendered.
        writes: Whether :meth:`save` writes; under torchrun, on rank 0 only.
    """

    batch: list[Array]
    latents: Array
    metadata: Metadata
    writes: bool = True

    @property
    def frames(self) -> Array:
        """The first video's frames, ``[frames, height, width, 3]``, float32 in [0, 1].

        Raises:
            RequestError: There are none: see :attr:`batch`.
        """
        if not self.batch:
            raise RequestError(
                'there are no frames here: output_type is "latents", or this is not rank 0; see '
                "Video.latents"
            )
        return self.batch[0]

    def __repr__(self) -> str:
        request = self.metadata.request
        seed = f", seed {request.seed}" if isinstance(request, ResolvedRequest) else ""
        kind = "frames" if self.batch else "frames as latents"
        videos = f"{request.num_videos} x " if request.num_videos > 1 else ""
        return (
            f"<Video: {videos}{self.metadata.num_frames} {kind} of {request.width}x"
            f"{request.height} at {request.fps:g} fps{seed}>"
        )

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str]:
        """A player for each video, for notebooks."""
        shown = {"text/plain": repr(self)}
        if self.batch:
            with TemporaryDirectory() as folder:
                paths = self.save(Path(folder) / "video.mp4", metadata=False)
                shown["text/html"] = "".join(map(_player, paths))
        return shown

    def save(
        self, path: str | Path, *, metadata: bool = True, overwrite: bool = False
    ) -> list[Path]:
        """Write the videos to files; several get the names ``name-0``, ``name-1``, ...

        The files appear once all are complete.

        Args:
            path: Path with the suffix .mp4, .webm, .gif, .npy or .safetensors (latents), or without
                one: a folder for PNG files.
            metadata: Also write a .json, ``cat.mp4.json`` for ``cat.mp4``.
            overwrite: Replace earlier files.

        Returns:
            Paths of the videos; empty on ranks of torchrun other than 0.

        Raises:
            RequestError: The suffix is unknown, the folder is missing, or a file exists.
            EngineError: Writing failed, for example on a full disk; nothing is left behind.
        """
        path = Path(os.path.expanduser(path))
        if not self.writes:
            return []
        if not self.batch and output_type(path) == "frames":
            raise RequestError(
                f"output={str(path)!r} with latents that were not decoded: use .safetensors"
            )
        rendered = self.metadata
        target = OutputTarget(path, metadata=metadata, overwrite=overwrite)
        check_output(target, rendered.request.num_videos, keeps=False)
        with VideoFiles(
            target,
            rendered.request,
            rendered.engine,
            num_frames=rendered.num_frames,
            keep_latents=False,
        ) as files:
            self._send(files)
            seconds = {**rendered.seconds, "writing": files.seconds}
            files.publish(replace(rendered, seconds=seconds).as_json())
        return files.paths

    def _send(self, sink: Sink) -> None:
        """Send the latents and the frames, as a rendering does."""
        sink.latents(self.latents)
        for video, frames in enumerate(self.batch):
            for index, frame in enumerate(frames):
                sink.frame(video, index, frame)


class FramesInMemory:
    """A sink that keeps frames and latents in memory.

    Args:
        num_frames: Number of frames of each video.
        latents: The latents that are decoded; None if they are rendered first.

    Attributes:
        batch: Frames of each video, ``[frames, height, width, 3]``.
        all_latents: ``[B, C, F, H, W]``; empty until they are rendered.
    """

    def __init__(self, num_frames: int, latents: Array | None = None) -> None:
        self._num_frames = num_frames
        self.batch: list[Array] = []
        self.all_latents: Array = np.zeros((0,), np.float32) if latents is None else latents

    def latents(self, latents: Array) -> None:
        """Keep the latents."""
        self.all_latents = latents

    def frame(self, video: int, index: int, frame: Array) -> None:
        """Keep one frame."""
        if index == 0:
            self.batch.append(np.empty((self._num_frames, *frame.shape), dtype=np.float32))
        self.batch[video][index] = frame
