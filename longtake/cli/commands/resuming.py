"""What unfinished renderings left beside their outputs, and how generate goes on from it."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from longtake.cli.commands.writing import DEFAULT_OUTPUT
from longtake.cli.terminal import View
from longtake.configs.request import ResolvedRequest
from longtake.configs.snapshot import SnapshotConfig
from longtake.engine.engine import VideoEngine
from longtake.engine.media.latents import Array, LatentsFile, kept_latents_path, read_latents
from longtake.engine.media.output_files import output_paths
from longtake.engine.media.output_names import filled, pattern_of
from longtake.engine.media.snapshot import (
    Identity,
    SnapshotPlan,
    UnusableSnapshotError,
    drop_snapshot,
    drop_unfinished,
    is_snapshot,
    plan_snapshots,
    read_snapshot,
    snapshot_path,
)
from longtake.errors import EngineError, RequestError, Stopped, restated


def earlier_rendering(
    template: str | None, values: Mapping[str, str], request: ResolvedRequest, *, drawn: bool
) -> tuple[Path, ResolvedRequest] | None:
    """The output of the last unfinished rendering of a request, and the request with its seed.

    Args:
        template: what --output names; None: out.mp4 with any number.
        values: of its placeholders; a date, and a seed that was drawn, may have been others.
        drawn: whether the request's seed was.
    """
    for output, kept in _left(template, values, drawn):
        done = map(os.path.lexists, output_paths(output, request.num_videos))
        if template is None and any(done):
            continue
        identity = _identity_of(kept)
        if identity is None:
            continue
        seeded = request
        if drawn:
            seeded = request.model_copy(update={"seed": identity.request.seed})
        if not identity.model_copy(update={"request": seeded}).unlike(identity):
            return output, seeded
    return None


def _left(
    template: str | None, values: Mapping[str, str], drawn: bool
) -> Iterator[tuple[Path, Path]]:
    """Outputs that a template may have named, and what was kept of each, the newest first."""
    path = Path(DEFAULT_OUTPUT if template is None else filled(template, values))
    if template is None:
        stem = r"out(?:-\d+)?"
    else:
        varying = {"date", "seed"} if drawn else {"date"}
        fixed = {name: value for name, value in values.items() if name not in varying}
        stem = pattern_of(Path(template).stem, fixed)
    kept_name = re.compile(rf"({stem})\.(?:snapshot|latents)(?:-\d+)?\.safetensors", re.DOTALL)
    found = []
    for each in path.parent.iterdir():
        name = kept_name.fullmatch(each.name)
        if name is not None and each.is_file():
            found.append((each.stat().st_mtime_ns, path.with_name(name[1] + path.suffix), each))
    for _, output, kept in sorted(found, reverse=True):
        yield output, kept


def _identity_of(kept: Path) -> Identity | None:
    """Whose a file is, if it can be read."""
    with suppress(UnusableSnapshotError, RequestError):
        if is_snapshot(kept):
            found = read_snapshot(kept)
            return None if found is None else found.identity
        file = read_latents(kept)
        return None if file.origin is None else file.origin.identity
    return None


def kept_latents(output: Path, identity: Identity) -> tuple[Path, Array] | None:
    """The latents of this very rendering that were being decoded, and their file."""
    for path, file in _latents_left(output):
        found = None if file.origin is None else file.origin.identity
        if found is not None and not identity.unlike(found):
            return path, file.latents
    return None


def _latents_left(output: Path) -> Iterator[tuple[Path, LatentsFile]]:
    """The files of latents that renderings of an output left, and that can be read."""
    for path in _numbered_left(output, kept_latents_path):
        with suppress(RequestError):
            yield path, read_latents(path)


def _numbered_left(output: Path, path_of: Callable[[Path, int], Path]) -> Iterator[Path]:
    """The files of one kind that renderings of an output left."""
    for number in itertools.count():
        path = path_of(output, number)
        if not os.path.lexists(path):
            return
        if path.is_file():
            yield path


def snapshots_of(
    engine: VideoEngine,
    request: ResolvedRequest,
    output: Path,
    how_often: SnapshotConfig,
    view: View,
    *,
    resume: bool,
    overwrite: bool,
) -> SnapshotPlan:
    """How a rendering is kept on its way, and, said on the terminal, where it begins.

    A snapshot that it does not go on from stays; with ``overwrite``, it is replaced.
    """
    identity = engine.identity_of(request)
    left = list(_numbered_left(output, snapshot_path))
    for path in left if resume else []:
        plan, note = plan_snapshots(path, identity, how_often, resume=True, at_the_end=False)
        if note:
            view.note(note)
        if plan.steps_done:
            return plan
    path = snapshot_path(output)
    if resume and not left:
        view.note(f"{path} is not there: it begins with the first step")
    if not (overwrite and is_snapshot(path)):
        numbers = (snapshot_path(output, number) for number in itertools.count())
        path = next(each for each in numbers if not os.path.lexists(each))
        if left and not resume:
            view.note(f"{left[0]} stays: --resume goes on from it, if it is of the same rendering")
    return plan_snapshots(path, identity, how_often, resume=False, at_the_end=False)[0]


@contextmanager
def snapshot_left(kept: Path, resume: bool, view: View) -> Iterator[None]:
    """Remove the snapshot once it is of no use; else say that it is there.

    Ctrl-C without --resume says that the video is not wanted; what an earlier one left stays.
    """
    before = _stamp(kept)
    try:
        yield
    except BaseException as error:
        drop_unfinished(kept)  # the ranks have ended, killed or not
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
