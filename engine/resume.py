"""Finds what interrupted renderings left next to their outputs, and resumes from it."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from longtake.configs.request import ResolvedRequest
from longtake.configs.snapshot import SnapshotConfig
from longtake.engine.media.arrays import Array
from longtake.engine.media.identity import Identity
from longtake.engine.media.latents import read_latents
from longtake.engine.media.output_names import DEFAULT_OUTPUT, fill_placeholders, pattern_of
from longtake.engine.media.paths import kept_latents_path, output_paths, snapshot_path
from longtake.engine.media.snapshot import (
    SnapshotPlan,
    UnusableSnapshotError,
    drop_partial_snapshot,
    drop_snapshot,
    is_snapshot,
    plan_snapshots,
    read_snapshot,
)
from longtake.errors import EngineError, RequestError, Stopped, with_message


@dataclass(frozen=True)
class InterruptedDecode:
    """Latents of a rendering that ended while it was decoded.

    Attributes:
        path: Their file.
        latents: ``[B, C, F, H, W]``.
    """

    path: Path
    latents: Array


def find_interrupted(
    template: str | None, values: Mapping[str, str], request: ResolvedRequest, *, seed_drawn: bool
) -> tuple[Path, ResolvedRequest] | None:
    """The newest interrupted rendering of a request.

    Args:
        template: The output's path, which may have placeholders; None: ``out.mp4`` with any number.
        values: Current values of the placeholders. The date, and a drawn seed, may differ.
        request: The request.
        seed_drawn: Whether its seed was drawn: then any seed matches.

    Returns:
        The interrupted rendering's output, and the request with its seed; None if there is none.
    """
    for output, file in _files_left(template, values, seed_drawn):
        taken = any(map(os.path.lexists, output_paths(output, request.num_videos)))
        if template is None and taken:
            continue
        identity = _identity_in(file)
        if identity is None:
            continue
        seeded = request
        if seed_drawn:
            seeded = request.model_copy(update={"seed": identity.request.seed})
        if not identity.model_copy(update={"request": seeded}).difference_from(identity):
            return output, seeded
    return None


def _files_left(
    template: str | None, values: Mapping[str, str], seed_drawn: bool
) -> Iterator[tuple[Path, Path]]:
    """Outputs that match the template, each with the file left next to it, the newest first."""
    path = Path(DEFAULT_OUTPUT if template is None else fill_placeholders(template, values))
    if template is None:
        stem = r"out(?:-\d+)?"
    else:
        varying = {"date", "seed"} if seed_drawn else {"date"}
        fixed = {name: value for name, value in values.items() if name not in varying}
        stem = pattern_of(Path(template).stem, fixed)
    pattern = re.compile(rf"({stem})\.(?:snapshot|latents)(?:-\d+)?\.safetensors", re.DOTALL)
    found = []
    for file in path.parent.iterdir():
        match = pattern.fullmatch(file.name)
        if match is not None and file.is_file():
            found.append((file.stat().st_mtime_ns, path.with_name(match[1] + path.suffix), file))
    for _, output, file in sorted(found, reverse=True):
        yield output, file


def _identity_in(file: Path) -> Identity | None:
    """The identity in a snapshot or a file of latents; None if it has none or is damaged."""
    with suppress(UnusableSnapshotError, RequestError):
        if is_snapshot(file):
            snapshot = read_snapshot(file)
            return None if snapshot is None else snapshot.identity
        origin = read_latents(file).origin
        return None if origin is None else origin.identity
    return None


def find_kept_latents(output: Path, identity: Identity) -> InterruptedDecode | None:
    """The kept latents of an output that have this identity; None if there are none."""
    for path in _numbered_files(output, kept_latents_path):
        with suppress(RequestError):
            file = read_latents(path)
            found = None if file.origin is None else file.origin.identity
            if found is not None and not identity.difference_from(found):
                return InterruptedDecode(path, file.latents)
    return None


def _numbered_files(output: Path, path_of: Callable[[Path, int], Path]) -> Iterator[Path]:
    """The files of one kind that interrupted renderings left next to an output."""
    for number in itertools.count():
        path = path_of(output, number)
        if not os.path.lexists(path):
            return
        if path.is_file():
            yield path


def choose_snapshot(
    output: Path,
    identity: Identity,
    config: SnapshotConfig,
    note: Callable[[str], None],
    *,
    resume: bool,
    overwrite: bool,
) -> SnapshotPlan:
    """Choose the snapshot that a rendering resumes from, and the file of its own snapshots.

    A snapshot that it does not resume from is kept, unless ``overwrite`` is set.

    Args:
        output: Path of the output.
        identity: Identity of the rendering.
        config: How often snapshots are written.
        note: Called with a line for the user: where the rendering starts, and which files are kept.
        resume: Resume from a snapshot of this rendering.
        overwrite: Replace the first snapshot next to the output.
    """
    found = list(_numbered_files(output, snapshot_path))
    for path in found if resume else []:
        plan, where = plan_snapshots(path, identity, config, resume=True, after_last_step=False)
        if where:
            note(where)
        if plan.steps_done:
            return plan
    path = snapshot_path(output)
    if resume and not found:
        note(f"{path} does not exist: it starts with the first step")
    if not (overwrite and is_snapshot(path)):
        numbers = (snapshot_path(output, number) for number in itertools.count())
        path = next(each for each in numbers if not os.path.lexists(each))
        if found and not resume:
            note(f"{found[0]} is kept: --resume continues from it if it is of the same rendering")
    return plan_snapshots(path, identity, config, resume=False, after_last_step=False)[0]


@contextmanager
def snapshot_kept_on_failure(
    path: Path, on_kept: Callable[[Path], None], *, resume: bool
) -> Iterator[None]:
    """Remove a rendering's snapshot when the context ends, unless it failed.

    Ctrl-C without ``resume`` discards the video: a snapshot that this rendering wrote is removed,
    and an earlier one is kept.

    Args:
        path: The snapshot.
        on_kept: Called with the path if the snapshot is kept.
        resume: Whether the user asked to resume.

    Raises:
        EngineError: Raised in the context; a line that says how to resume is added.
    """
    before = _stamp(path)
    try:
        yield
    except BaseException as error:
        drop_partial_snapshot(path)  # no rank is writing it: all have ended
        interrupted = isinstance(error, KeyboardInterrupt | Stopped)
        if interrupted and not resume and not getattr(error, "terminated", False):
            if _stamp(path) != before:
                drop_snapshot(path)
        elif path.exists():
            on_kept(path)
            if isinstance(error, EngineError):
                hint = f"{path} holds the finished steps: --resume continues from there"
                raise with_message(error, f"{error}\n{hint}") from error
        raise
    drop_snapshot(path)


def _stamp(path: Path) -> tuple[int, int] | None:
    """Inode and modification time, which change when a file is replaced."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns
