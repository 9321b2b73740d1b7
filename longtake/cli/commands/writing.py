"""What generate and decode share: where a video goes, and how it gets there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longtake.cli.terminal import View
from longtake.configs.request import ResolvedDecode
from longtake.engine.engine import VideoEngine
from longtake.engine.media.latents import Array, Origin
from longtake.engine.media.output_files import check_output, free_output
from longtake.engine.media.output_names import check_index, check_placeholders, filled
from longtake.engine.media.snapshot import SnapshotPlan
from longtake.engine.media.video_writer import VideoFiles
from longtake.engine.sinks import NullSink
from longtake.errors import RequestError

DEFAULT_OUTPUT = "out.mp4"


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
        engine.render(request, NullSink(), view.progress)
        return
    assert request is not None
    files = VideoFiles(
        path,
        request,
        engine.config,
        metadata=options["metadata"],
        num_frames=engine.num_frames_of(request),
        snapshots=snapshots,
        overwrite=bool(options["overwrite"]),
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


def output_of(name: Any) -> str | None:
    """What --output names, which may have placeholders; None if it was left out."""
    if name is not None and not isinstance(name, str):
        raise RequestError(f"output={name!r} must be a path, in quotes where it is a number")
    if name is None:
        return None
    check_placeholders(name)
    return os.path.expanduser(name)


def place_of(
    template: str | None, values: Mapping[str, str], num_videos: int, options: dict[str, Any]
) -> Path:
    """Where a video goes, once it is certain that it can be written there.

    Args:
        template: what --output names; None: out.mp4, with a number if it is taken.
        values: of its placeholders.

    Raises:
        RequestError: it is there already, or cannot be written.
    """
    if template is None:
        path = free_output(Path(DEFAULT_OUTPUT), num_videos, metadata=options["metadata"])
    else:
        path = check_index(Path(filled(template, values)))
    check(path, num_videos, options)
    return path


def check(path: Path, num_videos: int, options: dict[str, Any]) -> None:
    """Refuse an output that is there already, or cannot be written; see :func:`check_output`."""
    overwrite = bool(options["overwrite"])
    check_output(path, num_videos, metadata=options["metadata"], overwrite=overwrite)
