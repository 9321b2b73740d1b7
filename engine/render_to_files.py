"""Renders one request, or decodes latents, into finished files."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from longtake.configs.engine import EngineConfig
from longtake.configs.request import DecodeRequest, ResolvedDecode, ResolvedRequest, VideoRequest
from longtake.configs.snapshot import SnapshotConfig
from longtake.engine.engine import VideoEngine
from longtake.engine.media.arrays import Array
from longtake.engine.media.latents import LatentsFile, Origin
from longtake.engine.media.output_names import OutputSpec
from longtake.engine.media.sinks import NullSink
from longtake.engine.media.snapshot import SnapshotPlan
from longtake.engine.media.video_writer import VideoFiles
from longtake.engine.metadata import Metadata
from longtake.engine.resume import (
    choose_snapshot,
    find_interrupted,
    find_kept_latents,
    snapshot_kept_on_failure,
)
from longtake.engine.torchrun import TorchrunEnvironment
from longtake.pipelines.runtime.progress import Progress


class RenderListener(Protocol):
    """Receives the events of a rendering.

    Attributes:
        written: Paths of files that were published, or kept after a failure; appended to.
    """

    written: list[Path]

    def progress(self, progress: Progress) -> None:
        """Ranks finished some work."""

    def note(self, text: str) -> None:
        """A line for the user, such as where the rendering starts."""


@dataclass(frozen=True)
class RenderedFiles:
    """Videos in files.

    Attributes:
        paths: The videos' files.
        metadata: How they were rendered.
    """

    paths: list[Path]
    metadata: Metadata


def render_to_files(
    config: EngineConfig,
    request: VideoRequest,
    output: OutputSpec,
    listener: RenderListener,
    *,
    snapshots: SnapshotConfig,
    resume: bool = False,
) -> RenderedFiles | None:
    """Start an engine, render one request into files, and end the engine.

    A failed or terminated rendering leaves a snapshot, or the latents if denoising was finished. A
    later one with ``resume`` continues from them, and removes them once its files are complete.

    Args:
        config: The model and its ranks.
        request: The request; a seed is drawn if it has none.
        output: Where the files go.
        listener: Receives progress, notes and paths of files.
        snapshots: How often snapshots are written.
        resume: Continue an interrupted rendering of this request, if there is one.

    Returns:
        The files, once all are complete; None on ranks of torchrun other than 0.

    Raises:
        RefusedInputError: It cannot be rendered or written here; no file is left.
        EngineError: A rank or a file failed. The message says how to resume.
    """
    seed_drawn = request.seed is None  # drawn here, since the output may be named after it
    if seed_drawn:
        request = request.model_copy(update={"seed": secrets.randbits(32)})
    values = output.values(request.seed, config.model, request.num_videos)
    # Only rank 0's host may have the folder.
    path = output.place(values, request.num_videos) if TorchrunEnvironment.is_writer() else None
    with VideoEngine(config) as engine:
        resolved = engine.resolve(request) if engine.can_resolve(request) else None
        engine.place_weights([resolved] if resolved else [])
        if resolved is None or path is None:
            engine.render(resolved, NullSink(), listener.progress)
            return None
        if not resume:
            return _FileRendering(engine, output, listener, path).render(resolved, snapshots)
        found = find_interrupted(output.template, values, resolved, seed_drawn=seed_drawn)
        if found is not None:
            path, resolved = found
            output.check(path, request.num_videos)
        return _FileRendering(engine, output, listener, path).resume(resolved, snapshots)


def decode_to_files(
    config: EngineConfig,
    request: DecodeRequest,
    file: LatentsFile | None,
    output: OutputSpec,
    listener: RenderListener,
) -> RenderedFiles | None:
    """Start an engine, decode latents into files, and end the engine.

    Args:
        config: The model and its ranks.
        request: How to decode.
        file: The latents; None on ranks of torchrun other than 0.
        output: Where the files go.
        listener: Receives progress, notes and paths of files.

    Returns:
        The files, once they are complete; None on ranks of torchrun other than 0.

    Raises:
        RefusedInputError: They cannot be decoded or written here; no file is left.
        EngineError: A rank or a file failed.
    """
    if file is None:
        with VideoEngine(config) as engine:
            engine.decode_into(NullSink(), None, None, listener.progress)
        return None
    origin, num_videos = file.origin, len(file.latents)
    seed = None if origin is None else origin.request.seed
    path = output.place(output.values(seed, config.model, num_videos), num_videos)
    with VideoEngine(config) as engine:
        resolved = engine.resolve_decode(request, file.latents.shape)
        if origin is not None and origin.describes(resolved):
            resolved = origin.request_decoded_as(resolved)
        else:  # of another size: its request does not describe these videos
            origin = None
        return _FileRendering(engine, output, listener, path).decode(resolved, file.latents, origin)


@dataclass(frozen=True)
class _FileRendering:
    """Writes what an engine renders to the files of one output."""

    engine: VideoEngine
    output: OutputSpec
    listener: RenderListener
    path: Path

    def resume(self, request: ResolvedRequest, config: SnapshotConfig) -> RenderedFiles:
        """Continue an interrupted rendering: with its decode if it kept its latents, else from its
        last snapshot, else from the start."""
        latents = find_kept_latents(self.path, self.engine.identity_of(request))
        if latents is None:
            return self.render(request, config, resume=True)
        self.listener.note(f"decodes the latents in {latents.path}")
        files = self.decode(request, latents.latents)
        latents.path.unlink(missing_ok=True)
        return files

    def render(
        self, request: ResolvedRequest, config: SnapshotConfig, *, resume: bool = False
    ) -> RenderedFiles:
        """Render a request, with ``resume`` from a snapshot if there is one."""
        plan = choose_snapshot(
            self.path,
            self.engine.identity_of(request),
            config,
            self.listener.note,
            resume=resume,
            overwrite=self.output.overwrite,
        )
        if line := self.engine.plan_of(request):
            self.listener.note(line)
        with snapshot_kept_on_failure(plan.path, self.listener.written.append, resume=resume):
            return self._write(
                self._files(request, plan),
                lambda files: self.engine.render(
                    request, files, self.listener.progress, snapshots=plan
                ),
            )

    def decode(
        self, request: ResolvedDecode, latents: Array, origin: Origin | None = None
    ) -> RenderedFiles:
        """Decode latents.

        Args:
            request: How to decode, or the request that rendered the latents.
            latents: ``[B, C, F, H, W]``.
            origin: Their provenance, for the metadata.
        """

        def render(files: VideoFiles) -> Metadata:
            metadata = self.engine.decode_into(files, request, latents, self.listener.progress)
            metadata.origin = origin
            return metadata

        return self._write(self._files(request), render)

    def _files(self, request: ResolvedDecode, snapshots: SnapshotPlan | None = None) -> VideoFiles:
        return VideoFiles(
            self.output.target(self.path),
            request,
            self.engine.config,
            num_frames=self.engine.num_frames_of(request),
            snapshots=snapshots,
        )

    def _write(self, files: VideoFiles, render: Callable[[VideoFiles], Metadata]) -> RenderedFiles:
        """Fill the files, publish them, and report which exist, even after a failure."""
        try:
            with files:
                metadata = render(files)
                self.listener.progress(Progress("writing"))
                metadata.seconds["writing"] = files.seconds
                files.publish(metadata.as_json())
        finally:
            self.listener.written += [*files.published, *filter(None, [files.kept.path])]
        return RenderedFiles(files.paths, metadata)
