"""longtake generate: a video from a prompt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from longtake.commands.writing import output_of, write
from longtake.configs.request import ResolvedRequest, VideoRequest
from longtake.configs.snapshot import SnapshotConfig
from longtake.engine.engine import VideoEngine
from longtake.engine.latents import LatentsFile, kept_latents_path, read_latents
from longtake.engine.snapshot import (
    SnapshotPlan,
    UnusableSnapshotError,
    read_snapshot,
    snapshot_path,
)
from longtake.engine.torchrun import TorchrunPlace
from longtake.engine.video_writer import check_output, output_type
from longtake.errors import EngineError, RequestError, Stopped, restated
from longtake.settings import engine_config, validated, values_of
from longtake.terminal import View


def run(options: dict[str, Any], view: View) -> None:
    """Render what the options ask for."""
    values = values_of(options)
    path = output_of(values.pop("output", None))
    resume = bool(values.pop("resume", False))
    often, asked = (
        {name: values.pop(name) for name in list(values) if name in kind.model_fields}
        for kind in (SnapshotConfig, VideoRequest)
    )
    asked["output_type"] = output_type(path)
    request = validated(VideoRequest, asked)
    config, how_often = engine_config(values), validated(SnapshotConfig, often)
    earlier = _Earlier(path) if resume and TorchrunPlace.writes() else None
    if TorchrunPlace.writes():  # the folder may be on another host
        check_output(path, request.num_videos, metadata=options["metadata"])
        if earlier is not None and request.seed is None:
            request = request.model_copy(update={"seed": earlier.seed})
    engine = VideoEngine(config)
    try:
        resolved = engine.resolve(request) if engine.knows(request) else None
        if resolved is None or not engine.writes:
            write(engine, resolved, path, options, view)
        elif earlier is not None and earlier.is_decoding(resolved, engine):
            view.note(f"goes on with the latents in {earlier.latents_path}")
            assert earlier.latents is not None
            write(engine, resolved, path, options, view, earlier.latents.latents)
            earlier.latents_path.unlink(missing_ok=True)
        else:
            plan = _snapshots(engine, resolved, path, how_often, resume, view)
            with _snapshot_left(plan.path, resume, view):
                write(engine, resolved, path, options, view, snapshots=plan)
    finally:
        engine.close()


class _Earlier:
    """What an earlier rendering of an output left: the latents that it was decoding, or those of
    a step."""

    def __init__(self, output: Path) -> None:
        self.latents_path = kept_latents_path(output)
        self.latents: LatentsFile | None = None
        self.seed: int | None = None
        with suppress(UnusableSnapshotError):
            if (found := read_snapshot(snapshot_path(output))) is not None:
                self.seed = found.identity.request.seed
        with suppress(RequestError):
            self.latents = read_latents(self.latents_path)
            if self.latents.origin is not None:
                self.seed = self.latents.origin.request.seed

    def is_decoding(self, request: ResolvedRequest, engine: VideoEngine) -> bool:
        """Whether its latents are those of this rendering."""
        origin = None if self.latents is None else self.latents.origin
        return origin is not None and origin.same_latents(request, engine.config)


def _snapshots(
    engine: VideoEngine,
    request: ResolvedRequest,
    path: Path,
    how_often: SnapshotConfig,
    resume: bool,
    view: View,
) -> SnapshotPlan:
    """How it is kept on its way, and, said on the terminal, where it begins."""
    kept = snapshot_path(path)
    plan, note = engine.snapshots_of(request, kept, how_often, resume=resume, at_the_end=False)
    if resume:
        view.note(note or f"{kept} is not there: it begins with the first step")
    return plan


@contextmanager
def _snapshot_left(kept: Path, resume: bool, view: View) -> Iterator[None]:
    """Remove the snapshot once it is of no use; else say that it is there.

    Ctrl-C without --resume says that the video is not wanted.
    """
    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | Stopped)
        if stopped and not resume and not getattr(error, "terminated", False):
            kept.unlink(missing_ok=True)
        elif kept.exists():
            view.written.append(kept)
            if isinstance(error, EngineError):
                way_on = f"{kept} holds the steps that are done: --resume goes on from there"
                raise restated(error, f"{error}\n{way_on}") from error
        raise
    kept.unlink(missing_ok=True)
