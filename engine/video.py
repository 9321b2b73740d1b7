"""What a rendering gives: frames and latents in memory, and how they came to be."""

from __future__ import annotations

import base64
import os
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from longtake.configs.engine import EngineConfig
from longtake.configs.request import ResolvedDecode, ResolvedRequest
from longtake.engine.job import RankReport
from longtake.engine.media.latents import Origin
from longtake.engine.media.output_files import check_output, output_type
from longtake.engine.media.video_writer import VideoFiles
from longtake.errors import RequestError
from longtake.parallel import ParallelDims
from longtake.version import library_versions

Array = npt.NDArray[np.float32]


@dataclass
class Metadata:
    """Everything that is needed to render a video again, and what it cost.

    Attributes:
        request: with nothing left out, the seed included; of latents that were only decoded and do
            not say how they came to be, how they were decoded.
        engine: model, ranks, and dtypes, device, kernel and revision as they were used.
        layout: the degrees that it ran in.
        seconds: of each stage on rank 0, with loading and writing.
        ranks: what each rank measured.
        num_frames: of each video.
        origin: of latents that were only decoded, if it is known.
        why: this layout and no other; empty where nothing was denoised.
    """

    request: ResolvedDecode
    engine: EngineConfig
    layout: ParallelDims
    seconds: dict[str, float]
    ranks: list[RankReport]
    num_frames: int
    origin: Origin | None = None
    why: str = ""
    created: str = field(
        default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds")
    )

    @property
    def truncated(self) -> dict[str, dict[str, int]]:
        """Prompts that were cut, by field: tokens "used" and "total"."""
        return self.ranks[0].truncated

    def warnings(self) -> list[str]:
        """What a user should know of the rendering, a line each."""
        return [
            f"{name} has {count['total']} tokens, of which the first {count['used']} are used: "
            "shorten it, or raise max_sequence_length"
            for name, count in self.truncated.items()
        ]

    def as_json(self) -> dict[str, Any]:
        """As it is written beside a video. ``--config`` takes the file, and renders it again."""
        engine = {
            **self.engine.model_dump(mode="json"),
            "parallel": {**self.engine.parallel.model_dump(mode="json"), **asdict(self.layout)},
        }
        described = {"engine": engine}
        if self.origin is not None:
            rendered = self.origin.engine.model_copy(update={"vae_dtype": self.engine.vae_dtype})
            described = {"engine": rendered.model_dump(mode="json"), "decoded_by": engine}
        return {
            "created": self.created,
            "request": self.request.model_dump(mode="json"),
            "num_frames": self.num_frames,
            **described,
            **({"layout": {"taken": self.layout.name, "why": self.why}} if self.why else {}),
            "seconds": {stage: round(taken, 4) for stage, taken in self.seconds.items()},
            **self._snapshots(),
            **({"truncated": self.truncated} if self.truncated else {}),
            "bytes_sent": {
                stage: sum(rank.bytes_sent.get(stage, 0) for rank in self.ranks)
                for stage in self.ranks[0].bytes_sent
            },
            "peak_memory_bytes": {str(rank.rank): rank.peak_memory_bytes for rank in self.ranks},
            "ranks": [_measured(rank) for rank in self.ranks],
            "versions": library_versions(),
        }

    def _snapshots(self) -> dict[str, Any]:
        """What snapshots cost, where there could be some, and what one saved."""
        first, denoising_s = self.ranks[0], self.seconds.get("denoising", 0.0)
        if "snapshots" not in self.seconds:
            return {}
        share = self.seconds["snapshots"] / denoising_s if denoising_s else 0.0
        told: dict[str, Any] = {"written": first.snapshots, "share_of_denoising": round(share, 5)}
        if first.steps_before:
            told["steps_before"] = first.steps_before
        if first.snapshot_failure:
            told["failure"] = first.snapshot_failure
        return {"snapshots": told}


def _measured(rank: RankReport) -> dict[str, Any]:
    measured = asdict(rank)
    del measured["truncated"]  # of all ranks, beside them
    return measured


def _player(path: Path) -> str:
    """A video in HTML, with its file in it."""
    content = base64.b64encode(path.read_bytes()).decode()
    return f'<video controls loop muted src="data:video/mp4;base64,{content}"></video>'


@dataclass(repr=False)
class Video:
    """One or several videos of one request.

    Attributes:
        batch: each video's frames, ``[frames, height, width, 3]``, float32 in [0, 1]. Without any
            where latents alone were asked for, and on all but rank 0 under torchrun.
        latents: ``[B, C, F, H, W]``, float32, before the decoder's scale.
        metadata: how they came to be.
    """

    batch: list[Array]
    latents: Array
    metadata: Metadata
    writes: bool = True

    @property
    def frames(self) -> Array:
        """The first video's frames, ``[frames, height, width, 3]``, float32 in [0, 1]."""
        if not self.batch:
            raise RequestError(
                "there are no frames here: latents alone were asked for, or this is not rank 0; "
                "see Video.latents"
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
        """What a notebook shows: a player of each video."""
        shown = {"text/plain": repr(self)}
        if self.batch:
            with TemporaryDirectory() as folder:
                paths = self.save(Path(folder) / "video.mp4", metadata=False)
                shown["text/html"] = "".join(map(_player, paths))
        return shown

    def save(
        self, path: str | Path, *, metadata: bool = True, overwrite: bool = False
    ) -> list[Path]:
        """Write the video to a file, by its suffix; several as ``name-0``, ``name-1``.

        Args:
            path: .mp4, .webm, .gif, .npy, .safetensors (latents), or a folder for PNG files.
            metadata: also write a .json beside it: ``cat.mp4.json`` beside ``cat.mp4``.
            overwrite: replace an earlier video.

        Returns:
            The files, which appear only once they are whole. Under torchrun, rank 0 alone writes.

        Raises:
            RequestError: an unknown suffix, no such folder, or a file that is there already.
            EngineError: writing failed, of a full disk say; nothing is left behind.
        """
        path = Path(os.path.expanduser(path))
        if not self.writes:
            return []
        if not self.batch and output_type(path) == "frames":
            raise RequestError(
                f"output={str(path)!r} with latents alone, which were not decoded: use .safetensors"
            )
        made_by = self.metadata
        num_videos = made_by.request.num_videos
        check_output(path, num_videos, metadata=metadata, overwrite=overwrite, keeps=False)
        with VideoFiles(
            path,
            made_by.request,
            made_by.engine,
            metadata=metadata,
            num_frames=made_by.num_frames,
            keep_latents=False,
            overwrite=overwrite,
        ) as files:
            if output_type(path) == "latents":
                files.latents(self.latents)
            for video, frames in enumerate(self.batch):
                for index, frame in enumerate(frames):
                    files.frame(video, index, frame)
            seconds = {**made_by.seconds, "writing": files.seconds}
            files.publish(replace(made_by, seconds=seconds).as_json())
        return files.paths


class FramesInMemory:
    """A sink that keeps everything in memory.

    Args:
        num_frames: of each video.
        latents: that the frames are made of, where they are there already.

    Attributes:
        batch: each video's frames, ``[frames, height, width, 3]``.
        all_latents: ``[B, C, F, H, W]``; empty before they are there.
    """

    def __init__(self, num_frames: int, latents: Array | None = None) -> None:
        self._num_frames = num_frames
        self.batch: list[Array] = []
        self.all_latents: Array = np.zeros((0,), np.float32) if latents is None else latents

    def latents(self, latents: Array) -> None:
        """Keep them."""
        self.all_latents = latents

    def frame(self, video: int, index: int, frame: Array) -> None:
        """Keep it."""
        if index == 0:
            self.batch.append(np.empty((self._num_frames, *frame.shape), dtype=np.float32))
        self.batch[video][index] = frame
