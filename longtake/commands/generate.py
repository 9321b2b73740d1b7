"""longtake generate: a video from a prompt."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from longtake.commands.writing import output_of, write
from longtake.configs.request import ResolvedRequest, VideoRequest
from longtake.configs.snapshot import SnapshotConfig
from longtake.engine.engine import VideoEngine
from longtake.engine.latents import Array, LatentsFile, kept_latents_path, read_latents
from longtake.engine.snapshot import (
    Identity,
    SnapshotPlan,
    UnusableSnapshotError,
    drop_snapshot,
    plan_snapshots,
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
    if TorchrunPlace.writes():  # the folder may be on another host
        check_output(path, request.num_videos, metadata=options["metadata"])
    engine = VideoEngine(config)
    try:
        resolved = engine.resolve(request) if engine.knows(request) else None
        if resolved is None or not engine.writes:
            write(engine, resolved, path, options, view)
            return
        if resume and request.seed is None:
            resolved = _with_earlier_seed(path, resolved)
        kept = _kept_latents(path, engine.identity_of(resolved)) if resume else None
        if kept is not None:
            view.note(f"goes on with the latents in {kept[0]}")
            write(engine, resolved, path, options, view, kept[1])
            kept[0].unlink(missing_ok=True)
        else:
            plan = _snapshots(engine, resolved, path, how_often, resume, view)
            with _snapshot_left(plan.path, resume, view):
                write(engine, resolved, path, options, view, snapshots=plan)
    finally:
        engine.close()


def _with_earlier_seed(output: Path, request: ResolvedRequest) -> ResolvedRequest:
    """The request with the seed that was drawn for an earlier rendering of it, if one is left."""
    identities = [each.origin.identity for _, each in _latents_left(output) if each.origin]
    with suppress(UnusableSnapshotError):
        if (found := read_snapshot(snapshot_path(output))) is not None:
            identities.append(found.identity)
    for identity in filter(None, identities):
        seeded = request.model_copy(update={"seed": identity.request.seed})
        if not identity.model_copy(update={"request": seeded}).unlike(identity):
            return seeded
    return request


def _kept_latents(output: Path, identity: Identity) -> tuple[Path, Array] | None:
    """The latents of this very rendering that were being decoded, and their file."""
    for path, file in _latents_left(output):
        found = None if file.origin is None else file.origin.identity
        if found is not None and not identity.unlike(found):
            return path, file.latents
    return None


def _latents_left(output: Path) -> Iterator[tuple[Path, LatentsFile]]:
    """The files of latents that renderings of an output left, and that can be read."""
    for number in itertools.count():
        path = kept_latents_path(output, number)
        if not path.exists():
            return
        with suppress(RequestError):
            yield path, read_latents(path)


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
    identity = engine.identity_of(request)
    plan, note = plan_snapshots(kept, identity, how_often, resume=resume, at_the_end=False)
    if resume:
        view.note(note or f"{kept} is not there: it begins with the first step")
    return plan


@contextmanager
def _snapshot_left(kept: Path, resume: bool, view: View) -> Iterator[None]:
    """Remove the snapshot once it is of no use; else say that it is there.

    Ctrl-C without --resume says that the video is not wanted; what an earlier one left stays.
    """
    before = _stamp(kept)
    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | Stopped)
        if stopped and not resume and not getattr(error, "terminated", False):
            if _stamp(kept) != before:
                drop_snapshot(kept)
        elif kept.exists():
            view.written.append(kept)
            if isinstance(error, EngineError):
                way_on = f"{kept} holds the steps that are done: --resume goes on from there"
                raise restated(error, f"{error}\n{way_on}") from error
        raise
    drop_snapshot(kept)


def _stamp(path: Path) -> tuple[int, int] | None:
    """Tells a file from one that was written in its place."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns
