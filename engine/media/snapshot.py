"""Snapshots of a rendering in files.

A file is replaced atomically, its checksum is verified on reading, and it depends on no layout: a
rendering may resume on another number of ranks.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from longtake.configs.snapshot import SnapshotConfig
from longtake.engine.media.identity import Identity
from longtake.errors import EngineError, LongtakeError, one_line
from longtake.files.atomic import cause, partial_path, write_atomically
from longtake.pipelines.loading.files.tensor_files import (
    MAX_LATENTS_BYTES,
    TensorFileError,
    open_tensors,
)
from longtake.pipelines.runtime.snapshots import LoopState, Snapshots
from longtake.pipelines.spec import LatentGrid

if TYPE_CHECKING:
    import torch

    from longtake.parallel import World

_HEADER = "longtake-snapshot"
_HEADER_BYTES = 4096
_MAX_BYTES = 5 * MAX_LATENTS_BYTES
"""A multistep sampler of order 3 remembers four tensors of the latents' size."""


class UnusableSnapshotError(LongtakeError):
    """A snapshot is damaged or of another rendering: this one starts from the beginning."""


class _Header(BaseModel):
    identity: Identity
    steps_done: int = Field(ge=1)
    sha256: str


@dataclass(frozen=True)
class Snapshot:
    """Content of a snapshot file."""

    identity: Identity
    state: LoopState


def is_snapshot(path: Path) -> bool:
    """Whether a file starts like a snapshot; it may still be damaged or another rendering's."""
    if not path.is_file():  # opening a pipe would block
        return False
    with suppress(OSError), path.open("rb") as file:
        return _HEADER.encode() in file.read(_HEADER_BYTES)
    return False


def write_snapshot(path: Path, identity: Identity, state: LoopState) -> None:
    """Write a snapshot, which replaces an earlier one once it is flushed to disk.

    Raises:
        EngineError: It cannot be written; an earlier one is unchanged.
    """
    from safetensors.torch import save  # imports torch; this module does not

    tensors = {name: tensor.cpu().contiguous() for name, tensor in state.tensors().items()}
    header = _Header(identity=identity, steps_done=state.steps_done, sha256=_digest(tensors))
    content = save(tensors, metadata={_HEADER: header.model_dump_json()})
    write_atomically(path, content, durable=True, partial=_partial(path))


def drop_snapshot(path: Path) -> None:
    """Remove a snapshot, and the partial file of a killed process."""
    path.unlink(missing_ok=True)
    drop_partial_snapshot(path)


def drop_partial_snapshot(path: Path) -> None:
    """Remove the partial snapshot of a killed process."""
    _partial(path).unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    """A fixed name, so that the partial file of a killed process is overwritten."""
    return partial_path(path, "snapshot")


def read_snapshot(path: Path) -> Snapshot | None:
    """Read a snapshot; None if there is no such file.

    Raises:
        UnusableSnapshotError: The file is damaged.
    """
    try:
        with open_tensors(path, "pt", _MAX_BYTES) as file:
            header = _Header.model_validate_json((file.metadata() or {}).get(_HEADER, ""))
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UnusableSnapshotError(f"{path} cannot be read: {cause(error)}") from error
    except (TensorFileError, ValidationError) as error:
        raise UnusableSnapshotError(
            f"{path} is damaged, or not a snapshot: {one_line(error)[:100]}"
        ) from error
    request = header.identity.request
    if _digest(tensors) != header.sha256 or "latents" not in tensors:
        raise UnusableSnapshotError(f"{path} is damaged: its checksum does not match")
    if header.steps_done > request.num_inference_steps:
        raise UnusableSnapshotError(f"{path} is damaged: it has more steps than its request")
    return Snapshot(header.identity, LoopState.of_tensors(header.steps_done, tensors))


def read_resume_state(path: Path, identity: Identity) -> LoopState | None:
    """The state that a rendering can resume from; None if there is no snapshot.

    Raises:
        UnusableSnapshotError: The snapshot is damaged, or another rendering's.
    """
    found = read_snapshot(path)
    if found is None:
        return None
    if reason := identity.difference_from(found.identity):
        raise UnusableSnapshotError(f"{path} is of {reason}")
    return found.state


class SnapshotPlan(BaseModel):
    """Where and how often snapshots are written, and which step a rendering resumes from.

    Attributes:
        path: The snapshot file, on rank 0's host.
        identity: Identity of the rendering.
        config: How often snapshots are written.
        steps_done: Steps in the file already; 0: the rendering starts from the beginning.
        after_last_step: Whether a snapshot is written after the last step, too, for the decode.
    """

    path: Path
    identity: Identity
    config: SnapshotConfig = SnapshotConfig()
    steps_done: int = 0
    after_last_step: bool = True


def plan_snapshots(
    path: Path,
    identity: Identity,
    config: SnapshotConfig,
    *,
    resume: bool,
    after_last_step: bool = True,
) -> tuple[SnapshotPlan, str]:
    """Plan the snapshots of a rendering.

    Args:
        path: The snapshot file.
        identity: Identity of the rendering.
        config: How often snapshots are written.
        resume: Resume from the file if it is of this rendering.
        after_last_step: Write a snapshot after the last step, too, for the decode.

    Returns:
        The plan, and a line for the user: the step to resume from, or why the file cannot be used;
        empty if there is nothing to say.
    """
    plan = SnapshotPlan(
        path=path, identity=identity, config=config, after_last_step=after_last_step
    )
    if not resume:
        return plan, ""
    try:
        state = read_resume_state(path, identity)
    except UnusableSnapshotError as error:
        return plan, f"{error}: it starts over"
    if state is None:
        return plan, ""
    done, total = state.steps_done, identity.request.num_inference_steps
    return plan.model_copy(update={"steps_done": done}), f"resumes after step {done} of {total}"


@contextmanager
def snapshot_writer(
    plan: SnapshotPlan | None, world: World, grid: LatentGrid
) -> Iterator[Snapshots | None]:
    """Takes the snapshots of a rendering, on all ranks; rank 0 writes them. None without a plan."""
    if plan is None:
        yield None
        return

    def write(state: LoopState) -> None:
        if world.rank == 0:
            write_snapshot(plan.path, plan.identity, state)

    snapshots = Snapshots(
        plan.config, 4 * math.prod(grid.shape), write, after_last_step=plan.after_last_step
    )
    try:
        yield snapshots
    finally:
        snapshots.close()


def load_resume_state(plan: SnapshotPlan | None, world: World) -> LoopState | None:
    """The state that a rendering resumes from, on rank 0; None elsewhere, and at the start.

    Raises:
        EngineError: The file has changed since the rendering was planned.
    """
    if plan is None or plan.steps_done == 0 or world.rank != 0:
        return None
    try:
        state = read_resume_state(plan.path, plan.identity)
    except UnusableSnapshotError as error:
        raise EngineError(str(error)) from error
    if state is None or state.steps_done != plan.steps_done:
        raise EngineError(f"{plan.path} was changed since this rendering began: render it again")
    return state


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(np.ascontiguousarray(tensor.numpy()).data)
    return digest.hexdigest()
