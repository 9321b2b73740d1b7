"""What generate and decode share: frames go from the engine into files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from longtake.configs.request import ResolvedDecode
from longtake.engine.engine import VideoEngine
from longtake.engine.latents import Array, Origin
from longtake.engine.snapshot import SnapshotPlan
from longtake.engine.video_writer import VideoFiles
from longtake.engine.worker import Nowhere
from longtake.errors import RequestError
from longtake.terminal import View


def write(
    engine: VideoEngine,
    request: ResolvedDecode | None,
    path: Path,
    options: dict[str, Any],
    view: View,
    latents: Array | None = None,
    origin: Origin | None = None,
    snapshots: SnapshotPlan | None = None,
) -> None:
    """Render or decode into files.

    Args:
        request: None on ranks of torchrun that write nothing, and do not know it.
        snapshots: how it is kept on its way.
    """
    if not engine.writes:
        engine.render(request, Nowhere(), view.progress)
        return
    assert request is not None
    files = VideoFiles(
        path,
        request,
        engine.config,
        metadata=options["metadata"],
        num_frames=engine.num_frames_of(request),
        snapshots=snapshots,
    )
    try:
        with files:
            engine.start(view.progress)
            metadata = engine.render(request, files, view.progress, latents, snapshots=snapshots)
            metadata.origin = origin
            view.writing()
            metadata.seconds["writing"] = files.seconds
            files.publish(metadata.as_json())
    finally:
        view.written += [*files.published, *filter(None, [files.kept.path])]
    for warning in metadata.warnings():
        view.warn(warning)
    view.done(files.paths, metadata)


def output_of(name: Any) -> Path:
    """The path that --output names."""
    if name is not None and not isinstance(name, str):
        raise RequestError(f"output={name!r} must be a path, in quotes where it is a number")
    return Path(os.path.expanduser(name or "out.mp4"))
